//! Tokens in the query, for clients that cannot send `Authorization`: browsers' `EventSource` and `WebSocket` (RFC 6750
//! §2.3). A parameter is cut out of the head before anything else reads the query, and its bytes are overwritten once it
//! is checked: what is not there, nobody forwards or logs.

use crate::{
    exchange::{Code, Reject},
    proto::head::{Known, RequestHead, ResponseHead, Span},
};

/// Takes the parameter of this name out of the query. What it held lies at the span, unescaped, and nowhere else; empty
/// where it held nothing.
///
/// Names are compared without their escapes, as whoever reads the query after us compares them.
pub(super) fn take(head: &mut RequestHead, name: &str) -> Result<Option<Span>, Reject> {
    let Some(query) = head.query else { return Ok(None) };
    let Some(text) = head.bytes.get_mut(query.start as usize..query.end as usize) else { return Ok(None) };
    let Some(Parameter { start, value, end }) = find(text, name)? else { return Ok(None) };
    // The sign behind it goes too, or the one before it where it is the last.
    let (cut_start, cut_end) = if end < text.len() { (start, end + 1) } else { (start.saturating_sub(1), end) };
    let is_all = start == 0 && end == text.len();
    let value = text.len() - (cut_end - value)..text.len() - (cut_end - end);
    text[cut_start..].rotate_left(cut_end - cut_start);
    let kept = offset(text.len() - (cut_end - cut_start));
    let length = unescape(&mut text[value.clone()]);
    head.query = (!is_all).then_some(Span { start: query.start, end: query.start + kept });
    head.target.end = head.query.map_or(query.start - 1, |query| query.end);
    let start = query.start + offset(value.start);
    Ok(Some(Span { start, end: start + offset(length) }))
}

/// Makes a token that was taken out unreadable.
pub(super) fn wipe(head: &mut RequestHead, token: Span) {
    if let Some(bytes) = head.bytes.get_mut(token.start as usize..token.end as usize) {
        bytes.fill(b'-');
    }
}

/// What an answer to such a request says besides: no cache keeps it for others (RFC 6750 §2.3), and no page sends the URL
/// on in `Referer`. What the service says of either counts.
pub(super) fn protect(answer: &mut ResponseHead) {
    let mut caching =
        answer.fields.iter().filter(|field| answer.text(field.name).eq_ignore_ascii_case(b"cache-control"));
    let is_private = caching.any(|field| {
        let mut directives = answer.text(field.value).split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        directives.any(|word| word.eq_ignore_ascii_case(b"private") || word.eq_ignore_ascii_case(b"no-store"))
    });
    if !is_private {
        answer.push(Known::Other, b"Cache-Control", b"private");
    }
    if answer.value_of(b"referrer-policy").is_none() {
        answer.push(Known::Other, b"Referrer-Policy", b"strict-origin");
    }
}

/// Where a parameter begins, its value begins, and both end.
#[derive(Debug, PartialEq, Eq)]
struct Parameter {
    start: usize,
    value: usize,
    end: usize,
}

/// The one parameter of this name.
fn find(query: &[u8], name: &str) -> Result<Option<Parameter>, Reject> {
    let (mut found, mut start) = (None, 0);
    for part in query.split(|byte| *byte == b'&') {
        let end = start + part.len();
        let name_length = memchr::memchr(b'=', part).unwrap_or(part.len());
        if unescaped(&part[..name_length]).eq(name.bytes()) {
            let value = end.min(start + name_length + 1);
            if found.replace(Parameter { start, value, end }).is_some() {
                return Err(Reject::because(Code::BadRequest, "the query has more than one token"));
            }
        }
        start = end + 1;
    }
    Ok(found)
}

/// The first byte of a text, its escape (RFC 3986 §2.1) read, and how long it was written; what is no escape stands as it is.
fn first(text: &[u8]) -> Option<(u8, usize)> {
    if let [b'%', high, low, ..] = text
        && let Some((high, low)) = char::from(*high).to_digit(16).zip(char::from(*low).to_digit(16))
    {
        return Some((u8::try_from(16 * high + low).unwrap_or_default(), 3));
    }
    text.first().map(|byte| (*byte, 1))
}

fn unescaped(mut text: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (byte, length) = first(text)?;
        text = &text[length..];
        Some(byte)
    })
}

/// Reads the escapes of a text in its place; returns how long it is now. What is left over is overwritten.
fn unescape(text: &mut [u8]) -> usize {
    let (mut read, mut written) = (0, 0);
    while let Some((byte, length)) = first(&text[read..]) {
        text[written] = byte;
        (read, written) = (read + length, written + 1);
    }
    text[written..].fill(b'-');
    written
}

