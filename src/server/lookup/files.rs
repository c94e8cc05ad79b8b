//! Files that list instances, looked at on threads that may wait: a file system that hangs holds up nobody but whoever asks,
//! who is told so after a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::Path,
};

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::{
    config::{LISTING_BYTES_MAX, ListingFormat, open_regular, parse_listing, watch::Watch},
    server::{readers::Readers, resolver::AskedList},
    upstream::{LeftOut, ListAnswer, ListResult, Listed},
};

/// So many files are looked at at once, those that hang among them. It leaves most of the runtime's threads (512) to others: they
/// look up the names of issuers, too.
const READERS_MAX: usize = 64;

/// The files that one configuration names. On the control thread.
#[derive(Debug)]
pub(super) struct Files {
    followed: BTreeMap<Box<Path>, FollowedFile>,
    /// Shared by all configurations.
    readers: Readers,
    look: Look,
}

/// Looks at a file; what it holds is read anew when that has changed.
type Look = fn(&Path, &mut ListFile) -> ListResult;

#[derive(Debug)]
struct FollowedFile {
    /// As it was known before the look under way, if there is one.
    file: ListFile,
    /// As it is known after that look. Nothing comes when nobody has heard what came of it.
    after: Option<oneshot::Receiver<ListFile>>,
    /// One at a time, whichever configuration asks: while a look hangs there is no other.
    readers: Readers,
}

/// What is known of a file.
#[derive(Clone, Debug, Default)]
struct ListFile {
    /// Since it was looked at first.
    watch: Option<Watch>,
    /// Why what it held when it was read last is none.
    wrong: Option<String>,
}

impl Files {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { followed: BTreeMap::new(), readers: Readers::new(READERS_MAX), look: look_at }
    }

    /// Those of another configuration, which names these, looked at as before: one that is being written while a reload comes
    /// is not read halfway.
    pub(super) fn fork(&mut self, named: &BTreeSet<&Path>) -> Self {
        let followed = self.followed.iter_mut().filter(|(path, _)| named.contains(&***path));
        let followed = followed.map(|(path, followed)| (path.clone(), followed.fork())).collect();
        Self { followed, readers: self.readers.clone(), look: self.look }
    }

    /// Looks at a file. Within a tokio runtime.
    pub(super) fn ask(&mut self, path: &Path) -> AskedList {
        let followed = self.followed.entry(path.into()).or_insert_with(|| FollowedFile {
            file: ListFile::default(),
            after: None,
            readers: self.readers.of_one(),
        });
        let (mut file, tell) = followed.begin();
        let (look, path) = (self.look, Box::<Path>::from(path));
        let mut reading = followed.readers.read(move || {
            let told = look(&path, &mut file);
            (file, told)
        });
        Box::pin(async move {
            let read = reading.outcome().await;
            let (file, told) = read.map_err(|why| format!("it cannot be read: {why}"))?;
            // Whoever asked is gone when the configuration was given up.
            let _ = tell.send(file);
            told
        })
    }
}

impl FollowedFile {
    /// Begins another look: what it begins with, and where to tell of what is known after it.
    fn begin(&mut self) -> (ListFile, oneshot::Sender<ListFile>) {
        self.catch_up();
        if self.after.is_some() {
            self.file.forget();
        }
        let (tell, after) = oneshot::channel();
        self.after = Some(after);
        (self.file.clone(), tell)
    }

    fn fork(&mut self) -> Self {
        self.catch_up();
        let mut file = self.file.clone();
        // What was read just now may not be known there yet.
        file.forget();
        Self { file, after: None, readers: self.readers.clone() }
    }

    /// Takes what is known after a look that has ended.
    fn catch_up(&mut self) {
        match self.after.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(file)) => self.file = file,
            Some(Err(TryRecvError::Closed)) => self.file.forget(),
            Some(Err(TryRecvError::Empty)) | None => return,
        }
        self.after = None;
    }
}

impl ListFile {
    /// Whatever the file holds is read anew, once it has settled.
    fn forget(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
    }
}

fn look_at(path: &Path, file: &mut ListFile) -> ListResult {
    if let Some(watch) = &mut file.watch {
        match watch.changed() {
            Err(error) => return Err(format!("it cannot be read: {error}")),
            Ok(false) => {
                let passed_over = passed_over(path).map(str::to_owned);
                if passed_over.is_none() && watch.is_settling() && file.wrong.is_some() {
                    return Ok(ListAnswer::Settling);
                }
                let wrong = passed_over.or_else(|| file.wrong.clone());
                return wrong.map_or(Ok(ListAnswer::Unchanged), Err);
            }
            Ok(true) => {}
        }
    } else {
        // Before it is read, so that no change is missed.
        file.watch = Some(Watch::new(path));
    }
    let bytes = read(path);
    if bytes.is_err() {
        file.forget();
    }
    let listed = bytes.and_then(|bytes| parse(path, &bytes));
    file.wrong = listed.as_ref().err().cloned();
    listed
}

/// Why a watch has passed something over: a file that is about to be written is cut off first, and something else may be in
/// its place.
fn passed_over(path: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() {
        return Some("it is no regular file");
    }
    (metadata.len() == 0).then_some("it is empty")
}

