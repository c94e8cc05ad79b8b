//! Writing whole lines to a file that may fail, be full or be slow.
//!
//! It blocks: only the access log's thread uses it.

use std::fs::File;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, poll};

/// Whole lines going out, also past an error that cut one.
pub(super) struct LineWriter<W> {
    output: W,
    /// Whether the last line was written in part.
    torn: bool,
}

/// Lines that were not written whole, and why.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) lines: u64,
    pub(super) cause: io::Error,
}

impl<W: Write> LineWriter<W> {
    pub(super) const fn new(output: W) -> Self {
        Self { output, torn: false }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let mut rest = bytes;
        self.write_from(&mut rest).map_err(|cause| Lost { lines: newlines(rest), cause })
    }

    /// Shortens `rest` by what was written.
    fn write_from(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.torn {
            // What was left of a line ends here, so that the next one can be read.
            self.output.write_all(b"\n")?;
            self.torn = false;
        }
        while !rest.is_empty() {
            let (written, left) = rest.split_at(self.output.write(rest)?);
            let Some(last) = written.last() else { return Err(io::ErrorKind::WriteZero.into()) };
            self.torn = *last != b'\n';
            *rest = left;
        }
        Ok(())
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// A file that waits where others would say that it is not ready.
pub(super) struct BlockingFile(pub(super) File);

impl Write for BlockingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Standard output may be a pipe that another process made non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many bytes a call as it is told, and fails where it is told nothing.
    struct Scripted {
        script: std::vec::IntoIter<Option<usize>>,
        taken: Vec<u8>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.script.next().flatten().ok_or(io::ErrorKind::StorageFull)?;
            let taken = room.min(bytes.len());
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_never_swallows_the_next() {
        let check = |script: Vec<Option<usize>>, taken: &str, lost: [u64; 2]| {
            let mut lines = LineWriter::new(Scripted { script: script.clone().into_iter(), taken: Vec::new() });
            let batches = [b"one\ntwo\n".as_slice(), b"three\n"];
            let counted = batches.map(|batch| lines.write(batch).map_or_else(|lost| lost.lines, |()| 0));
            assert_eq!((String::from_utf8_lossy(&lines.output.taken).as_ref(), counted), (taken, lost), "{script:?}");
        };
        check(vec![Some(3), Some(9), Some(9)], "one\ntwo\nthree\n", [0, 0]);
        check(vec![Some(6), None, Some(9), Some(9)], "one\ntw\nthree\n", [1, 0]);
        check(vec![Some(4), None, Some(9)], "one\nthree\n", [1, 0]);
        check(vec![None, Some(9)], "three\n", [2, 0]);
        check(vec![Some(1), None, None], "o", [2, 1]);
        check(vec![Some(0), Some(9)], "three\n", [2, 0]);
    }
}
