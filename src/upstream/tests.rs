//! What an upstream is sent does not depend on where a request's body comes from.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
};

use super::*;
use crate::{
    config::{Balance, FailureStatuses},
    net::{AnswerBody as _, OwnedBody, RequestBody as _},
    proto::{
        head::{Framing, RequestHead, ResponseHead},
        http1::{HeadLimits, WholeRequest},
    },
    shard::{task, testing, timer},
    telemetry::metrics::{InstanceOut, Outcome},
};

const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 4096, fields_max: 32, target_bytes_max: 1024 };

pub(super) fn settings() -> Settings {
    Settings {
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(10),
        idle_max: 4,
        answers: AnswerLimits { head: LIMITS, interim_max: 4 },
        requests_max: 8,
        uploads_max: 4,
        retries_at_once_max: 1,
        retry_percent: 20,
        retry_min_milli_per_s: 3000,
        backoff: Backoff { first: Duration::ZERO, max: Duration::ZERO },
        sheds_by_deadline: true,
        queue_max: Duration::from_mins(1),
        outlier: OutlierPolicy {
            failures: 5,
            share: FailureShare { percent: 40, requests_min: 20, window: Duration::from_secs(10) },
            statuses: "502-504".parse().expect("statuses"),
            ejection: Duration::from_secs(1),
            percent_max: 50,
        },
        breaker: BreakerPolicy {
            share: FailureShare { percent: 50, requests_min: 20, window: Duration::from_secs(10) },
            statuses: FailureStatuses::NONE,
            open_for: Duration::from_secs(5),
        },
        balance: Rules { policy: Balance::LeastLatency, panic_percent: 50, slow_start: Duration::ZERO },
        zone: None,
        is_probed: false,
    }
}

/// Nobody who could leave, and to whom interim answers mean nothing.
struct Nobody;

impl Asker for Nobody {
    fn has_ended(&self) -> bool {
        false
    }

    fn prepare(&self, _: &mut ResponseHead) -> bool {
        true
    }
}

fn post(body_bytes: usize) -> RequestHead {
    let head = format!("POST /events HTTP/1.1\r\nHost: a.example\r\nContent-Length: {body_bytes}\r\n\r\n");
    let mut fields = Vec::new();
    let whole = WholeRequest::read(head.as_bytes(), &mut fields, &LIMITS).expect("a good head");
    whole.into_head(head.into_bytes(), fields)
}

/// A backend that answers each request on one connection with the bytes of its body, after an interim answer; it returns
/// when the connection ends.
fn echo(listener: &TcpListener) {
    use std::io::{BufRead as _, BufReader, Read as _};
    let (mut stream, _) = listener.accept().expect("accepted");
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).expect("read") == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a whole body");
        let head = format!("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).expect("written");
    }
}

#[test]
fn bytes_that_are_here_are_a_body_like_any_other() {
    testing::on_both_drivers(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let backend = std::thread::spawn(move || echo(&listener));
        let upstream = Rc::new(Upstream::new(settings(), 1));
        let at = BackendAddress { name: "a.example".into(), address: address.into() };
        upstream.update(settings(), &[Instance::new(at)], None);
        // The second one is larger than a buffer, and than what one write takes.
        for (n, bytes) in [0, 3_000_000, 5].into_iter().enumerate() {
            let sent: Vec<u8> = (0..bytes).map(|at: u32| at.to_le_bytes()[0]).collect();
            let mut head = post(sent.len());
            let call = Call {
                target: head.path,
                preserve_host: true,
                response_timeout: Duration::from_secs(30),
                stream_idle_timeout: Duration::from_secs(30),
                retries_max: 0,
                retry: RetryRules::default(),
                hedge_after: None,
                deadline: Instant::NEVER,
                may_be_shed: true,
                is_last: false,
                drops_trailers: false,
                cancels_on_close: true,
                hash_key: None,
            };
            let mut body = OwnedBody::new(sent.clone(), clock::now() + Duration::from_secs(30));
            let mut trail = Trail::default();
            let answered = upstream.send(&mut head, &mut body, &call, &mut trail, &Nobody).await;
            let (answer, mut streaming) = answered.expect("an answer");
            assert_eq!((answer.status, answer.framing), (200, Framing::Length(bytes.into())));
            assert!(body.is_done() && body.received_bytes() == u64::from(bytes));
            let mut got = Vec::new();
            while std::future::poll_fn(|cx| streaming.poll_fill(cx, &mut body)).await.expect("an echo") {
                got.extend_from_slice(streaming.chunk());
                let taken = streaming.chunk().len();
                streaming.consume(taken);
            }
            assert!(got == sent, "what came back is what was sent");
            assert_eq!((trail.reused, trail.attempts), (n > 0, 1), "one connection serves them all");
            // A connection is not used again in the turn in which it came back.
            timer::sleep(Duration::from_millis(1)).await;
        }
        drop(upstream);
        let due = clock::now() + Duration::from_secs(30);
        while !backend.is_finished() && clock::now() < due {
            timer::sleep(Duration::from_millis(1)).await;
        }
        backend.join().expect("the backend was asked well");
    });
}

