//! Certificates of the tests, which each makes for itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// A certificate of the tests, and its key.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Made {
    /// One with an elliptic curve, for these names.
    pub(crate) fn new(directory: &Path, file: &str, names: &[&str]) -> Self {
        Self::with(directory, file, names, |_| {})
    }

    /// One that has ended.
    pub(crate) fn expired(directory: &Path, file: &str, names: &[&str]) -> Self {
        Self::with(directory, file, names, |params| params.not_after = date_time_ymd(2020, 1, 1))
    }

    fn with(directory: &Path, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let certificate = params.self_signed(&key).expect("signed");
        let made = Self::at(directory, file);
        fs::write(&made.cert, certificate.pem()).expect("written");
        fs::write(&made.key, key.serialize_pem()).expect("written");
        made.hidden()
    }

    /// One with RSA, in the form that `openssl` gives keys.
    pub(crate) fn rsa(directory: &Path, file: &str, name: &str) -> Self {
        let made = Self::at(directory, file);
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=rsa", "-addext"]);
        command.arg(format!("subjectAltName=DNS:{name}")).args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        let output = command.arg("-keyout").arg(&made.key).arg("-out").arg(&made.cert).output().expect("openssl runs");
        assert!(output.status.success(), "{output:?}");
        made.hidden()
    }

    /// Where one is, or is to be.
    pub(crate) fn at(directory: &Path, file: &str) -> Self {
        let [cert, key] = ["pem", "key.pem"].map(|ending| directory.join(format!("{file}.{ending}")));
        Self { cert, key }
    }

    fn hidden(self) -> Self {
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).expect("set");
        self
    }

    /// As a configuration names it.
    pub(crate) fn config(&self) -> String {
        let Self { cert, key } = self;
        format!("[[tls.certificates]]\ncert = \"{}\"\nkey = \"{}\"\n", cert.display(), key.display())
    }

    /// The certificate itself.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).expect("a certificate")
    }
}
