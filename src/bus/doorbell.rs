//! Wakes a sleeping reader: one bell per reader, rung only when the reader has said that it sleeps.
//!
//! When to ring is decided by [`Armed`], how by a byte in a socket pair. It leaves the rings to `mesh`.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

use super::armed::Armed;

/// A reader's bell, as its writers hold it. Moves between shards.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) armed: Armed,
    ringing: UnixStream,
}

impl Doorbell {
    /// A bell, and the socket that its reader waits on.
    pub(super) fn new() -> io::Result<(Self, UnixStream)> {
        let (ringing, listening) = UnixStream::pair()?;
        ringing.set_nonblocking(true)?;
        listening.set_nonblocking(true)?;
        Ok((Self { armed: Armed::new(), ringing }, listening))
    }

    /// Rings if the reader sleeps. Call it after the push, once per batch.
    #[inline]
    pub(super) fn ring_if_asleep(&self) {
        if self.armed.must_ring() {
            self.ring();
        }
    }

    /// Rings in any case.
    pub(super) fn ring(&self) {
        // A full socket rings already, and a reader that is gone needs no bell.
        let _ = rustix::net::send(&self.ringing, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn only_a_sleeping_reader_is_rung_and_only_once() {
        let (bell, mut socket) = Doorbell::new().expect("a pair of sockets");
        let mut heard = [0; 8];
        bell.ring_if_asleep();
        assert_eq!(socket.read(&mut heard).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        assert!(bell.armed.may_sleep(|| false));
        bell.ring_if_asleep();
        bell.ring_if_asleep();
        assert_eq!(socket.read(&mut heard).ok(), Some(1));
        assert!(!bell.armed.may_sleep(|| true), "a letter came in between");
        bell.ring_if_asleep();
        assert!(socket.read(&mut heard).is_err(), "an awake reader is not rung");
    }

    #[test]
    fn a_bell_that_nobody_hears_harms_nobody() {
        let (bell, socket) = Doorbell::new().expect("a pair of sockets");
        for _ in 0..100_000 {
            bell.ring(); // far more than the socket holds
        }
        drop(socket);
        bell.ring();
    }
}
