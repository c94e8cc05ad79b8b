//! How the control thread takes another configuration: whole, or not at all.

use std::{fmt::Display, path::PathBuf, sync::Arc};

use super::{
    super::{
        files,
        letter::{ToBridge, ToShard},
    },
    Control,
    candidate_files::NewFiles,
    certificate_files::Loaded,
    config_file::Found,
    operators::now,
};
use crate::{
    admin::state::{RefusalState, bounded},
    bus::to,
    config::Config,
    gateway::Plan,
    shard::clock,
    telemetry::{metrics::Reload, usage},
};

/// What is known of the configuration in force, besides what it says.
pub(super) struct Taken {
    /// When it was taken.
    pub(super) at: String,
    /// Keys that differ in the file and are applied by a restart only.
    pub(super) restart_needed: Vec<String>,
    /// Another one that was refused since.
    pub(super) refusal: Option<RefusalState>,
}

/// A configuration that was read and checked, and is not in force yet.
pub(super) struct NewConfig {
    config: Config,
    /// Why it was read.
    why: &'static str,
    path: PathBuf,
    /// Whether its names are looked up.
    has_names: bool,
    /// Whether the files of its certificates are still being read.
    reads_certificates: bool,
    certificates: Option<Loaded>,
    /// What its other files hold, once they are read.
    files: Option<NewFiles>,
}

impl Control {
    /// Takes what came of a look at the configuration file.
    pub(super) fn take_found(&mut self, found: Found) {
        let Some(path) = self.file.as_ref().map(|file| file.path().to_owned()) else { return };
        let tell = |error: &dyn Display| {
            let path = path.display();
            tracing::warn!(%path, %error, "the configuration file cannot be read; the configuration stays as it is");
        };
        let mut becomes = |away| self.file.as_mut().is_some_and(|file| file.becomes(away));
        if matches!(found, Found::Same | Found::Read(_, Ok(_))) && becomes(None) {
            tracing::info!(path = %path.display(), "the configuration file can be read again");
        }
        match found {
            Found::Same => {}
            Found::Away(error) => {
                if becomes(Some(error.to_string())) {
                    tell(&error);
                }
            }
            Found::Late { why, is_reload: false } => tell(&why),
            Found::Late { why, is_reload: true } => {
                self.refuse_reload(&format_args!("{}: the file cannot be read: {why}", path.display()));
            }
            Found::Read(why, Ok(config)) => self.begin(*config, why, path),
            Found::Read(_, Err(mistakes)) => self.refuse_reload(&mistakes),
        }
    }

    /// A configuration that is right is taken once its names are looked up and its files are read; a newer one takes its place
    /// meanwhile.
    fn begin(&mut self, config: Config, why: &'static str, path: PathBuf) {
        if self.candidate.is_some() {
            tracing::info!("the configuration whose names are being looked up is left for a newer one");
        }
        let names = self.lookups.begin(&config);
        if names > 0 {
            tracing::info!(names, why, "looking up the names of instances for a new configuration");
        }
        self.candidate_files.begin(&config, &self.keychain, &self.records, &self.exporter);
        let (has_names, reads_certificates, certificates, files) = (false, false, None, None);
        self.candidate = Some(NewConfig { config, why, path, has_names, reads_certificates, certificates, files });
        self.read_candidates_certificates();
    }

