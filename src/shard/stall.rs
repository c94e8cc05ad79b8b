//! How late a shard is: the gap between when a timer should have fired and when it did.
//!
//! A task that holds the core, a full run queue and a stolen CPU all show here. It does not say which; a profile does.

use std::cell::Cell;
use std::time::Duration;

use super::{clock, timer};

/// How often it looks while somebody could be kept waiting. A stall shorter than this is seen only in proportion.
const PERIOD: Duration = Duration::from_millis(100);
/// How often it looks otherwise: whoever has nothing to do sleeps.
const IDLE_PERIOD: Duration = Duration::from_secs(1);

thread_local! {
    static WORST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Watches this shard for as long as it is polled. One per shard. An idle shard shows up to 2 ms: its timers count in
/// milliseconds.
pub async fn watch(is_idle: impl Fn() -> bool) {
    loop {
        let expected = clock::now() + if is_idle() { IDLE_PERIOD } else { PERIOD };
        timer::sleep_until(expected).await;
        note(clock::now() - expected);
    }
}

fn note(late: Duration) {
    WORST.set(WORST.get().max(late));
}

/// The worst lateness since this was last asked, on this shard.
pub fn lag() -> Duration {
    WORST.replace(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{task, testing};

    #[test]
    fn a_task_that_holds_the_core_is_seen() {
        testing::on_both_drivers(|| async {
            task::spawn("lag watch", watch(|| false));
            // Let the watch arm its timer, then keep the core past the moment it is due.
            timer::sleep(Duration::from_millis(1)).await;
            let until = clock::now() + PERIOD * 2;
            while clock::now() < until {
                std::hint::spin_loop();
            }
            let mut worst = Duration::ZERO;
            testing::until(|| {
                worst = worst.max(lag());
                worst >= PERIOD / 2
            })
            .await;
        });
    }

    #[test]
    fn asking_starts_anew() {
        note(Duration::from_millis(3));
        note(Duration::from_millis(2));
        assert_eq!(lag(), Duration::from_millis(3));
        assert_eq!(lag(), Duration::ZERO);
    }
}
