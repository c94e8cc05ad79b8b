//! A backend that does as a test tells it, right or wrong, and tells the test what it received, byte for byte.
//!
//! Each connection has a thread that runs the test's script. What an answer should become of it is the tests' business.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use crate::{
    client::Head,
    harness::{now, until},
};

/// How long a test waits for the backend to see something.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection waits for bytes: longer than any test that holds one.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// The number of the connection that it came over, from 0.
    pub(crate) connection: usize,
    /// Every byte of it, framing included.
    pub(crate) raw: Vec<u8>,
    /// Its head.
    pub(crate) head: Head,
    /// Its content, without framing.
    pub(crate) body: Vec<u8>,
    /// The lines behind a chunked body.
    pub(crate) trailers: Vec<String>,
}

/// What a backend tells its test.
#[derive(Debug)]
enum Event {
    Opened,
    Request(Received),
    Ended(usize),
}

/// A listening backend. It stops listening when it is dropped; connections end with the gateway.
#[derive(Debug)]
pub(crate) struct Backend {
    listener: TcpListener,
    address: SocketAddr,
    events: Receiver<Event>,
    opened: usize,
    /// Requests that the test has not asked for yet.
    requests: std::collections::VecDeque<Received>,
    ended: Vec<usize>,
}

/// One connection, as its script sees it.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// Its number, from 0 in the order of their coming.
    pub(crate) number: usize,
    /// Until it ends: what the test hears of the end comes after the end.
    stream: Option<TcpStream>,
    /// What was read and not yet taken.
    unread: Vec<u8>,
    events: Sender<Event>,
}

/// A short answer that keeps the connection.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

impl Backend {
    /// Runs the script on each connection. An error ends the connection, as does the script's end.
    pub(crate) fn start(script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    /// The same, at this address.
    pub(crate) fn start_at(
        address: SocketAddr,
        script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, events) = mpsc::channel();
        let script = Arc::new(script);
        let accepting = listener.try_clone().expect("another descriptor");
        thread::spawn(move || {
            for (number, stream) in accepting.incoming().map_while(Result::ok).enumerate() {
                let script = Arc::clone(&script);
                let mut conversation = Conversation::new(number, stream, sender.clone());
                thread::spawn(move || {
                    // Whatever ended it, the test sees the end.
                    let _ = script(&mut conversation);
                });
            }
        });
        Self { listener, address, events, opened: 0, requests: std::collections::VecDeque::new(), ended: Vec::new() }
    }

    /// Answers each request with what `answer` makes of it, one after the other.
    pub(crate) fn answering<A: AsRef<[u8]>>(answer: impl Fn(&Received) -> A + Send + Sync + 'static) -> Self {
        Self::start(move |conversation| {
            loop {
                let request = conversation.read_request()?;
                conversation.send(answer(&request))?;
            }
        })
    }

