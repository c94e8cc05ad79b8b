//! The keys that tokens are checked with, by issuer: [`KeySet`] is what every shard holds. Reading our own keys from files
//! is for `own`, fetching those of others for `fetch`.

use super::jwk::JwkSet;
use super::own::OwnKeys;
use super::provider::Verifier;
use super::{CallerRoles, Flaw, Origin, jwk};
use crate::config::{Algorithm, Auth, TokenIssuer};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use ring::digest;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Everything that a token is checked with. Immutable: control builds one and sends an `Arc` of it to each shard.
pub struct KeySet {
    pub(super) issuers: Vec<Issuer>,
    pub(super) leeway: Duration,
    pub(super) token_bytes_max: usize,
    generation: Fingerprint,
    jwks: String,
}

/// What a key and the rules around it come down to: equal for equal keys under equal rules, in every process.
pub(super) type Fingerprint = [u8; 16];

/// An issuer, its rules and its keys.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: Arc<str>,
    pub(super) origin: Origin,
    /// One of these is in `aud`; empty: it is not looked at.
    pub(super) audiences: Vec<String>,
    /// `typ` in small letters; empty for none.
    pub(super) types: Vec<String>,
    pub(super) claims: ClaimMap,
    /// What it may say of its users; none: everything, for it is the gateway itself.
    pub(super) word: Option<Word>,
    pub(super) lifetime_max: Duration,
    /// None: they could not be fetched so far.
    pub(super) keys: Option<Vec<Key>>,
    /// Whether asking for its keys again may bring one that is not here.
    pub(super) can_fetch: bool,
}

/// Where the claims are that have no name everybody agrees on.
#[derive(Debug)]
pub(super) struct ClaimMap {
    pub(super) role: String,
    pub(super) permissions: String,
    pub(super) email: String,
    pub(super) sid: String,
}

/// How far another issuer's word goes.
#[derive(Debug)]
pub(super) struct Word {
    /// What stands before its `sub` and `sid`, so that they are nobody else's.
    pub(super) prefix: String,
    /// Roles that count; `*` is any.
    pub(super) roles: Vec<String>,
    /// Grants that count, by what covers them.
    pub(super) permissions: Vec<String>,
    /// The role where none counts; none or one.
    pub(super) role: CallerRoles,
}

/// A key, which is to say a verifier: it has one algorithm and no other.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) kid: Option<Box<str>>,
    pub(super) algorithm: Algorithm,
    pub(super) verifier: Verifier,
    pub(super) fingerprint: Fingerprint,
}

impl KeySet {
    /// The keys of a configuration: our own, and those of the issuers that were read or fetched, by the issuer's name.
    pub fn new(auth: &Auth, own: &OwnKeys, fetched: &BTreeMap<String, Arc<JwkSet>>) -> Self {
        super::provider::install();
        let mut issuers = vec![own_issuer(auth, own)];
        issuers.extend(auth.issuers.iter().map(|issuer| foreign_issuer(issuer, fetched.get(&issuer.issuer))));
        let public = own.keys.iter().filter_map(|key| jwk::write_key(&key.kid, key.algorithm, &key.public));
        let jwks = json!({ "keys": public.collect::<Vec<_>>() }).to_string();
        let mut all = digest::Context::new(&digest::SHA256);
        for key in issuers.iter().flat_map(|issuer| issuer.keys.iter().flatten()) {
            all.update(&key.fingerprint);
        }
        let away: Vec<bool> = issuers.iter().map(|issuer| issuer.keys.is_none()).collect();
        all.update(format!("{away:?} {:?} {}", auth.leeway, auth.token_bytes_max).as_bytes());
        let generation = shortened(all);
        Self { issuers, leeway: auth.leeway, token_bytes_max: auth.token_bytes_max, generation, jwks }
    }

    /// The page `/.well-known/jwks.json`: our public keys, those that only verify included; empty with HS256 alone.
    pub fn jwks_json(&self) -> &str {
        &self.jwks
    }

    /// Names of the issuers whose keys could not be fetched so far.
    pub fn away(&self) -> impl Iterator<Item = &str> {
        self.issuers.iter().filter(|issuer| issuer.keys.is_none()).map(|issuer| &*issuer.name)
    }

