//! Sessions with a socket on every instance that log out one after the other, while many others log out too: how long after
//! the answer is each socket closed?

use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram;

use crate::hub::options::HubLogOut;
use crate::hub::order::Group;
use crate::hub::outcome::{put_cost, put_endings, put_memory, put_sockets};
use crate::hub::tally::Tally;
use crate::hub::targets::{open_job, put_requests};
use crate::hub::traffic::LEAD;
use crate::hub::workers::{SECOND, Workers, setup, shares};
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
    anyhow::ensure!(
        setup.instances.iter().all(|one| one.tls.is_none()),
        "log-outs go in clear text: give a --url with ws://"
    );
    let instances = setup.instances.iter().map(|instance| format!("http://{}", instance.authority));
    let instances = instances.collect::<Vec<_>>();

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
    let log_outs = log_out(&mut workers, options, &instances, &tokens, from)?;
    let closed = workers.wait_for("the close of all sockets", |counts| counts.lost >= places as u64);
    let cost = workers.since(&begun);
    let mut report = Report::empty();
    put_memory(&mut report, &workers);
    let mut tally = workers.finish()?;
    let beside = beside.join().map_err(|_| anyhow::anyhow!("the thread of the requests panicked"))??;

    report.put_count("sockets", places as u64);
    put_log_outs(&mut report, log_outs, &tally, instances.len());
    if let Err(error) = closed {
        report.fail(error.to_string());
    }
    put_endings(&mut report, "closed", &std::mem::take(&mut tally.losses));
    put_requests(&mut report, "beside_", &beside);
    put_cost(&mut report, &cost, "log_out", beside.tally.answered_meanwhile + sessions as u64);
    put_sockets(&mut report, &tally);
    Ok(report)
}

/// What became of the log-outs.
struct LogOuts {
    /// When each was asked for and answered.
    times: Vec<(u64, u64)>,
    /// From when each should have been asked for to its answer: what a slow answer to the one before held up is charged its wait.
    answering: Histogram<u64>,
    refused: BTreeMap<String, u64>,
    /// The last of them came when nobody else logged out any more.
    is_behind: bool,
}

/// Logs out one session after the other, evenly spread from this time on over what is measured.
fn log_out(
    workers: &mut Workers,
    options: &HubLogOut,
    instances: &[String],
    tokens: &[String],
    from: u64,
) -> anyhow::Result<LogOuts> {
    let HubLogOut { common, path, .. } = options;
    let measured_ns = nanoseconds(common.duration);
    let mut callers =
        instances.iter().map(|url| Caller::connect(url, common.timeout)).collect::<Result<Vec<_>, _>>()?;
    let mut log_outs =
        LogOuts { times: Vec::new(), answering: histogram(), refused: BTreeMap::new(), is_behind: false };
    for (nth, token) in tokens.iter().enumerate() {
        let due = from + measured_ns * nth as u64 / tokens.len() as u64;
        workers.wait_until(due)?;
        let asked_at = socket::now();
        let turn = nth % callers.len();
        let said = callers[turn].ask("POST", path, token, "")?;
        let answered_at = socket::now();
        log_outs.times.push((asked_at, answered_at));
        log_outs.answering.saturating_record(answered_at - due);
        if said.status != 204 {
            *log_outs.refused.entry(format!("answered_{}", said.status)).or_default() += 1;
        }
    }
    log_outs.is_behind = socket::now() > from + measured_ns + SECOND;
    Ok(log_outs)
}

fn put_log_outs(report: &mut Report, log_outs: LogOuts, tally: &Tally, instances: usize) {
    let (mut closing, mut before, mut too_soon) = (histogram(), 0, 0);
    for (place, closed_at) in &tally.ended_at {
        let (asked_at, answered_at) = log_outs.times[place / instances];
        before += u64::from(*closed_at < answered_at);
        too_soon += u64::from(*closed_at < asked_at);
        closing.saturating_record(closed_at.saturating_sub(answered_at));
    }
    report.put_count("log_outs", log_outs.times.len() as u64);
    report.put_histogram("answered_us", &log_outs.answering);
    // From the answer; at once if it was closed before that.
    report.put_histogram("closed_us", &closing);
    report.put_count("closed_before_the_answer", before);
    if too_soon > 0 {
        report.fail(format!("{too_soon} sockets ended before their sessions logged out"));
    }
    if report.put_counts("refused", &log_outs.refused.into_iter().collect::<Vec<_>>()) > 0 {
        report.fail("log-outs were refused".to_owned());
    }
    if log_outs.is_behind {
        report.warn("log-outs were answered so slowly that the last came when nobody else logged out".to_owned());
    }
}
