//! A worker's desks.

use super::*;
use crate::{
    accounts::Operation,
    bus::mesh::{self, Capacity},
    shard::testing,
};

#[test]
fn clients_who_ask_and_leave_fill_no_spill_that_ends_the_process() {
    testing::on_both_drivers(|| async {
        let capacity = Capacity { control: 64, droppable: 64 };
        let mesh::Mesh { bridge, mut shards, .. } = mesh::build::<AllLetters>(1, capacity).expect("a mesh");
        let (bus, _pump) = bus::on_shard(shards.pop().expect("there is one")).expect("a port");
        // A bridge that stands still.
        let _bridge = bridge;
        let desk = accounts_desk(0, bus.clone());
        let ask = || {
            let operation = Operation::LogoutAll { user: "42".to_owned() };
            desk.ask(Question { operation, came: clock::now() }).expect("there is room")
        };
        for _ in 0..100_000 {
            drop(ask());
        }
        assert!((OPERATIONS_MAX..=2 * OPERATIONS_MAX).contains(&bus.waiting_for(to::Bridge)));
        let outcome = ask().await;
        assert!(matches!(outcome, Outcome::Refused { code: Code::Overloaded, .. }), "{outcome:?}");
    });
}
