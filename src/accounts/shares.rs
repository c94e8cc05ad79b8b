//! How many log-ins of one address may wait at once, so that nobody fills the queue for everybody. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::{net, shard::Local};

/// An address may hold so many times the places that are free: alone three quarters of them, a second one in the same way
/// 3/16 more, and the more there are, the fewer each holds. So there is always room for one who holds few.
const FREE_TIMES: usize = 3;

/// What each address may hold however full the queue is, if there is room at all.
const EACH_MIN: usize = 2;

/// The log-ins that wait or are checked, by the network that they come from. One per process, on the bridge.
#[derive(Debug)]
pub(super) struct Shares {
    places: usize,
    taken: Local<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_network: HashMap<u64, usize>,
}

/// A share of the queue. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share<'a> {
    shares: &'a Shares,
    network: u64,
}

impl Shares {
    /// Shares of a queue with so many places.
    pub(super) fn of(places: usize) -> Self {
        Self { places, taken: Local::default() }
    }

    /// One more for this address, if it has not its share already. A client has a whole /64 of IPv6.
    pub(super) fn take(&self, address: IpAddr) -> Option<Share<'_>> {
        let network = net::network(address).get();
        let is_taken = self.taken.with(|taken| {
            let each_max = EACH_MIN.max(FREE_TIMES * self.places.saturating_sub(taken.all));
            let held = taken.by_network.get(&network).copied().unwrap_or_default();
            let may = held < each_max;
            if may {
                taken.all += 1;
                taken.by_network.insert(network, held + 1);
            }
            may
        });
        is_taken.then(|| Share { shares: self, network })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shares.taken.with(|taken| {
            taken.all -= 1;
            let Some(held) = taken.by_network.get_mut(&self.network) else { return };
            *held -= 1;
            if *held == 0 {
                taken.by_network.remove(&self.network);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// All that an address gets at once.
    fn flood<'a>(shares: &'a Shares, from: &str) -> Vec<Share<'a>> {
        std::iter::from_fn(|| shares.take(address(from))).collect()
    }

    #[test]
    fn an_address_has_its_share_and_leaves_the_rest_to_others() {
        let shares = Shares::of(64);
        let held = flood(&shares, "192.0.2.1");
        assert_eq!(held.len(), 48);
        assert!(shares.take(address("::ffff:192.0.2.1")).is_none(), "the same client");
        assert_eq!(flood(&shares, "2001:db8::1").len(), 12);
        let of_two = flood(&shares, "2001:db8::1");
        assert!(of_two.len() <= 16);
        drop((held, of_two));
        assert_eq!(flood(&shares, "192.0.2.1").len(), 48, "what is given back is there again");
        let one = shares.take(address("2001:db8::1"));
        let rest: Vec<_> = (2..100).map_while(|n| shares.take(address(&format!("2001:db8::{n}")))).collect();
        assert_eq!(rest.len(), 47, "a /64 is one client");
        drop((one, rest));
        assert_eq!(shares.taken.with(|taken| (taken.all, taken.by_network.len())), (0, 0), "nothing is left");
    }

    #[test]
    fn many_that_flood_leave_room() {
        let shares = Shares::of(64);
        let held: Vec<Vec<_>> = (0..20).map(|n| flood(&shares, &format!("192.0.2.{n}"))).collect();
        assert!(held.iter().all(|held| held.len() >= 2));
        // One after the other, so that the last finds least. In time they are equal: who holds less gets the next place.
        let late = flood(&shares, "198.51.100.1");
        assert_eq!(late.len(), 2);
    }
}
