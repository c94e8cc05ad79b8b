//! What the log is told of the names and lists of instances: each thing that is new once, and of one name a few lines of each
//! kind at once and then one a second, however often whoever answers for it changes their mind.

use std::{net::IpAddr, time::Duration};

use crate::{
    shard::Instant,
    upstream::{Heard, HeardList, Known, KnownList, NoAddress, Source},
};

/// The least time between two lines of a kind, when there have been some.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// So many lines may come at once: a service that moves is told of at once, though its name was resolved just before.
const LINES_AT_ONCE: u32 = 4;
/// As many addresses, and other things of which outsiders decide how many there are, as one line shows.
const LISTED_MAX: usize = 16;

/// Lets a line pass now and then, and counts those that were left out.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// When all lines are paid for that were said, at one in each interval.
    paid_at: Instant,
    left_out: u64,
}

impl Gate {
    /// Whether a line may be said now, and then how many were not since the last one.
    pub(super) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.paid_at > now + LINE_INTERVAL * (LINES_AT_ONCE - 1) {
            self.left_out += 1;
            return None;
        }
        self.paid_at = self.paid_at.max(now) + LINE_INTERVAL;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// What the log was told of one name.
#[derive(Debug, Default)]
pub(super) struct Said {
    moves: Gate,
    doubts: Gate,
    refusals: Gate,
    failures: Gate,
    /// That its look-ups fail, and not yet that they do no more.
    is_failing: bool,
}

impl Said {
    /// Tells what is new of the name.
    pub(super) fn tell(&mut self, name: &str, heard: &Heard, before: &Known, known: &Known, now: Instant) {
        match heard {
            Heard::Changed { added, gone } => self.tell_move(name, added, gone, before, known, now),
            // A service with one address moves like that.
            Heard::Doubted => {
                if let Some(unsaid) = self.doubts.pass(now) {
                    tracing::info!(
                        name,
                        unsaid,
                        "more of a name's addresses are gone than may be; the next answer decides"
                    );
                }
            }
            Heard::Failed | Heard::Same => {}
        }
        self.tell_failure(name, known, now);
        let none_is_taken = match &known.error {
            Some(NoAddress::Refused(address)) if known.error != before.error => vec![*address],
            _ => Vec::new(),
        };
        let refused = if known.refused == before.refused { &none_is_taken[..] } else { &known.refused };
        if !refused.is_empty()
            && let Some(unsaid) = self.refusals.pass(now)
        {
            let refused = listed(refused);
            tracing::warn!(
                name,
                refused,
                unsaid,
                "addresses of a name of instances are not taken from DNS; discovery.allow says which are"
            );
        }
        if known.left_out > 0 && before.left_out == 0 {
            let (used, left_out) = (known.addresses.len(), known.left_out);
            tracing::warn!(
                name,
                left_out,
                "a name of instances has more addresses than are used; the first {used} in order are"
            );
        }
    }

    fn tell_move(
        &mut self,
        name: &str,
        added: &[IpAddr],
        gone: &[IpAddr],
        before: &Known,
        known: &Known,
        now: Instant,
    ) {
        let Some(unsaid) = self.moves.pass(now) else { return };
        let (addresses, added, gone) = (known.addresses.len(), listed(added), listed(gone));
        if before.addresses.is_empty() {
            tracing::info!(name, addresses = added, "a name of instances is resolved");
        } else {
            tracing::info!(name, addresses, added, gone, unsaid, "a name of instances has moved");
        }
    }

