//! Tells when the file has other content than before. It is asked (the control thread asks each second); reading the
//! configuration anew is for who asked.

use super::open_regular;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Watches one file. It follows the path anew each time, so that a file renamed over it and a directory of symlinks
/// swapped under it (as Kubernetes does) are seen.
#[derive(Clone, Debug)]
pub struct Watch {
    path: PathBuf,
    /// What the configuration in use was read from.
    seen: Option<FileVersion>,
    /// New content that was seen once. It counts when it is seen again: a file that is being written changes meanwhile.
    pending: Option<FileVersion>,
}

/// A file as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    mark: FileStat,
    /// Of the content. The marks alone would not do: two writes in one tick of the kernel's clock can look the same.
    hash: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStat {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// As much of the file as is compared; more is no configuration.
const BYTES_MAX: u64 = 2 << 20;

impl Watch {
    /// Watches this path, from what it holds now on; made before the configuration is read, it misses nothing. A file that
    /// cannot be read now counts as changed once it can be.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let mut watch = Self { path: path.into(), seen: None, pending: None };
        watch.seen = FileVersion::of(&watch.path).ok().flatten();
        watch
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the content is another than when this last said so (or than at the beginning). It says so once, and only
    /// when the file was the same in two looks; an empty file, which is what is left of one cut off to be written anew,
    /// is passed over. While the file is away or cannot be read that is the error, and what was in use stays.
    pub fn changed(&mut self) -> io::Result<bool> {
        let pending = self.pending.take();
        let Some(now) = FileVersion::of(&self.path)? else { return Ok(false) };
        if self.seen.is_some_and(|seen| seen.hash == now.hash) {
            return Ok(false);
        }
        if pending != Some(now) {
            self.pending = Some(now);
            return Ok(false);
        }
        self.seen = Some(now);
        Ok(true)
    }

    /// Whether the last look saw other content, which counts when the next one sees it again.
    pub const fn is_settling(&self) -> bool {
        self.pending.is_some()
    }

    /// What the file holds counts as other content, once it has settled, whatever that is: what it held before was not taken.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}

impl FileVersion {
    /// Nothing comes of an empty file, and of what can be read only once (a pipe) or might block. A directory is what is left
    /// where a file that is not there was to be mounted.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
        }
        if !metadata.is_file() {
            return Ok(None);
        }
        let file = open_regular(path)?;
        let mark = FileStat::of(&file.metadata()?);
        // It may be a secret. With room for all of it from the start nothing is left behind.
        let room = usize::try_from(mark.size.min(BYTES_MAX)).unwrap_or(0) + 1;
        let mut content = Zeroizing::new(Vec::with_capacity(room));
        file.take(BYTES_MAX).read_to_end(&mut content)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&content);
        Ok((!content.is_empty()).then(|| Self { mark, hash: hasher.finish() }))
    }
}

/// Watches several files as one: what one of them holds may be of no use without what another does.
#[derive(Clone, Debug)]
pub struct WatchSet {
    paths: Vec<PathBuf>,
    /// What was taken of each; nothing of those that could not be read.
    seen: Option<Vec<Option<FileVersion>>>,
    /// As in [`Watch`].
    pending: Option<Vec<Option<FileVersion>>>,
}

/// How files are that are watched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetLook {
    /// They hold what they held.
    Same,
    /// One of them holds something else, and may be about to be written.
    Settling,
    /// Other content, and all are as they were in the look before.
    Changed,
}

impl WatchSet {
    /// Watches these paths, from what they hold now on, as [`Watch::new`] does.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let mut set = Self { paths, seen: None, pending: None };
        set.seen = Some(set.versions());
        set
    }

    /// How they are. That they have changed is said once, and only when all were the same in two looks. One that is away, or
    /// cannot be read, is other content: whoever reads it says why.
    pub fn look(&mut self) -> SetLook {
        let pending = self.pending.take();
        let now = self.versions();
        let hashes = |versions: &[Option<FileVersion>]| -> Vec<_> {
            versions.iter().map(|version| version.map(|version| version.hash)).collect()
        };
        if self.seen.as_ref().is_some_and(|seen| hashes(seen) == hashes(&now)) {
            return SetLook::Same;
        }
        if pending.as_ref() != Some(&now) {
            self.pending = Some(now);
            return SetLook::Settling;
        }
        self.seen = Some(now);
        SetLook::Changed
    }

    /// Whatever they hold counts as other content, once it has settled: it was of no use.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    fn versions(&self) -> Vec<Option<FileVersion>> {
        self.paths.iter().map(|path| FileVersion::of(path).ok().flatten()).collect()
    }
}

impl FileStat {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::io::Write as _;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    struct Scene {
        dir: TempDir,
        watch: Watch,
    }

    fn scene(content: &str) -> Scene {
        let dir = TempDir::new().expect("a directory");
        fs::write(dir.path().join("f.toml"), content).expect("written");
        let watch = Watch::new(dir.path().join("f.toml"));
        Scene { dir, watch }
    }

    impl Scene {
        fn file(&self) -> PathBuf {
            self.dir.path().join("f.toml")
        }

        /// What three looks in a row say.
        fn looks(&mut self) -> [bool; 3] {
            [(); 3].map(|()| self.watch.changed().expect("a file"))
        }
    }

    const CHANGED_ONCE: [bool; 3] = [false, true, false];
    const UNCHANGED: [bool; 3] = [false; 3];

