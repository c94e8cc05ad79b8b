//! Plays a plan: clients and backends in one thread, one step at a time, in an order that a seed chooses among the steps
//! that can be done.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    board::Board,
    plan::{Act, Plan},
    players::{Backend, Client, End, Got, Heard, Met},
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
    listener: &'p TcpListener,
    /// Whether the gateway sees in time what comes behind an answer in a piece of its own.
    splits_junk: bool,
    clients: Vec<Client>,
    backends: Vec<Backend>,
    board: Board,
    log: Vec<String>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Come(usize),
    Accept,
    ClientReads(usize),
    ClientActs(usize),
    BackendReads(usize),
    BackendActs(usize),
}

impl<'p> Stage<'p> {
    pub(super) fn new(
        plan: &'p Plan,
        seed: u64,
        gateway: SocketAddr,
        listener: &'p TcpListener,
        splits_junk: bool,
    ) -> Self {
        listener.set_nonblocking(true).expect("a fresh socket");
        Self {
            plan,
            rng: fastrand::Rng::with_seed(!seed),
            gateway,
            listener,
            splits_junk,
            clients: plan.clients.iter().map(Client::new).collect(),
            backends: Vec::new(),
            board: Board::new(plan),
            log: Vec::new(),
        }
    }

    /// Plays until every exchange is over; whether that came to be.
    pub(super) fn play(&mut self) -> bool {
        while !self.is_over() {
            let turns = self.turns();
            if turns.is_empty() {
                return false;
            }
            let turn = turns[self.rng.usize(0..turns.len())];
            self.take(turn);
        }
        true
    }

    /// Reads what there is to be read, for everybody: what nobody expects, and ends of connections.
    pub(super) fn look_around(&mut self) {
        (0..self.clients.len()).for_each(|client| self.take(Turn::ClientReads(client)));
        (0..self.backends.len()).for_each(|backend| self.take(Turn::BackendReads(backend)));
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
                turns.push(Turn::Come(number));
            }
            self.look(
                &client.end,
                true,
                [Turn::ClientReads(number), Turn::ClientActs(number)],
                &mut turns,
                &mut waiting,
            );
        }
        for (number, backend) in self.backends.iter().enumerate() {
            let both = [Turn::BackendReads(number), Turn::BackendActs(number)];
            self.look(&backend.end, backend.reads(&self.board), both, &mut turns, &mut waiting);
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
        [read, act]: [Turn; 2],
        turns: &mut Vec<Turn>,
        waiting: &mut Vec<(PollFd<'e>, Turn)>,
    ) {
        let Some(stream) = &end.stream else { return };
        if reads {
            waiting.push((PollFd::new(stream, PollFlags::IN), read));
        }
        match end.steps.front() {
            Some(step) if !self.board.is_open(step.tag, step.when) => {}
            Some(step) if matches!(step.act, Act::Close | Act::Reset) => turns.push(act),
            Some(_) => waiting.push((PollFd::new(stream, PollFlags::OUT), act)),
            None => {}
        }
    }

    fn take(&mut self, turn: Turn) {
        // Mostly all that is there, at times less.
        let bytes_max = if self.rng.u8(0..4) == 0 { self.rng.usize(1..20_000) } else { 256 * 1024 };
        let said = match turn {
            Turn::Come(number) => {
                let stream = TcpStream::connect(self.gateway).expect("the gateway takes connections");
                self.clients[number].come(prepared(stream));
                "comes".to_owned()
            }
            Turn::Accept => {
                let (stream, _) = self.listener.accept().expect("a connection waits");
                self.backends.push(Backend::new(prepared(stream)));
                format!("backend {}", self.backends.len() - 1)
            }
            Turn::ClientReads(number) => {
                let met = self.clients[number].read(bytes_max, &self.plan.clients[number], &mut self.board);
                told(met) + &self.clients[number].told()
            }
            Turn::ClientActs(number) => self.clients[number].act(&mut self.board),
            Turn::BackendReads(number) => {
                let met = self.backends[number].read(bytes_max, self.plan, &mut self.board);
                told(met) + &self.backends[number].told()
            }
            Turn::BackendActs(number) => self.backends[number].act(self.plan, &mut self.board, self.splits_junk),
        };
        let who = match turn {
            Turn::Come(number) | Turn::ClientReads(number) | Turn::ClientActs(number) => format!("client {number}"),
            Turn::Accept => "the gateway opens".to_owned(),
            Turn::BackendReads(number) | Turn::BackendActs(number) => format!("backend {number}"),
        };
        self.log.push(format!("{who} {said}"));
    }
}

fn told(met: Met) -> String {
    match met {
        Met::Bytes(read) => format!("reads {read} bytes"),
        Met::End => "reads the end".to_owned(),
        Met::Reset => "is reset".to_owned(),
    }
}

fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nonblocking(true).expect("a fresh socket");
    stream.set_nodelay(true).expect("a fresh socket");
    stream
}
