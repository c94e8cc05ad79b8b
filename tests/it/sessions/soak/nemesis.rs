//! Who does the harm: to Redis, and to the instances; and who reads the log beside it.

use std::{
    collections::HashSet,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    history::{Event, Fault, Target, What},
    plan::{Due, INSTANCES, InstanceFault, RedisFault},
    wire::{Clock, Places},
};
use crate::{
    harness::{Gateway, pause},
    servers::redis::{self, RedisServer},
};

const EXIT_MAX: Duration = Duration::from_secs(30);
/// How often the log is read: far more often than entries leave it.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOG: &str = "shardgate:revocations";

/// Harms Redis, one fault after the other.
pub(super) fn harm_redis(server: &mut RedisServer, row: &[Due<RedisFault>], clock: Clock, faults: &Sender<Fault>) {
    for Due { at, fault, lasts, .. } in row {
        clock.wait_until(*at);
        let from = clock.now();
        let what = match fault {
            RedisFault::Kill | RedisFault::Leave | RedisFault::Bounce => {
                server.kill();
                pause(*lasts);
                server.restart();
                "killed"
            }
            RedisFault::Stop => {
                server.pause();
                pause(*lasts);
                server.go_on();
                "stopped"
            }
            RedisFault::Fill => {
                server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
                pause(*lasts);
                server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
                "full"
            }
            RedisFault::Blink => {
                server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
                "cut off"
            }
        };
        let fault = Fault { target: Target::Redis, from, till: clock.now(), what };
        faults.send(fault).expect("faults are read when all is over");
    }
}

/// An instance of this configuration.
#[track_caller]
pub(super) fn start(config: &str) -> Gateway {
    let mut gateway = Gateway::start(config);
    // What fails on purpose is told as an error; what panics is found all the same.
    gateway.expect_error("");
    gateway
}

/// Harms the instances, one fault after the other.
pub(super) fn harm_instances(
    gateways: &mut [Gateway; INSTANCES],
    config: &str,
    row: &[Due<InstanceFault>],
    (clock, places, faults): (Clock, &Places, &Sender<Fault>),
) {
    for Due { at, instance, fault, lasts } in row {
        clock.wait_until(*at);
        let (from, gateway) = (clock.now(), &mut gateways[*instance]);
        let what = match fault {
            InstanceFault::Freeze => {
                gateway.signal(Signal::STOP);
                pause(*lasts);
                gateway.signal(Signal::CONT);
                "frozen"
            }
            InstanceFault::Kill | InstanceFault::Restart => {
                let (signal, code, what) = match fault {
                    InstanceFault::Restart => (Signal::TERM, Some(0), "started anew"),
                    _ => (Signal::KILL, None, "killed"),
                };
                gateway.signal(signal);
                assert_eq!(gateway.wait_exit(EXIT_MAX), code, "how it ends");
                pause(*lasts);
                *gateway = start(config);
                places.set(*instance, gateway.address());
                what
            }
        };
        let fault = Fault { target: Target::Instance(*instance), from, till: clock.now(), what };
        faults.send(fault).expect("faults are read when all is over");
    }
}

/// What the log has said has ended, as long as somebody looked.
#[derive(Debug, Default)]
pub(super) struct Logged {
    pub(super) sessions: HashSet<String>,
    /// Users, and until when their sessions began (Unix ms).
    pub(super) users: Vec<(String, u64)>,
    last: Option<String>,
}

/// Reads the log until told that all is over, and once more then.
pub(super) fn read_log(port: u16, clock: Clock, diary: &Sender<Event>, is_over: &Receiver<()>) -> Logged {
    let mut logged = Logged::default();
    loop {
        let is_over = !matches!(is_over.recv_timeout(LOOK_INTERVAL), Err(RecvTimeoutError::Timeout));
        // It may be away; what it keeps it keeps.
        let read = logged.read(port);
        for sid in read.into_iter().flatten() {
            let at = clock.now();
            let what = What::EndLogged { sid };
            diary.send(Event { user: 0, instance: 0, sent: at, told: at, what }).expect("it is read when all is over");
        }
        if is_over {
            return logged;
        }
    }
}

impl Logged {
    /// The sessions whose end is new in the log.
    fn read(&mut self, port: u16) -> std::io::Result<Vec<String>> {
        let from = self.last.as_ref().map_or_else(|| "-".to_owned(), |last| format!("({last}"));
        let text = redis::ask(port, &["XRANGE", LOG, &from, "+"])?;
        let lines: Vec<&str> = text.lines().collect();
        let is_number = |line: &str| {
            let parts = line.split_once('-');
            parts.is_some_and(|(one, two)| one.parse::<u64>().is_ok() && two.parse::<u64>().is_ok())
        };
        let mut new = Vec::new();
        for entry in lines.chunk_by(|_, next| !is_number(next)) {
            let [number, fields @ ..] = entry else { continue };
            self.last = Some((*number).to_owned());
            let field =
                |name: &str| fields.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1).copied());
            let (Some(kind), Some(id)) = (field("kind"), field("id")) else { continue };
            match kind {
                "session" if self.sessions.insert(id.to_owned()) => new.push(id.to_owned()),
                "user" => {
                    let at = field("at").and_then(|at| at.parse().ok()).expect("a time");
                    self.users.push((id.to_owned(), at));
                }
                _ => {}
            }
        }
        Ok(new)
    }

    /// Whether this session of a user has ended.
    pub(super) fn ends(&self, user: &str, sid: &str, began: u64) -> bool {
        self.sessions.contains(sid) || self.users.iter().any(|(id, at)| id == user && began <= *at)
    }
}
