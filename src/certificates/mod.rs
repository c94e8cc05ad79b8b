//! Certificates that clients are shown: read from files, checked, and chosen by the name that a client asks for; and those by
//! which services are known (`services`). Also the one place where it is decided what does the cryptography of TLS (decision 31).

mod chooser;
mod facts;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod services;
mod tickets;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

#[cfg(any(test, fuzzing))]
pub use self::fuzz::{fuzz_config, fuzz_files};
use self::{chooser::Chooser, facts::Facts, tickets::Tickets};
pub use self::{
    chooser::take_refused,
    services::{InstanceTls, ServiceTls, Services, WantedOfService, read_authorities},
    tickets::{TICKET_KEY_TIME, TICKET_SECRET_BYTES_MIN},
};
use crate::config::{HostPattern, SecretFile, Tls, TlsCertificate};

/// Longer files are no certificates or keys.
const FILE_BYTES_MAX: usize = 1 << 20;
/// What leads to an authority is a few.
const CHAIN_MAX: usize = 16;
/// Nobody needs more chance than that.
const TICKET_SECRET_BYTES_MAX: usize = 4096;

const DAY: u64 = 24 * 60 * 60;
/// From so long before its end on a certificate is warned of.
const EXPIRY_NOTICE: u64 = 14 * DAY;

/// What does the cryptography of TLS, everywhere in the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a configuration wants of certificates: the files, and who is shown what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Those of public listeners, and how they are used.
    pub tls: Tls,
    /// What operators are shown; nothing where their listener speaks no TLS.
    pub operators: Option<OfOperators>,
    /// What services have to be and are shown, by upstream.
    pub services: BTreeMap<String, WantedOfService>,
}

/// What the operator's listener shows.
#[derive(Clone, Debug, PartialEq)]
pub enum OfOperators {
    /// One of its own.
    Own(TlsCertificate),
    /// The same as public listeners.
    Shared,
}

impl Wanted {
    /// Whether nothing is wanted.
    pub fn is_nothing(&self) -> bool {
        self.tls.certificates.is_empty() && self.operators.is_none() && self.services.is_empty()
    }

    /// All certificates, each with the name of its place in the configuration.
    fn certificates(&self) -> impl Iterator<Item = (String, &TlsCertificate)> {
        let of_clients = self.tls.certificates.iter().enumerate();
        let of_clients = of_clients.map(|(index, pair)| (format!("tls.certificates[{index}]"), pair));
        let own = match &self.operators {
            Some(OfOperators::Own(pair)) => Some(("admin".to_owned(), pair)),
            Some(OfOperators::Shared) | None => None,
        };
        of_clients.chain(own)
    }

    /// All files that are read.
    pub fn files(&self) -> Vec<PathBuf> {
        let pairs = self.certificates().flat_map(|(_, pair)| [pair.cert.clone(), pair.key.clone()]);
        let of_services = self.services.values().flat_map(WantedOfService::files);
        pairs.chain(self.tls.ticket_secret_file.clone()).chain(of_services).collect()
    }
}

/// All certificates of a configuration, ready to be shown. Immutable; crosses to each shard as one `Arc`.
#[derive(Clone)]
pub struct Certificates {
    config: ServerConfig,
    /// What operators are shown, if anything.
    of_operators: Option<Arc<ServerConfig>>,
    /// In the order of the configuration, that of operators last.
    shown: Vec<Shown>,
    /// What is wrong with files and does not keep them from being used.
    doubts: Vec<String>,
    tickets: Arc<Tickets>,
    services: Arc<Services>,
}

