//! Signals, on a thread of their own: whatever the control thread may be held up by (a file system that hangs, a log that
//! nobody reads), a second one ends the process.

use std::{io, process, sync::mpsc::sync_channel, thread, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

/// The exit code of an end that refused requests or cut them off.
pub const CUT: u8 = 3;

/// How long the process may take to end in good order after a second signal: for connections to be cut, counted and logged,
/// and for the access log to be written out.
const ENDING_MAX: Duration = Duration::from_secs(3);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signalled {
    Reload,
    End,
}

/// The signals that docs/operations.md tells of.
pub(super) struct Signals(mpsc::UnboundedReceiver<Signalled>);

impl Signals {
    /// Takes the signals over from the kernel's defaults. Those that come before anybody asks are kept.
    pub(super) fn new() -> io::Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        let (begin, begun) = sync_channel(1);
        // It is never joined: the process ends without it.
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(begin.send(Err(error))),
            };
            runtime.block_on(async {
                match SignalStreams::new() {
                    Ok(heard) => {
                        // Whoever began this waits for it.
                        let _ = begin.send(Ok(()));
                        listen(heard, tell).await;
                    }
                    Err(error) => drop(begin.send(Err(error))),
                }
            });
        })?;
        begun.recv().map_err(io::Error::other)??;
        Ok(Self(told))
    }

    /// Until the process is asked to end. A reload that is asked for before it has begun is none: the file has been watched
    /// since before it was read.
    pub(super) async fn end(&mut self) {
        while !matches!(self.next().await, Signalled::End) {}
    }

    /// The next one. Dropping the future loses none.
    pub(super) async fn next(&mut self) -> Signalled {
        match self.0.recv().await {
            Some(signalled) => signalled,
            // The thread never ends by itself.
            None => std::future::pending().await,
        }
    }
}

/// What the kernel tells.
struct SignalStreams {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl SignalStreams {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.hangup.recv() => Signalled::Reload,
            _ = self.terminate.recv() => Signalled::End,
            _ = self.interrupt.recv() => Signalled::End,
        }
    }
}

/// Passes on what is heard. Once the process was asked to end twice it does.
async fn listen(mut heard: SignalStreams, tell: mpsc::UnboundedSender<Signalled>) {
    let mut ends = 0;
    while ends < 2 {
        let signalled = heard.next().await;
        ends += u32::from(signalled == Signalled::End);
        // Nobody listens any more when the process ends.
        let _ = tell.send(signalled);
    }
    sleep(ENDING_MAX).await;
    // Not a word: a log that nobody reads may be what holds everything up.
    process::exit(i32::from(CUT));
}
