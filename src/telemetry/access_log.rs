//! Access-log lines on their way out: each shard fills a buffer of its own, one thread writes them.
//!
//! A shard never waits: a buffer is handed over whole, and when the writer is behind its lines are dropped and
//! counted. What a line says is `record`'s business.

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

use super::lines::{BlockingFile, LineWriter, Lost, newlines};
use super::log::Format;
use super::record::{LINE_MAX, Record, TimestampCache};

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
    /// Nowhere: [`AccessLog::line`] returns at once.
    Off,
}

/// One shard's lines that are not written yet. One per shard; made on the main thread and moved there once.
#[derive(Debug)]
pub struct AccessLog {
    link: Option<WriterChannel>,
    times: TimestampCache,
    buffer: Vec<u8>,
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
        let batch = Batch { shard: link.shard, bytes };
        if let Err(
            TrySendError::Full(Message::Batch(mut batch)) | TrySendError::Disconnected(Message::Batch(mut batch)),
        ) = link.messages.try_send(Message::Batch(batch))
        {
            self.dropped += newlines(&batch.bytes);
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
/// written: 2 MiB bridge a disk that stalls for some 0.1 s at 50,000 requests a second.
pub fn spawn(
    target: &LogTarget,
    format: Format,
    shards: usize,
    buffer_bytes: usize,
) -> io::Result<(AccessLogWriter, Vec<AccessLog>)> {
    match target {
        LogTarget::Off => {
            let logs = (0..shards).map(|_| AccessLog::off()).collect();
            Ok((AccessLogWriter { running: None }, logs))
        }
        LogTarget::Stdout => {
            start(File::from(io::stdout().as_fd().try_clone_to_owned()?), None, format, shards, buffer_bytes)
        }
        LogTarget::File(path) => match standard(path) {
            Some(descriptor) => start(File::from(descriptor?), None, format, shards, buffer_bytes),
            None => start(open(path)?, Some(path.clone()), format, shards, buffer_bytes),
        },
    }
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
    output: File,
    path: Option<PathBuf>,
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
    let mut logs = Vec::with_capacity(shards);
    let mut returns = Vec::with_capacity(shards);
    for shard in 0..shards {
        let (give_back, returned) = sync_channel(batches);
        logs.push(AccessLog::new(Some(WriterChannel {
            shard,
            format,
            batch_bytes,
            messages: messages.clone(),
            returned,
        })));
        returns.push(ReturnChannel { give_back, lost: 0 });
    }
    let output = LineWriter::new(BlockingFile(output));
    let mut writing =
        Writing { output, path, messages: message_queue, reopen: reopen_asked, returns, batches, failing: None };
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
    output: LineWriter<BlockingFile>,
    path: Option<PathBuf>,
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
        let Message::Batch(Batch { shard, mut bytes }) = message else { return };
        let lost = self.write(&bytes);
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::net::{IpAddr, Ipv4Addr};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Long enough for any machine: reached only by a test that fails.
    const PATIENCE: Duration = Duration::from_mins(1);

    fn record(path: &[u8]) -> Record<'_> {
        Record {
            request_id: b"req-00000001",
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_text: b"127.0.0.1",
            method: b"GET",
            host: b"localhost",
            path,
            protocol: "HTTP/1.1",
            status: 200,
            ..Record::BLANK
        }
    }

    /// The paths of the lines, each of which must be whole.
    fn paths(lines: &str) -> Vec<String> {
        let path = |line: &str| -> Option<String> {
            let fields: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(fields.get("path")?.as_str()?.to_owned())
        };
        lines.lines().map(|line| path(line).unwrap_or_else(|| format!("no line: {line}"))).collect()
    }

    /// Hands over what there is and waits until the writer is done with it; returns the lines it lost.
    fn flush_and_wait(log: &mut AccessLog) -> u64 {
        log.flush();
        log.link.as_ref().expect("on").returned.recv_timeout(PATIENCE).expect("the buffer comes back").lost
    }

    #[test]
    fn a_writer_that_nobody_reads_from_never_blocks_a_shard() {
        const LINES: u64 = 40_000;
        let (reader, writer) = io::pipe().expect("a pipe");
        let (writer, mut logs) =
            start(File::from(OwnedFd::from(writer)), None, Format::Json, 1, 16 * BATCH_BYTES).expect("a thread");
        let mut log = logs.pop().expect("one shard");
        // Some 8 MiB: past what the pipe and the queue take together. That this ends is the point.
        for number in 0..LINES {
            log.line(&record(number.to_string().as_bytes()));
        }
        log.flush();
        let dropped = log.dropped();
        assert!(dropped > LINES / 4, "{dropped} lines dropped");

        // Now somebody reads: what was not dropped is all there, in order.
        let reading = thread::spawn(move || {
            let mut text = String::new();
            BufReader::new(reader).read_to_string(&mut text).map(|_| text)
        });
        assert!(writer.close(PATIENCE), "the writer ends once it can write");
        let text = reading.join().expect("no panic").expect("UTF-8");
        let numbers: Vec<u64> = paths(&text).iter().map(|path| path.parse().expect("a number")).collect();
        assert_eq!(numbers.len() as u64, LINES - dropped);
        assert!(numbers.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn closing_has_a_bound() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (writer, mut logs) =
            start(File::from(OwnedFd::from(writer)), None, Format::Json, 1, 64 * BATCH_BYTES).expect("a thread");
        for _ in 0..1000 {
            logs[0].line(&record(&[b'a'; 1000]));
        }
        logs[0].flush();
        assert!(!writer.close(Duration::from_millis(1)), "1 MB does not fit into the pipe");
        drop(reader);
    }

    #[test]
    fn lines_of_all_shards_arrive_and_buffers_come_back() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (writer, mut logs) =
            start(File::from(OwnedFd::from(writer)), None, Format::Json, 4, 64 * BATCH_BYTES).expect("a thread");
        let mut reader = BufReader::new(reader);
        for (shard, log) in logs.iter_mut().enumerate() {
            log.line(&record(format!("/{shard}").as_bytes()));
            assert_eq!(flush_and_wait(log), 0);
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line");
            assert_eq!(paths(&line), [format!("/{shard}")]);
        }
        // What is not flushed yet goes out when the shard ends.
        logs[2].line(&record(b"/last"));
        drop(logs);
        assert!(writer.close(PATIENCE));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("the rest");
        assert_eq!(paths(&rest), ["/last"]);
    }

    #[test]
    fn a_file_is_appended_to_and_reopened_after_a_rotation() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        fs::write(&path, "{\"path\":\"/older\"}\n").expect("an older log");
        let (writer, mut logs) =
            spawn(&LogTarget::File(path.clone()), Format::Json, 1, 64 * BATCH_BYTES).expect("a file");
        logs[0].line(&record(b"/before"));
        flush_and_wait(&mut logs[0]);
        fs::rename(&path, &rotated).expect("rotated");
        writer.reopen();
        logs[0].line(&record(b"/after"));
        flush_and_wait(&mut logs[0]);
        assert!(writer.close(PATIENCE));
        let read = |path| paths(&fs::read_to_string(path).expect("a log"));
        assert_eq!(read(&rotated), ["/older", "/before"]);
        assert_eq!(read(&path), ["/after"]);
        let mode = fs::metadata(&path).expect("a log").permissions().mode();
        assert_eq!(mode & 0o007, 0, "strangers may not read it");
    }