    #[test]
    fn new_content_is_told_once_when_it_has_settled() {
        let mut scene = scene("a = 1");
        assert_eq!(scene.looks(), UNCHANGED);
        fs::write(scene.file(), "a = 2").expect("written");
        assert_eq!(scene.looks(), CHANGED_ONCE);
        fs::write(scene.file(), "a = 3").expect("written");
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn the_same_content_written_again_is_no_change() {
        let mut scene = scene("a = 1");
        fs::write(scene.file(), "a = 1").expect("written");
        assert_eq!(scene.looks(), UNCHANGED);
        // And back again before it was told.
        fs::write(scene.file(), "a = 2").expect("written");
        assert!(!scene.watch.changed().expect("a file"));
        fs::write(scene.file(), "a = 1").expect("written");
        assert_eq!(scene.looks(), UNCHANGED);
    }

    #[test]
    fn what_was_forgotten_is_new_again() {
        let mut scene = scene("a = 1");
        scene.watch.forget();
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn a_file_renamed_over_it_is_seen_even_with_the_old_times() {
        let mut scene = scene("a = 1");
        let other = scene.dir.path().join("other");
        fs::write(&other, "a = 2").expect("written");
        let modified = fs::metadata(scene.file()).and_then(|metadata| metadata.modified()).expect("a time");
        File::open(&other).and_then(|file| file.set_modified(modified)).expect("set");
        fs::rename(&other, scene.file()).expect("renamed");
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn a_directory_of_symlinks_swapped_under_it_is_seen() {
        let mut scene = scene("unused");
        let root = scene.dir.path().to_owned();
        for (version, content) in [("v1", "a = 1"), ("v2", "a = 2")] {
            fs::create_dir(root.join(version)).expect("a directory");
            fs::write(root.join(version).join("c.toml"), content).expect("written");
        }
        symlink("v1", root.join("data")).expect("a link");
        symlink("data/c.toml", root.join("c.toml")).expect("a link");
        scene.watch = Watch::new(root.join("c.toml"));
        assert_eq!(scene.looks(), UNCHANGED);
        symlink("v2", root.join("data_new")).expect("a link");
        fs::rename(root.join("data_new"), root.join("data")).expect("swapped");
        fs::remove_dir_all(root.join("v1")).expect("removed");
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn a_file_that_is_being_written_is_told_when_it_is_whole() {
        let mut scene = scene("a = 1");
        let mut file = OpenOptions::new().write(true).truncate(true).open(scene.file()).expect("open");
        assert_eq!(scene.looks(), UNCHANGED, "cut off");
        for part in ["a = ", "2\n", "b = 3\n"] {
            file.write_all(part.as_bytes()).expect("written");
            assert!(!scene.watch.changed().expect("a file"), "still growing");
        }
        assert!(scene.watch.changed().expect("a file"));
        assert_eq!(scene.looks(), UNCHANGED);
    }

    #[test]
    fn a_file_that_is_away_is_an_error_until_it_is_back() {
        let mut scene = scene("a = 1");
        fs::remove_file(scene.file()).expect("removed");
        assert_eq!(scene.watch.changed().expect_err("away").kind(), io::ErrorKind::NotFound);
        fs::write(scene.file(), "a = 1").expect("written");
        assert_eq!(scene.looks(), UNCHANGED);
        fs::remove_file(scene.file()).expect("removed");
        assert!(scene.watch.changed().is_err());
        fs::write(scene.file(), "a = 2").expect("written");
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn a_directory_in_its_place_is_an_error_until_there_is_a_file_again() {
        let mut scene = scene("a = 1");
        fs::remove_file(scene.file()).expect("removed");
        fs::create_dir(scene.file()).expect("a directory");
        for _ in 0..3 {
            assert_eq!(scene.watch.changed().expect_err("no file").kind(), io::ErrorKind::IsADirectory);
        }
        fs::remove_dir(scene.file()).expect("removed");
        fs::write(scene.file(), "a = 2").expect("written");
        assert_eq!(scene.looks(), CHANGED_ONCE);
    }

    #[test]
    fn a_file_that_was_not_there_at_first_is_a_change() {
        let dir = TempDir::new().expect("a directory");
        let mut watch = Watch::new(dir.path().join("f.toml"));
        assert!(watch.changed().is_err());
        fs::write(dir.path().join("f.toml"), "a = 1").expect("written");
        assert!(!watch.changed().expect("a file"));
        assert!(watch.changed().expect("a file"));
    }

    #[test]
    fn files_watched_together_have_changed_when_all_have_settled() {
        let dir = TempDir::new().expect("a directory");
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        fs::write(&one, "1").expect("written");
        let mut set = WatchSet::new(vec![one.clone(), two.clone()]);
        assert_eq!(set.look(), SetLook::Same, "one is away, as it was");
        fs::write(&one, "2").expect("written");
        assert_eq!(set.look(), SetLook::Settling);
        fs::write(&two, "2").expect("written");
        assert_eq!([(); 4].map(|()| set.look()), [SetLook::Settling, SetLook::Changed, SetLook::Same, SetLook::Same]);
        fs::write(&one, "1").expect("written");
        assert_eq!(set.look(), SetLook::Settling);
        fs::write(&one, "2").expect("written");
        assert_eq!(set.look(), SetLook::Same, "it is what it was");
        set.forget();
        assert_eq!([(); 3].map(|()| set.look()), [SetLook::Settling, SetLook::Changed, SetLook::Same]);
        fs::remove_file(&two).expect("removed");
        assert_eq!([(); 3].map(|()| set.look()), [SetLook::Settling, SetLook::Changed, SetLook::Same]);
    }
}