fn port_of(backend: &Backend) -> u16 {
    backend.at.address.ip().expect("it is on a port").port()
}

/// Which of the backends may be chosen now, by their ports.
fn chosen(upstream: &Upstream, now: Instant) -> std::collections::BTreeSet<u16> {
    let port = |_| upstream.choose(now, None, &[]).map(|backend| port_of(&backend));
    (0..60).filter_map(port).collect()
}

#[test]
fn a_backend_is_used_when_neither_probes_nor_requests_speak_against_it() {
    let backends = [1, 2].map(|port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port)).into();
        Instance::new(BackendAddress { name: format!("a.example:{port}").into(), address })
    });
    let settings = |is_probed| Settings { is_probed, ..settings() };
    let upstream = Upstream::new(settings(true), 1);
    upstream.update(settings(true), &backends, None);
    let now = clock::now();
    let healthy = || upstream.report(now).healthy;
    assert_eq!((chosen(&upstream, now), healthy()), ([1, 2].into(), 0), "nothing is known of either");
    upstream.probed(&backends[0].at, Verdict::Up, now);
    assert_eq!((chosen(&upstream, now), healthy()), ([1].into(), 1));
    upstream.probed(&backends[1].at, Verdict::Up, now);
    assert_eq!((chosen(&upstream, now), healthy()), ([1, 2].into(), 2));

    let first = upstream.state.with(|state| Rc::clone(&state.backends[0]));
    let failures = (0..5).filter(|_| upstream.failed(&first, &Failure::TimedOut, Duration::from_secs(15), now));
    assert_eq!(failures.count(), 1, "the fifth ejects it");
    assert_eq!((chosen(&upstream, now), healthy()), ([2].into(), 1));
    upstream.probed(&backends[0].at, Verdict::Down, now);
    upstream.probed(&backends[0].at, Verdict::Up, now);
    assert_eq!((chosen(&upstream, now), healthy()), ([1, 2].into(), 2), "what is newer holds");
    // Fifteen seconds in vain are no reason to pass it over.
    upstream.answered(&first, Duration::from_millis(2), 200, clock::now());
    let second = upstream.state.with(|state| Rc::clone(&state.backends[1]));
    upstream.answered(&second, Duration::from_millis(2), 200, clock::now());
    assert_eq!(chosen(&upstream, now), [1, 2].into());

    upstream.probed(&backends[0].at, Verdict::Down, now);
    assert_eq!((chosen(&upstream, now), healthy()), ([2].into(), 1));
    upstream.update(settings(true), &backends, None);
    assert_eq!(chosen(&upstream, now), [2].into(), "a reload changes nothing");
    upstream.update(settings(false), &backends, None);
    assert_eq!((chosen(&upstream, now), healthy()), ([1, 2].into(), 2), "without probes nothing that they said holds");
}

