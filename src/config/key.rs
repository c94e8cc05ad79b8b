//! What the table of keys is made of: sections, keys, and what may be written for one. The table is `keys`.

/// A table of the file and its keys.
#[derive(Debug)]
pub struct Section {
    /// `http`, `upstreams.<name>`, `routes`, `routes.request_headers`.
    pub name: &'static str,
    /// How often it stands in the file.
    pub shape: Shape,
    /// What it is for, a sentence.
    pub about: &'static str,
    /// Its keys, in the order in which they are documented and printed.
    pub keys: &'static [Key],
    /// The sections inside it, as its entries write them: `request_headers` in `routes`, `keys` in `auth`.
    pub inside: &'static [&'static str],
}

/// How often a section stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Once: `[http]`. Only its keys have environment variables.
    Once,
    /// Once for each name that the user chose: `[upstreams.<name>]`.
    Named,
    /// Any number of times, in order: `[[routes]]`, `[[auth.keys]]`.
    Listed,
    /// Once inside each entry of a listed section: `[routes.request_headers]`.
    Inside,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Fallback,
    /// A value that is not the default, as TOML; the schema shows it and the tests prove with it that the key acts.
    pub example: &'static str,
    /// What its number counts for.
    pub scope: Scope,
    /// What applies another value.
    pub change: Change,
    /// What it does, in Markdown, one line.
    pub about: &'static str,
}

/// What may be written for a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A port; 0 is for the key to explain.
    Port,
    /// A whole number in this range, both ends included.
    Number(u64, u64),
    /// A share, from 0 to 1.
    Ratio,
    /// A size in this range: `"32KiB"` or a number of bytes.
    Size(u64, u64),
    /// A duration in this range of milliseconds: `"10s"`.
    Duration(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text of this form, which the key's type checks.
    Text(&'static str),
    /// Text of this form that is shown nowhere, whatever becomes of it.
    Secret(&'static str),
    /// A list of texts of this form.
    List(&'static str),
    /// A list of servers: each a text, or a table.
    Instances,
    /// A table of field names and values.
    Fields,
}

/// What holds when a key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This, as TOML.
    Value(&'static str),
    /// Something else, told in words.
    Unset(&'static str),
    /// Nothing: it must be written.
    Required,
}

impl Fallback {
    /// Whether it is this value.
    pub fn is(self, toml: &str) -> bool {
        matches!(self, Self::Value(value) if value == toml)
    }
}

/// What a number counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each connection, request or answer by itself.
    Each,
    /// Each shard by itself.
    Shard,
    /// All shards of the process together.
    Process,
}

impl Scope {
    /// As the documentation writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Shard => "shard",
            Self::Process => "process",
        }
    }
}

/// What applies another value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A reload, from the next connection or request on.
    Reload,
    /// A new process; a reload says so and goes on with the old value.
    Restart,
}

impl Change {
    /// As the documentation writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
        }
    }
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Whether only a new process applies another value of one of its keys.
    pub fn needs_restart(&self) -> bool {
        self.keys.iter().any(|key| key.change == Change::Restart)
    }

    /// The environment variable of a key; only keys of sections that stand once have one.
    pub fn variable(&self, key: &Key) -> Option<String> {
        let variable = || format!("SHARDGATE_{}_{}", self.name, key.name).to_ascii_uppercase();
        (self.shape == Shape::Once).then(variable)
    }
}
