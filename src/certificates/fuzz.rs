//! Reads any bytes as the files of a certificate, for tests and fuzzing only.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::ServerConfig;

use super::{CHAIN_MAX, Tickets, chooser::Chooser, facts::Facts, read_chain, read_key, server_config};

/// What handshakes that are fuzzed are done by: a certificate made for the run, and tickets.
pub fn fuzz_config() -> Arc<ServerConfig> {
    let (certificate, key) = made();
    let (chain, facts) = read_chain(pem(&certificate).as_bytes()).expect("a certificate");
    let key = read_key(key.as_bytes(), chain).ok().expect("its key");
    let chooser = Chooser::new([(Arc::new(key), facts.names.as_slice())].into_iter(), false);
    let mut config = server_config(chooser).expect("it is right");
    config.ticketer = Arc::new(Tickets::new().expect("chance"));
    Arc::new(config)
}

/// A certificate, and its key as a file has it.
fn made() -> (Vec<u8>, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["shop.example".to_owned(), "*.shop.example".to_owned()]);
    let certificate = params.expect("names").self_signed(&key).expect("signed");
    (certificate.der().to_vec(), key.serialize_pem())
}

fn pem(certificate: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(certificate))
}

/// Takes these as they are, and written into a certificate at the place that the first two say.
pub fn fuzz_files(bytes: &[u8]) {
    thread_local! {
        static MADE: (Vec<u8>, String) = made();
    }
    take(bytes);
    let Some((place, bytes)) = bytes.split_first_chunk() else { return };
    MADE.with(|(certificate, key)| {
        let mut certificate = certificate.clone();
        let place = usize::from(u16::from_be_bytes(*place)) % certificate.len();
        certificate[place..].iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
        take(&certificate);
        take((pem(&certificate) + key).as_bytes());
    });
}

/// Takes these as a file of certificates, as a file of a key, and as a certificate itself.
fn take(bytes: &[u8]) {
    if let Ok(facts) = Facts::of(&bytes.into()) {
        assert!(facts.names.iter().all(|name| *name == name.to_ascii_lowercase()), "names are compared as they are");
    }
    let chain = read_chain(bytes).map_or_else(|_| Vec::new(), |(chain, _)| chain);
    assert!(chain.len() <= CHAIN_MAX, "a chain is bounded");
    // Most are the key of nothing; a file may have both.
    let _ = read_key(bytes, chain);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Nothing that is fuzzed panics with chance bytes.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_files(&bytes);
            fuzz_files(pem(&bytes).as_bytes());
        }
    }
}
