//! Access-log lines on their way out: each shard fills a buffer of its own, one thread writes them.
//!
//! A shard never waits: a buffer is handed over whole, and when the writer is behind its lines are dropped and
//! counted. What a line says is `record`'s business, and where else lines go a [`LineSink`]'s: it has a thread of its own, which
//! gets buffers first and passes them on to the writer, so that a file which takes nothing holds up no sink.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::iter;
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

/// Takes lines besides the file: JSON, whatever the file has. It is called on a thread of its own, and does not wait.
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

/// The handle of the threads that take lines. One per process, with the main thread; without it they end.
#[derive(Debug)]
pub struct AccessLogWriter {
    /// Hands lines to the sink, and passes them on to the writer.
    feeder: Option<LogThread>,
    writer: Option<LogThread>,
}

#[derive(Debug)]
struct LogThread {
    /// Dropped to close.
    reopen: SyncSender<()>,
    messages: SyncSender<Message>,
    /// Never sent to: it ends when the thread does.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// What a thread does.
trait TakeLines: Send + 'static {
    fn take(&mut self, batch: Batch);
    fn reopen(&mut self) {}
}

impl LogThread {
    /// So many messages may wait for it. It runs until the handle is gone, or every shard.
    fn spawn(name: &str, messages_max: usize, mut taker: impl TakeLines) -> io::Result<Self> {
        let (messages, queue) = sync_channel(messages_max);
        // One that waits says all.
        let (reopen, reopen_asked) = sync_channel(1);
        let (end, ended) = sync_channel(0);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Being refused a lower priority changes nothing that matters.
            let _ = rustix::process::nice(NICENESS);
            run(&mut taker, &queue, &reopen_asked, messages_max);
            drop(end);
        })?;
        Ok(Self { reopen, messages, ended, thread })
    }

    fn close(self, bound: Duration) -> bool {
        let Self { reopen, messages, ended, thread } = self;
        drop(reopen);
        let _ = messages.try_send(Message::Wake);
        match ended.recv_timeout(bound) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().is_ok(),
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}

fn run(taker: &mut impl TakeLines, messages: &Receiver<Message>, handle: &Receiver<()>, messages_max: usize) {
    while let Ok(message) = messages.recv() {
        // The handle comes first, also when batches never pause.
        let told = handle.try_recv();
        if told.is_ok() {
            taker.reopen();
        }
        let is_closing = told == Err(TryRecvError::Disconnected);
        // What had been handed over before; no more, lest a busy shard keep the thread for ever.
        let others = if is_closing { messages_max } else { 0 };
        for message in iter::once(message).chain(messages.try_iter().take(others)) {
            if let Message::Batch(batch) = message {
                taker.take(batch);
            }
        }
        if is_closing {
            return;
        }
    }
}