    /// How many keys there are, for the log.
    pub fn len(&self) -> usize {
        self.issuers.iter().filter_map(|issuer| issuer.keys.as_ref()).map(Vec::len).sum()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Differs where anything differs that a token's check depends on.
    pub(super) fn generation(&self) -> Fingerprint {
        self.generation
    }

    /// Whether this key is still here, under the same rules.
    pub(super) fn has(&self, fingerprint: Fingerprint) -> bool {
        let mut keys = self.issuers.iter().flat_map(|issuer| issuer.keys.iter().flatten());
        keys.any(|key| key.fingerprint == fingerprint)
    }

    pub(super) fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| &*issuer.name == name)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuers = self.issuers.iter().map(|issuer| (&issuer.name, issuer.keys.as_ref().map(Vec::len)));
        f.debug_map().entries(issuers).finish()
    }
}

impl Issuer {
    /// The key that a token means: by `kid`, or the only one where it names none. Its algorithm has to be the token's.
    pub(super) fn key(&self, kid: Option<&str>, algorithm: &str) -> Result<&Key, Flaw> {
        let keys = self.keys.as_deref().unwrap_or_default();
        let mut meant = keys.iter().filter(|key| kid.is_none_or(|kid| key.kid.as_deref() == Some(kid)));
        let Some(first) = meant.next() else { return Err(Flaw::UnknownKey) };
        if kid.is_none() && meant.next().is_some() {
            return Err(Flaw::UnknownKey);
        }
        // A set may have one kid for keys of two algorithms.
        let mut fitting = std::iter::once(first).chain(meant).filter(|key| key.algorithm.name() == algorithm);
        fitting.next().ok_or(Flaw::Algorithm)
    }
}

fn own_issuer(auth: &Auth, own: &OwnKeys) -> Issuer {
    let claims = ClaimMap {
        role: "role".to_owned(),
        permissions: "permissions".to_owned(),
        email: "email".to_owned(),
        sid: "sid".to_owned(),
    };
    let mut issuer = Issuer {
        name: auth.issuer.as_str().into(),
        origin: Origin::Own,
        audiences: vec![auth.audience.clone()],
        types: vec!["jwt".to_owned(), "at+jwt".to_owned(), String::new()],
        claims,
        word: None,
        lifetime_max: auth.lifetime_max,
        keys: None,
        can_fetch: false,
    };
    let keys = own.keys.iter().filter_map(|key| issuer.new_key(Some(&key.kid), key.algorithm, &key.public));
    issuer.keys = Some(keys.collect());
    issuer
}

fn foreign_issuer(config: &TokenIssuer, set: Option<&Arc<JwkSet>>) -> Issuer {
    let claims = ClaimMap {
        role: config.claim_role.clone(),
        permissions: config.claim_permissions.clone(),
        email: config.claim_email.clone(),
        sid: config.claim_sid.clone(),
    };
    let word = Word {
        prefix: config.sub_prefix(),
        roles: config.roles.clone(),
        permissions: config.permissions.clone(),
        role: config.role.as_deref().map_or_else(CallerRoles::default, |role| CallerRoles::new(&[role])),
    };
    let mut issuer = Issuer {
        name: config.issuer.as_str().into(),
        origin: Origin::Foreign,
        audiences: config.audiences.clone(),
        types: config.types.iter().map(|name| name.to_ascii_lowercase()).collect(),
        claims,
        word: Some(word),
        lifetime_max: config.lifetime_max,
        keys: None,
        can_fetch: config.jwks_url.is_some(),
    };
    // What the set's reader let in is asked again, for a reload may have shortened the list.
    let allowed = |algorithm: &Algorithm| config.algorithms.contains(algorithm) && *algorithm != Algorithm::Hs256;
    let keys = set.map(|set| {
        let keys = set.keys.iter().filter(|key| allowed(&key.algorithm));
        keys.filter_map(|key| issuer.new_key(key.kid.as_deref(), key.algorithm, &key.key)).collect()
    });
    issuer.keys = keys;
    issuer
}

impl Issuer {
    /// `None` where key and algorithm do not fit, which whoever read the key has seen to.
    fn new_key(&self, kid: Option<&str>, algorithm: Algorithm, key: &DecodingKey) -> Option<Key> {
        let verifier = Verifier::new(algorithm, key).ok()?;
        let mut context = digest::Context::new(&digest::SHA256);
        let Self { name, origin, audiences, types, claims, word, lifetime_max, .. } = self;
        let rules = format!(
            "{name:?} {origin:?} {audiences:?} {types:?} {claims:?} {word:?} {lifetime_max:?} {algorithm:?} {kid:?}"
        );
        context.update(rules.as_bytes());
        match key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => context.update(bytes),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                context.update(n);
                context.update(e);
            }
        }
        Some(Key { kid: kid.map(Into::into), algorithm, verifier, fingerprint: shortened(context) })
    }
}

fn shortened(context: digest::Context) -> Fingerprint {
    let digest = context.finish();
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&digest.as_ref()[..16]);
    fingerprint
}