    /// Twice, as one question may be lost; a name that has never had an address is told of when the plan is made.
    fn tell_failure(&mut self, name: &str, known: &Known, now: Instant) {
        let is_failing = known.failures > 1 && !known.addresses.is_empty();
        if is_failing == self.is_failing || known.failures == 1 {
            return;
        }
        let Some(unsaid) = self.failures.pass(now) else { return };
        self.is_failing = is_failing;
        if is_failing {
            let why = match &known.error {
                Some(NoAddress::Unknown(why)) => why.clone(),
                Some(NoAddress::Refused(address)) => format!("{address} is not taken from DNS"),
                Some(NoAddress::Late(_)) | None => "nobody answers".to_owned(),
            };
            let addresses = listed(&known.addresses);
            tracing::warn!(
                name,
                why,
                addresses,
                unsaid,
                "a name of instances is not resolved any more; its last addresses stay"
            );
        } else {
            tracing::info!(name, unsaid, "a name of instances is resolved again");
        }
    }
}

/// What the log was told of one source of lists.
#[derive(Debug, Default)]
pub(super) struct SaidList {
    moves: Gate,
    doubts: Gate,
    left_out: Gate,
    failures: Gate,
    /// That it fails, and why, and not yet that it does no more.
    failing: Option<Box<str>>,
}

impl SaidList {
    /// Tells what is new of the source; `left_out_before` is how many entries were left out before.
    pub(super) fn tell(
        &mut self,
        source: &Source,
        heard: &HeardList,
        left_out_before: usize,
        known: &KnownList,
        now: Instant,
    ) {
        let instances = known.instances.len();
        match heard {
            HeardList::Changed { added, gone } => {
                if let Some(unsaid) = self.moves.pass(now) {
                    let (added, gone) = (listed(added), listed(gone));
                    tracing::info!(%source, instances, added, gone, unsaid, "a list of instances has changed");
                }
            }
            HeardList::Doubted => {
                if let Some(unsaid) = self.doubts.pass(now) {
                    tracing::info!(
                        %source,
                        unsaid,
                        "more of a list's instances are gone than may be; the next answer decides"
                    );
                }
            }
            HeardList::Failed | HeardList::Same => {}
        }
        if known.left_out.count != left_out_before
            && let Some(why) = &known.left_out.why
            && let Some(unsaid) = self.left_out.pass(now)
        {
            let left_out = known.left_out.count;
            tracing::warn!(%source, left_out, why, unsaid, "entries of a list of instances are left out");
        }
        // Twice, as one question may be lost. Who mends one mistake and makes another is told of that one, too.
        if known.failures == 1 || known.error == self.failing {
            return;
        }
        let Some(unsaid) = self.failures.pass(now) else { return };
        self.failing.clone_from(&known.error);
        if let Some(why) = &known.error {
            // Beside an upstream without instances nobody is to read that some serve.
            let serves = if instances > 0 { "the last good one serves" } else { "there was none before" };
            tracing::warn!(%source, why, instances, unsaid, "a list of instances cannot be had; {serves}");
        } else {
            tracing::info!(%source, instances, unsaid, "a list of instances can be had again");
        }
    }
}

/// What a line shows of a list.
pub(super) fn listed<T: ToString>(all: &[T]) -> String {
    let mut words: Vec<_> = all.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if all.len() > LISTED_MAX {
        words.push(format!("and {} more", all.len() - LISTED_MAX));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_stays_short() {
        let all: Vec<IpAddr> = (0..20).map(|host| IpAddr::from([10, 0, 0, host])).collect();
        assert!(listed(&all).ends_with("10.0.0.15 and 4 more"));
        assert_eq!(listed(&all[..2]), "10.0.0.0 10.0.0.1");
    }

    #[test]
    fn a_name_that_flaps_is_told_of_once_a_second_with_a_count() {
        let mut gate = Gate::default();
        let at = |ms| Instant::START + Duration::from_millis(ms);
        let passed: Vec<_> = (0..25).map(|tick| gate.pass(at(tick * 100))).collect();
        let said: Vec<_> = passed.iter().enumerate().filter_map(|(tick, unsaid)| Some((tick, (*unsaid)?))).collect();
        assert_eq!(said, [(0, 0), (1, 0), (2, 0), (3, 0), (10, 6), (20, 9)]);
    }

    #[test]
    fn each_reason_why_a_list_fails_is_told_once_and_no_more_than_one_a_second() {
        let mut said = SaidList::default();
        let source = Source::Registry("shop".into());
        let mut tell = |failures, error: Option<&str>, ms| {
            let now = Instant::START + Duration::from_millis(ms);
            let known = KnownList { failures, error: error.map(Box::from), ..KnownList::default() };
            said.tell(&source, &HeardList::Failed, 0, &known, now);
            said.failing.as_deref().unwrap_or("nothing").to_owned()
        };
        assert_eq!(tell(1, Some("WRONGTYPE"), 0), "nothing", "one question may be lost");
        assert_eq!(tell(2, Some("WRONGTYPE"), 1000), "WRONGTYPE");
        assert_eq!(tell(3, Some("too many"), 2000), "too many");
        // It changes its mind so often that no line is left, and what it comes to is told later.
        let reasons = ["a", "b", "c", "d", "e", "f"];
        let told = reasons.map(|why| tell(9, Some(why), 3000));
        assert_eq!(told, ["a", "b", "c", "d", "d", "d"]);
        assert_eq!(tell(15, Some("f"), 4000), "f");
        assert_eq!(tell(0, None, 9000), "nothing", "it can be had again");
    }

    #[test]
    fn that_a_name_fails_is_told_even_if_it_flapped_just_before() {
        let mut said = Said::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        let known = |failures| Known { addresses: [address].into(), failures, ..Known::default() };
        let mut tell = |failures, ms| {
            let now = Instant::START + Duration::from_millis(ms);
            said.tell("a", &Heard::Same, &known(0), &known(failures), now);
            said.is_failing
        };
        // It fails and does not, again and again, until no line is left; that it fails in the end is told later.
        let flips = [(1, 0), (2, 1), (0, 2), (2, 3), (0, 4), (2, 5), (3, 6)];
        assert_eq!(flips.map(|(failures, ms)| tell(failures, ms)), [false, true, false, true, false, false, false]);
        assert_eq!([(4, 900), (5, 1100)].map(|(failures, ms)| tell(failures, ms)), [false, true]);
    }
}
