//! The `Connection` field: its options, and the fields it names as meant for this connection only.

use super::bytes::trim;
use crate::proto::head::{Field, Known, Span};

/// Options that a head's `Connection` fields may list together; each costs a comparison with every field. Honest heads
/// list one to three.
pub(super) const CONNECTION_OPTIONS_MAX: usize = 32;

/// What the `Connection` fields of a head list, without empty elements: `close` and the like, and names of fields
/// that a proxy must not pass on (RFC 9110 §7.6.1).
pub fn connection_names<'h>(bytes: &'h [u8], fields: &'h [Field]) -> impl Iterator<Item = &'h [u8]> {
    fields
        .iter()
        .filter(|field| field.known == Known::Connection)
        .flat_map(move |field| elements(field.value.of(bytes)))
}

/// Drops every field that the `Connection` fields name, except `Host`, which is never hop-by-hop.
///
/// `Connection` itself stays, for whoever still wants to read it.
pub fn remove_connection_named(bytes: &[u8], fields: &mut Vec<Field>) {
    if !fields.iter().any(|field| field.known == Known::Connection) {
        return;
    }
    let mut names: [&[u8]; CONNECTION_OPTIONS_MAX] = [&[]; CONNECTION_OPTIONS_MAX];
    let mut filled = 0_usize;
    let values = fields.iter().filter(|field| field.known == Known::Connection).map(|field: &Field| field.value);
    for name in values.flat_map(|value: Span| elements(value.of(bytes))) {
        if is_own_option(name) {
            continue;
        }
        let Some(slot) = names.get_mut(filled) else { break }; // the parser lets no more through
        *slot = name;
        filled = filled.saturating_add(1);
    }
    let names = names.get(..filled).unwrap_or_default();
    if names.is_empty() {
        return;
    }
    fields.retain(|field| {
        let name = field.name.of(bytes);
        matches!(field.known, Known::Host | Known::Connection)
            || !names.iter().any(|named| named.eq_ignore_ascii_case(name))
    });
}

/// The elements of a comma-separated list, without the empty ones (RFC 9110 §5.6.1.2).
pub(in crate::proto) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Options that name no field, or one that goes anyhow.
fn is_own_option(name: &[u8]) -> bool {
    match name.len() {
        5 => name.eq_ignore_ascii_case(b"close"),
        7 => name.eq_ignore_ascii_case(b"upgrade"),
        10 => name.eq_ignore_ascii_case(b"keep-alive"),
        _ => false,
    }
}
