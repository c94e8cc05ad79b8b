//! The load test of the hub: options → sockets on threads → scenario → report. It speaks the gateway's own dialect of
//! WebSocket messages; scenarios for HTTP are `crate::scenario`'s.
//!
//! `idle`, `traffic`, `departure` and `targets` are the scenarios, written as what happens one after the other. `workers` are
//! the threads, which are told what to do by an `order`; `worker` is one of them, `state` what it knows and `sockets` its sockets,
//! over the pure `frame` and `message`. `token` makes tokens, `tally` counts, `outcome` is what all report alike.

mod departure;
mod frame;
mod idle;
mod message;
#[cfg(test)]
mod mock;
pub(crate) mod options;
mod order;
mod outcome;
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
        HubCommand::Targets(options) => targets::measure(options),
    }
}
