//! One honest user: it logs in on some devices, uses, renews and lists its sessions, logs out, and follows the rules of
//! `docs/sessions.md` whenever it gets no answer. A thief comes along now and then with a token that it copied.

mod leaving;

use std::{thread, time::Duration};

use fastrand::Rng;
use serde_json::{Value, json};

use super::{
    ACCESS_MS, KEPT_MS,
    history::{Ms, What},
    plan::{Errand, INSTANCES, Life},
    wire::{Answer, Ask, Outcome, PATIENT, Wire},
};
use crate::sessions::PASSWORD;

/// Devices of one user.
const DEVICES_MAX: usize = 3;
/// Between two tries of what could not be told.
const AGAIN_MS: Ms = 100;
/// What a client has given up may still be under way for so long: as long as Redis may take to answer, and more. Nobody
/// renews twice in that time.
const UNDER_WAY_MS: Ms = 800;

/// A session that this user began and knows.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) sid: String,
    pub(super) access: String,
    pub(super) access_from: Ms,
    pub(super) refresh: String,
    agent: String,
    /// Refresh tokens that were spent, the latest last.
    spent: Vec<String>,
    /// Not renewed again before this.
    rests_until: Ms,
}

/// What remains of a session that has ended.
#[derive(Debug)]
pub(super) struct Ghost {
    pub(super) device: Device,
    pub(super) ended: Ms,
}

#[derive(Debug)]
pub(super) struct User {
    pub(super) email: String,
    pub(super) id: String,
    pub(super) wire: Wire,
    pub(super) devices: Vec<Device>,
    pub(super) ghosts: Vec<Ghost>,
    rng: Rng,
    logged_in: usize,
    is_in_haste: bool,
    patient_until: Ms,
    /// It does not log in before this: an ending of all that was given up may be under way.
    stays_out_until: Ms,
}

impl User {
    /// What it is not told by `patient_until` fails the test.
    pub(super) fn new(email: String, wire: Wire, seed: u64, patient_until: Ms) -> Self {
        Self {
            email,
            id: String::new(),
            wire,
            devices: Vec::new(),
            ghosts: Vec::new(),
            rng: Rng::with_seed(seed),
            logged_in: 0,
            is_in_haste: false,
            patient_until,
            stays_out_until: 0,
        }
    }

    /// Lives until all is calm.
    pub(super) fn live(mut self, life: &Life, calm_at: Ms) -> Self {
        let mut errands = life.errands.iter().peekable();
        while self.wire.clock.now() < calm_at {
            let due = errands.peek().map_or(calm_at, |(at, _)| *at);
            self.wire.clock.wait_until(due.min(self.wire.clock.now() + self.rng.u64(100..900)));
            match errands.next_if(|(at, _)| *at <= self.wire.clock.now()) {
                Some((_, errand)) => self.run(*errand),
                None => self.do_something(),
            }
        }
        self
    }

    fn run(&mut self, errand: Errand) {
        match (errand, self.devices.is_empty()) {
            (_, true) => self.log_in(),
            (Errand::LogOut, _) => self.log_out(),
            (Errand::LogOutEverywhere(instance), _) => {
                self.is_in_haste = true;
                self.log_out_everywhere(instance);
                self.is_in_haste = false;
                self.log_in();
            }
            (Errand::Renew(instance), _) => {
                let place = self.rng.usize(0..self.devices.len());
                self.is_in_haste = true;
                // A browser in use renews when it needs to, and would have spent another token by the time.
                let _ = self.renew(place, instance) && self.renew(place, (instance + 1) % INSTANCES);
                self.is_in_haste = false;
            }
        }
    }

    fn do_something(&mut self) {
        if self.devices.is_empty() {
            return self.log_in();
        }
        let place = self.rng.usize(0..self.devices.len());
        match self.rng.u8(0..100) {
            0..25 if self.devices.len() < DEVICES_MAX => self.log_in(),
            0..45 => self.call(place),
            45..50 => self.renew_in_two_tabs(place),
            50..70 => {
                let instance = self.rng.usize(0..INSTANCES);
                self.renew(place, instance);
            }
            70..80 => self.list(place),
            80..84 => self.log_out(),
            84..88 => self.delete_another(),
            88 => {
                let instance = self.instance();
                self.log_out_everywhere(instance);
            }
            89..92 => self.be_robbed(place),
            _ => self.haunt(),
        }
    }

    fn instance(&mut self) -> usize {
        self.rng.usize(0..INSTANCES)
    }

    /// Some leave soon, and ask somebody else.
    fn patience(&mut self) -> Duration {
        match self.rng.u8(0..10) {
            _ if self.is_in_haste => Duration::from_millis(self.rng.u64(200..400)),
            0..4 => PATIENT,
            _ => Duration::from_millis(self.rng.u64(300..1_000)),
        }
    }

