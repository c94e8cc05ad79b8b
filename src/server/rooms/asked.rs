//! What shards' hubs ask of the bus, as commands and scripts of Redis.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{Need, Rooms, living::Field, names, refused};
use crate::{
    bus::redis::{Link, RedisFailure},
    hub::{
        bus::{BusAnswer, BusAsker, BusHere, BusPublish, BusRead, BusRequest, BusUsers, Keep, Present, Stands},
        code::Code,
        name::RoomName,
        position::{Chain, Digest, Epoch, Last, Position},
        unnumbered::Unnumbered,
    },
};

/// Bytes of messages in one answer, at least and at most: what one recovery may bring, within these.
const READ_BYTES: [u32; 2] = [256 << 10, 4 << 20];
/// Bytes that are set aside in an answer for who is in a room: some 20,000 users.
const USERS_BYTES: u32 = 1 << 20;
/// How long a room lives on at least: longer than it takes until those who follow it look again.
const LIVES_MIN: Duration = Duration::from_mins(1);

fn lives_on(keep: Keep) -> Duration {
    keep.age_max.max(keep.ids_age).max(LIVES_MIN)
}

/// How long the others have to tell again who is in a room of which Redis has forgotten it.
const TOLD_AGAIN_WITHIN: Duration = Duration::from_secs(1);

/// What a room's keys say.
struct RoomRead {
    last: Last,
    /// What was asked for, in order.
    messages: Vec<(u64, Chain, Unnumbered)>,
    /// Who is there.
    fields: Vec<Field>,
    /// There is no key of that: nobody has told yet, or Redis has forgotten it, and all tell again.
    is_untold: bool,
}

impl Rooms {
    /// Carries it out; the answer, if it has one.
    pub(super) async fn carry_out(&self, mut link: Link, number: u64, request: BusRequest) -> Option<BusAnswer> {
        let answer = match &request {
            BusRequest::Publish(publish) => self.number(&mut link, publish).await.map(Some),
            BusRequest::Read(read) => self.read(&mut link, number, read).await.map(Some),
            BusRequest::Look { room, asker } => self.look(&mut link, room, *asker).await.map(Some),
            BusRequest::Here(here) => {
                let BusHere { room, is_whole, users, keep } = &**here;
                self.tell_here(link, room, *is_whole, users, lives_on(*keep)).await.map(|()| None)
            }
            BusRequest::Others(request) => self.carry_out_for_others(&mut link, request).await,
            BusRequest::Forget(_) | BusRequest::Events(_) => Ok(None),
        };
        answer.unwrap_or_else(|failure| {
            self.note(number, need_of(&request), &failure);
            refused(&request, Code::DependencyUnavailable)
        })
    }

