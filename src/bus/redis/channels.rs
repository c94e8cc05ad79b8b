//! A connection for scripts and channels together (RESP3): what the server says on it comes in one order.

use std::sync::Arc;
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::{
    Address, Link, RedisFailure, Topology,
    link::{Line, answer_of},
    sentinel_client,
};

/// What a channel brings.
#[derive(Debug)]
pub enum Push {
    /// A message on a channel.
    Message {
        /// The channel.
        channel: String,
        /// The message, if it is text.
        text: String,
        /// The space that it takes of what may wait.
        space: Option<OwnedSemaphorePermit>,
    },
    /// Nothing more comes on a channel: it was left, or the server says so.
    Unsubscribed {
        /// The channel.
        channel: String,
    },
    /// The connection has ended.
    Ended,
}

/// Bytes of messages that may wait, and of one of them.
const BYTES_MAX: usize = 64 << 20;
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Where pushes go, as long as there is room: what does not go is missed, as if the connection had lost it.
#[derive(Clone, Debug)]
pub struct Pushes {
    /// Messages.
    pub messages: mpsc::Sender<Push>,
    /// What is said of the connection: however many messages wait.
    pub events: mpsc::Sender<Push>,
    /// The channel whose messages count among the events.
    pub events_channel: String,
    space: Arc<Semaphore>,
}

impl Pushes {
    /// The queues, of so many places each, and what reads them.
    pub fn new(channel: &str, messages: usize, events: usize) -> (Self, [mpsc::Receiver<Push>; 2]) {
        let ((messages, one), (events, other)) = (mpsc::channel(messages), mpsc::channel(events));
        let space = Arc::new(Semaphore::new(BYTES_MAX));
        (Self { messages, events, events_channel: channel.to_owned(), space }, [one, other])
    }

    fn take(&self, push: Push) {
        // What finds no room is missed, as if the connection had lost it.
        let _ = match push {
            Push::Message { channel, text, .. } if channel == self.events_channel => {
                self.events.try_send(Push::Message { channel, text, space: None })
            }
            Push::Message { channel, text, .. } => {
                let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
                let Ok(space) = Arc::clone(&self.space).try_acquire_many_owned(bytes) else { return };
                self.messages.try_send(Push::Message { channel, text, space: Some(space) })
            }
            event => self.events.try_send(event),
        };
    }
}

fn sender(pushes: Pushes) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |info| {
        if let Some(push) = read(info) {
            pushes.take(push);
        }
        Ok(())
    }
}

fn read(info: PushInfo) -> Option<Push> {
    match info.kind {
        PushKind::Message | PushKind::SMessage => {
            let mut parts = info.data.into_iter().map(text_of);
            let (channel, text) = (parts.next()??, parts.next()??);
            (text.len() <= MESSAGE_BYTES_MAX).then_some(Push::Message { channel, text, space: None })
        }
        PushKind::Unsubscribe | PushKind::SUnsubscribe => {
            Some(Push::Unsubscribed { channel: info.data.into_iter().next().and_then(text_of)? })
        }
        PushKind::Disconnection => Some(Push::Ended),
        _ => None,
    }
}

fn text_of(part: Value) -> Option<String> {
    match part {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

impl Address {
    /// Opens a connection of its own that may subscribe to channels; what they bring goes to `pushes`.
    pub async fn connect_with_channels(&self, pushes: Pushes) -> Result<Link, RedisFailure> {
        let answer_timeout = self.answer_timeout;
        let connecting = async {
            let times = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.connect_timeout))
                .set_response_timeout(Some(answer_timeout))
                .set_push_sender(sender(pushes.clone()));
            let line = match &self.kind {
                Topology::Single(client) => {
                    let info = client.get_connection_info().clone();
                    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
                    let client = Client::open(info.set_redis_settings(settings))?;
                    Line::One(client.get_multiplexed_async_connection_with_config(&times).await?)
                }
                Topology::Sentinel { sentinels, server } => {
                    let mut client = sentinel_client(sentinels, server, ProtocolVersion::RESP3)?;
                    Line::One(client.get_async_connection_with_config(&times).await?)
                }
                Topology::Cluster { nodes, certificates } => {
                    let builder = self.cluster_builder(nodes, certificates.as_ref(), answer_timeout);
                    let builder = builder.use_protocol(ProtocolVersion::RESP3).push_sender(sender(pushes.clone()));
                    Line::Cluster(builder.build()?.get_async_connection().await?)
                }
            };
            Ok(Link { line, answer_timeout })
        };
        answer_of(timeout(2 * self.connect_timeout, connecting).await)
    }
}

impl Link {
    /// Subscribes to a channel, a sharded one in a cluster; when this is over, it is.
    pub async fn subscribe(&mut self, channel: &str) -> Result<(), RedisFailure> {
        let bound = self.answer_timeout + Duration::from_millis(100);
        let subscribing = async {
            match &mut self.line {
                Line::One(line) => line.subscribe(channel).await,
                Line::Cluster(line) => line.ssubscribe(channel).await,
            }
        };
        let answer = timeout(bound, subscribing).await;
        self.told(answer)
    }

    /// Hears nothing more of a channel.
    pub async fn unsubscribe(&mut self, channel: &str) -> Result<(), RedisFailure> {
        let bound = self.answer_timeout + Duration::from_millis(100);
        let leaving = async {
            match &mut self.line {
                Line::One(line) => line.unsubscribe(channel).await,
                Line::Cluster(line) => line.sunsubscribe(channel).await,
            }
        };
        let answer = timeout(bound, leaving).await;
        self.told(answer)
    }

    /// The command that says something on a channel.
    pub fn publishes_by(&self) -> &'static str {
        match &self.line {
            Line::One(_) => "PUBLISH",
            Line::Cluster(_) => "SPUBLISH",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(channel: &str, text: &str) -> PushInfo {
        let data = [channel, text].map(|part| Value::BulkString(part.as_bytes().to_vec())).into();
        PushInfo { kind: PushKind::Message, data }
    }

    #[test]
    fn what_is_said_of_the_connection_goes_past_a_full_queue() {
        let (pushes, [mut messages, mut events]) = Pushes::new("canary", 2, 8);
        let send = sender(pushes);
        for _ in 0..100 {
            send(message("bus", "text")).expect("it is taken or passed over");
        }
        send(message("canary", "nonce")).expect("it is taken");
        let data = vec![Value::BulkString(b"bus".to_vec())];
        send(PushInfo { kind: PushKind::SUnsubscribe, data }).expect("it is taken");
        send(PushInfo { kind: PushKind::Disconnection, data: Vec::new() }).expect("it is taken");
        let told = std::iter::from_fn(|| events.try_recv().ok()).collect::<Vec<_>>();
        let [Push::Message { text, .. }, Push::Unsubscribed { channel }, Push::Ended] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!((&**text, &**channel), ("nonce", "bus"));
        assert_eq!(std::iter::from_fn(|| messages.try_recv().ok()).count(), 2);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_no_message_is_too_long() {
        let (pushes, [mut messages, _events]) = Pushes::new("canary", 1000, 8);
        let send = sender(pushes);
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        for _ in 0..20 {
            send(message("bus", &long)).expect("it is taken or passed over");
        }
        send(message("bus", &format!("{long}x"))).expect("it is passed over");
        assert_eq!(std::iter::from_fn(|| messages.try_recv().ok()).count(), BYTES_MAX / MESSAGE_BYTES_MAX);
        // Space that was given back is used again.
        send(message("bus", &long)).expect("it is taken");
        assert!(messages.try_recv().is_ok());
    }
}
