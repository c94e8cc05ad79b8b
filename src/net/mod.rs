//! The only floor that moves bytes: each file drives one pure core over a stream.
//!
//! It knows neither routes nor upstreams: whoever answers requests is given to it as a [`Service`].

mod body;
mod connections;
mod http1_server;
mod http_client;
mod inbound;
mod io;
mod outbound;
#[cfg(test)]
mod pipelining_tests;
mod proxied;
mod reader;
#[cfg(test)]
mod records;
mod stream;
mod tls;
mod tls_connect;
#[cfg(test)]
mod tls_connect_tests;
#[cfg(any(test, fuzzing))]
mod tls_fuzz;
mod tls_handshake;
#[cfg(test)]
mod tls_tests;
mod tunnel;
mod websocket;
mod writer;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZero,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

pub use body::{BodyFailure, OwnedBody, RequestBody};
pub use connections::{Connections, End, Ender, Slot};
pub use http_client::{AnswerLimits, ClientConnection, ClientError, recycle};
pub use http1_server::serve_connection;
pub use inbound::HttpLimits;
pub use io::Io;
pub use proxied::read_proxy_header;
pub use stream::{Shutdown, Stream};
pub use tls_connect::{SERVICE_HANDSHAKES_PER_TURN, TlsConnectError, TlsTo, tls_fault};
#[cfg(any(test, fuzzing))]
pub use tls_fuzz::fuzz_handshake;
pub use tls_handshake::{Agreed, CROWDED, HANDSHAKES_PER_TURN, HandshakeFailed, PLAIN_HTTP, accept_tls};
pub use tunnel::{Goodbye, Moved, Side, TunnelEnd, run as run_tunnel};
pub use websocket::{
    Dialogue, Goodbye as SocketGoodbye, Message, Outbox, SocketEnd, Timing, run_websocket, with_inflated,
};
pub use writer::{Chunks, Progress, Writer};

use crate::{
    proto::{
        head::{RequestHead, ResponseHead},
        http1::RequestError,
    },
    shard::{Instant, Pipe},
    telemetry::record::write_address,
};

/// Who is at the other end of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address as the socket has it, or as a balancer's PROXY header tells it.
    pub address: SocketAddr,
    /// Whether the address is of who speaks, so that its word about others may count: a balancer that passes a connection on,
    /// and does not say whose, has not spoken itself.
    pub may_vouch: bool,
    /// What its connection speaks.
    pub scheme: Scheme,
    /// The IP address as text, written once per connection: every proxied request carries it.
    text: ([u8; IP_TEXT_MAX], u8),
}

/// What a client's connection speaks, as URIs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP in clear text.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// As a URI, and `X-Forwarded-Proto`, has it.
    pub fn text(self) -> &'static [u8] {
        match self {
            Self::Http => b"http",
            Self::Https => b"https",
        }
    }
}

/// The network that a client has for itself, as a number: an IPv4 address, or a /64 of IPv6, which is what one household is
/// given. What is counted by address is counted by this.
pub fn network(address: IpAddr) -> NonZero<u64> {
    let number = match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()) | 1 << 32,
        // Above all of IPv4; the top bits of a global address are 001.
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64 | 1 << 63,
    };
    NonZero::new(number).unwrap_or(NonZero::<u64>::MIN)
}

/// An IPv6 address with an IPv4 address in it, in full.
const IP_TEXT_MAX: usize = 45;

impl Peer {
    /// The peer at this address, over a connection that speaks this.
    pub fn new(address: SocketAddr, scheme: Scheme) -> Self {
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        let ip = address.ip().to_canonical();
        let mut text = [0; IP_TEXT_MAX];
        let mut rest = &mut text[..];
        write_address(&mut rest, ip);
        let left = rest.len();
        let length = u8::try_from(IP_TEXT_MAX - left).unwrap_or(0);
        let address = SocketAddr::new(ip, address.port());
        Self { address, may_vouch: true, scheme, text: (text, length) }
    }

    /// Somebody whose connection the balancer at this address passes on, without saying whose it is.
    pub fn unknown_behind(balancer: SocketAddr, scheme: Scheme) -> Self {
        Self { may_vouch: false, ..Self::new(balancer, scheme) }
    }

    /// The IP address as text.
    pub fn text(&self) -> &[u8] {
        &self.text.0[..usize::from(self.text.1)]
    }
}

/// An answer whose body is on the way.
#[derive(Debug)]
pub struct Response<R, B> {
    /// Its head. `framing` says how the body's length is known; the writer chooses the coding.
    pub head: ResponseHead,
    /// Its body.
    pub body: B,
    /// The request's body, which may still be on its way too, and the exchange's timer.
    pub request: R,
}

