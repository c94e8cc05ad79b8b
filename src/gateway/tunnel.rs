//! The tunnel to a backend: what a proxied request becomes whose service has switched protocols.

use std::{rc::Rc, time::Duration};

use crate::{
    exchange::OpenTunnel,
    net::{Goodbye, Io, Serving, Side, Slot, Upgrade, run_tunnel},
    upstream::SwitchedBackend,
};

/// Bytes both ways, until a side ends or the caller's session does.
pub(super) struct Tunnel {
    record: OpenTunnel,
    backend: SwitchedBackend,
}

impl Tunnel {
    pub(super) fn new(record: OpenTunnel, backend: SwitchedBackend) -> Self {
        Self { record, backend }
    }

    async fn serve(self: Box<Self>, client: &Io, first: Vec<u8>, slot: &Slot) {
        let Self { mut record, mut backend } = *self;
        let idle_timeout = backend.idle_timeout;
        let (to_client, to_backend) = if record.is_websocket() {
            (Goodbye::AsServer, Goodbye::AsClient(record.random().to_le_bytes()))
        } else {
            (Goodbye::None, Goodbye::None)
        };
        let share = f64::from(record.random()) / (f64::from(u32::MAX) + 1.0);
        // In a drain each goes at a time of its own, so that clients do not all come back at once.
        let wait = |within: Duration| within.mul_f64(share);
        let first_of_backend = backend.take_rest();
        let client = Side { io: client, first, goodbye: to_client };
        let backend = Side { io: backend.io(), first: first_of_backend, goodbye: to_backend };
        let end = run_tunnel(client, backend, idle_timeout, slot, |moved| record.moved(moved), wait).await;
        record.end(end);
    }
}

impl Upgrade for Tunnel {
    fn run<'a>(self: Box<Self>, client: &'a Rc<Io>, first: Vec<u8>, slot: &'a Slot) -> Serving<'a> {
        Box::pin(self.serve(client, first, slot))
    }
}