    /// Asks one instance after the other until somebody can say what is.
    fn ask_until_told(&mut self, first: usize, ask: &Ask<'_>) -> (Outcome, bool) {
        let (mut instance, mut is_again) = (first, false);
        loop {
            let patience = self.patience();
            let outcome = self.wire.ask(instance, patience, ask);
            if !outcome.is_unknown() {
                return (outcome, is_again);
            }
            is_again = true;
            self.wait_a_little();
            instance = (instance + usize::from(self.rng.bool())) % INSTANCES;
        }
    }

    fn log_in(&mut self) {
        self.wire.clock.wait_until(self.stays_out_until);
        self.logged_in += 1;
        let agent = format!("device-{}-{}", self.wire.user, self.logged_in);
        let body = json!({ "email": self.email, "password": PASSWORD });
        let ask = Ask { method: "POST", path: "/auth/login", token: None, agent: &agent, body: Some(body) };
        let (instance, patience) = (self.instance(), self.patience());
        let outcome = self.wire.ask(instance, patience, &ask);
        match &outcome.answer {
            Answer::Done(body) => {
                let sid = text(&body["user"]["sid"]);
                self.id = text(&body["user"]["sub"]);
                let (access, refresh) = (text(&body["accessToken"]), text(&body["refreshToken"]));
                let (access_from, rests_until) = (outcome.sent, 0);
                self.wire.tell(&outcome, What::Began { sid: sid.clone() });
                let device = Device { sid, access, access_from, refresh, agent, spent: Vec::new(), rests_until };
                self.devices.push(device);
            }
            Answer::Refused(_, code) => {
                let answer = format!("{code} to a log-in");
                self.wire.tell(&outcome, What::Odd { answer });
            }
            Answer::Unknown => self.wire.tell(&outcome, What::BeganPerhaps { agent }),
        }
    }

    /// A guarded request, on one route or another.
    fn call(&mut self, place: usize) {
        if !self.freshen(place) {
            return;
        }
        let (instance, patience, route) = (self.instance(), self.patience(), self.rng.usize(0..ROUTES.len()));
        call(&self.wire, instance, patience, route, &self.devices[place]);
    }

    /// Renews what is soon too old. Says whether there is still a session.
    fn freshen(&mut self, place: usize) -> bool {
        let instance = self.instance();
        self.wire.clock.now() <= self.devices[place].access_from + ACCESS_MS * 3 / 4 || self.renew(place, instance)
    }

    /// Renews, again and again if need be, each time with the same token. Says whether there is still a session.
    pub(super) fn renew(&mut self, place: usize, first: usize) -> bool {
        self.wire.clock.wait_until(self.devices[place].rests_until);
        self.renew_since(place, first, self.wire.clock.now(), false)
    }

    /// Two tabs renew at once, at two instances. Both are good.
    fn renew_in_two_tabs(&mut self, place: usize) {
        let device = &self.devices[place];
        self.wire.clock.wait_until(device.rests_until);
        let (wire, patience, since) = (&self.wire, PATIENT, self.wire.clock.now());
        let (sid, token, agent) = (&device.sid, &device.refresh, &device.agent);
        let outcomes = thread::scope(|scope| {
            let tabs = [0, 1].map(|instance| scope.spawn(move || renew(wire, instance, patience, token, agent)));
            tabs.map(|tab| tab.join().expect("a tab is told something"))
        });
        let told =
            outcomes.each_ref().map(|outcome| if let Answer::Done(body) = &outcome.answer { Some(body) } else { None });
        if let [Some(one), Some(two)] = told
            && one["refreshToken"] != two["refreshToken"]
        {
            self.wire.tell(&outcomes[1], What::Odd { answer: "two successors of one token".to_owned() });
        }
        for outcome in &outcomes {
            if let Some(code) = outcome.code() {
                let (sid, code) = (sid.clone(), code.to_owned());
                self.wire.tell(outcome, What::NotRenewed { sid, code, since });
            }
        }
        // What both know is asked for once more by whoever knows nothing: it is the same token still.
        self.renew_since(place, 0, since, true);
    }

    /// Presents a token that was presented first at this time.
    fn renew_since(&mut self, place: usize, first: usize, since: Ms, was_asked: bool) -> bool {
        let (mut instance, mut is_again) = (first, was_asked);
        let device = &self.devices[place];
        let (token, agent) = (device.refresh.clone(), device.agent.clone());
        loop {
            let patience = self.patience();
            let outcome = renew(&self.wire, instance, patience, &token, &agent);
            match &outcome.answer {
                Answer::Done(body) => {
                    let device = &mut self.devices[place];
                    self.wire.tell(&outcome, What::Renewed { sid: device.sid.clone() });
                    device.access = text(&body["accessToken"]);
                    device.access_from = outcome.sent;
                    device.spent.push(std::mem::replace(&mut device.refresh, text(&body["refreshToken"])));
                    if is_again {
                        device.rests_until = outcome.told + UNDER_WAY_MS;
                    }
                    return true;
                }
                Answer::Refused(_, code) => {
                    let device = self.devices.remove(place);
                    let (sid, code) = (device.sid.clone(), code.clone());
                    self.wire.tell(&outcome, What::NotRenewed { sid: sid.clone(), code, since });
                    // It is told that its session is over, rightly or not.
                    self.wire.tell(&outcome, What::EndTold { sid });
                    self.ghosts.push(Ghost { device, ended: outcome.told });
                    return false;
                }
                Answer::Unknown => {
                    is_again = true;
                    self.wait_a_little();
                    instance = (instance + 1) % INSTANCES;
                }
            }
        }
    }

