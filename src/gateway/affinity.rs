//! What keeps a request with one instance: the key of consistent hashing, out of what the client sent.

use std::{hash::Hasher as _, net::IpAddr};

use ring::digest::{SHA256, digest};
use siphasher::sip::SipHasher13;

use crate::{
    config::{HashKey, Secret},
    exchange::Exchange,
    proto::head::RequestHead,
};

/// What keeps a request with one instance.
#[derive(Debug)]
pub(super) struct Affinity {
    by: HashKey,
    /// What it is hashed with.
    hasher: SipHasher13,
}

impl Affinity {
    /// With a secret that only the gateways know, nobody else can find values that lead to one instance.
    pub(super) fn new(by: HashKey, secret: Option<&Secret>) -> Self {
        let hasher = secret.map_or_else(|| SipHasher13::new_with_keys(0, 0), keyed);
        Self { by, hasher }
    }

    /// The key of a request, the same on every shard, and on every instance with the same secret; `None` if it has none.
    pub(super) fn key_of(&self, exchange: &Exchange) -> Option<u64> {
        match &self.by {
            HashKey::Address => Some(match exchange.client.to_canonical() {
                IpAddr::V4(v4) => self.hash(&v4.octets()),
                IpAddr::V6(v6) => self.hash(&v6.octets()),
            }),
            HashKey::User => exchange.caller.as_ref().map(|caller| self.hash(caller.sub.as_bytes())),
            HashKey::Header(name) => exchange.head.value_of(name.as_bytes()).map(|value| self.hash(value)),
            HashKey::Cookie(name) => cookie(&exchange.head, name.as_bytes()).map(|value| self.hash(value)),
        }
    }

    /// By name, because the standard library's hash may become another one, and instances of different ages share clients.
    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher;
        hasher.write(key);
        hasher.finish()
    }
}

/// A hasher whose keys nobody knows who does not know the secret.
fn keyed(secret: &Secret) -> SipHasher13 {
    let digest = digest(&SHA256, secret.reveal().as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_ref()[..16]);
    SipHasher13::new_with_key(&key)
}

/// The value of the first cookie of this name (RFC 6265 §4.2.1).
fn cookie<'h>(head: &'h RequestHead, name: &[u8]) -> Option<&'h [u8]> {
    let fields = head.fields.iter().filter(|field| head.text(field.name).eq_ignore_ascii_case(b"cookie"));
    let mut pairs = fields.flat_map(|field| head.text(field.value).split(|byte| *byte == b';'));
    pairs.find_map(|pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http1::{HeadLimits, WholeRequest};

    fn head(fields: &str) -> RequestHead {
        let limits = HeadLimits { head_bytes_max: 4096, fields_max: 32, target_bytes_max: 1024 };
        let bytes = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n").into_bytes();
        let mut fields = Vec::new();
        let whole = WholeRequest::read(&bytes, &mut fields, &limits).expect("a good head");
        whole.into_head(bytes.clone(), fields)
    }

    #[test]
    fn cookies_are_found_by_their_whole_names() {
        for (fields, value) in [
            ("Cookie: sid=1\r\n", Some("1")),
            ("cookie: a=2; sid=1;b=3\r\n", Some("1")),
            ("Cookie: asid=2; sid2=3\r\nCookie: sid=1; sid=4\r\n", Some("1")),
            ("Cookie: sid=\r\n", Some("")),
            ("Cookie: SID=1; sid\r\nX: sid=1\r\n", None),
            ("", None),
        ] {
            assert_eq!(cookie(&head(fields), b"sid"), value.map(str::as_bytes), "{fields}");
        }
    }

    #[test]
    fn a_key_is_the_same_everywhere_and_for_ever() {
        let hash = |secret: Option<&str>| {
            let secret = secret.map(|secret| Secret::from(secret.to_owned()));
            Affinity::new(HashKey::Address, secret.as_ref()).hash(b"42")
        };
        assert_eq!(hash(None), 0xb17d_c261_8f65_2941);
        assert_eq!(hash(Some("a secret of ours")), hash(Some("a secret of ours")));
        assert_ne!(hash(Some("a secret of ours")), hash(Some("another secret..")));
        assert_ne!(hash(Some("a secret of ours")), hash(None));
    }
}
