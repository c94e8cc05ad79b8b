//! What names may look like: of what the user names, and of what stands in header fields and tokens.

/// How the names of upstreams, limits and roles look.
pub(super) const NAME_FORM: &str = "a name is a letter, then up to 63 of a-z, 0-9, - and _";

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

/// Whether it is up to 64 of `A-Za-z0-9._-`: the name of a route, or of a parameter.
pub(super) fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(is_plain)
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether it has printable ASCII characters only.
pub(super) fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Whether an issuer may call a role so: it stands in a header field, alone and in a list.
pub fn is_role(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && is_printable(name)
        && !name.contains(',')
        && !name.starts_with(' ')
        && !name.ends_with(' ')
}

/// How a permission looks.
pub const PERMISSION_FORM: &str = "a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like \"events:write\"";

/// Whether it is a permission that a route may ask for.
pub(super) fn is_one_permission(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    (1..=128).contains(&name.len()) && name.bytes().all(is_plain)
}

/// Whether it is a permission that can be granted: a name, all names that begin so (`events:*`), or all (`*`). What
/// services may do in rooms may be for those of a pattern (`hub:publish:public.*`).
pub fn is_permission(text: &str) -> bool {
    let stem = match text.strip_suffix(".*") {
        Some(stem) if text.starts_with("hub:publish:") => stem,
        _ => text.strip_suffix(":*").unwrap_or(text),
    };
    text == "*" || is_one_permission(stem)
}
