//! Sessions with a socket on every instance that log out one after the other, while many others log out too: how long after
//! the answer is each socket closed?

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::hub::options::HubLogOut;
use crate::hub::order::Group;
use crate::hub::outcome::{put_cost, put_endings, put_memory, put_sockets};
use crate::hub::targets::{open_job, put_requests};
use crate::hub::traffic::LEAD;
use crate::hub::workers::{Workers, setup, shares};
use crate::logout::Caller;
use crate::options::Common;
use crate::report::Report;
use crate::tally::histogram;
use crate::{nanoseconds, scenario, socket, target};

pub(crate) fn measure(options: &HubLogOut) -> anyhow::Result<Report> {
    let common = &options.common;
    let sessions = usize::try_from(options.sessions)?;
    let places = sessions * common.urls.len();
    let mut setup = setup(common, vec![Group { slots: 0..places, rooms: Vec::new() }], 0..0)?;
    setup.sockets_per_user = setup.instances.len();
    // Who has logged out stays so: each run has users of its own.
    setup.first_user = usize::try_from(socket::now() / 1000)?;
    let token = |nth: usize| setup.tokens.of(setup.first_user + nth);
    let instances = setup.instances.iter().map(|instance| format!("http://{}", instance.authority));
    let instances = instances.collect::<Vec<_>>();

    let measured_ns = nanoseconds(common.duration);
    let tokens = (0..sessions).map(token).collect::<Vec<_>>();
    let mut requests = Common::of_url(format!("{}{}", instances[0], options.path), common.allow_remote);
    requests.method = Some("POST".to_owned());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive")]
    let others = (options.beside * (common.duration + common.warm_up).as_secs_f64()) as usize + 1;
    let others = (sessions..sessions + others.min(65_536)).map(token).collect::<Vec<_>>();
    let job = open_job(common, target::requests_with(&requests, &others)?, options.beside, 64);

    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;
    let beside = std::thread::spawn(move || scenario::run(&Arc::new(job), &mut |_| {}));
    let from = socket::now() + LEAD + nanoseconds(common.warm_up);
    workers.wait_until(from)?;
    let begun = workers.mark();
    let mut callers =
        instances.iter().map(|url| Caller::connect(url, common.timeout)).collect::<Result<Vec<_>, _>>()?;
    let (mut log_outs, mut answering, mut refused) = (Vec::new(), histogram(), BTreeMap::<String, u64>::new());
    for (nth, token) in tokens.iter().enumerate() {
        workers.wait_until(from + measured_ns * nth as u64 / sessions as u64)?;
        let asked_at = socket::now();
        let turn = nth % callers.len();
        let said = callers[turn].ask("POST", &options.path, token, "")?;
        let answered_at = socket::now();
        log_outs.push((asked_at, answered_at));
        answering.saturating_record(answered_at - asked_at);
        if said.status != 204 {
            *refused.entry(format!("answered_{}", said.status)).or_default() += 1;
        }
    }
    let closed = workers.wait_for("the close of all sockets", |counts| counts.lost >= places as u64);
    let cost = workers.since(&begun);
    let mut report = Report::empty();
    put_memory(&mut report, &workers);
    let mut tally = workers.finish()?;
    let beside = beside.join().map_err(|_| anyhow::anyhow!("the thread of the requests panicked"))??;

    let (mut closing, mut before, mut too_soon) = (histogram(), 0, 0);
    for (place, closed_at) in &tally.ended_at {
        let (asked_at, answered_at) = log_outs[place / instances.len()];
        before += u64::from(*closed_at < answered_at);
        too_soon += u64::from(*closed_at < asked_at);
        closing.saturating_record(closed_at.saturating_sub(answered_at));
    }
    if too_soon > 0 {
        report.fail(format!("{too_soon} sockets ended before their sessions logged out"));
    }
    report.put_count("sockets", places as u64);
    report.put_count("log_outs", sessions as u64);
    report.put_histogram("answered_us", &answering);
    // From the answer; at once if it was closed before that.
    report.put_histogram("closed_us", &closing);
    report.put_count("closed_before_the_answer", before);
    let refused = refused.into_iter().collect::<Vec<_>>();
    if report.put_counts("refused", &refused) > 0 {
        report.fail("log-outs were refused".to_owned());
    }
    if let Err(error) = closed {
        report.fail(error.to_string());
    }
    put_endings(&mut report, "closed", &std::mem::take(&mut tally.losses));
    put_requests(&mut report, "beside_", &beside);
    put_cost(&mut report, &cost, "log_out", beside.tally.answered_meanwhile + sessions as u64);
    put_sockets(&mut report, &tally);
    Ok(report)
}
