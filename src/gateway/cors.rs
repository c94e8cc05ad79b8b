//! CORS, as the Fetch standard has it: what browsers of other origins are told.
//!
//! Pure: heads in, fields out. A preflight is answered here and reaches nobody else; every other answer, whoever gives it,
//! gets the fields that let a page of an allowed origin read it. A page of any other origin gets the answer without them,
//! and its browser keeps it from the page.

use crate::{
    config::{self, ORIGIN_BYTES_MAX, OriginPattern},
    proto::head::{Known, Method, RequestHead, ResponseHead, Span},
    shard::buffers,
};

/// What holds on a route: compiled once per configuration.
#[derive(Debug)]
pub(super) struct Policy {
    origins: Vec<OriginPattern>,
    /// Every origin may read, so that the answer depends on none.
    is_for_any: bool,
    methods: AllowedNames,
    headers: AllowedNames,
    exposed: Option<Box<[u8]>>,
    max_age_s: Box<[u8]>,
    credentials: bool,
    private_network: bool,
}

/// Names that are allowed.
#[derive(Debug)]
enum AllowedNames {
    /// Whichever are asked for.
    Any,
    /// These, as a list; `None`: not one.
    These(Option<Box<[u8]>>),
}

/// A method's name, and more than anybody's.
const METHOD_BYTES_MAX: usize = 64;
/// Names of fields that a page may want to send.
const HEADERS_BYTES_MAX: usize = 4096;

impl Policy {
    /// Ready for use; `None` where the gateway leaves CORS to the services.
    pub(super) fn compile(cors: &config::Cors) -> Option<Self> {
        let list = |names: &[String]| (!names.is_empty()).then(|| names.join(", ").into_bytes().into());
        let names = |names: &[String]| match names {
            [star] if star == "*" => AllowedNames::Any,
            names => AllowedNames::These(list(names)),
        };
        (!cors.origins.is_empty()).then(|| Self {
            origins: cors.origins.clone(),
            is_for_any: cors.origins.contains(&OriginPattern::Any) && !cors.credentials,
            methods: names(&cors.methods),
            headers: names(&cors.headers),
            exposed: list(&cors.exposed),
            max_age_s: cors.max_age.as_secs().to_string().into_bytes().into(),
            credentials: cors.credentials,
            private_network: cors.private_network,
        })
    }

    /// Whether pages of this origin may read.
    pub(super) fn allows(&self, origin: &[u8]) -> bool {
        origin.len() <= ORIGIN_BYTES_MAX && self.origins.iter().any(|pattern| pattern.matches(origin))
    }

    /// The answer to a preflight (Fetch, "CORS-preflight fetch"): always 204, so that what is missing in it is what is
    /// not allowed.
    pub(super) fn answer_preflight(&self, request: &RequestHead) -> ResponseHead {
        let mut answer = ResponseHead::new(204, buffers::take(), buffers::take_fields());
        let vary: &[u8] = if self.is_for_any {
            b"Access-Control-Request-Method, Access-Control-Request-Headers"
        } else {
            b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
        };
        answer.push(Known::Vary, b"Vary", vary);
        let origin = origin_of(request).map(|origin| request.text(origin)).filter(|origin| self.allows(origin));
        let method = asked_method(request).filter(|method| !method.is_empty());
        let (Some(origin), Some(method), Some(wanted)) = (origin, method, asked_headers(request)) else {
            return answer;
        };
        self.push_origin(origin, &mut answer);
        let mut allow = |name: &[u8], value: &[u8]| answer.push(Known::AccessControl, name, value);
        match &self.methods {
            AllowedNames::Any => allow(b"Access-Control-Allow-Methods", request.text(method)),
            AllowedNames::These(Some(list)) => allow(b"Access-Control-Allow-Methods", list),
            AllowedNames::These(None) => {}
        }
        match &self.headers {
            // Not a star: `Authorization` is not among what it stands for.
            AllowedNames::Any if !wanted.is_empty() => allow(b"Access-Control-Allow-Headers", wanted),
            AllowedNames::These(Some(list)) => allow(b"Access-Control-Allow-Headers", list),
            AllowedNames::Any | AllowedNames::These(None) => {}
        }
        allow(b"Access-Control-Max-Age", &self.max_age_s);
        if self.private_network && request.value_of(b"Access-Control-Request-Private-Network") == Some(b"true") {
            allow(b"Access-Control-Allow-Private-Network", b"true");
        }
        answer
    }

