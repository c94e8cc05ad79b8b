//! The flat head of a request or an answer: one buffer of bytes and a list of offsets into it.
//!
//! HTTP/1.1 hands over the buffer that it read the head into, HTTP/2 fills one of its own; every floor above edits and
//! reads the same type. An edit appends bytes and moves offsets; it never shifts what is there.

pub use super::known::Known;

/// A stretch of a head's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes themselves; empty when the span does not lie within `bytes`.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Where it lies; nowhere when it does not lie within `bytes`.
    #[inline]
    fn range(self, bytes: &[u8]) -> std::ops::Range<usize> {
        let range = self.start as usize..self.end as usize;
        if bytes.get(range.clone()).is_some() { range } else { 0..0 }
    }

    /// Whether it spans nothing.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name as it came.
    pub name: Span,
    /// The value, without the white space around it.
    pub value: Span,
    /// Which field it is, if the gateway cares.
    pub known: Known,
}

/// Version of the message as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the version of that name")]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// A request method. Names are case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Connect,
    Trace,
    /// Any other token; its text is `RequestHead::method_text`.
    Other,
}

impl Method {
    /// The method of that name.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"CONNECT" => Self::Connect,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Whether repeating it has the effect of doing it once (RFC 9110 §9.2.2).
    pub const fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// How the length of a message's body is known (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// Exactly so many bytes.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// Until the connection closes; answers only.
    UntilClose,
}

/// The form of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`
    Absolute,
    /// `host:port`, for CONNECT only
    Authority,
    /// `*`, for OPTIONS only
    Asterisk,
}

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// What all spans point into.
    pub bytes: Vec<u8>,
    /// The field lines in their order.
    pub fields: Vec<Field>,
    /// The method.
    pub method: Method,
    /// The method as written.
    pub method_text: Span,
    /// The request target as written.
    pub target: Span,
    /// Its form.
    pub form: TargetForm,
    /// The path within the target, up to `?`; `/` is understood where it is empty.
    pub path: Span,
    /// What follows `?`; `None` when there is no `?`.
    pub query: Option<Span>,
    /// Host and port that the request is for: `Host`, or the authority of an absolute target; empty for an HTTP/1.0
    /// request without either.
    pub authority: Span,
    /// The version as received.
    pub version: Version,
    /// How its body is framed.
    pub framing: Framing,
    /// Whether the client wants the connection kept after the answer.
    pub keep_alive: bool,
    /// Whether it waits for `100 Continue`.
    pub expect_continue: bool,
    /// Whether it asks for another protocol: `Connection: upgrade` with an `Upgrade` field.
    pub upgrade: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub struct ResponseHead {
    /// What all spans point into.
    pub bytes: Vec<u8>,
    /// The field lines in their order.
    pub fields: Vec<Field>,
    /// The status code, 100 to 999.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Span,
    /// The version as received.
    pub version: Version,
    /// How its body is framed.
    pub framing: Framing,
    /// White space stood before the colon of a field, which does not go on (RFC 9112 §5.1).
    pub mended: bool,
    /// Whether the upstream keeps the connection after this answer.
    pub keep_alive: bool,
    /// Whether it has no body by rule, and yet may be followed by one: it tells of one, or does not say that there is none.
    pub may_have_body: bool,
    /// The `timeout` of `Keep-Alive`, in seconds.
    pub keep_alive_timeout_s: Option<u32>,
}

