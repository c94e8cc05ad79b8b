//! Access-log lines on their way out: each shard fills a buffer of its own, one thread writes them.
//!
//! A shard never waits: a buffer is handed over whole, and when the writer is behind its lines are dropped and
//! counted. What a line says is `record`'s business, and where else lines go a [`LineSink`]'s.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::lines::{BlockingFile, LineWriter, Lost};
use super::log::Format;
use super::record::{LINE_MAX, Record, TimestampCache};
use super::retold::write_retold;

/// A buffer past this size is handed over, where the configuration has room for two: about 280 lines, so that waking the
/// writer costs a request little. At 70 it cost 2 % of the whole (PERF.md, "Beside its peers").
const BATCH_BYTES: usize = 128 * 1024;
/// Batches under way for each shard at least: one is written while the next is filled.
const BATCHES_MIN: usize = 2;
/// The writer gives way to the shards when both want a core.
const NICENESS: i32 = 5;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// A file, appended to; [`AccessLogWriter::reopen`] follows a rotation.
    File(PathBuf),
    /// Nowhere. Without a [`LineSink`] either, [`AccessLog::line`] returns at once.
    Off,
}

/// Takes lines besides the file: JSON, whatever the file has. It is called on the writer's thread, before the file is
/// written, and does not wait.
pub type LineSink = Box<dyn FnMut(NumberedLines<'_>) + Send>;

/// Whole lines of one shard, in order.
#[derive(Clone, Copy, Debug)]
pub struct NumberedLines<'a> {
    /// Whose they are.
    pub shard: usize,
    /// The number of the first. A shard numbers all its lines from 1; those that it had to drop are missing.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    /// The lines, each with its newline.
    pub bytes: &'a [u8],
}

/// One shard's lines that are not written yet. One per shard; made on the main thread and moved there once.
#[derive(Debug)]
pub struct AccessLog {
    link: Option<WriterChannel>,
    times: TimestampCache,
    buffer: Vec<u8>,
    /// The number of the buffer's first line, and of the next one.
    first: u64,
    next: u64,
    /// Who waits for a first line.
    waiting: Option<Waker>,
    /// The last flush handed something over, and the next hears what became of it.
    has_handed_over: bool,
    dropped: u64,
}

/// A shard's end of the channels to and from the writer.
#[derive(Debug)]
struct WriterChannel {
    shard: usize,
    format: Format,
    /// A buffer past this size is handed over.
    batch_bytes: usize,
    messages: SyncSender<Message>,
    returned: Receiver<EmptyBuffer>,
}

#[derive(Debug)]
enum Message {
    Batch(Batch),
    /// The handle wants something.
    Wake,
}

#[derive(Debug)]
struct Batch {
    shard: usize,
    /// The number of the first line, and how many there are.
    first: u64,
    count: u64,
    bytes: Vec<u8>,
}

/// An empty buffer for the shard to fill again.
#[derive(Debug)]
struct EmptyBuffer {
    bytes: Vec<u8>,
    /// Lines that could not be written since the last one came back.
    lost: u64,
}

impl AccessLog {
    /// One that writes nothing.
    pub fn off() -> Self {
        Self::new(None)
    }

    /// Adds a line; hands the buffer over when it is full.
    #[inline]
    pub fn line(&mut self, record: &Record<'_>) {
        let Some(link) = &self.link else { return };
        record.write_line(link.format, &mut self.times, &mut self.buffer);
        self.next += 1;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        if self.buffer.len() >= link.batch_bytes {
            self.flush();
        }
    }