    fn list(&mut self, place: usize) {
        if !self.freshen(place) {
            return;
        }
        let (instance, patience) = (self.instance(), self.patience());
        list(&self.wire, instance, patience, &self.devices[place]);
    }

    /// Until it asks again. Meanwhile somebody else presents a token that ended lately where a role is asked for.
    fn wait_a_little(&mut self) {
        let (user, now) = (self.wire.user, self.wire.clock.now());
        assert!(now < self.patient_until, "after {now} ms user {user} is still not told what it asks");
        if self.is_in_haste {
            return self.wire.clock.wait_until(self.wire.clock.now() + AGAIN_MS / 5);
        }
        self.wire.clock.wait_until(self.wire.clock.now() + AGAIN_MS);
        let (instance, patience, now) = (self.instance(), self.patience(), self.wire.clock.now());
        let lately = self.ghosts.iter().rev().find(|ghost| now < ghost.device.access_from + ACCESS_MS);
        if let Some(ghost) = lately.filter(|_| self.rng.bool()) {
            call(&self.wire, instance, patience, ADMIN, &ghost.device);
        }
    }

    /// Presents the tokens of a session that has ended.
    fn haunt(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let (instance, patience) = (self.instance(), self.patience());
        let now = self.wire.clock.now();
        let ghost = &self.ghosts[self.rng.usize(0..self.ghosts.len())];
        if now < ghost.device.access_from + ACCESS_MS {
            let route = self.rng.usize(0..ROUTES.len());
            call(&self.wire, instance, patience, route, &ghost.device);
        }
        // Not sooner: a renewal would finish what is half done, and nobody would see that it was.
        if now > ghost.ended + KEPT_MS {
            ghost.present(&self.wire, instance, patience);
        }
    }
}

impl Ghost {
    /// Presents its refresh token.
    pub(super) fn present(&self, wire: &Wire, instance: usize, patience: Duration) -> Outcome {
        let outcome = renew(wire, instance, patience, &self.device.refresh, "ghost");
        if outcome.is_done() {
            wire.tell(&outcome, What::Renewed { sid: self.device.sid.clone() });
        }
        outcome
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn post<'a>(path: &'a str, token: &'a str, agent: &'a str) -> Ask<'a> {
    Ask { method: "POST", path, token: Some(token), agent, body: Some(json!({})) }
}

fn renew(wire: &Wire, instance: usize, patience: Duration, token: &str, agent: &str) -> Outcome {
    let body = Some(json!({ "refreshToken": token }));
    wire.ask(instance, patience, &Ask { method: "POST", path: "/auth/refresh", token: None, agent, body })
}

/// Routes that ask for a token, one of them for a role, and one that asks for none.
pub(super) const ROUTES: [&str; 3] = ["/any/x", "/admin", "/open"];
const ADMIN: usize = 1;

/// A request with an access token, on one of the routes.
pub(super) fn call(wire: &Wire, instance: usize, patience: Duration, route: usize, device: &Device) -> Outcome {
    let (path, sid) = (ROUTES[route], device.sid.clone());
    let ask = Ask { method: "GET", path, token: Some(&device.access), agent: &device.agent, body: None };
    let outcome = wire.ask(instance, patience, &ask);
    match outcome.code() {
        None if outcome.is_done() && path != "/open" => {
            wire.tell(&outcome, What::Admitted { sid, asks_for_role: path == "/admin" });
        }
        None => {}
        Some("token_revoked") => wire.tell(&outcome, What::Revoked { sid }),
        Some("token_expired") if outcome.told > device.access_from + ACCESS_MS => {}
        Some(code) => {
            let answer = format!("{code} to a GET of {path}");
            wire.tell(&outcome, What::Odd { answer });
        }
    }
    outcome
}

/// The sessions that are listed, and their user agents.
pub(super) fn list(wire: &Wire, instance: usize, patience: Duration, device: &Device) -> Outcome {
    let (method, path, agent) = ("GET", "/auth/sessions", device.agent.as_str());
    let outcome = wire.ask(instance, patience, &Ask { method, path, token: Some(&device.access), agent, body: None });
    match &outcome.answer {
        Answer::Done(body) => {
            let sessions = body["sessions"].as_array().cloned().unwrap_or_default();
            let sessions = sessions.iter().map(|entry| (text(&entry["sid"]), text(&entry["userAgent"]))).collect();
            wire.tell(&outcome, What::Listed { sessions });
        }
        Answer::Refused(_, code) if code == "token_revoked" => {
            wire.tell(&outcome, What::Revoked { sid: device.sid.clone() });
        }
        Answer::Refused(..) | Answer::Unknown => {}
    }
    outcome
}
