//! Lifecycle events on their way to the service that wants them: at least once, in order for each room and user, and in
//! nobody's way.

use std::{collections::VecDeque, net::Ipv4Addr, rc::Rc, time::Duration};

use super::{
    Sockets,
    plan::EventsPlan,
    service::{self, Message},
};
use crate::{
    hub::{events::Event, position::Epoch},
    net::Scheme,
    shard::{Local, clock, complaints::Complaints, task, timer},
    telemetry::metrics::HubEvent,
};

/// Events of a shard that are on their way at once. Those of one room or user go one after the other.
const LANES: usize = 8;

/// How long it takes until an event is sent again that was not taken, the first time and at most. In between it doubles.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// The events of a shard that wait. One per shard.
#[derive(Default)]
pub(super) struct Events(Local<Board>);

#[derive(Default)]
struct Board {
    lanes: [Lane; LANES],
    /// That of the bus, where it keeps the events.
    epoch: Option<Epoch>,
    dropped: Complaints,
    refused: Complaints,
    late: Complaints,
}

#[derive(Default)]
struct Lane {
    /// The oldest first; the one that is being sent is not among them.
    waiting: VecDeque<Event>,
    /// Whether a task sends them.
    is_sending: bool,
}

/// What has become of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Delivered,
    /// The service does not want it, and would not the next time.
    Refused,
    /// It may be taken later.
    Later,
    /// Nobody wants events any more.
    Off,
}

impl Events {
    /// How many are on their way.
    pub(super) fn waiting(&self) -> usize {
        self.0.with(|board| board.lanes.iter().map(|lane| lane.waiting.len() + usize::from(lane.is_sending)).sum())
    }

    /// Queues one; past the bound the oldest goes. Says whether the lane needs a task, and whether one was dropped.
    fn push(&self, event: Event, waiting_max: usize) -> (usize, bool, bool) {
        let number = usize::try_from(event.lane % LANES as u64).unwrap_or_default();
        self.0.with(|board| {
            let lane = &mut board.lanes[number];
            let is_full = lane.waiting.len() >= waiting_max.div_ceil(LANES).max(1);
            if is_full {
                lane.waiting.pop_front();
            }
            lane.waiting.push_back(event);
            (number, !std::mem::replace(&mut lane.is_sending, true), is_full)
        })
    }

    /// The bus counts anew. A service that is told of an epoch forgets what it was told before: what is of another one would
    /// be taken for news.
    pub(super) fn begin(&self, epoch: Epoch) {
        self.0.with(|board| {
            board.epoch = Some(epoch);
            for lane in &mut board.lanes {
                lane.waiting.retain(|event| event.position.is_none_or(|position| position.epoch == epoch));
            }
        });
    }

    /// Whether the bus has begun another epoch since it gave this out.
    fn is_over(&self, event: &Event) -> bool {
        let epoch = self.0.with(|board| board.epoch);
        event.position.zip(epoch).is_some_and(|(position, epoch)| position.epoch != epoch)
    }

    /// A lane's task has ended: the next event begins another.
    fn stop(&self, number: usize) {
        self.0.with(|board| board.lanes[number].is_sending = false);
    }

    /// The next of a lane; without one its task is over.
    fn next(&self, number: usize) -> Option<Event> {
        self.0.with(|board| {
            let lane = &mut board.lanes[number];
            let next = lane.waiting.pop_front();
            lane.is_sending = next.is_some();
            if next.is_none() {
                lane.waiting = VecDeque::new();
            }
            next
        })
    }
}

impl Sockets {
    /// How many events wait for the service.
    pub(in crate::gateway) fn events_waiting(&self) -> usize {
        self.events.waiting()
    }

    /// Sends an event, behind those that wait.
    pub(super) fn send_event(self: &Rc<Self>, event: Event) {
        let Some(gateway) = self.gateway() else { return };
        let live = gateway.live();
        let Some(plan) = &live.plan.hub.events else { return self.event_is_done(&event, false) };
        if !plan.wants(event.kind) {
            return self.event_is_done(&event, true);
        }
        // How many wait at the bus, it bounds itself; here are only some of them.
        let is_kept = event.position.is_some();
        let waiting_max = if is_kept { usize::MAX } else { plan.waiting_max.div_ceil(self.shards) };
        let (lane, needs_task, is_one_dropped) = self.events.push(event, waiting_max);
        if is_one_dropped {
            self.count_dropped(1);
        }
        if needs_task {
            task::spawn("the hub's lifecycle events", Rc::clone(self).send_lane(lane));
        }
    }

    /// Sends what waits in a lane, each until it is taken. Dropping it loses the event that is under way.
    async fn send_lane(self: Rc<Self>, lane: usize) {
        let _sending = Sending { events: &self.events, lane };
        let mut pause = AGAIN_MIN;
        while let Some(event) = self.events.next(lane) {
            let is_taken = loop {
                if event.position.is_some() && !self.has_bus() {
                    // Another instance may send what the bus keeps, and it may have begun another epoch.
                    timer::sleep(AGAIN_MIN).await;
                    continue;
                }
                if self.events.is_over(&event) {
                    break false;
                }
                match self.attempt(&event).await {
                    Attempt::Delivered => {
                        self.count_event(HubEvent::Delivered);
                        break true;
                    }
                    Attempt::Refused => {
                        self.count_event(HubEvent::Refused);
                        break true;
                    }
                    Attempt::Off => break false,
                    Attempt::Later => {
                        // Lanes and shards that failed together do not come back together.
                        let jitter = self.ledger.with(|ledger| ledger.rng.f64());
                        timer::sleep(pause.mul_f64(0.5 + jitter / 2.0)).await;
                        pause = (pause * 2).min(AGAIN_MAX);
                    }
                }
            };
            pause = AGAIN_MIN;
            self.event_is_done(&event, is_taken);
            self.settle();
        }
    }

