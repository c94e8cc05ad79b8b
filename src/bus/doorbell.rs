//! Wakes a sleeping reader: one bell per reader, rung only when the reader has said that it sleeps.
//!
//! The protocol is [`Armed`], small enough to be checked in every interleaving. It leaves the rings to `mesh`.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

#[cfg(all(mesh_loom, test))]
use loom::sync::atomic::{Ordering, fence};
#[cfg(not(all(mesh_loom, test)))]
use std::sync::atomic::{Ordering, fence};

#[cfg(all(mesh_loom, test))]
type Flag = loom::sync::atomic::AtomicBool;
#[cfg(not(all(mesh_loom, test)))]
#[expect(clippy::disallowed_types, reason = "a bell's flag is what atomics are allowed in this folder for")]
type Flag = std::sync::atomic::AtomicBool;

/// Whether the reader sleeps, or is about to. Shared by one reader and its writers.
///
/// The reader says that it will sleep, then looks at its rings again; a writer pushes, then looks whether the reader
/// sleeps. Between each pair stands a full fence, so at least one of the two sees the other: either the reader finds the
/// letter and stays awake, or the writer rings.
#[derive(Debug)]
#[repr(align(128))] // On a cache line of its own: writers on other cores read it after each batch.
pub(super) struct Armed(Flag);

impl Armed {
    pub(super) fn new() -> Self {
        Self(Flag::new(false))
    }

    /// The reader asks whether it may wait for its bell. `has_letters` looks into its rings.
    #[inline]
    pub(super) fn may_sleep(&self, has_letters: impl FnOnce() -> bool) -> bool {
        // Swaps, not stores: they stand in one order with the writers' swaps, which loom otherwise does not know of.
        self.0.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_letters() {
            // A writer may have rung already; its byte is then read for nothing at the next wait.
            self.0.swap(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// A writer asks, after it has pushed, whether it must ring. Of several writers one is told to.
    #[inline]
    pub(super) fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// A reader's bell, as its writers hold it. Moves between shards.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) armed: Armed,
    rope: UnixStream,
}

impl Doorbell {
    /// A bell, and the socket that its reader waits on.
    pub(super) fn new() -> io::Result<(Self, UnixStream)> {
        let (rope, ear) = UnixStream::pair()?;
        rope.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok((Self { armed: Armed::new(), rope }, ear))
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
        let _ = rustix::net::send(&self.rope, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

#[cfg(all(mesh_loom, test))]
mod tests {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::Armed;

    /// The ring and the socket, as far as the protocol needs them: a count that is published with each push, and a bell
    /// that remembers being rung.
    struct Model {
        armed: Armed,
        rings: Vec<AtomicUsize>,
        bell: Notify,
    }

    /// Every writer pushes its letters, ringing after each batch; the reader sleeps by the protocol until it has them
    /// all. A lost wake-up is a deadlock, which loom reports.
    fn check(writers: usize, batches: usize, letters: usize) {
        let mut explore = loom::model::Builder::new();
        explore.preemption_bound = Some(3);
        explore.check(move || {
            let model = Arc::new(Model {
                armed: Armed::new(),
                rings: (0..writers).map(|_| AtomicUsize::new(0)).collect(),
                bell: Notify::new(),
            });
            let threads: Vec<_> = (0..writers)
                .map(|me| {
                    let model = Arc::clone(&model);
                    thread::spawn(move || {
                        for batch in 0..batches {
                            for letter in 0..letters {
                                model.rings[me].store(batch * letters + letter + 1, Ordering::Release);
                            }
                            if model.armed.must_ring() {
                                model.bell.notify();
                            }
                        }
                    })
                })
                .collect();
            let mut read = vec![0; writers];
            while read.iter().sum::<usize>() < writers * batches * letters {
                for (read, ring) in read.iter_mut().zip(&model.rings) {
                    *read = ring.load(Ordering::Acquire);
                }
                let all = read.iter().sum::<usize>() == writers * batches * letters;
                let has_letters =
                    || read.iter().zip(&model.rings).any(|(read, ring)| ring.load(Ordering::Acquire) > *read);
                if !all && model.armed.may_sleep(has_letters) {
                    model.bell.wait();
                }
            }
            for thread in threads {
                thread.join().expect("a writer ends well");
            }
        });
    }

    #[test]
    fn no_letter_of_two_writers_is_slept_over() {
        check(2, 1, 1);
    }

    #[test]
    fn no_batch_of_one_writer_is_slept_over() {
        check(1, 2, 2);
    }
}

#[cfg(all(test, not(mesh_loom)))]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn only_a_sleeping_reader_is_rung_and_only_once() {
        let (bell, mut ear) = Doorbell::new().expect("a pair of sockets");
        let mut heard = [0; 8];
        bell.ring_if_asleep();
        assert_eq!(ear.read(&mut heard).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        assert!(bell.armed.may_sleep(|| false));
        bell.ring_if_asleep();
        bell.ring_if_asleep();
        assert_eq!(ear.read(&mut heard).ok(), Some(1));
        assert!(!bell.armed.may_sleep(|| true), "a letter came in between");
        bell.ring_if_asleep();
        assert!(ear.read(&mut heard).is_err(), "an awake reader is not rung");
    }

    #[test]
    fn a_bell_that_nobody_hears_harms_nobody() {
        let (bell, ear) = Doorbell::new().expect("a pair of sockets");
        for _ in 0..100_000 {
            bell.ring(); // far more than the socket holds
        }
        drop(ear);
        bell.ring();
    }
}
