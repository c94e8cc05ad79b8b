//! What is on the screen, and what keys do to it. A pure core: the time is an argument.

use std::time::Duration;

use super::text;
use crate::admin::state::State;

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Enough.
    End,
    /// The table to the right, or to the left.
    Next,
    Previous,
    /// So many rows down, or up.
    Move(isize),
    /// The first row, or the last.
    First,
    Last,
    /// Routes in another order.
    Sort,
    /// Nothing moves, until this comes again.
    Pause,
}

/// Which table is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Upstreams,
    Shards,
    Routes,
}

impl Tab {
    pub(super) const ALL: [Self; 3] = [Self::Upstreams, Self::Shards, Self::Routes];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Upstreams => "Upstreams",
            Self::Shards => "Shards",
            Self::Routes => "Routes",
        }
    }

    fn beside(self, step: usize) -> Self {
        Self::ALL[(self as usize + step) % Self::ALL.len()]
    }
}

/// What routes are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Requests,
    Errors,
    Slowest,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Errors => "errors",
            Self::Slowest => "p99",
        }
    }
}

/// One per process.
#[derive(Debug)]
pub(super) struct View {
    pub(super) source: String,
    pub(super) state: Option<State>,
    /// Why there is no answer, and since when, as time since 1970.
    pub(super) silence: Option<(String, Duration)>,
    pub(super) tab: Tab,
    pub(super) sort: Sort,
    /// The row at the top.
    pub(super) top: usize,
    pub(super) is_paused: bool,
}

impl View {
    pub(super) fn new(source: &str) -> Self {
        Self {
            source: text::harmless(source, 100),
            state: None,
            silence: None,
            tab: Tab::Upstreams,
            sort: Sort::default(),
            top: 0,
            is_paused: false,
        }
    }

    /// An answer has come, or none.
    pub(super) fn take(&mut self, answer: Result<State, String>, now: Duration) {
        match answer {
            Ok(state) => {
                self.silence = None;
                if !self.is_paused {
                    self.state = Some(state);
                }
            }
            Err(why) => {
                let since = self.silence.as_ref().map_or(now, |(_, since)| *since);
                self.silence = Some((text::harmless(&why, 300), since));
            }
        }
        self.stay_within();
    }

    /// A key was pressed; says whether that is the end.
    pub(super) fn press(&mut self, key: Key) -> bool {
        match key {
            Key::End => return true,
            Key::Next => (self.tab, self.top) = (self.tab.beside(1), 0),
            Key::Previous => (self.tab, self.top) = (self.tab.beside(Tab::ALL.len() - 1), 0),
            Key::Move(rows) => self.top = self.top.saturating_add_signed(rows),
            Key::First => self.top = 0,
            Key::Last => self.top = usize::MAX,
            Key::Sort => {
                self.sort = match self.sort {
                    Sort::Requests => Sort::Errors,
                    Sort::Errors => Sort::Slowest,
                    Sort::Slowest => Sort::Requests,
                };
            }
            Key::Pause => self.is_paused = !self.is_paused,
        }
        self.stay_within();
        false
    }

    fn stay_within(&mut self) {
        let rows = self.rows().1.len();
        self.top = self.top.min(rows.saturating_sub(1));
    }

