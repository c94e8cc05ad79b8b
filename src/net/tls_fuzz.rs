//! Drives a handshake over any bytes, split anywhere, for tests and fuzzing only.

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{TlsTo, accept_tls, tls_connect::connect_tls};
use crate::{
    certificates::{self, InstanceTls},
    shard::{Driver, Instant, TcpStream, clock, gate::Gate, spawn_shard, task},
};

/// No handshake has so much to say.
const ANSWER_MAX: usize = 32 * 1024;

/// A client says these bytes, but for the first, which says how many come at once; and so does a service.
pub fn fuzz_handshake(bytes: &[u8]) {
    thread_local! {
        static CONFIG: Arc<ServerConfig> = certificates::fuzz_config();
    }
    let (config, bytes) = (CONFIG.with(Arc::clone), bytes.to_vec());
    let shard = spawn_shard(0, None, Driver::Epoll, async move || {
        let Some((at_once, bytes)) = bytes.split_first() else { return };
        // Without somebody at the other end who knows its keys none comes about.
        let with_client =
            async move |socket| accept_tls(socket, config, &Gate::new(4), 16, &Cell::new(false)).await.is_err();
        let answer = talk(usize::from(*at_once), bytes, with_client).await;
        assert!(matches!(answer.first(), None | Some(21 | 22 | b'H')), "an alert, a record of the handshake, or HTTP");
        let with_service = async move |socket| connect_tls(socket, to_service(), deadline()).await.is_err();
        let said = talk(usize::from(*at_once), bytes, with_service).await;
        assert_eq!(said.first(), Some(&22), "it begins");
    });
    shard.expect("a thread").join().expect("it ends well");
}

fn deadline() -> Instant {
    clock::now() + Duration::from_secs(10)
}

/// A service that nobody answers for.
fn to_service() -> TlsTo {
    let config = ClientConfig::builder_with_provider(certificates::provider());
    let config = config.with_safe_default_protocol_versions().expect("ring has them");
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = "shop.example".try_into().expect("a name");
    TlsTo { instance: InstanceTls { config: Arc::new(config), name }, gate: Rc::new(Gate::new(4)) }
}

/// What a handshake answers to these bytes, so many of which come at once. It is to fail.
async fn talk<F: Future<Output = bool>>(
    at_once: usize,
    bytes: &[u8],
    handshake: impl FnOnce(TcpStream) -> F + 'static,
) -> Vec<u8> {
    let (ours, mut client) = UnixStream::pair().expect("sockets");
    for socket in [&ours, &client] {
        socket.set_nonblocking(true).expect("set");
    }
    let socket = TcpStream::accepted(ours.into()).expect("registered");
    let is_done = Rc::new(Cell::new(false));
    let done = Rc::clone(&is_done);
    task::spawn("a handshake", async move {
        assert!(handshake(socket).await);
        done.set(true);
    });
    for piece in bytes.chunks(at_once.max(1)) {
        // Whoever refuses reads no more.
        if client.write(piece).is_err() {
            break;
        }
        for _ in 0..2 {
            task::yield_now().await;
        }
    }
    let _ = client.shutdown(Shutdown::Write);
    let due = deadline();
    while !is_done.get() {
        assert!(task::panics() == 0 && clock::now() < due, "it ends when its client does");
        task::yield_now().await;
    }
    let mut answer = Vec::new();
    // It may have been closed on with bytes of the client unread.
    let _ = client.read_to_end(&mut answer);
    assert!(answer.len() < ANSWER_MAX, "{}", answer.len());
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Nothing that is fuzzed panics with bytes that begin like a handshake.
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), is_record in any::<bool>()) {
            let length = u16::try_from(bytes.len()).expect("a few").to_be_bytes();
            let head = [7, 22, 3, 1, length[0], length[1]];
            fuzz_handshake(&if is_record { [&head[..], &bytes].concat() } else { bytes });
        }
    }

    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/tls_handshake");
        let files: Vec<_> = std::fs::read_dir(folder).expect("a folder").collect();
        assert!(files.len() > 2);
        for file in files {
            fuzz_handshake(&std::fs::read(file.expect("a file").path()).expect("read"));
        }
    }
}