    /// Makes an answer one that the page behind this origin may read, or may not. What a service said of it goes.
    pub(super) fn complete(&self, origin: Option<&[u8]>, answer: &mut ResponseHead) {
        answer.remove(|known| known == Known::AccessControl);
        if !self.is_for_any && !varies_by_origin(answer) {
            answer.push(Known::Vary, b"Vary", b"Origin");
        }
        let origin = match origin {
            // What is the same for everybody is said to everybody, so that caches need not tell them apart.
            None if self.is_for_any => b"*",
            Some(origin) if self.allows(origin) => origin,
            _ => return,
        };
        self.push_origin(origin, answer);
        if let Some(exposed) = &self.exposed {
            answer.push(Known::AccessControl, b"Access-Control-Expose-Headers", exposed);
        }
    }

    fn push_origin(&self, origin: &[u8], answer: &mut ResponseHead) {
        let origin = if self.is_for_any { b"*" } else { origin };
        answer.push(Known::AccessControl, b"Access-Control-Allow-Origin", origin);
        if self.credentials {
            answer.push(Known::AccessControl, b"Access-Control-Allow-Credentials", b"true");
        }
    }
}

/// Where a request says from which origin it comes; `None` as well when it says so twice.
pub(super) fn origin_of(head: &RequestHead) -> Option<Span> {
    let mut origins = head.fields.iter().filter(|field| field.known == Known::Origin);
    let origin = origins.next()?.value;
    origins.next().is_none().then_some(origin)
}

/// The method that a preflight asks for; `None` when the request is none.
pub(super) fn asked_method(head: &RequestHead) -> Option<Span> {
    if head.method != Method::Options || !head.fields.iter().any(|field| field.known == Known::Origin) {
        return None;
    }
    let mut asked = named(head, b"Access-Control-Request-Method");
    let method = asked.next()?;
    let text = head.text(method);
    let is_plain = (1..=METHOD_BYTES_MAX).contains(&text.len()) && text.iter().all(|byte| is_token_byte(*byte));
    // Still a preflight, of a method that nobody has.
    Some(if is_plain && asked.next().is_none() { method } else { Span::default() })
}

/// The fields that a page wants to send, as the browser lists them; `None` when that is no list of names.
fn asked_headers(head: &RequestHead) -> Option<&[u8]> {
    let mut asked = named(head, b"Access-Control-Request-Headers");
    let Some(list) = asked.next() else { return Some(b"") };
    let list = head.text(list);
    let is_plain =
        list.len() <= HEADERS_BYTES_MAX && list.iter().all(|byte| is_token_byte(*byte) || matches!(byte, b',' | b' '));
    (is_plain && asked.next().is_none()).then_some(list)
}

fn named<'h>(head: &'h RequestHead, name: &'static [u8]) -> impl Iterator<Item = Span> + 'h {
    let fields = head.fields.iter().filter(|field| field.known == Known::AccessControl);
    fields.filter(move |field| head.text(field.name).eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether the answer says already that it depends on the origin, or on anything.
fn varies_by_origin(answer: &ResponseHead) -> bool {
    let vary = answer.fields.iter().filter(|field| field.known == Known::Vary);
    let mut names = vary.flat_map(|field| answer.text(field.value).split(|byte| *byte == b','));
    names.any(|name| matches!(name.trim_ascii(), name if name == b"*" || name.eq_ignore_ascii_case(b"origin")))
}
