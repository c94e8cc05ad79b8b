//! Certificates: what is loaded, what is refused, and who is shown which.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SignatureAlgorithm};
use rustls::server::ProducesTickets as _;
use tempfile::TempDir;

use super::*;

/// Writes a certificate for these names and its key, and returns how a configuration names them.
pub(crate) fn made(directory: &Path, file: &str, names: &[&str]) -> TlsCertificate {
    made_with(directory, file, names, &PKCS_ECDSA_P256_SHA256)
}

fn made_with(directory: &Path, file: &str, names: &[&str], algorithm: &'static SignatureAlgorithm) -> TlsCertificate {
    let key = KeyPair::generate_for(algorithm).expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, file);
    let certificate = params.self_signed(&key).expect("signed");
    let [cert_file, key_file] = ["pem", "key.pem"].map(|ending| directory.join(format!("{file}.{ending}")));
    std::fs::write(&cert_file, certificate.pem()).expect("written");
    write_secret(&key_file, &key.serialize_pem());
    TlsCertificate { cert: cert_file, key: key_file }
}

fn write_secret(file: &Path, text: &str) {
    std::fs::write(file, text).expect("written");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("set");
}

pub(crate) fn load(certificates: Vec<TlsCertificate>) -> Result<Certificates, Vec<String>> {
    Certificates::load(&Wanted { tls: Tls { certificates, ..Tls::default() }, ..Wanted::default() }, 0)
}

#[test]
fn a_certificate_tells_its_names_and_times() {
    let place = TempDir::new().expect("a directory");
    let loaded = load(vec![made(place.path(), "a", &["Shop.Example", "*.shop.example"])]).expect("it is right");
    let [shown] = loaded.shown() else { panic!("{loaded:?}") };
    assert_eq!(shown.names, ["shop.example", "*.shop.example"]);
    assert!(shown.not_before < shown.not_after);
}

#[test]
fn what_ends_soon_is_warned_of() {
    let place = TempDir::new().expect("a directory");
    let loaded = load(vec![made(place.path(), "a", &["a"])]).expect("it is right");
    let Shown { not_before, not_after, .. } = loaded.shown()[0].clone();
    let at = |now: u64| loaded.warnings(now).join("");
    assert_eq!(at(not_after - EXPIRY_NOTICE), "");
    assert!(at(not_after - 3 * DAY).ends_with("a.pem\", which expires in 3 days"));
    assert!(at(not_after + 1).contains("has expired"));
    assert_eq!(
        [not_after - 5, not_after, not_after + 5].map(|now| loaded.expires_in(now)),
        [Some(5), Some(0), Some(0)]
    );
    assert!(at(not_before - 1).contains("is not good yet"));
}

#[test]
fn a_chain_is_in_the_order_of_those_who_signed() {
    let place = TempDir::new().expect("a directory");
    let (one, two) = (made(place.path(), "one", &["a"]), made(place.path(), "two", &["b"]));
    let [first, second] = [&one.cert, &two.cert].map(|file| std::fs::read_to_string(file).expect("it is there"));
    let chain = place.path().join("chain.pem");
    let load_chain = |text: &str| {
        std::fs::write(&chain, text).expect("written");
        load(vec![TlsCertificate { cert: chain.clone(), key: one.key.clone() }])
    };
    // Each of them has signed itself.
    assert!(load_chain(&format!("{first}{first}")).is_ok());
    let told = load_chain(&format!("{first}{second}")).expect_err("the second has not signed the first").join("");
    assert!(told.contains("out of order: certificate 2 is not the issuer of the one before it"), "{told}");
    let many = load_chain(&first.repeat(17)).expect_err("nobody has such a chain").join("");
    assert!(many.contains("it has more than 16 certificates"), "{many}");
}

