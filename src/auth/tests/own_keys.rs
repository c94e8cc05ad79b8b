//! The gateway's own keys: which files are taken, the key that is made, rotation, and the page that shows the public ones.

use super::*;
use std::os::unix::fs::{MetadataExt as _, symlink};

fn load(keys: Vec<TokenKey>) -> Result<OwnKeys, String> {
    OwnKeys::load(&config(keys), Path::new("nowhere")).map_err(|error| error.to_string())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

#[test]
fn a_key_is_made_once_and_kept_from_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("deep/data");
    let load = || OwnKeys::load(&config(Vec::new()), &directory).expect("a key");
    let (first, second) = (load(), load());
    let made = |keys: &OwnKeys| keys.made.clone().expect("it was made");
    assert_eq!((made(&first).is_new, made(&second).is_new), (true, false));
    assert_eq!((mode(&made(&first).file), mode(&directory)), (0o600, 0o700));
    assert_eq!(fs::read_dir(&directory).expect("a folder").count(), 1, "no draft is left");
    assert_eq!(first.keys[0].kid, second.keys[0].kid);
    let auth = config(Vec::new());
    let grant = Grant { sub: "42", email: "", role: "user", permissions: &[], sid: "s", session_began_ms: 0 };
    let token = Issuer::new(&auth, &first).expect("it signs").issue(&grant, NOW).expect("signed").token;
    let keys = KeySet::new(&auth, &second, &BTreeMap::new());
    assert!(check(&keys, &token).is_ok());
    let jwks: Value = serde_json::from_str(keys.jwks_json()).expect("JSON");
    assert_eq!(jwks["keys"][0]["alg"], "ES256");
    assert_eq!(jwks["keys"][0]["kid"], second.keys[0].kid);
}

#[test]
fn a_reload_makes_no_other_key_in_place_of_one_that_went() {
    let folder = tempfile::tempdir().expect("a folder");
    let auth = config(Vec::new());
    let mut keychain = Keychain::load(&auth, Some(folder.path())).expect("a key");
    let before = keychain.keys().jwks_json().to_owned();
    let (file, aside) = (folder.path().join("token-key.pem"), folder.path().join("aside"));
    fs::rename(&file, &aside).expect("moved");
    let error = reload(&mut keychain, &auth, Some(folder.path())).expect_err("it is gone").to_string();
    assert!(error.contains("token-key.pem") && error.contains("put it back"), "{error}");
    assert!(!file.exists());
    assert_eq!(keychain.keys().jwks_json(), before, "all goes on");
    fs::rename(&aside, &file).expect("moved");
    reload(&mut keychain, &auth, Some(folder.path())).expect("it is back");
    assert_eq!(keychain.keys().jwks_json(), before);
}

