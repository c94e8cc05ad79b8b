//! A plain service to stand behind the gateway: it answers by path, each connection on a thread of its own.
//!
//! It does what is right; services that misbehave are written where they are needed.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, OnceLock},
};

use crate::client::{Client, Head};

/// What downloads are made of: it never repeats at a power of two, so that no buffer's end can hide in it.
const PATTERN_BYTES: usize = 65_521;

/// A running service. Its threads end with the test binary.
#[derive(Debug)]
pub(crate) struct Service {
    address: SocketAddr,
    gate: Arc<OnceLock<()>>,
}

impl Service {
    /// Starts it on any free port.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let gate = Arc::new(OnceLock::new());
        let shared = Arc::clone(&gate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gate = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &gate));
            }
        });
        Self { address, gate }
    }

    /// Lets the answers of `/held` and `/stream` go on, those to come too.
    pub(crate) fn release(&self) {
        self.gate.get_or_init(|| ());
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A configuration that sends everything here, before `more` of it.
    pub(crate) fn config(&self, more: &str) -> String {
        let address = self.address;
        format!(
            "{more}\n[upstreams.sample]\ninstances = [\"{address}\"]\n\n\
             [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"sample\"\nbody_bytes_max = \"2GiB\"\nrequest_timeout = \"10m\"\n"
        )
    }
}

/// Serves one connection until it closes or breaks.
fn serve(stream: TcpStream, gate: &OnceLock<()>) {
    let mut client = Client::new(stream).with_patience(std::time::Duration::from_mins(1));
    while let Ok(head) = client.read_head() {
        if answer(&mut client, &head, gate).is_err() {
            return;
        }
    }
}

fn answer(client: &mut Client, head: &Head, gate: &OnceLock<()>) -> io::Result<()> {
    let mut words = head.first_line.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if path == "/upload" {
        let mut bytes = 0;
        client.read_large_body(&head.fields, |piece| bytes += piece.len())?;
        return fixed(client, method, &bytes.to_string());
    }
    let mut body = Vec::new();
    client.read_large_body(&head.fields, |piece| body.extend_from_slice(piece))?;
    if let Some(size) = path.strip_prefix("/download/").and_then(|size| size.parse().ok()) {
        return download(client, method, size);
    }
    match path {
        "/echo" => {
            client.try_send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()))?;
            client.try_send(body)
        }
        "/held" => {
            gate.wait();
            fixed(client, method, "held")
        }
        "/stream" => {
            client.try_send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
            gate.wait();
            client.try_send("4\r\nlast\r\n0\r\n\r\n")
        }
        _ => fixed(client, method, "hello\n"),
    }
}

fn fixed(client: &mut Client, method: &str, body: &str) -> io::Result<()> {
    let sent = if method == "HEAD" { "" } else { body };
    client.try_send(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{sent}",
        body.len()
    ))
}

fn download(client: &mut Client, method: &str, size: usize) -> io::Result<()> {
    client.try_send(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n"))?;
    if method == "HEAD" {
        return Ok(());
    }
    let pattern = pattern();
    let mut left = size;
    while left > 0 {
        let piece = left.min(pattern.len());
        client.try_send(&pattern[..piece])?;
        left -= piece;
    }
    Ok(())
}

/// What downloads repeat.
pub(crate) fn pattern() -> Vec<u8> {
    (0..PATTERN_BYTES).map(|at| u8::try_from(at * 7 % 251).expect("below 256")).collect()
}
