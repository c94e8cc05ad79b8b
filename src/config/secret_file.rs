//! Files that hold secrets: who may be able to read one for it to be used. One rule for all of them.
//!
//! Others may read none of it. A group may, where the file is root's or this user's: Kubernetes (`fsGroup`), systemd
//! (`LoadCredential`) and access-control lists hand keys on in this way, and whoever may put a group on such a file may read
//! it anyway.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

/// What a file held, and who may read it.
#[derive(Debug)]
pub struct SecretFile {
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
    owner: u32,
}

impl SecretFile {
    /// Reads a file of at most so many bytes.
    pub fn read(path: &Path, bytes_max: usize) -> io::Result<Self> {
        let file = open_regular(path)?;
        let metadata = file.metadata()?;
        // Room for all of it from the start: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
        }
        Ok(Self { bytes, mode: metadata.mode() & 0o7777, owner: metadata.uid() })
    }

    /// What it holds, where that is no secret.
    pub fn public(&self) -> &[u8] {
        &self.bytes
    }

    /// What it holds, if nobody can read it who should not.
    pub fn secret(self, path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
        match wrong_reader(self.mode, self.owner, rustix::process::geteuid().as_raw(), path) {
            None => Ok(self.bytes),
            Some(wrong) => Err(wrong),
        }
    }

    /// What it holds, and who can read it who should not: for keys that are better used than not. What everybody can write is
    /// refused.
    pub fn secret_or_doubt(self, path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<String>), String> {
        if self.mode & 0o002 != 0 {
            let found = format!("(mode {:04o}, owner {})", self.mode, self.owner);
            return Err(format!(
                "everybody may write to the file {found}; take that away: chmod o= {}",
                path.display()
            ));
        }
        let doubt = wrong_reader(self.mode, self.owner, rustix::process::geteuid().as_raw(), path);
        Ok((self.bytes, doubt))
    }
}

/// Opens a regular file. Nothing that could block is opened: a pipe that nobody writes to would hold up the start.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let not_blocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = OpenOptions::new().read(true).custom_flags(not_blocking).open(path);
    let file = opened.map_err(|error| explained(path, error))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

/// The same error, in one wording wherever a file is named: that it is not there, where it was looked for, and what to do.
pub(super) fn explained(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    let text = match std::path::absolute(path) {
        Ok(whole) if path.is_relative() => format!(
            "there is no {}, and relative paths are looked for from the working directory; make it, or name another one",
            whole.display()
        ),
        _ => "there is no such file; make it, or name another one".to_owned(),
    };
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// Who may read a file and should not, and what to do about it.
fn wrong_reader(mode: u32, owner: u32, user: u32, path: &Path) -> Option<String> {
    let path = path.display();
    let found = format!("(mode {mode:04o}, owner {owner})");
    if mode & 0o007 != 0 {
        Some(format!("everybody may use the file {found}; take that away: chmod o= {path}"))
    } else if mode & 0o070 != 0 && owner != 0 && owner != user {
        Some(format!(
            "a group may use the file, and it is neither root's nor this user's {found}; chmod g= {path}, or chown {user} {path}"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_told_with_where_it_was_looked_for() {
        let told = |path: &str| open_regular(Path::new(path)).expect_err("nobody has it").to_string();
        assert_eq!(told("/nowhere/a.pem"), "there is no such file; make it, or name another one");
        let here = std::env::current_dir().expect("there is one").join("no/where.pem");
        let wanted = format!("there is no {}, and relative paths are looked for", here.display());
        assert!(told("no/where.pem").starts_with(&wanted), "{}", told("no/where.pem"));
    }

    #[test]
    fn a_group_may_read_what_is_roots_or_ones_own_and_others_nothing() {
        const USER: u32 = 1000;
        for (mode, owner, is_right) in [
            (0o600, USER, true),
            (0o400, 0, true),
            (0o440, 0, true),
            (0o640, USER, true),
            (0o660, USER, true),
            (0o2440, 0, true),
            (0o600, 7, true),
            (0o640, 7, false),
            (0o604, USER, false),
            (0o644, 0, false),
            (0o602, USER, false),
        ] {
            let wrong = wrong_reader(mode, owner, USER, Path::new("/k"));
            assert_eq!(wrong.is_none(), is_right, "{mode:o} {owner}: {wrong:?}");
            if let Some(wrong) = wrong {
                let told = [format!("mode {mode:04o}"), format!("owner {owner}"), "chmod".to_owned()];
                assert!(told.iter().all(|part| wrong.contains(part)), "{wrong}");
            }
        }
    }
}
