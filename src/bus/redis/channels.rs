//! A connection for scripts and channels together (RESP3): what the server says on it comes in one order.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Address, Link, Outage, RedisFailure, Topology, link::Line, sentinel_client};

/// What a channel brings.
#[derive(Debug)]
pub enum Push {
    /// A message on a channel.
    Message {
        /// The channel.
        channel: String,
        /// The message, if it is text.
        text: String,
    },
    /// The connection has ended.
    Ended,
}

/// Reads pushes until the queue is full: what does not go is missed, as if the connection had lost it.
fn sender(tell: mpsc::Sender<Push>) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |info| {
        if let Some(push) = read(info) {
            let _ = tell.try_send(push);
        }
        Ok(())
    }
}

fn read(info: PushInfo) -> Option<Push> {
    match info.kind {
        PushKind::Message | PushKind::SMessage => {
            let mut parts = info.data.into_iter().map(|part| match part {
                Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
                Value::SimpleString(text) => Some(text),
                _ => None,
            });
            Some(Push::Message { channel: parts.next()??, text: parts.next()?? })
        }
        PushKind::Disconnection => Some(Push::Ended),
        _ => None,
    }
}

impl Address {
    /// Opens a connection of its own that may subscribe to channels; what they bring goes to `tell`, as long as there is room.
    pub async fn connect_with_channels(&self, tell: mpsc::Sender<Push>) -> Result<Link, RedisFailure> {
        let answer_timeout = self.answer_timeout;
        let connecting = async {
            let times = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.connect_timeout))
                .set_response_timeout(Some(answer_timeout))
                .set_push_sender(sender(tell.clone()));
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
                    let builder = builder.use_protocol(ProtocolVersion::RESP3).push_sender(sender(tell.clone()));
                    Line::Cluster(builder.build()?.get_async_connection().await?)
                }
            };
            Ok(Link { line, answer_timeout })
        };
        match timeout(2 * self.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error: RedisError| {
                tracing::debug!(%error, "connecting to Redis failed");
                RedisFailure::Away(Outage::of(&error).unwrap_or(Outage::Broken))
            }),
            Err(_) => Err(RedisFailure::Away(Outage::Timeout)),
        }
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
        told(timeout(bound, subscribing).await)
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
        told(timeout(bound, leaving).await)
    }

    /// The command that says something on a channel.
    pub fn publishes_by(&self) -> &'static str {
        match &self.line {
            Line::One(_) => "PUBLISH",
            Line::Cluster(_) => "SPUBLISH",
        }
    }
}

fn told(answer: Result<RedisResult<()>, tokio::time::error::Elapsed>) -> Result<(), RedisFailure> {
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => match Outage::of(&error) {
            Some(class) => Err(RedisFailure::Away(class)),
            None => Err(RedisFailure::Refused(error)),
        },
        Err(_) => Err(RedisFailure::Away(Outage::Timeout)),
    }
}