#[test]
fn processes_that_start_at_once_agree_on_one_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let kids: Vec<(String, bool)> = std::thread::scope(|scope| {
        let load = || {
            let own = OwnKeys::load(&config(Vec::new()), folder.path()).expect("a key");
            (own.keys[0].kid.clone(), own.made.as_ref().is_some_and(|made| made.is_new))
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(kids.iter().all(|(kid, _)| *kid == kids[0].0), "{kids:?}");
    assert_eq!(kids.iter().filter(|(_, is_new)| *is_new).count(), 1);
}

#[test]
fn files_that_others_may_read_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key.pem");
    fs::copy(file("p256.pem"), &path).expect("copied");
    let mut key = key("k", Algorithm::Es256, Some("p256.pem"), true);
    key.file = Some(path.clone());
    for mode in [0o604, 0o601, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        let error = load(vec![key.clone()]).expect_err("refused");
        let owner = fs::metadata(&path).expect("it is there").uid();
        let told = format!("everybody may use the file (mode {mode:04o}, owner {owner}); take that away: chmod o= ");
        assert!(error.contains(&told), "{error}");
    }
    for mode in [0o600, 0o640, 0o440, 0o660] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        load(vec![key.clone()]).expect("a group may read what is ours");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    let link = folder.path().join("link.pem");
    symlink(&path, &link).expect("linked");
    let linked = TokenKey { file: Some(link), ..key.clone() };
    assert!(load(vec![linked]).is_err(), "what a link leads to is what counts");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("ours");
    assert!(load(vec![key.clone()]).is_ok());
    // The one that the gateway made is held to the same.
    let made = folder.path().join("token-key.pem");
    fs::copy(file("p256.pem"), &made).expect("copied");
    fs::set_permissions(&made, fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(OwnKeys::load(&config(Vec::new()), folder.path()).is_err());
    // Public keys are public.
    fs::copy(file("p256.pub.pem"), &path).err();
    let public = folder.path().join("public.pem");
    fs::copy(file("p256.pub.pem"), &public).expect("copied");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(load(vec![TokenKey { file: Some(public.clone()), sign: false, ..key.clone() }]).is_ok());
    // But not with the private one in the same file.
    let both = [fs::read(file("p256.pub.pem")), fs::read(file("p256.pem"))].map(|pem| pem.expect("read")).concat();
    fs::write(&public, both).expect("written");
    assert!(load(vec![TokenKey { file: Some(public), ..key }]).is_err());
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let refused = |algorithm, name, sign| load(vec![key("k", algorithm, Some(name), sign)]).err();
    for (algorithm, name) in [
        (Algorithm::Es256, "p384.pem"),
        (Algorithm::Es256, "rsa.pem"),
        (Algorithm::Es256, "ed25519.pub.pem"),
        (Algorithm::Rs256, "p256.pem"),
        (Algorithm::Rs256, "rsa-1024.pem"),
        (Algorithm::Ps256, "rsa-1024.pub.pem"),
        (Algorithm::EdDsa, "p256.pem"),
        (Algorithm::EdDsa, "rsa.pub.pem"),
    ] {
        let error = refused(algorithm, name, false).unwrap_or_else(|| panic!("{name} was taken for {algorithm:?}"));
        let fits = ["it is no key for", "its modulus is not of 2048"].iter().any(|why| error.contains(why));
        assert!(fits && error.starts_with("auth.keys[0].file is "), "{error}");
    }
    assert!(refused(Algorithm::Es256, "p256.pub.pem", true).is_some_and(|error| error.contains("sign = false")));
    let mut missing = key("k", Algorithm::Es256, Some("p256.pem"), true);
    missing.file = Some("/nowhere/key.pem".into());
    assert!(load(vec![missing]).is_err_and(|error| error.contains("cannot be read")));
    // Anybody has a public key: as a secret it would let anybody sign.
    let folder = tempfile::tempdir().expect("a folder");
    let short = folder.path().join("short");
    fs::write(&short, "31 bytes and the end of a line\n").expect("written");
    fs::set_permissions(&short, fs::Permissions::from_mode(0o600)).expect("ours");
    let mut secret = key("k", Algorithm::Hs256, None, true);
    secret.secret = None;
    secret.file = Some(short);
    assert!(load(vec![secret.clone()]).is_err_and(|error| error.contains("less than 32 bytes")));
    for public in ["p256.pub.pem", "rsa.pub.pem", "p256.pem"] {
        secret.file = Some(file(public));
        assert!(load(vec![secret.clone()]).is_err_and(|error| error.contains("PEM")), "{public}");
    }
}

#[test]
fn an_older_key_verifies_and_the_new_one_signs() {
    let old = |sign| key("2026-05", Algorithm::Rs256, Some("rsa.pem"), sign);
    let new = key("2026-11", Algorithm::Es256, Some("p256.pem"), true);
    let grant = Grant { sub: "42", email: "", role: "user", permissions: &[], sid: "s", session_began_ms: 0 };
    let issue = |auth: &Auth| {
        let own = OwnKeys::load(auth, Path::new("nowhere")).expect("right");
        Issuer::new(auth, &own).expect("it signs").issue(&grant, NOW).expect("signed").token
    };
    let (before, during) = (config(vec![old(true)]), config(vec![new.clone(), old(false)]));
    let after = config(vec![new]);
    let (first, second) = (issue(&before), issue(&during));
    let passes = |auth: &Auth, token: &str| check(&key_set(auth), token).is_ok();
    assert!(passes(&before, &first) && passes(&during, &first) && passes(&during, &second) && passes(&after, &second));
    assert_eq!(check(&key_set(&after), &first).err(), Some(Flaw::UnknownKey.into()));
    let jwks: Value = serde_json::from_str(key_set(&during).jwks_json()).expect("JSON");
    assert_eq!(jwks["keys"].as_array().map(Vec::len), Some(2));
    assert!(!key_set(&during).jwks_json().contains("\"d\""));
    let only_verifies = config(vec![old(false)]);
    assert!(
        Issuer::new(&only_verifies, &OwnKeys::load(&only_verifies, Path::new("nowhere")).expect("right")).is_none()
    );
}

#[test]
fn the_page_of_a_secret_is_empty() {
    let keys = one_secret();
    assert_eq!(keys.jwks_json(), r#"{"keys":[]}"#);
    let own = load(vec![key("k", Algorithm::Hs256, None, true)]).expect("right");
    for shown in [format!("{keys:?}"), format!("{own:?}"), format!("{:?}", keys.issuers)] {
        assert!(!shown.contains("secret of these tests"), "{shown}");
    }
}

/// Services behind the gateway read the page with whatever they have: here the crate's own reader, and ours.
#[test]
fn the_page_can_be_read_by_others() {
    let auth = config(vec![
        key("rsa", Algorithm::Ps256, Some("rsa.pem"), true),
        key("ec", Algorithm::Es256, Some("p256.pub.pem"), false),
        key("ed", Algorithm::EdDsa, Some("ed25519.pem"), false),
    ]);
    let keys = key_set(&auth);
    let theirs: jsonwebtoken::jwk::JwkSet = serde_json::from_str(keys.jwks_json()).expect("a key set");
    assert_eq!(theirs.keys.len(), 3);
    for jwk in &theirs.keys {
        jsonwebtoken::DecodingKey::from_jwk(jwk).expect("a key");
    }
    let ours = JwkSet::parse(keys.jwks_json().as_bytes(), &Algorithm::ALL).expect("a key set");
    assert_eq!((ours.len(), ours.skipped.len()), (3, 0));
    let issued = Issuer::new(&auth, &OwnKeys::load(&auth, Path::new("nowhere")).expect("right")).expect("it signs");
    let grant = Grant { sub: "42", email: "", role: "user", permissions: &[], sid: "s", session_began_ms: 0 };
    let token = issued.issue(&grant, NOW).expect("signed").token;
    let elsewhere = Auth {
        issuer: "other".to_owned(),
        issuers: vec![TokenIssuer { issuer: "shardgate".to_owned(), ..issuer("") }],
        ..config(Vec::new())
    };
    let none = OwnKeys { keys: Vec::new(), made: None };
    let fetched = BTreeMap::from([("shardgate".to_owned(), Arc::new(ours))]);
    let claims = check(&KeySet::new(&elsewhere, &none, &fetched), &token).expect("it passes");
    assert_eq!(claims.origin, Origin::Foreign);
}
