//! What the control thread does about certificates while time goes by: keys of tickets change, and certificates end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{files, letter::ToShard},
    Control,
};
use crate::{
    admin::{health, state::CertificateState},
    certificates::{Certificates, TICKET_KEY_TIME},
    shard::clock,
    telemetry::table::Sparse,
};

/// How often certificates that end soon are told of again.
const TELL_INTERVAL: Duration = Duration::from_hours(24);

/// What clients are shown over TLS, and what is due about it.
pub(super) struct Shown {
    pub(super) certificates: Option<Arc<Certificates>>,
    /// When keys of tickets change.
    keys_due: Instant,
    /// When those that end soon are told of.
    tell_due: Instant,
}

impl Shown {
    /// What was shown since the start, and told of then.
    pub(super) fn new(certificates: Option<Arc<Certificates>>) -> Self {
        let now = Instant::now();
        Self { certificates, keys_due: now + TICKET_KEY_TIME, tell_due: now + TELL_INTERVAL }
    }
}

impl Control {
    /// Shows these from now on.
    pub(super) fn show_certificates(&mut self, certificates: Arc<Certificates>) {
        self.bus.broadcast(|| ToShard::Certificates(Arc::clone(&certificates)));
        self.shown.certificates = Some(certificates);
    }

    /// Does what is due, once a second.
    pub(super) fn look_at_certificates(&mut self) {
        let Some(certificates) = self.shown.certificates.clone() else { return };
        self.process.certificate_expiry = Sparse([certificates.expires_in(clock::unix_now().as_secs())]);
        let now = Instant::now();
        if now >= self.shown.tell_due {
            self.shown.tell_due = now + TELL_INTERVAL;
            files::warn_of_certificates(Some(&certificates));
        }
        if now >= self.shown.keys_due {
            self.shown.keys_due = now + TICKET_KEY_TIME;
            match certificates.with_changed_ticket_keys() {
                Ok(changed) => self.show_certificates(Arc::new(changed)),
                Err(error) => tracing::error!(%error, "the keys of TLS tickets stay as they are for another while"),
            }
        }
    }

    pub(super) fn certificate_states(&self) -> Vec<CertificateState> {
        let shown = self.shown.certificates.iter().flat_map(|certificates| certificates.shown());
        let state = |shown: &crate::certificates::Shown| CertificateState {
            names: shown.names.clone(),
            expires_at: health::rfc3339(Duration::from_secs(shown.not_after)),
        };
        shown.take(CERTIFICATES_MAX).map(state).collect()
    }
}

/// So many are in the document.
const CERTIFICATES_MAX: usize = 100;
