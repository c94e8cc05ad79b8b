//! An upstream that is asked for more than it can do: as many as it can are served in time, the others are told at once.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use super::Setup;
use crate::{
    backend::{Backend, OK},
    harness::{now, pause},
};

const PLACES: usize = 4;
const SERVICE: Duration = Duration::from_millis(20);
/// Requests a second that the upstream can do: 4 × 50.
const CAPACITY_PER_S: usize = 200;
const DEADLINE: Duration = Duration::from_millis(400);
const LOAD: Duration = Duration::from_secs(4);
/// Each asks so often, whether or not it was served: together twice what can be done.
const CLIENTS: u32 = 160;
const INTERVAL: Duration = Duration::from_millis(400);

/// A backend with so many places, and a queue before them: whoever sends here is told when it has been served.
fn places() -> mpsc::Sender<mpsc::Sender<()>> {
    let (asked, asking) = mpsc::channel::<mpsc::Sender<()>>();
    std::thread::spawn(move || {
        let mut queue = VecDeque::new();
        let mut busy = VecDeque::new();
        loop {
            while busy.len() < PLACES
                && let Some(next) = queue.pop_front()
            {
                busy.push_back((now() + SERVICE, next));
            }
            let next = match busy.front() {
                Some((due, _)) => asking.recv_timeout(due.saturating_duration_since(now())),
                None => asking.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(asked) => queue.push_back(asked),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some((_, served)) = busy.pop_front() {
                        let _: Result<(), _> = mpsc::Sender::send(&served, ());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    asked
}

#[test]
fn an_upstream_at_twice_its_rate_serves_in_time_what_it_can() {
    let places = places();
    let backend = Backend::start(move |conversation| {
        loop {
            conversation.read_request()?;
            let (told, served) = mpsc::channel();
            let _ = places.send(told);
            let _ = served.recv();
            conversation.send(OK)?;
        }
    });
    let route = format!("deadline = \"{}ms\"", DEADLINE.as_millis());
    let gateway = Setup { route: &route, ..Setup::default() }.start(&[backend.address()]);
    let ends = now() + LOAD;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut client = gateway.connect();
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                pause(INTERVAL * number / CLIENTS);
                while now() < ends {
                    let began = now();
                    let answer = client.get("/x");
                    let retry_after = answer.field("retry-after").map(str::to_owned);
                    answers.push((answer.status, began.elapsed(), retry_after));
                    pause(INTERVAL.saturating_sub(began.elapsed()));
                }
                answers
            })
        })
        .collect();
    // Whoever watches over it is served meanwhile.
    pause(LOAD / 2);
    let began = now();
    assert_eq!(gateway.get("/health/live").status, 200);
    assert_ne!(gateway.get("/health").text(), "");
    assert!(gateway.metrics().sum("shardgate_requests_total") > 0);
    assert!(began.elapsed() < LOAD / 2, "{:?}", began.elapsed());
    let answers: Vec<_> = clients.into_iter().flat_map(|client| client.join().expect("it went on")).collect();
    let count = |status| answers.iter().filter(|(answered, ..)| *answered == status).count();
    let (served, refused, missed) = (count(200), count(503), count(504));
    assert_eq!(served + refused + missed, answers.len());
    // On a busy machine; the simulation has the figures.
    let capacity = CAPACITY_PER_S * usize::try_from(LOAD.as_secs()).expect("few");
    assert!(served >= capacity * 7 / 10, "{served} of {capacity} were served; {refused} refused, {missed} late");
    assert!(refused >= capacity / 4, "{refused} were refused, {served} served, {missed} late");
    assert!(missed <= served / 10, "{missed} of those let in were late, {served} served");
    let mut times: Vec<_> = answers.iter().filter(|(status, ..)| *status == 503).map(|(_, time, _)| *time).collect();
    times.sort_unstable();
    assert!(times[times.len() / 2] < DEADLINE / 4, "a refusal took {:?}", times[times.len() / 2]);
    assert!(answers.iter().all(|(status, _, retry_after)| *status != 503 || retry_after.as_deref() == Some("1")));
    let metrics = gateway.metrics();
    let shed = metrics.value("shardgate_upstream_shed_total{upstream=\"back\",reason=\"deadline\"}");
    assert_eq!(usize::try_from(shed), Ok(refused));
    // Those that were refused stood in line like all others.
    let in_line = usize::try_from(metrics.value("shardgate_queue_duration_seconds_count"));
    assert!(in_line.is_ok_and(|in_line| in_line >= served + refused), "{in_line:?} of {}", answers.len());
    assert_eq!(usize::try_from(metrics.value("shardgate_rejects_total{code=\"overloaded\"}")), Ok(refused));
    // And when it is over, nobody is refused any more.
    pause(Duration::from_millis(1500));
    let mut client = gateway.connect();
    assert!((0..20).all(|_| client.get("/x").status == 200));
}
