//! A shard's spans on their way to the control thread, which exports them, and the empty batches on their way back.

use std::{future::poll_fn, rc::Rc, time::Duration};

use super::letter::{AllLetters, ToControl};
use crate::{
    bus::{Bus, to},
    exchange::Ledger,
    shard::{Local, clock, timer},
};

/// How long a span may wait for others.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// And where the process is about to be cut, which leaves what was refused some 200 ms.
const LAST_FLUSH_INTERVAL: Duration = Duration::from_millis(20);

/// Hands over full batches at once, and others each second. Never ends; a shard without spans sleeps.
pub(super) async fn flush(ledger: Rc<Local<Ledger>>, bus: Bus<AllLetters>) {
    loop {
        poll_fn(|cx| ledger.with(|ledger| ledger.spans.poll_any(cx))).await;
        let full = poll_fn(|cx| ledger.with(|ledger| ledger.spans.poll_full(cx)));
        let is_full = timer::within(clock::now() + FLUSH_INTERVAL, full).await.is_some();
        hand_over(&ledger, &bus, !is_full);
    }
}

/// Hands over what there is again and again until the process is cut, when nobody asks for it any more. Never ends.
pub(super) async fn flush_to_the_end(ledger: Rc<Local<Ledger>>, bus: Bus<AllLetters>) {
    loop {
        hand_over(&ledger, &bus, true);
        timer::sleep(LAST_FLUSH_INTERVAL).await;
    }
}

/// Hands over full batches, or all that there is.
pub(super) fn hand_over(ledger: &Local<Ledger>, bus: &Bus<AllLetters>, all: bool) {
    let next = || ledger.with(|ledger| ledger.spans.take(all).map(|batch| (batch, ledger.shard)));
    while let Some((mut batch, shard)) = next() {
        batch.shard = shard;
        bus.send(to::Control, ToControl::Spans(batch));
    }
}
