//! Ticks for the threads on tokio, whose only other work may be to wait for the next one.
//!
//! tokio's own timers wake twice for whatever is further away than 64 ms: its wheel sorts it into a finer slot on the way.
//! A timer of the kernel wakes once.

use std::io;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Ticks at a steady pace, the first one at once. Those that nobody waited for are one.
#[derive(Debug)]
pub struct Ticks {
    period: Duration,
    /// Read as a pipe is. `None` if the process has no descriptor left for it.
    timer: Option<pipe::Receiver>,
}

impl Ticks {
    /// Begins. Within a tokio runtime (I/O and time enabled).
    pub fn every(period: Duration) -> Self {
        Self { period, timer: start(period).ok() }
    }

    /// Waits for the next tick. Dropping the future loses none.
    pub async fn tick(&mut self) {
        let Some(timer) = &mut self.timer else { return tokio::time::sleep(self.period).await };
        let mut expirations = [0; 8];
        // A timer that fails says so each time, and whoever ticks on must not spin.
        if timer.read(&mut expirations).await.is_err() {
            tokio::time::sleep(self.period).await;
        }
    }
}

fn start(period: Duration) -> io::Result<pipe::Receiver> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    // Zero would be a timer that is off.
    let at_once = Timespec { tv_sec: 0, tv_nsec: 1 };
    let it_interval = Timespec::try_from(period).map_err(io::Error::other)?;
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value: at_once })?;
    pipe::Receiver::from_owned_fd_unchecked(timer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::clock;

    const PERIOD: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn the_first_tick_comes_at_once_and_the_others_no_faster_than_they_are_due() {
        let began = clock::now();
        let mut ticks = Ticks::every(PERIOD);
        for _ in 0..4 {
            ticks.tick().await;
        }
        assert!(clock::now().since(began) >= Duration::from_millis(50));
        let mut slow = Ticks::every(Duration::from_hours(1));
        tokio::time::timeout(Duration::from_secs(10), slow.tick()).await.expect("at once");
    }

    #[tokio::test]
    async fn without_a_descriptor_it_ticks_all_the_same() {
        let mut ticks = Ticks { period: PERIOD, timer: None };
        ticks.tick().await;
        ticks.tick().await;
    }
}
