//! TLS to services: whom the instances of an upstream have to be, and what they are shown where they ask.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::digest::{Context, SHA256};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{DAY, EXPIRY_NOTICE, Facts, Pair, Wrong, provider, read};
use crate::config::{TlsCertificate, Upstream, UpstreamTls, open_regular};

/// What one upstream wants of TLS to its instances.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedOfService {
    /// As it is written.
    pub tls: UpstreamTls,
    /// Whether an instance that is written speaks it: then there has to be somebody to trust.
    pub is_needed: bool,
}

impl WantedOfService {
    /// What these upstreams want, by name; nothing of those whose instances never speak TLS.
    pub fn all(upstreams: &BTreeMap<String, Upstream>) -> BTreeMap<String, Self> {
        let speaking = upstreams.iter().filter(|(_, upstream)| upstream.may_speak_tls());
        let wanted = |(name, upstream): (&String, &Upstream)| {
            (name.clone(), Self { tls: upstream.tls.clone(), is_needed: upstream.names_https() })
        };
        speaking.map(wanted).collect()
    }

    /// The certificate that the instances are shown.
    fn pair(&self) -> Option<TlsCertificate> {
        Some(TlsCertificate { cert: self.tls.cert.clone()?, key: self.tls.key.clone()? })
    }

    /// The files that are read.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let UpstreamTls { ca_file, cert, key, .. } = &self.tls;
        let ca_file = ca_file.clone().filter(|_| self.tls.verify);
        [ca_file, cert.clone(), key.clone()].into_iter().flatten()
    }
}

/// Says what decides who is trusted, and what is shown: connections that were made by another one are not used again.
type Fingerprint = [u8; 32];

/// TLS to the instances of one upstream. Immutable; crosses to each shard within the certificates' `Arc`.
#[derive(Clone)]
pub struct ServiceTls {
    config: ClientConfig,
    /// What all instances go by, where that is not their own host.
    name: Option<ServerName<'static>>,
    fingerprint: Fingerprint,
    /// The file of the certificate that is shown, and until when that is good, in seconds since 1970.
    shown: Option<(String, u64)>,
}

impl fmt::Debug for ServiceTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServiceTls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// TLS to one instance, as one shard or the control thread does it.
#[derive(Clone, Debug)]
pub struct InstanceTls {
    /// What handshakes are done by.
    pub config: Arc<ClientConfig>,
    /// What the instance's certificate has to be for.
    pub name: ServerName<'static>,
}

/// TLS to services, by upstream.
pub type Services = BTreeMap<String, ServiceTls>;

impl ServiceTls {
    /// TLS to the instance at this host, which remembers sessions of its own: instances seldom know each other's, and what an
    /// instance gives is bounded by its one name (8 tickets in rustls). `None` where no certificate can be for such a host.
    pub fn to_instance(&self, host: &str) -> Option<InstanceTls> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).ok()?,
        };
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(1);
        Some(InstanceTls { config: Arc::new(config), name })
    }

    /// Whether both trust and show the same.
    pub fn is_as(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// Why its certificate is better changed, at this time in seconds since 1970.
    fn warning(&self, upstream: &str, now: u64) -> Option<String> {
        let (file, not_after) = self.shown.as_ref()?;
        let what = match not_after.checked_sub(now) {
            None => "has expired: services that ask for it refuse it".to_owned(),
            Some(left) if left < EXPIRY_NOTICE => format!("expires in {} days", left / DAY),
            Some(_) => return None,
        };
        Some(format!("upstreams.{upstream}.tls.cert is \"{file}\", which {what}"))
    }
}

/// What is doubtful about what services are shown.
pub(super) fn warnings(services: &Services, now: u64) -> impl Iterator<Item = String> {
    services.iter().filter_map(move |(upstream, tls)| tls.warning(upstream, now))
}

