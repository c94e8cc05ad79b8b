//! A connection's bytes as one end has them: those of the socket, or records of TLS that are split anywhere and written a part at a
//! time.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, Connection};

/// Never waits: whoever would have to is told so.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

#[derive(Debug)]
pub(super) struct Tls {
    session: Connection,
    socket: TcpStream,
    /// There is content that nobody has read.
    has_unread: bool,
    /// The socket takes no more.
    is_broken: bool,
    rng: fastrand::Rng,
}

impl Stream {
    /// A client of TLS, whose handshake is done with its first reads and writes.
    pub(super) fn client(socket: TcpStream, config: &Arc<ClientConfig>, seed: u64) -> Self {
        let name = "gateway.test".try_into().expect("a name");
        let session = ClientConnection::new(Arc::clone(config), name).expect("a session").into();
        Self::Tls(Box::new(Tls {
            session,
            socket,
            has_unread: false,
            is_broken: false,
            rng: fastrand::Rng::with_seed(seed),
        }))
    }

    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    /// Whether there is something to read, whatever the socket has.
    pub(super) fn has_unread(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.has_unread)
    }

    /// Whether the socket has all that was written.
    pub(super) fn is_flushed(&self) -> bool {
        !matches!(self, Self::Tls(tls) if tls.session.wants_write() && !tls.is_broken)
    }

    /// Writes a part of what the socket does not have yet.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Takes some of these bytes, once the socket has all that was taken before.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Says that nothing follows, where there is a word for that.
    pub(super) fn say_goodbye(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            while tls.session.wants_write() && tls.session.write_tls(&mut tls.socket).is_ok() {}
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.has_unread {
            let bytes_max = if self.rng.bool() { buffer.len() } else { self.rng.usize(1..2000) };
            match self.session.read_tls(&mut (&self.socket).take(bytes_max as u64)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let processed = self.session.process_new_packets();
            // Its alert, or what its handshake says next.
            let _ = self.flush();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        let read = self.session.reader().read(buffer);
        let state = self.session.process_new_packets();
        self.has_unread = state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
        read
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.session.wants_write() {
            self.flush()?;
            return Err(ErrorKind::WouldBlock.into());
        }
        // Keys change in between, too.
        if self.rng.u8(0..8) == 0 && !self.session.is_handshaking() {
            self.session.refresh_traffic_keys().map_err(io::Error::other)?;
        }
        let bytes_max = self.rng.usize(1..20_000);
        let written = self.session.writer().write(&bytes[..bytes.len().min(bytes_max)])?;
        self.flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            let bytes_max = if self.rng.bool() { usize::MAX } else { self.rng.usize(1..2000) };
            match self.session.write_tls(&mut Part(&self.socket, bytes_max)) {
                Ok(_) if self.rng.u8(0..4) > 0 => {}
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.is_broken = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// A socket that takes no more than so many bytes at a time.
struct Part<'s>(&'s TcpStream, usize);

impl Write for Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(self.1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
