//! What keeps a request with one instance: the key of consistent hashing, out of what the client sent.

use std::{hash::Hasher as _, net::IpAddr};

use siphasher::sip::SipHasher13;

use crate::{config::HashKey, exchange::Exchange, proto::head::RequestHead};

/// The key of a request, the same on every shard and instance; `None` if it has none.
pub(super) fn key_of(by: &HashKey, exchange: &Exchange) -> Option<u64> {
    match by {
        HashKey::Address => Some(match exchange.client.to_canonical() {
            IpAddr::V4(v4) => hash(&v4.octets()),
            IpAddr::V6(v6) => hash(&v6.octets()),
        }),
        HashKey::User => exchange.caller.as_ref().map(|caller| hash(caller.sub.as_bytes())),
        HashKey::Header(name) => exchange.head.value_of(name.as_bytes()).map(hash),
        HashKey::Cookie(name) => cookie(&exchange.head, name.as_bytes()).map(hash),
    }
}

/// By name, because the standard library's hash may become another one, and instances of different ages share clients.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(key);
    hasher.finish()
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
        assert_eq!(hash(b"42"), 0xb17d_c261_8f65_2941);
    }
}
