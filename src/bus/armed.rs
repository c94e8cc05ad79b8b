//! The protocol between a reader that goes to sleep and writers that wake it: [`Armed`], and nothing else, so that it can
//! be checked in every interleaving (`tests/loom` builds this file alone, with loom's atomics). Sockets are `doorbell`'s.

#[cfg(mesh_loom)]
use loom::sync::atomic::{Ordering, fence};
#[cfg(not(mesh_loom))]
use std::sync::atomic::{Ordering, fence};

#[cfg(mesh_loom)]
type Flag = loom::sync::atomic::AtomicBool;
#[cfg(not(mesh_loom))]
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

#[cfg(all(test, mesh_loom))]
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

    /// What a writer does.
    #[derive(Clone, Copy)]
    enum Push {
        Control,
        Droppable,
    }

    /// One bell for two lanes. A writer pushes over both and rings once; what finds the droppable ring full is dropped, and
    /// rings for nothing. The reader takes control letters first. At the end it knows of each droppable letter whether it
    /// came, and no sleep is left.
    /// The droppable ring holds `room` letters; when that is all of them nothing is dropped, and nothing told at last.
    fn check_lanes(room: usize, batches: &'static [&'static [Push]]) {
        let count =
            |push: fn(&Push) -> bool| batches.iter().flat_map(|batch| batch.iter()).filter(|one| push(one)).count();
        let control = count(|push| matches!(push, Push::Control));
        let offered = count(|push| matches!(push, Push::Droppable));
        let tells = room < offered;
        let mut explore = loom::model::Builder::new();
        explore.preemption_bound = Some(3);
        explore.check(move || {
            let model = Arc::new(Lanes {
                armed: Armed::new(),
                control: AtomicUsize::new(0),
                pushed: AtomicUsize::new(0),
                taken: AtomicUsize::new(0),
                dropped: AtomicUsize::new(if tells { usize::MAX } else { 0 }),
                bell: Notify::new(),
            });
            let writer = {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    let (mut control, mut pushed, mut dropped) = (0, 0, 0);
                    for (number, batch) in batches.iter().enumerate() {
                        let mut is_dirty = false;
                        for push in *batch {
                            match push {
                                Push::Control => {
                                    control += 1;
                                    model.control.store(control, Ordering::Release);
                                    is_dirty = true;
                                }
                                Push::Droppable if pushed - model.taken.load(Ordering::Acquire) < room => {
                                    pushed += 1;
                                    model.pushed.store(pushed, Ordering::Release);
                                    is_dirty = true;
                                }
                                Push::Droppable => dropped += 1,
                            }
                        }
                        if tells && number + 1 == batches.len() {
                            // What was dropped is told over the control lane, at last.
                            model.dropped.store(dropped, Ordering::Release);
                            is_dirty = true;
                        }
                        if is_dirty && model.armed.must_ring() {
                            model.bell.notify();
                        }
                    }
                })
            };
            loop {
                let dropped = model.dropped.load(Ordering::Acquire);
                let read = model.control.load(Ordering::Acquire);
                let taken = model.pushed.load(Ordering::Acquire);
                model.taken.store(taken, Ordering::Release);
                if read == control && dropped != usize::MAX && taken + dropped == offered {
                    break;
                }
                let has_letters = || {
                    model.control.load(Ordering::Acquire) > read
                        || model.pushed.load(Ordering::Acquire) > taken
                        || model.dropped.load(Ordering::Acquire) != dropped
                };
                if model.armed.may_sleep(has_letters) {
                    model.bell.wait();
                }
            }
            writer.join().expect("a writer ends well");
        });
    }

    /// Two rings of one writer, and what it has to tell at last.
    struct Lanes {
        armed: Armed,
        control: AtomicUsize,
        pushed: AtomicUsize,
        taken: AtomicUsize,
        dropped: AtomicUsize,
        bell: Notify,
    }

    #[test]
    fn no_letter_of_either_lane_is_slept_over() {
        check_lanes(2, &[&[Push::Droppable], &[Push::Control, Push::Droppable]]);
        check_lanes(2, &[&[Push::Control, Push::Droppable], &[Push::Droppable]]);
        check_lanes(1, &[&[Push::Droppable], &[Push::Control]]);
    }

    #[test]
    fn droppable_letters_are_taken_or_dropped_and_neither_is_slept_over() {
        check_lanes(1, &[&[Push::Droppable, Push::Droppable], &[Push::Droppable, Push::Control]]);
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
