//! Where connections come from: one listening socket per shard on one port, and the loop that accepts from it.
//!
//! What happens to a connection is the callback's business: serve it here, hand it to a less loaded shard, or refuse it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::complaints::complain;
use super::reactor::{self, Fresh};
use super::{task, timer};

/// The sockets of one address, ready to be given out, and the claim on its port.
#[derive(Debug)]
pub struct Bound {
    /// One listening socket for each shard.
    pub sockets: Vec<TcpListener>,
    /// The address, with the port that was picked if it was asked for port 0.
    pub address: SocketAddr,
    /// The claim.
    pub claim: PortClaim,
}

/// Keeps other gateways off the port for as long as it lives. One per listening address.
#[derive(Debug)]
pub struct PortClaim {
    _lock: UnixDatagram,
}

/// Binds `shards` sockets to `address`; all of them listen before any connection can arrive at the first.
///
/// `SO_REUSEPORT` would let a second gateway share the port without a word and take half of the connections. So the port
/// is tried without it first, and a lock named after the address covers the time between. `section` is where the
/// configuration says `address` and `port`.
pub fn bind(section: &str, address: SocketAddr, backlog: i32, shards: usize) -> io::Result<Bound> {
    let taken = |error: io::Error| explain(section, address, &error);
    let claimed = if address.port() == 0 { None } else { Some(claim(section, address)?) };
    if claimed.is_some() {
        let probe = socket(address).map_err(taken)?;
        // Only a listening socket excludes another one with SO_REUSEADDR.
        probe.bind(&address.into()).and_then(|()| probe.listen(1)).map_err(taken)?;
    }
    let mut sockets = Vec::with_capacity(shards);
    let mut address = address;
    for _ in 0..shards.max(1) {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into()).map_err(|error| explain(section, address, &error))?;
        let bound = socket.local_addr()?;
        address =
            bound.as_socket().ok_or_else(|| io::Error::other(format!("bound to {bound:?}, which is no IP address")))?;
        sockets.push(socket);
    }
    let claim = match claimed {
        Some(claim) => claim,
        None => claim(section, address)?,
    };
    for socket in &sockets {
        socket.listen(backlog).map_err(|error| explain(section, address, &error))?;
    }
    Ok(Bound { sockets: sockets.into_iter().map(TcpListener::from).collect(), address, claim })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // Connections of the process before, in TIME_WAIT, do not keep this one from starting.
    socket.set_reuse_address(true)?;
    // Each connection inherits it: small writes are not delayed. Set on each by itself it is a system call for each.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// A lock in the abstract namespace: no file to clean up; it goes with the process, and reaches as far as the port does.
fn claim(section: &str, address: SocketAddr) -> io::Result<PortClaim> {
    let name = format!("shardgate/listener/{address}");
    let lock = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let lock = UnixDatagram::bind_addr(&lock).map_err(|error| explain(section, address, &error))?;
    Ok(PortClaim { _lock: lock })
}

fn explain(section: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    let variable = if section == "listener" { " (SHARDGATE_LISTENER_PORT)" } else { "" };
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another process (a second gateway?) listens there; stop it or set {section}.port{variable}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address; set {section}.address to one that it has")
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 take CAP_NET_BIND_SERVICE; grant it or set a higher {section}.port")
        }
        _ => format!("check {section}.address and {section}.port"),
    };
    let (host, port) = (address.ip(), address.port());
    io::Error::new(error.kind(), format!("cannot listen on {host} port {port}: {error}; {advice}"))
}

/// Connections accepted in one go, before the shard's other tasks get their turn, until [`Acceptor::set_budget`] says
/// otherwise.
const BUDGET: usize = 64;
/// First and longest wait when the process is out of descriptors; it doubles in between.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What an acceptor counted. Plain numbers of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptCounts {
    /// Connections given to the callback.
    pub accepted: u64,
    /// Connections closed at once because no descriptor was left for them.
    pub turned_away: u64,
    /// Times that the process ran out of descriptors or memory; one burst counts once.
    pub exhausted: u64,
}

