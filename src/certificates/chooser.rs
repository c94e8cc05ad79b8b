//! Which certificate a client is shown: by the name that it asks for, and by what it can check.

use std::{cell::Cell, collections::HashMap, fmt, sync::Arc};

use rustls::{
    CipherSuite, SignatureAlgorithm,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Those that have a name, the one that is cheapest to sign with first.
type Candidates = Vec<Arc<CertifiedKey>>;

/// Part of all certificates. Immutable.
pub(super) struct Chooser {
    exact: HashMap<String, Candidates>,
    /// By what stands behind the `*.`.
    wildcards: HashMap<String, Candidates>,
    /// For clients that ask for no name, or for one that none has.
    default: Candidates,
    is_strict: bool,
}

impl fmt::Debug for Chooser {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Chooser").finish_non_exhaustive()
    }
}

impl Chooser {
    pub(super) fn new<'n>(keys: impl Iterator<Item = (Arc<CertifiedKey>, &'n [String])>, is_strict: bool) -> Self {
        let (mut exact, mut wildcards) = (HashMap::<_, Candidates>::new(), HashMap::<_, Candidates>::new());
        let mut first = None;
        for (key, names) in keys {
            first.get_or_insert_with(|| (Arc::clone(&key), names.first().cloned()));
            for name in names {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcards.entry(parent.to_owned()).or_default().push(Arc::clone(&key)),
                    None => exact.entry(name.clone()).or_default().push(Arc::clone(&key)),
                }
            }
        }
        for candidates in exact.values_mut().chain(wildcards.values_mut()) {
            candidates.sort_by_key(|key| is_rsa(key));
        }
        let mut chooser = Self { exact, wildcards, default: Vec::new(), is_strict };
        if let Some((key, name)) = first {
            // The same name with a key of the other kind serves those who cannot check the first.
            let same = name.and_then(|name| match name.strip_prefix("*.") {
                Some(parent) => chooser.wildcards.get(parent),
                None => chooser.exact.get(&name),
            });
            chooser.default = same.cloned().unwrap_or_else(|| vec![key]);
        }
        chooser
    }

    fn candidates(&self, name: Option<&str>) -> Option<&Candidates> {
        let of_name = name.and_then(|name| {
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(wildcard)
        });
        of_name.or_else(|| (!self.is_strict).then_some(&self.default))
    }
}

thread_local! {
    static HAS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a client of this thread was refused since this was asked last, as no certificate has the name that it asked for. What
/// rustls says of that is not told apart from other errors.
pub fn take_refused() -> bool {
    HAS_REFUSED.take()
}

fn is_rsa(key: &CertifiedKey) -> bool {
    key.key.algorithm() == SignatureAlgorithm::RSA
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.candidates(hello.server_name()).map_or(&[][..], Vec::as_slice);
        let can = |key: &&Arc<CertifiedKey>| {
            key.key.choose_scheme(hello.signature_schemes()).is_some() && can_agree(is_rsa(key), hello.cipher_suites())
        };
        let chosen = candidates.iter().find(can).or_else(|| candidates.first()).cloned();
        HAS_REFUSED.set(chosen.is_none());
        chosen
    }
}

/// Whether one of the suites that a client offers goes with such a key: in TLS 1.3 all do.
fn can_agree(is_rsa: bool, suites: &[CipherSuite]) -> bool {
    suites.iter().any(|suite| match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => true,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => !is_rsa,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => is_rsa,
        _ => false,
    })
}
