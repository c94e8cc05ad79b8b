//! Where a connection goes to: an address and a port, or a socket in this machine's file system; and how it comes about there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::clock::{self, Instant};
use super::reactor::Fresh;
use super::{TcpStream, timer};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// On a port. An IPv4 address is never written as one of IPv6: it would be another one.
    Ip(SocketAddr),
    /// On a socket with a path.
    Unix(Arc<Path>),
}

impl Address {
    /// The address and the port, if it has these.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// Whether it was this machine that lacked something to connect with: a descriptor, a port, memory.
pub fn is_ours(error: &io::Error) -> bool {
    let lacking = [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| lacking.contains(&code))
}

/// The same error of connect(2), with its two meanings told apart: `EADDRNOTAVAIL` is also said of an address that there is
/// no way to from here (`::1` where IPv6 is off), which is no lack of ports, and does not pass.
pub fn explained(address: SocketAddr, error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) {
        return error;
    }
    // UDP has ports of its own: what it finds a way to is there.
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    match UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)) {
        Ok(()) => error,
        Err(_) => io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no way to this address from here"),
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        // What an IPv6 address has besides, a scope, an IPv4 address has not.
        let canonical = address.ip().to_canonical();
        Self::Ip(if canonical.is_ipv4() { SocketAddr::new(canonical, address.port()) } else { address })
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How long a listener on a path that has too many waiting is left alone, at first and at last.
const FULL_WAIT_MIN: Duration = Duration::from_millis(1);
/// See [`FULL_WAIT_MIN`].
const FULL_WAIT_MAX: Duration = Duration::from_millis(50);

impl TcpStream {
    /// Connects to wherever that is.
    pub async fn connect_to(address: &Address, deadline: Instant) -> io::Result<Self> {
        match address {
            Address::Ip(address) => Self::connect(*address, deadline).await,
            Address::Unix(path) => Self::connect_unix(path, deadline).await,
        }
    }

    /// A connection in this machine is there at once, or not at all. Where as many wait as the listener lets wait, the
    /// kernel tells nobody when there is room (connect(2), `EAGAIN`): it is asked again, ever more rarely.
    async fn connect_unix(path: &Path, deadline: Instant) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        let mut wait = FULL_WAIT_MIN;
        loop {
            match socket.connect(&address) {
                Ok(()) => return Self::register(socket.into(), Fresh::Connected),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if clock::now() + wait >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            timer::sleep(wait).await;
            wait = FULL_WAIT_MAX.min(wait * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let of = |text: &str| Address::from(text.parse::<SocketAddr>().expect("an address"));
        assert_eq!(of("[::ffff:10.0.0.1]:80"), of("10.0.0.1:80"));
        assert_ne!(of("[::1]:80"), of("127.0.0.1:80"));
        assert_eq!(of("[fe80::1%2]:80").to_string(), "[fe80::1%2]:80", "the link stays");
        assert_eq!(Address::from(Path::new("/run/shop.sock")).to_string(), "unix:/run/shop.sock");
    }

    #[test]
    fn a_lack_of_ports_is_ours_and_an_address_without_a_way_is_not() {
        let told = |code: i32, address: &str| {
            let error = explained(address.parse().expect("an address"), io::Error::from_raw_os_error(code));
            is_ours(&error)
        };
        assert!(told(libc::EADDRNOTAVAIL, "127.0.0.1:9"), "there is a way, so no port was left");
        assert!(!told(libc::EADDRNOTAVAIL, "255.255.255.255:9"), "there is none");
        assert!(told(libc::EMFILE, "255.255.255.255:9"));
        assert!(!told(libc::ECONNREFUSED, "127.0.0.1:9"));
    }
}
