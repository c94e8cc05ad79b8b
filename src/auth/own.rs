//! The gateway's own keys: read from the files and secrets of the configuration, or made once and kept in the data
//! directory. Checking and signing with them is for `keys` and `issue`.

use super::jwk;
use super::provider::Signer;
use crate::config::{Algorithm, Auth, SecretFile, TokenKey, trimmed};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Where the key stands that the gateway makes itself, in the data directory.
const MADE_FILE: &str = "token-key.pem";

/// The largest key file: RSA of 8192 bits takes 6.5 KiB.
const FILE_BYTES_MAX: usize = 64 << 10;

/// The gateway's own keys. Shows nothing of them.
#[derive(Debug)]
pub struct OwnKeys {
    pub(super) keys: Vec<OwnKey>,
    /// The key that was made rather than configured, and whether it was made just now; for the log.
    pub made: Option<Made>,
}

/// A key of the gateway's own making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The file that holds it.
    pub file: PathBuf,
    /// Whether this process made it.
    pub is_new: bool,
}

#[derive(Debug)]
pub(super) struct OwnKey {
    pub(super) kid: String,
    pub(super) algorithm: Algorithm,
    /// What signatures are checked with; the secret itself with HS256.
    pub(super) public: DecodingKey,
    /// Set for the one that signs.
    pub(super) signer: Option<Arc<Signer>>,
}

/// Why a key cannot be used: which, why, and what would be right. It never quotes the key.
#[derive(Debug)]
pub struct KeyError(String);

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

impl OwnKeys {
    /// Reads the configured keys. Without any, reads the one that the data directory holds, or makes it.
    pub fn load(auth: &Auth, data_directory: &Path) -> Result<Self, KeyError> {
        if auth.keys.is_empty() {
            let file = data_directory.join(MADE_FILE);
            let (key, is_new) = read_or_make(&file).map_err(|why| KeyError(format!("{}: {why}", file.display())))?;
            return Ok(Self { keys: vec![key], made: Some(Made { file, is_new }) });
        }
        let keys = auth.keys.iter().enumerate().map(read_configured).collect::<Result<_, _>>()?;
        Ok(Self { keys, made: None })
    }

    /// Everything that is wrong with the files that [`OwnKeys::load`] would read; makes none.
    pub(super) fn check(auth: &Auth, data_directory: Option<&Path>) -> Vec<KeyError> {
        if let Some(file) = data_directory.filter(|_| auth.keys.is_empty()).map(|directory| directory.join(MADE_FILE)) {
            // One that is not there yet is made at the start.
            let is_there = fs::symlink_metadata(&file).is_ok();
            let wrong = is_there.then(|| read_made(&file).err()).flatten();
            return wrong.map(|why| KeyError(format!("{}: {why}", file.display()))).into_iter().collect();
        }
        auth.keys.iter().enumerate().filter_map(|key| read_configured(key).err()).collect()
    }

    /// No keys at all, for a gateway that nobody shows a token to.
    pub fn none() -> Self {
        Self { keys: Vec::new(), made: None }
    }

    /// The one that signs.
    pub(super) fn signing(&self) -> Option<&OwnKey> {
        self.keys.iter().find(|key| key.signer.is_some())
    }
}

/// The key of this index, or what is wrong with it.
fn read_configured((index, key): (usize, &TokenKey)) -> Result<OwnKey, KeyError> {
    let place = match &key.file {
        Some(file) => format!("auth.keys[{index}].file is \"{}\"", file.display()),
        None => format!("auth.keys[{index}].secret"),
    };
    read_key(key).map_err(|why| KeyError(format!("{place}: {why}")))
}

fn read_key(key: &TokenKey) -> Result<OwnKey, String> {
    let pem = match (&key.file, &key.secret) {
        (Some(file), _) => read_file(file)?,
        // Some platforms hand on variables of one line only.
        (None, Some(secret)) if key.algorithm != Algorithm::Hs256 => {
            Zeroizing::new(secret.reveal().replace("\\n", "\n").into_bytes())
        }
        (None, Some(secret)) => Zeroizing::new(secret.reveal().as_bytes().to_vec()),
        (None, None) => return Err("there is neither file nor secret".to_owned()),
    };
    let (public, signer) = if key.algorithm == Algorithm::Hs256 {
        // What is no text is the secret to the last byte.
        let secret = str::from_utf8(&pem).map_or(&pem[..], |text| trimmed(text).as_bytes());
        // A public key taken for a secret is how key confusion works, and a PEM of any kind is a mistake.
        if secret.windows(10).any(|window| window == b"-----BEGIN") {
            return Err("it is a PEM file, which is no secret for HS256; name the algorithm of the key".to_owned());
        }
        let signer = Signer::new(key.algorithm, &EncodingKey::from_secret(secret));
        (DecodingKey::from_secret(secret), Some(signer.map_err(|error| error.to_string())?))
    } else {
        from_pem(key.algorithm, &pem)?
    };
    jwk::judge(&public, key.algorithm)?;
    if key.sign && signer.is_none() {
        return Err(
            "it is a public key, and tokens are to be signed with it; name the private key, or say sign = false"
                .to_owned(),
        );
    }
    let signer = signer.filter(|_| key.sign).map(Arc::new);
    Ok(OwnKey { kid: key.kid.clone(), algorithm: key.algorithm, public, signer })
}