    /// An event needs not be sent any more, or could not be sent here. What the hub wants done for it is for
    /// [`Sockets::settle`].
    fn event_is_done(&self, event: &Event, is_taken: bool) {
        if let Some(position) = event.position {
            self.hub.with(|hub| hub.event_is_done(position, is_taken));
        }
    }

    /// Events were dropped: counts them, and tells the log once a second.
    pub(super) fn count_dropped(&self, count: u64) {
        self.ledger.with(|ledger| ledger.counters.hub_events[HubEvent::Dropped.index()] += count);
        let told = self.events.0.with(|board| board.dropped.add(clock::now(), count));
        if let Some(count) = told {
            tracing::warn!(
                upstream = self.events_upstream(),
                count,
                "lifecycle events of the hub were dropped: more wait than hub.events_waiting_max"
            );
        }
    }

    /// The service did not take an event: tells the log once a second.
    fn complain(&self, attempt: Attempt, status: Option<u16>) {
        let is_refused = attempt == Attempt::Refused;
        let told = self.events.0.with(|board| {
            let untold = if is_refused { &mut board.refused } else { &mut board.late };
            untold.add(clock::now(), 1)
        });
        let (Some(count), upstream) = (told, self.events_upstream()) else { return };
        if is_refused {
            tracing::warn!(
                upstream,
                status,
                count,
                "lifecycle events of the hub were refused and are not sent again; is hub.events_path right?"
            );
        } else {
            tracing::warn!(
                upstream,
                status,
                count,
                "lifecycle events of the hub are not taken, and will be sent again"
            );
        }
    }

    fn events_upstream(&self) -> Option<String> {
        let gateway = self.gateway()?;
        let live = gateway.live();
        live.plan.hub.events.as_ref().map(|plan| live.plan.upstreams[plan.to.upstream].name.clone())
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let Some(gateway) = self.gateway() else { return Attempt::Off };
        let live = gateway.live();
        let Some(EventsPlan { to, .. }) = &live.plan.hub.events else { return Attempt::Off };
        // Its labels are behind those of the services.
        let (Some(upstream), Some(labels)) = (live.upstreams.get(to.upstream), live.service_labels.last()) else {
            return Attempt::Off;
        };
        let message = Message {
            path: &to.path,
            timeout: to.timeout,
            key: Some(event.key.as_bytes().to_vec()),
            caller: None,
            client: Ipv4Addr::LOCALHOST.into(),
            scheme: Scheme::Http,
            payload: event.json.as_bytes().to_vec(),
            answer_bytes_max: None,
        };
        let answered = service::post(&gateway, upstream, labels, message).await;
        let status = answered.ok().map(|answered| answered.status);
        let attempt = attempt_of(status);
        if attempt != Attempt::Delivered {
            self.complain(attempt, status);
        }
        attempt
    }

    fn count_event(&self, event: HubEvent) {
        self.ledger.with(|ledger| ledger.counters.hub_events[event.index()] += 1);
    }
}

/// A lane whose task runs, also if it ends in a panic.
struct Sending<'e> {
    events: &'e Events,
    lane: usize,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.events.stop(self.lane);
    }
}

/// What an answer's status says; none is no answer.
fn attempt_of(status: Option<u16>) -> Attempt {
    match status {
        Some(200..=299) => Attempt::Delivered,
        // Too early, too many, too slow: the same is welcome another time.
        Some(408 | 425 | 429 | 500..) | None => Attempt::Later,
        Some(_) => Attempt::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::events::EventKind;

    fn event(lane: u64, key: &str) -> Event {
        Event { kind: EventKind::RoomOccupied, lane, key: key.into(), json: "{}".into(), position: None }
    }

    #[test]
    fn a_lane_is_in_order_and_loses_its_oldest() {
        let events = Events::default();
        let max = 2 * LANES;
        assert_eq!(events.push(event(3, "1"), max), (3, true, false));
        assert_eq!(events.next(3).map(|event| event.key), Some("1".into()), "it is being sent");
        for (key, is_one_dropped) in [("2", false), ("3", false), ("4", true)] {
            assert_eq!(events.push(event(3 + LANES as u64, key), max), (3, false, is_one_dropped));
        }
        assert_eq!((events.push(event(4, "5"), max), events.waiting()), ((4, true, false), 5));
        let rest: Vec<_> = std::iter::from_fn(|| events.next(3)).map(|event| event.key).collect();
        assert_eq!(rest.iter().map(|key| &**key).collect::<Vec<_>>(), ["3", "4"]);
        assert_eq!(events.push(event(3, "6"), max), (3, true, false), "its task is over");
        drop(Sending { events: &events, lane: 3 });
        assert_eq!(events.push(event(3, "7"), max), (3, true, false), "its task has panicked");
    }

    #[test]
    fn what_is_not_taken_is_sent_again_unless_it_is_not_wanted() {
        for (status, attempt) in [
            (Some(204), Attempt::Delivered),
            (Some(400), Attempt::Refused),
            (Some(302), Attempt::Refused),
            (Some(429), Attempt::Later),
            (Some(503), Attempt::Later),
            (None, Attempt::Later),
        ] {
            assert_eq!(attempt_of(status), attempt, "{status:?}");
        }
    }
}