#[test]
fn who_was_in_use_before_probes_began_stays_so_until_they_speak_against_it() {
    let backends = [1, 2, 3].map(|port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port)).into();
        Instance::new(BackendAddress { name: format!("a.example:{port}").into(), address })
    });
    let settings = |is_probed| Settings { is_probed, ..settings() };
    let upstream = Upstream::new(settings(false), 1);
    upstream.update(settings(false), &backends[..2], None);
    let now = clock::now();
    // A reload, which brings one more.
    upstream.update(settings(true), &backends, None);
    assert_eq!(chosen(&upstream, now), [1, 2].into());
    upstream.probed(&backends[0].at, Verdict::Up, now);
    assert_eq!(chosen(&upstream, now), [1, 2].into(), "the first that answers does not get all");
    upstream.probed(&backends[2].at, Verdict::Up, now);
    assert_eq!(chosen(&upstream, now), [1, 2, 3].into());
    upstream.probed(&backends[1].at, Verdict::Down, now);
    assert_eq!(chosen(&upstream, now), [1, 3].into());
}

#[test]
fn when_too_few_are_well_those_are_used_that_answer_and_never_those_that_do_not() {
    let backends = [1, 2, 3, 4].map(|port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port)).into();
        Instance::new(BackendAddress { name: format!("a.example:{port}").into(), address })
    });
    let outlier = OutlierPolicy { percent_max: 100, ..settings().outlier };
    let settings = Settings { is_probed: true, outlier, ..settings() };
    let upstream = Upstream::new(settings.clone(), 1);
    upstream.update(settings, &backends, None);
    let now = clock::now();
    let is_panicking = || upstream.report(now).is_panicking;
    for at in &backends {
        upstream.probed(&at.at, Verdict::Up, now);
    }
    upstream.probed(&backends[0].at, Verdict::Down, now);
    upstream.probed(&backends[1].at, Verdict::Down, now);
    let third = upstream.state.with(|state| Rc::clone(&state.backends[2]));
    for _ in 0..5 {
        upstream.failed(&third, &Failure::TimedOut, Duration::from_secs(15), now);
    }
    assert_eq!((chosen(&upstream, now), is_panicking()), ([4].into(), false), "nor those that requests have ejected");
    upstream.probed(&backends[0].at, Verdict::Unwell, now);
    assert_eq!((chosen(&upstream, now), is_panicking()), ([1, 4].into(), true));
    upstream.probed(&backends[3].at, Verdict::Unwell, now);
    assert_eq!((chosen(&upstream, now), is_panicking()), ([1, 4].into(), true));
    for at in &backends {
        upstream.probed(&at.at, Verdict::Down, now);
    }
    assert_eq!((chosen(&upstream, now), is_panicking()), ([1, 2, 3, 4].into(), true), "nobody else is there");
    for at in &backends {
        upstream.probed(&at.at, Verdict::Up, now);
    }
    assert_eq!((chosen(&upstream, now), is_panicking()), ([1, 2, 3, 4].into(), false));
}

#[test]
fn what_stays_is_the_same_and_what_goes_is_forgotten_when_nothing_is_under_way_on_it() {
    testing::on_both_drivers(|| async {
        let at = |host: u8| {
            let address = SocketAddr::from(([127, 0, 0, host], 80)).into();
            Instance::new(BackendAddress { name: "a:80".into(), address })
        };
        let upstream = Upstream::new(settings(), 1);
        upstream.update(settings(), &[at(1), at(2), at(3)], None);
        let all = || upstream.state.with(|state| state.backends.clone());
        let leaving = || upstream.state.with(|state| state.leaving.len());
        let old = all();
        let busy = |count| old[0].state.with(|state| state.in_flight = count);
        busy(1);
        upstream.replace_backends(&[at(4), at(3)], None);
        let new = all();
        assert_eq!(new.iter().map(|backend| backend.at.clone()).collect::<Vec<_>>(), [at(4).at, at(3).at]);
        assert!(Rc::ptr_eq(&new[1], &old[2]), "it keeps what is known of it");
        upstream.sweep(clock::now());
        assert_eq!((leaving(), upstream.report(clock::now()).total), (2, 2), "nothing of the idle one has been told");
        assert_eq!(upstream.report_instances(clock::now()).len(), 4);
        upstream.sweep(clock::now());
        assert_eq!(leaving(), 1, "the idle one is forgotten");
        // It comes back as it left.
        upstream.replace_backends(&[at(1)], None);
        assert!(Rc::ptr_eq(&all()[0], &old[0]));
        assert_eq!(leaving(), 2);
        upstream.replace_backends(&[], None);
        assert!(upstream.choose(clock::now(), None, &[]).is_none());
        busy(0);
        upstream.sweep(clock::now());
        assert_eq!(leaving(), 3);
        upstream.report_instances(clock::now());
        upstream.sweep(clock::now());
        assert_eq!(leaving(), 0);
    });
}

