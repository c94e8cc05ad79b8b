//! TLS before a server of the tests: opens what clients send, and seals what the server answers. A thread for each connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

/// Listens before the server at this port of 127.0.0.1, until the tests end; the port.
pub(crate) fn tls(port: u16) -> u16 {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("made");
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![cert.der().clone()], key).expect("a pair"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let own = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, config) = (client.expect("a client"), Arc::clone(&config));
            // A client that leaves in the middle of something ends its thread and nothing else.
            std::thread::spawn(move || relay(&client, &TcpStream::connect((Ipv4Addr::LOCALHOST, port))?, config));
        }
    });
    own
}

fn relay(mut client: &TcpStream, mut server: &TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut ready = [PollFd::new(client, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
        poll(&mut ready, None)?;
        let [by_client, by_server] = ready.map(|one| !one.revents().is_empty());
        if by_client {
            if tls.read_tls(&mut client)? == 0 {
                return Ok(());
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            while let Ok(opened @ 1..) = tls.reader().read(&mut buffer) {
                server.write_all(&buffer[..opened])?;
            }
        }
        let mut has_ended = false;
        if by_server {
            match server.read(&mut buffer)? {
                0 => {
                    has_ended = true;
                    tls.send_close_notify();
                }
                answered => tls.writer().write_all(&buffer[..answered])?,
            }
        }
        while tls.wants_write() {
            tls.write_tls(&mut client)?;
        }
        if has_ended {
            return Ok(());
        }
    }
}