/// Accepts from one listening socket. One per shard and address.
pub struct Acceptor {
    listening: Listening,
    /// Freed when there are no descriptors left, to accept and close one connection with.
    reserve: Cell<Option<OwnedFd>>,
    stopping: Cell<bool>,
    budget: Cell<usize>,
    waker: Cell<Option<Waker>>,
    counts: Cell<AcceptCounts>,
}

/// A listening socket, and how its shard is told of connections.
enum Listening {
    Epoll(reactor::Socket),
    Ring {
        /// Ours, to accept from and to shut.
        socket: TcpListener,
        /// monoio's descriptor of the same socket, to wait on.
        watched: monoio::net::TcpListener,
    },
}

impl Listening {
    fn new(socket: TcpListener) -> io::Result<Self> {
        if reactor::is_here() {
            return Ok(Self::Epoll(reactor::Socket::new(socket.into(), Fresh::Unready)?));
        }
        let watched = monoio::net::TcpListener::from_std(socket.try_clone()?)?;
        Ok(Self::Ring { socket, watched })
    }

    /// Nobody waits: the next connection makes it readable again.
    fn set_empty(&self) {
        if let Self::Epoll(socket) = self {
            socket.set_drained();
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Epoll(socket) => {
                poll_fn(|cx| socket.poll_readable(cx)).await;
                Ok(())
            }
            Self::Ring { watched, .. } => watched.readable(false).await,
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Epoll(socket) => socket.as_fd(),
            Self::Ring { socket, .. } => socket.as_fd(),
        }
    }
}

