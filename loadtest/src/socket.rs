//! The kernel's side: the clock, epoll, and non-blocking TCP sockets. Leaves every byte's meaning to others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`: the same number in every process of the machine, which lets a server stamp
/// events and a client subtract.
pub(crate) fn now() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// CPU time of the calling thread, in nanoseconds.
pub(crate) fn thread_cpu() -> u64 {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

/// CPU time of this process, in nanoseconds.
pub(crate) fn process_cpu() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) key: u64,
    pub(crate) writable: bool,
    pub(crate) readable: bool,
    /// The other end has closed or broken the connection: read on until it shows.
    pub(crate) ended: bool,
}

/// An epoll set. Sockets are watched edge-triggered for both directions, so a request costs no `epoll_ctl`; whoever
/// reads must go on until a read comes back short.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    next: usize,
}

impl Poller {
    pub(crate) fn new() -> std::io::Result<Self> {
        // A thread's timers may fire 50 µs late by default, which is more than a loopback answer takes.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(1024), next: 0 })
    }

    pub(crate) fn watch(&self, socket: &OwnedFd, key: u64) -> rustix::io::Result<()> {
        use epoll::EventFlags as Flags;
        let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(key), flags)
    }

    /// Waits until something is ready or the time has passed (`None`: for ever).
    pub(crate) fn wait(&mut self, timeout_ns: Option<u64>) {
        let timeout = timeout_ns.map(|ns| {
            let time = Duration::from_nanos(ns);
            Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) }
        });
        self.events.clear();
        self.next = 0;
        // An interrupted wait is an early one; the callers look at the clock anyway.
        let Some(timeout) = timeout else {
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), None);
            return;
        };
        // ppoll waits in nanoseconds and epoll_pwait in milliseconds. epoll_pwait2 would do both, but rustix takes it by a
        // feature, which a build of the whole workspace would give to the gateway as well.
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&at_once));
        if self.events.is_empty() && timeout_ns != Some(0) {
            let _ = poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout));
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&at_once));
        }
    }

    /// The next of the ready sockets, each once per wait.
    pub(crate) fn next(&mut self) -> Option<Ready> {
        use epoll::EventFlags as Flags;
        let event = *self.events.get(self.next)?;
        self.next += 1;
        let (flags, data) = (event.flags, event.data);
        Some(Ready {
            key: data.u64(),
            writable: flags.intersects(Flags::OUT | Flags::ERR | Flags::HUP),
            readable: flags.intersects(Flags::IN | Flags::RDHUP | Flags::ERR | Flags::HUP),
            ended: flags.intersects(Flags::RDHUP | Flags::ERR | Flags::HUP),
        })
    }
}

/// Begins to connect. The socket becomes writable when it is connected or has failed.
pub(crate) fn connect(address: SocketAddr, source: Option<IpAddr>) -> rustix::io::Result<OwnedFd> {
    let socket = tcp(address)?;
    net::sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    match net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Says why a connect that began well has failed.
pub(crate) fn connected(socket: &OwnedFd) -> rustix::io::Result<()> {
    net::sockopt::socket_error(socket)?
}

/// Listens on a port of an address; 0 picks a free one. Returns the port.
pub(crate) fn listen(address: Ipv4Addr, port: u16) -> rustix::io::Result<(OwnedFd, u16)> {
    let address = SocketAddr::from((address, port));
    let socket = tcp(address)?;
    net::sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, 8192)?;
    let bound = SocketAddr::try_from(net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

fn tcp(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// Takes one waiting connection, if there is one.
pub(crate) fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let socket = net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    net::sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    net::recv(socket, buffer, RecvFlags::empty()).map(|(taken, _)| taken)
}

pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    net::send(socket, bytes, SendFlags::NOSIGNAL)
}

/// Two parts in one write, so that a head never travels without its body's beginning.
pub(crate) fn send_both(socket: impl AsFd, head: &[u8], body: &[u8]) -> rustix::io::Result<usize> {
    // `SIGPIPE` is ignored by Rust's start-up code, so a plain writev is safe on a broken connection.
    rustix::io::writev(socket, &[std::io::IoSlice::new(head), std::io::IoSlice::new(body)])
}

/// Makes room for this many sockets, or says how to.
pub(crate) fn allow_sockets(count: u64) -> anyhow::Result<()> {
    let wanted = count + 64; // the listener, epoll, files, and one spare per thread
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .or_else(|_| {
            let current = limit.maximum.filter(|maximum| *maximum >= wanted).map(|_| wanted).ok_or(Errno::PERM)?;
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum })
        })
        .map_err(|_| {
            anyhow::anyhow!(
                "{count} connections need {wanted} open files and this user may have fewer; see `ulimit -Hn`"
            )
        })
}
