//! What an answer says of the limits that its request met: `RateLimit` and `RateLimit-Policy`, as structured fields
//! (draft-ietf-httpapi-ratelimit-headers-10).

use super::LimitPlan;
use crate::{
    config::LIMITS_PER_ROUTE_MAX,
    proto::head::{Field, Known, ResponseHead, Span},
};

/// What is known of each limit that a request met, both by address and by the rest.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::gateway) struct Statement {
    entries: [LimitState; LIMITS_PER_ROUTE_MAX],
    count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct LimitState {
    /// Its place in the plan's list.
    limit: u8,
    remaining: u32,
    reset_s: u32,
}

impl Statement {
    /// So many more requests conform now; in so many nanoseconds more do.
    pub(super) fn say(&mut self, limit: u8, remaining: u64, reset_ns: u64) {
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let entry =
            LimitState { limit, remaining: number(remaining), reset_s: number(reset_ns.div_ceil(1_000_000_000)) };
        let known = self.entries[..self.count].iter().position(|known| known.limit == limit);
        if let Some(place) = self.entries.get_mut(known.unwrap_or(self.count)) {
            *place = entry;
            self.count += usize::from(known.is_none());
        }
    }

    /// Adds the two fields, the tightest limit first: a client that reads one member only reads that one.
    pub(in crate::gateway) fn write(mut self, plans: &[LimitPlan], head: &mut ResponseHead) {
        let entries = &mut self.entries[..self.count];
        if entries.is_empty() {
            return;
        }
        // Of two with nothing left, the one that takes longer.
        entries.sort_unstable_by_key(|entry| (entry.remaining, u32::MAX - entry.reset_s));
        let mut digits = [itoa::Buffer::new(), itoa::Buffer::new()];
        let mut value = Span::default();
        for entry in entries.iter() {
            let [remaining, reset] = &mut digits;
            let part = head.append(&[
                separator(value),
                &plans[usize::from(entry.limit)].remaining,
                remaining.format(entry.remaining).as_bytes(),
                b";t=",
                reset.format(entry.reset_s).as_bytes(),
            ]);
            value = joined(value, part);
        }
        push(head, b"RateLimit", value);
        let mut value = Span::default();
        for entry in entries.iter() {
            let part = head.append(&[separator(value), &plans[usize::from(entry.limit)].policy]);
            value = joined(value, part);
        }
        push(head, b"RateLimit-Policy", value);
    }
}

/// What stands before the next member.
fn separator(value: Span) -> &'static [u8] {
    if value.is_empty() { b"" } else { b", " }
}

/// Both, which stand one behind the other.
fn joined(value: Span, part: Span) -> Span {
    if value.is_empty() { part } else { Span { end: part.end, ..value } }
}

fn push(head: &mut ResponseHead, name: &[u8], value: Span) {
    let name = head.append(&[name]);
    head.fields.push(Field { name, value, known: Known::Other });
}
