//! Access-log lines on their way out: each shard fills a buffer of its own, one thread writes them.
//!
//! A shard never waits: a buffer is handed over whole, and when the writer is behind its lines are dropped and
//! counted. What a line says is `record`'s business.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::record::{LINE_MAX, Record, TimestampCache};

/// A buffer past this size is handed over: about 70 lines, so that waking the writer costs a request little.
const BATCH_BYTES: usize = 32 * 1024;
/// Batches under way for each shard: 2 MiB bridge a disk that stalls for some 0.1 s at 50,000 requests a second.
const BATCHES_PER_SHARD: usize = 64;
/// Requests to the writer that wait; one of a kind says all, so a full channel loses nothing.
const COMMANDS: usize = 4;
/// The writer gives way to the shards when both want a core.
const NICENESS: i32 = 5;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, appended to; [`Writer::reopen`] follows a rotation.
    File(PathBuf),
    /// Nowhere: [`AccessLog::line`] returns at once.
    Off,
}

/// One shard's lines that are not written yet. One per shard; made on the main thread and moved there once.
#[derive(Debug)]
pub struct AccessLog {
    link: Option<Link>,
    times: TimestampCache,
    buffer: Vec<u8>,
    lines: u64,
    dropped: u64,
}

/// A shard's end of the channels to and from the writer.
#[derive(Debug)]
struct Link {
    shard: usize,
    messages: SyncSender<Message>,
    returned: Receiver<Returned>,
}

#[derive(Debug)]
enum Message {
    Batch(Batch),
    /// Look at the commands.
    Wake,
}

#[derive(Debug)]
struct Batch {
    shard: usize,
    lines: u64,
    bytes: Vec<u8>,
}

/// An empty buffer for the shard to fill again.
#[derive(Debug)]
struct Returned {
    bytes: Vec<u8>,
    /// Lines that could not be written since the last one came back.
    lost: u64,
}

