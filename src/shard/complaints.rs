//! Trouble that repeats: said once a second with a count, however often it happens. Whatever a network or a client can cause
//! again and again goes through here on its way to the log.

use std::{cell::Cell, time::Duration};

use super::{Instant, clock};

/// How often the log is told, unless somebody wants it more seldom.
const INTERVAL: Duration = Duration::from_secs(1);

/// Things of one kind of which the log is told once in a while, and how many it was not told of yet.
///
/// What is left when the trouble ends is told with the next of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Complaints {
    interval: Duration,
    /// As many are told one by one in each interval.
    singly: u32,
    told: u32,
    untold: u64,
    began: Option<Instant>,
}

impl Complaints {
    /// The log is told once a second.
    pub const fn new() -> Self {
        Self::every(INTERVAL)
    }

    /// The log is told once in so long.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, singly: 1, told: 0, untold: 0, began: None }
    }

    /// The log is told of so many a second one by one: they are about different things.
    pub const fn singly(count: u32) -> Self {
        Self { singly: count, ..Self::new() }
    }

    /// Some more; how many the log is to be told of, if it is to be told now.
    pub fn add(&mut self, now: Instant, count: u64) -> Option<u64> {
        self.untold += count;
        if self.is_over(now) {
            (self.began, self.told) = (Some(now), 0);
        }
        (self.told < self.singly && self.untold > 0).then(|| {
            self.told += 1;
            std::mem::take(&mut self.untold)
        })
    }

    /// Whether the log is told of one that comes now.
    pub fn has_room(&self, now: Instant) -> bool {
        self.is_over(now) || self.told < self.singly
    }

    /// Some more of which the log is not to be told now.
    pub fn leave(&mut self, count: u64) {
        self.untold += count;
    }

    /// Whether the log was told of nothing for so long that the next is as the first.
    pub fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.since(began) >= self.interval)
    }
}

impl Default for Complaints {
    fn default() -> Self {
        Self::new()
    }
}

/// The same for whom nobody owns: in a `thread_local`.
#[derive(Debug)]
pub struct ThreadComplaints(Cell<Complaints>);

impl ThreadComplaints {
    /// The log is told once a second.
    pub const fn new() -> Self {
        Self(Cell::new(Complaints::new()))
    }

    /// One more; how many the log is to be told of, if it is to be told now.
    pub fn add(&self) -> Option<u64> {
        let mut complaints = self.0.get();
        let told = complaints.add(clock::now(), 1);
        self.0.set(complaints);
        told
    }
}

impl Default for ThreadComplaints {
    fn default() -> Self {
        Self::new()
    }
}

/// Says something in the log that others may cause again and again: `complain!(error: %error, "it failed")` once a second for
/// this place and thread, with `count` as how often it was since it was said last.
macro_rules! complain {
    ($level:ident: $($said:tt)+) => {{
        thread_local! {
            static COMPLAINTS: $crate::shard::complaints::ThreadComplaints =
                const { $crate::shard::complaints::ThreadComplaints::new() };
        }
        if let Some(count) = COMPLAINTS.with($crate::shard::complaints::ThreadComplaints::add) {
            tracing::$level!(count, $($said)+);
        }
    }};
}

pub(crate) use complain;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    #[test]
    fn the_log_is_told_once_a_second_with_a_count() {
        let (mut complaints, start) = (Complaints::new(), Instant::START);
        assert_eq!(complaints.add(start, 0), None, "nothing happened");
        assert_eq!(complaints.add(start, 1), Some(1));
        assert_eq!(complaints.add(start + INTERVAL / 2, 1), None);
        assert_eq!(complaints.add(start + INTERVAL, 2), Some(3));
        assert_eq!(complaints.add(start + INTERVAL, 1), None);
        assert_eq!(complaints.add(start + 9 * INTERVAL, 1), Some(2));
        let mut seldom = Complaints::every(60 * INTERVAL);
        assert_eq!([1, 2, 3].map(|at| seldom.add(start + at * INTERVAL, 1)), [Some(1), None, None]);
        assert_eq!(seldom.add(start + 61 * INTERVAL, 1), Some(3));
    }

    #[test]
    fn some_are_told_one_by_one_and_the_rest_together() {
        let (mut complaints, start) = (Complaints::singly(3), Instant::START);
        let told = [0; 5].map(|_| complaints.add(start, 1));
        assert_eq!(told, [Some(1), Some(1), Some(1), None, None]);
        let told = [0; 4].map(|_| complaints.add(start + INTERVAL, 1));
        assert_eq!(told, [Some(3), Some(1), Some(1), None]);
    }

    /// Sends what is written, a line a call.
    struct Lines(Sender<String>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).trim().to_owned()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_is_one_line_and_then_one_with_the_count() {
        let (output, written) = channel();
        let writer = move || Lines(output.clone());
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            let fail = |error: &str| complain!(warn: error, "it failed");
            let began = clock::now();
            (0..100_000).for_each(|_| fail("away"));
            // Until the second is over: the next one tells of all.
            while clock::now().since(began) < INTERVAL + Duration::from_millis(10) {
                std::thread::yield_now();
            }
            fail("away still");
        });
        let lines: Vec<String> = written.try_iter().collect();
        assert!(lines.len() <= 3, "{} lines", lines.len());
        assert!(
            lines[0].contains("it failed") && lines[0].contains("count=1 ") && lines[0].contains("away"),
            "{lines:?}"
        );
        let count = |line: &str| line.split("count=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        assert_eq!(lines.iter().filter_map(|line| count(line)).sum::<u64>(), 100_001, "{lines:?}");
        assert!(lines.last().is_some_and(|line| line.contains("away still")), "{lines:?}");
    }
}
