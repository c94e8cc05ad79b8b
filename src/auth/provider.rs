//! Signatures: `jsonwebtoken`'s provider on `ring`, and the verifiers and signers that it makes, each of one key for one
//! algorithm (decision 6). Which key a token gets is for `keys` and `jwt`.

use crate::config::Algorithm;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, new_error};
use jsonwebtoken::{Algorithm as Jose, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, RsaKeyPair, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use ring::{hmac, signature as ring_signature};
use std::fmt;

/// For all of the process. Verifiers of our own are made once for each key; this one is for the crate's own functions.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(Signer::new(ours(*algorithm)?, key)?)),
    verifier_factory: |algorithm, key| Ok(Box::new(Verifier::new(ours(*algorithm)?, key)?)),
    // Asked for only to make key sets out of keys, which `keys` does itself.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes `ring` what `jsonwebtoken` works with. Once is enough; more do no harm.
pub fn install() {
    // Whoever was first installed the same: nobody else in this process installs one.
    let _ = PROVIDER.install_default();
}

/// The crate's name of an algorithm.
pub(super) const fn jose(algorithm: Algorithm) -> Jose {
    match algorithm {
        Algorithm::Hs256 => Jose::HS256,
        Algorithm::Rs256 => Jose::RS256,
        Algorithm::Ps256 => Jose::PS256,
        Algorithm::Es256 => Jose::ES256,
        Algorithm::EdDsa => Jose::EdDSA,
    }
}

fn ours(algorithm: Jose) -> Result<Algorithm, Error> {
    let found = Algorithm::ALL.into_iter().find(|ours| jose(*ours) == algorithm);
    found.ok_or_else(|| new_error(ErrorKind::InvalidAlgorithm))
}

/// Checks signatures with one key by one algorithm. Immutable; shared by all shards.
pub(super) struct Verifier {
    algorithm: Algorithm,
    key: VerifyingKey,
}

enum VerifyingKey {
    Secret(hmac::Key),
    /// `n` and `e`, as key sets have them.
    Components(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
    /// DER (RSA), a point (P-256), 32 bytes (Ed25519).
    Public(UnparsedPublicKey<Vec<u8>>),
}

impl Verifier {
    /// A verifier of this key by this algorithm; a key of another family is refused.
    pub(super) fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, Error> {
        if key.family() != jose_family(algorithm) {
            return Err(new_error(ErrorKind::InvalidKeyFormat));
        }
        let public = |algorithm: &'static dyn ring_signature::VerificationAlgorithm| {
            Ok::<_, Error>(VerifyingKey::Public(UnparsedPublicKey::new(algorithm, key.try_get_as_bytes()?.to_vec())))
        };
        let rsa = |algorithm: &'static RsaParameters| match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                Ok(VerifyingKey::Components(algorithm, RsaPublicKeyComponents { n: n.clone(), e: e.clone() }))
            }
            DecodingKeyKind::SecretOrDer(_) => public(algorithm),
        };
        let key = match algorithm {
            Algorithm::Hs256 => VerifyingKey::Secret(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?)),
            Algorithm::Rs256 => rsa(&RSA_PKCS1_2048_8192_SHA256)?,
            Algorithm::Ps256 => rsa(&RSA_PSS_2048_8192_SHA256)?,
            Algorithm::Es256 => public(&ECDSA_P256_SHA256_FIXED)?,
            Algorithm::EdDsa => public(&ED25519)?,
        };
        Ok(Self { algorithm, key })
    }

    /// Whether the signature fits.
    pub(super) fn fits(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            VerifyingKey::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            VerifyingKey::Components(parameters, key) => key.verify(parameters, message, signature).is_ok(),
            VerifyingKey::Public(key) => key.verify(message, signature).is_ok(),
        }
    }
}

fn jose_family(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::Hs256 => AlgorithmFamily::Hmac,
        Algorithm::Rs256 | Algorithm::Ps256 => AlgorithmFamily::Rsa,
        Algorithm::Es256 => AlgorithmFamily::Ec,
        Algorithm::EdDsa => AlgorithmFamily::Ed,
    }
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        if self.fits(message, signature) { Ok(()) } else { Err(signature::Error::new()) }
    }
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Jose {
        jose(self.algorithm)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.algorithm.name())
    }
}

/// Signs with one key by one algorithm. Immutable; shows nothing of its key.
pub(super) struct Signer {
    algorithm: Algorithm,
    key: SigningKey,
}

enum SigningKey {
    Secret(hmac::Key),
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, SystemRandom),
    Ed(Ed25519KeyPair),
}

impl Signer {
    /// A signer with this key by this algorithm; a key of another family is refused.
    pub(super) fn new(algorithm: Algorithm, key: &EncodingKey) -> Result<Self, Error> {
        if key.family() != jose_family(algorithm) {
            return Err(new_error(ErrorKind::InvalidKeyFormat));
        }
        let rejected = |_: ring::error::KeyRejected| new_error(ErrorKind::InvalidKeyFormat);
        let bytes = key.as_bytes();
        let key = match algorithm {
            Algorithm::Hs256 => SigningKey::Secret(hmac::Key::new(hmac::HMAC_SHA256, bytes)),
            Algorithm::Rs256 | Algorithm::Ps256 => SigningKey::Rsa(RsaKeyPair::from_der(bytes).map_err(rejected)?),
            Algorithm::Es256 => {
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random);
                SigningKey::Ec(pair.map_err(rejected)?, random)
            }
            // Without its public half too: openssl writes it so.
            Algorithm::EdDsa => SigningKey::Ed(Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map_err(rejected)?),
        };
        Ok(Self { algorithm, key })
    }

    /// The key that its signatures are checked with; `None` for a secret.
    pub(super) fn public(&self) -> Option<DecodingKey> {
        match &self.key {
            SigningKey::Secret(_) => None,
            SigningKey::Rsa(pair) => Some(DecodingKey::from_rsa_der(pair.public_key().as_ref())),
            SigningKey::Ec(pair, _) => Some(DecodingKey::from_ec_der(pair.public_key().as_ref())),
            SigningKey::Ed(pair) => Some(DecodingKey::from_ed_der(pair.public_key().as_ref())),
        }
    }

    /// Signs; fails only when the system has no randomness.
    pub(super) fn signature(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let failed = |_: ring::error::Unspecified| signature::Error::new();
        let rsa = |pair: &RsaKeyPair, padding: &'static dyn ring_signature::RsaEncoding| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(padding, &SystemRandom::new(), message, &mut signature).map_err(failed)?;
            Ok(signature)
        };
        match &self.key {
            SigningKey::Secret(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            SigningKey::Rsa(pair) if self.algorithm == Algorithm::Ps256 => rsa(pair, &RSA_PSS_SHA256),
            SigningKey::Rsa(pair) => rsa(pair, &RSA_PKCS1_SHA256),
            SigningKey::Ec(pair, random) => Ok(pair.sign(random, message).map_err(failed)?.as_ref().to_vec()),
            SigningKey::Ed(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl signature::Signer<Vec<u8>> for Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        self.signature(message)
    }
}

impl JwtSigner for Signer {
    fn algorithm(&self) -> Jose {
        jose(self.algorithm)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.algorithm.name())
    }
}
