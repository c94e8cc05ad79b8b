//! The files that a configuration names: the keys of tokens, loaded, and a look at all of them before anything is started,
//! which says what is wrong with them and what whoever runs this may not do there.

use std::fmt::Display;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{
    control::{load_certificates, wanted_certificates},
    lookup::read_listing,
};
use crate::{
    accounts,
    admin::Access as OperatorAccess,
    auth::{Keychain, KeychainError, NewKeys},
    certificates::{Certificates, read_authorities},
    config::{self, AccessLog, Config, ListenerKind, SecretFile, ServerAddress, SessionStore},
    shard::clock,
    sinks::clickhouse,
};

/// Locked by the gateway that keeps sessions in the data directory.
const LOCK: &str = "gateway.lock";

/// Loads the keys of a configuration.
pub(super) fn load_keys(config: &Config) -> Result<Keychain, KeychainError> {
    Keychain::load(&config.auth, made_in(config))
}

/// Reads the keys of a new configuration; `made` is the file with the key of the process's own making, if it goes by one.
pub(super) fn read_keys(config: &Config, made: Option<&Path>) -> Result<NewKeys, KeychainError> {
    NewKeys::read(&config.auth, made_in(config), made)
}

/// Loads the certificates of a configuration; `None` where it has none.
fn certificates_of(config: &Config) -> Result<Option<Arc<Certificates>>, String> {
    let loaded = wanted_certificates(config).map(load_certificates).transpose()?;
    Ok(loaded.map(|loaded| loaded.certificates))
}

/// Tells the log what is doubtful about certificates.
pub(super) fn warn_of_certificates(config: &Config, certificates: Option<&Certificates>) {
    for warning in certificates.iter().flat_map(|certificates| certificate_warnings(config, certificates)) {
        tracing::warn!("{warning}");
    }
}

/// What is doubtful about certificates: themselves, their keys, and hosts that none of them is for.
fn certificate_warnings(config: &Config, certificates: &Certificates) -> Vec<String> {
    let mut warnings = certificates.warnings(clock::unix_now().as_secs());
    if config.public_listeners().any(|listener| listener.kind == ListenerKind::Tls) {
        for (index, route) in config.routes.iter().enumerate() {
            let bare = route.hosts.iter().filter(|host| !certificates.cover_pattern(host));
            warnings.extend(bare.map(|host| {
                format!(
                    "routes[{index}].hosts has \"{host}\", which no certificate names: over TLS its clients are shown another, \
                     and refuse it"
                )
            }));
        }
    }
    warnings
}

/// Where a key of our own is made when none is configured: nowhere, if nobody is asked for a token.
fn made_in(config: &Config) -> Option<&Path> {
    let is_asked = config.accounts.enabled || config.routes.iter().any(|route| route.access != config::Access::Public);
    is_asked.then_some(&*config.data.dir)
}

/// Takes the data directory for this process where sessions are kept there: another gateway would know nothing of what this one
/// ends, and answer its tokens. Commands on users stand beside it; their changes are seen. The lock goes with the process.
pub(super) fn claim_data(config: &Config) -> anyhow::Result<Option<File>> {
    if !config.accounts.enabled || config.session_store() != SessionStore::Embedded {
        return Ok(None);
    }
    let directory = &config.data.dir;
    let open = || {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))
    };
    // Whoever may write nothing there is told so by the store.
    let Ok(lock) = open() else { return Ok(None) };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => {
            let place = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
            anyhow::bail!(
                "data.dir: another gateway keeps its sessions in {}, and would not hear of what this one ends; stop it, set \
                 another data.dir, or let both share Redis (redis.urls)",
                place.display()
            )
        }
        Err(error) => {
            tracing::warn!(%error, "it cannot be told whether another gateway uses {}", directory.display());
            Ok(None)
        }
    }
}

/// Reads the tokens of operators: who may ask the operator's listener for what.
pub(super) fn admin_access(config: &Config) -> Result<OperatorAccess, String> {
    let admin = &config.admin;
    let mut tokens = Vec::with_capacity(admin.tokens.len());
    for (index, token) in admin.tokens.iter().enumerate() {
        let of_file =
            |file: &PathBuf| admin_token(file).map_err(|wrong| format!("admin.tokens[{index}].file is {wrong}"));
        let of_secret =
            || Zeroizing::new(token.secret.as_ref().map_or("", |secret| secret.reveal()).as_bytes().to_vec());
        tokens.push((&*token.name, token.file.as_ref().map_or_else(|| Ok(of_secret()), of_file)?));
    }
    let tokens = tokens.iter().map(|(name, token)| (*name, token.as_slice()));
    Ok(OperatorAccess::new(tokens, &admin.hosts, !admin.is_on_loopback()))
}

fn admin_token(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let told = |wrong: &dyn Display| format!("\"{}\": {wrong}", path.display());
    let file = SecretFile::read(path, config::ADMIN_TOKEN_BYTES_MAX + 2).map_err(|error| told(&error))?;
    let token = file.secret(path).map_err(|wrong| told(&wrong))?;
    // What editors leave at the end is nobody's token.
    let token = Zeroizing::new(token.trim_ascii().to_vec());
    match config::admin_token_mistake(&token) {
        None => Ok(token),
        Some(wrong) => Err(told(&format_args!("it {wrong}; {}", config::ADMIN_TOKEN_FORM))),
    }
}