/// Opens the target and starts what writes, with one [`AccessLog`] for each shard. `buffer_bytes` of each may wait to be
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
    let messages_max = batches * shards.max(1);
    let (give_back, returned): (Vec<_>, Vec<_>) = (0..shards).map(|_| sync_channel(batches)).unzip();
    let ways_back: Vec<_> = give_back.into_iter().map(|give_back| WayBack { give_back, lost: 0 }).collect();
    // A shard writes each line once. Where a sink wants JSON and the file text, the writer makes the one of the other.
    let written = if sink.is_some() { Format::Json } else { format };
    let writer = output.map(|file| {
        let output = LineWriter::new(BlockingFile(file));
        let (retold, ways_back) = (Some(format).filter(|format| *format != written), ways_back.clone());
        LogThread::spawn("access-log", messages_max, Writing { output, path, retold, ways_back, failing: None })
    });
    let writer = writer.transpose()?;
    let feeder = sink.map(|sink| {
        let onward = writer.as_ref().map(|writer| writer.messages.clone());
        LogThread::spawn("access-log-sink", messages_max, Feeding { sink, onward, ways_back })
    });
    let feeder = feeder.transpose()?;
    let first = feeder.as_ref().or(writer.as_ref());
    let log = |(shard, returned)| {
        let link = |first: &LogThread| WriterChannel {
            shard,
            format: written,
            batch_bytes,
            messages: first.messages.clone(),
            returned,
        };
        AccessLog::new(first.map(link))
    };
    let logs = returned.into_iter().enumerate().map(log).collect();
    Ok((AccessLogWriter { feeder, writer }, logs))
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
        let Some(writer) = &self.writer else { return };
        // When either channel is full the writer has yet to look at one like it.
        let _ = writer.reopen.try_send(());
        let _ = writer.messages.try_send(Message::Wake);
    }

    /// Does what is to be done with the lines that the shards handed over before, and ends the threads; `false` when that took
    /// longer than `bound`, and then the writer's is left behind.
    #[must_use]
    pub fn close(self, bound: Duration) -> bool {
        // The sink's first: it passes on the last lines, and waits for nobody.
        let is_fed = self.feeder.is_none_or(|feeder| feeder.close(bound));
        self.writer.is_none_or(|writer| writer.close(bound)) && is_fed
    }
}

/// The way back to one shard.
#[derive(Clone, Debug)]
struct WayBack {
    give_back: SyncSender<EmptyBuffer>,
    lost: u64,
}

impl WayBack {
    /// Gives a buffer back, of which so many lines are lost.
    fn give(&mut self, mut bytes: Vec<u8>, lost: u64) {
        bytes.clear();
        let lost = std::mem::take(&mut self.lost) + lost;
        if let Err(TrySendError::Full(returned)) = self.give_back.try_send(EmptyBuffer { bytes, lost }) {
            // The shard has buffers enough; this one is freed, and the next tells what was lost.
            self.lost = returned.lost;
        }
    }
}

/// What the sink's thread owns.
struct Feeding {
    sink: LineSink,
    /// To the writer, if there is one.
    onward: Option<SyncSender<Message>>,
    ways_back: Vec<WayBack>,
}

impl TakeLines for Feeding {
    fn take(&mut self, batch: Batch) {
        let Batch { shard, first, count, .. } = batch;
        (self.sink)(NumberedLines { shard, first, count, bytes: &batch.bytes });
        let (bytes, lost) = match &self.onward {
            None => (batch.bytes, 0),
            Some(onward) => match onward.try_send(Message::Batch(batch)) {
                // The writer is behind, or gone.
                Err(TrySendError::Full(Message::Batch(batch)) | TrySendError::Disconnected(Message::Batch(batch))) => {
                    (batch.bytes, count)
                }
                _ => return,
            },
        };
        if let Some(back) = self.ways_back.get_mut(shard) {
            back.give(bytes, lost);
        }
    }
}

/// What the writer's thread owns.
struct Writing {
    output: LineWriter<BlockingFile>,
    path: Option<PathBuf>,
    /// What the output has instead of the JSON that comes.
    retold: Option<Format>,
    ways_back: Vec<WayBack>,
    /// Lines lost since writing began to fail.
    failing: Option<u64>,
}

impl TakeLines for Writing {
    fn take(&mut self, Batch { shard, bytes, .. }: Batch) {
        let lost = match self.retold {
            None => self.write(&bytes),
            Some(format) => {
                let mut text = Vec::with_capacity(bytes.len());
                write_retold(&bytes, format, &mut text);
                self.write(&text)
            }
        };
        if let Some(back) = self.ways_back.get_mut(shard) {
            back.give(bytes, lost);
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                self.output = LineWriter::new(BlockingFile(file));
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

impl Writing {
    /// Writes a batch and returns how many of its lines are lost.
    fn write(&mut self, bytes: &[u8]) -> u64 {
        let Err(Lost { lines, cause }) = self.output.write(bytes) else {
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
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
