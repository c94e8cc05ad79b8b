//! A shard's current copy of what the control thread builds: routes, keys, backends.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::local::Local;

/// The copy that new requests use. One per shard.
///
/// It arrives as one `Arc` and is shared inside the shard by an `Rc` around it, so that a request counts only on a
/// counter of its own core. A request keeps the copy that it began with.
#[derive(Debug)]
pub struct Snapshot<T> {
    current: Local<Current<T>>,
}

impl<T> Snapshot<T> {
    /// Starts with `value`.
    pub fn new(value: Arc<T>) -> Self {
        Self { current: Local::new(Current(Rc::new(value))) }
    }

    /// The current copy, for as long as one wants to keep it.
    #[inline]
    pub fn current(&self) -> Current<T> {
        self.current.with(|current| current.clone())
    }

    /// Makes `value` current. The one before lives until the last request that began with it ends.
    pub fn swap(&self, value: Arc<T>) {
        let before = self.current.with(|current| std::mem::replace(current, Current(Rc::new(value))));
        // Outside the closure: freeing a large table is nobody's atomic step.
        drop(before);
    }
}

/// A copy as a request holds it; reads like the value. Cloning it counts on this shard only.
#[derive(Debug)]
#[expect(clippy::redundant_allocation, reason = "the outer counter is this core's, the inner one is shared")]
pub struct Current<T>(Rc<Arc<T>>);

impl<T> Clone for Current<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Deref for Current<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_the_copy_it_began_with() {
        let routes = Snapshot::new(Arc::new("old"));
        let began_with = routes.current();
        routes.swap(Arc::new("new"));
        assert_eq!(*began_with, "old");
        assert_eq!(*routes.current(), "new");
    }

    #[test]
    fn the_shared_counter_is_touched_once_per_shard() {
        let value = Arc::new(());
        let snapshot = Snapshot::new(Arc::clone(&value));
        let held: Vec<_> = (0..10).map(|_| snapshot.current()).collect();
        assert_eq!(Arc::strong_count(&value), 2);
        snapshot.swap(Arc::new(()));
        drop(held);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