    /// Waits until there is something to flush or to hear of the last flush, so that a shard without any sleeps. One task
    /// waits.
    pub fn poll_line(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.buffer.is_empty() && !self.has_handed_over {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Hands over what there is; the shard calls it at each flush interval.
    pub fn flush(&mut self) {
        let Some(link) = &self.link else { return };
        let mut next = Vec::new();
        while let Ok(returned) = link.returned.try_recv() {
            self.dropped += returned.lost;
            next = returned.bytes;
        }
        self.has_handed_over = !self.buffer.is_empty();
        if self.buffer.is_empty() {
            return;
        }
        if next.capacity() == 0 {
            next.reserve_exact(link.batch_bytes + LINE_MAX);
        }
        let bytes = std::mem::replace(&mut self.buffer, next);
        let first = std::mem::replace(&mut self.first, self.next);
        let batch = Batch { shard: link.shard, first, count: self.next - first, bytes };
        if let Err(
            TrySendError::Full(Message::Batch(mut batch)) | TrySendError::Disconnected(Message::Batch(mut batch)),
        ) = link.messages.try_send(Message::Batch(batch))
        {
            self.dropped += batch.count;
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

/// The writer's handle. One per process, with the main thread; without it the writer ends.
#[derive(Debug)]
pub struct AccessLogWriter {
    running: Option<WriterThread>,
}

#[derive(Debug)]
struct WriterThread {
    /// Dropped to close.
    reopen: SyncSender<()>,
    messages: SyncSender<Message>,
    /// Never sent to: it ends when the thread does.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// Opens the target and starts the writer, with one [`AccessLog`] for each shard. `buffer_bytes` of each may wait to be
/// written: 2 MiB bridge a disk that stalls for some 0.1 s at 50,000 requests a second. The sink, if there is one, takes the
/// same lines.
pub fn spawn(
    target: &LogTarget,
    format: Format,
    shards: usize,
    buffer_bytes: usize,
    sink: Option<LineSink>,
) -> io::Result<(AccessLogWriter, Vec<AccessLog>)> {
    let output = match target {
        LogTarget::Off if sink.is_none() => {
            let logs = (0..shards).map(|_| AccessLog::off()).collect();
            return Ok((AccessLogWriter { running: None }, logs));
        }
        LogTarget::Off => None,
        LogTarget::Stdout => Some((File::from(io::stdout().as_fd().try_clone_to_owned()?), None)),
        LogTarget::File(path) => Some(match standard(path) {
            Some(descriptor) => (File::from(descriptor?), None),
            None => (open(path)?, Some(path.clone())),
        }),
    };
    let (output, path) = output.map_or((None, None), |(file, path)| (Some(file), path));
    start(output, path, sink, format, shards, buffer_bytes)
}

/// The descriptor that is meant by such a path: the path itself cannot be opened where it leads to a socket, as under
/// systemd, or to what belongs to somebody else, as in containers.
fn standard(path: &Path) -> Option<io::Result<OwnedFd>> {
    let is = |names: [&str; 3]| names.iter().any(|name| path == Path::new(name));
    if is(["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]) {
        return Some(io::stdout().as_fd().try_clone_to_owned());
    }
    is(["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"]).then(|| io::stderr().as_fd().try_clone_to_owned())
}

/// Opens a file without waiting, also where it is a pipe that nobody reads: that is an error.
fn open(path: &Path) -> io::Result<File> {
    let not_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    // Not for everybody to read: lines hold people's addresses.
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(not_waiting).open(path)
}

/// What is wrong with a file that could not be opened, and what to do about it.
pub fn remedy(path: &Path, error: &io::Error) -> String {
    let user = rustix::process::geteuid().as_raw();
    let kind = fs::metadata(path).map(|found| found.file_type());
    match error.kind() {
        _ if kind.as_ref().is_ok_and(FileTypeExt::is_fifo) && error.raw_os_error() == Some(libc::ENXIO) => {
            "it is a pipe that nobody reads; start its reader first, or name a file".to_owned()
        }
        _ if kind.as_ref().is_ok_and(FileTypeExt::is_socket) => {
            "it is a socket; write \"stdout\", or name a file".to_owned()
        }
        io::ErrorKind::NotFound => match path.parent() {
            Some(directory) if !directory.exists() => {
                format!("there is no directory {}; make it, or name another file", directory.display())
            }
            _ => "it leads to where nothing is; name another file".to_owned(),
        },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("user {user} may not write there; give it to that user, or name another file")
        }
        io::ErrorKind::IsADirectory => "it is a directory; name a file in it".to_owned(),
        _ => "it cannot be opened; name another file".to_owned(),
    }
}

fn start(
    output: Option<File>,
    path: Option<PathBuf>,
    sink: Option<LineSink>,
    format: Format,
    shards: usize,
    buffer_bytes: usize,
) -> io::Result<(AccessLogWriter, Vec<AccessLog>)> {
    let batch_bytes = BATCH_BYTES.min(buffer_bytes / BATCHES_MIN).max(1);
    let batches = (buffer_bytes / batch_bytes).max(BATCHES_MIN);
    let (messages, message_queue) = sync_channel(batches * shards.max(1));
    // One that waits says all.
    let (reopen, reopen_asked) = sync_channel(1);
    let (end, ended) = sync_channel(0);
    // A shard writes each line once. Where a sink wants JSON and the file text, the writer makes the one of the other.
    let (written, retold) = if sink.is_some() { (Format::Json, Some(format)) } else { (format, None) };
    let mut logs = Vec::with_capacity(shards);
    let mut returns = Vec::with_capacity(shards);
    for shard in 0..shards {
        let (give_back, returned) = sync_channel(batches);
        logs.push(AccessLog::new(Some(WriterChannel {
            shard,
            format: written,
            batch_bytes,
            messages: messages.clone(),
            returned,
        })));
        returns.push(ReturnChannel { give_back, lost: 0 });
    }
    let mut writing = Writing {
        output: output.map(|file| LineWriter::new(BlockingFile(file))),
        path,
        sink,
        retold: retold.filter(|format| *format != Format::Json),
        messages: message_queue,
        reopen: reopen_asked,
        returns,
        batches,
        failing: None,
    };
    let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        // Being refused a lower priority changes nothing that matters.
        let _ = rustix::process::nice(NICENESS);
        writing.run();
        drop(end);
    })?;
    Ok((AccessLogWriter { running: Some(WriterThread { reopen, messages, ended, thread }) }, logs))
}

impl AccessLog {
    fn new(link: Option<WriterChannel>) -> Self {
        Self {
            link,
            times: TimestampCache::default(),
            buffer: Vec::new(),
            first: 1,
            next: 1,
            waiting: None,
            has_handed_over: false,
            dropped: 0,
        }
    }
}

impl AccessLogWriter {
    /// Opens the file anew, after whoever rotates logs has moved the old one away. Never waits.
    pub fn reopen(&self) {
        let Some(running) = &self.running else { return };
        // When either channel is full the writer has yet to look at one like it.
        let _ = running.reopen.try_send(());
        let _ = running.messages.try_send(Message::Wake);
    }

    /// Writes what the shards handed over before and ends the thread; `false` when that took longer than `bound`, and
    /// then the thread is left behind.
    #[must_use]
    pub fn close(self, bound: Duration) -> bool {
        let Some(WriterThread { reopen, messages, ended, thread }) = self.running else { return true };
        drop(reopen);
        let _ = messages.try_send(Message::Wake);
        match ended.recv_timeout(bound) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().is_ok(),
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}

/// What the thread owns.
struct Writing {
    /// `None` where lines are for the sink only.
    output: Option<LineWriter<BlockingFile>>,
    path: Option<PathBuf>,
    sink: Option<LineSink>,
    /// What the output has instead of the JSON that comes.
    retold: Option<Format>,
    messages: Receiver<Message>,
    reopen: Receiver<()>,
    returns: Vec<ReturnChannel>,
    /// Batches that one shard may have under way.
    batches: usize,
    /// Lines lost since writing began to fail.
    failing: Option<u64>,
}

/// The way back to one shard.
struct ReturnChannel {
    give_back: SyncSender<EmptyBuffer>,
    lost: u64,
}

impl Writing {
    /// Runs until the handle is gone, or every shard.
    fn run(&mut self) {
        while let Ok(message) = self.messages.recv() {
            // The handle comes first, also when batches never pause.
            let handle = self.reopen.try_recv();
            if handle.is_ok() {
                self.reopen();
            }
            self.handle(message);
            if handle == Err(TryRecvError::Disconnected) {
                self.finish();
                return;
            }
        }
    }

    /// Writes what had been handed over; no more, lest a busy shard keep the thread for ever.
    fn finish(&mut self) {
        for _ in 0..self.batches * self.returns.len() {
            let Ok(message) = self.messages.try_recv() else { return };
            self.handle(message);
        }
    }

    fn handle(&mut self, message: Message) {
        let Message::Batch(Batch { shard, first, count, mut bytes }) = message else { return };
        if let Some(sink) = &mut self.sink {
            sink(NumberedLines { shard, first, count, bytes: &bytes });
        }
        let lost = match self.retold {
            None => self.write(&bytes),
            Some(format) => {
                let mut text = Vec::with_capacity(bytes.len());
                write_retold(&bytes, format, &mut text);
                self.write(&text)
            }
        };
        bytes.clear();
        let Some(back) = self.returns.get_mut(shard) else { return };
        let lost = std::mem::take(&mut back.lost) + lost;
        if let Err(TrySendError::Full(returned)) = back.give_back.try_send(EmptyBuffer { bytes, lost }) {
            // The shard has buffers enough; this one is freed, and the next tells what was lost.
            back.lost = returned.lost;
        }
    }

    /// Writes a batch and returns how many of its lines are lost.
    fn write(&mut self, bytes: &[u8]) -> u64 {
        let Some(output) = &mut self.output else { return 0 };
        let Err(Lost { lines, cause }) = output.write(bytes) else {
            if let Some(lost) = self.failing.take() {
                tracing::info!(lost, "access log: writing again");
            }
            return 0;
        };
        // One report for a burst: a full disk must not fill another log.
        if self.failing.is_none() {
            tracing::error!(error = &cause as &dyn Error, "access log: cannot write; lines are dropped");
        }
        *self.failing.get_or_insert(0) += lines;
        lines
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                self.output = Some(LineWriter::new(BlockingFile(file)));
                tracing::info!(path = %path.display(), "access log: file reopened");
            }
            Err(error) => {
                let error = &error;
                let remedy = remedy(path, error);
                tracing::error!(error = error as &dyn Error, path = %path.display(), "access log: cannot reopen, and the old file goes on: {remedy}");
            }
        }
    }
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
