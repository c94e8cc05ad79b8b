//! How users reach the instances: one request on a connection of its own, and what came of it, written down.
#![expect(
    clippy::disallowed_types,
    reason = "an instance that starts again has other ports, and users have to hear of it"
)]

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    history::{ANSWER_MAX_MS, Event, Ms, What},
    plan::INSTANCES,
};
use crate::{
    client::{Client, Response, is_silence},
    harness::{now, pause},
};

/// Refusals with 5xx that tell a client to come again.
const PUT_OFF: [&str; 3] = ["dependency_unavailable", "overloaded", "draining"];

/// Where the instances listen now.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Mutex<[SocketAddr; INSTANCES]>>);

impl Places {
    pub(super) fn new(addresses: [SocketAddr; INSTANCES]) -> Self {
        Self(Arc::new(Mutex::new(addresses)))
    }

    pub(super) fn of(&self, instance: usize) -> SocketAddr {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[instance]
    }

    pub(super) fn set(&self, instance: usize, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[instance] = address;
    }
}

/// The time since the beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(pub(super) Instant);

impl Clock {
    pub(super) fn now(self) -> Ms {
        Ms::try_from(now().duration_since(self.0).as_millis()).expect("minutes")
    }

    pub(super) fn wait_until(self, due: Ms) {
        pause(Duration::from_millis(due.saturating_sub(self.now())));
    }
}

/// What one user asks with, and where it writes down what comes of it.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub(super) user: usize,
    pub(super) clock: Clock,
    pub(super) places: Places,
    pub(super) diary: Sender<Event>,
}

/// A request, and where it goes.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) agent: &'a str,
    pub(super) body: Option<Value>,
}

/// What came of a request.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) instance: usize,
    pub(super) sent: Ms,
    pub(super) told: Ms,
    pub(super) answer: Answer,
}

#[derive(Debug)]
pub(super) enum Answer {
    /// 200 or 204.
    Done(Value),
    /// Its status and its code.
    Refused(u16, String),
    /// Nobody can say what was done: no answer, or one that says to come again.
    Unknown,
}

impl Outcome {
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.answer, Answer::Unknown)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.answer, Answer::Done(_))
    }

    /// The code of a refusal.
    pub(super) fn code(&self) -> Option<&str> {
        if let Answer::Refused(_, code) = &self.answer { Some(code) } else { None }
    }
}

impl Wire {
    /// Asks an instance, and waits for so long.
    pub(super) fn ask(&self, instance: usize, patience: Duration, ask: &Ask<'_>) -> Outcome {
        let sent = self.clock.now();
        let response = self.exchange(instance, patience, ask);
        let told = self.clock.now();
        let answer = match &response {
            Ok(response) => Self::answer(response),
            Err(_) => Answer::Unknown,
        };
        let outcome = Outcome { instance, sent, told, answer };
        match response {
            Err(error) => self.tell(&outcome, What::Silence { is_closed: !is_silence(&error) }),
            Ok(response) if Self::is_odd(&response, &outcome.answer) => {
                let answer = format!("{} {} to {} {}", response.status, response.text(), ask.method, ask.path);
                self.tell(&outcome, What::Odd { answer });
            }
            Ok(_) => {}
        }
        outcome
    }

    /// Writes down what was seen in an answer.
    pub(super) fn tell(&self, outcome: &Outcome, what: What) {
        let Outcome { instance, sent, told, .. } = *outcome;
        self.write(Event { user: self.user, instance, sent, told, what });
    }

    /// Writes down what happens now.
    pub(super) fn tell_now(&self, what: What) {
        let at = self.clock.now();
        self.write(Event { user: self.user, instance: 0, sent: at, told: at, what });
    }

    fn write(&self, event: Event) {
        self.diary.send(event).expect("the diary is read when all is over");
    }

    fn exchange(&self, instance: usize, patience: Duration, ask: &Ask<'_>) -> io::Result<Response> {
        let stream = TcpStream::connect_timeout(&self.places.of(instance), patience)?;
        let mut client = Client::new(stream).with_patience(patience);
        let Ask { method, path, token, agent, body } = ask;
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let body = body.as_ref().map(Value::to_string).unwrap_or_default();
        let length = body.len();
        client.try_send(format!(
            "{method} {path} HTTP/1.1\r\nhost: gateway.test\r\nuser-agent: {agent}\r\n{token}\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))?;
        client.try_read_response(method)
    }

    fn answer(response: &Response) -> Answer {
        let json = || serde_json::from_slice::<Value>(&response.body).unwrap_or_default();
        match response.status {
            200 | 204 => Answer::Done(json()),
            500.. => Answer::Unknown,
            status => Answer::Refused(status, json()["code"].as_str().unwrap_or_default().to_owned()),
        }
    }

    fn is_odd(response: &Response, answer: &Answer) -> bool {
        let has_code = |json: Value| PUT_OFF.iter().any(|code| json["code"] == *code);
        match answer {
            Answer::Done(_) => false,
            Answer::Refused(status, code) => !matches!(status, 401 | 404) || code.is_empty(),
            Answer::Unknown => !serde_json::from_slice(&response.body).is_ok_and(has_code),
        }
    }
}

/// How long a client waits that waits for as long as any answer may take.
pub(super) const PATIENT: Duration = Duration::from_millis(ANSWER_MAX_MS + 1_000);
