//! Other issuers: their key sets, their rules, and whose key a token means.

use super::*;
use jsonwebtoken::{EncodingKey, Header, encode};

const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

fn parse(keys: &Value) -> Result<JwkSet, String> {
    JwkSet::parse(
        json!({ "keys": keys }).to_string().as_bytes(),
        &[Algorithm::Rs256, Algorithm::Ps256, Algorithm::Es256, Algorithm::EdDsa],
    )
    .map_err(|fault| fault.to_string())
}

/// Why a key beside a good one is passed over.
fn skipped(key: &Value) -> String {
    let good = json!({ "kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "good" });
    let set = parse(&json!([good, key])).expect("one is good");
    assert_eq!(set.len() + set.skipped.len(), 2);
    set.skipped.into_iter().next().unwrap_or_default().trim_start_matches("keys[1]: ").to_owned()
}

#[test]
fn keys_that_are_good_for_nothing_are_passed_over() {
    let ec = |changes: Value| {
        let mut key = json!({ "kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "k" });
        for (name, value) in changes.as_object().expect("an object") {
            key[name] = value.clone();
        }
        key
    };
    let rsa = |n: &[u8], e: &[u8]| json!({ "kty": "RSA", "n": b64(n), "e": b64(e) });
    let modulus = |bytes: usize| {
        let mut modulus = vec![0xc1; bytes];
        modulus[bytes - 1] = 1;
        modulus
    };
    for (key, why) in [
        (ec(json!({})), ""),
        (ec(json!({ "use": "sig", "key_ops": ["verify"], "alg": "ES256" })), ""),
        (ec(json!({ "use": "enc" })), "its use is not sig"),
        (ec(json!({ "use": 1 })), "a member is no text"),
        (ec(json!({ "key_ops": ["sign"] })), "its key_ops are without verify"),
        (ec(json!({ "key_ops": "verify" })), "its key_ops are without verify"),
        (ec(json!({ "alg": "RS256" })), "its alg does not fit it"),
        (ec(json!({ "alg": "HS256" })), "its alg does not fit it"),
        (ec(json!({ "d": X })), "it is a private key, which everybody knows now"),
        (ec(json!({ "kid": "good" })), "another has its kid"),
        (ec(json!({ "kid": "k".repeat(256) })), "its kid is too long"),
        (ec(json!({ "crv": "P-384" })), "its kty and crv are of no algorithm that is taken"),
        (ec(json!({ "x": "AAAA" })), "its point is not of 2 times 32 bytes"),
        (ec(json!({ "x": format!("{X}=") })), "a part of it is no base64url"),
        (json!({ "kty": "EC", "crv": "P-256", "x": X }), "a part of it is missing"),
        (json!({ "kty": "oct", "k": b64(SECRET) }), "it is a symmetric key"),
        (json!({ "kty": "OKP", "crv": "X25519", "x": X }), "its kty and crv are of no algorithm that is taken"),
        (json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }), "it is no Ed25519 public key"),
        (json!("kty"), "it is no object"),
        (json!({}), "its kty and crv are of no algorithm that is taken"),
        (rsa(&modulus(256), &[1, 0, 1]), ""),
        (rsa(&modulus(1024), &[3]), ""),
        (rsa(&modulus(128), &[1, 0, 1]), "its modulus is not of 2048 to 8192 bits"),
        (rsa(&modulus(1025), &[1, 0, 1]), "its modulus is not of 2048 to 8192 bits"),
        (rsa(&[&[0], &modulus(256)[..]].concat(), &[1, 0, 1]), "its modulus is not canonical"),
        (
            rsa(&[0xc1; 255].iter().chain(&[0_u8]).copied().chain([2]).collect::<Vec<_>>(), &[1, 0, 1]),
            "its modulus is even",
        ),
        (rsa(&modulus(256), &[1]), "its exponent is not an odd number from 3 to 2^33"),
        (rsa(&modulus(256), &[2]), "its exponent is not an odd number from 3 to 2^33"),
        (rsa(&modulus(256), &[0, 1, 0, 1]), "its exponent is not an odd number from 3 to 2^33"),
        (rsa(&modulus(256), &[]), "its exponent is not an odd number from 3 to 2^33"),
        (rsa(&modulus(256), &[2, 0, 0, 0, 1]), "its exponent is not an odd number from 3 to 2^33"),
    ] {
        assert_eq!(skipped(&key), why, "{key}");
    }
}

#[test]
fn sets_without_a_key_are_refused() {
    let refused = |bytes: &[u8]| JwkSet::parse(bytes, &[Algorithm::Es256]).err().map(|fault| fault.to_string());
    for (text, why) in [
        ("", "the key set is no JSON"),
        ("<html>", "the key set is no JSON"),
        ("[]", "the key set has no list named keys"),
        ("{}", "the key set has no list named keys"),
        (r#"{"keys":{}}"#, "the key set has no list named keys"),
        (r#"{"keys":[]}"#, "the key set is empty"),
        (r#"{"keys":[],"keys":[]}"#, "a member stands twice in an object of the key set"),
        (r#"{"keys":[{"kty":"oct"}]}"#, "no key of the set can be used: keys[0]: it is a symmetric key"),
    ] {
        assert_eq!(refused(text.as_bytes()).as_deref(), Some(why), "{text}");
    }
    assert_eq!(refused(&vec![b' '; SET_BYTES_MAX + 1]).as_deref(), Some("the key set is larger than 512KiB"));
    let many: Vec<Value> =
        (0..100).map(|n| json!({ "kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": n.to_string() })).collect();
    let set = parse(&json!(many)).expect("a set");
    assert_eq!((set.len(), set.skipped.len()), (64, 8));
}

fn token(algorithm: Algorithm, name: &str, header: Header, claims: &Value) -> String {
    install();
    let pem = fs::read(file(name)).expect("a key");
    let key = match algorithm {
        Algorithm::Es256 => EncodingKey::from_ec_pem(&pem),
        Algorithm::EdDsa => EncodingKey::from_ed_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    };
    encode(&Header { alg: provider::jose(algorithm), ..header }, claims, &key.expect("a key")).expect("signed")
}

fn kid(kid: &str) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::default() }
}

/// The set of a key file, under a kid.
fn set_of(algorithm: Algorithm, name: &str, kid: &str) -> Arc<JwkSet> {
    let own =
        OwnKeys::load(&config(vec![key(kid, algorithm, Some(name), false)]), Path::new("nowhere")).expect("right");
    let page = KeySet::new(&config(Vec::new()), &own, &BTreeMap::new());
    Arc::new(JwkSet::parse(page.jwks_json().as_bytes(), &Algorithm::ALL).expect("a set"))
}

fn own_secret() -> Vec<TokenKey> {
    vec![key("k", Algorithm::Hs256, None, true)]
}

fn keys(issuers: Vec<TokenIssuer>, fetched: &[(&str, Arc<JwkSet>)]) -> KeySet {
    let auth = Auth { issuers, ..config(own_secret()) };
    let own = OwnKeys::load(&auth, Path::new("nowhere")).expect("right");
    KeySet::new(&auth, &own, &fetched.iter().map(|(name, set)| ((*name).to_owned(), Arc::clone(set))).collect())
}

#[test]
fn claims_are_where_the_issuer_has_them() {
    let rules = issuer(
        "audiences = [\"api\"]\nroles = [\"analyst\"]\npermissions = [\"*\"]\nclaim_role = \"https://example.com/role\"\nclaim_permissions = \"/realm_access/roles\"\nclaim_email = \"mail\"\nclaim_sid = \"session_state\"\n",
    );
    let keys = keys(vec![rules], &[("id", set_of(Algorithm::Rs256, "rsa.pem", "r"))]);
    let claims = json!({
        "iss": "id", "sub": "u|1", "aud": ["api", "account"], "exp": NOW.as_secs() + 80_000, "mail": "a@x", "role": "admin",
        "https://example.com/role": ["analyst"], "realm_access": { "roles": ["events:write", "offline"] }, "permissions": ["*"],
    });
    let claims = check(&keys, &token(Algorithm::Rs256, "rsa.pem", kid("r"), &claims)).expect("it passes");
    assert_eq!((claims.roles.as_list(), claims.email.as_deref(), claims.sid), (Some("analyst"), Some("a@x"), None));
    assert_eq!(*claims.permissions, ["events:write", "offline"].map(Box::<str>::from));
    assert_eq!((claims.origin, &*claims.iss, &*claims.sub), (Origin::Foreign, "id", "id|u|1"));
}

/// What a token of an issuer with these rules comes down to: its roles and its permissions.
fn given(rules: &str, said: Value) -> Result<(String, String), TokenError> {
    let keys = keys(vec![issuer(rules)], &[("id", set_of(Algorithm::Es256, "p256.pem", "k"))]);
    let mut claims = with(said);
    claims["iss"] = "id".into();
    let claims = check(&keys, &token(Algorithm::Es256, "p256.pem", kid("k"), &claims))?;
    Ok((claims.roles.as_list().unwrap_or_default().to_owned(), claims.permissions.join(" ")))
}

#[test]
fn an_issuer_gives_what_it_may_and_nothing_else() {
    let all = || json!({ "role": "admin", "permissions": ["*", "events:*", "events:write", "hub:read"] });
    for (rules, said, role, permissions) in [
        ("", all(), "", ""),
        ("", json!({ "role": ["a", "b"], "permissions": { "of": "another kind" } }), "", ""),
        ("roles = [\"user\"]", all(), "", ""),
        ("roles = [\"user\"]\nrole = \"guest\"", all(), "guest", ""),
        ("role = \"guest\"", all(), "guest", ""),
        ("roles = [\"user\"]\nrole = \"guest\"", json!({ "role": "user" }), "user", ""),
        ("roles = [\"user\"]", json!({ "role": ["offline", "user", "admin"] }), "user", ""),
        ("roles = [\"user\", \"admin\"]", all(), "admin", ""),
        ("roles = [\"*\"]", all(), "admin", ""),
        ("roles = [\"*\"]\nrole = \"guest\"", json!({ "role": "" }), "guest", ""),
        ("permissions = [\"events:*\"]", all(), "", "events:* events:write"),
        ("permissions = [\"events:write\"]", all(), "", "events:write"),
        ("permissions = [\"events:write\"]", json!({ "permissions": "hub:read events:write *" }), "", "events:write"),
        ("permissions = [\"*\"]", all(), "", "* events:* events:write hub:read"),
    ] {
        let expected = (role.to_owned(), permissions.to_owned());
        assert_eq!(given(rules, said.clone()), Ok(expected), "{rules}: {said}");
    }
}

#[test]
fn an_issuer_gives_all_the_roles_that_it_may_in_the_order_of_the_configuration() {
    let many = |count: usize| (0..count).map(|n| format!("r{n}")).collect::<Vec<_>>();
    for (rules, said, roles) in [
        ("roles = [\"user\", \"admin\"]", json!(["admin", "offline", "user"]), "user,admin"),
        ("roles = [\"admin\", \"user\"]", json!(["user", "user", "admin"]), "admin,user"),
        ("roles = [\"admin\", \"user\"]\nrole = \"guest\"", json!(["offline"]), "guest"),
        ("roles = [\"admin\", \"user\"]", json!([]), ""),
        ("roles = [\"user\"]", json!(["user", 5, null, ["admin"], { "admin": true }]), "user"),
        // The star stands for all that have no place of their own.
        ("roles = [\"user\", \"*\", \"admin\"]", json!(["admin", "b", "a", "user", "b"]), "user,b,a,admin"),
        ("roles = [\"*\"]", json!(["b", "a,admin", "a\n", "", " c", "é", "x".repeat(256)]), "b"),
        ("roles = [\"*\"]", json!("user,admin"), ""),
        // One text is one role, unless the claim's form says otherwise.
        ("roles = [\"admin\", \"user\"]", json!("user admin"), ""),
        ("roles = [\"admin\", \"sales admin\"]", json!("sales admin"), "sales admin"),
        ("roles = [\"*\"]", json!("sales admin"), "sales admin"),
    ] {
        assert_eq!(given(rules, json!({ "role": said })), Ok((roles.to_owned(), String::new())), "{rules}: {said}");
    }
    let place = "roles = [\"admin\", \"user\"]\nclaim_role = ";
    for (claim, said, roles) in [
        ("\"scope\"", json!({ "scope": "openid user  admin" }), "admin,user"),
        ("\"scp\"", json!({ "scp": "user admin" }), "admin,user"),
        ("\"scope\"", json!({ "scope": ["user", "admin"] }), "admin,user"),
        (
            "\"/realm_access/roles\"",
            json!({ "realm_access": { "roles": ["offline_access", "user", "admin"] } }),
            "admin,user",
        ),
        ("\"cognito:groups\"", json!({ "cognito:groups": ["user"] }), "user"),
        ("\"/realm_access/roles\"", json!({ "realm_access": { "roles": "user admin" } }), ""),
    ] {
        assert_eq!(given(&format!("{place}{claim}"), said.clone()), Ok((roles.to_owned(), String::new())), "{said}");
    }
    let any = "roles = [\"*\"]";
    assert_eq!(given(any, json!({ "role": many(64) })), Ok((many(64).join(","), String::new())));
    assert_eq!(given(any, json!({ "role": many(65) })), Err(Flaw::Roles.into()));
    assert_eq!(given("roles = [\"r64\"]", json!({ "role": many(65) })), Ok(("r64".to_owned(), String::new())));
    for wrong in [json!({ "admin": true }), json!(1), json!(true)] {
        assert_eq!(given(any, json!({ "role": wrong })), Err(Flaw::ClaimType(Claim::Role).into()));
    }
}

#[test]
fn ids_of_two_issuers_do_not_meet() {
    let set = || set_of(Algorithm::Es256, "p256.pem", "k");
    let ids = |rules: &str| {
        let keys = keys(vec![issuer(rules)], &[("id", set())]);
        let claims = check(&keys, &token(Algorithm::Es256, "p256.pem", kid("k"), &with(json!({ "iss": "id" }))));
        claims.expect("it passes")
    };
    let revoked = |claims: &Claims| {
        [(revocation::Kind::User, "42"), (revocation::Kind::Session, "s_1")].map(|(kind, id)| {
            let entry = Revocation { kind, id: id.into(), at_ms: u64::MAX, by: "test".into() };
            let mut set = no_revocations();
            set.apply(&entry, revocation::Moment::default());
            (set.is_revoked(claims), entry.ends(claims))
        })
    };
    let theirs = ids("");
    assert_eq!((&*theirs.sub, theirs.sid.as_deref()), ("id|42", Some("id|s_1")));
    assert_eq!(revoked(&theirs), [(false, false); 2], "our 42 is somebody else");
    let partners = ids("sub_prefix = \"partner:\"");
    assert_eq!((&*partners.sub, partners.sid.as_deref()), ("partner:42", Some("partner:s_1")));
    let ours = ids("sub_prefix = \"\"");
    assert_eq!((&*ours.sub, ours.sid.as_deref()), ("42", Some("s_1")));
    assert_eq!(revoked(&ours), [(true, true); 2], "where the configuration says that they are the same");
}

#[test]
fn new_rules_hold_for_tokens_that_are_remembered() {
    let before = keys(vec![issuer("roles = [\"admin\"]")], &[("id", set_of(Algorithm::Es256, "p256.pem", "k"))]);
    let after = keys(vec![issuer("")], &[("id", set_of(Algorithm::Es256, "p256.pem", "k"))]);
    let token = token(Algorithm::Es256, "p256.pem", kid("k"), &with(json!({ "iss": "id", "role": "admin" })));
    let mut checker = Checker::new(8);
    let mut role = |keys| {
        let claims = checker.check(keys, &no_revocations(), token.as_bytes(), NOW).expect("it passes");
        claims.roles.as_list().map(str::to_owned)
    };
    assert_eq!([role(&before), role(&before), role(&after)], [Some("admin".into()), Some("admin".into()), None]);
}

#[test]
fn one_issuers_key_is_good_for_its_tokens_only() {
    let other = TokenIssuer { issuer: "other".to_owned(), ..issuer("") };
    let fetched =
        [("id", set_of(Algorithm::Es256, "p256.pem", "k")), ("other", set_of(Algorithm::EdDsa, "ed25519.pem", "k"))];
    let keys = keys(vec![issuer(""), other], &fetched);
    let by = |algorithm, name, iss: &str| {
        check(&keys, &token(algorithm, name, kid("k"), &with(json!({ "iss": iss })))).map(|claims| claims.origin)
    };
    assert_eq!(by(Algorithm::Es256, "p256.pem", "id"), Ok(Origin::Foreign));
    assert_eq!(by(Algorithm::EdDsa, "ed25519.pem", "other"), Ok(Origin::Foreign));
    assert_eq!(by(Algorithm::EdDsa, "ed25519.pem", "id"), Err(Flaw::Algorithm.into()));
    assert_eq!(by(Algorithm::Es256, "p256.pem", "shardgate"), Err(Flaw::Algorithm.into()), "nobody else speaks for us");
    assert_eq!(
        check(&keys, &hs256(r#"{"alg":"HS256","kid":"k"}"#, &with(json!({ "iss": "id" })).to_string())).err(),
        Some(Flaw::Algorithm.into())
    );
}

#[test]
fn rules_are_each_issuers_own() {
    let refused = |rules: &str, header: Header, changes: Value| {
        let keys = keys(vec![issuer(rules)], &[("id", set_of(Algorithm::Es256, "p256.pem", "k"))]);
        let mut claims = with(changes);
        claims["iss"] = "id".into();
        check(&keys, &token(Algorithm::Es256, "p256.pem", header, &claims)).err()
    };
    let typed = |typ: Option<&str>| Header { typ: typ.map(str::to_owned), ..kid("k") };
    assert_eq!(refused("", kid("k"), json!({ "aud": "-" })), None, "without audiences, aud is not looked at");
    assert_eq!(refused("audiences = [\"api\"]", kid("k"), json!({})), Some(Flaw::Audience.into()));
    assert_eq!(refused("types = [\"at+jwt\"]", typed(Some("AT+jwt")), json!({})), None);
    assert_eq!(refused("types = [\"at+jwt\"]", typed(Some("JWT")), json!({})), Some(Flaw::Type.into()));
    assert_eq!(refused("types = [\"at+jwt\"]", typed(None), json!({})), Some(Flaw::Type.into()));
    assert_eq!(refused("types = [\"\"]", typed(None), json!({})), None);
    assert_eq!(refused("algorithms = [\"RS256\"]", kid("k"), json!({})), Some(Flaw::UnknownKey.into()));
    assert_eq!(refused("lifetime_max = \"10m\"", kid("k"), json!({})), Some(Flaw::Lifetime.into()));
    let now = NOW.as_secs();
    assert_eq!(refused("", kid("k"), json!({ "auth_time": now + 5 })), None);
    assert_eq!(refused("", kid("k"), json!({ "auth_time": now + 6 })), Some(Flaw::FromTheFuture.into()));
    assert_eq!(refused("", Header::default(), json!({})), None, "with one key there is no doubt");
    assert_eq!(refused("", kid("other"), json!({})), Some(Flaw::UnknownKey.into()));
}

#[test]
fn keys_that_are_away_are_no_fault_of_the_bearer() {
    let mut rules = issuer("");
    rules.jwks_file = None;
    rules.jwks_url = Some("https://id/keys".to_owned());
    let away = keys(vec![rules.clone()], &[]);
    assert_eq!(away.away().collect::<Vec<_>>(), ["id"]);
    let token = token(Algorithm::Es256, "p256.pem", kid("new"), &with(json!({ "iss": "id" })));
    let mut checker = Checker::new(8);
    let mut check =
        |keys: &KeySet, at| (checker.check(keys, &no_revocations(), token.as_bytes(), at).err(), checker.take_wanted());
    let id = || Some(Arc::from("id"));
    assert_eq!(check(&away, NOW), (Some(TokenError::KeysAway), id()));
    let old = keys(vec![rules.clone()], &[("id", set_of(Algorithm::Es256, "p256.pem", "old"))]);
    let later = |millis| NOW + Duration::from_millis(millis);
    assert_eq!(check(&old, later(500)), (Some(Flaw::UnknownKey.into()), None), "it was told just now");
    assert_eq!(check(&old, later(1000)), (Some(Flaw::UnknownKey.into()), id()));
    let new = keys(vec![rules], &[("id", set_of(Algorithm::Es256, "p256.pem", "new"))]);
    assert_eq!(check(&new, later(1500)), (None, None));
    assert_eq!(check(&old, later(9000)), (Some(Flaw::UnknownKey.into()), id()), "its key is gone");
}