/// Whoever answers requests. One per shard.
pub trait Service: 'static {
    /// The bodies of its answers.
    type Body: AnswerBody;
    /// What it keeps of an exchange until its last byte is sent.
    type Exchange: Finish;

    /// The limits in force.
    fn limits(&self) -> Rc<HttpLimits>;

    /// A request's head is complete; its first byte was seen at `began`. `slot` is its connection's.
    fn begin(&self, peer: &Peer, slot: &Slot, head: RequestHead, began: Instant) -> Self::Exchange;

    /// Answers a request. `None` says that the client has left: its connection is closed. Dropping the future abandons the
    /// exchange.
    fn serve<R: RequestBody>(
        &self,
        exchange: &mut Self::Exchange,
        body: R,
    ) -> impl Future<Output = Option<Response<R, Self::Body>>>;

    /// Answers a request whose head is refused before it is one. The connection closes after it.
    fn refuse<R: RequestBody>(
        &self,
        peer: &Peer,
        mistake: Mistake,
        body: R,
        began: Instant,
    ) -> (Response<R, Self::Body>, Self::Exchange);

    /// The protocol is switched: the exchange is over, and what it has become takes the connection. The client has been told
    /// so, unless the body [takes the head](AnswerBody::takes_head), which is then given with it. `None` if there is nobody at
    /// the other end after all.
    fn switch(
        &self,
        exchange: Self::Exchange,
        body: Self::Body,
        head: Vec<u8>,
        request_bytes: u64,
    ) -> Option<Box<dyn Upgrade>>;
}

/// Takes a client's connection over once its protocol has been switched (RFC 9110 §7.8).
pub trait Upgrade {
    /// Serves the connection until it ends, in a task of its own: what served HTTP on it is gone.
    fn run<'a>(self: Box<Self>, client: &'a Rc<Io>, first: Vec<u8>, slot: &'a Slot) -> Serving<'a>;
}

/// A connection being served.
pub type Serving<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A connection that speaks HTTP no more.
pub struct Switched {
    io: Rc<Io>,
    /// What came behind the request.
    first: Vec<u8>,
    upgrade: Box<dyn Upgrade>,
}

impl Switched {
    /// Serves it by its new protocol until it ends, in the place that it has.
    ///
    /// No `async fn`: that would keep all of this twice, for as long as an idle socket lasts.
    pub fn serve(self, place: impl AsRef<Slot>) -> impl Future<Output = ()> {
        let Self { io, first, upgrade } = self;
        async move { upgrade.run(&io, first, place.as_ref()).await }
    }
}

/// Why a head never became a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The codec refuses it.
    Head(RequestError),
    /// It did not come in time.
    TimedOut,
}

/// What an exchange does at its end: count and log, once; nothing is done with it afterwards. It stays where it is for that: it
/// is large. Dropping it instead means that it was abandoned.
pub trait Finish {
    /// The connection ends under it; so much was sent until then.
    fn give_up(&mut self, so_far: Sent);

    /// The answer was sent, or cut off. Returns the time that it takes down.
    fn finish(&mut self, sent: Sent) -> Instant;
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of content written, without framing.
    pub body_bytes: u64,
    /// Bytes of the request's content that were taken.
    pub request_bytes: u64,
    /// Why it ended early, if it did.
    pub cut: Option<Cut>,
}

/// Why an answer ended before it was complete. The client sees its connection break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The client closed or reset its connection.
    ClientGone,
    /// The client did not read for as long as `http.stream_idle_timeout`.
    ClientStalled,
    /// The request's body failed while the answer was on its way.
    Upload,
    /// The backend's connection broke.
    UpstreamBroken,
    /// The backend's body was malformed.
    UpstreamMalformed,
    /// The backend sent nothing for as long as the stream may be idle.
    UpstreamStalled,
    /// The request's own deadline passed before the body was complete.
    DeadlineMissed,
}

/// The body of an answer: chunks that are looked at where they are, so that a stream is never copied whole.
pub trait AnswerBody {
    /// Makes a chunk available: `true` when there is one, `false` when the body is complete. The request's body goes on
    /// meanwhile, and its timer is this wait's.
    fn poll_fill(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Result<bool, Cut>>;

    /// What `poll_fill` made available, or what is left of it.
    fn chunk(&self) -> &[u8];

    /// Drops the first bytes of the chunk.
    fn consume(&mut self, bytes: usize);

    /// As [`Chunks::unseen`].
    fn unseen(&self) -> u64 {
        0
    }

    /// As [`Chunks::poll_move`], and otherwise as `poll_fill`.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        request: &mut impl RequestBody,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, Cut>> {
        let _ = (cx, request, pipe);
        Poll::Ready(Ok(0))
    }

    /// Trailer fields, each with its line end; known when the body is complete.
    fn trailers(&self) -> &[u8];

    /// Whether the answer is a switch of protocols that whoever takes the connection over tells the client: in one write with
    /// the first that it says.
    fn takes_head(&self) -> bool {
        false
    }

    /// What goes on while the client does not read: the request's body, and whether the client is still there.
    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Cut>;

    /// How long the client may take nothing of it; none is the connection's own limit.
    fn write_timeout(&self) -> Option<Duration>;

    /// The answer was cut off because of the client: the rest of it is nobody's.
    fn abandon(self);
}