/// Heads are bounded far below 4 GiB.
fn offset(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::buffers;

    /// A head with this target, as it is parsed.
    fn head(target: &str) -> RequestHead {
        let mut head = RequestHead::unknown();
        head.append(&[b"GET "]);
        head.target = head.append(&[target.as_bytes()]);
        head.append(&[b" HTTP/1.1\r\n"]);
        let question = target.find('?').expect("a query");
        head.path = Span { start: head.target.start, end: head.target.start + offset(question) };
        head.query = Some(Span { start: head.path.end + 1, end: head.target.end });
        head
    }

    /// What is left of a target, and the token; both are where they should be, and nothing is anywhere else.
    fn taken(target: &str) -> Option<(String, String)> {
        let mut head = head(target);
        let text = |head: &RequestHead, span| String::from_utf8_lossy(head.text(span)).into_owned();
        let Some(token) = take(&mut head, "access_token").expect("one at most") else {
            assert_eq!(text(&head, head.target), target, "it is left alone");
            return None;
        };
        let (left, token_text) = (text(&head, head.target), text(&head, token));
        let query = head.query.map(|query| text(&head, query));
        assert_eq!(left.split_once('?').map(|(_, query)| query.to_owned()), query);
        wipe(&mut head, token);
        if token_text.len() > 3 {
            let bytes = String::from_utf8_lossy(&head.bytes);
            assert!(!bytes.contains(&token_text), "{bytes}");
        }
        Some((left, token_text))
    }

    #[test]
    fn the_parameter_goes_and_the_others_stay_as_they_are() {
        for (target, left, token) in [
            ("/x?access_token=a.b.c", "/x", "a.b.c"),
            ("/x?access_token=a.b.c&q=%41+%zz", "/x?q=%41+%zz", "a.b.c"),
            ("/x?q=%41+%zz&access_token=a.b.c", "/x?q=%41+%zz", "a.b.c"),
            ("/x?a=1&access_token=a.b.c&b=2&&c", "/x?a=1&b=2&&c", "a.b.c"),
            ("/x?&access_token=a.b.c", "/x?", "a.b.c"),
            ("/x?access_token=a.b.c&", "/x?", "a.b.c"),
            ("/x?&access_token=a.b.c&", "/x?&", "a.b.c"),
            ("/x?access_token=", "/x", ""),
            ("/x?access_token", "/x", ""),
            ("/x?a&access_token&b", "/x?a&b", ""),
            ("/x?access_token=a=b=&c=d", "/x?c=d", "a=b="),
            ("/x?access%5ftoken=a%2Eb%2ec&c=d", "/x?c=d", "a.b.c"),
            ("/x?%61ccess_token=a%2&c=d", "/x?c=d", "a%2"),
            ("/x?access_token=%2525%zz%", "/x", "%25%zz%"),
            ("http://a/x?access_token=a.b.c&q", "http://a/x?q", "a.b.c"),
        ] {
            assert_eq!(taken(target), Some((left.to_owned(), token.to_owned())), "{target}");
        }
        for target in [
            "/x?",
            "/x?a=1",
            "/x?access_token2=a",
            "/x?xaccess_token=a",
            "/x?Access_token=a",
            "/x?a=1;access_token=b",
            "/x?q=access_token=a",
        ] {
            assert_eq!(taken(target), None, "{target}");
        }
    }

    #[test]
    fn two_of_them_are_refused_however_they_are_written() {
        for target in ["/x?access_token=a&access_token=a", "/x?access_token&b&access%5Ftoken=a"] {
            let refusal = take(&mut head(target), "access_token").expect_err("two");
            assert_eq!(refusal.code, Code::BadRequest, "{target}");
        }
    }

    #[test]
    fn answers_are_kept_from_caches_and_their_urls_from_referers() {
        let fields = |own: &[(&str, &str)]| {
            let mut answer = ResponseHead::new(200, buffers::take(), Vec::new());
            for (name, value) in own {
                answer.push(Known::Other, name.as_bytes(), value.as_bytes());
            }
            protect(&mut answer);
            let text = |span| String::from_utf8_lossy(answer.text(span)).into_owned();
            let added = &answer.fields[own.len()..];
            added.iter().map(|field| format!("{}: {}", text(field.name), text(field.value))).collect::<Vec<_>>()
        };
        let [cache, referrer] = ["Cache-Control: private", "Referrer-Policy: strict-origin"].map(str::to_owned);
        assert_eq!(fields(&[]), [cache.clone(), referrer.clone()]);
        assert_eq!(fields(&[("cache-control", "public, max-age=60")]), [cache.clone(), referrer.clone()]);
        assert_eq!(fields(&[("Cache-Control", "max-age=0"), ("Cache-Control", "x, No-Store")]), [referrer]);
        assert_eq!(fields(&[("referrer-policy", "no-referrer")]), [cache]);
    }
}
