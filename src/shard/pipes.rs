//! Pipes that belong to the shard and are lent while bytes are in them: through one, bytes go from socket to socket without
//! a copy to user space (decision 17). What is moved, and when, is left to `net/`.
//!
//! One pool per thread, as for buffers.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use super::local::Local;

/// Bytes that a pipe is made to hold: a quarter as many took a third more CPU (PERF.md, "Large bodies").
const PIPE_BYTES: usize = 1024 * 1024;
/// Of such pipes an ordinary user's processes may have 64 between them; then one stays as the kernel makes it, and once there
/// are more than it likes the kernel makes them smaller than this: through those a copy costs less.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Pipes kept for the next; an empty one is two descriptors and little memory.
const KEPT_MAX: usize = 16;
/// Pipes lent at once. Past it bodies are copied: clients that do not read shall not fill more than 64 MiB of a shard's pipes,
/// and descriptors are for connections.
const LENT_MAX: usize = 64;

/// A pipe, lent to one body in one direction. It is given back empty; one that is dropped closes, with what is in it.
#[derive(Debug)]
pub struct Pipe {
    ends: Ends,
    /// Bytes that are in it.
    held: usize,
    /// Counts it as lent.
    _lent: Lent,
}

#[derive(Debug)]
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes that it has room for.
    room: usize,
}

#[derive(Debug)]
struct Lent;

#[derive(Debug)]
struct PipePool {
    kept: Vec<Ends>,
    lent: usize,
    moved_bytes: u64,
    /// The kernel, or a filter before it, has refused: it will again.
    is_refused: bool,
}

thread_local! {
    static POOL: Local<PipePool> =
        const { Local::new(PipePool { kept: Vec::new(), lent: 0, moved_bytes: 0, is_refused: false }) };
}

/// An empty pipe; `None` when enough are lent, or the kernel gives none that is worth it.
pub fn take() -> Option<Pipe> {
    let kept = POOL.with(|pool| {
        pool.with(|pool| {
            let may_lend = pool.lent < LENT_MAX && !pool.is_refused;
            pool.lent += usize::from(may_lend);
            may_lend.then(|| pool.kept.pop())
        })
    })?;
    let lent = Lent;
    let ends = match kept {
        Some(ends) => ends,
        None => Ends::new()?,
    };
    Some(Pipe { ends, held: 0, _lent: lent })
}

/// Gives a pipe back. One that holds bytes is closed: they are somebody's, and nobody else's.
pub fn give(pipe: Pipe) {
    let Pipe { ends, held, .. } = pipe;
    if held > 0 {
        return;
    }
    let surplus = POOL.try_with(|pool| {
        pool.with(|pool| {
            let is_wanted = pool.kept.len() < KEPT_MAX;
            if is_wanted {
                pool.kept.push(ends);
                return None;
            }
            Some(ends)
        })
    });
    drop(surplus);
}

/// How many bytes have left this shard's pipes for a socket.
pub fn moved_bytes() -> u64 {
    POOL.with(|pool| pool.with(|pool| pool.moved_bytes))
}

impl Ends {
    fn new() -> Option<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused to a user that has many: then it stays as it is.
        let room = fcntl_setpipe_size(&writer, PIPE_BYTES).or_else(|_| fcntl_getpipe_size(&writer)).ok()?;
        (room >= PIPE_BYTES_MIN).then_some(Self { reader, writer, room })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // An error means that the thread is ending and its pool is gone.
        let _ = POOL.try_with(|pool| pool.with(|pool| pool.lent -= 1));
    }
}

