//! TLS on the operator's listener. Handshakes are done on the control thread, which has other things to do: they are bounded in
//! time, and in how many begin within a time. Whoever begins many lets others wait no longer than himself.

use std::{collections::VecDeque, io, net::IpAddr, num::NonZero, rc::Rc, sync::Arc, time::Duration};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    net::{PLAIN_HTTP, network},
    shard::Local,
};

/// From the accepted connection to the end of its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// So many signatures (200 µs each, 1 ms with RSA) are made within a time, and as many for this machine itself: a flood of
/// handshakes takes a few percent of the thread.
const SIGNATURES_MAX: usize = 4;
const SIGNATURES_TIME: Duration = Duration::from_millis(100);
/// Of so many signatures it is known for whom they were.
const RECENT_MAX: usize = 64;

/// Handshakes with operators. One per process; stays on its thread.
#[derive(Clone, Debug)]
pub struct Handshakes {
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    signatures: Rc<Signatures>,
}

impl Handshakes {
    /// Done by this configuration of TLS, as it is when each of them begins.
    pub fn new(config: watch::Receiver<Option<Arc<ServerConfig>>>) -> Self {
        Self { config, signatures: Rc::default() }
    }

    /// Does one with whoever is at this address, within its time. Dropping the future closes the connection.
    pub(super) async fn accept(&self, stream: TcpStream, from: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        let shaken = timeout(HANDSHAKE_TIME, self.shake_hands(stream, from)).await;
        shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn shake_hands(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        let mut first = [0];
        stream.peek(&mut first).await?;
        if first[0].is_ascii_uppercase() {
            // Unread bytes would have the kernel take back the answer.
            let _ = stream.try_read(&mut [0; 4096]);
            stream.write_all(PLAIN_HTTP).await?;
            stream.shutdown().await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "HTTP in clear text"));
        }
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        self.signatures.wait(from).await;
        let config = self.config.borrow().clone();
        let config = config.ok_or_else(|| io::Error::other("there is no certificate"))?;
        hello.into_stream(config).await
    }
}

/// Who waits for a signature: from this machine, and from elsewhere. Neither waits for the other.
#[derive(Debug, Default)]
struct Signatures {
    own: Local<Line>,
    others: Local<Line>,
}

impl Signatures {
    /// Waits until one may be made for whoever is at this address. Dropping the future gives the place up.
    async fn wait(self: &Rc<Self>, from: IpAddr) {
        let is_own = from.to_canonical().is_loopback();
        let goes = self.line(is_own).with(|line| line.enter(network(from)));
        self.let_go_on(is_own);
        // Whoever is in line is told at some time.
        let _ = goes.await;
    }

    fn line(&self, is_own: bool) -> &Local<Line> {
        if is_own { &self.own } else { &self.others }
    }

    /// Lets those go on who may. Whoever is slow from here on keeps nobody from signing: the place is free again after its
    /// time.
    fn let_go_on(self: &Rc<Self>, is_own: bool) {
        while let Some(go) = self.line(is_own).with(Line::next) {
            let _ = go.send(());
            let signatures = Rc::clone(self);
            tokio::task::spawn_local(async move {
                sleep(SIGNATURES_TIME).await;
                signatures.line(is_own).with(|line| line.under_way -= 1);
                signatures.let_go_on(is_own);
            });
        }
    }
}

/// Those who wait, of whom the next is one whose network had the fewest signatures lately.
#[derive(Debug, Default)]
struct Line {
    /// How many were let go on within the time.
    under_way: usize,
    /// For whom the last ones were.
    recent: VecDeque<NonZero<u64>>,
    /// In the order in which they came.
    waiting: VecDeque<(NonZero<u64>, oneshot::Sender<()>)>,
}

impl Line {
    fn enter(&mut self, network: NonZero<u64>) -> oneshot::Receiver<()> {
        self.waiting.retain(|(_, go)| !go.is_closed());
        let (go, goes) = oneshot::channel();
        self.waiting.push_back((network, go));
        goes
    }

    /// Who goes on, if anybody may.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        if self.under_way >= SIGNATURES_MAX {
            return None;
        }
        self.waiting.retain(|(_, go)| !go.is_closed());
        let signed_for = |network| self.recent.iter().filter(|recent| **recent == network).count();
        let (place, _) = self.waiting.iter().enumerate().min_by_key(|(_, (network, _))| signed_for(*network))?;
        let (network, go) = self.waiting.remove(place)?;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(network);
        self.under_way += 1;
        Some(go)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(addresses: &[&str]) -> Vec<NonZero<u64>> {
        addresses.iter().map(|address| network(address.parse().expect("an address"))).collect()
    }

    #[test]
    fn whoever_begins_many_handshakes_lets_others_go_first() {
        let [many, one, same] = networks(&["192.0.2.1", "2001:db8::1", "2001:db8::2"])[..] else { unreachable!() };
        let mut line = Line::default();
        let mut flood: Vec<_> = (0..100).map(|_| line.enter(many)).collect();
        let next = |line: &mut Line| line.next().map(|go| go.send(())).is_some();
        assert_eq!((0..10).filter(|_| next(&mut line)).count(), SIGNATURES_MAX);
        let (mut first, mut second) = (line.enter(one), line.enter(same));
        assert!(!next(&mut line), "not before there is a place");
        line.under_way -= 1;
        assert!(next(&mut line) && first.try_recv().is_ok(), "it has had none");
        // Those that have given up are no more in line, and take no place.
        flood.truncate(50);
        line.under_way -= 2;
        assert!(next(&mut line) && second.try_recv().is_ok(), "one, and its neighbour of the same network, had one");
        assert!(next(&mut line) && flood[SIGNATURES_MAX].try_recv().is_ok(), "in their order");
        assert_eq!((line.waiting.len(), line.under_way), (50 - SIGNATURES_MAX - 1, SIGNATURES_MAX));
    }
}
