//! What becomes of lines on their way out.

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
        start(Some(File::from(OwnedFd::from(writer))), None, None, Format::Json, 1, 16 * BATCH_BYTES)
            .expect("a thread");
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
fn a_file_that_takes_nothing_holds_up_no_sink() {
    const BATCHES: u64 = 40;
    let (_reader, writer) = io::pipe().expect("a pipe");
    let (tell, told) = sync_channel(1);
    let sink: LineSink = Box::new(move |NumberedLines { first, count, .. }| {
        tell.send((first, count)).expect("somebody listens");
    });
    let text = Format::Text { is_colourful: false };
    let (writer, mut logs) =
        start(Some(File::from(OwnedFd::from(writer))), None, Some(sink), text, 1, 16 * BATCH_BYTES).expect("threads");
    let log = &mut logs[0];
    // The pipe takes the first; one more is being written, and sixteen wait.
    for batch in 0..BATCHES {
        for _ in 0..50 {
            log.line(&record(&[b'a'; 1000]));
        }
        log.flush();
        assert_eq!(told.recv_timeout(PATIENCE), Ok((batch * 50 + 1, 50)));
    }
    assert!(log.dropped() >= 50 * (BATCHES - 20), "{} lines are lost to the file", log.dropped());
    log.line(&record(b"/last"));
    drop(logs);
    assert!(!writer.close(Duration::from_millis(1)), "nobody reads what is to be written");
    assert_eq!(told.recv_timeout(PATIENCE), Ok((BATCHES * 50 + 1, 1)), "the sink has the last too");
}

#[test]
fn closing_has_a_bound() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (writer, mut logs) =
        start(Some(File::from(OwnedFd::from(writer))), None, None, Format::Json, 1, 64 * BATCH_BYTES)
            .expect("a thread");
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
        start(Some(File::from(OwnedFd::from(writer))), None, None, Format::Json, 4, 64 * BATCH_BYTES)
            .expect("a thread");
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
        spawn(&LogTarget::File(path.clone()), Format::Json, 1, 64 * BATCH_BYTES, None).expect("a file");
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
        spawn(&LogTarget::File("/dev/full".into()), Format::Json, 1, 64 * BATCH_BYTES, None).expect("a device");
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
    let error = spawn(&LogTarget::File("/nowhere/access.log".into()), Format::Json, 1, 64 * BATCH_BYTES, None)
        .map(drop)
        .expect_err("no such folder");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_sink_has_the_lines_that_the_file_has_and_their_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let text = Format::Text { is_colourful: false };
    for (target, format) in
        [(LogTarget::Off, text), (LogTarget::File(path.clone()), Format::Json), (LogTarget::File(path.clone()), text)]
    {
        let (tell, told) = sync_channel(16);
        let sink: LineSink = Box::new(move |NumberedLines { shard, first, count, bytes }| {
            let lines = String::from_utf8(bytes.to_vec()).expect("UTF-8");
            tell.send((shard, first, count, paths(&lines))).expect("room");
        });
        let (writer, mut logs) = spawn(&target, format, 2, 64 * BATCH_BYTES, Some(sink)).expect("a file");
        logs[1].line(&record(b"/1"));
        logs[1].line(&record(b"/2"));
        flush_and_wait(&mut logs[1]);
        logs[1].line(&record(b"/3"));
        logs[0].line(&record(b"/1"));
        drop(logs);
        assert!(writer.close(PATIENCE));
        let mut told: Vec<_> = told.iter().collect();
        told.sort();
        let named = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
        let expected = [(0, 1, 1, named(&["/1"])), (1, 1, 2, named(&["/1", "/2"])), (1, 3, 1, named(&["/3"]))];
        assert_eq!(told, expected);
    }
    let written = fs::read_to_string(&path).expect("a log");
    let (json, people): (Vec<_>, Vec<_>) = written.lines().partition(|line| line.starts_with('{'));
    assert_eq!((json.len(), people.len()), (4, 4), "{written}");
    assert!(people.iter().any(|line| line.contains(" 200 GET /3 ")), "{written}");
}

#[test]
fn lines_that_find_no_room_leave_a_gap_in_the_numbers() {
    let (tell, told) = sync_channel(1);
    let (go_on, wait) = sync_channel::<()>(0);
    let sink: LineSink = Box::new(move |NumberedLines { first, count, .. }| {
        tell.send((first, count)).expect("somebody listens");
        let _ = wait.recv();
    });
    let (writer, mut logs) = spawn(&LogTarget::Off, Format::Json, 1, 2, Some(sink)).expect("a thread");
    // One is with the sink, two are in the queue, and the fourth has no room.
    logs[0].line(&record(b"/1"));
    assert_eq!(told.recv_timeout(PATIENCE), Ok((1, 1)));
    for _ in 0..3 {
        logs[0].line(&record(b"/2"));
    }
    assert_eq!(logs[0].dropped(), 1);
    drop(go_on);
    assert_eq!([told.recv_timeout(PATIENCE), told.recv_timeout(PATIENCE)], [Ok((2, 1)), Ok((3, 1))]);
    logs[0].line(&record(b"/5"));
    assert_eq!(told.recv_timeout(PATIENCE), Ok((5, 1)));
    drop(logs);
    assert!(writer.close(PATIENCE));
}

#[test]
fn off_costs_nothing() {
    let (writer, mut logs) = spawn(&LogTarget::Off, Format::Json, 2, 64 * BATCH_BYTES, None).expect("nothing to open");
    logs[1].line(&record(b"/"));
    assert!(logs[1].is_off() && logs[1].buffer.capacity() == 0);
    assert!(writer.close(Duration::ZERO));
}
