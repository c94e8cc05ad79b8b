//! Every frame that the server sends, as text: members in the order in which they are documented, written by hand.
//!
//! What clients sent goes out escaped anew or, a payload, exactly as it came.

use std::sync::Arc;

use super::code::Code;
use super::frame::{Frame, Gap, Kind, Tally};
use super::position::{Epoch, Position};
use super::unnumbered::Unnumbered;
use crate::telemetry::escape::push_json;
use crate::telemetry::record::TimestampCache;

/// Writes frames and counts them. One per shard.
#[derive(Debug, Default)]
pub struct Encoder {
    text: Text,
    tally: Tally,
}

/// The first frame on a socket that has logged in.
#[derive(Clone, Copy, Debug)]
pub struct Welcome<'a> {
    /// The name of this connection, for logs.
    pub connection: &'a str,
    /// How often a client should send something, in milliseconds.
    pub heartbeat_ms: u64,
    /// The name of this process.
    pub node: &'a str,
    /// Who logged in.
    pub user: &'a str,
    /// In which session; some issuers name none.
    pub session: Option<&'a str>,
}

/// What became of the position that a join named.
#[derive(Clone, Copy, Debug)]
pub enum Recovery<'a> {
    /// It named none.
    NotAsked,
    /// What came after it is not there any more, in whole or in part.
    Lost,
    /// All that came after it, in order.
    Recovered(&'a [Arc<str>]),
}

/// The number of a lifecycle event.
#[derive(Clone, Copy, Debug)]
pub struct EventNumber<'a> {
    /// Of the room or user.
    pub n: u64,
    /// The process where it came about.
    pub node: &'a str,
    /// Which count of numbers it is, where they are of all instances together.
    pub epoch: Option<Epoch>,
}

/// Who comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceEvent {
    /// A user's first socket has joined.
    Join,
    /// A user's last socket has been gone for the grace.
    Leave,
}

/// Why a message is refused, and which.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// The message's id.
    pub id: Option<&'a str>,
    /// The room that it is about.
    pub room: Option<&'a str>,
    /// Why.
    pub code: Code,
    /// What is said beside it; never what came in.
    pub sentence: &'static str,
    /// When it may pass.
    pub retry_after_ms: Option<u64>,
}

impl<'a> Refusal<'a> {
    /// With the code's own sentence.
    pub const fn new(id: Option<&'a str>, code: Code) -> Self {
        Self { id, room: None, code, sentence: code.sentence(), retry_after_ms: None }
    }
}

impl Encoder {
    /// Where its frames are counted.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// A frame of a text that was written before, here or on another shard.
    pub fn frame(&self, text: &str, kind: Kind) -> Frame {
        Frame::text(text, kind, &self.tally)
    }