    async fn number(&self, link: &mut Link, publish: &BusPublish) -> Result<BusAnswer, RedisFailure> {
        let BusPublish { room, asker, seen, epoch, id, message, keep } = publish;
        let [meta, log] = self.names.room(room);
        let id = id.as_ref().map(|(speaker, id)| self.names.id(room, speaker, id));
        let keys: Vec<&str> = [&*meta, &*log].into_iter().chain(id.as_deref()).collect();
        let ms = |time: Duration| time.as_millis().to_string();
        let arguments = [
            seen.position.epoch.to_string(),
            seen.position.seq.to_string(),
            seen.digest.to_string(),
            epoch.to_string(),
            link.publishes_by().to_owned(),
            self.names.channel(names::partition(room)),
            room.as_str().to_owned(),
            message.to_kept(),
            format!("{:016x}", fastrand::u64(..)),
            keep.messages_max.to_string(),
            keep.bytes_max.to_string(),
            ms(keep.age_max),
            ms(keep.ids_age),
            ms(lives_on(*keep)),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (epoch, seq): (String, u64) = link.run_loaded(&self.publish, &keys, &arguments).await?;
        let position = Position { epoch: Epoch::parse(&epoch), seq };
        Ok(BusAnswer::Published { room: room.clone(), asker: *asker, position })
    }

    /// Listens to the room's partition, and then reads.
    async fn read(&self, link: &mut Link, number: u64, read: &BusRead) -> Result<BusAnswer, RedisFailure> {
        let BusRead { room, seen, epoch, from, keep, .. } = read;
        let partition = names::partition(room);
        if !self.state.with(|state| state.partitions[partition].1) {
            let channel = self.names.channel(partition);
            link.subscribe(&channel).await?;
            let is_wanted = self.state.with(|state| {
                let (rooms, is_subscribed) = &mut state.partitions[partition];
                *is_subscribed = state.number == number && *rooms > 0;
                let is_wanted = *rooms > 0;
                state.leaving[partition] += u32::from(state.number == number && !is_wanted);
                is_wanted
            });
            if !is_wanted {
                link.unsubscribe(&channel).await?;
            }
        }
        let from = if *from == u64::MAX { String::new() } else { from.to_string() };
        // The log has no more of it, unless another instance is told to keep more.
        let most = keep.messages_max.max(1).to_string();
        let lives = lives_on(*keep).as_millis().to_string();
        let wants_users = if read.wants_users { "1" } else { "0" };
        let bytes = u32::try_from(read.bytes_max).unwrap_or(u32::MAX).clamp(READ_BYTES[0], READ_BYTES[1]);
        let rest = [&*from, &*most, &*lives, wants_users, &bytes.to_string()];
        // Answers wait in Redis for this connection, which ends those for which too much waits.
        let _space = self.answers.acquire_many(bytes.max(if read.wants_users { USERS_BYTES } else { 0 })).await;
        let RoomRead { last, messages, fields, is_untold } =
            self.run_read(link, room, *seen, &epoch.to_string(), rest).await?;
        if last.position.epoch == Epoch::NONE {
            return Ok(BusAnswer::Unread { room: room.clone(), number: read.number });
        }
        let users = if read.wants_users {
            let mut users = self.there(link, room, &fields).await?;
            if is_untold {
                users.early_for = users.early_for.max(TOLD_AGAIN_WITHIN);
            }
            self.watch(&mut users);
            Some(users)
        } else {
            None
        };
        Ok(BusAnswer::Stands(Box::new(Stands { room: room.clone(), number: read.number, last, messages, users })))
    }

    async fn look(&self, link: &mut Link, room: &RoomName, asker: BusAsker) -> Result<BusAnswer, RedisFailure> {
        let rest = ["", "0", "0", "1", "0"];
        let _space = self.answers.acquire_many(USERS_BYTES).await;
        let RoomRead { last, fields, .. } = self.run_read(link, room, Last::default(), "", rest).await?;
        let BusUsers { others: mut users, here, .. } = self.there(link, room, &fields).await?;
        let here = here.into_iter().flatten();
        users.extend(here.map(|(user, sockets)| Present { node: self.names.node.as_str().into(), user, sockets }));
        Ok(BusAnswer::LookIs { asker, position: last.position, users })
    }

    async fn run_read(
        &self,
        link: &mut Link,
        room: &RoomName,
        seen: Last,
        begins: &str,
        [from, most, lives, wants_users, bytes]: [&str; 5],
    ) -> Result<RoomRead, RedisFailure> {
        let ([meta, log], here) = (self.names.room(room), self.names.here(room));
        let Last { position, digest } = seen;
        let (epoch, seq, digest) = (position.epoch.to_string(), position.seq.to_string(), digest.to_string());
        let channel = self.names.channel(names::partition(room));
        let tells = [link.publishes_by(), &*channel, room.as_str()];
        let asks = [&*epoch, &*seq, &*digest, begins, from, most, lives, wants_users, bytes];
        let arguments = [&asks[..], &tells].concat();
        let answer: Vec<Vec<u8>> = link.run_loaded(&self.read, &[&*meta, &*log, &*here], &arguments).await?;
        let parts = answer.len();
        // What is no text is nothing that we wrote.
        let mut answer = answer.into_iter().map(|part| String::from_utf8(part).unwrap_or_default());
        let mut next = || answer.next().unwrap_or_default();
        let position = Position { epoch: Epoch::parse(&next()), seq: next().parse().unwrap_or_default() };
        let last = Last { position, digest: Digest::parse(&next()) };
        let is_untold = next() == "1";
        let count: usize = next().parse().unwrap_or_default();
        let mut messages = Vec::new();
        for _ in 0..count.min(parts) {
            let seq = next();
            let chain = Chain { before: Digest::parse(&next()), after: Digest::parse(&next()) };
            // What cannot be read is a hole: it is told.
            let message = seq.parse().ok().zip(Unnumbered::parse(&next()));
            messages.extend(message.map(|(seq, message)| (seq, chain, message)));
        }
        let mut fields = Vec::new();
        while let (Some(field), Some(value)) = (answer.next(), answer.next()) {
            fields.push(Field { field, value });
        }
        Ok(RoomRead { last, messages, fields, is_untold })
    }

    /// Tells who is in a room on this instance.
    pub(super) async fn tell_here(
        &self,
        mut link: Link,
        room: &RoomName,
        is_whole: bool,
        users: &[(Arc<str>, u32)],
        lives: Duration,
    ) -> Result<(), RedisFailure> {
        let json = users.iter().map(|(user, sockets)| json!([&**user, sockets])).collect::<serde_json::Value>();
        let mut arguments = vec![
            link.publishes_by().to_owned(),
            self.names.channel(names::partition(room)),
            room.as_str().to_owned(),
            self.names.node.clone(),
            u8::from(is_whole).to_string(),
            lives.as_millis().to_string(),
            json.to_string(),
            self.state.with(|state| state.told_as).to_string(),
        ];
        arguments.extend(users.iter().flat_map(|(user, sockets)| [user.to_string(), sockets.to_string()]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        link.run_loaded::<i64>(&self.here, &[&self.names.here(room)], &arguments).await.map(|_| ())
    }
}

/// What a request is about, for the log.
fn need_of(request: &BusRequest) -> Need<'_> {
    match request {
        BusRequest::Others(_) => Need::Instances,
        BusRequest::Events(_) => Need::Events,
        BusRequest::Publish(publish) => Need::Room(&publish.room),
        BusRequest::Read(read) => Need::Room(&read.room),
        BusRequest::Look { room, .. } | BusRequest::Forget(room) => Need::Room(room),
        BusRequest::Here(here) => Need::Room(&here.room),
    }
}
