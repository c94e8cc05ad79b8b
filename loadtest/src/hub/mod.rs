//! The load test of the hub: options → sockets on threads → scenario → report. It speaks the gateway's own dialect of
//! WebSocket messages; scenarios for HTTP are `crate::scenario`'s.
//!
//! `idle`, `traffic`, `departure`, `instances`, `knee`, `log_out` and `targets` are the scenarios, written as what happens one
//! after the other. `workers` are the threads, which are told what to do by an `order`; `worker` is one of them, `state` what it
//! knows and `sockets` its sockets, over the pure `frame` and `message`. `following` is what it does where each message is
//! followed, and `follow` says whether each came; `readiness` asks instances how they are. `token` makes tokens, `tally` counts,
//! `outcome` is what all report alike.

mod departure;
mod follow;
mod following;
mod frame;
mod idle;
mod instances;
mod knee;
mod log_out;
mod message;
#[cfg(test)]
mod mock;
pub(crate) mod options;
mod order;
mod outcome;
mod readiness;
mod sockets;
mod state;
mod tally;
mod targets;
#[cfg(test)]
mod tests;
mod token;
mod traffic;
mod worker;
mod workers;

use crate::hub::options::HubCommand;
use crate::report::Report;

/// Runs one scenario.
pub(crate) fn measure(command: &HubCommand) -> anyhow::Result<Report> {
    match command {
        HubCommand::HubIdle(options) => idle::measure(options),
        HubCommand::HubEcho(options) => traffic::echo(options),
        HubCommand::HubFanOut(options) => traffic::fan_out(options),
        HubCommand::HubSlowReaders(options) => traffic::slow_readers(options),
        HubCommand::HubMassDisconnect(options) => departure::mass_disconnect(options),
        HubCommand::HubReconnectStorm(options) => departure::reconnect_storm(options),
        HubCommand::HubInstances(options) => instances::measure(options),
        HubCommand::HubKnee(options) => knee::measure(options),
        HubCommand::HubLogOut(options) => log_out::measure(options),
        HubCommand::Targets(options) => targets::measure(options),
    }
}
