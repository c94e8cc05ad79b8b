//! Reads files for the control thread, on threads that may wait: a file system that hangs holds up nobody but whoever asks, who
//! is told so after a while. Of each thing only so many read at once, those that hang among them: other things are read meanwhile,
//! and there are never more threads than that.

use std::{fmt, future::pending, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::config::written_duration;

/// How long reading may take before that is told. A disk that has to wake up takes no longer.
const READ_MAX: Duration = Duration::from_secs(5);

/// Who may read something: so many at once. Clones share the places.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    places: Arc<Semaphore>,
    /// Those of all things of its kind, where it is one of many.
    of_kind: Option<Arc<Semaphore>>,
    time_max: Duration,
}

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotRead {
    #[error("that takes longer than {}", written_duration(*.0))]
    Late(Duration),
    #[error("whoever read it panicked")]
    Panicked,
}

/// Something that is being read. Dropping it loses what is read; whoever hangs keeps its place until that has ended.
pub(super) struct Reading<T> {
    work: Pin<Box<dyn Future<Output = Result<T, NotRead>> + Send>>,
    /// When it was asked for first.
    began: Option<Instant>,
    time_max: Duration,
    is_late_told: bool,
}

impl<T> fmt::Debug for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("is_late_told", &self.is_late_told).finish_non_exhaustive()
    }
}

impl Readers {
    /// So many at once.
    pub(super) fn new(at_once_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(at_once_max)), of_kind: None, time_max: READ_MAX }
    }

    /// Those of one of many things, which is read by one at a time.
    pub(super) fn of_one(&self) -> Self {
        Self { places: Arc::new(Semaphore::new(1)), of_kind: Some(Arc::clone(&self.places)), time_max: self.time_max }
    }

    /// Reads something once there is a place. It begins when it is first asked what comes of it, within a tokio runtime.
    pub(super) fn read<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Reading<T> {
        let (places, of_kind) = (Arc::clone(&self.places), self.of_kind.clone());
        let work = async move {
            let place = places.acquire_owned().await;
            // Who waits for what hangs does not take the place of one who could read.
            let of_kind = match of_kind {
                Some(places) => Some(places.acquire_owned().await),
                None => None,
            };
            let reading = spawn_blocking(move || {
                let read = work();
                drop((place, of_kind));
                read
            });
            reading.await.map_err(|_| NotRead::Panicked)
        };
        Reading { work: Box::pin(work), began: None, time_max: self.time_max, is_late_told: false }
    }

    #[cfg(test)]
    pub(super) fn within(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// Places that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.places.available_permits()
    }
}

impl<T> Reading<T> {
    /// What comes of it. That it is late is told once, and it goes on: ask again, and it is told what was read in the end. After
    /// anything else it has ended, and is not asked any more. Dropping the future loses nothing.
    pub(super) async fn outcome(&mut self) -> Result<T, NotRead> {
        if self.is_late_told {
            return (&mut self.work).await;
        }
        let due = *self.began.get_or_insert_with(Instant::now) + self.time_max;
        timeout_at(due, &mut self.work).await.unwrap_or_else(|_| {
            self.is_late_told = true;
            Err(NotRead::Late(self.time_max))
        })
    }

    /// If it is late, that is told again.
    pub(super) const fn remind(&mut self) {
        self.is_late_told = false;
    }
}

/// What comes of reading that is given up when it is late; never anything where nothing is read. Dropping the future loses nothing.
pub(super) async fn outcome<T>(reading: &mut Option<Reading<T>>) -> Result<T, NotRead> {
    let Some(under_way) = reading else { return pending().await };
    let read = under_way.outcome().await;
    *reading = None;
    read
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work);
        runtime.shutdown_background();
    }

    const SHORT: Duration = Duration::from_millis(20);
    const LATE: NotRead = NotRead::Late(SHORT);

    #[test]
    fn what_hangs_is_told_after_a_while_and_no_more_than_a_few_do() {
        let readers = Readers::new(2).within(SHORT);
        run(async {
            let mut hanging = Vec::new();
            for _ in 0..4 {
                let (release, hangs) = mpsc::channel::<()>();
                // This thread goes on, however long that takes.
                assert_eq!(readers.read(move || hangs.recv().is_ok()).outcome().await, Err(LATE));
                hanging.push(release);
            }
            // Two hang; the others have not begun, and never do.
            let taken: Vec<bool> = hanging.iter().map(|release| release.send(()).is_ok()).collect();
            assert_eq!(taken, [true, true, false, false]);
            assert_eq!(readers.within(READ_MAX).read(|| 7).outcome().await, Ok(7), "there are places again");
        });
        assert_eq!(LATE.to_string(), "that takes longer than 20ms");
    }

    #[test]
    fn one_of_many_that_hangs_takes_one_place_and_leaves_the_others() {
        let readers = Readers::new(2);
        let (one, other) = (readers.of_one().within(SHORT), readers.of_one());
        run(async {
            let (release, hangs) = mpsc::channel::<()>();
            let mut first = one.read(move || hangs.recv().is_ok());
            assert_eq!(first.outcome().await, Err(LATE));
            for _ in 0..3 {
                assert_eq!(one.read(|| ()).outcome().await, Err(LATE), "it has one reader");
            }
            assert_eq!(readers.free(), 1);
            assert_eq!(other.read(|| 7).outcome().await, Ok(7));
            // It is told again to whoever wants that, and what comes of it in the end.
            first.remind();
            assert_eq!(first.outcome().await, Err(LATE));
            release.send(()).expect("it hangs");
            assert_eq!(first.outcome().await, Ok(true));
            assert_eq!(one.within(READ_MAX).read(|| 8).outcome().await, Ok(8));
            assert_eq!(readers.free(), 2);
        });
    }

    #[test]
    fn the_time_begins_when_somebody_asks() {
        let readers = Readers::new(1);
        run(async {
            let mut reading = readers.read(|| 7);
            reading.time_max = SHORT;
            tokio::time::sleep(2 * SHORT).await;
            assert_eq!(readers.free(), 1, "it has not begun");
            reading.time_max = READ_MAX;
            assert_eq!(reading.outcome().await, Ok(7));
        });
    }

    #[test]
    fn whoever_panics_gives_the_place_back() {
        let readers = Readers::new(1);
        run(async {
            assert_eq!(readers.read(|| assert_eq!(1, 2)).outcome().await, Err(NotRead::Panicked));
            assert_eq!(readers.read(|| 7).outcome().await, Ok(7));
        });
    }
}
