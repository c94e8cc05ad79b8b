//! What users, the nemesis and the log saw, and the judge of it: pure.
//!
//! Each user does one thing after the other, so what one user saw has an order; between users there are only times. All
//! times are milliseconds since the beginning, by one clock.

use std::collections::BTreeMap;

use super::GRACE_MS;

pub(super) type Ms = u64;

/// For so long an instance may not yet know what is in the log, with nothing wrong. It is told within milliseconds; this
/// is for a machine that runs other tests, and for the pauses of whoever connects again.
pub(super) const KNOWN_MAX_MS: Ms = 5_000;
/// Role-guarded routes know what is as old as this, whatever goes wrong.
pub(super) const STALENESS_MAX_MS: Ms = 2_000;
/// Around a fault, for so long, an answer may come before the instance's own shards have been told.
const SETTLE_MS: Ms = 2_000;
/// Any request is answered or refused within this.
pub(super) const ANSWER_MAX_MS: Ms = 6_000;

/// A complaint tells so much of what led to it.
const BEFORE_MS: Ms = 6_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Redis,
    Instance(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) target: Target,
    pub(super) from: Ms,
    pub(super) till: Ms,
    pub(super) what: &'static str,
}

/// One thing that somebody saw.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) user: usize,
    pub(super) instance: usize,
    pub(super) sent: Ms,
    pub(super) told: Ms,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// A log-in was answered.
    Began { sid: String },
    /// A log-in with this user agent had no answer that tells whether a session began.
    BeganPerhaps { agent: String },
    /// Somebody begins to ask for the end of this session.
    EndAsked { sid: String },
    /// Whoever asked was told that it has ended.
    EndTold { sid: String },
    /// Whoever asks again for a log-out, as nobody could say whether it was done, gets this instead of a yes.
    EndDenied { sid: String, code: String },
    /// Its end stands in the log.
    EndLogged { sid: String },
    /// A guarded request was served.
    Admitted { sid: String, asks_for_role: bool },
    /// Whoever asks for its end from the list, for the first time, is told that there is no such session.
    Missing { sid: String },
    /// A guarded request was refused as the session has ended.
    Revoked { sid: String },
    /// A refresh token was good.
    Renewed { sid: String },
    /// A refresh token was not; it was presented first at this time.
    NotRenewed { sid: String, code: String, since: Ms },
    /// The sessions of a user, with their user agents.
    Listed { sessions: Vec<(String, String)> },
    /// No answer came: in time, or before the connection was closed.
    Silence { is_closed: bool },
    /// An answer that no document tells of.
    Odd { answer: String },
    /// All is over, and a session whose end is in the log is still kept.
    HalfDone { sid: String },
    /// All is over, and still this cannot be had.
    Stuck { answer: String },
}

#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) faults: Vec<Fault>,
}

/// What is wrong, as a word and a sentence.
#[derive(Debug)]
pub(super) struct Complaint {
    pub(super) kind: Kind,
    pub(super) user: usize,
    pub(super) at: Ms,
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Forgotten,
    HalfDone,
    LoggedOut,
    Disagreement,
    Unanswered,
}

#[derive(Debug)]
struct Session {
    user: usize,
    began: Ms,
    asked: Option<Ms>,
    /// When, and by whom.
    told: Option<(Ms, usize)>,
    logged: Option<Ms>,
}

impl History {
    /// All that is wrong, in order.
    pub(super) fn complaints(&mut self) -> Vec<Complaint> {
        // Stable: what one user saw keeps its order.
        self.events.sort_by_key(|event| event.told);
        let mut judge = Judge { faults: self.faults.clone(), ..Judge::default() };
        // What the log says counts from when it was read, whoever began the session.
        for event in &self.events {
            if let What::EndLogged { sid } = &event.what {
                judge.logged.entry(sid.clone()).or_insert(event.told);
            }
        }
        self.events.iter().for_each(|event| judge.see(event));
        judge.complaints
    }

    /// What led to a complaint: what its user saw in the seconds before.
    pub(super) fn before(&self, complaint: &Complaint) -> Vec<String> {
        let is_before = |event: &&Event| {
            event.user == complaint.user && event.told <= complaint.at && event.told + BEFORE_MS >= complaint.at
        };
        let line = |event: &Event| {
            let Event { instance, sent, told, what, .. } = event;
            format!("    {sent}..{told} ms, instance {instance}: {what:?}")
        };
        self.events.iter().filter(is_before).map(line).collect()
    }
}

