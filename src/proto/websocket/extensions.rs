//! The offers of permessage-deflate (RFC 7692 §7), among the extensions that a client asks for.
//!
//! A list that does not follow the grammar fails the handshake (RFC 6455 §9.1). An offer whose parameters are unknown,
//! doubled, out of range or cannot be kept is declined, and the next one is looked at.

use super::handshake::HandshakeError;
use crate::proto::http1::bytes::{TOKEN, is, prefix_length, trim};

/// Offers that are looked at. Browsers make one, libraries up to four.
const OFFERS_MAX: usize = 16;

/// An offer of permessage-deflate that can be taken, without context takeover on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateOffer {
    /// The window that the server's messages may need, as a power of two: 9 to 15. The client may ask for less than 15.
    pub server_window_bits: u8,
}

impl DeflateOffer {
    /// What the server answers when it takes the offer.
    pub fn answer(self) -> String {
        let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        match self.server_window_bits {
            15 => answer.to_owned(),
            bits => format!("{answer}; server_max_window_bits={bits}"),
        }
    }
}

/// The first offer that can be taken.
pub(super) fn deflate_offer<'h>(
    values: impl Iterator<Item = &'h [u8]>,
) -> Result<Option<DeflateOffer>, HandshakeError> {
    let mut taken = None;
    let mut offers: usize = 0;
    for value in values {
        let mut list = Cursor::new(value);
        while list.has_more() {
            offers = offers.saturating_add(1);
            let offer = list.extension().filter(|_| offers <= OFFERS_MAX).ok_or(HandshakeError::Extensions)?;
            taken = taken.or(offer);
            if !list.ends_element() {
                return Err(HandshakeError::Extensions);
            }
        }
    }
    Ok(taken)
}

/// What is left of a field's value.
pub(super) struct Cursor<'h> {
    rest: &'h [u8],
}

/// What one parameter asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameter {
    ServerNoContextTakeover,
    ClientNoContextTakeover,
    ServerWindow(u8),
    ClientWindow,
}

impl<'h> Cursor<'h> {
    pub(super) const fn new(value: &'h [u8]) -> Self {
        Self { rest: value }
    }

    /// Whether another element of a list comes; empty ones are passed over (RFC 9110 §5.6.1.2).
    pub(super) fn has_more(&mut self) -> bool {
        while self.skip(b',') {}
        !self.rest.is_empty()
    }

    /// Whether the element that was read is all that stands before the next comma or the end.
    pub(super) fn ends_element(&mut self) -> bool {
        self.skip(b',') || self.rest.is_empty()
    }

    /// One extension with its parameters: `None` when it is malformed, `Some(None)` when it is another one, or an offer
    /// that is declined.
    #[expect(clippy::option_option, reason = "the outer one is the grammar, the inner one the answer")]
    fn extension(&mut self) -> Option<Option<DeflateOffer>> {
        let name = self.token()?;
        let mut is_taken = name.eq_ignore_ascii_case(b"permessage-deflate");
        let mut seen: [Option<Parameter>; 4] = [None; 4];
        let mut server_window_bits = 15;
        while self.skip(b';') {
            let name = self.token()?;
            let mut unquoted = [0; VALUE_MAX];
            let value = match self.rest.split_first() {
                Some((b'=', rest)) => {
                    self.rest = rest;
                    Some(self.value(&mut unquoted)?)
                }
                _ => None,
            };
            let parameter = parameter(name, value);
            // RFC 7692 §7.1: unknown, invalid, or doubled.
            let is_doubled = |one: Parameter| {
                seen.iter().flatten().any(|other| std::mem::discriminant(other) == std::mem::discriminant(&one))
            };
            match parameter {
                Some(one) if !is_doubled(one) => {
                    if let Parameter::ServerWindow(bits) = one {
                        server_window_bits = bits;
                        // zlib has no raw window of 256 bytes to write with.
                        is_taken &= bits > 8;
                    }
                    if let Some(place) = seen.iter_mut().find(|place| place.is_none()) {
                        *place = Some(one);
                    }
                }
                _ => is_taken = false,
            }
        }
        Some(is_taken.then_some(DeflateOffer { server_window_bits }))
    }

    /// Takes this sign, and the white space around it, if it is next.
    fn skip(&mut self, sign: u8) -> bool {
        self.rest = trim(self.rest);
        let Some((first, rest)) = self.rest.split_first() else { return false };
        if *first != sign {
            return false;
        }
        self.rest = trim(rest);
        true
    }

    pub(super) fn token(&mut self) -> Option<&'h [u8]> {
        let (token, rest) = self.rest.split_at_checked(prefix_length(self.rest, TOKEN))?;
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or a quoted string that is a token without its quotes (RFC 6455 §9.1).
    fn value<'u>(&mut self, unquoted: &'u mut [u8; VALUE_MAX]) -> Option<&'u [u8]>
    where
        'h: 'u,
    {
        if self.rest.first() != Some(&b'"') {
            return self.token();
        }
        let mut len: usize = 0;
        let mut bytes = self.rest.get(1..)?.iter();
        loop {
            let byte = match *bytes.next()? {
                b'"' => break,
                b'\\' => *bytes.next()?,
                byte => byte,
            };
            if !is(byte, TOKEN) {
                return None;
            }
            // What is longer than any value with a meaning has none; it is enough to keep that it is.
            if let Some(place) = unquoted.get_mut(len) {
                *place = byte;
                len = len.saturating_add(1);
            }
        }
        self.rest = bytes.as_slice();
        (len > 0).then(|| unquoted.get(..len)).flatten()
    }
}

/// Bytes of a quoted value that are looked at.
const VALUE_MAX: usize = 8;

fn parameter(name: &[u8], value: Option<&[u8]>) -> Option<Parameter> {
    let is_named = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
    match value {
        None if is_named(b"server_no_context_takeover") => Some(Parameter::ServerNoContextTakeover),
        None if is_named(b"client_no_context_takeover") => Some(Parameter::ClientNoContextTakeover),
        None if is_named(b"client_max_window_bits") => Some(Parameter::ClientWindow),
        Some(bits) if is_named(b"client_max_window_bits") => window_bits(bits).map(|_| Parameter::ClientWindow),
        Some(bits) if is_named(b"server_max_window_bits") => window_bits(bits).map(Parameter::ServerWindow),
        _ => None,
    }
}

/// RFC 7692 §7.1.2: 8 to 15, without leading zeros.
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] | [b'1', digit @ b'0'..=b'5'] => {
            let tens = if value.len() == 2 { 10 } else { 0 };
            Some(digit.saturating_sub(b'0').saturating_add(tens))
        }
        _ => None,
    }
}
