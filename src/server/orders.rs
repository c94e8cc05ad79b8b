//! What operators want of instances, since when and by whom. It stands over reloads and over other addresses of names, for as
//! long as the upstream is there: an instance that goes and comes again is still held.

use std::{collections::BTreeMap, sync::Arc};

use crate::upstream::{BackendAddress, Order, Orders};

/// Of so many instances something can be wanted at once.
pub(super) const ORDERS_MAX: usize = 256;

/// One per process, with the control thread.
#[derive(Debug, Default)]
pub(super) struct OrderBook {
    orders: BTreeMap<(String, BackendAddress), Entry>,
}

/// What is wanted of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) order: Order,
    /// Whose token it was last.
    pub(super) by: String,
    /// When, as RFC 3339 has it.
    pub(super) at: String,
}

impl OrderBook {
    /// Changes what is wanted of these instances of an upstream; `None` if there would be too many.
    pub(super) fn change(
        &mut self,
        upstream: &str,
        instances: &[BackendAddress],
        [by, at]: [&str; 2],
        change: impl Fn(&mut Order),
    ) -> Option<()> {
        let mut orders = self.orders.clone();
        for instance in instances {
            let key = (upstream.to_owned(), instance.clone());
            let mut order = orders.get(&key).map(|entry| entry.order).unwrap_or_default();
            change(&mut order);
            if order == Order::default() {
                orders.remove(&key);
            } else {
                orders.insert(key, Entry { order, by: by.to_owned(), at: at.to_owned() });
            }
        }
        // What is there is never too much to be taken back.
        if orders.len() > ORDERS_MAX.max(self.orders.len()) {
            return None;
        }
        self.orders = orders;
        Some(())
    }

    /// Forgets what was wanted of instances of upstreams that there are no more; says whether there was something.
    pub(super) fn keep(&mut self, is_there: impl Fn(&str) -> bool) -> bool {
        let before = self.orders.len();
        self.orders.retain(|(upstream, _), _| is_there(upstream));
        before != self.orders.len()
    }

    /// What is wanted of an instance.
    pub(super) fn of(&self, upstream: &str, at: &BackendAddress) -> Option<&Entry> {
        self.orders.get(&(upstream.to_owned(), at.clone()))
    }

    /// The instances of an upstream of which something is wanted, whether they are there now or not.
    pub(super) fn instances_of(&self, upstream: &str) -> impl Iterator<Item = &BackendAddress> {
        self.orders.keys().filter(move |(name, _)| name == upstream).map(|(_, at)| at)
    }

    /// How many instances are held out of use.
    pub(super) fn held(&self) -> usize {
        self.orders.values().filter(|entry| entry.order.held.is_some()).count()
    }

    /// What shards go by.
    pub(super) fn snapshot(&self) -> Arc<Orders> {
        let mut snapshot = Orders::new();
        for ((upstream, at), entry) in &self.orders {
            snapshot.entry(upstream.clone()).or_default().push((at.clone(), entry.order));
        }
        Arc::new(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Held;

    const ANN: [&str; 2] = ["ann", "2026-11-30T18:00:00Z"];

    fn instance(port: u16) -> BackendAddress {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        BackendAddress { name: address.to_string().into(), address: address.into() }
    }

    fn hold(held: Option<Held>) -> impl Fn(&mut Order) {
        move |order| order.held = held
    }

    #[test]
    fn an_instance_is_held_until_it_is_let_in_or_its_upstream_goes() {
        let mut book = OrderBook::default();
        book.change("shop", &[instance(1), instance(2)], ANN, hold(Some(Held::Drained))).expect("room");
        book.change("shop", &[instance(2)], ANN, hold(Some(Held::Ejected))).expect("room");
        book.change("shop", &[instance(2), instance(3)], ANN, |order| order.weight = Some(5)).expect("room");
        book.change("pay", &[instance(1)], ANN, hold(Some(Held::Ejected))).expect("room");
        assert_eq!(book.held(), 3);
        let [drained, both, weighed] = [(Some(Held::Drained), None), (Some(Held::Ejected), Some(5)), (None, Some(5))]
            .map(|(held, weight)| Order { held, weight });
        let snapshot = book.snapshot();
        assert_eq!(snapshot["shop"], [(instance(1), drained), (instance(2), both), (instance(3), weighed)]);
        book.change("shop", &[instance(1), instance(2)], ANN, hold(None)).expect("room");
        assert_eq!(book.of("shop", &instance(1)), None, "nothing is wanted of it");
        assert_eq!(book.of("shop", &instance(2)).map(|entry| entry.order), Some(weighed));
        assert!(!book.keep(|_| true));
        assert!(book.keep(|upstream| upstream == "pay"));
        assert_eq!((book.held(), book.instances_of("pay").count(), book.instances_of("shop").count()), (1, 1, 0));
    }

    #[test]
    fn so_many_are_held_and_no_more() {
        let mut book = OrderBook::default();
        let many: Vec<_> = (1..=256).map(instance).collect();
        book.change("shop", &many, ANN, hold(Some(Held::Ejected))).expect("room");
        assert_eq!(book.change("shop", &[instance(1000)], ANN, hold(Some(Held::Ejected))), None);
        book.change("shop", &many, ANN, hold(Some(Held::Drained))).expect("those that are held already take no room");
        assert_eq!(book.held(), 256);
        book.change("shop", &many, ANN, hold(None)).expect("room");
        assert_eq!(book.held(), 0);
    }
}