#[derive(Debug, Default)]
struct Judge {
    faults: Vec<Fault>,
    sessions: BTreeMap<String, Session>,
    logged: BTreeMap<String, Ms>,
    /// User agents of log-ins that may have begun a session.
    perhaps: BTreeMap<(usize, String), Ms>,
    complaints: Vec<Complaint>,
}

impl Judge {
    fn see(&mut self, event: &Event) {
        let Event { user, instance, sent, told, ref what } = *event;
        match what {
            What::Began { sid } => {
                let logged = self.logged.get(sid).copied();
                let session = Session { user, began: told, asked: None, told: None, logged };
                self.sessions.insert(sid.clone(), session);
            }
            What::BeganPerhaps { agent } => _ = self.perhaps.insert((user, agent.clone()), told),
            What::EndAsked { sid } => self.change(sid, |session| _ = session.asked.get_or_insert(sent)),
            What::EndTold { sid } => self.change(sid, |session| {
                session.asked.get_or_insert(sent);
                session.told.get_or_insert((told, instance));
            }),
            What::EndLogged { .. } => {}
            What::EndDenied { code, .. } => {
                self.complain(Kind::HalfDone, event, &format!("a log-out that was asked again is told {code}"));
            }
            What::Admitted { sid, asks_for_role } => self.admitted(event, sid, *asks_for_role),
            What::Revoked { sid } => {
                if self.sessions.get(sid).is_some_and(|session| session.asked.is_none()) {
                    self.complain(
                        Kind::LoggedOut,
                        event,
                        "a token is refused as revoked, and nobody ended its session",
                    );
                }
            }
            What::Missing { .. } => {
                self.complain(
                    Kind::LoggedOut,
                    event,
                    "it cannot be ended from the list, and nobody had ended it before",
                );
            }
            What::Renewed { sid } => self.renewed(event, sid),
            What::NotRenewed { sid, code, since } => {
                let is_asked = self.sessions.get(sid).is_some_and(|session| session.asked.is_some());
                // Later than that after its use it counts as reuse, and its use may have been the first try.
                if !is_asked && told - since < GRACE_MS {
                    let since = told - since;
                    let text = format!("{code}, {since} ms after its first try, and nobody ended its session");
                    self.complain(Kind::LoggedOut, event, &text);
                }
            }
            What::Listed { sessions } => self.listed(event, sessions),
            What::Silence { is_closed } => self.silence(event, *is_closed),
            What::Odd { answer } => self.complain(Kind::Unanswered, event, &format!("answered oddly: {answer}")),
            What::HalfDone { .. } => {
                self.complain(Kind::HalfDone, event, "its end is in the log, and it is still kept");
            }
            What::Stuck { answer } => {
                self.complain(Kind::Unanswered, event, &format!("all is over, and still: {answer}"));
            }
        }
    }

    fn change(&mut self, sid: &str, how: impl FnOnce(&mut Session)) {
        // What others began is not there: a session that nobody knew may be ended by its list.
        if let Some(session) = self.sessions.get_mut(sid) {
            how(session);
        }
    }

    fn admitted(&mut self, event: &Event, sid: &str, asks_for_role: bool) {
        let Some(&Session { told: Some((ended, by)), .. }) = self.sessions.get(sid) else { return };
        let Event { instance, sent, told, .. } = *event;
        let late = sent.saturating_sub(ended);
        let text = if asks_for_role && sent > ended + STALENESS_MAX_MS {
            "to a role's route, past the staleness that may be"
        } else if sent > ended.max(self.calm_since(instance, told)) + KNOWN_MAX_MS {
            "by an instance that had the time to know"
        } else if instance == by && sent > ended && self.is_quiet(instance, ended.saturating_sub(SETTLE_MS), told) {
            "by the instance that told it"
        } else {
            return;
        };
        self.complain(Kind::Forgotten, event, &format!("admitted {late} ms after its end was told, {text}"));
    }

    fn renewed(&mut self, event: &Event, sid: &str) {
        let Some(session) = self.sessions.get(sid) else { return };
        let Event { instance, sent, told, .. } = *event;
        if let Some((ended, _)) = session.told.filter(|(ended, _)| sent > *ended) {
            let late = sent - ended;
            self.complain(Kind::Forgotten, event, &format!("renewed {late} ms after its end was told"));
        } else if let Some(logged) = session.logged
            && sent > logged.max(self.calm_since(instance, told)) + KNOWN_MAX_MS
        {
            self.complain(Kind::Forgotten, event, &format!("renewed {} ms after its end was logged", sent - logged));
        }
    }