impl Acceptor {
    /// Takes over a listening, non-blocking socket, on the thread of the shard that will accept from it.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        Ok(Self {
            reserve: Cell::new(Some(spare_descriptor()?)),
            listening: Listening::new(socket)?,
            stopping: Cell::new(false),
            budget: Cell::new(BUDGET),
            waker: Cell::new(None),
            counts: Cell::new(AcceptCounts::default()),
        })
    }

    /// Gives every connection to `take` until [`Acceptor::stop`], then empties the accept queue, closes the socket and
    /// completes. An error means that the socket itself is broken.
    ///
    /// Dropping the future stops accepting and loses nothing; the queue stays until the acceptor is dropped.
    pub async fn run(&self, mut take: impl FnMut(OwnedFd, SocketAddr)) -> io::Result<()> {
        let mut pressure = Pressure::default();
        // Connections go on arriving while the queue is emptied. Whoever comes this late is refused as after the end.
        let mut last_turns = 1_024;
        loop {
            let stopping = self.stopping.get();
            let mut accepted = 0;
            let end = turn(
                self.budget.get(),
                || self.accept(),
                |(fd, address)| {
                    accepted += 1;
                    take(fd, address);
                },
            );
            self.count(|counts| counts.accepted += accepted);
            if accepted > 0 {
                pressure.relieved();
            }
            if stopping {
                last_turns -= 1;
                if last_turns == 0 || matches!(end, AcceptEnd::Empty) {
                    break;
                }
            }
            match end {
                AcceptEnd::Empty => {
                    self.listening.set_empty();
                    self.unless_stopped(self.listening.readable()).await.transpose()?;
                }
                AcceptEnd::Budget => task::yield_now().await,
                AcceptEnd::Exhausted(error) => {
                    if pressure.begins() {
                        self.count(|counts| counts.exhausted += 1);
                        complain!(warn: %error, "cannot accept: raise the limit on open files or lower the connection limit");
                    }
                    self.turn_one_away();
                    self.unless_stopped(timer::sleep(pressure.pause())).await;
                }
                AcceptEnd::Failed(error) => return Err(error.into()),
            }
        }
        // Closes it for good, whatever descriptors of it the driver still holds.
        rustix::net::shutdown(&self.listening, Shutdown::Both)?;
        Ok(())
    }

    /// Accepts so many connections in one go from now on.
    pub fn set_budget(&self, connections: usize) {
        self.budget.set(connections.max(1));
    }

    /// Makes [`Acceptor::run`] take what is in the queue and end.
    pub fn stop(&self) {
        self.stopping.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What it counted so far.
    pub fn counts(&self) -> AcceptCounts {
        self.counts.get()
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.listening)?)?)
    }

    fn accept(&self) -> Result<(OwnedFd, SocketAddr), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (fd, address) = rustix::net::acceptfrom_with(&self.listening, flags)?;
        // A peer without an IP address is gone already.
        let address = address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::CONNABORTED)?;
        Ok((fd, address))
    }

    /// A client in the queue would wait for nothing; with the reserve one of them at least learns it at once. The rest
    /// stays queued for when descriptors are free again.
    fn turn_one_away(&self) {
        drop(self.reserve.take());
        if self.accept().is_ok() {
            self.count(|counts| counts.turned_away += 1);
        }
        self.reserve.set(spare_descriptor().ok());
    }

    fn count(&self, change: impl FnOnce(&mut AcceptCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Waits for `event`; `None` when the acceptor is stopped first.
    async fn unless_stopped<F: Future>(&self, event: F) -> Option<F::Output> {
        let mut event = pin!(event);
        poll_fn(|cx| {
            if self.stopping.get() {
                return Poll::Ready(None);
            }
            self.waker.set(Some(cx.waker().clone()));
            event.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// Any descriptor will do.
fn spare_descriptor() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// How a turn of accepting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptEnd {
    /// Nobody waits.
    Empty,
    /// There may be more; others first.
    Budget,
    /// No descriptor or no memory for the next one.
    Exhausted(Errno),
    /// The socket is of no use any more.
    Failed(Errno),
}

fn turn<S>(budget: usize, mut accept: impl FnMut() -> Result<S, Errno>, mut take: impl FnMut(S)) -> AcceptEnd {
    for _ in 0..budget {
        match accept() {
            Ok(connection) => take(connection),
            Err(Errno::AGAIN) => return AcceptEnd::Empty,
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                return AcceptEnd::Exhausted(error);
            }
            Err(error @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::FAULT)) => {
                return AcceptEnd::Failed(error);
            }
            // accept(2): errors of the network, a firewall or a client that left belong to that one connection.
            Err(_) => {}
        }
    }
    AcceptEnd::Budget
}

/// How long to leave a process alone that is out of descriptors. Trying on at once is 100,000 errors in 100 ms.
#[derive(Debug, Default)]
struct Pressure {
    pause: Option<Duration>,
}

impl Pressure {
    /// Whether this is the first failure since the last success.
    fn begins(&self) -> bool {
        self.pause.is_none()
    }

    /// The wait before the next try, twice the last one.
    fn pause(&mut self) -> Duration {
        let pause = self.pause.map_or(PAUSE, |last| (last * 2).min(PAUSE_MAX));
        self.pause = Some(pause);
        pause
    }

    fn relieved(&mut self) {
        self.pause = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::rc::Rc;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::shard::local::Local;
    use crate::shard::{task, testing};

    const LOCAL: &str = "127.0.0.1:0";

    fn bound(shards: usize) -> Bound {
        bind("listener", LOCAL.parse().expect("an address"), 128, shards).expect("a free port")
    }

    /// Runs an acceptor in a task of its own; the clients that it accepted, and whether it has ended.
    struct Running {
        acceptor: Rc<Acceptor>,
        clients: Rc<Local<Vec<(OwnedFd, SocketAddr)>>>,
        ended: Rc<Cell<bool>>,
    }

    fn run(socket: TcpListener) -> Running {
        let running = Running {
            acceptor: Rc::new(Acceptor::new(socket).expect("an acceptor")),
            clients: Rc::default(),
            ended: Rc::default(),
        };
        let (acceptor, clients) = (Rc::clone(&running.acceptor), Rc::clone(&running.clients));
        let ended = Rc::clone(&running.ended);
        task::spawn("acceptor", async move {
            let take = |fd, address| clients.with(|clients| clients.push((fd, address)));
            acceptor.run(take).await.expect("it was stopped");
            ended.set(true);
        });
        running
    }

    impl Running {
        fn accepted(&self) -> usize {
            self.clients.with(|clients| clients.len())
        }
    }

    #[test]
    fn all_shards_share_one_port_and_every_connection_arrives() {
        testing::on_both_drivers(|| async {
            let bound = bound(3);
            let address = bound.address;
            assert_ne!(address.port(), 0);
            let running: Vec<_> = bound.sockets.into_iter().map(run).collect();
            let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).expect("connected")).collect();
            testing::until(|| running.iter().map(Running::accepted).sum::<usize>() == clients.len()).await;
            for running in &running {
                assert!(running.accepted() > 0, "the kernel spreads 100 connections over 3 sockets");
                assert_eq!(running.acceptor.counts().accepted, running.accepted() as u64);
            }
            let mut known: Vec<_> = clients.iter().map(|client| client.local_addr().expect("known")).collect();
            let mut seen: Vec<_> = running
                .iter()
                .flat_map(|running| running.clients.with(std::mem::take))
                .map(|(_, address)| address)
                .collect();
            known.sort_unstable();
            seen.sort_unstable();
            assert_eq!(known, seen);
        });
    }

    #[test]
    fn what_is_accepted_neither_blocks_nor_delays() {
        testing::on_both_drivers(|| async {
            let mut bound = bound(1);
            let running = run(bound.sockets.pop().expect("one socket"));
            let _client = TcpStream::connect(bound.address).expect("connected");
            testing::until(|| running.accepted() == 1).await;
            running.clients.with(|clients| {
                let (fd, _) = &clients[0];
                assert!(rustix::fs::fcntl_getfl(fd).expect("known").contains(rustix::fs::OFlags::NONBLOCK));
                assert!(rustix::net::sockopt::tcp_nodelay(fd).expect("known"));
            });
        });
    }

    #[test]
    fn stopping_takes_what_is_queued_and_then_refuses() {
        testing::on_both_drivers(|| async {
            let mut bound = bound(1);
            // More than one turn's budget, all queued before anybody accepts.
            let clients: Vec<_> =
                (0..BUDGET + 10).map(|_| TcpStream::connect(bound.address).expect("connected")).collect();
            let running = run(bound.sockets.pop().expect("one socket"));
            running.acceptor.stop();
            testing::until(|| running.ended.get()).await;
            assert_eq!(running.accepted(), clients.len());
            let refused = TcpStream::connect(bound.address).expect_err("nobody listens any more");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn stopping_an_acceptor_that_waits_ends_it() {
        testing::on_both_drivers(|| async {
            let mut bound = bound(1);
            let running = run(bound.sockets.pop().expect("one socket"));
            let client = TcpStream::connect(bound.address).expect("connected");
            testing::until(|| running.accepted() == 1).await;
            running.acceptor.stop();
            testing::until(|| running.ended.get()).await;
            drop(client);
        });
    }

    #[test]
    fn a_port_that_a_gateway_holds_is_refused_loudly() {
        let first = bound(2);
        let error = bind("listener", first.address, 128, 2).expect_err("it is taken").to_string();
        let (host, port) = (first.address.ip(), first.address.port());
        assert!(error.contains(&format!("cannot listen on {host} port {port}: ")), "{error}");
        assert!(error.contains("second gateway"), "{error}");
        // Without the claim, as in another network namespace's view or a foreign program with SO_REUSEPORT.
        let Bound { address, sockets, claim } = first;
        drop(claim);
        assert_eq!(bind("listener", address, 128, 2).expect_err("it is taken").kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        assert_eq!(bind("listener", address, 128, 2).expect("it is free again").address, address);
    }

    #[test]
    fn connections_of_the_process_before_do_not_keep_the_port() {
        let first = bound(1);
        let client = TcpStream::connect(first.address).expect("connected");
        let (server, _) = loop {
            // The socket does not block; the connection is on its way.
            if let Ok(accepted) = first.sockets[0].accept() {
                break accepted;
            }
        };
        let address = first.address;
        drop(first);
        // This side closes first and is left in TIME_WAIT.
        drop(server);
        drop(client);
        bind("listener", address, 128, 1).expect("a restart binds at once");
    }

    #[test]
    fn without_descriptors_it_backs_off_and_recovers() {
        let Some(output) = testing::in_child("shard::listener::tests::without_descriptors_it_backs_off_and_recovers")
        else {
            testing::on_both_drivers(|| async {
                let mut bound = bound(1);
                let mut clients: Vec<_> =
                    (0..20).map(|_| TcpStream::connect(bound.address).expect("connected")).collect();
                let before = getrlimit(Resource::Nofile);
                let running = run(bound.sockets.pop().expect("one socket"));
                // The lowest free number, plus room for five.
                let free = std::fs::read_dir("/proc/self/fd").expect("procfs").count() as u64;
                setrlimit(Resource::Nofile, Rlimit { current: Some(free + 5), ..before }).expect("lowered");
                testing::until(|| running.acceptor.counts().turned_away >= 3).await;
                let counts = running.acceptor.counts();
                assert_eq!(counts.exhausted, 1, "one burst counts once");
                assert!((1..20).contains(&counts.accepted), "{counts:?}");
                setrlimit(Resource::Nofile, before).expect("raised");
                let all = clients.len() as u64;
                testing::until(|| {
                    let counts = running.acceptor.counts();
                    counts.accepted + counts.turned_away == all
                })
                .await;
                let turned_away = running.acceptor.counts().turned_away;
                running.acceptor.stop();
                testing::until(|| running.ended.get()).await;
                running.clients.with(Vec::clear);
                let closed =
                    clients.iter_mut().filter_map(|client| client.read(&mut [0]).ok()).filter(|&read| read == 0);
                assert_eq!(closed.count(), clients.len(), "{turned_away} of them early");
                eprintln!("recovered");
            });
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("recovered").count(), testing::drivers().len(), "{said}");
    }

    #[track_caller]
    fn check_turn(script: &[Result<u8, Errno>], expected: AcceptEnd, taken: &[u8]) {
        let mut script = script.iter().copied();
        let mut seen = Vec::new();
        let end = turn(3, || script.next().expect("it asked too often"), |one| seen.push(one));
        assert_eq!((end, &seen[..]), (expected, taken));
    }

    #[test]
    fn a_turn_ends_as_accept_says() {
        check_turn(&[Err(Errno::AGAIN)], AcceptEnd::Empty, &[]);
        check_turn(&[Ok(1), Ok(2), Err(Errno::AGAIN)], AcceptEnd::Empty, &[1, 2]);
        check_turn(&[Ok(1), Ok(2), Ok(3)], AcceptEnd::Budget, &[1, 2, 3]);
        check_turn(&[Err(Errno::CONNABORTED), Ok(1), Err(Errno::AGAIN)], AcceptEnd::Empty, &[1]);
        // A peer that aborts every connection does not keep the shard busy for ever.
        check_turn(&[Err(Errno::CONNABORTED); 3], AcceptEnd::Budget, &[]);
        check_turn(&[Err(Errno::INTR), Err(Errno::PERM), Err(Errno::HOSTUNREACH)], AcceptEnd::Budget, &[]);
        check_turn(&[Ok(1), Err(Errno::MFILE)], AcceptEnd::Exhausted(Errno::MFILE), &[1]);
        for error in [Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            check_turn(&[Err(error)], AcceptEnd::Exhausted(error), &[]);
        }
        check_turn(&[Err(Errno::INVAL)], AcceptEnd::Failed(Errno::INVAL), &[]);
    }

    #[test]
    fn the_wait_doubles_up_to_half_a_second_and_starts_anew() {
        let mut pressure = Pressure::default();
        assert!(pressure.begins());
        let waits: Vec<_> = (0..7).map(|_| pressure.pause().as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 500, 500]);
        assert!(!pressure.begins());
        pressure.relieved();
        assert!(pressure.begins());
        assert_eq!(pressure.pause(), PAUSE);
    }
}