/// The public half, and the private one if it is there.
fn from_pem(algorithm: Algorithm, pem: &[u8]) -> Result<(DecodingKey, Option<Signer>), String> {
    let right = || {
        let kind = match algorithm {
            Algorithm::Es256 => {
                "a P-256 key, as `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes it"
            }
            Algorithm::EdDsa => "an Ed25519 key, as `openssl genpkey -algorithm ED25519` makes it",
            _ => "an RSA key, as `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072` makes it",
        };
        let name = algorithm.name();
        format!("it is no key for {name}; it is PEM (PRIVATE KEY or PUBLIC KEY) with {kind}")
    };
    let is_private = pem.windows(12).any(|window| window == b"PRIVATE KEY-");
    if is_private {
        let key = match algorithm {
            Algorithm::Es256 => EncodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => EncodingKey::from_ed_pem(pem),
            _ => EncodingKey::from_rsa_pem(pem),
        };
        let signer = key.and_then(|key| Signer::new(algorithm, &key)).map_err(|_| right())?;
        let public = signer.public().ok_or_else(right)?;
        return Ok((public, Some(signer)));
    }
    let public = match algorithm {
        Algorithm::Es256 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDsa => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    };
    Ok((public.map_err(|_| right())?, None))
}

/// Reads a key file, which not everybody may read unless what it holds is public.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = SecretFile::read(path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => "the file is larger than 64KiB; name a key".to_owned(),
        _ => format!("the file cannot be read: {error}"),
    })?;
    let has = |mark: &[u8]| file.public().windows(mark.len()).any(|window| window == mark);
    // A file of both has a secret.
    if (has(b"PUBLIC KEY-") || has(b"CERTIFICATE-")) && !has(b"PRIVATE KEY-") {
        return Ok(Zeroizing::new(file.public().to_vec()));
    }
    file.secret(path)
}

/// ES256, not HS256: its public half can be published, so services behind the gateway check tokens without sharing a
/// secret with it; that signing takes 14 µs instead of 2 matters to nobody who has just had a password checked.
fn read_or_make(file: &Path) -> Result<(OwnKey, bool), String> {
    let is_new = match fs::symlink_metadata(file) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(file).map_err(|error| {
            format!("the key for tokens cannot be kept there: {error}; make the directory writable, or give keys: [[auth.keys]]")
        })?,
        Err(error) => return Err(format!("the file cannot be read: {error}")),
    };
    Ok((read_made(file)?, is_new))
}

fn read_made(file: &Path) -> Result<OwnKey, String> {
    let pem = read_file(file)?;
    let (public, signer) = from_pem(Algorithm::Es256, &pem)?;
    let kid = jwk::thumbprint(Algorithm::Es256, &public).ok_or("it is no key")?;
    let signer = Some(Arc::new(signer.ok_or("it is no private key")?));
    Ok(OwnKey { kid, algorithm: Algorithm::Es256, public, signer })
}

/// Makes a key and puts it there, whole or not at all; false when another process was faster.
fn make(file: &Path) -> io::Result<bool> {
    let random = SystemRandom::new();
    let no_randomness = |_| io::Error::other("the system has no random bytes");
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(no_randomness)?;
    let body = Zeroizing::new(STANDARD.encode(document.as_ref()));
    let mut pem = Zeroizing::new(String::with_capacity(512));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");

    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut name = [0; 8];
    random.fill(&mut name).map_err(no_randomness)?;
    let draft = directory.join(format!("{MADE_FILE}.{:016x}", u64::from_be_bytes(name)));
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let put = written.write_all(pem.as_bytes()).and_then(|()| written.sync_all());
    // A link, unlike a rename, does not replace the key of a process that was faster.
    let linked = put.and_then(|()| fs::hard_link(&draft, file));
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => {
            File::open(directory)?.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}