#[test]
fn who_fails_at_once_is_not_chosen_for_it() {
    let backends = [1, 2].map(|port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port)).into();
        Instance::new(BackendAddress { name: format!("a.example:{port}").into(), address })
    });
    let upstream = Upstream::new(settings(), 1);
    upstream.update(settings(), &backends, None);
    let [first, second] = [0, 1].map(|place| upstream.state.with(|state| Rc::clone(&state.backends[place])));
    for _ in 0..100 {
        upstream.answered(&first, Duration::from_millis(10), 200, clock::now());
        upstream.answered(&second, Duration::from_micros(50), 500, clock::now());
    }
    let now = clock::now();
    let port = |_| upstream.choose(now, None, &[]).map(|backend| port_of(&backend));
    let of_the_failing = (0..1000).filter_map(port).filter(|port| *port == 2).count();
    assert!((300..700).contains(&of_the_failing), "as many as of the other: {of_the_failing}");
}

#[test]
fn a_shard_that_is_behind_refuses_at_once() {
    testing::on(crate::shard::Driver::Epoll, || async {
        const QUEUE_MAX: Duration = Duration::from_millis(5);
        let upstream = Rc::new(Upstream::new(Settings { queue_max: QUEUE_MAX, ..settings() }, 1));
        let is_over = Rc::new(std::cell::Cell::new(false));
        // Each turn takes four times as long as anybody may stand in line.
        let busy = Rc::clone(&is_over);
        task::spawn("busy", async move {
            while !busy.get() {
                let until = clock::now() + 4 * QUEUE_MAX;
                while clock::now() < until {
                    std::hint::spin_loop();
                }
                task::yield_now().await;
            }
        });
        let mut shed = Vec::new();
        for _ in 0..4 {
            task::yield_now().await;
            let mut trail = Trail::default();
            let admitted = upstream.admit(clock::now(), Instant::NEVER, &mut trail);
            shed.push(matches!(admitted, Err(Failure::Shed(_))));
            assert_eq!(trail.unusual.shed, admitted.is_err().then_some(crate::telemetry::metrics::Shed::Queue));
            assert!(trail.queued_us >= 20_000);
        }
        assert_eq!(shed, [false, true, true, true], "who comes first may have met a pause");
        is_over.set(true);
        task::yield_now().await;
        task::yield_now().await;
        assert!(upstream.admit(clock::now(), Instant::NEVER, &mut Trail::default()).is_ok());
    });
}

