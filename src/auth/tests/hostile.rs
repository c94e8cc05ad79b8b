//! The table of hostile tokens, on a shard that never saw a good one and on one that remembers some.

use super::*;

#[path = "../../../tests/data/auth/hostile.rs"]
#[expect(unreachable_pub, reason = "the journeys read it too")]
mod table;

fn keys() -> KeySet {
    key_set(&config(vec![
        key("hs", Algorithm::Hs256, None, true),
        key("rs", Algorithm::Rs256, Some("rsa.pem"), false),
        key("ps", Algorithm::Ps256, Some("rsa.pub.pem"), false),
        key("es", Algorithm::Es256, Some("p256.pem"), false),
        key("ed", Algorithm::EdDsa, Some("ed25519.pem"), false),
    ]))
}

#[test]
fn each_is_refused_for_what_is_wrong_with_it() {
    let keys = keys();
    let good = table::hs(r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#, &table::claims(NOW.as_secs()).to_string());
    let (mut cold, mut warm) = (Checker::new(64), Checker::new(64));
    warm.check(&keys, &no_revocations(), good.as_bytes(), NOW).expect("the good one passes");
    let cases = table::cases(NOW.as_secs());
    assert!(cases.len() >= 80, "{}", cases.len());
    let mut wrong = Vec::new();
    for table::Case { name, token, code, flaw } in &cases {
        let mut found = Vec::new();
        for checker in [&mut cold, &mut warm] {
            for _ in 0..2 {
                found.push(
                    checker.check(&keys, &no_revocations(), token.as_bytes(), NOW).map(|claims| (*claims).clone()),
                );
            }
        }
        let is_right = |result: &Result<Claims, TokenError>| match result {
            Err(TokenError::Invalid(found)) => {
                *code == "token_invalid" && format!("{found:?}").split('(').next() == Some(flaw)
            }
            Err(TokenError::Expired) => *code == "token_expired",
            _ => false,
        };
        if !found.iter().all(is_right) {
            wrong.push(format!("{name}: expected {flaw}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!((cold.len(), warm.len()), (0, 1), "nothing hostile is remembered");
    assert!(warm.check(&keys, &no_revocations(), good.as_bytes(), NOW).is_ok());
}

/// One character of a good token changed, anywhere, to any other.
#[test]
fn no_change_of_one_character_passes() {
    let keys = keys();
    let good = table::hs(r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#, &table::claims(NOW.as_secs()).to_string());
    for at in 0..good.len() {
        for byte in b".-_Aa0=+/ \n\0\xff" {
            let mut token = good.clone().into_bytes();
            if token[at] != *byte {
                token[at] = *byte;
                assert!(jwt::check(&keys, &token, NOW).is_err(), "{at}: {}", byte.escape_ascii());
            }
        }
    }
}

#[test]
fn names_are_as_many_as_they_should_be() {
    let cases = table::cases(NOW.as_secs());
    let mut tokens: Vec<&str> = cases.iter().map(|case| case.token.as_str()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), cases.len(), "no case is there twice");
}

#[test]
fn the_corpus_of_the_fuzzer_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/jwt");
    let files: Vec<_> = fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    assert!(files.len() >= 10);
    for path in files {
        fuzz_one(&fs::read(path).expect("a file"));
    }
    for case in table::cases(NOW.as_secs()) {
        fuzz_one(format!("t{}", case.token).as_bytes());
    }
}

proptest::proptest! {
    #[test]
    fn nothing_panics_and_nothing_false_passes(kind in 0_usize..3, data: Vec<u8>) {
        fuzz_one(&[&b"tsk"[kind..=kind], &data].concat());
    }
}
