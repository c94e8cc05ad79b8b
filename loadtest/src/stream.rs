//! What carries a connection's bytes: a socket, in clear text or with TLS over it. Both are read and written alike, so that
//! nobody else has to know which it is.
//!
//! TLS is the client's side, made to be cheap, because it shares a machine with the server it measures: no certificate is
//! checked, neither whose it is nor its signature. Every connection is a whole handshake unless it is to take a session up again.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::sync::Arc;

use anyhow::Context;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};

use crate::socket;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TlsVersion {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// How a client speaks TLS with one server.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// With the server of this authority, `host:port`; in this version or the best that both have.
    pub(crate) fn new(authority: &str, version: Option<TlsVersion>) -> anyhow::Result<Self> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no name of a server"))?;
        let versions: &[_] = match version {
            Some(TlsVersion::Tls12) => &[&TLS12],
            Some(TlsVersion::Tls13) => &[&TLS13],
            None => &[&TLS13, &TLS12],
        };
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let verifier = Arc::new(Unverified(provider));
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        let tls = Self { config: Arc::new(config), name };
        tls.session()?; // what is wrong with it shows now
        Ok(tls)
    }

    /// As another client, which takes up again the sessions that it has had itself.
    pub(crate) fn resuming(&self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::in_memory_sessions(8);
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    /// What a client says first, as the bytes of its record.
    pub(crate) fn greeting(&self) -> anyhow::Result<Vec<u8>> {
        let mut greeting = Vec::new();
        self.session()?.write_tls(&mut greeting)?;
        Ok(greeting)
    }

    fn session(&self) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }
}

/// Takes every certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that has begun to connect.
pub(crate) enum Stream {
    Plain(OwnedFd),
    Tls(Box<Session>),
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd, tls: Option<&Tls>) -> rustix::io::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::Plain(socket)) };
        // The same has gone well before.
        let tls = tls.session().map_err(|_| Errno::PROTO)?;
        Ok(Self::Tls(Box::new(Session { socket, tls, was_told: false })))
    }

    /// The socket is writable for the first time: says why it has not connected, or begins the handshake.
    pub(crate) fn connected(&mut self) -> rustix::io::Result<()> {
        match self {
            Self::Plain(socket) => socket::connected(socket),
            Self::Tls(session) => {
                socket::connected(&session.socket)?;
                session.flush();
                Ok(())
            }
        }
    }

    /// Takes what has come. What is shorter than the buffer has emptied the socket; 0 is an end in order.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket::receive(&*socket, buffer),
            Self::Tls(session) => session.receive(buffer),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket::send(&*socket, bytes),
            Self::Tls(session) => session.send(&[IoSlice::new(bytes)]),
        }
    }

    /// Two parts in one write, so that a head never travels without its body's beginning.
    pub(crate) fn send_both(&mut self, head: &[u8], body: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket::send_both(&*socket, head, body),
            Self::Tls(session) => session.send(&[IoSlice::new(head), IoSlice::new(body)]),
        }
    }

    /// The socket is writable: sends what was sealed and is left.
    pub(crate) fn flush(&mut self) {
        if let Self::Tls(session) = self {
            session.flush();
        }
    }

    /// How its handshake was done, told once.
    pub(crate) fn handshake(&mut self) -> Option<HandshakeKind> {
        let Self::Tls(session) = self else { return None };
        if session.was_told || session.tls.is_handshaking() {
            return None;
        }
        session.was_told = true;
        session.tls.handshake_kind()
    }
}

/// A connection over TLS.
pub(crate) struct Session {
    socket: OwnedFd,
    tls: ClientConnection,
    /// How its handshake was done has been told.
    was_told: bool,
}

impl Session {
    fn receive(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let (mut taken, mut is_empty) = (0, false);
        loop {
            match self.tls.reader().read(&mut buffer[taken..]) {
                Ok(0) => return Ok(taken),
                Ok(bytes) => taken += bytes,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    // An end that was not announced: somebody else may have cut it.
                    return if taken > 0 { Ok(taken) } else { Err(Errno::CONNRESET) };
                }
                Err(_) if is_empty => return if taken > 0 { Ok(taken) } else { Err(Errno::AGAIN) },
                Err(_) => match self.fill() {
                    Ok(all) => is_empty = all,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => is_empty = true,
                    Err(errno) if taken == 0 => return Err(errno),
                    // Comes again when it is read again.
                    Err(_) => return Ok(taken),
                },
            }
            if taken == buffer.len() {
                return Ok(taken);
            }
        }
    }

    /// Opens some of what the socket has; says whether that was all.
    fn fill(&mut self) -> rustix::io::Result<bool> {
        let mut wire = Wire { socket: &self.socket, is_empty: false };
        if let Err(error) = self.tls.read_tls(&mut wire) {
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::PROTO));
        }
        let is_empty = wire.is_empty;
        let opened = self.tls.process_new_packets();
        self.flush(); // of the handshake, or an alert
        opened.map(|_| is_empty).map_err(|_| Errno::PROTO)
    }

    /// Seals and sends. Takes nothing while something is left that was sealed before.
    fn send(&mut self, parts: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        self.flush();
        if self.tls.wants_write() {
            return Err(Errno::AGAIN);
        }
        // In a handshake it waits inside, up to a bound; past that nothing is taken.
        let sent = self.tls.writer().write_vectored(parts).unwrap_or(0);
        self.flush();
        if sent == 0 { Err(Errno::AGAIN) } else { Ok(sent) }
    }

    /// Sends what was sealed, as far as it goes. What broke the connection shows when it is read.
    fn flush(&mut self) {
        let mut wire = Wire { socket: &self.socket, is_empty: false };
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut wire) {
                Ok(sent) if sent > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

/// The socket, as TLS reads and writes it.
struct Wire<'socket> {
    socket: &'socket OwnedFd,
    /// The last read has taken all there was.
    is_empty: bool,
}

impl io::Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = socket::receive(self.socket, buffer)?;
        self.is_empty = received > 0 && received < buffer.len();
        Ok(received)
    }
}

impl io::Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send(self.socket, bytes)?)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [part] => self.write(part),
            _ => Ok(rustix::io::writev(self.socket, parts)?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
