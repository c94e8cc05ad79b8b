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

use rustls::ServerConfig;

use super::accept_tls;
use crate::{
    certificates,
    shard::{Driver, TcpStream, clock, gate::Gate, spawn_shard, task},
};

/// No handshake has so much to say.
const ANSWER_MAX: usize = 32 * 1024;

/// A client says these bytes, but for the first, which says how many come at once.
pub fn fuzz_handshake(bytes: &[u8]) {
    thread_local! {
        static CONFIG: Arc<ServerConfig> = certificates::fuzz_config();
    }
    let (config, bytes) = (CONFIG.with(Arc::clone), bytes.to_vec());
    let shard = spawn_shard(0, None, Driver::Epoll, move || shake_hands(config, bytes)).expect("a thread");
    shard.join().expect("it ends well");
}

async fn shake_hands(config: Arc<ServerConfig>, bytes: Vec<u8>) {
    let Some((at_once, bytes)) = bytes.split_first() else { return };
    let (ours, mut client) = UnixStream::pair().expect("sockets");
    for socket in [&ours, &client] {
        socket.set_nonblocking(true).expect("set");
    }
    let socket = TcpStream::accepted(ours.into()).expect("registered");
    let is_done = Rc::new(Cell::new(false));
    let done = Rc::clone(&is_done);
    task::spawn("a handshake", async move {
        // Without a client that knows its keys none comes about.
        assert!(accept_tls(socket, config, &Gate::new(4), 16, &Cell::new(false)).await.is_err());
        done.set(true);
    });
    for piece in bytes.chunks(usize::from(*at_once).max(1)) {
        // Whoever refuses reads no more.
        if client.write(piece).is_err() {
            break;
        }
        for _ in 0..2 {
            task::yield_now().await;
        }
    }
    let _ = client.shutdown(Shutdown::Write);
    let due = clock::now() + Duration::from_secs(10);
    while !is_done.get() {
        assert!(task::panics() == 0 && clock::now() < due, "it ends when its client does");
        task::yield_now().await;
    }
    let mut answer = Vec::new();
    // It may have been closed on with bytes of the client unread.
    let _ = client.read_to_end(&mut answer);
    let is_right = matches!(answer.first(), None | Some(21 | 22 | b'H'));
    assert!(is_right && answer.len() < ANSWER_MAX, "an alert, a record of the handshake, or HTTP");
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
