//! What the control thread does about certificates while time goes by: their files change, keys of tickets change, and
//! certificates end.

use std::{sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{sync::watch, time::Instant};

use super::{
    super::{files, letter::ToShard},
    Control,
    certificate_files::{CertificateFiles, Loaded, Read},
    operators::now,
};
use crate::{
    admin::{
        health,
        state::{CertificateState, RefusalState, bounded},
    },
    certificates::{Certificates, TICKET_KEY_TIME},
    shard::clock,
    telemetry::{metrics::Reload, table::Sparse},
};

/// How often certificates that end soon are told of again.
const TELL_INTERVAL: Duration = Duration::from_hours(24);

/// What clients are shown over TLS, and what is due about it.
pub(super) struct Shown {
    pub(super) certificates: Option<Arc<Certificates>>,
    /// What the operator's listener does handshakes by.
    of_operators: watch::Sender<Option<Arc<ServerConfig>>>,
    pub(super) files: CertificateFiles,
    /// What the files held that was refused since.
    pub(super) refusal: Option<RefusalState>,
    /// When keys of tickets change that go by no clock.
    keys_due: Instant,
    /// When those that end soon are told of.
    tell_due: Instant,
}

impl Shown {
    /// What was shown since the start, and told of then.
    pub(super) fn new(loaded: Option<&Loaded>) -> Self {
        let now = Instant::now();
        let certificates = loaded.map(|loaded| Arc::clone(&loaded.certificates));
        Self {
            of_operators: watch::Sender::new(
                certificates.as_ref().and_then(|certificates| certificates.for_operators()),
            ),
            certificates,
            files: CertificateFiles::new(loaded),
            refusal: None,
            keys_due: now + TICKET_KEY_TIME,
            tell_due: now + TELL_INTERVAL,
        }
    }

    /// What the operator's listener does handshakes by, now and later.
    pub(super) fn of_operators(&self) -> watch::Receiver<Option<Arc<ServerConfig>>> {
        self.of_operators.subscribe()
    }
}

impl Control {
    /// Takes what was read of certificates' files.
    pub(super) fn take_read(&mut self, read: Read) {
        match read {
            Read::Candidate(read) => self.take_candidates_certificates(read),
            Read::Changed(Ok(certificates)) => {
                self.process.certificate_changes[Reload::Applied.index()] += 1;
                tracing::info!("the files of certificates have changed: handshakes are done by these from now on");
                files::warn_of_certificates(&self.config, Some(&certificates));
                self.show_read(&certificates);
                self.read_candidates_certificates();
            }
            Read::Changed(Err(wrong)) => {
                self.process.certificate_changes[Reload::Refused.index()] += 1;
                tracing::error!("what the files of certificates hold now is refused, and the old ones stay:\n{wrong}");
                self.shown.refusal = Some(RefusalState { at: now(), text: bounded(&wrong) });
            }
        }
    }

    /// Shows what files hold, with the keys of tickets that there are already.
    pub(super) fn show_read(&mut self, certificates: &Certificates) {
        self.shown.refusal = None;
        let certificates = certificates.clone().after(self.shown.certificates.as_deref());
        self.show_certificates(Arc::new(certificates));
    }

    /// Shows these from now on.
    fn show_certificates(&mut self, certificates: Arc<Certificates>) {
        self.bus.broadcast(|| ToShard::Certificates(Arc::clone(&certificates)));
        self.probes.trust(certificates.services());
        // Without any, those stay that are shown: the listener speaks TLS until a restart.
        if let Some(of_operators) = certificates.for_operators() {
            self.shown.of_operators.send_replace(Some(of_operators));
        }
        self.shown.certificates = Some(certificates);
    }

    /// Does what is due, once a second.
    pub(super) fn look_at_certificates(&mut self) {
        let Some(certificates) = self.shown.certificates.clone() else { return };
        self.process.certificate_expiry = Sparse([certificates.expires_in(clock::unix_now().as_secs())]);
        let now = Instant::now();
        if now >= self.shown.tell_due {
            self.shown.tell_due = now + TELL_INTERVAL;
            files::warn_of_certificates(&self.config, Some(&certificates));
        }
        let is_due = now >= self.shown.keys_due;
        if is_due {
            self.shown.keys_due = now + TICKET_KEY_TIME;
        }
        match certificates.with_changed_ticket_keys(clock::unix_now().as_secs(), is_due) {
            Ok(None) => {}
            Ok(Some(changed)) => self.show_certificates(Arc::new(changed)),
            Err(error) => tracing::error!(%error, "the keys of TLS tickets stay as they are for another while"),
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
