//! Instances of the sample services: processes of their own, so that one can be killed or stopped and seen to leave and return.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::service::{self, Service};
use crate::shard::clock;

/// An instance that has ended is started again after this long: longer than probes take to notice.
const AWAY: Duration = Duration::from_secs(10);
/// How often is looked whether one has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The instances of all services. Those that run are killed with it.
#[derive(Debug)]
pub(super) struct Instances {
    program: PathBuf,
    all: Vec<Instance>,
}

#[derive(Debug)]
struct Instance {
    name: &'static str,
    service: Service,
    address: SocketAddr,
    /// None while it is away, and since when that is.
    child: Result<Child, clock::Instant>,
}

impl Instances {
    pub(super) fn new() -> anyhow::Result<Self> {
        let program =
            std::env::current_exe().context("the demo's services are this program too, and it is not found")?;
        Ok(Self { program, all: Vec::new() })
    }

    /// Starts an instance on any free port.
    pub(super) fn start(&mut self, name: &'static str, service: Service) -> anyhow::Result<SocketAddr> {
        let (child, address) = self.spawn(service, 0).with_context(|| format!("the sample service {name}"))?;
        self.all.push(Instance { name, service, address, child: Ok(child) });
        Ok(address)
    }

    fn spawn(&self, service: Service, port: u16) -> anyhow::Result<(Child, SocketAddr)> {
        let word = clap::ValueEnum::to_possible_value(&service).context("it runs in the demo itself")?;
        let mut command = Command::new(&self.program);
        command.args(["demo-service", word.get_name(), "--port", &port.to_string()]);
        // Ctrl-C is for the gateway, which asks its services for the rest of what is under way.
        command.process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let Ok(address) = line.trim_end().parse() else {
            // What came of it is said by its end.
            let _ = child.kill();
            anyhow::bail!("it did not start: {}", child.wait()?)
        };
        Ok((child, address))
    }

    /// Which process is which instance, a line each.
    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        for instance in &self.all {
            let process = instance.child.as_ref().map_or(0, Child::id);
            let _ = write!(table, "\n  {:<12} {:<18} process {process}", instance.name, instance.address.to_string());
        }
        table.split_off(1.min(table.len()))
    }

    /// Starts those again that end, from a thread of its own, until the guard is dropped.
    pub(super) fn watch(self) -> anyhow::Result<Watched> {
        let (stop, stopped) = mpsc::channel::<()>();
        let mut instances = self;
        let watching = thread::Builder::new().name("demo-services".to_owned()).spawn(move || {
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                (0..instances.all.len()).for_each(|nth| instances.look(nth));
            }
        })?;
        Ok(Watched { stop: Some(stop), watching: Some(watching) })
    }

    fn look(&mut self, nth: usize) {
        let instance = &mut self.all[nth];
        let (name, address) = (instance.name, instance.address);
        match &mut instance.child {
            Ok(child) => {
                if let Ok(Some(status)) = child.try_wait() {
                    tracing::warn!(%address, %status, away_s = AWAY.as_secs(), "an instance of {name} has ended");
                    instance.child = Err(clock::now());
                }
            }
            Err(since) if clock::now().since(*since) < AWAY => {}
            Err(_) => {
                let started = self.spawn(self.all[nth].service, address.port());
                let instance = &mut self.all[nth];
                match started {
                    Ok((child, _)) => {
                        tracing::info!(%address, process = child.id(), "an instance of {name} is started again");
                        instance.child = Ok(child);
                    }
                    Err(error) => {
                        tracing::warn!(%address, "an instance of {name} cannot be started again: {error:#}");
                        instance.child = Err(clock::now());
                    }
                }
            }
        }
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        for child in self.all.iter_mut().filter_map(|instance| instance.child.as_mut().ok()) {
            // One that has ended by itself needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Instances that are watched, until this is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    stop: Option<Sender<()>>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(watching) = self.watching.take() {
            // If it panicked, its instances are gone with it.
            let _ = watching.join();
        }
    }
}

/// `shardgate demo-service`: serves on this port, says where on standard output, and ends with its input.
pub fn serve(service: Service, port: u16) -> anyhow::Result<()> {
    // The demo may be killed while this process is stopped, and then would not see its input end. Of the demo's threads those
    // that start instances live as long as it does.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", listener.local_addr()?)?;
    output.flush()?;
    thread::Builder::new().name("serve".to_owned()).spawn(move || {
        if let Err(error) = service::run(listener, service) {
            tracing::error!(%error, "a sample service could not be started");
        }
    })?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