    #[test]
    fn what_the_system_refuses_is_counted() {
        let (writer, mut logs) =
            spawn(&LogTarget::File("/dev/full".into()), Format::Json, 1, 64 * BATCH_BYTES).expect("a device");
        let log = &mut logs[0];
        log.line(&record(b"/1"));
        log.line(&record(b"/2"));
        assert_eq!(flush_and_wait(log), 2);
        // A shard learns of it with the buffer that comes back.
        log.line(&record(b"/3"));
        log.flush();
        assert!(writer.close(PATIENCE));
        log.flush();
        assert_eq!(log.dropped(), 1);
        log.line(&record(b"/4"));
        log.flush();
        assert_eq!(log.dropped(), 2, "nobody writes any more");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_said_at_the_start() {
        let error = spawn(&LogTarget::File("/nowhere/access.log".into()), Format::Json, 1, 64 * BATCH_BYTES)
            .map(drop)
            .expect_err("no such folder");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn off_costs_nothing() {
        let (writer, mut logs) = spawn(&LogTarget::Off, Format::Json, 2, 64 * BATCH_BYTES).expect("nothing to open");
        logs[1].line(&record(b"/"));
        assert!(logs[1].is_off() && logs[1].buffer.capacity() == 0);
        assert!(writer.close(Duration::ZERO));
    }
}
