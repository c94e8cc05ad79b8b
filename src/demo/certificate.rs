//! The certificate that the demo makes for itself, so that it can be tried over TLS too.

use std::{fs::OpenOptions, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::Offset};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

use crate::config::TlsCertificate;

/// By which names a browser on this machine comes.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Nobody runs the demo for longer.
const DAYS: i64 = 30;

/// Makes a certificate that signs itself, and its key, in this directory.
pub(super) fn make(directory: &Path) -> anyhow::Result<TlsCertificate> {
    let key = KeyPair::generate().context("no key can be made for TLS")?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name.push(DnType::CommonName, "the demo of Shardgate");
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Browsers take none that lasts for years.
    let [from, to] = [date(-1)?, date(DAYS)?];
    let midnight =
        |date: Date| date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs());
    (params.not_before, params.not_after) = (midnight(from), midnight(to));
    let certificate = params.self_signed(&key).context("no certificate can be made for TLS")?;
    let [cert_file, key_file] = ["certificate.pem", "key.pem"].map(|name| directory.join(name));
    write(&cert_file, &certificate.pem())?;
    write(&key_file, &key.serialize_pem())?;
    Ok(TlsCertificate { cert: cert_file, key: key_file })
}

/// The date that is so many days from today.
fn date(days: i64) -> anyhow::Result<Date> {
    let at = Timestamp::now().checked_add(SignedDuration::from_hours(24 * days))?;
    Ok(Offset::UTC.to_datetime(at).date())
}

fn write(file: &Path, pem: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = opened.and_then(|mut opened| opened.write_all(pem.as_bytes()));
    written.with_context(|| format!("the demo cannot write {}", file.display()))
}