    fn listed(&mut self, event: &Event, listed: &[(String, String)]) {
        let Event { user, instance, sent, told, .. } = *event;
        let calm = self.calm_since(instance, told);
        let is_over = |session: &Session| {
            let is_told = session.told.is_some_and(|(ended, _)| sent > ended);
            is_told || session.logged.is_some_and(|logged| sent > logged.max(calm) + KNOWN_MAX_MS)
        };
        let mut wrong: Vec<(String, Kind, &str)> = Vec::new();
        for (sid, agent) in listed {
            match self.sessions.get(sid) {
                Some(session) if is_over(session) => {
                    wrong.push((sid.clone(), Kind::Disagreement, "is listed, and has ended"));
                }
                Some(_) => {}
                None if self.perhaps.contains_key(&(user, agent.clone())) => {}
                None => wrong.push((sid.clone(), Kind::Disagreement, "is listed, and nobody began it")),
            }
        }
        let is_listed = |sid: &str| listed.iter().any(|(listed, _)| listed == sid);
        for (sid, session) in &self.sessions {
            if session.user == user && session.began <= sent && session.asked.is_none() && !is_listed(sid) {
                wrong.push((sid.clone(), Kind::Disagreement, "is not listed, and goes on"));
            }
        }
        wrong.sort();
        for (sid, kind, text) in wrong {
            self.complain(kind, event, &format!("{sid} {text}"));
        }
    }

    fn silence(&mut self, event: &Event, is_closed: bool) {
        let Event { instance, sent, told, .. } = *event;
        let is_excused = |fault: &&Fault| fault.target == Target::Instance(instance) && overlaps(fault, sent, told);
        if self.faults.iter().find(is_excused).is_some() {
            return;
        }
        let waited = told - sent;
        if is_closed {
            self.complain(Kind::Unanswered, event, &format!("closed after {waited} ms without an answer"));
        } else if waited >= ANSWER_MAX_MS {
            self.complain(Kind::Unanswered, event, &format!("no answer in {waited} ms"));
        }
    }

    /// When the last fault was over that touched what this instance knows, of those that had begun by then.
    fn calm_since(&self, instance: usize, at: Ms) -> Ms {
        let touches = |fault: &&Fault| touches(fault, instance) && fault.from <= at;
        self.faults.iter().filter(touches).map(|fault| fault.till).max().unwrap_or(0)
    }

    fn is_quiet(&self, instance: usize, from: Ms, till: Ms) -> bool {
        !self.faults.iter().any(|fault| touches(fault, instance) && overlaps(fault, from, till))
    }

    fn complain(&mut self, kind: Kind, event: &Event, text: &str) {
        let Event { user, instance, sent, told, what } = event;
        let near = |fault: &&Fault| overlaps(fault, sent.saturating_sub(8_000), *told);
        let name = |fault: &Fault| format!("{} {:?} {}..{}", fault.what, fault.target, fault.from, fault.till);
        let near: Vec<String> = self.faults.iter().filter(near).map(name).collect();
        let sid = what.sid().unwrap_or_default();
        let near = near.join(", ");
        let text = format!("user {user} {sid} instance {instance}, {sent}..{told} ms: {text} [{near}]");
        self.complaints.push(Complaint { kind, user: *user, at: *told, text });
    }
}

fn touches(fault: &Fault, instance: usize) -> bool {
    fault.target == Target::Redis || fault.target == Target::Instance(instance)
}

fn overlaps(fault: &Fault, from: Ms, till: Ms) -> bool {
    fault.from <= till && from <= fault.till
}

impl What {
    fn sid(&self) -> Option<&str> {
        match self {
            Self::Began { sid }
            | Self::EndAsked { sid }
            | Self::EndTold { sid }
            | Self::EndDenied { sid, .. }
            | Self::EndLogged { sid }
            | Self::Admitted { sid, .. }
            | Self::Missing { sid }
            | Self::Revoked { sid }
            | Self::Renewed { sid }
            | Self::NotRenewed { sid, .. }
            | Self::HalfDone { sid } => Some(sid),
            Self::BeganPerhaps { .. }
            | Self::Listed { .. }
            | Self::Silence { .. }
            | Self::Odd { .. }
            | Self::Stuck { .. } => None,
        }
    }
}
