//! The task that keeps the connection up, and tells the log, once for each change, how Redis is.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::link::Link;
use super::{Address, LinkState, Noticed, Outage, RedisFailure, Status};
use crate::shard::clock::{self, Instant};
use crate::telemetry::dependency::{Condition, ConditionChange, LoggedCondition};

/// How often the server is asked whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The pauses between attempts to connect: the first, and the longest. Half of each is chance, so that instances do not
/// come back all at once.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// So long after a request was refused a change, a question that is not refused does not yet say that all are taken: in a
/// cluster it is another server's, and memory comes and goes.
const REFUSING_MIN: Duration = Duration::from_secs(3);

/// A command that changes nothing, and that Redis refuses when it refuses changes, whatever the reason. In a cluster it is
/// asked of the node that has the log of revocations, by a key that whoever may use the log's marks may use.
const PROBE: [&str; 4] = ["SETRANGE", "{shardgate:revocations}:probe", "0", ""];

/// Connects, looks whether the connection is good, and connects anew, until nobody wants it any more.
pub(super) async fn keep_up(
    address: Address,
    tell: watch::Sender<LinkState>,
    mut notices: mpsc::UnboundedReceiver<(u64, Noticed)>,
) {
    let mut number = 0;
    let mut pause = PAUSE[0];
    let mut told = LoggedCondition::default();
    loop {
        number += 1;
        let began = clock::now();
        let connected = tokio::select! {
            connected = connect(&address) => connected,
            () = tell.closed() => return,
        };
        let away = match connected {
            Ok((link, refused)) => {
                pause = PAUSE[0];
                let mut keeper = Keeper { number, address: &address, tell: &tell, told: &mut told, refused_at: None };
                tell.send_modify(|state| (state.number, state.link) = (number, Some(link.clone())));
                keeper.note(refused.as_ref().map(|(class, said)| (*class, &**said)), clock::now().since(began));
                tokio::select! {
                    class = keeper.watch(link, &mut notices) => class,
                    () = tell.closed() => return,
                }
            }
            Err(class) => class,
        };
        if away == Outage::ReadOnly {
            // Another one may have taken over. Until it is found this one is asked: it can be read.
            tokio::select! {
                () = sleep(PROBE_INTERVAL / 4) => {}
                () = tell.closed() => return,
            }
            while notices.try_recv().is_ok() {}
            continue;
        }
        log_change(&mut told, &address, Condition::Away(away.word()), away, "");
        let status = Status::now(Some(away), None, clock::now().since(began));
        tell.send_replace(LinkState { number, link: None, status });
        tokio::select! {
            () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
            () = tell.closed() => return,
        }
        pause = PAUSE[1].min(pause * 2);
    }
}

/// Why changes are refused, and the server's own words.
type Refused = (Outage, Box<str>);

/// Connects and sees whether it is answered: a server that loads its data accepts connections.
async fn connect(address: &Address) -> Result<(Link, Option<Refused>), Outage> {
    let class = |failure| match failure {
        RedisFailure::Away(class) => class,
        RedisFailure::NoChanges(..) | RedisFailure::Refused(_) | RedisFailure::Late => Outage::NotReady,
    };
    let mut link = address.connect(Duration::ZERO).await.map_err(class)?;
    match ask_whether_there(&mut link).await {
        Ok(refused) => Ok((link, refused)),
        Err(failure) => Err(class(failure)),
    }
}

/// Whether the server is there, and whether it takes changes.
async fn ask_whether_there(link: &mut Link) -> Result<Option<Refused>, RedisFailure> {
    let mut probe = Cmd::new();
    probe.arg(&PROBE);
    match link.ask::<Value>(&probe).await {
        Err(RedisFailure::NoChanges(class, said)) => Ok(Some((class, said))),
        // Whatever else it says, it is there: whoever may not ask this may still run the scripts.
        Ok(_) | Err(RedisFailure::Refused(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Keeps one connection up.
struct Keeper<'a> {
    number: u64,
    address: &'a Address,
    tell: &'a watch::Sender<LinkState>,
    told: &'a mut LoggedCondition,
    /// When somebody was last refused a change.
    refused_at: Option<Instant>,
}

impl Keeper<'_> {
    /// Asks again and again whether the server is there, until it is not, somebody else had no answer on this connection,
    /// or it is time to look for another server.
    async fn watch(&mut self, mut link: Link, notices: &mut mpsc::UnboundedReceiver<(u64, Noticed)>) -> Outage {
        let mut due = clock::now() + PROBE_INTERVAL;
        loop {
            if self.is_read_only() {
                return Outage::ReadOnly;
            }
            let noticed = tokio::select! {
                noticed = notices.recv() => noticed,
                () = sleep(due.since(clock::now())) => None,
            };
            match noticed {
                Some((number, Noticed::Failed(class))) if number == self.number => return class,
                Some((_, Noticed::Refused(class, said))) => {
                    self.refused_at = Some(clock::now());
                    let latency = self.tell.borrow().status.latency;
                    self.note(Some((class, &said)), latency);
                    continue;
                }
                // It is about a connection that was given up already.
                Some(_) => continue,
                None => {}
            }
            let began = clock::now();
            due = began + PROBE_INTERVAL;
            let refused = match ask_whether_there(&mut link).await {
                Ok(refused) => refused,
                Err(RedisFailure::Away(class)) => return class,
                Err(_) => None,
            };
            let now = clock::now();
            if refused.is_none() && self.refused_at.is_some_and(|at| now.since(at) < REFUSING_MIN) {
                continue;
            }
            self.note(refused.as_ref().map(|(class, said)| (*class, &**said)), now.since(began));
        }
    }

    fn is_read_only(&self) -> bool {
        self.tell.borrow().status.refuses == Some(Outage::ReadOnly)
    }

    /// It answers, and takes changes or not.
    fn note(&mut self, refused: Option<(Outage, &str)>, latency: Duration) {
        match refused {
            Some((class, said)) => log_change(self.told, self.address, Condition::Refusing(class.word()), class, said),
            None => log_change(self.told, self.address, Condition::Up, Outage::Unknown, ""),
        }
        let status = Status::now(None, refused.map(|(class, _)| class), latency);
        self.tell.send_modify(|state| state.status = status);
    }
}

/// Tells the log what there is to be told. `said` are the server's own words.
fn log_change(told: &mut LoggedCondition, address: &Address, now: Condition, class: Outage, said: &str) {
    let servers = address.servers();
    match told.change(now) {
        Some(ConditionChange::Gone(error)) => tracing::warn!(error, servers, "Redis is away"),
        Some(ConditionChange::Refuses(error)) => tracing::error!(
            error,
            servers,
            said,
            "Redis takes no changes ({error}): {}; until then log-ins, renewals and log-outs are refused with 503",
            class.advice()
        ),
        Some(ConditionChange::There) => tracing::info!(servers, "Redis is there"),
        Some(ConditionChange::Back) => tracing::info!(servers, "Redis is back"),
        None => {}
    }
}