/// What both heads can do with their fields.
macro_rules! fields {
    ($head:ty) => {
        impl $head {
            /// The bytes of a span.
            #[inline]
            pub fn text(&self, span: Span) -> &[u8] {
                span.of(&self.bytes)
            }

            /// The value of the first field of this kind.
            #[inline]
            pub fn value(&self, known: Known) -> Option<&[u8]> {
                self.fields.iter().find(|field| field.known == known).map(|field| field.value.of(&self.bytes))
            }

            /// The value of the first field of this name, in any case.
            pub fn value_of(&self, name: &[u8]) -> Option<&[u8]> {
                let found = self.fields.iter().find(|field| field.name.of(&self.bytes).eq_ignore_ascii_case(name))?;
                Some(found.value.of(&self.bytes))
            }

            /// Appends bytes that a span can point to.
            #[inline]
            pub fn append(&mut self, parts: &[&[u8]]) -> Span {
                let start = offset(self.bytes.len());
                for part in parts {
                    self.bytes.extend_from_slice(part);
                }
                Span { start, end: offset(self.bytes.len()) }
            }

            /// Appends a field line. Name and value must be legal: they are written as they are.
            ///
            /// It is written out whole, so that lines that follow each other are encoded in one piece.
            // Always: most names are constants, which then are stores instead of copies.
            #[inline(always)]
            pub fn push(&mut self, known: Known, name: &[u8], value: &[u8]) {
                let start = offset(self.bytes.len());
                self.bytes.extend_from_slice(name);
                self.bytes.extend_from_slice(b": ");
                self.bytes.extend_from_slice(value);
                let end = offset(self.bytes.len());
                self.bytes.extend_from_slice(b"\r\n");
                let name = Span { start, end: start.saturating_add(offset(name.len())) };
                let value = Span { start: end.saturating_sub(offset(value.len())), end };
                self.fields.push(Field { name, value, known });
            }

            /// Appends a field line whose value stands elsewhere in the head.
            pub fn push_copy(&mut self, known: Known, name: &[u8], value: Span) {
                let name = self.append(&[name, b": "]);
                let start = offset(self.bytes.len());
                self.bytes.extend_from_within(value.range(&self.bytes));
                let end = offset(self.bytes.len());
                self.append(&[b"\r\n"]);
                let name = Span { start: name.start, end: name.end.saturating_sub(2) };
                self.fields.push(Field { name, value: Span { start, end }, known });
            }

            /// Appends a member to the last list of this kind, or begins one. Empty members at the list's end stand for
            /// nothing (RFC 9110 §5.6.1), and go.
            pub fn push_member(&mut self, known: Known, name: &[u8], member: &[u8]) {
                let Some(place) = self.fields.iter().rposition(|field| field.known == known) else {
                    self.push(known, name, member);
                    return;
                };
                let Some(list) = self.fields.get(place).map(|field| field.value.range(&self.bytes)) else { return };
                let is_of_member = |byte: &u8| !matches!(byte, b',' | b' ' | b'\t');
                let listed = self.bytes.get(list.clone()).and_then(|list| list.iter().rposition(is_of_member));
                let start = offset(self.bytes.len());
                if let Some(last) = listed {
                    self.bytes.extend_from_within(list.start..list.start.saturating_add(last).saturating_add(1));
                    self.append(&[b", "]);
                }
                let end = self.append(&[member]).end;
                if let Some(field) = self.fields.get_mut(place) {
                    field.value = Span { start, end };
                }
            }

            /// Drops every field of these kinds.
            #[inline]
            pub fn remove(&mut self, unwanted: impl Fn(Known) -> bool) {
                self.fields.retain(|field| !unwanted(field.known));
            }

            /// Drops every field of this name, in any case and with any sign for `-`: programs that take fields from
            /// their environment (CGI and its heirs) cannot tell these apart.
            pub fn remove_named(&mut self, name: &[u8]) {
                let bytes = &self.bytes;
                self.fields.retain(|field| !reads_as(field.name.of(bytes), name));
            }
        }
    };
}

/// Whether a field's name is this one for somebody who takes any sign that is no letter or digit for `-`.
fn reads_as(name: &[u8], wanted: &[u8]) -> bool {
    let is_same = |(byte, wanted): (&u8, &u8)| {
        byte.eq_ignore_ascii_case(wanted) || !(byte.is_ascii_alphanumeric() || wanted.is_ascii_alphanumeric())
    };
    name.len() == wanted.len() && name.iter().zip(wanted).all(is_same)
}

fields!(RequestHead);
fields!(ResponseHead);

impl RequestHead {
    /// Keeps method, authority and path, and the first field of one kind, in memory of just that size: for whoever
    /// remembers a request for long. What it had borrowed goes to `give`.
    pub fn keep_only(&mut self, known: Known, give: impl FnOnce(Vec<u8>, Vec<Field>)) {
        let field = self.fields.iter().find(|field| field.known == known).copied();
        let kept = [self.method_text, self.authority, self.path, field.map_or(Span::default(), |field| field.value)];
        let mut bytes = Vec::with_capacity(kept.iter().map(|span| span.of(&self.bytes).len()).sum());
        let [method_text, authority, path, value] = kept.map(|span| {
            let start = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(span.of(&self.bytes));
            Span { start, end: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
        });
        let fields: Vec<Field> = field.iter().map(|_| Field { name: Span::default(), value, known }).collect();
        let borrowed = (std::mem::replace(&mut self.bytes, bytes), std::mem::replace(&mut self.fields, fields));
        (self.method_text, self.authority, self.path, self.query) = (method_text, authority, path, None);
        give(borrowed.0, borrowed.1);
    }

    /// The same head once more, in memory that is empty.
    #[must_use]
    pub fn copy(&self, mut bytes: Vec<u8>, mut fields: Vec<Field>) -> Self {
        bytes.extend_from_slice(&self.bytes);
        fields.extend_from_slice(&self.fields);
        Self { bytes, fields, ..*self }
    }

    /// Stands for a head that was refused: nothing of it is known.
    pub fn unknown() -> Self {
        Self {
            bytes: Vec::new(),
            fields: Vec::new(),
            method: Method::Other,
            method_text: Span::default(),
            target: Span::default(),
            form: TargetForm::Origin,
            path: Span::default(),
            query: None,
            authority: Span::default(),
            version: Version::Http11,
            framing: Framing::None,
            keep_alive: false,
            expect_continue: false,
            upgrade: false,
        }
    }
}

/// Heads are bounded far below 4 GiB; past it offsets saturate and spans come out empty.
#[inline]
fn offset(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl ResponseHead {
    /// An answer of the gateway's own, with no fields and no body yet, built in a lent buffer.
    pub fn new(status: u16, mut bytes: Vec<u8>, mut fields: Vec<Field>) -> Self {
        bytes.clear();
        fields.clear();
        Self {
            bytes,
            fields,
            status,
            reason: Span::default(),
            version: Version::Http11,
            framing: Framing::None,
            mended: false,
            keep_alive: true,
            may_have_body: false,
            keep_alive_timeout_s: None,
        }
    }

    /// Whether another answer to the same request follows (RFC 9110 §15.2). After a 101 there is none.
    #[inline]
    pub const fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }
}
