//! Asks Redis who has registered: a task of its own with a connection of its own, which is opened when somebody asks and given
//! up when anything fails, so that the next question finds whoever serves then.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::{
    bus::redis::{Address, Link, RedisFailure, Script, servers},
    config,
    server::{readers::Readers, resolver::AskedList},
    shard::{Instant, clock},
    upstream::{ListAnswer, ListResult, registered},
};

/// Members of one upstream that are asked for: one more than an upstream may have, so that too many are noticed.
const MEMBERS_MAX: usize = config::INSTANCES_MAX + 1;

/// Where services register. Handles share the task.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    redis: Option<Arc<config::Redis>>,
    /// To the task, once somebody has asked.
    ask: Option<mpsc::UnboundedSender<Question>>,
}

#[derive(Debug)]
struct Question {
    upstream: Box<str>,
    answer: oneshot::Sender<ListResult>,
}

impl Registry {
    /// In this Redis. Nothing is connected yet.
    pub(super) fn new(redis: &config::Redis) -> Self {
        Self { redis: redis.is_given().then(|| Arc::new(redis.clone())), ask: None }
    }

    /// Asks who has registered for an upstream. Within a tokio runtime.
    pub(super) fn ask(&mut self, upstream: &str) -> AskedList {
        let Some(redis) = &self.redis else {
            return Box::pin(async { Err("redis.urls is applied by a restart only".to_owned()) });
        };
        let ask = self.ask.get_or_insert_with(|| {
            let (ask, questions) = mpsc::unbounded_channel();
            tokio::spawn(serve(Arc::clone(redis), questions));
            ask
        });
        let (answer, answered) = oneshot::channel();
        let asked = ask.send(Question { upstream: upstream.into(), answer });
        Box::pin(async move {
            let gone = || "whoever asks Redis has ended".to_owned();
            asked.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        })
    }
}

/// The key of an upstream's registry.
fn key(upstream: &str) -> String {
    format!("shardgate:services:{upstream}")
}

/// A connection on which nobody is registered is given up when it is so old: behind sentinels it may be to a server that the
/// others have left.
const EMPTY_LINK_AGE: Duration = Duration::from_secs(10);

/// The connection, and since when.
type Connected = Option<(Link, Instant)>;

/// Answers questions, one after the other: each is one round trip.
async fn serve(redis: Arc<config::Redis>, mut questions: mpsc::UnboundedReceiver<Question>) {
    let script = Script::new(include_str!("registered.lua"));
    let (readers, mut connected) = (Readers::new(1), None);
    while let Some(Question { upstream, answer }) = questions.recv().await {
        if answer.is_closed() {
            continue;
        }
        let told = ask(&redis, &readers, &mut connected, &script, &key(&upstream)).await;
        let is_away = matches!(told, Err(Failure::Setup(_) | Failure::Redis(RedisFailure::Away(_))));
        let told = told.map_err(|failure| words(&redis, &failure));
        // It would be the same for all who wait, one timeout later each.
        if let (true, Err(why)) = (is_away, &told) {
            connected = None;
            while let Ok(question) = questions.try_recv() {
                let _ = question.answer.send(Err(why.clone()));
            }
        }
        // Whoever asked may have given up.
        let _ = answer.send(told);
    }
}

async fn ask(
    redis: &Arc<config::Redis>,
    readers: &Readers,
    connected: &mut Connected,
    script: &Script,
    key: &str,
) -> Result<ListAnswer, Failure> {
    let (link, since) = if let Some(connected) = connected {
        connected
    } else {
        let address = address(redis, readers).await.map_err(Failure::Setup)?;
        let link = address.connect(Duration::ZERO).await.map_err(Failure::Redis)?;
        connected.insert((link, clock::now()))
    };
    let reply: Vec<Vec<u8>> = link.run(script, &[key], &[&MEMBERS_MAX.to_string()]).await.map_err(Failure::Redis)?;
    let (now, members) = reply.split_first().ok_or(Failure::Reply)?;
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
    let now = number(now).ok_or(Failure::Reply)?;
    if members.is_empty() {
        if clock::now().since(*since) >= EMPTY_LINK_AGE {
            *connected = None;
        }
        return Err(Failure::Empty);
    }
    let pairs = members.chunks_exact(2);
    // Who is behind them is not known, and would be taken for gone.
    if pairs.len() == MEMBERS_MAX {
        return Err(Failure::TooMany);
    }
    let listed = registered(now, pairs.map(|pair| (&pair[0][..], number(&pair[1]).unwrap_or(f64::NAN))));
    Ok(ListAnswer::Listed(listed))
}

/// Where it is, with the certificates that its server is known by.
async fn address(redis: &Arc<config::Redis>, readers: &Readers) -> anyhow::Result<Address> {
    let redis = Arc::clone(redis);
    let read = readers.read(move || Address::new(&redis)).outcome().await;
    read.unwrap_or_else(|why| Err(anyhow::anyhow!("redis.ca_file cannot be read: {why}")))
}

/// Why nobody knows who has registered.
enum Failure {
    Setup(anyhow::Error),
    Redis(RedisFailure),
    Reply,
    /// More members than are asked for, whatever they say.
    TooMany,
    /// Everybody's lease has ended. Perhaps this is not the server any more that services register with.
    Empty,
}

fn words(redis: &config::Redis, failure: &Failure) -> String {
    match failure {
        Failure::Setup(error) => format!("{error:#}"),
        Failure::Redis(RedisFailure::Away(class)) => format!("Redis at {} is away: {}", servers(redis), class.word()),
        Failure::Redis(failure) => match std::error::Error::source(failure) {
            Some(source) => format!("{failure}: {source}"),
            None => failure.to_string(),
        },
        Failure::Reply => "Redis answered something else".to_owned(),
        Failure::TooMany => format!("more than {} members have a lease that lasts", config::INSTANCES_MAX),
        Failure::Empty => "nobody has registered, or no lease lasts".to_owned(),
    }
}
