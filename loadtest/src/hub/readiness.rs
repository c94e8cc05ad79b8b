//! Asks instances again and again whether they are ready for sockets, and notes when that changes.

use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::logout::Caller;
use crate::report::Report;
use crate::{socket, target};

/// How often each is asked, and how long it may take to answer.
const EVERY: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(1);
/// Changes that are kept of each.
const CHANGES_MAX: usize = 1000;

/// What is known of all instances that are asked.
#[derive(Default)]
pub(crate) struct Readiness {
    heard: Option<Receiver<(usize, u64, u16)>>,
    /// The threads that ask end when these are gone.
    go_on: Vec<Sender<()>>,
    /// Of each: when its answer changed, and to what status; 0: none came.
    changes: Vec<Vec<(u64, u16)>>,
}

impl Readiness {
    /// Begins to ask, each in a thread of its own.
    pub(crate) fn watch(urls: &[String], allow_remote: bool) -> anyhow::Result<Self> {
        for url in urls {
            target::resolve(target::split_url(url)?.0, allow_remote)?;
        }
        let (tell, heard) = channel();
        let mut watch = Self { heard: Some(heard), go_on: Vec::new(), changes: vec![Vec::new(); urls.len()] };
        for (nth, url) in urls.iter().enumerate() {
            let (go_on, may_go_on) = channel();
            let (tell, url) = (tell.clone(), url.clone());
            watch.go_on.push(go_on);
            std::thread::spawn(move || ask(nth, &url, &tell, &may_go_on));
        }
        Ok(watch)
    }

    /// Takes what has been heard since.
    pub(crate) fn listen(&mut self) {
        for (nth, at, status) in self.heard.iter().flat_map(Receiver::try_iter) {
            let changes = &mut self.changes[nth];
            if changes.last().is_none_or(|(_, before)| *before != status) && changes.len() < CHANGES_MAX {
                changes.push((at, status));
            }
        }
    }

    /// The end of a line about how it goes.
    pub(crate) fn progress(&self) -> String {
        let latest = self.changes.iter().map(|changes| changes.last().map_or(0, |(_, status)| *status));
        let latest = latest.map(|status| status.to_string()).collect::<Vec<_>>();
        if latest.is_empty() { String::new() } else { format!("  hub {}", latest.join(" ")) }
    }

    /// What each answered, and from when on, in seconds from this time.
    pub(crate) fn put(&self, report: &mut Report, from: u64) {
        for (nth, changes) in self.changes.iter().enumerate() {
            let mut text = String::new();
            let mut list = Vec::new();
            for (at, status) in changes {
                let seconds = (*at as f64 - from as f64) / 1e9;
                let status = if *status == 0 { "no answer".to_owned() } else { status.to_string() };
                // Writing to a string cannot fail.
                let _ = write!(text, "{status} from {seconds:.2} s  ");
                list.push(serde_json::json!({"status": status, "from_s": seconds}));
            }
            let name = format!("ready_{}", nth + 1);
            report.put_row(&name, text.trim_end());
            report.put_field(&name, list.into());
        }
    }
}

/// Asks one instance until nobody wants to know any more.
fn ask(nth: usize, url: &str, tell: &Sender<(usize, u64, u16)>, may_go_on: &Receiver<()>) {
    let path = target::split_url(url).map_or("/", |(_, path)| path);
    let mut caller = None;
    while may_go_on.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        caller = caller.take().or_else(|| Caller::connect(url, TIMEOUT).ok());
        let said = caller.as_mut().and_then(|caller| caller.ask("GET", path, "", "").ok());
        if said.is_none() {
            caller = None;
        }
        // Nobody listens only if nobody wants to know any more.
        let _ = tell.send((nth, socket::now(), said.map_or(0, |said| said.status)));
    }
}
