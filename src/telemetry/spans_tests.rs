//! Spans on their way out of a shard, and what is read of them again.

use std::task::Wake;

use proptest::prelude::{any, prop, prop_assert_eq, proptest};

use super::*;

struct Bell;

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {}
}

fn on() -> SpanLog {
    let mut log = SpanLog::default();
    log.set(Recording { is_on: true, with_errors: false });
    log
}

const LAST_TRY: LastTry = LastTry {
    id: [7; 8],
    began_ns: 1,
    status: 200,
    has_failed: false,
    reason: "",
    attempt: 1,
    is_reused: true,
    connect_us: 0,
};

fn numbered(number: u64) -> SpanFacts {
    SpanFacts { began_ns: number, ..SpanFacts::BLANK }
}

#[test]
fn while_all_batches_are_away_spans_are_dropped_and_counted_with_the_next() {
    let mut log = on();
    let span = |number| Span { facts: numbered(number), texts: SpanTexts::default() };
    let all = BATCHES * BATCH_SPANS;
    for number in 0..all as u64 + 5 {
        log.record(&span(number));
    }
    let mut away: Vec<_> = std::iter::from_fn(|| log.take(true)).collect();
    assert_eq!((away.len(), away.iter().map(SpanBatch::len).sum::<usize>()), (BATCHES, all));
    log.record(&span(0));
    assert!(log.take(true).is_none(), "all of them are away");
    log.give_back(away.pop().expect("one"));
    log.record(&span(7));
    let batch = log.take(true).expect("it is there again");
    assert_eq!((batch.len(), batch.dropped), (1, 6));
    assert_eq!(log.recorded(), all as u64 + 7);
    // A request and its try are two.
    log.record_both(&span(8), Some(LAST_TRY), &[]);
    log.give_back(batch);
    log.record_both(&span(9), Some(LAST_TRY), &[]);
    let batch = log.take(true).expect("it is there again");
    assert_eq!((batch.len(), batch.dropped, log.recorded()), (2, 2, all as u64 + 11));
}

#[test]
fn a_full_batch_goes_at_once_and_one_that_is_not_when_it_is_asked_for() {
    let mut log = on();
    let waker = std::sync::Arc::new(Bell).into();
    let cx = Context::from_waker(&waker);
    assert!(log.poll_any(&cx).is_pending());
    let texts = SpanTexts { path: &[b'x'; 10_000], ..SpanTexts::default() };
    log.record(&Span { facts: numbered(0), texts });
    assert!(log.poll_any(&cx).is_ready() && log.poll_full(&cx).is_pending());
    assert!(log.take(false).is_none());
    let mut told = 1;
    while log.poll_full(&cx).is_pending() {
        log.record(&Span { facts: numbered(told), texts });
        told += 1;
    }
    assert!(told < BATCH_SPANS as u64, "texts fill it too");
    let batch = log.take(false).expect("it is full");
    assert!(batch.text.len() <= BATCH_TEXT_BYTES && batch.text.capacity() == BATCH_TEXT_BYTES);
    assert!(batch.iter().all(|span| span.texts.path.len() == TEXT_MAX));
    assert!(log.poll_any(&cx).is_pending(), "nothing is left");
}

#[test]
fn one_that_records_nothing_keeps_no_batches() {
    let mut log = on();
    log.record(&Span { facts: numbered(0), texts: SpanTexts::default() });
    log.set(Recording::default());
    let batch = log.take(true).expect("what was told goes out");
    log.give_back(batch);
    assert_eq!((log.made, log.empty.len()), (0, 0));
    log.set(Recording { is_on: true, with_errors: false });
    log.set(Recording::default());
    assert!(log.made == 0 && log.current.is_none());
}

proptest! {
    #[test]
    fn what_is_told_is_read_again(
        spans in prop::collection::vec((
            prop::array::uniform3("[a-z]{0,700}"),
            prop::array::uniform7(prop::collection::vec(any::<u8>(), 0..700)),
            any::<bool>(),
        ), 0..40),
    ) {
        let mut batch = SpanBatch::with_room();
        let cut = |text: &[u8]| text[..text.len().min(TEXT_MAX)].to_vec();
        for (number, ([route, pattern, upstream], texts, has_try)) in spans.iter().enumerate() {
            let names = SpanNames::new(route, pattern, upstream);
            let [method, path, asked, instance, host, user_agent, request_id] = texts.each_ref().map(Vec::as_slice);
            let texts = SpanTexts { names: names.all(), method, path, instance, host, user_agent, request_id };
            let last_try = has_try.then_some(LastTry { attempt: 7, ..LAST_TRY });
            batch.push_both(&Span { facts: numbered(number as u64), texts }, last_try, asked);
        }
        prop_assert_eq!(batch.len(), spans.len() + spans.iter().filter(|(.., has_try)| *has_try).count());
        let mut read = batch.iter();
        for (number, (names, texts, has_try)) in spans.iter().enumerate() {
            let [route, pattern, upstream] = names.each_ref().map(|name| cut(name.as_bytes()));
            let [method, path, asked, instance, host, user_agent, request_id] = texts.each_ref().map(|text| cut(text));
            let Span { facts, texts } = read.next().expect("each is there");
            prop_assert_eq!(facts, numbered(number as u64));
            let names = texts.names;
            prop_assert_eq!([names.route(), names.pattern(), names.upstream()], [&route[..], &pattern, &upstream]);
            prop_assert_eq!([texts.method, texts.path, texts.instance], [&method[..], &path, &instance]);
            prop_assert_eq!([texts.host, texts.user_agent, texts.request_id], [&host[..], &user_agent, &request_id]);
            if *has_try {
                let Span { facts, texts } = read.next().expect("its try too");
                prop_assert_eq!((facts.kind, facts.attempt, facts.parent), (SpanKind::Try, 7, numbered(0).id));
                let path = if asked.is_empty() { path } else { asked };
                prop_assert_eq!([texts.method, texts.path, texts.instance], [&method[..], &path, &instance]);
                prop_assert_eq!([texts.names.upstream(), texts.names.route(), texts.host], [&upstream[..], b"", b""]);
            }
        }
        prop_assert_eq!(read.next(), None);
    }
}