/// What is told of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Where the configuration names it: `tls.certificates[0]`, `admin`.
    pub place: String,
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
    /// Reads and checks all files, at this time in seconds since 1970; says everything that is wrong with them.
    pub fn load(wanted: &Wanted, now: u64) -> Result<Self, Vec<String>> {
        let (mut keys, mut shown, mut doubts, mut wrong) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, certificate) in wanted.certificates() {
            match read(certificate) {
                Ok(Pair { key, facts, doubt }) => {
                    doubts.extend(doubt.map(|doubt| format!("{place}.key is {doubt}")));
                    shown.push(Shown {
                        place,
                        file: certificate.cert.display().to_string(),
                        names: facts.names,
                        not_before: facts.not_before,
                        not_after: facts.not_after,
                    });
                    keys.push(Arc::new(key));
                }
                Err(Wrong { key, what }) => wrong.push(format!("{place}.{key} is {what}")),
            }
        }
        let services = Arc::new(services::load(&wanted.services, &mut doubts, &mut wrong));
        let secret = wanted.tls.ticket_secret_file.as_deref().map(read_ticket_secret).transpose();
        let secret = secret.map_err(|why| wrong.push(format!("tls.ticket_secret_file is {why}")));
        let (Ok(secret), true) = (secret, wrong.is_empty()) else { return Err(wrong) };
        let unusable = |error: &dyn fmt::Display| vec![format!("tls cannot be used: {error}")];
        let tickets = match secret {
            Some(secret) => Tickets::derived(secret.trim_ascii(), now),
            None => Tickets::new(),
        };
        let tickets = Arc::new(tickets.map_err(|error| unusable(&error))?);
        let all: Vec<_> = keys.into_iter().zip(shown.iter().map(|shown| shown.names.as_slice())).collect();
        let (of_clients, own) = all.split_at(wanted.tls.certificates.len());
        let config = |certificates: &[(Arc<CertifiedKey>, &[String])], is_strict| {
            server_config(Chooser::new(certificates.iter().cloned(), is_strict)).map_err(|error| unusable(&error))
        };
        let of_operators = match wanted.operators {
            Some(OfOperators::Own(_)) => Some(config(own, false)?),
            Some(OfOperators::Shared) => Some(config(of_clients, false)?),
            None => None,
        };
        // Operators take no session up again: one begun here can be taken up by no listener that asks for more.
        let of_operators = of_operators.map(|mut config| {
            config.send_tls13_tickets = 0;
            Arc::new(config)
        });
        let config = config(of_clients, wanted.tls.strict_sni)?;
        Ok(Self { config, of_operators, shown, doubts, tickets: Arc::clone(&tickets), services }.with_tickets(tickets))
    }

    /// The same, by which sessions are taken up again that clients have with `before`. Where the keys of tickets are derived
    /// from a secret, that is so of itself.
    #[must_use]
    pub fn after(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) if before.tickets.are_by_chance() && self.tickets.are_by_chance() => {
                self.with_tickets(Arc::clone(&before.tickets))
            }
            _ => self,
        }
    }

    /// The same with other keys of tickets, if they are to be others: at this time, in seconds since 1970, or as it is due.
    pub fn with_changed_ticket_keys(&self, now: u64, is_due: bool) -> Result<Option<Self>, ring::error::Unspecified> {
        let changed = self.tickets.changed(now, is_due)?;
        Ok(changed.map(|tickets| self.clone().with_tickets(Arc::new(tickets))))
    }

    fn with_tickets(mut self, tickets: Arc<Tickets>) -> Self {
        self.config.ticketer = Arc::clone(&tickets) as _;
        self.tickets = tickets;
        self
    }

    /// Seconds until the first of them ends; 0 when one has ended.
    pub fn expires_in(&self, now: u64) -> Option<u64> {
        self.shown.iter().map(|shown| shown.not_after.saturating_sub(now)).min()
    }

    /// What a shard does handshakes by: its own, so that connections count on a counter of its core.
    pub fn for_shard(&self) -> Arc<ServerConfig> {
        Arc::new(self.config.clone())
    }

    /// What operators' handshakes are done by, where their listener speaks TLS.
    pub fn for_operators(&self) -> Option<Arc<ServerConfig>> {
        self.of_operators.clone()
    }

    /// TLS to services, by upstream.
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Whether clients that ask for such a host are shown a certificate with its name. Who asks for an address names none.
    pub fn cover_pattern(&self, host: &HostPattern) -> bool {
        let has = |name: &str| self.shown.iter().any(|shown| shown.names.iter().any(|of| of == name));
        let has_wildcard = |parent: &str| has(&format!("*.{parent}"));
        match host {
            HostPattern::Exact(host) => {
                let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
                is_address || has(host) || host.split_once('.').is_some_and(|(_, parent)| has_wildcard(parent))
            }
            HostPattern::Subdomains(parent) => has_wildcard(parent),
        }
    }

    /// Whether one of them is for this host.
    pub fn cover(&self, host: &str) -> bool {
        let parent = host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        self.shown.iter().flat_map(|shown| &shown.names).any(|name| match name.strip_prefix("*.") {
            Some(wildcard) => parent == Some(wildcard),
            None => name == host,
        })
    }

    /// What is doubtful: certificates that have expired at this time, in seconds since 1970, or soon will, and keys that others
    /// can read; one sentence each.
    pub fn warnings(&self, now: u64) -> Vec<String> {
        let told = |shown: &Shown| {
            let what = match shown.not_after.checked_sub(now) {
                None => "has expired: clients refuse it".to_owned(),
                Some(left) if left < EXPIRY_NOTICE => format!("expires in {} days", left / DAY),
                Some(_) if now < shown.not_before => "is not good yet: clients refuse it".to_owned(),
                Some(_) => return None,
            };
            Some(format!("{}.cert is \"{}\", which {what}", shown.place, shown.file))
        };
        let of_clients = self.doubts.iter().cloned().chain(self.shown.iter().filter_map(told));
        of_clients.chain(services::warnings(&self.services, now)).collect()
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

/// A certificate and its key, as files have them.
struct Pair {
    key: CertifiedKey,
    facts: Facts,
    /// Who may read the key and should not.
    doubt: Option<String>,
}

fn read(certificate: &TlsCertificate) -> Result<Pair, Wrong> {
    let TlsCertificate { cert, key } = certificate;
    let of_cert = |why: &dyn fmt::Display| Wrong { key: "cert", what: format!("\"{}\": {why}", cert.display()) };
    let of_key = |why: &dyn fmt::Display| Wrong { key: "key", what: format!("\"{}\": {why}", key.display()) };
    let file = SecretFile::read(cert, FILE_BYTES_MAX).map_err(|error| of_cert(&error))?;
    let (chain, facts) = read_chain(file.public()).map_err(|why| of_cert(&why))?;
    let file = SecretFile::read(key, FILE_BYTES_MAX).map_err(|error| of_key(&error))?;
    // Before who may read it: everybody may read a certificate.
    let has_certificate = CertificateDer::pem_slice_iter(file.public()).any(|found| found.is_ok());
    if has_certificate && PrivateKeyDer::from_pem_slice(file.public()).is_err() {
        return Err(of_key(&"it has a certificate and no private key; are cert and key each in the other's place?"));
    }
    // What others may read is used all the same: refused, it would be an outage when the certificate before it ends.
    let (pem, doubt) = file.secret_or_doubt(key).map_err(|why| of_key(&why))?;
    let doubt = doubt.map(|doubt| of_key(&doubt).what);
    let key = read_key(&pem, chain).map_err(|error| match error {
        KeyError::NotOfCertificate => {
            of_key(&format_args!("it is not the key of the first certificate in \"{}\"", cert.display()))
        }
        KeyError::Unusable(why) => of_key(&why),
    })?;
    Ok(Pair { key, facts, doubt })
}

/// The certificates of a PEM file, and what the first of them says.
fn read_chain(pem: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Facts), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(CHAIN_MAX + 1).collect();
    let chain = chain.map_err(|error| format!("it is no PEM file: {error}"))?;
    let Some(first) = chain.first() else {
        return Err(match PrivateKeyDer::from_pem_slice(pem) {
            Ok(_) => "it has a private key and no certificate; are cert and key each in the other's place?",
            Err(_) => {
                "there is no certificate in it; write the PEM file that has it, which begins with -----BEGIN CERTIFICATE-----"
            }
        }
        .to_owned());
    };
    if chain.len() > CHAIN_MAX {
        return Err(format!("it has more than {CHAIN_MAX} certificates; a chain has at most that many"));
    }
    let facts = Facts::of(first).map_err(|error| format!("its first certificate is none: {error}"))?;
    facts::check_chain(&chain)?;
    Ok((chain, facts))
}

/// Why a key is not used.
enum KeyError {
    NotOfCertificate,
    Unusable(String),
}

/// The key of a PEM file, which is to be that of the first of these certificates.
fn read_key(pem: &[u8], chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, KeyError> {
    let secret = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| KeyError::Unusable(format!("it has no private key (PKCS#8, PKCS#1 or SEC1): {error}")))?;
    CertifiedKey::from_der(chain, secret, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => KeyError::NotOfCertificate,
        error => KeyError::Unusable(format!("it cannot be used: {error}")),
    })
}

/// What keys of tickets are derived from; what stands around it is no part of it.
fn read_ticket_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong = |why: &dyn fmt::Display| format!("\"{}\": {why}", path.display());
    let file = SecretFile::read(path, TICKET_SECRET_BYTES_MAX).map_err(|error| wrong(&error))?;
    let secret = file.secret(path).map_err(|why| wrong(&why))?;
    match secret.trim_ascii().len() {
        TICKET_SECRET_BYTES_MIN.. => Ok(secret),
        length => Err(wrong(&format_args!(
            "it has {length} bytes; give it {TICKET_SECRET_BYTES_MIN} or more, by chance: `openssl rand -base64 48` makes some"
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
