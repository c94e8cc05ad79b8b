//! How a user's sessions end: by its own will, again and again until it is told that they have, or by a thief.

use super::{Device, Ghost, UNDER_WAY_MS, User, post, renew, text};
use crate::sessions::soak::{
    history::What,
    plan::INSTANCES,
    wire::{Answer, Ask, Outcome},
};

impl User {
    pub(super) fn log_out(&mut self) {
        let (place, instance) = (self.rng.usize(0..self.devices.len()), self.instance());
        let device = self.devices.remove(place);
        self.end(device, instance);
    }

    /// Asks for the end of a session until it is told that it has ended.
    pub(in super::super) fn end(&mut self, mut device: Device, first: usize) {
        self.wire.tell_now(What::EndAsked { sid: device.sid.clone() });
        let mut is_again = false;
        let ended = loop {
            let (access, agent) = (device.access.clone(), device.agent.clone());
            let ask = post("/auth/logout", &access, &agent);
            let (outcome, again) = self.ask_until_told(first, &ask);
            is_again |= again;
            match outcome.code() {
                None => break outcome,
                // A token that is too old is no answer to the question: another one asks again.
                Some("token_expired") => {
                    let (refresh, ask_agent) = (device.refresh.clone(), device.agent.clone());
                    let renewal = self.renew_until_told(first, &refresh, &ask_agent);
                    match &renewal.answer {
                        Answer::Done(body) => {
                            device.access = text(&body["accessToken"]);
                            device.access_from = renewal.sent;
                            device.refresh = text(&body["refreshToken"]);
                        }
                        // It has ended, as was asked.
                        _ => break renewal,
                    }
                }
                Some(code) => {
                    if is_again {
                        let (sid, code) = (device.sid.clone(), code.to_owned());
                        self.wire.tell(&outcome, What::EndDenied { sid, code });
                    }
                    break outcome;
                }
            }
        };
        self.bury(device, &ended);
    }

    fn renew_until_told(&mut self, first: usize, token: &str, agent: &str) -> Outcome {
        let mut instance = first;
        loop {
            let patience = self.patience();
            let outcome = renew(&self.wire, instance, patience, token, agent);
            if !outcome.is_unknown() {
                return outcome;
            }
            self.wait_a_little();
            instance = (instance + 1) % INSTANCES;
        }
    }

    fn bury(&mut self, device: Device, outcome: &Outcome) {
        self.wire.tell(outcome, What::EndTold { sid: device.sid.clone() });
        self.ghosts.push(Ghost { device, ended: outcome.told });
    }

    /// From the list of sessions, by another one.
    pub(super) fn delete_another(&mut self) {
        if self.devices.len() < 2 {
            return;
        }
        let (other, first) = (self.devices.swap_remove(0), self.instance());
        self.wire.tell_now(What::EndAsked { sid: other.sid.clone() });
        let path = format!("/auth/sessions/{}", other.sid);
        let mut is_again = false;
        loop {
            // Whoever asks may have to renew, and may find that it has ended itself.
            if self.devices.is_empty() || !self.renew(0, first) {
                return self.end(other, first);
            }
            let (access, agent) = (self.devices[0].access.clone(), self.devices[0].agent.clone());
            let ask = Ask { method: "DELETE", path: &path, token: Some(&access), agent: &agent, body: None };
            let (outcome, again) = self.ask_until_told(first, &ask);
            is_again |= again;
            match outcome.code() {
                None => return self.bury(other, &outcome),
                // What could not be told before is done.
                Some("not_found") if is_again => return self.bury(other, &outcome),
                Some("not_found") => {
                    self.wire.tell(&outcome, What::Missing { sid: other.sid.clone() });
                    return self.bury(other, &outcome);
                }
                // Who asks is renewed at once, or has found its own end.
                Some(code) => {
                    if code == "token_revoked" {
                        let sid = self.devices[0].sid.clone();
                        self.wire.tell(&outcome, What::Revoked { sid });
                    }
                    self.wait_a_little();
                }
            }
        }
    }

    pub(super) fn log_out_everywhere(&mut self, first: usize) {
        let place = self.rng.usize(0..self.devices.len());
        // Who asks has a token that lasts.
        if !self.freshen(place) {
            return;
        }
        let asks = self.devices[place].clone();
        for device in &self.devices {
            self.wire.tell_now(What::EndAsked { sid: device.sid.clone() });
        }
        let ask = post("/auth/logout-all", &asks.access, &asks.agent);
        let (outcome, is_again) = self.ask_until_told(first, &ask);
        if is_again {
            self.stays_out_until = outcome.told + UNDER_WAY_MS;
        }
        let devices = std::mem::take(&mut self.devices);
        if let Some(code) = outcome.code() {
            if code == "token_expired" {
                // Nobody can say what was done. Each device logs out by itself, and may be told that it has.
                for device in devices {
                    self.leave_after_all(device, first);
                }
                return;
            }
            let (sid, code) = (asks.sid.clone(), code.to_owned());
            self.wire.tell(&outcome, What::EndDenied { sid, code });
        }
        for device in devices {
            self.bury(device, &outcome);
        }
    }

    /// Logs a device out that somebody else may have logged out.
    fn leave_after_all(&mut self, device: Device, first: usize) {
        let (access, refresh, agent) = (device.access.clone(), device.refresh.clone(), device.agent.clone());
        let (outcome, _) = self.ask_until_told(first, &post("/auth/logout", &access, &agent));
        if outcome.code() != Some("token_expired") {
            return self.bury(device, &outcome);
        }
        let renewal = self.renew_until_told(first, &refresh, &agent);
        match &renewal.answer {
            Answer::Done(body) => {
                let (access, refresh) = (text(&body["accessToken"]), text(&body["refreshToken"]));
                self.leave_after_all(Device { access, refresh, ..device }, first);
            }
            _ => self.bury(device, &renewal),
        }
    }

    /// A thief comes with a token that is spent, two renewals behind. The session ends, whatever becomes of the thief.
    pub(super) fn be_robbed(&mut self, place: usize) {
        let first = self.instance();
        for _ in 0..2 {
            if !self.renew(place, first) {
                return;
            }
        }
        let device = self.devices.remove(place);
        let stolen = device.spent[device.spent.len() - 2].clone();
        self.wire.tell_now(What::EndAsked { sid: device.sid.clone() });
        let patience = self.patience();
        let outcome = renew(&self.wire, first, patience, &stolen, "thief");
        match &outcome.answer {
            Answer::Done(_) => {
                let answer = "200 to a token that was spent twice over".to_owned();
                self.wire.tell(&outcome, What::Odd { answer });
                self.devices.push(device);
            }
            // Some thieves come once, and the owner is told when it comes.
            Answer::Unknown => self.leave_after_all(device, first),
            Answer::Refused(..) => self.bury(device, &outcome),
        }
    }
}
