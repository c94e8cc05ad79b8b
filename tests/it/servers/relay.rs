//! A link between the gateway and a server that goes wrong when a test says so: it delays, throttles, resets, or passes
//! nothing on while its connections stay open.
#![expect(clippy::disallowed_types, reason = "connections are told from another thread what to do from now on")]

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::harness::pause;

/// How often a connection that passes nothing looks whether it may again.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What a link does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Passes them on.
    Open,
    /// Passes each piece on so many milliseconds late, in both directions.
    Late(u64),
    /// Passes on so many bytes a second from the server.
    Narrow(u64),
    /// Resets each connection over which the server says something, before a byte of it is passed on.
    Resetting,
    /// The same, after the first bytes of what the server says.
    Cutting,
    /// Passes nothing on.
    Silent,
}

impl Link {
    fn to_number(self) -> u64 {
        match self {
            Self::Open => 0,
            Self::Late(ms) => 1 | ms << 8,
            Self::Narrow(bytes_per_s) => 2 | bytes_per_s << 8,
            Self::Resetting => 3,
            Self::Cutting => 4,
            Self::Silent => 5,
        }
    }

    fn from_number(number: u64) -> Self {
        match number & 0xff {
            1 => Self::Late(number >> 8),
            2 => Self::Narrow(number >> 8),
            3 => Self::Resetting,
            4 => Self::Cutting,
            5 => Self::Silent,
            _ => Self::Open,
        }
    }
}

/// A relay to one server. It takes no more connections once it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    link: Arc<AtomicU64>,
    resets: Arc<AtomicUsize>,
    listener: TcpListener,
}

impl Relay {
    /// A relay to this server, on a free port.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (link, resets) = (Arc::new(AtomicU64::new(Link::Open.to_number())), Arc::new(AtomicUsize::new(0)));
        let accepting = listener.try_clone().expect("another descriptor");
        let (its_link, its_resets) = (Arc::clone(&link), Arc::clone(&resets));
        thread::spawn(move || {
            for client in accepting.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let both = client.try_clone().and_then(|other| Ok((other, server.try_clone()?)));
                let Ok((client_too, server_too)) = both else { continue };
                let (link, resets) = (Arc::clone(&its_link), Arc::clone(&its_resets));
                thread::spawn(move || pass(client_too, server_too, &link, None));
                let link = Arc::clone(&its_link);
                thread::spawn(move || pass(server, client, &link, Some(&resets)));
            }
        });
        Self { address, link, resets, listener }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this with all bytes from now on.
    pub(crate) fn set(&self, link: Link) {
        self.link.store(link.to_number(), Ordering::SeqCst);
    }

    /// How many connections it has reset.
    pub(crate) fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Connections over which nothing goes wait for another word.
        self.set(Link::Open);
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

/// Passes bytes on until either end is gone; `resets` counts, where what comes is what the server says.
fn pass(mut from: TcpStream, mut to: TcpStream, link: &AtomicU64, resets: Option<&AtomicUsize>) {
    let mut buffer = [0; 16 * 1024];
    let outcome: io::Result<()> = (|| {
        loop {
            let now = || Link::from_number(link.load(Ordering::SeqCst));
            // Bytes that come while the link is narrow wait in the sockets, as they do in a real one.
            let room = match now() {
                Link::Narrow(bytes_per_s) => usize::try_from(bytes_per_s / 20).unwrap_or(1).clamp(1, buffer.len()),
                _ => buffer.len(),
            };
            let length = from.read(&mut buffer[..room])?;
            while now() == Link::Silent {
                pause(LOOK_INTERVAL);
            }
            match (now(), resets) {
                (Link::Late(ms), _) => pause(Duration::from_millis(ms)),
                (Link::Narrow(_), Some(_)) => pause(Duration::from_millis(50)),
                (Link::Resetting | Link::Cutting, Some(resets)) if length > 0 => {
                    if now() == Link::Cutting {
                        to.write_all(&buffer[..length.min(20)])?;
                    }
                    resets.fetch_add(1, Ordering::SeqCst);
                    // The other direction holds the same socket, so that closing it here would be no reset; this one is
                    // (`tcp(7)`, a connection that is made none).
                    rustix::net::connect_unspec(&to)?;
                    return from.shutdown(Shutdown::Both);
                }
                _ => {}
            }
            if length == 0 {
                to.shutdown(Shutdown::Write)?;
                return Ok(());
            }
            to.write_all(&buffer[..length])?;
        }
    })();
    if outcome.is_err() {
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