    /// Answers everything with a short 200.
    pub(crate) fn ok() -> Self {
        Self::answering(|_| OK)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next request.
    #[track_caller]
    pub(crate) fn request(&mut self) -> Received {
        self.wait("a request", |backend| backend.requests.pop_front())
    }

    /// The requests that have come so far and were not asked for.
    pub(crate) fn requests(&mut self) -> Vec<Received> {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        self.requests.drain(..).collect()
    }

    /// How many connections were opened so far.
    pub(crate) fn opened(&mut self) -> usize {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        self.opened
    }

    /// How many connections have ended so far.
    pub(crate) fn ended(&mut self) -> usize {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        self.ended.len()
    }

    /// Waits until so many connections were opened.
    #[track_caller]
    pub(crate) fn wait_opened(&mut self, count: usize) {
        self.wait("a connection", |backend| (backend.opened >= count).then_some(()));
    }

    /// Waits until a connection has ended.
    #[track_caller]
    pub(crate) fn wait_ended(&mut self, connection: usize) {
        self.wait("the end of a connection", |backend| backend.ended.contains(&connection).then_some(()));
    }

    #[track_caller]
    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let due = now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            match self.events.recv_timeout(due.saturating_duration_since(now())) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => panic!("the backend waits for {what} in vain"),
                Err(RecvTimeoutError::Disconnected) => panic!("the backend stopped before {what}"),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Opened => self.opened += 1,
            Event::Request(request) => self.requests.push_back(request),
            Event::Ended(connection) => self.ended.push(connection),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Wakes the accepting thread, which ends.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

impl Conversation {
    fn new(number: usize, stream: TcpStream, events: Sender<Event>) -> Self {
        stream.set_nodelay(true).expect("a fresh socket");
        stream.set_read_timeout(Some(SILENCE_MAX)).expect("a fresh socket");
        // A test that is over hears nothing any more.
        let _ = events.send(Event::Opened);
        Self { number, stream: Some(stream), unread: Vec::new(), events }
    }

    /// Reads a whole request and tells the test.
    pub(crate) fn read_request(&mut self) -> io::Result<Received> {
        let (mut raw, head) = self.read_head()?;
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        if head.field("transfer-encoding").is_some() {
            loop {
                let line = self.take_line(&mut raw)?;
                let size = usize::from_str_radix(&line, 16).map_err(|_| broken(&line))?;
                if size == 0 {
                    break;
                }
                let chunk = self.take(size + 2)?;
                raw.extend_from_slice(&chunk);
                body.extend_from_slice(&chunk[..size]);
            }
            loop {
                let line = self.take_line(&mut raw)?;
                if line.is_empty() {
                    break;
                }
                trailers.push(line);
            }
        } else if let Some(length) = head.field("content-length") {
            body = self.take(length.parse().map_err(|_| broken(length))?)?;
            raw.extend_from_slice(&body);
        }
        let request = Received { connection: self.number, raw, head, body, trailers };
        let _ = self.events.send(Event::Request(request.clone()));
        Ok(request)
    }

    /// Reads a head, with its bytes; a body is left where it is and the test is told nothing.
    pub(crate) fn read_head(&mut self) -> io::Result<(Vec<u8>, Head)> {
        let raw = self.read_until(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&raw[..raw.len() - 4]).into_owned();
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let field = |line: &str| {
            let (name, value) = line.split_once(':').ok_or_else(|| broken(line))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        };
        let fields = lines.map(field).collect::<io::Result<_>>()?;
        Ok((raw, Head { first_line, fields }))
    }

    /// Reads a head and tells the test of it as of a request without a body.
    pub(crate) fn tell_head(&mut self) -> io::Result<Head> {
        let (raw, head) = self.read_head()?;
        let request =
            Received { connection: self.number, raw, head: head.clone(), body: Vec::new(), trailers: Vec::new() };
        let _ = self.events.send(Event::Request(request));
        Ok(head)
    }

    /// Reads all up to and with these bytes.
    pub(crate) fn read_until(&mut self, wanted: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(wanted.len()).position(|window| window == wanted) {
                return self.take(at + wanted.len());
            }
            self.fill()?;
        }
    }

    /// Reads exactly so many bytes.
    pub(crate) fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < bytes {
            self.fill()?;
        }
        let rest = self.unread.split_off(bytes);
        Ok(std::mem::replace(&mut self.unread, rest))
    }

    fn take_line(&mut self, raw: &mut Vec<u8>) -> io::Result<String> {
        let line = self.read_until(b"\r\n")?;
        raw.extend_from_slice(&line);
        Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = self.stream().read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Reads until the gateway closes, and returns what came until then.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().is_ok() {}
        std::mem::take(&mut self.unread)
    }

    /// Sends all of these bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream().write_all(bytes.as_ref())
    }

    /// Ends this direction.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.stream().shutdown(std::net::Shutdown::Write)
    }

    /// Ends this direction, and waits until the gateway's kernel has acknowledged that.
    pub(crate) fn finish_surely(&self) -> io::Result<()> {
        let ports = [self.stream().local_addr()?.port(), self.stream().peer_addr()?.port()];
        self.finish()?;
        until(PATIENCE, "the acknowledgement", || {
            (connection_state(ports).as_deref() != Some(FIN_WAIT_1)).then_some(())
        });
        Ok(())
    }

    /// Breaks the connection: the gateway sees a reset, not an end.
    pub(crate) fn reset(&mut self) -> io::Result<()> {
        let socket = socket2::SockRef::from(self.stream());
        socket.set_linger(Some(Duration::ZERO))?;
        // The descriptor is closed with the conversation.
        Err(io::ErrorKind::ConnectionReset.into())
    }

    /// The socket, for what there is no word for.
    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("it has not ended")
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        drop(self.stream.take());
        let _ = self.events.send(Event::Ended(self.number));
    }
}

/// What `/proc/net/tcp` calls a connection whose end is not acknowledged.
const FIN_WAIT_1: &str = "04";

/// The state of the connection between these ports of loopback, as the kernel lists it; none when it is gone.
fn connection_state(ports: [u16; 2]) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists connections");
    let wanted = ports.map(|port| format!(":{port:04X}"));
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_it = wanted.iter().all(|port| words.next().is_some_and(|end| end.ends_with(port)));
        words.next().filter(|_| is_it).map(str::to_owned)
    })
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the gateway sent {what:?}"))
}

/// An address that nobody listens on and nobody else gets while this lives.
#[derive(Debug)]
pub(crate) struct Refusing(socket2::Socket);

impl Refusing {
    /// Takes a port.
    pub(crate) fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        Self(socket)
    }

    /// Where connections are refused.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound")
    }
}
