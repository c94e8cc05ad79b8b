//! Tokens that pass, by each algorithm, signed by us and by others; and what a shard remembers of them.

use super::*;
use jsonwebtoken::{EncodingKey, Header, encode};
use std::rc::Rc;

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

const FILES: [(Algorithm, &str); 4] = [
    (Algorithm::Rs256, "rsa.pem"),
    (Algorithm::Ps256, "rsa.pem"),
    (Algorithm::Es256, "p256.pem"),
    (Algorithm::EdDsa, "ed25519.pem"),
];

fn grant(permissions: &[String]) -> Grant<'_> {
    Grant {
        sub: "42",
        email: "ada@example.com",
        role: "user",
        permissions,
        sid: "s_1",
        session_began_ms: 1_789_999_999_123,
    }
}

#[test]
fn what_we_sign_passes_and_says_what_was_granted() {
    let permissions = ["events:write".to_owned(), "hub:*".to_owned()];
    let secret = (Algorithm::Hs256, None);
    for (algorithm, name) in FILES.map(|(algorithm, name)| (algorithm, Some(name))).into_iter().chain([secret]) {
        let auth = config(vec![key("k", algorithm, name, true)]);
        let own = OwnKeys::load(&auth, Path::new("nowhere")).expect("the keys are right");
        let issued = Issuer::new(&auth, &own).expect("it signs").issue(&grant(&permissions), NOW).expect("signed");
        let claims = check(&key_set(&auth), &issued.token).expect("it passes");
        assert_eq!(claims, issued.claims, "{algorithm:?}");
        assert_eq!(claims.session_began_ms, Some(1_789_999_999_123));
        assert_eq!((issued.expires_in, claims.exp), (Duration::from_mins(15), NOW.as_secs() + 900));
        assert_eq!(claims.permissions.len(), 2);
        assert!(!format!("{issued:?}").contains(issued.token.as_str()));
    }
}

#[test]
fn no_two_tokens_are_the_same() {
    let auth = config(vec![key("k", Algorithm::Hs256, None, true)]);
    let own = OwnKeys::load(&auth, Path::new("nowhere")).expect("the keys are right");
    let signer = Issuer::new(&auth, &own).expect("it signs");
    let [one, two] = [(); 2].map(|()| signer.issue(&grant(&[]), NOW).expect("signed"));
    assert_ne!(one.claims.jti, two.claims.jti);
    let unsound = Grant { sub: "a\r\nX-Admin: 1", ..grant(&[]) };
    assert_eq!(signer.issue(&unsound, NOW).err(), Some(IssueError::Grant));
    let many: Vec<String> = (0..250).map(|n| format!("a-permission-with-a-long-name:{n}")).collect();
    assert_eq!(signer.issue(&grant(&many), NOW).err(), Some(IssueError::TooLong));
}

/// The crate's own encoder, which knows nothing of our checks, on our provider.
#[test]
fn what_the_crate_signs_passes() {
    install();
    for (algorithm, name) in FILES {
        let pem = fs::read(file(name)).expect("a key");
        let key_of = match algorithm {
            Algorithm::Es256 => EncodingKey::from_ec_pem(&pem),
            Algorithm::EdDsa => EncodingKey::from_ed_pem(&pem),
            _ => EncodingKey::from_rsa_pem(&pem),
        };
        let header = Header { kid: Some("k".to_owned()), ..Header::new(provider::jose(algorithm)) };
        let token = encode(&header, &claims(), &key_of.expect("a key")).expect("signed");
        check(&key_set(&config(vec![key("k", algorithm, Some(name), false)])), &token).expect("it passes");
    }
}