/// Everything that is wrong with the files that a configuration names and the gateway reads at its start: keys, key sets
/// and certificates. Nothing is made or fetched.
pub fn check_files(config: &Config) -> Vec<String> {
    let mut wrong = Keychain::check_files(&config.auth, made_in(config));
    wrong.extend(accounts::check_key(config));
    wrong.extend(admin_access(config).err());
    wrong.extend(certificates_of(config).err());
    let accounts = &config.accounts;
    let redis = config.redis.ca_file.clone().filter(|_| config.redis.is_given());
    let postgres = accounts.postgres_ca().filter(|_| accounts.postgres_url.is_some());
    let is_in_url = accounts.postgres_ca_file.is_none();
    let postgres_key = if is_in_url { "accounts.postgres_url: sslrootcert" } else { "accounts.postgres_ca_file" };
    let spans = config.trace.ca_file.clone().filter(|_| config.trace.endpoint.is_some());
    for (key, file) in [("redis.ca_file", redis), (postgres_key, postgres), ("trace.ca_file", spans)] {
        let why = file.map(|file| read_authorities(&file)).and_then(Result::err);
        wrong.extend(why.map(|why| format!("{key} is {why}")));
    }
    if config.clickhouse.enabled {
        wrong.extend(clickhouse::Prepared::new(&config.clickhouse).err());
    }
    wrong
}

/// Where the gateway would write and whoever runs this may not, and files of instances that list none now. No mistakes: it may
/// be run as somebody else, and later.
pub fn file_warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        if let Some(file) = &upstream.discover.file
            && let Err(why) = read_listing(file)
        {
            warnings.push(format!("upstreams.{name}.discover.file is \"{}\": {why}", file.display()));
        }
    }
    if let Ok(Some(certificates)) = certificates_of(config) {
        warnings.extend(certificate_warnings(config, &certificates));
    }
    let user = rustix::process::geteuid().as_raw();
    if keeps_something(config) {
        let directory = &config.data.dir;
        if let Err((place, error)) = may_write(directory) {
            warnings.push(format!(
                "data.dir is \"{}\", and user {user} cannot write in {} ({error}); keys, accounts and sessions are kept \
                 there: make it and give it to the user that the gateway runs as, or name another",
                directory.display(),
                place.display()
            ));
        }
    }
    if let Some(directory) = config.spill_dir()
        && let Err((place, error)) = may_write(&directory)
    {
        warnings.push(format!(
            "clickhouse.spill_dir is \"{}\", and user {user} cannot write in {} ({error}); rows are kept there while \
             ClickHouse is away: make it and give it to the user that the gateway runs as, or name another",
            directory.display(),
            place.display()
        ));
    }
    if let AccessLog::File(path) = &config.log.access {
        let place = if path.exists() { path } else { path.parent().unwrap_or(Path::new(".")) };
        if let Err(error) = accessat(CWD, place, Access::WRITE_OK, AtFlags::EACCESS) {
            warnings.push(format!(
                "log.access is \"{}\", and user {user} cannot write to {} ({error}); make it and give it to the user that \
                 the gateway runs as, or name another",
                path.display(),
                place.display()
            ));
        }
    }
    for (name, upstream) in &config.upstreams {
        for (index, instance) in upstream.instances.iter().enumerate() {
            let ServerAddress::Unix(path) = &instance.address else { continue };
            if let Some(why) = may_not_connect(path) {
                warnings.push(format!(
                    "upstreams.{name}.instances[{index}] is \"{instance}\", and {why}; it is used when that is so no more"
                ));
            }
        }
    }
    warnings
}

/// Why whoever runs this cannot connect to a socket with this path, as far as files say.
fn may_not_connect(path: &Path) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("nothing is there".to_owned()),
        Err(error) => Some(format!("user {user} cannot look there ({error})")),
        Ok(found) if !found.file_type().is_socket() => Some("what is there is no socket".to_owned()),
        Ok(_) => {
            let error = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).err()?;
            Some(format!("user {user} may not connect to it ({error})"))
        }
    }
}

/// Whether anything is kept in the data directory.
fn keeps_something(config: &Config) -> bool {
    let makes_key = config.auth.keys.is_empty() && made_in(config).is_some();
    let accounts = &config.accounts;
    let has_store = accounts.postgres_url.is_none() || config.session_store() == SessionStore::Embedded;
    makes_key || accounts.enabled && (has_store || config.sessions.secret.is_none())
}

/// Whether files can be made in a directory, or the directory itself where it is missing; if not, where that fails.
fn may_write(directory: &Path) -> Result<(), (PathBuf, Errno)> {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    for place in absolute.ancestors() {
        match accessat(CWD, place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            Err(Errno::NOENT) => {}
            tried => return tried.map_err(|error| (place.to_owned(), error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_there_is_told() {
        let place = tempfile::tempdir().expect("a directory");
        let path = |name: &str| place.path().join(name);
        std::fs::write(path("file"), "").expect("written");
        let _listener = std::os::unix::net::UnixListener::bind(path("sock")).expect("a socket");
        assert_eq!(may_not_connect(&path("none")).as_deref(), Some("nothing is there"));
        assert_eq!(may_not_connect(&path("file")).as_deref(), Some("what is there is no socket"));
        assert_eq!(may_not_connect(&path("sock")), None);
        let mut config = Config::default();
        let instance = format!("unix:{}", path("none").display()).parse().expect("an instance");
        config.upstreams.insert("shop".to_owned(), config::Upstream::new(vec![instance]));
        let warnings = file_warnings(&config);
        assert!(
            warnings.iter().any(|warning| warning.contains("none\", and nothing is there; it is used when")),
            "{warnings:?}"
        );
    }
}
