//! TLS on the operator's listener. Handshakes are done on the control thread, which has other things to do: they are bounded in
//! time, and in how many begin within a time.

use std::{io, sync::Arc, time::Duration};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::net::PLAIN_HTTP;

/// From the accepted connection to the end of its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// So many signatures (200 µs each, 1 ms with RSA) are made within a time: a flood of handshakes takes a few percent of the thread.
const SIGNATURES_MAX: usize = 4;
const SIGNATURES_TIME: Duration = Duration::from_millis(100);

/// Handshakes with operators. One per process.
#[derive(Clone, Debug)]
pub struct Handshakes {
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    signatures: Arc<Semaphore>,
}

impl Handshakes {
    /// Done by this configuration of TLS, as it is when each of them begins.
    pub fn new(config: watch::Receiver<Option<Arc<ServerConfig>>>) -> Self {
        Self { config, signatures: Arc::new(Semaphore::new(SIGNATURES_MAX)) }
    }

    /// Does one, within its time. Dropping the future closes the connection.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_TIME, self.shake_hands(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn shake_hands(&self, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
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
        // Whoever is slow from here on keeps nobody from signing: the place is free again after its time.
        let signature = Arc::clone(&self.signatures).acquire_owned().await;
        tokio::task::spawn_local(async move {
            sleep(SIGNATURES_TIME).await;
            drop(signature);
        });
        let config = self.config.borrow().clone();
        let config = config.ok_or_else(|| io::Error::other("there is no certificate"))?;
        hello.into_stream(config).await
    }
}