#[test]
fn what_is_wrong_with_a_pair_is_told() {
    let place = TempDir::new().expect("a directory");
    let (one, two) = (made(place.path(), "one", &["a"]), made(place.path(), "two", &["b"]));
    let wrong = |certificate: TlsCertificate| load(vec![certificate]).expect_err("it is wrong").join("\n");
    let told = wrong(TlsCertificate { cert: one.cert.clone(), key: two.key.clone() });
    assert!(
        told.starts_with("tls.certificates[0].key is ") && told.contains("it is not the key of the first"),
        "{told}"
    );
    let told = wrong(TlsCertificate { cert: one.key.clone(), key: one.key.clone() });
    assert!(
        told.starts_with("tls.certificates[0].cert is ") && told.contains("it has a private key and no certificate"),
        "{told}"
    );
    let told = wrong(TlsCertificate { cert: one.cert.clone(), key: one.cert.clone() });
    assert!(
        told.starts_with("tls.certificates[0].key is ") && told.contains("a certificate and no private key"),
        "{told}"
    );
    let junk = place.path().join("junk.pem");
    std::fs::write(&junk, "junk").expect("written");
    let told = wrong(TlsCertificate { cert: junk, key: one.key.clone() });
    assert!(told.contains("there is no certificate in it"), "{told}");
    // As Kubernetes mounts it: that is told, and used.
    set_mode(&one.key, 0o644);
    let told = load(vec![one.clone()]).expect("it is used").warnings(0).join("\n");
    assert!(told.contains("tls.certificates[0].key is ") && told.contains("everybody may use the file"), "{told}");
    set_mode(&one.key, 0o602);
    let told = wrong(one);
    assert!(told.contains("everybody may write to the file (mode 0602"), "{told}");
}

fn set_mode(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("set");
}

#[test]
fn hosts_are_covered_as_clients_ask_for_them() {
    let place = TempDir::new().expect("a directory");
    let names = ["shop.example", "*.shop.example", "*.a.example"];
    let loaded = load(vec![made(place.path(), "a", &names)]).expect("it is right");
    for (host, is_covered) in [
        ("shop.example", true),
        ("b.shop.example", true),
        ("c.b.shop.example", false),
        ("*.shop.example", true),
        ("*.b.shop.example", false),
        ("a.example", false),
        ("*.a.example", true),
        ("example", false),
        // Nobody asks for an address by name.
        ("127.0.0.1", true),
        ("[::1]", true),
    ] {
        assert_eq!(loaded.cover_pattern(&host.parse().expect("a host")), is_covered, "{host}");
    }
}

#[test]
fn the_secret_of_tickets_is_one() {
    let place = TempDir::new().expect("a directory");
    let certificates = vec![made(place.path(), "one", &["a"])];
    let path = place.path().join("secret");
    let tls = Tls { certificates, ticket_secret_file: Some(path.clone()), ..Tls::default() };
    let wanted = Wanted { tls, ..Wanted::default() };
    assert_eq!(wanted.files().len(), 3);
    let load_pairs = load;
    let load = || Certificates::load(&wanted, 0);
    let wrong = || load().expect_err("it is wrong").join("\n");
    assert!(
        wrong().contains("tls.ticket_secret_file is \"") && wrong().contains("there is no such file"),
        "{}",
        wrong()
    );
    write_secret(&path, "a secret of 31 bytes, too short\n\n");
    assert!(wrong().contains("it has 31 bytes; give it 32 or more"), "{}", wrong());
    write_secret(&path, "a secret of 32 bytes, known here\n");
    let ticket = load().expect("it is right").tickets.encrypt(b"a session").expect("sealed");
    // White space around it, and whatever was before, change nothing.
    write_secret(&path, "  a secret of 32 bytes, known here");
    let (by_chance, again) = (load_pairs(wanted.tls.certificates.clone()).expect("right"), load().expect("right"));
    assert!(again.clone().after(Some(&by_chance)).tickets.decrypt(&ticket).is_some());
    assert!(by_chance.after(Some(&again)).tickets.decrypt(&ticket).is_none());
    set_mode(&path, 0o604);
    assert!(wrong().contains("everybody may use the file"), "{}", wrong());
}

#[test]
fn operators_are_shown_their_own_or_the_same() {
    let place = TempDir::new().expect("a directory");
    let (one, two) = (made(place.path(), "one", &["a"]), made(place.path(), "two", &["b"]));
    let tls = Tls { certificates: vec![one], strict_sni: true, ..Tls::default() };
    for (operators, places) in [
        (Some(OfOperators::Own(two.clone())), &["tls.certificates[0]", "admin"][..]),
        (Some(OfOperators::Shared), &["tls.certificates[0]"]),
        (None, &["tls.certificates[0]"]),
    ] {
        let wanted = Wanted { tls: tls.clone(), operators, ..Wanted::default() };
        let loaded = Certificates::load(&wanted, 0).expect("it is right");
        assert_eq!(loaded.for_operators().is_some(), wanted.operators.is_some());
        let shown: Vec<_> = loaded.shown().iter().map(|shown| shown.place.as_str()).collect();
        assert_eq!((shown.as_slice(), wanted.files().len()), (places, 2 * places.len()));
    }
    // It may be all that there is.
    let alone = Wanted { operators: Some(OfOperators::Own(two)), ..Wanted::default() };
    assert!(!alone.is_nothing() && Certificates::load(&alone, 0).is_ok());
}