impl AccessLog {
    /// Adds a line; hands the buffer over when it is full.
    #[inline]
    pub fn line(&mut self, record: &Record<'_>) {
        if self.link.is_none() {
            return;
        }
        record.write_line(&mut self.times, &mut self.buffer);
        self.lines += 1;
        if self.buffer.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Hands over what there is; the shard calls it at each flush interval.
    pub fn flush(&mut self) {
        let Some(link) = &self.link else { return };
        let mut next = Vec::new();
        while let Ok(returned) = link.returned.try_recv() {
            self.dropped += returned.lost;
            next = returned.bytes;
        }
        if self.buffer.is_empty() {
            self.buffer = next;
            return;
        }
        if next.capacity() == 0 {
            next.reserve_exact(BATCH_BYTES + LINE_MAX);
        }
        let bytes = std::mem::replace(&mut self.buffer, next);
        let batch = Batch { shard: link.shard, lines: std::mem::take(&mut self.lines), bytes };
        if let Err(
            TrySendError::Full(Message::Batch(mut batch)) | TrySendError::Disconnected(Message::Batch(mut batch)),
        ) = link.messages.try_send(Message::Batch(batch))
        {
            self.dropped += batch.lines;
            batch.bytes.clear();
            self.buffer = batch.bytes;
        }
    }

    /// Lines lost so far: the writer was behind, or the system refused to take them.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether lines go nowhere, so that nobody need collect what they would say.
    pub const fn is_off(&self) -> bool {
        self.link.is_none()
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The writer's handle. One per process, with the main thread.
#[derive(Debug)]
pub struct Writer {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    commands: SyncSender<Command>,
    messages: SyncSender<Message>,
    /// Never sent to: it ends when the thread does.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Reopen,
    Close,
}

/// Opens the target and starts the writer, with one [`AccessLog`] for each shard.
pub fn spawn(target: &Target, shards: usize) -> io::Result<(Writer, Vec<AccessLog>)> {
    match target {
        Target::Off => {
            let logs = (0..shards).map(|_| AccessLog::new(None)).collect();
            Ok((Writer { running: None }, logs))
        }
        Target::Stdout => start(File::from(io::stdout().as_fd().try_clone_to_owned()?), None, shards),
        Target::File(path) => start(open(path)?, Some(path.clone()), shards),
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn start(output: File, path: Option<PathBuf>, shards: usize) -> io::Result<(Writer, Vec<AccessLog>)> {
    let (messages, message_queue) = sync_channel(BATCHES_PER_SHARD * shards.max(1));
    let (commands, command_queue) = sync_channel(COMMANDS);
    let (end, ended) = sync_channel(0);
    let mut logs = Vec::with_capacity(shards);
    let mut returns = Vec::with_capacity(shards);
    for shard in 0..shards {
        let (give_back, returned) = sync_channel(BATCHES_PER_SHARD);
        logs.push(AccessLog::new(Some(Link { shard, messages: messages.clone(), returned })));
        returns.push(Return { give_back, lost: 0 });
    }
    let mut writing =
        Writing { output, path, messages: message_queue, commands: command_queue, returns, torn: false, failing: None };
    let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        // Being refused a lower priority changes nothing that matters.
        let _ = rustix::process::nice(NICENESS);
        writing.run();
        drop(end);
    })?;
    Ok((Writer { running: Some(Running { commands, messages, ended, thread }) }, logs))
}

impl AccessLog {
    fn new(link: Option<Link>) -> Self {
        Self { link, times: TimestampCache::default(), buffer: Vec::new(), lines: 0, dropped: 0 }
    }
}

impl Writer {
    /// Opens the file anew, after whoever rotates logs has moved the old one away. Never waits.
    pub fn reopen(&self) {
        if let Some(running) = &self.running {
            running.command(Command::Reopen);
        }
    }

    /// Writes what the shards handed over before and ends the thread; `false` when that took longer than `bound`, and
    /// then the thread is left behind.
    #[must_use]
    pub fn close(self, bound: Duration) -> bool {
        let Some(running) = self.running else { return true };
        running.command(Command::Close);
        match running.ended.recv_timeout(bound) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => running.thread.join().is_ok(),
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}

impl Running {
    fn command(&self, command: Command) {
        // When either channel is full the writer is about to look at its commands, and an equal one waits there.
        let _ = self.commands.try_send(command);
        let _ = self.messages.try_send(Message::Wake);
    }
}

/// What the thread owns.
struct Writing {
    output: File,
    path: Option<PathBuf>,
    messages: Receiver<Message>,
    commands: Receiver<Command>,
    returns: Vec<Return>,
    /// Whether the last line was written in part.
    torn: bool,
    /// Lines lost since writing began to fail.
    failing: Option<u64>,
}

/// The way back to one shard.
struct Return {
    give_back: SyncSender<Returned>,
    lost: u64,
}

impl Writing {
    /// Runs until it is closed, or every shard and the handle are gone.
    fn run(&mut self) {
        while let Ok(message) = self.messages.recv() {
            // Commands come first, also when batches never pause.
            if let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Reopen => self.reopen(),
                    Command::Close => {
                        self.handle(message);
                        self.finish();
                        return;
                    }
                }
            }
            self.handle(message);
        }
    }

    /// Writes what had been handed over; no more, lest a busy shard keep the thread for ever.
    fn finish(&mut self) {
        for _ in 0..BATCHES_PER_SHARD * self.returns.len() {
            match self.messages.try_recv() {
                Ok(message) => self.handle(message),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, message: Message) {
        let Message::Batch(Batch { shard, lines, mut bytes }) = message else { return };
        let lost = self.write(&bytes, lines);
        bytes.clear();
        let Some(back) = self.returns.get_mut(shard) else { return };
        let lost = std::mem::take(&mut back.lost) + lost;
        if let Err(TrySendError::Full(returned)) = back.give_back.try_send(Returned { bytes, lost }) {
            // The shard has buffers enough; this one is freed, and the next tells what was lost.
            back.lost = returned.lost;
        }
    }

    /// Writes a batch and returns how many of its lines are lost.
    fn write(&mut self, bytes: &[u8], lines: u64) -> u64 {
        let (written, error) = match self.write_from(bytes) {
            Ok(()) => (bytes.len(), None),
            Err((written, error)) => (written, Some(error)),
        };
        let Some(error) = error else {
            if let Some(lost) = self.failing.take() {
                tracing::info!(lost, "access log: writing again");
            }
            return 0;
        };
        let (whole, rest) = bytes.split_at(written);
        self.torn = if whole.is_empty() { self.torn } else { whole.last() != Some(&b'\n') };
        let lost = memchr::memchr_iter(b'\n', rest).count() as u64;
        debug_assert!(lost <= lines, "each line has one newline");
        // One report for a burst: a full disk must not fill another log.
        if self.failing.is_none() {
            tracing::error!(error = &error as &dyn std::error::Error, "access log: cannot write; lines are dropped");
        }
        *self.failing.get_or_insert(0) += lost;
        lost
    }

    /// Writes all bytes, or says how many were written before what went wrong.
    fn write_from(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        if self.torn {
            // What was left of a line ends here, so that the next one can be read.
            self.write_some(b"\n").map_err(|error| (0, error))?;
            self.torn = false;
        }
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            written += self.write_some(rest).map_err(|error| (written, error))?;
        }
        Ok(())
    }

    /// One successful write, however often that must be tried.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.output.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Standard output may be a pipe that another process made non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.output, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(output) => {
                self.output = output;
                self.torn = false;
                tracing::info!(path = %path.display(), "access log: file reopened");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, path = %path.display(), "access log: cannot reopen; the old file goes on");
            }
        }
    }
}