/// Reads what upstreams want. What is wrong is added, and so is who can read keys and should not.
pub(super) fn load(
    wanted: &BTreeMap<String, WantedOfService>,
    doubts: &mut Vec<String>,
    wrong: &mut Vec<String>,
) -> Services {
    let mut system = None;
    let mut services = Services::new();
    for (upstream, wanted) in wanted {
        let place = format!("upstreams.{upstream}.tls");
        let roots = match &wanted.tls.ca_file {
            _ if !wanted.tls.verify => Ok(None),
            Some(file) => read_authorities(file)
                .map(|roots| Some(Arc::new(roots)))
                .map_err(|why| format!("{place}.ca_file is {why}")),
            None => {
                let system = system.get_or_insert_with(|| Arc::new(system_authorities()));
                if system.is_empty() && wanted.is_needed {
                    Err(format!(
                        "{place}.ca_file is not given, and the system has no authorities; install them, or name some"
                    ))
                } else {
                    Ok(Some(Arc::clone(system)))
                }
            }
        };
        let pair = wanted.pair().map(|pair| read(&pair).map(|read| (pair, read))).transpose();
        let pair = pair.map_err(|Wrong { key, what }| format!("{place}.{key} is {what}"));
        match (roots, pair) {
            (Ok(roots), Ok(pair)) => {
                let doubt = pair.as_ref().and_then(|(_, Pair { doubt, .. })| doubt.as_ref());
                doubts.extend(doubt.map(|doubt| format!("{place}.key is {doubt}")));
                let pair = pair.map(|(written, Pair { key, facts, .. })| (written, key, facts));
                match service(&wanted.tls, roots, pair) {
                    Ok(service) => drop(services.insert(upstream.clone(), service)),
                    Err(error) => wrong.push(format!("{place} cannot be used: {error}")),
                }
            }
            (roots, pair) => wrong.extend(roots.err().into_iter().chain(pair.err())),
        }
    }
    services
}

/// Without `roots` nobody is looked at.
fn service(
    tls: &UpstreamTls,
    roots: Option<Arc<RootCertStore>>,
    pair: Option<(TlsCertificate, CertifiedKey, Facts)>,
) -> Result<ServiceTls, rustls::Error> {
    let name = tls.server_name.as_ref().map(|name| ServerName::try_from(name.clone())).transpose();
    let name = name.map_err(|_| rustls::Error::General("no certificate can be for server_name".to_owned()))?;
    let fingerprint = fingerprint(tls, roots.as_deref(), pair.as_ref().map(|(_, key, _)| key));
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = match roots {
        None => Arc::new(Unlooked { takes_anybody: true, provider: provider() }),
        Some(roots) if roots.is_empty() => Arc::new(Unlooked { takes_anybody: false, provider: provider() }),
        Some(roots) => WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?,
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let (mut config, shown) = match pair {
        Some((written, key, facts)) => {
            let shown = (written.cert.display().to_string(), facts.not_after);
            (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))), Some(shown))
        }
        None => (builder.with_no_client_auth(), None),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // What an instance is remembered by is its own: see `to_instance`.
    config.resumption = Resumption::disabled();
    Ok(ServiceTls { config, name, fingerprint, shown })
}

fn fingerprint(tls: &UpstreamTls, roots: Option<&RootCertStore>, key: Option<&CertifiedKey>) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(tls.server_name.as_deref().unwrap_or_default().as_bytes());
    part(&[u8::from(tls.verify)]);
    let mut anchors: Vec<_> = roots.iter().flat_map(|roots| &roots.roots).collect();
    anchors.sort_unstable_by_key(|anchor| (anchor.subject.as_ref(), anchor.subject_public_key_info.as_ref()));
    for anchor in anchors {
        part(&anchor.subject);
        part(&anchor.subject_public_key_info);
        part(anchor.name_constraints.as_deref().unwrap_or_default());
    }
    part(b"shown");
    for certificate in key.iter().flat_map(|key| &key.cert) {
        part(certificate);
    }
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

/// Those that the system trusts; what of them cannot be read is no reason not to trust the rest.
fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The authorities of a PEM file, or what is wrong with it: `"ca.pem": there is no certificate in it`.
pub fn read_authorities(file: &Path) -> Result<RootCertStore, String> {
    let wrong = |why: &dyn fmt::Display| format!("\"{}\": {why}", file.display());
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_reader_iter(open_regular(file).map_err(|error| wrong(&error))?);
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        Err(wrong(
            &"there is no certificate in it; write the PEM file that has them, which begins with -----BEGIN CERTIFICATE-----",
        ))
    } else {
        Ok(roots)
    }
}

/// Looks at no authority: takes whoever has the key of the certificate that it shows, whatever that says (`verify = false`),
/// or, where there are no authorities, nobody.
#[derive(Debug)]
struct Unlooked {
    takes_anybody: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unlooked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.takes_anybody {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