/// Reads a file of instances.
pub(in crate::server) fn read_listing(path: &Path) -> ListResult {
    parse(path, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let bytes_max = LISTING_BYTES_MAX as u64 + 1;
    let read = open_regular(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("it cannot be read: {error}"))
}

fn parse(path: &Path, bytes: &[u8]) -> ListResult {
    let format = ListingFormat::of(path).ok_or("its name ends in neither .json nor .toml")?;
    let instances = parse_listing(bytes, format)?;
    Ok(ListAnswer::Listed(Listed { instances, left_out: LeftOut::default(), ..Listed::default() }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work);
        runtime.shutdown_background();
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read_halfway_because_of_a_reload() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("shop.toml");
        let write = |instances: &str| fs::write(&path, format!("instances = [{instances}]\n")).expect("written");
        let named = BTreeSet::from([&*path]);
        run(async {
            write("\"10.0.0.1:80\"");
            let mut files = Files::new();
            assert!(matches!(files.ask(&path).await, Ok(ListAnswer::Listed(_))));
            write("\"10.0.0.2:80\"");
            let mut fork = files.fork(&named);
            assert_eq!(fork.ask(&path).await, Ok(ListAnswer::Unchanged), "it may be but a part");
            write("\"10.0.0.2:80\", \"10.0.0.3:80\"");
            assert_eq!(fork.ask(&path).await, Ok(ListAnswer::Unchanged), "as it was");
            let Ok(ListAnswer::Listed(listed)) = fork.ask(&path).await else { panic!("it has settled") };
            assert_eq!(listed.instances.len(), 2);
            // What was told may not have been heard when the next reload comes.
            let mut fork = fork.fork(&named);
            assert_eq!(fork.ask(&path).await, Ok(ListAnswer::Unchanged));
            assert!(matches!(fork.ask(&path).await, Ok(ListAnswer::Listed(_))));
            // Nothing is left of files that nobody names any more.
            assert!(fork.fork(&BTreeSet::new()).followed.is_empty());
        });
    }

    #[test]
    fn what_was_wrong_is_not_told_of_what_has_taken_its_place() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("shop.toml");
        run(async {
            fs::write(&path, "instances = [").expect("written");
            let mut files = Files::new();
            let wrong = files.ask(&path).await.expect_err("it is cut off");
            assert!(wrong.starts_with("it is not TOML"), "{wrong}");
            assert_eq!(files.ask(&path).await, Err(wrong), "it stays so");
            fs::write(&path, "instances = [\"10.0.0.1:80\"]\n").expect("written");
            assert_eq!(files.ask(&path).await, Ok(ListAnswer::Settling));
            assert!(matches!(files.ask(&path).await, Ok(ListAnswer::Listed(_))));
        });
    }

    #[test]
    fn a_directory_or_an_empty_file_in_its_place_is_a_failure_in_each_look() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("shop.toml");
        run(async {
            let mut files = Files::new();
            fs::write(&path, "instances = [\"10.0.0.1:80\"]\n").expect("written");
            assert!(matches!(files.ask(&path).await, Ok(ListAnswer::Listed(_))));
            fs::remove_file(&path).expect("removed");
            fs::create_dir(&path).expect("a directory");
            for _ in 0..3 {
                assert_eq!(files.ask(&path).await, Err("it cannot be read: it is a directory".to_owned()));
            }
            fs::remove_dir(&path).expect("removed");
            fs::write(&path, "").expect("written");
            for _ in 0..3 {
                assert_eq!(files.ask(&path).await, Err("it is empty".to_owned()));
            }
        });
    }

    #[test]
    fn a_read_that_hangs_fails_after_a_while_and_has_no_other_beside_it() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("shop.toml");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        // As a file system that hangs: until somebody writes.
        let look: Look = |path, _| {
            fs::read(path).expect("read");
            Ok(ListAnswer::Unchanged)
        };
        run(async {
            let readers = Readers::new(READERS_MAX);
            let (patient, readers) = (readers.clone(), readers.within(Duration::from_millis(20)));
            let mut files = Files { readers, look, ..Files::new() };
            let mut fork = files.fork(&BTreeSet::new());
            let late = Err("it cannot be read: that takes longer than 20ms".to_owned());
            // Each returns though nobody writes: nothing else on this thread is held up.
            for _ in 0..3 {
                assert_eq!(files.ask(&path).await, late);
                assert_eq!(files.fork(&BTreeSet::from([&*path])).ask(&path).await, late, "nor by reloads");
            }
            assert_eq!(patient.free(), READERS_MAX - 1, "one hangs");
            // Other files are read meanwhile.
            fork.look = look_at;
            let other = directory.path().join("other.toml");
            fs::write(&other, "instances = [\"10.0.0.1:80\"]\n").expect("written");
            fork.readers = patient;
            assert!(matches!(fork.ask(&other).await, Ok(ListAnswer::Listed(_))));
            fs::write(&path, "x").expect("whoever hangs reads it");
            // Once that has ended there is another look, of which there is an answer.
            files.look = |_, _| Ok(ListAnswer::Unchanged);
            let patient = |followed: &mut FollowedFile| {
                followed.readers = followed.readers.clone().within(Duration::from_secs(5));
            };
            files.followed.values_mut().for_each(patient);
            assert_eq!(files.ask(&path).await, Ok(ListAnswer::Unchanged));
        });
    }
}
