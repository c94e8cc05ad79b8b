//! What one shard tells the others of its upstreams' trouble, so that each need not find out by failures of its own.

use std::rc::Rc;

use super::letter::{AllLetters, DroppableToShard};
use crate::{
    bus::{Bus, to},
    gateway::{Gateway, Suspect},
};

/// Tells the shards besides this one. Never ends.
pub(super) async fn tell(gateway: Rc<Gateway>, bus: Bus<AllLetters>, me: usize) {
    loop {
        for suspect in gateway.noticed().await {
            tell_others(&bus, me, &suspect);
        }
    }
}

/// A letter that finds no room costs the shard that misses it some more failures; nothing is kept for it.
fn tell_others(bus: &Bus<AllLetters>, me: usize, suspect: &Suspect) {
    for shard in (0..bus.shards()).filter(|shard| *shard != me) {
        let _ = bus.try_send(to::Shard(shard), DroppableToShard::Suspect(Box::new(suspect.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::{
            self,
            mesh::{self, Capacity},
        },
        shard::testing,
    };

    #[test]
    fn shards_that_stand_still_cost_the_one_that_tells_them_nothing() {
        testing::on_both_drivers(|| async {
            let capacity = Capacity { control: 64, droppable: 8 };
            let mesh::Mesh { shards, .. } = mesh::build::<AllLetters>(4, capacity).expect("a mesh");
            let mut shards = shards.into_iter();
            let (bus, _pump) = bus::on_shard(shards.next().expect("there are four")).expect("a port");
            let _others: Vec<_> = shards.collect();
            let suspect = Suspect { generation: 1, upstream: 0, instance: None };
            for _ in 0..1000 {
                tell_others(&bus, 0, &suspect);
            }
            let counts = bus.counts();
            assert_eq!((counts.spilled, bus.waiting()), (0, 0), "nothing waits for them");
            assert_eq!(counts.dropped, 3 * (1000 - 8));
        });
    }
}
