//! Which certificate a client is shown: by the name that it asks for, and by what it can check.

use std::{cell::Cell, collections::HashMap, fmt, sync::Arc};

use rustls::{
    CipherSuite, SignatureAlgorithm, SignatureScheme,
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
        let fit = |key: &CertifiedKey| Fit::of(key, hello.signature_schemes(), hello.cipher_suites());
        // The first of those that fit best.
        let chosen = candidates.iter().rev().max_by_key(|key| fit(key)).cloned();
        HAS_REFUSED.set(chosen.is_none());
        chosen
    }
}

/// How a key goes with what a client offers; the last is the best.
///
/// Whether it is TLS 1.2 or 1.3 that is agreed on is not told, and a client that speaks 1.2 only may name suites of 1.3. So a
/// key that goes with both comes first. Then one for 1.2: it asks for a suite of the key's kind, where in 1.3 all go with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Neither,
    Tls13,
    Tls12,
    Both,
}

impl Fit {
    fn of(key: &CertifiedKey, schemes: &[SignatureScheme], suites: &[CipherSuite]) -> Self {
        let signs = |schemes: &[SignatureScheme]| key.key.choose_scheme(schemes).is_some();
        let in_12 = signs(schemes) && suites.iter().any(|suite| is_rsa_suite(*suite) == Some(is_rsa(key)));
        // RFC 8446 §4.2.3: what stands for PKCS #1 there is about signatures in certificates.
        let in_13 = || signs(&schemes.iter().copied().filter(|scheme| !is_pkcs1(*scheme)).collect::<Vec<_>>());
        match (in_12, suites.iter().any(|suite| is_tls13_suite(*suite)) && in_13()) {
            (true, true) => Self::Both,
            (true, false) => Self::Tls12,
            (false, true) => Self::Tls13,
            (false, false) => Self::Neither,
        }
    }
}

fn is_pkcs1(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA1
            | SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
    )
}

fn is_tls13_suite(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    )
}

/// Whether a suite of TLS 1.2 goes with RSA keys, or with others; `None` where it is none of ours.
fn is_rsa_suite(suite: CipherSuite) -> Option<bool> {
    match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => Some(false),
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rustls::sign::{Signer, SigningKey};

    use super::*;

    /// A key that signs by one of these schemes, as far as anybody asks.
    #[derive(Debug)]
    struct Key(SignatureAlgorithm, &'static [SignatureScheme]);

    impl SigningKey for Key {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            let scheme = self.1.iter().copied().find(|scheme| offered.contains(scheme))?;
            Some(Box::new(Nothing(scheme)))
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            self.0
        }
    }

    #[derive(Debug)]
    struct Nothing(SignatureScheme);

    impl Signer for Nothing {
        fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            Ok(Vec::new())
        }

        fn scheme(&self) -> SignatureScheme {
            self.0
        }
    }

    #[test]
    fn a_key_is_chosen_by_the_versions_that_may_be_agreed_on() {
        const PSS: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;
        const OLD: SignatureScheme = SignatureScheme::RSA_PKCS1_SHA256;
        const CURVE: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
        let key = |algorithm, schemes| CertifiedKey::new(Vec::new(), Arc::new(Key(algorithm, schemes)));
        let (rsa, curve) = (key(SignatureAlgorithm::RSA, &[PSS, OLD]), key(SignatureAlgorithm::ECDSA, &[CURVE]));
        let fits = |schemes: &[SignatureScheme], suites: &[CipherSuite]| {
            [&rsa, &curve].map(|key| Fit::of(key, schemes, suites))
        };
        let of_13 = CipherSuite::TLS13_AES_128_GCM_SHA256;
        let of_rsa = CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;
        let of_curves = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
        assert_eq!(fits(&[CURVE, PSS], &[of_13]), [Fit::Tls13, Fit::Tls13]);
        assert_eq!(fits(&[CURVE, PSS], &[of_13, of_rsa]), [Fit::Both, Fit::Tls13], "it may speak 1.2 only");
        assert_eq!(fits(&[CURVE, PSS], &[of_13, of_rsa, of_curves]), [Fit::Both, Fit::Both]);
        assert_eq!(fits(&[CURVE, PSS], &[of_rsa, of_curves]), [Fit::Tls12, Fit::Tls12]);
        assert_eq!(fits(&[PSS], &[of_13, of_curves]), [Fit::Tls13, Fit::Neither]);
        assert_eq!(fits(&[OLD], &[of_13, of_rsa]), [Fit::Tls12, Fit::Neither], "1.3 has no such signatures");
        assert_eq!(fits(&[CURVE, PSS], &[CipherSuite::TLS_RSA_WITH_AES_128_GCM_SHA256]), [Fit::Neither; 2]);
    }
}
