//! What is wrong with a configuration, gathered so that all of it is told at once.

use std::fmt;
use std::path::Path;

/// Where a value was written. In the order in which mistakes are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Location {
    /// This line of the file, counted from 1.
    Line(usize),
    /// The file, where nothing is written.
    File,
    /// This environment variable.
    Variable(String),
}

/// One thing that is wrong: where, which key, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    place: Location,
    /// `shardgate.toml:12`, or `environment`.
    pub at: String,
    /// What is wrong: `listener.port is 99999`.
    pub what: String,
    /// What would be right: `ports go from 1 to 65535`.
    pub right: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, what, right, .. } = self;
        if right.is_empty() { write!(f, "{at}: {what}") } else { write!(f, "{at}: {what}; {right}") }
    }
}

/// Everything that is wrong with a configuration, in the file's order; one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// A single one about the file as a whole.
    pub(super) fn about_file(path: &Path, what: String, right: &str) -> Self {
        let at = path.display().to_string();
        Self(vec![Mistake { place: Location::File, at, what, right: right.to_owned() }])
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if count == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Gathers mistakes and warnings.
#[derive(Debug)]
pub(super) struct Report {
    file: String,
    mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(file: Option<&Path>) -> Self {
        let file = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
        Self { file, mistakes: Vec::new(), warnings: Vec::new() }
    }

    /// This key has this value, and this would be right.
    pub(super) fn wrong_at(&mut self, place: Location, key: &str, shown: &str, right: &str) {
        let what = match &place {
            Location::Variable(variable) => format!("{variable} is {shown}"),
            _ => format!("{key} is {shown}"),
        };
        self.push(place, what, right);
    }

    pub(super) fn not_toml(&mut self, place: Location, message: &str) {
        self.push(place, format!("this is no TOML: {}", message.replace('\n', ", ")), "");
    }

    pub(super) fn push(&mut self, place: Location, what: String, right: &str) {
        let at = match &place {
            Location::Line(line) => format!("{}:{line}", self.file),
            Location::File => self.file.clone(),
            Location::Variable(_) => "environment".to_owned(),
        };
        self.mistakes.push(Mistake { place, at, what, right: right.to_owned() });
    }

    pub(super) fn warn(&mut self, place: &Location, warning: &str) {
        self.warnings.push(match place {
            Location::Line(line) => format!("{}:{line}: {warning}", self.file),
            Location::File | Location::Variable(_) => warning.to_owned(),
        });
    }

    /// Whether something is wrong there, so that the default stands in for what is written.
    pub(super) fn has_mistake_at(&self, place: &Location) -> bool {
        self.mistakes.iter().any(|mistake| mistake.place == *place)
    }

    pub(super) fn is_clean(&self) -> bool {
        self.mistakes.is_empty()
    }

    pub(super) fn into_mistakes(mut self) -> Mistakes {
        self.mistakes.sort_by(|one, two| one.place.cmp(&two.place));
        Mistakes(self.mistakes)
    }
}
