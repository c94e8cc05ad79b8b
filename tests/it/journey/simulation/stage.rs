//! Plays a plan: clients and backends in one thread, one step at a time, in an order that a seed chooses among the steps
//! that can be done.

use std::{
    fmt,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;

use super::{
    board::Board,
    plan::{Act, Plan},
    players::{Backend, Client, End, Got, Heard},
    stream::Stream,
};

/// How long nothing may happen while somebody waits.
const SILENCE_MAX: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What came of a plan.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) clients: Vec<Got>,
    pub(super) backends: Vec<Heard>,
    pub(super) board: Board,
    /// Who did what, in order.
    pub(super) log: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Stage<'p> {
    plan: &'p Plan,
    rng: fastrand::Rng,
    gateway: SocketAddr,
    /// Clients speak TLS by this.
    tls: Option<Arc<ClientConfig>>,
    listener: &'p TcpListener,
    clients: Vec<Client>,
    backends: Vec<Backend>,
    board: Board,
    log: Vec<String>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Comes(usize),
    Accept,
    Reads(Who),
    Acts(Who),
    Flushes(Who),
}

/// One end of a connection, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Client(usize),
    Backend(usize),
}

impl Turn {
    fn is_of(self, whom: Option<Who>) -> bool {
        matches!(self, Self::Reads(who) | Self::Acts(who) | Self::Flushes(who) if Some(who) == whom)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(number) => write!(f, "client {number}"),
            Self::Backend(number) => write!(f, "backend {number}"),
        }
    }
}

impl<'p> Stage<'p> {
    pub(super) fn new(
        plan: &'p Plan,
        seed: u64,
        gateway: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        listener: &'p TcpListener,
    ) -> Self {
        listener.set_nonblocking(true).expect("a fresh socket");
        Self {
            plan,
            rng: fastrand::Rng::with_seed(!seed),
            gateway,
            tls,
            listener,
            clients: plan.clients.iter().map(Client::new).collect(),
            backends: Vec::new(),
            board: Board::new(plan),
            log: Vec::new(),
        }
    }

    /// Plays until every exchange is over; whether that came to be.
    pub(super) fn play(&mut self) -> bool {
        let mut last = None;
        while !self.is_over() {
            let turns = self.turns();
            // Now one after the other, now in bursts: what comes close together meets the gateway in one turn of its own.
            let burst: Vec<Turn> = turns.iter().copied().filter(|turn| turn.is_of(last)).collect();
            let turns = if self.rng.bool() && !burst.is_empty() { burst } else { turns };
            let Some(&turn) = self.rng.choice(&turns) else { return false };
            last = Some(self.take(turn));
        }
        true
    }

    /// Reads what there is to be read, for everybody: what nobody expects, and ends of connections.
    pub(super) fn look_around(&mut self) {
        let clients = (0..self.clients.len()).map(Who::Client);
        for who in clients.chain((0..self.backends.len()).map(Who::Backend)) {
            self.take(Turn::Reads(who));
        }
    }

    /// Ends.
    pub(super) fn finish(mut self) -> Outcome {
        let clients = self.clients.into_iter().map(|client| client.got).collect();
        let backends = self.backends.into_iter().map(|backend| backend.finish(self.plan, &mut self.board)).collect();
        Outcome { clients, backends, board: self.board, log: self.log }
    }

    fn is_over(&self) -> bool {
        self.board.are_all_over() && self.backends.iter().all(|backend| backend.end.steps.is_empty())
    }

    /// Waits until something can be done, and returns all that can.
    fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut waiting = vec![(PollFd::new(self.listener, PollFlags::IN), Turn::Accept)];
        let over = self.board.over();
        for (number, client) in self.clients.iter().enumerate() {
            if !client.has_come && over >= self.plan.clients[number].comes_after {
                turns.push(Turn::Comes(number));
            }
            self.look(&client.end, true, Who::Client(number), &mut turns, &mut waiting);
        }
        for (number, backend) in self.backends.iter().enumerate() {
            self.look(&backend.end, backend.reads(&self.board), Who::Backend(number), &mut turns, &mut waiting);
        }
        let (mut sockets, whose): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let patience = if turns.is_empty() { SILENCE_MAX } else { AT_ONCE };
        while let Err(error) = poll(&mut sockets, Some(&patience)) {
            assert_eq!(error, rustix::io::Errno::INTR, "sockets can be waited for");
        }
        let ready = sockets.iter().zip(whose).filter(|(socket, _)| !socket.revents().is_empty());
        turns.extend(ready.map(|(_, turn)| turn));
        turns
    }

    /// What one end of a connection can do, or waits for.
    fn look<'e>(
        &self,
        end: &'e End,
        reads: bool,
        who: Who,
        turns: &mut Vec<Turn>,
        waiting: &mut Vec<(PollFd<'e>, Turn)>,
    ) {
        let Some(stream) = &end.stream else { return };
        if reads && stream.has_unread() {
            turns.push(Turn::Reads(who));
        } else if reads {
            waiting.push((PollFd::new(stream, PollFlags::IN), Turn::Reads(who)));
        }
        if !stream.is_flushed() {
            // What was written goes before what is done next.
            waiting.push((PollFd::new(stream, PollFlags::OUT), Turn::Flushes(who)));
            return;
        }
        match end.steps.front() {
            Some(step) if !self.board.is_open(step.tag, step.when) => {}
            Some(step) if matches!(step.act, Act::Close | Act::Reset) => turns.push(Turn::Acts(who)),
            Some(_) => waiting.push((PollFd::new(stream, PollFlags::OUT), Turn::Acts(who))),
            None => {}
        }
    }

    /// Lets it happen; returns to whom.
    fn take(&mut self, turn: Turn) -> Who {
        let Self { plan, board, clients, backends, .. } = self;
        // Mostly all that is there, at times less.
        let bytes_max = if self.rng.u8(0..4) == 0 { self.rng.usize(1..20_000) } else { 256 * 1024 };
        let (who, said) = match turn {
            Turn::Accept => {
                let (stream, _) = self.listener.accept().expect("a connection waits");
                backends.push(Backend::new(Stream::Plain(prepared(stream))));
                (Who::Backend(backends.len() - 1), "is connected to".to_owned())
            }
            Turn::Comes(number) => {
                let stream = TcpStream::connect(self.gateway).expect("the gateway takes connections");
                let stream = prepared(stream);
                clients[number].come(match &self.tls {
                    Some(config) => Stream::client(stream, config, self.rng.u64(..)),
                    None => Stream::Plain(stream),
                });
                (Who::Client(number), "comes".to_owned())
            }
            Turn::Reads(who @ Who::Client(number)) => {
                let met = clients[number].read(bytes_max, &plan.clients[number], board);
                (who, format!("{met}{}", clients[number].told()))
            }
            Turn::Flushes(who @ Who::Client(number)) => (who, clients[number].end.flush()),
            Turn::Flushes(who @ Who::Backend(number)) => (who, backends[number].end.flush()),
            Turn::Acts(who @ Who::Client(number)) => (who, clients[number].act(board)),
            Turn::Reads(who @ Who::Backend(number)) => {
                let met = backends[number].read(bytes_max, plan, board);
                (who, format!("{met}{}", backends[number].told()))
            }
            Turn::Acts(who @ Who::Backend(number)) => (who, backends[number].act(plan, board)),
        };
        self.log.push(format!("{who} {said}"));
        who
    }
}

fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nonblocking(true).expect("a fresh socket");
    stream.set_nodelay(true).expect("a fresh socket");
    stream
}