    /// `welcome`.
    pub fn welcome(&mut self, unix_ms: u64, welcome: &Welcome<'_>) -> Frame {
        self.text.begin("welcome");
        self.text.raw(r#","payload":{"connectionId":""#).escaped(welcome.connection);
        self.text.raw(r#"","heartbeatMs":"#).number(welcome.heartbeat_ms);
        self.text.raw(r#","serverTime":""#).time(unix_ms);
        self.text.raw(r#"","node":""#).escaped(welcome.node).raw(r#""}"#);
        self.text.identity(welcome.user, welcome.session).timestamp(unix_ms);
        self.finish()
    }

    /// `auth_ok`: the token counts until this second.
    pub fn auth_ok(
        &mut self,
        unix_ms: u64,
        id: Option<&str>,
        expires_s: u64,
        user: &str,
        session: Option<&str>,
    ) -> Frame {
        self.text.begin("auth_ok").id(id);
        self.text.raw(r#","payload":{"expiresAt":""#).second(expires_s).raw(r#""}"#);
        self.text.identity(user, session).timestamp(unix_ms);
        self.finish()
    }

    /// `heartbeat`, as an answer.
    pub fn heartbeat(&mut self, unix_ms: u64, id: Option<&str>) -> Frame {
        self.text.begin("heartbeat").id(id).raw(r#","payload":{}"#).timestamp(unix_ms);
        self.finish()
    }

    /// `joined`: the room's position at the join, with the messages up to it if they were asked for.
    pub fn joined(
        &mut self,
        unix_ms: u64,
        id: Option<&str>,
        room: &str,
        position: Position,
        members: usize,
        recovery: Recovery<'_>,
    ) -> Frame {
        self.text.begin("joined").id(id).room(room).epoch(position).seq(position);
        self.text.raw(r#","payload":{"members":"#).number(members as u64);
        match recovery {
            Recovery::NotAsked => {}
            Recovery::Lost => {
                self.text.raw(r#","recovered":false"#);
            }
            Recovery::Recovered(messages) => {
                self.text.raw(r#","recovered":true,"messages":["#);
                self.text.list(messages, |text, message| {
                    text.raw(message);
                });
                self.text.raw("]");
            }
        }
        self.text.raw("}").timestamp(unix_ms);
        self.finish()
    }

    /// `left`.
    pub fn left(&mut self, id: Option<&str>, room: &str) -> Frame {
        self.text.begin("left").id(id).room(room).raw(r#","payload":{}"#);
        self.finish()
    }

    /// `ack` of a room's message.
    pub fn ack(&mut self, id: Option<&str>, room: &str, position: Position) -> Frame {
        self.text.begin("ack").id(id).room(room).seq(position).epoch(position).raw(r#","payload":{}"#);
        self.finish()
    }

    /// `ack` of what a service took, with the status that it answered.
    pub fn service_ack(&mut self, id: Option<&str>, status: u16) -> Frame {
        self.text.begin("ack").id(id).raw(r#","payload":{"status":"#).number(status.into()).raw("}");
        self.finish()
    }

    /// What a service answered: its JSON as it came, as a message of this type.
    pub fn service_answer(&mut self, id: Option<&str>, kind: &str, payload: &str) -> Frame {
        self.text.begin(kind).id(id).payload(payload);
        self.finish()
    }

    /// `presence`: some of the users of a room with their connections, and how many users there are.
    pub fn presence(&mut self, id: Option<&str>, room: &str, users: &[(Arc<str>, u32)], total: usize) -> Frame {
        self.text.begin("presence").id(id).room(room).raw(r#","payload":{"users":["#);
        self.text.list(users, |text, (user, connections)| {
            text.raw(r#"{"userId":""#).escaped(user);
            text.raw(r#"","connections":"#).number((*connections).into()).raw("}");
        });
        self.text.raw(r#"],"total":"#).number(total as u64).raw("}");
        self.finish()
    }

    /// `gap`.
    pub fn gap(&mut self, gap: Gap) -> Frame {
        gap_frame(&mut self.text, gap, &self.tally)
    }

    /// `continuity`: what came between is lost, and members go on from here.
    pub fn continuity(&mut self, room: &str, position: Position) -> Frame {
        self.text.begin("continuity").room(room).epoch(position).seq(position);
        self.text.raw(r#","payload":{"continuity":false}"#);
        self.finish()
    }

    /// `reconnect`: come back so long after the close.
    pub fn reconnect(&mut self, after_ms: u64) -> Frame {
        self.text.begin("reconnect").raw(r#","payload":{"afterMs":"#).number(after_ms).raw("}");
        self.finish()
    }

    /// `error`.
    pub fn error(&mut self, refusal: &Refusal<'_>) -> Frame {
        self.text.begin("error").id(refusal.id);
        if let Some(room) = refusal.room {
            self.text.room(room);
        }
        self.text.raw(r#","payload":{"code":""#).raw(refusal.code.name());
        self.text.raw(r#"","message":""#).escaped(refusal.sentence);
        self.text.raw(r#"","retryable":"#).raw(if refusal.code.is_retryable() { "true" } else { "false" });
        if let Some(retry_after_ms) = refusal.retry_after_ms {
            self.text.raw(r#","retryAfterMs":"#).number(retry_after_ms);
        }
        self.text.raw("}");
        self.finish()
    }

    /// A lifecycle event of a room or user, for a service.
    pub fn event(&mut self, unix_ms: u64, kind: &str, name: &str, numbered: &EventNumber<'_>) -> Box<str> {
        let EventNumber { n, node, epoch } = *numbered;
        let text = self.text.begin(kind).raw(if kind.starts_with("room") { r#","room":""# } else { r#","userId":""# });
        text.escaped(name).raw(r#"","n":"#).number(n).raw(r#","at":""#).time(unix_ms);
        text.raw(r#"","node":""#).escaped(node).raw("\"");
        if let Some(epoch) = epoch {
            text.raw(r#","epoch":""#).raw(&epoch.to_string()).raw("\"");
        }
        text.finish().into()
    }

    /// A service's message to users, which has no number.
    pub fn pushed(&mut self, unix_ms: u64, kind: &str, payload: &str) -> Arc<str> {
        self.text.begin(kind).payload(payload).timestamp(unix_ms);
        self.finish_text()
    }

    /// A service's message to a room, of a type of its own.
    pub fn pushed_to_room(
        &mut self,
        unix_ms: u64,
        kind: &str,
        room: &str,
        position: Position,
        payload: &str,
    ) -> Arc<str> {
        self.text.begin(kind).payload(payload).room(room).seq(position).epoch(position).timestamp(unix_ms);
        self.finish_text()
    }

    /// `room_message`, as every member gets it.
    pub fn room_message(
        &mut self,
        unix_ms: u64,
        room: &str,
        position: Position,
        user: &str,
        payload: &str,
    ) -> Arc<str> {
        self.text.begin("room_message").room(room).seq(position).epoch(position);
        self.text.raw(r#","userId":""#).escaped(user).raw(r#"""#);
        self.text.payload(payload).timestamp(unix_ms);
        self.finish_text()
    }

    /// The same as [`Encoder::pushed_to_room`], where the number is given elsewhere.
    pub fn unnumbered_push(&mut self, unix_ms: u64, kind: &str, room: &str, payload: &str) -> Unnumbered {
        self.text.begin(kind).payload(payload);
        let payload = (self.text.len().saturating_sub(payload.len()), self.text.len());
        let cut = self.text.room(room).len();
        self.text.timestamp(unix_ms);
        Unnumbered { text: self.text.finish().into(), cut, payload }
    }

    /// The same as [`Encoder::room_message`], where the number is given elsewhere.
    pub fn unnumbered_message(&mut self, unix_ms: u64, room: &str, user: &str, payload: &str) -> Unnumbered {
        let cut = self.text.begin("room_message").room(room).len();
        self.text.raw(r#","userId":""#).escaped(user).raw(r#"""#).payload(payload);
        let payload = (self.text.len().saturating_sub(payload.len()), self.text.len());
        self.text.timestamp(unix_ms);
        Unnumbered { text: self.text.finish().into(), cut, payload }
    }

    /// `presence_event`, as every member gets it.
    pub fn presence_event(&mut self, room: &str, event: PresenceEvent, user: &str) -> Arc<str> {
        self.text.begin("presence_event").room(room).raw(r#","payload":{"event":""#);
        self.text.raw(match event {
            PresenceEvent::Join => "join",
            PresenceEvent::Leave => "leave",
        });
        self.text.raw(r#"","userId":""#).escaped(user).raw(r#""}"#);
        self.finish_text()
    }

    fn finish(&mut self) -> Frame {
        Frame::text(self.text.finish(), Kind::Plain, &self.tally)
    }

    fn finish_text(&mut self) -> Arc<str> {
        Arc::from(self.text.finish())
    }
}

/// A `gap` where no encoder is at hand.
pub(super) fn gap_of(gap: Gap, tally: &Tally) -> Frame {
    gap_frame(&mut Text::default(), gap, tally)
}

fn gap_frame(text: &mut Text, gap: Gap, tally: &Tally) -> Frame {
    let position = Position { epoch: gap.epoch, seq: 0 };
    text.begin("gap").room(gap.room.as_str()).epoch(position);
    text.raw(r#","payload":{"from":"#).number(gap.from).raw(r#","to":"#).number(gap.to).raw("}");
    Frame::text(text.finish(), Kind::Gap(gap), tally)
}

/// More than this is not kept between two frames.
const SPARE_BYTES_MAX: usize = 16 << 10;

/// One JSON object under way.
#[derive(Debug, Default)]
struct Text {
    json: Vec<u8>,
    times: TimestampCache,
}

impl Text {
    fn begin(&mut self, kind: &str) -> &mut Self {
        self.json.clear();
        self.json.shrink_to(SPARE_BYTES_MAX);
        self.raw(r#"{"type":""#).escaped(kind).raw("\"")
    }

    fn finish(&mut self) -> &str {
        self.raw("}");
        // Only texts were written, and only whole ones.
        str::from_utf8(&self.json).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.json.len()
    }

    /// Text that is JSON already.
    fn raw(&mut self, json: &str) -> &mut Self {
        self.json.extend_from_slice(json.as_bytes());
        self
    }

    /// Any text, as the inside of a string.
    fn escaped(&mut self, text: &str) -> &mut Self {
        push_json(&mut self.json, text.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.json.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self
    }

    fn time(&mut self, unix_ms: u64) -> &mut Self {
        self.json.extend_from_slice(self.times.at(unix_ms));
        self
    }

    /// A time without milliseconds.
    fn second(&mut self, unix_s: u64) -> &mut Self {
        const SECOND_LENGTH: usize = "2026-11-23T10:15:00".len();
        let time = self.times.at(unix_s.saturating_mul(1000));
        self.json.extend_from_slice(time.first_chunk::<SECOND_LENGTH>().map_or(&[][..], |second| second));
        self.raw("Z")
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.raw(",");
            }
            write(self, item);
        }
    }

    fn id(&mut self, id: Option<&str>) -> &mut Self {
        match id {
            Some(id) => self.raw(r#","id":""#).escaped(id).raw("\""),
            None => self,
        }
    }

    fn room(&mut self, room: &str) -> &mut Self {
        self.raw(r#","room":""#).escaped(room).raw("\"")
    }

    fn seq(&mut self, position: Position) -> &mut Self {
        self.raw(r#","seq":"#).number(position.seq)
    }

    fn epoch(&mut self, position: Position) -> &mut Self {
        self.raw(r#","epoch":""#);
        position.epoch.push(&mut self.json);
        self.raw("\"")
    }

    fn payload(&mut self, json: &str) -> &mut Self {
        self.raw(r#","payload":"#).raw(json)
    }

    fn identity(&mut self, user: &str, session: Option<&str>) -> &mut Self {
        self.raw(r#","userId":""#).escaped(user).raw("\"");
        match session {
            Some(session) => self.raw(r#","sessionId":""#).escaped(session).raw("\""),
            None => self,
        }
    }

    fn timestamp(&mut self, unix_ms: u64) -> &mut Self {
        self.raw(r#","timestamp":""#).time(unix_ms).raw("\"")
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::expect_used, reason = "a test may panic")]
mod tests;
