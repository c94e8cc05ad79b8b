//! TLS to the backends of an upstream: what connections are made by, and what becomes of those that were made by something
//! else.

use std::{io, rc::Rc};

use super::{Backend, Upstream};
use crate::{
    certificates::{InstanceTls, ServiceTls},
    net::{ClientConnection, TlsConnectError, TlsTo},
    shard::{Instant, gate::Gate},
};

/// What connections to backends that speak TLS are made by. One per upstream and shard.
#[derive(Debug)]
pub(super) struct Trust {
    tls: ServiceTls,
    gate: Rc<Gate>,
}

/// The same of one backend.
#[derive(Debug, Default)]
pub(super) struct BackendTrust {
    /// Made with the first connection; it has the sessions that can be taken up again.
    tls: Option<InstanceTls>,
    /// How often it became another one: connections that are older are not used again.
    changes: u32,
}

impl BackendTrust {
    /// What tells connections made by it from older ones.
    pub(super) const fn changes(&self) -> u32 {
        self.changes
    }
}

impl Upstream {
    /// Connections to backends that speak TLS are made by this from now on, through this gate. If it trusts or shows something
    /// else than what was before, those that are there are not used again: what is under way on them ends well, and idle ones
    /// close.
    pub fn trust(&self, tls: &ServiceTls, gate: &Rc<Gate>) {
        let outdated = self.state.with(|state| {
            let is_same = state.trust.as_ref().is_some_and(|known| known.tls.is_as(tls));
            state.trust = Some(Trust { tls: tls.clone(), gate: Rc::clone(gate) });
            if is_same { Vec::new() } else { state.backends.iter().chain(&state.leaving).cloned().collect() }
        });
        for backend in outdated.iter().filter(|backend| backend.is_https()) {
            backend.state.with(|state| {
                let changes = state.trust.changes.wrapping_add(1);
                state.trust = BackendTrust { tls: None, changes };
            });
            backend.close_idle();
        }
    }

    /// Connects to a backend before the deadline, over TLS where it speaks that.
    pub(super) async fn connect(&self, backend: &Backend, deadline: Instant) -> io::Result<Box<ClientConnection>> {
        let tls = if backend.is_https() { Some(Box::new(self.tls_to(backend)?)) } else { None };
        ClientConnection::connect(&backend.at.address, tls, deadline).await
    }

    fn tls_to(&self, backend: &Backend) -> Result<TlsTo, TlsConnectError> {
        self.state.with(|state| {
            // The control thread says it before it names a backend that speaks TLS.
            let unsaid = || rustls::Error::General("it is not said whom to trust".to_owned());
            let trust = state.trust.as_ref().ok_or_else(|| TlsConnectError::Other(unsaid()))?;
            let instance = backend.state.with(|state| match &mut state.trust.tls {
                Some(tls) => Some(tls.clone()),
                tls => tls.insert(trust.tls.to_instance(backend.at.host())?).clone().into(),
            });
            let instance = instance.ok_or(TlsConnectError::Nameless)?;
            Ok(TlsTo { instance, gate: Rc::clone(&trust.gate) })
        })
    }
}