#[test]
fn a_shard_tells_why_it_does_not_use_an_instance_and_what_became_of_requests() {
    let backends = [1, 2, 3].map(|port| BackendAddress {
        name: format!("a.example:{port}").into(),
        address: SocketAddr::from(([127, 0, 0, 1], port)).into(),
    });
    let settings = Settings { is_probed: true, ..settings() };
    let upstream = Upstream::new(settings.clone(), 1);
    upstream.update(settings, &backends.clone().map(Instance::new), None);
    let now = clock::now();
    let told = || {
        let reports = upstream.report_instances(now);
        assert!(reports.iter().zip(&backends).all(|(report, at)| report.id == at.id()));
        reports
    };
    let why = || told().iter().map(|report| report.out).collect::<Vec<_>>();
    assert_eq!(why(), [Some(InstanceOut::Untested); 3]);
    upstream.probed(&backends[0], Verdict::Up, now);
    upstream.probed(&backends[1], Verdict::Up, now);
    upstream.probed(&backends[2], Verdict::Down, now);
    assert_eq!(why(), [None, None, Some(InstanceOut::Probes)]);
    let [first, second] = [0, 1].map(|place| upstream.state.with(|state| Rc::clone(&state.backends[place])));
    for backend in [&first, &second] {
        (0..5).for_each(|_| _ = upstream.failed(backend, &Failure::TimedOut, Duration::from_secs(1), now));
    }
    let all = [Some(InstanceOut::Ejected), Some(InstanceOut::Failing), Some(InstanceOut::Probes)];
    assert_eq!(why(), all, "half of them may be left out");
    // A probe of each has gone well since.
    upstream.probed(&backends[0], Verdict::Up, now);
    upstream.probed(&backends[1], Verdict::Up, now);
    assert_eq!(why(), [Some(InstanceOut::Ejected), None, Some(InstanceOut::Probes)], "nobody has to ask it for that");
    let _ = upstream.failed(&second, &Failure::TimedOut, Duration::from_secs(1), now);
    assert_eq!(why(), all, "one more failure says more");
    upstream.probed(&backends[1], Verdict::Up, now);
    second.state.with(|state| state.order.held = Some(Held::Drained));
    assert_eq!(why()[1], Some(InstanceOut::Held));
    first.count(Outcome::TimedOut);
    first.count(Outcome::Answered);
    first.count(Outcome::Answered);
    let of_first = told()[0].counts;
    assert_eq!((of_first.ejections, of_first.requests.iter().sum::<u64>()), (1, 3));
    assert_eq!(of_first.requests[Outcome::Answered.index()], 2);
    assert_eq!(told()[1].counts, InstanceCounts::default());
}

#[test]
fn nothing_is_sent_again_behind_a_circuit_that_has_opened_meanwhile() {
    let mut settings = settings();
    settings.breaker.share.percent = 50;
    settings.breaker.share.requests_min = 2;
    let upstream = Rc::new(Upstream::new(settings, 1));
    let (now, mut trail) = (clock::now(), Trail::default());
    let place = |()| upstream.enter(false, now).expect("there is room");
    let [mut waiting, one, two] = [(); 3].map(place);
    for mut place in [one, two] {
        place.failed();
    }
    assert!(upstream.enter(false, now).is_err(), "it is open");
    assert!(!waiting.may_retry(now, &mut trail) && !trail.unusual.is_out_of_budget);
    drop(waiting);
    // A trial may.
    let later = clock::now() + upstream.state.with(|state| state.settings.breaker.open_for) + Duration::from_secs(1);
    let mut trial = upstream.enter(false, later).expect("one tries");
    assert!(trial.may_retry(later, &mut trail));
}

#[test]
fn a_retry_that_has_its_answer_keeps_no_other_from_being_sent() {
    let upstream = Rc::new(Upstream::new(settings(), 1));
    let (now, mut trail) = (clock::now(), Trail::default());
    let place = |()| upstream.enter(false, now).expect("there is room");
    let [mut one, mut other] = [(); 2].map(place);
    assert!(one.may_retry(now, &mut trail));
    assert!(!other.may_retry(now, &mut trail) && trail.unusual.is_out_of_budget, "one at once");
    one.answered(200, now);
    assert!(other.may_retry(now, &mut trail));
    other.answered(200, now);
    // So it is with another attempt beside the first.
    let beside = upstream.enter_again(now).expect("one at once");
    assert!(upstream.enter_again(now).is_none());
    one.take_over(beside, now);
    one.answered(200, now);
    assert!(upstream.enter_again(now).is_some());
    drop((one, other));
    // While the circuit is not closed nobody is asked beside another one.
    let fail = |_: &i32| upstream.enter(false, now).map(|mut place| place.failed()).is_ok();
    assert!((0..20).filter(fail).count() < 20, "the circuit is open");
    assert!(upstream.enter_again(now + Duration::from_mins(1)).is_none());
    let left = upstream.state.with(|state| (state.in_flight, state.waiting, state.uploading, state.retrying));
    assert_eq!(left, (0, 0, 0, 0));
}
