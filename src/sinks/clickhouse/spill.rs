//! Batches that wait in files while the server is away, and survive the process: written behind the last, read from the
//! first.
//!
//! A file is written once, to its end, and goes when all its batches are sent. So after a restart a file that was sent in
//! part is sent again; the table counts its rows once.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hyper::body::Bytes;
use rustix::fs::{FlockOperation, flock};

use super::batch::Batch;
use super::record::{self, FILE_MAGIC, PAYLOAD_MAX, Records};

/// A file past this size gets no more batches, so that what is sent makes room soon. With a small bound it is a quarter of
/// that.
const FILE_BYTES: u64 = 4 << 20;
/// No file of ours is larger: one batch may stand behind so much.
const READ_MAX: u64 = FILE_BYTES + PAYLOAD_MAX as u64 + 64;
/// Held by the process that uses the directory.
const LOCK: &str = "lock";

/// The files of one process.
#[derive(Debug)]
pub(super) struct Spill {
    directory: PathBuf,
    /// Holds the directory as long as it is open.
    _lock: File,
    files: VecDeque<SpillFile>,
    /// The number of the next one. No number comes twice, so that a file that is left where it is stands in nobody's way.
    next: u64,
    /// All of them together.
    bytes: u64,
    bytes_max: u64,
    /// The last file, as long as it is written.
    writing: Option<File>,
    /// The first file, as long as it is read.
    reading: Option<Reading>,
    /// Stretches of files that could not be read.
    pub(super) damaged: u64,
}

#[derive(Debug)]
struct SpillFile {
    number: u64,
    bytes: u64,
    /// When its first row came, in milliseconds since 1970; none if that is not known before it is read.
    oldest_ms: Option<u64>,
}

#[derive(Debug)]
struct Reading {
    records: Records,
    /// The batch that was read last and is not sent yet.
    front: Option<Batch>,
}

impl Spill {
    /// Takes the directory, made where it is missing, with what an earlier process has left there. Fails with
    /// [`io::ErrorKind::WouldBlock`] while another one has it.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> io::Result<Self> {
        // For this user alone: rows hold people's addresses.
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let (mut files, mut next) = (Vec::new(), 1);
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(number_of) else { continue };
            next = next.max(number + 1);
            let found = entry.metadata()?;
            // No link is followed, and no pipe waited for, that somebody has put there.
            if found.is_file() {
                files.push(SpillFile { number, bytes: found.len(), oldest_ms: None });
            }
        }
        files.sort_by_key(|file| file.number);
        for file in &mut files {
            file.oldest_ms = first_row(&path(directory, file.number));
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        let files = files.into();
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
            files,
            next,
            bytes,
            bytes_max,
            writing: None,
            reading: None,
            damaged: 0,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Memory that reading takes.
    pub(super) fn memory(&self) -> usize {
        self.reading.as_ref().map_or(0, |reading| reading.records.memory())
    }

    /// When the first row of all that is not sent came, in milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let front = self.reading.as_ref().and_then(|reading| Some(reading.front.as_ref()?.oldest_ms));
        front.or_else(|| self.files.front()?.oldest_ms)
    }

    /// Writes a batch behind the others, also to the disk; `false` if there is no room for it.
    pub(super) fn append(&mut self, batch: &Batch) -> io::Result<bool> {
        let length = record::length(batch);
        let is_new = self.writing.is_none();
        let added = if is_new { length + FILE_MAGIC.len() as u64 } else { length };
        if self.bytes + added > self.bytes_max || batch.gzip.len() > PAYLOAD_MAX {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        if is_new {
            self.begin_file()?;
            bytes.extend_from_slice(FILE_MAGIC);
        }
        record::write(batch, &mut bytes);
        let (Some(file), Some(last)) = (&mut self.writing, self.files.back_mut()) else { return Ok(false) };
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // What was written in part ends here, and what comes later has a file of its own.
            let _ = file.set_len(last.bytes);
            self.writing = None;
            if last.bytes == 0 {
                let _ = fs::remove_file(path(&self.directory, last.number));
                self.files.pop_back();
            }
            return Err(error);
        }
        last.bytes += added;
        last.oldest_ms.get_or_insert(batch.oldest_ms);
        self.bytes += added;
        if last.bytes >= FILE_BYTES.min(self.bytes_max / 4) {
            self.writing = None;
        }
        Ok(true)
    }

    fn begin_file(&mut self) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        let path = path(&self.directory, number);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        // Its name is to survive a power cut as its rows do, where the file system can do that.
        let _ = File::open(&self.directory).and_then(|directory| directory.sync_all());
        self.writing = Some(file);
        self.files.push_back(SpillFile { number, bytes: 0, oldest_ms: None });
        Ok(())
    }

    /// The first batch that is not sent yet. Files that hold none any more go.
    pub(super) fn front(&mut self) -> Option<Batch> {
        loop {
            if self.reading.is_none() {
                let number = self.files.front()?.number;
                if self.files.len() == 1 {
                    // It is read now, so it is not written any more.
                    self.writing = None;
                }
                match self.read(number) {
                    Ok(reading) => self.reading = Some(reading),
                    Err(error) => {
                        tracing::error!(
                            %error,
                            file = %path(&self.directory, number).display(),
                            "ClickHouse: a file of rows cannot be read, and is left where it is"
                        );
                        self.damaged += 1;
                        self.forget_first();
                        continue;
                    }
                }
            }
            let reading = self.reading.as_mut()?;
            if reading.front.is_none() {
                let damaged = reading.records.damaged;
                reading.front = reading.records.next();
                self.damaged += reading.records.damaged - damaged;
            }
            if let Some(batch) = &reading.front {
                return Some(batch.clone());
            }
            let number = self.files.front()?.number;
            if let Err(error) = fs::remove_file(path(&self.directory, number)) {
                tracing::error!(%error, "ClickHouse: a file of rows that are sent cannot be removed");
            }
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        self.reading = None;
        if let Some(first) = self.files.pop_front() {
            self.bytes -= first.bytes;
        }
    }

    /// The first batch is sent.
    pub(super) fn pop(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.front = None;
        }
        // So that the file goes now, if that was the last.
        self.front();
    }

    fn read(&self, number: u64) -> io::Result<Reading> {
        let mut bytes = Vec::new();
        File::open(path(&self.directory, number))?.take(READ_MAX).read_to_end(&mut bytes)?;
        let records = Records::new(Bytes::from(bytes));
        let not_ours = || io::Error::new(io::ErrorKind::InvalidData, "it does not begin as a file of rows does");
        Ok(Reading { records: records.ok_or_else(not_ours)?, front: None })
    }
}

