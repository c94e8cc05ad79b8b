//! Sample backends as processes of their own, so that one can be killed, stopped, slowed down or made to fail.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use super::timeline::Served;
use crate::logout::Caller;
use crate::{process, socket};

/// An instance that has not told within this does not tell.
const TELL_TIMEOUT: Duration = Duration::from_millis(100);

/// The instances of an upstream. They end with it.
pub(super) struct Instances {
    running: Vec<Instance>,
    delay: Duration,
}

struct Instance {
    port: u16,
    child: Child,
    /// It is killed or stopped, and nothing can be asked of it.
    is_away: bool,
}

impl Instances {
    /// Starts one on each port, with this delay before each answer.
    pub(super) fn start(ports: &[u16], delay: Duration) -> anyhow::Result<Self> {
        let mut instances = Self { running: Vec::new(), delay };
        for &port in ports {
            let child = spawn(port)?;
            instances.running.push(Instance { port, child, is_away: false });
            instances.behave(instances.running.len() - 1, delay, 0)?;
        }
        Ok(instances)
    }

    /// From now on it answers after this long, and one of so many requests with 500 (none at 0).
    pub(super) fn behave(&self, nth: usize, delay: Duration, failing: u64) -> anyhow::Result<()> {
        let path = format!("/behave?delay_us={}&failing={failing}", delay.as_micros());
        let said = self.caller(nth)?.ask("GET", &path, "", "")?;
        ensure!(said.status == 200, "{path} was answered {}", said.status);
        Ok(())
    }

    pub(super) fn kill(&mut self, nth: usize) -> anyhow::Result<()> {
        self.running[nth].is_away = true;
        self.running[nth].child.kill()?;
        self.running[nth].child.wait()?;
        Ok(())
    }

    /// Starts one anew that was killed.
    pub(super) fn revive(&mut self, nth: usize) -> anyhow::Result<()> {
        self.running[nth].child = spawn(self.running[nth].port)?;
        self.running[nth].is_away = false;
        self.behave(nth, self.delay, 0)
    }

    pub(super) fn signal(&mut self, nth: usize, signal: Signal) -> anyhow::Result<()> {
        self.running[nth].is_away = signal == Signal::STOP;
        process::signal(self.running[nth].child.id(), signal)
    }

    /// How many requests each has served.
    pub(super) fn served(&self) -> Served {
        let counts = (0..self.running.len()).map(|nth| {
            if self.running[nth].is_away {
                return None;
            }
            let said = self.caller(nth).ok()?.ask("GET", "/served", "", "").ok()?;
            std::str::from_utf8(&said.content).ok()?.trim().parse().ok()
        });
        Served { at: socket::now(), counts: counts.collect() }
    }

    fn caller(&self, nth: usize) -> anyhow::Result<Caller<'static>> {
        Caller::at(([127, 0, 0, 1], self.running[nth].port).into(), TELL_TIMEOUT)
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        for instance in &mut self.running {
            // One that is gone already is no trouble.
            let _ = instance.child.kill();
            let _ = instance.child.wait();
        }
    }
}

fn spawn(port: u16) -> anyhow::Result<Child> {
    let own = std::env::current_exe().context("this program's own file")?;
    let mut command = Command::new(own);
    command.args(["serve", "--port", &port.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("a sample backend")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.is_empty() {
        let status = child.wait()?;
        anyhow::bail!("the sample backend on port {port} ended: {status}");
    }
    Ok(child)
}
