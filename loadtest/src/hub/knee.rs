//! Messages to rooms at a rate that rises step by step until their deliveries take too long.

use std::fmt::Write as _;

use serde_json::json;

use crate::hub::options::HubKnee;
use crate::hub::outcome::{put_memory, put_sockets};
use crate::hub::tally::Tally;
use crate::hub::traffic::{rooms, send};
use crate::hub::workers::{Cost, Workers, setup, shares};
use crate::nanoseconds;
use crate::report::{Report, quantiles};

pub(crate) fn measure(options: &HubKnee) -> anyhow::Result<Report> {
    let common = &options.common;
    let (group, places) = rooms(common, &options.fan_out)?;
    let setup = setup(common, vec![group], 0..0)?;
    let mut workers = Workers::start(common, setup, &shares(0..places, usize::from(common.threads)))?;
    workers.open(0..places, places)?;
    let mut report = Report::empty();
    report.put_count("sockets", workers.counts().ready);

    let mut total = Tally::new();
    let (mut knee, mut steps, mut is_over) = (0.0, Vec::new(), false);
    for nth in 0..options.steps {
        let rate = options.fan_out.rate + f64::from(nth) * options.step;
        let [from, .., end] = send(&workers, common, 0, rate, 1)?;
        workers.wait_until(from)?;
        let begun = workers.mark();
        workers.wait_until(end)?;
        let cost = workers.since(&begun);
        workers.settle()?;
        let tally = workers.hand_in()?;
        let (_, missing) = tally.to_the_last(0, options.fan_out.members);
        let errors = tally.errors.values().sum::<u64>() + tally.unsent;
        steps.push(put_step(&mut report, rate, &tally, &cost, missing, errors));
        is_over = missing + errors > 0 || tally.latency[0].value_at_quantile(0.99) > nanoseconds(options.p99_max);
        if is_over {
            if tally.lag.value_at_quantile(0.99) > nanoseconds(options.p99_max) / 2 {
                report.warn("in the last step the load test itself was late: the knee may be its own".to_owned());
            }
            break;
        }
        knee = rate;
        total.add(&tally);
    }
    put_memory(&mut report, &workers);
    total.add(&workers.finish()?);
    report.put("knee_per_s", knee);
    report.put("knee_deliveries_per_s", knee * f64::from(options.fan_out.members));
    report.put_field("steps", steps.into());
    put_sockets(&mut report, &total);
    if knee == 0.0 {
        report.fail("the first step was too much".to_owned());
    } else if !is_over {
        report.warn("no step was too much: the knee is further up".to_owned());
    }
    Ok(report)
}

/// One step in a line, and for programs.
fn put_step(
    report: &mut Report,
    rate: f64,
    tally: &Tally,
    cost: &Cost,
    missing: u64,
    errors: u64,
) -> serde_json::Value {
    let (text, latency) = quantiles(&tally.latency[0]);
    let servers = cost.servers_cpu_us.iter().map(|cpu_us| cost.percent(*cpu_us)).collect::<Vec<_>>();
    let redis = cost.redis_cpu_us.map(|cpu_us| cost.percent(cpu_us));
    let own = cost.percent(cost.own_cpu_ns / 1000);
    let late_us = tally.lag.value_at_quantile(0.99) / 1000;
    let mut line = format!("{text}  CPU %");
    // Writing to a string cannot fail.
    for percent in &servers {
        let _ = write!(line, " {percent:.0}");
    }
    if let Some(percent) = redis {
        let _ = write!(line, "  Redis {percent:.0}");
    }
    let _ = write!(line, "  own {own:.0}, p99 {late_us} us late");
    if missing + errors > 0 {
        let _ = write!(line, "  {missing} missing  {errors} refused");
    }
    report.put_row(&format!("at_{rate}_per_s"), &line);
    json!({
        "per_s": rate, "latency_us": latency, "servers_cpu_percent": servers, "redis_cpu_percent": redis,
        "own_cpu_percent": own, "own_lag_p99_us": late_us, "missing": missing,
        "refused": errors,
    })
}