    /// The table that is shown.
    pub(super) fn rows(&self) -> text::Rows {
        let Some(state) = &self.state else { return (Vec::new(), Vec::new()) };
        match self.tab {
            Tab::Upstreams => text::upstreams(state),
            Tab::Shards => text::shards(state),
            Tab::Routes => {
                let mut sorted = State { routes: state.routes.clone(), ..State::default() };
                match self.sort {
                    Sort::Requests => sorted.routes.sort_by_key(|route| std::cmp::Reverse(route.total)),
                    Sort::Errors => sorted.routes.sort_by_key(|route| std::cmp::Reverse(route.errors)),
                    Sort::Slowest => sorted.routes.sort_by(|one, other| {
                        let time = |route: &crate::admin::state::RouteState| route.p99_ms.unwrap_or(-1.0);
                        time(other).total_cmp(&time(one))
                    }),
                }
                text::routes(&sorted)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::state::{
        HeldState, HistoryState, HubState, InstanceState, ProcessState, RequestsState, RouteState, ShardState,
        UpstreamState,
    };

    /// A gateway of two shards, one of whose instances is drained and another down.
    pub(crate) fn example() -> State {
        let instance = |name: &str, status: &str| InstanceState {
            instance: name.to_owned(),
            address: name.to_owned(),
            status: status.to_owned(),
            in_flight: 1,
            latency_ms: Some(1.5),
            ..InstanceState::default()
        };
        let held = HeldState { state: "drained".to_owned(), by: "ann".to_owned(), at: String::new() };
        let shop = UpstreamState {
            name: "shop".to_owned(),
            status: "degraded".to_owned(),
            error: Some("refused".to_owned()),
            circuit: "closed".to_owned(),
            per_second: Some(812.4),
            failures_per_second: Some(0.3),
            p50_ms: Some(1.26),
            p99_ms: Some(31.0),
            in_flight: 3,
            instances: vec![
                instance("10.0.0.5:9000", "up"),
                InstanceState { held: Some(held), ..instance("10.0.0.6:9000", "up") },
                InstanceState { why: Some("refused".to_owned()), ..instance("10.0.0.7:9000", "down") },
            ],
            ..UpstreamState::default()
        };
        let shard = |shard, busy| ShardState {
            shard,
            answers: shard == 0,
            busy: Some(busy),
            lag_ms: Some(0.4),
            connections: 12,
            requests_per_second: Some(400.0),
            ..ShardState::default()
        };
        let route = |name: &str, total, errors, p99_ms| RouteState {
            name: name.to_owned(),
            total,
            errors,
            per_second: Some(1.0),
            p99_ms,
            ..RouteState::default()
        };
        State {
            format: 1,
            process: ProcessState {
                status: "degraded".to_owned(),
                uptime_seconds: 3_725,
                rss_bytes: Some(42 << 20),
                cpu_cores: Some(0.72),
                ..ProcessState::default()
            },
            shards: vec![shard(0, 0.5), shard(1, 0.25)],
            requests: RequestsState {
                per_second: Some(800.0),
                p50_ms: Some(1.26),
                p99_ms: Some(31.0),
                p999_ms: Some(180.0),
                in_flight: 3,
                ..RequestsState::default()
            },
            history: HistoryState {
                requests: (0..60).map(|second| Some(f64::from(second * 15))).collect(),
                errors: vec![Some(0.3)],
                ..HistoryState::default()
            },
            routes: vec![route("shop", 90, 1, Some(5.0)), route("pay", 10, 3, Some(90.0)), route("new", 5, 0, None)],
            upstreams: vec![shop],
            hub: HubState { enabled: true, sockets: 7, ..HubState::default() },
            ..State::default()
        }
    }

    #[test]
    fn keys_move_within_what_there_is() {
        let mut view = View::new("gate:3001");
        assert!(!view.press(Key::Move(5)) && view.top == 0, "nothing is known yet");
        view.take(Ok(example()), Duration::ZERO);
        view.press(Key::Move(2));
        assert_eq!(view.top, 2);
        view.press(Key::Last);
        assert_eq!(view.top, 3, "an upstream and its instances");
        view.press(Key::Move(-99));
        assert_eq!(view.top, 0);
        view.press(Key::Last);
        view.take(Ok(State::default()), Duration::ZERO);
        assert_eq!(view.top, 0, "what went cannot be looked at");
        for tab in [Tab::Shards, Tab::Routes, Tab::Upstreams] {
            view.press(Key::Next);
            assert_eq!(view.tab, tab);
        }
        view.press(Key::Previous);
        assert_eq!(view.tab, Tab::Routes);
        assert!(view.press(Key::End));
    }

    #[test]
    fn routes_are_sorted_as_wanted() {
        let mut view = View::new("gate:3001");
        view.take(Ok(example()), Duration::ZERO);
        view.tab = Tab::Routes;
        let mut order = || {
            let names: Vec<_> = view.rows().1.into_iter().map(|row| row[0].clone()).collect();
            view.press(Key::Sort);
            names.join(" ")
        };
        assert_eq!([order(), order(), order()], ["shop pay new", "pay shop new", "pay shop new"]);
    }

    #[test]
    fn a_silence_lasts_from_its_beginning() {
        let mut view = View::new("gate:3001");
        let at = Duration::from_secs;
        view.take(Ok(example()), at(1));
        view.take(Err("gone".to_owned()), at(2));
        view.take(Err("still\u{1b}[2J".to_owned()), at(3));
        assert_eq!(view.silence, Some(("still[2J".to_owned(), at(2))));
        assert!(view.state.is_some(), "what was known is still shown");
        view.press(Key::Pause);
        view.take(Ok(State::default()), at(4));
        assert_eq!((view.silence.clone(), view.state.as_ref()), (None, Some(&example())), "a paused screen stays");
    }
}
