//! The configuration file, looked at and read on a thread that may wait: a file system that hangs holds up neither operators
//! nor signals.

use std::{future::pending, io, path::Path};

use super::super::readers::{NotRead, Readers, Reading};
use crate::config::{self, Config, watch::Watch};

/// One per process, on the control thread.
pub(super) struct ConfigFile {
    /// As it was before the look under way, if there is one.
    watch: Watch,
    readers: Readers,
    under_way: Option<LookUnderWay>,
    /// Why the file is to be read once that look has ended.
    wanted: Option<&'static str>,
    /// Why it could not be looked at last, while it cannot.
    away: Option<String>,
}

/// There is one at a time, also while it hangs.
struct LookUnderWay {
    reading: Reading<(Watch, Found)>,
    /// Why the file is read whatever it holds, if it is.
    why: Option<&'static str>,
}

/// What has come of a look.
pub(super) enum Found {
    /// The file is as it was.
    Same,
    /// It cannot be looked at.
    Away(io::Error),
    /// The look takes too long and goes on; whether the file was to be read.
    Late { why: NotRead, is_reload: bool },
    /// The file was read for this reason.
    Read(&'static str, Result<Box<Config>, String>),
}

impl ConfigFile {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, readers: Readers::new(1), under_way: None, wanted: None, away: None }
    }

    pub(super) fn path(&self) -> &Path {
        self.watch.path()
    }

    /// Looks whether the file has changed, unless a look is under way, and if so reads it.
    pub(super) fn look(&mut self) {
        if self.under_way.is_none() {
            self.begin(None);
        }
    }

    /// Reads the file for this reason, as it is from now on.
    pub(super) fn read(&mut self, why: &'static str) {
        match &mut self.under_way {
            None => self.begin(Some(why)),
            // Whoever asks while it hangs is told so at once.
            Some(look) => {
                self.wanted = Some(why);
                look.reading.remind();
            }
        }
    }

    /// Takes whether it can be looked at, or why not; says whether that is news. It is looked at each second.
    pub(super) fn becomes(&mut self, away: Option<String>) -> bool {
        let is_news = self.away != away;
        self.away = away;
        is_news
    }

    fn begin(&mut self, why: Option<&'static str>) {
        let watch = self.watch.clone();
        self.under_way = Some(LookUnderWay { reading: self.readers.read(move || look_at(watch, why)), why });
    }

    /// What comes of the look under way. Dropping the future loses nothing.
    pub(super) async fn found(&mut self) -> Found {
        let Some(look) = &mut self.under_way else { return pending().await };
        let ended = look.reading.outcome().await;
        if let Err(why @ NotRead::Late(_)) = ended {
            return Found::Late { why, is_reload: self.wanted.or(look.why).is_some() };
        }
        self.under_way = None;
        let found = match ended {
            Ok((watch, found)) => {
                self.watch = watch;
                found
            }
            Err(why) => Found::Away(io::Error::other(why)),
        };
        if let Some(why) = self.wanted.take() {
            self.begin(Some(why));
        }
        found
    }
}

fn look_at(mut watch: Watch, why: Option<&'static str>) -> (Watch, Found) {
    let why = match why {
        Some(why) => {
            // What is read now is no change to be found later.
            watch = Watch::new(watch.path());
            why
        }
        None => match watch.changed() {
            Ok(true) => "the file changed",
            Ok(false) => return (watch, Found::Same),
            Err(error) => return (watch, Found::Away(error)),
        },
    };
    let read = read(watch.path());
    (watch, Found::Read(why, read))
}

fn read(path: &Path) -> Result<Box<Config>, String> {
    // A pipe was read at the start, and nobody may write to it any more.
    config::open_regular(path).map_err(|error| format!("{}: the file cannot be read: {error}", path.display()))?;
    config::load(Some(path)).map(Box::new).map_err(|mistakes| mistakes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_the_file_is_away_is_news_once() {
        let mut file = ConfigFile::new(Watch::new("/nowhere"));
        let looks = [None, Some("gone"), Some("gone"), Some("no right"), Some("no right"), None, None];
        let news = looks.map(|away| file.becomes(away.map(str::to_owned)));
        assert_eq!(news, [false, true, false, true, false, true, false]);
    }
}
