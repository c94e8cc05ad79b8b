//! Certificates that clients are shown: read from files, checked, and chosen by the name that a client asks for. Also the
//! one place where it is decided what does the cryptography of TLS (decision 31).

mod chooser;
mod facts;
mod tickets;

use std::{fmt, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
    sign::CertifiedKey,
};

pub use self::tickets::TICKET_KEY_TIME;
use self::{chooser::Chooser, facts::Facts, tickets::Tickets};
use crate::config::{SecretFile, Tls, TlsCertificate};

/// Longer files are no certificates or keys.
const FILE_BYTES_MAX: usize = 1 << 20;
/// What leads to an authority is a few.
const CHAIN_MAX: usize = 16;

const DAY: u64 = 24 * 60 * 60;
/// From so long before its end on a certificate is warned of.
const EXPIRY_NOTICE: u64 = 14 * DAY;

/// What does the cryptography of TLS, everywhere in the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// All certificates of a configuration, ready to be shown. Immutable; crosses to each shard as one `Arc`.
pub struct Certificates {
    config: ServerConfig,
    /// In the order of the configuration.
    shown: Vec<Shown>,
    tickets: Arc<Tickets>,
}

/// What is told of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The file that it is from.
    pub file: String,
    /// The names that it is for, as it has them.
    pub names: Vec<String>,
    /// From when on it is good, in seconds since 1970.
    pub not_before: u64,
    /// And until when.
    pub not_after: u64,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificates").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads and checks the files of all; says everything that is wrong with them. Sessions that clients have with `before` are
    /// taken up again.
    pub fn load(tls: &Tls, before: Option<&Self>) -> Result<Self, Vec<String>> {
        let (mut keys, mut shown, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for (index, certificate) in tls.certificates.iter().enumerate() {
            match read(certificate) {
                Ok((key, facts)) => {
                    shown.push(Shown {
                        file: certificate.cert.display().to_string(),
                        names: facts.names,
                        not_before: facts.not_before,
                        not_after: facts.not_after,
                    });
                    keys.push(Arc::new(key));
                }
                Err(Wrong { key, what }) => wrong.push(format!("tls.certificates[{index}].{key} is {what}")),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let names = shown.iter().map(|shown| shown.names.as_slice());
        let chooser = Chooser::new(keys.into_iter().zip(names), tls.strict_sni);
        let unusable = |error: &dyn fmt::Display| vec![format!("tls cannot be used: {error}")];
        let tickets = match before {
            Some(before) => Arc::clone(&before.tickets),
            None => Arc::new(Tickets::new().map_err(|error| unusable(&error))?),
        };
        let mut config = server_config(chooser).map_err(|error| unusable(&error))?;
        config.ticketer = Arc::clone(&tickets) as _;
        Ok(Self { config, shown, tickets })
    }

    /// The same with the next key for tickets.
    pub fn with_changed_ticket_keys(&self) -> Result<Self, ring::error::Unspecified> {
        let tickets = Arc::new(self.tickets.changed()?);
        let mut config = self.config.clone();
        config.ticketer = Arc::clone(&tickets) as _;
        Ok(Self { config, shown: self.shown.clone(), tickets })
    }

    /// Seconds until the first of them ends; 0 when one has ended.
    pub fn expires_in(&self, now: u64) -> Option<u64> {
        self.shown.iter().map(|shown| shown.not_after.saturating_sub(now)).min()
    }

    /// What a shard does handshakes by: its own, so that connections count on a counter of its core.
    pub fn for_shard(&self) -> Arc<ServerConfig> {
        Arc::new(self.config.clone())
    }

    /// Which of them have expired at this time, in seconds since 1970, or soon will; one sentence each.
    pub fn warnings(&self, now: u64) -> Vec<String> {
        let told = |(index, shown): (usize, &Shown)| {
            let what = match shown.not_after.checked_sub(now) {
                None => "has expired: clients refuse it".to_owned(),
                Some(left) if left < EXPIRY_NOTICE => format!("expires in {} days", left / DAY),
                Some(_) if now < shown.not_before => "is not good yet: clients refuse it".to_owned(),
                Some(_) => return None,
            };
            Some(format!("tls.certificates[{index}].cert is \"{}\", which {what}", shown.file))
        };
        self.shown.iter().enumerate().filter_map(told).collect()
    }

    /// What is told of each.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }
}

fn server_config(chooser: Chooser) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(chooser));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // What rustls keeps of sessions by itself is behind a lock.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// What is wrong with a pair, and which of its two keys of the configuration says where.
struct Wrong {
    key: &'static str,
    what: String,
}

fn read(certificate: &TlsCertificate) -> Result<(CertifiedKey, Facts), Wrong> {
    let TlsCertificate { cert, key } = certificate;
    let of_cert = |why: &dyn fmt::Display| Wrong { key: "cert", what: format!("\"{}\": {why}", cert.display()) };
    let of_key = |why: &dyn fmt::Display| Wrong { key: "key", what: format!("\"{}\": {why}", key.display()) };
    let file = SecretFile::read(cert, FILE_BYTES_MAX).map_err(|error| of_cert(&error))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(file.public())
        .collect::<Result<_, _>>()
        .map_err(|error| of_cert(&format_args!("it is no PEM file: {error}")))?;
    let Some(first) = chain.first() else { return Err(of_cert(&"it has no certificate; it is a PEM file")) };
    if chain.len() > CHAIN_MAX {
        return Err(of_cert(&format_args!("it has {} certificates; a chain has at most {CHAIN_MAX}", chain.len())));
    }
    let facts = Facts::of(first).map_err(|error| of_cert(&format_args!("its first certificate is none: {error}")))?;
    facts::check_chain(&chain).map_err(|why| of_cert(&why))?;
    let file = SecretFile::read(key, FILE_BYTES_MAX).map_err(|error| of_key(&error))?;
    let pem = file.secret(key).map_err(|why| of_key(&why))?;
    let secret = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| of_key(&format_args!("it has no private key (PKCS#8, PKCS#1 or SEC1): {error}")))?;
    let certified = CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            of_key(&format_args!("it is not the key of the first certificate in \"{}\"", cert.display()))
        }
        error => of_key(&format_args!("it cannot be used: {error}")),
    })?;
    Ok((certified, facts))
}

#[cfg(test)]
pub(crate) mod tests;
