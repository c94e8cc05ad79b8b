//! State that many tasks of one shard share. The only `RefCell` in the house.

#[expect(clippy::disallowed_types, reason = "this is the one")]
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use super::task;

/// A value that belongs to one shard. Its closure cannot await, so what it does is one atomic step for the shard.
///
/// A panic inside [`Local::with`] ends the process: the state may be half changed, and a supervisor's restart is better
/// than a shard that goes on with it.
///
/// It does not leave its thread:
///
/// ```compile_fail
/// fn moves_between_shards<T: Send>(_: T) {}
/// moves_between_shards(shardgate::shard::local::Local::new(0_u32));
/// ```
///
/// ```
/// let counter = shardgate::shard::local::Local::new(0_u32);
/// assert_eq!(counter.with(|count| { *count += 1; *count }), 1);
/// ```
#[derive(Debug, Default)]
pub struct Local<T> {
    #[expect(clippy::disallowed_types, reason = "this is the one")]
    cell: RefCell<T>,
    here: PhantomData<Rc<()>>,
}

impl<T> Local<T> {
    /// Holds `value`.
    pub const fn new(value: T) -> Self {
        #[expect(clippy::disallowed_types, reason = "this is the one")]
        let cell = RefCell::new(value);
        Self { cell, here: PhantomData }
    }

    /// Lends the value to `change`. Asking for it again inside `change` is a bug and ends the process.
    #[inline]
    pub fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let guard = AbortOnUnwind("a panic inside a shard's state");
        let result = change(&mut self.cell.borrow_mut());
        guard.disarm();
        result
    }
}

/// Ends the process if a panic unwinds through it. For what a shard cannot live without.
pub(crate) struct AbortOnUnwind(pub(crate) &'static str);

impl AbortOnUnwind {
    /// The dangerous part is over.
    #[inline]
    pub(crate) fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for AbortOnUnwind {
    #[cold]
    fn drop(&mut self) {
        // Inside a contained task the panic has been kept for a log line that will now never be written.
        if let Some(report) = task::take_report() {
            eprintln!("{report}");
        }
        // Not through the log, whose buffers die with the process.
        eprintln!("shardgate: {}: aborting, so that nothing goes on half changed", self.0);
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::testing;

    #[test]
    fn it_lends_and_returns() {
        let list = Local::new(vec![1]);
        list.with(|list| list.push(2));
        assert_eq!(list.with(|list| list.len()), 2);
    }

    #[test]
    fn a_panic_inside_ends_the_process_after_saying_why() {
        let Some(output) = testing::in_child("shard::local::tests::a_panic_inside_ends_the_process_after_saying_why")
        else {
            let state = Local::new(0);
            // Caught further out, as a connection's panic is: the process must end all the same.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                state.with(|_| panic!("the invariant does not hold"));
            }));
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(testing::signal(&output), Some(libc::SIGABRT), "{said}");
        assert!(said.contains("the invariant does not hold"), "{said}");
        assert!(said.contains("a panic inside a shard's state"), "{said}");
    }

    #[test]
    fn lending_twice_ends_the_process() {
        let Some(output) = testing::in_child("shard::local::tests::lending_twice_ends_the_process") else {
            let state = Local::new(0);
            state.with(|_| state.with(|inner| *inner += 1));
            return;
        };
        assert_eq!(testing::signal(&output), Some(libc::SIGABRT));
    }
}
