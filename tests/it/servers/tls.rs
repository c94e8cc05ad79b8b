//! Certificates for servers of loopback, and what serves by them.

use std::{path::Path, process::Command, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Makes `name.crt` and `name.key`, for 127.0.0.1, by `openssl`; `None` where there is no such program.
pub(crate) fn certificate(directory: &Path, name: &str) -> Option<()> {
    let made = Command::new("openssl")
        .current_dir(directory)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
        .output()
        .ok()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(())
}

/// Serves with the certificate of this name.
#[track_caller]
pub(crate) fn server_config(directory: &Path, name: &str) -> Arc<ServerConfig> {
    let file = |kind: &str| directory.join(format!("{name}.{kind}"));
    let certificate = CertificateDer::from_pem_file(file("crt")).expect("it was made");
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("it was made");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together");
    Arc::new(config)
}
