//! `shardgate top`: what goes on, in a terminal. It asks the operator's listener for the same document as the dashboard, once a
//! second; with `--once` it prints it as plain text.
//!
//! What it is told is of another process, perhaps of another version: it is bounded, and nothing in it reaches the terminal but
//! as text.

mod ask;
mod draw;
mod keys;
mod live;
mod text;
mod view;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use ask::Source;

use crate::config::SecretFile;

/// Longer tokens fit no field.
const TOKEN_BYTES_MAX: usize = 2048;

/// What to show, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the operator's listener is: `http://host:port`, or `https://host:port`.
    pub url: String,
    /// The file with the certificates that its own is checked with, instead of those of the system.
    pub ca: Option<PathBuf>,
    /// The file that holds a token, where reading asks for one.
    pub token_file: Option<PathBuf>,
    /// Print plain text, once.
    pub once: bool,
}

/// Shows it until the user has enough.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut source = Source::new(&options.url, options.ca.as_deref())?;
    if let Some(path) = &options.token_file {
        let read = SecretFile::read(path, TOKEN_BYTES_MAX).map_err(|error| error.to_string());
        let token = read.and_then(|file| file.secret(path)).map_err(anyhow::Error::msg);
        source.authorise(&token.with_context(|| format!("the token in {} cannot be used", path.display()))?)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if options.once {
        let state = runtime.block_on(source.ask())?;
        let printed = std::io::stdout().write_all(text::plain(&state).as_bytes());
        // A reader that left early is no failure of ours.
        return match printed {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        };
    }
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        bail!(
            "this needs a terminal; `shardgate top --once` prints the same as text, and {}/api/state is JSON",
            options.url
        );
    }
    live::run(runtime, source)
}