/// When the first row of a file came.
fn first_row(path: &Path) -> Option<u64> {
    let mut head = [0; 28];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(u64::from_le_bytes(head.get(20..28)?.try_into().ok()?))
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016}.rows"))
}

/// The number in a file's name, if it is one of ours.
fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".rows").filter(|digits| digits.len() == 16)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u32, bytes: usize) -> Batch {
        Batch { rows: number, oldest_ms: u64::from(number) * 1000, gzip: vec![b'x'; bytes].into() }
    }

    fn drain(spill: &mut Spill) -> Vec<u32> {
        let mut rows = Vec::new();
        while let Some(batch) = spill.front() {
            rows.push(batch.rows);
            spill.pop();
        }
        rows
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.filter(|name| name != LOCK).collect();
        names.sort();
        names
    }

    #[test]
    fn batches_come_back_in_order_and_files_go_with_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), 4000).unwrap();
        for number in 1..=6 {
            assert!(spill.append(&batch(number, 600)).unwrap());
        }
        assert!(!spill.append(&batch(7, 600)).unwrap(), "there is no room for 7 × 628 and what begins the files");
        assert_eq!(spill.oldest_ms(), Some(1000));
        assert_eq!(names(folder.path()).len(), 3);
        assert_eq!(spill.front().unwrap().rows, 1);
        spill.pop();
        assert_eq!((spill.front().unwrap().rows, spill.oldest_ms()), (2, Some(2000)));
        spill.pop();
        assert_eq!(names(folder.path()).len(), 2, "the first file is sent");
        assert!(spill.append(&batch(7, 600)).unwrap());
        assert_eq!(drain(&mut spill), [3, 4, 5, 6, 7]);
        assert!(spill.is_empty() && spill.bytes() == 0 && names(folder.path()).is_empty());
        assert!(spill.append(&batch(8, 1)).unwrap());
        assert_eq!(drain(&mut spill), [8]);
    }

    #[test]
    fn a_file_that_is_read_is_written_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), 1 << 20).unwrap();
        assert!(spill.append(&batch(1, 10)).unwrap());
        assert_eq!(spill.front().unwrap().rows, 1);
        assert!(spill.append(&batch(2, 10)).unwrap());
        assert_eq!(drain(&mut spill), [1, 2]);
    }

    #[test]
    fn what_an_earlier_process_left_is_there_and_its_torn_end_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), 1 << 20).unwrap();
        let held = Spill::open(folder.path(), 1 << 20).map(drop).unwrap_err();
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock, "one process has it");
        for number in 1..=3 {
            assert!(spill.append(&batch(number, 100)).unwrap());
        }
        drop(spill);
        // As a process leaves it that is killed while it writes.
        let file = folder.path().join(&names(folder.path())[0]);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        fs::write(path(folder.path(), 9), "not rows").unwrap();
        // And one that was killed as it began its file.
        fs::write(path(folder.path(), 10), &FILE_MAGIC[..5]).unwrap();
        let mut spill = Spill::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((spill.bytes(), spill.oldest_ms()), (whole.len() as u64 - 1 + 8 + 5, Some(1000)));
        assert!(spill.append(&batch(4, 100)).unwrap());
        assert_eq!(drain(&mut spill), [1, 2, 4]);
        assert_eq!(spill.damaged, 2, "the torn one, and the file that is none of ours");
        assert_eq!(names(folder.path()), ["0000000000000009.rows", "notes.txt"]);
    }

    #[test]
    fn what_is_in_the_way_is_passed_over_and_numbers_do_not_come_twice() {
        let folder = tempfile::tempdir().unwrap();
        // Opening it to read would wait for a writer.
        let pipe = path(folder.path(), 1);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        let mut record = FILE_MAGIC.to_vec();
        record::write(&batch(9, 9), &mut record);
        fs::write(elsewhere.path(), &record).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), path(folder.path(), 2)).unwrap();
        fs::create_dir(path(folder.path(), 3)).unwrap();
        fs::write(path(folder.path(), 6), "not rows").unwrap();
        let mut spill = Spill::open(folder.path(), 4000).unwrap();
        assert_eq!(spill.front(), None);
        // Each of these files has one batch or two.
        for number in 1..=20 {
            assert!(spill.append(&batch(number, 600)).unwrap());
            assert_eq!(drain(&mut spill), [number]);
        }
        assert_eq!((spill.damaged, spill.bytes(), names(folder.path()).len()), (1, 0, 4));
        assert_eq!(fs::read(elsewhere.path()).unwrap(), record);
    }

    #[test]
    fn a_full_disk_is_an_error_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), 1 << 20).unwrap();
        assert!(spill.append(&batch(1, 10)).unwrap());
        spill.writing = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
        assert_eq!(spill.append(&batch(2, 10)).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(spill.append(&batch(3, 10)).unwrap());
        assert_eq!(drain(&mut spill), [1, 3]);
    }
}