#[test]
fn spellings_that_mean_the_same_pass() {
    let keys = one_secret();
    for (header, payload) in [
        (r#"{"alg":"HS256"}"#, claims()),
        (r#"{"typ":"at+JWT","alg":"HS256"}"#, claims()),
        (r#"{"typ":"application/at+jwt","alg":"HS256","kid":"k","x5t":"a thumbprint","nonce":"of Azure"}"#, claims()),
        (HEADER, with(json!({ "aud": ["other", "shardgate"] }))),
        (HEADER, with(json!({ "exp": NOW.as_secs_f64() + 0.5, "nbf": NOW.as_secs_f64() + 4.5 }))),
        (
            HEADER,
            with(
                json!({ "iat": "-", "sid": "-", "jti": "-", "email": "-", "role": "-", "permissions": "-", "auth_time": "-" }),
            ),
        ),
        (HEADER, with(json!({ "permissions": "events:write hub:read" }))),
        (HEADER, with(json!({ "role": null, "email": "", "address": { "street": ["x"] } }))),
    ] {
        check(&keys, &hs256(header, &payload.to_string()))
            .unwrap_or_else(|error| panic!("{header} {payload}: {error}"));
    }
}

#[test]
fn clocks_may_be_apart_by_the_leeway_and_no_more() {
    let keys = one_secret();
    let now = NOW.as_secs();
    let at = |changes| check(&keys, &hs256(HEADER, &with(changes).to_string())).map(|_| ());
    assert_eq!(at(json!({ "exp": now - 4 })), Ok(()));
    assert_eq!(at(json!({ "exp": now - 5 })), Err(TokenError::Expired));
    assert_eq!(at(json!({ "nbf": now + 5 })), Ok(()));
    assert_eq!(at(json!({ "nbf": now + 6 })), Err(Flaw::NotYet.into()));
    assert_eq!(at(json!({ "iat": now + 5 })), Ok(()));
    assert_eq!(at(json!({ "iat": now + 6 })), Err(Flaw::FromTheFuture.into()));
    assert_eq!(at(json!({ "exp": now + 3605 })), Ok(()));
    assert_eq!(at(json!({ "exp": now + 3606 })), Err(Flaw::Lifetime.into()));
    // What is left of a life does not say how long it is.
    assert_eq!(at(json!({ "iat": now - 3000, "exp": now + 605 })), Ok(()));
    assert_eq!(at(json!({ "iat": now - 3000, "exp": now + 606 })), Err(Flaw::Lifetime.into()));
    assert_eq!(at(json!({ "iat": "-", "exp": now + 3605 })), Ok(()));
    assert_eq!(at(json!({ "auth_time": now + 60 })), Ok(()), "ours begin behind the end of all sessions before");
}

#[test]
fn a_hit_ends_with_the_token() {
    let (keys, mut checker) = (one_secret(), Checker::new(8));
    let token = hs256(HEADER, &claims().to_string());
    let mut at = |now: Duration| {
        checker.check(&keys, &no_revocations(), token.as_bytes(), now).map(|claims| Rc::strong_count(&claims))
    };
    assert_eq!(at(NOW), Ok(2));
    assert_eq!(at(NOW + Duration::from_secs(904)), Ok(2));
    assert_eq!(at(NOW + Duration::from_secs(905)), Err(TokenError::Expired));
    assert_eq!(at(NOW + Duration::from_secs(905)), Err(TokenError::Expired), "cold as well");
    assert_eq!((checker.counts(), checker.len()), (CheckCounts { remembered: 1, passed: 1, refused: 2 }, 0));
}

#[test]
fn a_hit_is_asked_about_revocation() {
    let (keys, mut checker, mut revocations) = (one_secret(), Checker::new(8), no_revocations());
    let entry = |kind, id: &str| Revocation { kind, id: id.into(), at_ms: 1_790_000_001_000, by: "test".into() };
    let token = hs256(HEADER, &claims().to_string());
    let other = hs256(HEADER, &with(json!({ "sid": "s_2" })).to_string());
    let mut check =
        |revocations: &Revocations, token: &str| checker.check(&keys, revocations, token.as_bytes(), NOW).err();
    assert_eq!([check(&revocations, &token), check(&revocations, &token)], [None, None]);
    revocations.apply(&entry(revocation::Kind::Session, "s_1"), revocation::Moment::default());
    assert_eq!([check(&revocations, &token), check(&revocations, &token)], [Some(TokenError::Revoked); 2]);
    assert_eq!([check(&revocations, &other), check(&revocations, &other)], [None, None]);
    revocations.apply(&entry(revocation::Kind::User, "42"), revocation::Moment::default());
    assert_eq!([check(&revocations, &other), check(&revocations, &token)], [Some(TokenError::Revoked); 2]);
    let cold = Checker::new(8).check(&keys, &revocations, other.as_bytes(), NOW).err();
    assert_eq!(cold, Some(TokenError::Revoked));
}

#[test]
fn a_hit_ends_with_its_key_or_the_rules_for_it() {
    let secret = || key("old", Algorithm::Hs256, None, true);
    let other = || key("new", Algorithm::Es256, Some("p256.pem"), true);
    let old = key_set(&config(vec![secret()]));
    let both = key_set(&config(vec![other(), secret()]));
    let gone = key_set(&config(vec![other()]));
    let renamed = key_set(&Auth { audience: "elsewhere".to_owned(), ..config(vec![secret()]) });
    let token = hs256(r#"{"alg":"HS256","kid":"old"}"#, &claims().to_string());
    let mut checker = Checker::new(8);
    let mut check = |keys: &KeySet| checker.check(keys, &no_revocations(), token.as_bytes(), NOW).err();
    assert_eq!([check(&old), check(&both), check(&both)], [None; 3]);
    assert_eq!(check(&gone), Some(Flaw::UnknownKey.into()));
    assert_eq!(check(&both), None);
    assert_eq!(check(&renamed), Some(Flaw::Audience.into()));
    assert_eq!((checker.counts(), checker.len()), (CheckCounts { remembered: 2, passed: 2, refused: 2 }, 0));
}

/// The other half of the pair (r, s), (r, n - s): it fits as well, and anybody can compute it.
fn twin(token: &str) -> String {
    // n of P-256 (FIPS 186-4, D.1.2.3).
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let mut borrow = false;
    for (byte, of_order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let (less, first) = of_order.overflowing_sub(*byte);
        let (less, second) = less.overflowing_sub(u8::from(borrow));
        (*byte, borrow) = (less, first || second);
    }
    format!("{message}.{}", b64(signature))
}

#[test]
fn a_twin_of_a_token_is_the_same_caller_and_ends_with_it() {
    let auth = config(vec![key("k", Algorithm::Es256, Some("p256.pem"), true)]);
    let own = OwnKeys::load(&auth, Path::new("nowhere")).expect("the keys are right");
    let token = Issuer::new(&auth, &own).expect("it signs").issue(&grant(&[]), NOW).expect("signed").token;
    let twin = twin(&token);
    assert_ne!(*token, *twin);
    let (keys, mut checker, mut revocations) = (key_set(&auth), Checker::new(8), no_revocations());
    let mut both = |revocations: &Revocations| {
        [&*token, &*twin].map(|text| checker.check(&keys, revocations, text.as_bytes(), NOW))
    };
    let [one, other] = both(&revocations);
    assert_eq!(one.expect("it passes"), other.expect("it is as good"));
    let entry = Revocation { kind: revocation::Kind::Session, id: "s_1".into(), at_ms: 1, by: "test".into() };
    revocations.apply(&entry, revocation::Moment::default());
    assert_eq!(both(&revocations), [Err(TokenError::Revoked), Err(TokenError::Revoked)]);
    assert_eq!(checker.len(), 2, "an entry of the cache is all that it has of its own");
}

#[test]
fn a_flood_of_garbage_evicts_nothing() {
    let (keys, mut checker) = (one_secret(), Checker::new(2));
    let token = hs256(HEADER, &claims().to_string());
    let mut check = |token: &str| checker.check(&keys, &no_revocations(), token.as_bytes(), NOW).is_ok();
    assert!(check(&token));
    for n in 0..1000 {
        assert!(!check(&format!("{token}{n}")));
    }
    assert!(check(&token));
    assert_eq!(checker.counts(), CheckCounts { remembered: 1, passed: 1, refused: 1000 });
}
