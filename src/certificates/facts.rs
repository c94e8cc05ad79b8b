//! What a certificate says of itself.

use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// Names and times of a certificate.
#[derive(Debug)]
pub(super) struct Facts {
    /// Names of hosts, in lower case; those of one label less begin with `*.`.
    pub(super) names: Vec<String>,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

impl Facts {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, x509_cert::der::Error> {
        let certificate = Certificate::from_der(certificate)?.tbs_certificate;
        let names = certificate.get::<SubjectAltName>()?.map_or_else(Vec::new, |(_, names)| {
            let host = |name: GeneralName| match name {
                GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
                _ => None,
            };
            names.0.into_iter().filter_map(host).collect()
        });
        Ok(Self {
            names,
            not_before: certificate.validity.not_before.to_unix_duration().as_secs(),
            not_after: certificate.validity.not_after.to_unix_duration().as_secs(),
        })
    }
}

/// Checks that each certificate of a chain is followed by the one that signed it, as clients want to be told.
pub(super) fn check_chain(chain: &[CertificateDer<'_>]) -> Result<(), String> {
    let mut issuer = None;
    for (index, certificate) in chain.iter().enumerate() {
        let number = index + 1;
        let of =
            Certificate::from_der(certificate).map_err(|error| format!("its certificate {number} is none: {error}"))?;
        if issuer.is_some_and(|issuer| issuer != of.tbs_certificate.subject) {
            return Err(format!(
                "its chain is out of order: certificate {number} is not the issuer of the one before it; put the server's \
                 first and each issuer behind what it signed"
            ));
        }
        issuer = Some(of.tbs_certificate.issuer);
    }
    Ok(())
}