impl Pipe {
    /// Bytes that are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes up to so many bytes from a socket; `Ok(0)` is the end of its stream, or says that they have to be read.
    ///
    /// The pipe is empty, so that `EAGAIN` speaks of the socket alone.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>, bytes_max: u64) -> Result<usize, Errno> {
        debug_assert!(self.held == 0, "a pipe that holds bytes may be full");
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(self.ends.room);
        match splice(socket, None, &self.ends.writer, None, bytes_max, SpliceFlags::NONBLOCK) {
            Ok(bytes) => {
                self.held = bytes;
                Ok(bytes)
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP) => {
                POOL.with(|pool| pool.with(|pool| pool.is_refused = true));
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a socket what it takes.
    pub(super) fn pour(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        // Not a byte more than there is: the kernel would hold the last segment back for what is promised.
        let bytes = splice(&self.ends.reader, None, socket, None, self.held, SpliceFlags::NONBLOCK)?;
        self.held -= bytes.min(self.held);
        POOL.with(|pool| pool.with(|pool| pool.moved_bytes += bytes as u64));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::shard::testing;

    // The test runner gives each test its own thread, and with it its own pool.

    fn pool<R>(look: impl FnOnce(&mut PipePool) -> R) -> R {
        POOL.with(|pool| pool.with(look))
    }

    /// A pipe with bytes in it.
    fn filled(bytes: &[u8]) -> Pipe {
        let (mut from, to) = UnixStream::pair().expect("a pair of sockets");
        from.write_all(bytes).expect("written");
        let mut pipe = take().expect("a pipe");
        assert_eq!(pipe.fill(to.as_fd(), u64::MAX), Ok(bytes.len()));
        pipe
    }

    #[test]
    fn bytes_go_through_and_are_counted() {
        let mut pipe = filled(b"through a pipe");
        let (to, mut reads) = UnixStream::pair().expect("a pair of sockets");
        assert_eq!((pipe.held(), moved_bytes()), (14, 0));
        assert_eq!(pipe.pour(to.as_fd()), Ok(14));
        assert_eq!((pipe.held(), moved_bytes()), (0, 14));
        let mut heard = [0; 14];
        reads.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"through a pipe");
    }

    #[test]
    fn no_more_is_taken_than_may_be_and_an_end_is_none() {
        let (mut from, to) = UnixStream::pair().expect("a pair of sockets");
        from.write_all(b"body, and what comes behind it").expect("written");
        let mut pipe = take().expect("a pipe");
        assert_eq!(pipe.fill(to.as_fd(), 4), Ok(4));
        drop(pipe);
        let mut rest = [0; 26];
        (&to).read_exact(&mut rest).expect("read");
        assert_eq!(&rest, b", and what comes behind it");
        let mut pipe = take().expect("a pipe");
        to.set_nonblocking(true).expect("set");
        assert_eq!(pipe.fill(to.as_fd(), 4), Err(Errno::AGAIN));
        drop(from);
        assert_eq!(pipe.fill(to.as_fd(), 4), Ok(0));
        assert!(!pool(|pool| pool.is_refused));
    }

    #[test]
    fn a_pipe_given_back_empty_is_lent_again_and_no_other() {
        give(filled(b"of somebody else"));
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (0, 0));
        drop(take().expect("a pipe"));
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (0, 0));
        let pipe = take().expect("a pipe");
        assert_eq!(pipe.ends.room, PIPE_BYTES);
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (0, 1));
        give(pipe);
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (1, 0));
        let _pipe = take().expect("the same");
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (0, 1));
    }

    #[test]
    fn few_are_lent_and_fewer_kept() {
        let pipes: Vec<Pipe> = (0..LENT_MAX).map(|_| take().expect("a pipe")).collect();
        assert!(take().is_none());
        pipes.into_iter().for_each(give);
        assert_eq!(pool(|pool| (pool.kept.len(), pool.lent)), (KEPT_MAX, 0));
        assert!(take().is_some());
    }

    #[test]
    fn without_descriptors_there_is_no_pipe_for_now() {
        // Alone in a process, so that nobody else misses them.
        let Some(output) = testing::in_child("shard::pipes::tests::without_descriptors_there_is_no_pipe_for_now")
        else {
            let before = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).expect("lowered");
            let is_none = take().is_none();
            setrlimit(Resource::Nofile, before).expect("raised");
            assert!(is_none);
            assert_eq!(pool(|pool| pool.lent), 0);
            assert!(take().is_some(), "bodies that come later are moved again");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn what_the_kernel_refuses_is_not_asked_again() {
        let mut pipe = take().expect("a pipe");
        // Nothing can be spliced out of a directory.
        let directory = std::fs::File::open("/").expect("it is there");
        assert_eq!(pipe.fill(directory.as_fd(), 1), Ok(0));
        assert!(take().is_none(), "bodies are copied from here on");
    }
}