    /// Reads the files of the candidate's certificates, if there is one: as they are from now on.
    pub(super) fn read_candidates_certificates(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.certificates = None;
            candidate.reads_certificates = self.shown.files.begin(&candidate.config);
        }
    }

    /// The names of the candidate are looked up, as far as they were waited for.
    pub(super) fn take_candidates_names(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.has_names = true;
        }
        self.take_candidate();
    }

    /// The files of the candidate's certificates are read.
    pub(super) fn take_candidates_certificates(&mut self, read: Result<Loaded, String>) {
        let Some(candidate) = &mut self.candidate else { return };
        match read {
            Ok(loaded) => {
                (candidate.certificates, candidate.reads_certificates) = (Some(loaded), false);
                self.take_candidate();
            }
            Err(wrong) => self.refuse_candidate(&wrong),
        }
    }

    /// The candidate's other files are read.
    pub(super) fn take_candidates_files(&mut self, read: Result<NewFiles, String>) {
        let Some(candidate) = &mut self.candidate else { return };
        match read {
            Ok(files) => {
                candidate.files = Some(files);
                self.take_candidate();
            }
            Err(wrong) => self.refuse_candidate(&wrong),
        }
    }

    fn refuse_candidate(&mut self, wrong: &str) {
        self.candidate = None;
        self.refuse_reload(&wrong);
    }

    /// Puts a new configuration in force, if nothing of it is waited for any more: whole, or not at all.
    fn take_candidate(&mut self) {
        let is_here = |new: &mut NewConfig| new.has_names && !new.reads_certificates && new.files.is_some();
        let Some(NewConfig { mut config, why, path, certificates, files: Some(files), .. }) =
            self.candidate.take_if(is_here)
        else {
            return;
        };
        let addresses = self.lookups.addresses(&config);
        let generation = self.plan.generation + 1;
        let (shards, descriptors) = (self.shards.len(), self.descriptors);
        let stood = self.known().upstreams.into_iter().map(|upstream| (upstream.name, upstream.reports)).collect();
        match Plan::compile(&config, &addresses, generation, shards, descriptors, &mut self.names) {
            // Nothing can fail any more.
            Ok(plan) => (self.plan, self.stood) = (Arc::new(plan), stood),
            Err(error) => {
                let error = error.to_string();
                let lines: Vec<_> = error.lines().map(|line| format!("{}: {line}", path.display())).collect();
                return self.refuse_reload(&lines.join("\n"));
            }
        }
        let NewFiles { keys, access, clickhouse, spans } = files;
        self.keychain.adopt(keys);
        self.operators.access.send_replace(Arc::new(access));
        super::super::warn(&config);
        files::warn_of_certificates(&config, certificates.as_ref().map(|loaded| &*loaded.certificates));
        super::super::warn_of_names(&config, &addresses, &self.listeners);
        let restart_needed = self.config.restart_needed(&config);
        if !restart_needed.is_empty() {
            tracing::warn!(keys = restart_needed.join(", "), "these keys are applied by a restart only");
        }
        config.keep_until_restart(&self.config);
        let is_level_another = config.log.level != self.config.log.level;
        self.taken = Taken { at: now(), restart_needed, refusal: None };
        self.config = config;
        // What an operator wants of the log stands until the file wants something else.
        if is_level_another {
            self.set_level(None);
        }
        if let Some(spans) = spans {
            self.exporter.adopt(spans);
        }
        self.records.adopt(clickhouse, &self.config);
        self.lookups.adopt();
        self.lookups.told(&self.config, &self.listeners);
        self.process.config_reloads[Reload::Applied.index()] += 1;
        self.process.config = usage::config(&self.config);
        self.process.config_applied = i64::try_from(clock::unix_now().as_secs()).unwrap_or(0);
        tracing::info!(generation, why, path = %path.display(), "configuration reloaded");
        let keys = self.keychain.keys();
        self.bus.broadcast(|| ToShard::Keys(Arc::clone(&keys)));
        // Without any, those stay that are shown: listeners speak TLS until a restart.
        self.shown.refusal = None;
        if let Some(loaded) = &certificates {
            self.show_read(&loaded.certificates);
        }
        self.shown.files.follow(certificates.as_ref());
        if self.operators.orders.keep(|upstream| self.config.upstreams.contains_key(upstream)) {
            self.tell_orders();
        }
        let plan = Arc::clone(&self.plan);
        self.bus.broadcast(|| ToShard::Plan(Arc::clone(&plan)));
        self.set_instances();
        self.bus.send(to::Bridge, ToBridge::Plan(plan));
        self.bus.send(to::Bridge, ToBridge::Configuration(Arc::new(self.config.clone()), self.keychain.issuer()));
    }

    /// Tells the shards of other addresses of names.
    pub(super) fn tell_instances(&mut self) {
        let generation = self.plan.generation;
        if let Some(instances) = self.lookups.instances(&self.config, &self.listeners, generation) {
            let instances = Arc::new(instances);
            self.bus.broadcast(|| ToShard::Instances(Arc::clone(&instances)));
            // After that letter, so that shards know whom probes speak of.
            self.set_instances();
            self.process.discovery_changes += 1;
        }
    }

    /// Tells all who follow the instances, here on the control thread, which they are.
    pub(super) fn set_instances(&mut self) {
        self.probes.set(&self.plan, self.lookups.current());
        self.instances.set(&self.plan, self.lookups.current(), clock::now());
    }

    fn refuse_reload(&mut self, mistakes: &dyn Display) {
        self.process.config_reloads[Reload::Refused.index()] += 1;
        tracing::error!("the configuration is refused and the old one stays:\n{mistakes}");
        self.taken.refusal = Some(RefusalState { at: now(), text: bounded(&mistakes.to_string()) });
        if self.candidate.is_none() {
            self.lookups.give_up();
            self.shown.files.give_up();
            self.candidate_files.give_up();
        }
    }
}
