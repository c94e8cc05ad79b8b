//! The operator's log on standard error: start, stop, reload and trouble, never a line for a request.
//!
//! A terminal gets text, everything else one JSON object a line. Whatever a message quotes from outside, a line stays
//! one line and holds no control character.

use std::io::{self, IsTerminal as _, Write};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::escape::push_line;

/// Why the log did not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The level means nothing.
    #[error(
        "log level is {level:?}; it is off, error, warn, info, debug, trace or a list such as info,shardgate::shard=debug"
    )]
    Level {
        /// As configured.
        level: String,
        /// What the filter's parser says, if it was asked.
        source: Option<ParseError>,
    },
    /// Somebody was first.
    #[error("the log was started twice")]
    Twice(#[from] TryInitError),
}

/// Starts the log of the process, once.
pub fn init(level: &str) -> Result<(), InitError> {
    let format = if io::stderr().is_terminal() { Format::Text } else { Format::Json };
    match format {
        Format::Text => text(level, io::stderr)?.try_init()?,
        Format::Json => json(level, io::stderr)?.try_init()?,
    }
    Ok(())
}

enum Format {
    Text,
    Json,
}

fn filter(level: &str) -> Result<EnvFilter, InitError> {
    let refused = |source| InitError::Level { level: level.to_owned(), source };
    // The parser takes a single word that is no level for the name of a module, and then logs nothing else.
    let means_a_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    if !level.split(',').any(|part| means_a_level(part.trim())) {
        return Err(refused(None));
    }
    // The pool of connections tells of each that breaks; the store of users tells of the server, once. Whoever names the
    // pool's target, or another that begins so, hears it.
    EnvFilter::try_new(format!("deadpool=off,{level}")).map_err(|source| refused(Some(source)))
}

fn json<M>(level: &str, output: M) -> Result<impl Subscriber + Send + Sync, InitError>
where
    M: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false).with_span_list(false);
    Ok(lines.with_env_filter(filter(level)?).with_writer(Harmless(output)).finish())
}

fn text<M>(level: &str, output: M) -> Result<impl Subscriber + Send + Sync, InitError>
where
    M: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // No colours: they are control characters, and none get through.
    let lines = tracing_subscriber::fmt().with_ansi(false);
    Ok(lines.with_env_filter(filter(level)?).with_writer(Harmless(output)).finish())
}

/// Escapes what the formatters leave in a line.
struct Harmless<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Harmless<M> {
    type Writer = Harmless<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Harmless(self.0.make_writer())
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        Harmless(self.0.make_writer_for(meta))
    }
}

impl<W: Write> Write for Harmless<W> {
    /// Takes whole lines, as the formatters write them: one call for each event.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut harmless = Vec::with_capacity(line.len() + 1);
        push_line(&mut harmless, line.strip_suffix(b"\n").unwrap_or(line));
        harmless.push(b'\n');
        self.0.write_all(&harmless)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use expect_test::{Expect, expect};

    use super::*;

    /// Sends what is written, one message a call.
    struct Sending(Sender<Vec<u8>>);

    impl Write for Sending {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn output() -> (impl for<'a> MakeWriter<'a> + Send + Sync + 'static, Receiver<Vec<u8>>) {
        let (sender, written) = channel();
        (move || Sending(sender.clone()), written)
    }

    const HOSTILE: &str = "a\"\n{}\u{1b}[2J\u{7f}\u{9b}\u{2028}z";

    fn lines(written: &Receiver<Vec<u8>>) -> Vec<String> {
        written.try_iter().map(|line| String::from_utf8(line).expect("always UTF-8")).collect()
    }

    #[test]
    fn json_lines_hold_what_was_said_and_nothing_harmful() {
        let (output, written) = output();
        let subscriber = json("info,shardgate::telemetry::quiet=error", output).expect("a level");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(path = HOSTILE, "{HOSTILE}");
            tracing::debug!("below the level");
            tracing::warn!(target: "shardgate::telemetry::quiet", "below its own level");
        });
        let lines = lines(&written);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].find(char::is_control), Some(lines[0].len() - 1), "one line, its newline last");
        let fields: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!((fields["path"].as_str(), fields["message"].as_str()), (Some(HOSTILE), Some(HOSTILE)));
        assert_eq!(fields["level"], "INFO");
    }

    #[test]
    fn text_lines_stay_one_line() {
        let (output, written) = output();
        let subscriber = text("info", output).expect("a level");
        tracing::subscriber::with_default(subscriber, || tracing::info!("{HOSTILE}"));
        let lines = lines(&written);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].find(char::is_control), Some(lines[0].len() - 1), "{lines:?}");
        assert!(lines[0].contains("a\"") && lines[0].ends_with("z\n"), "{lines:?}");
    }

    #[test]
    fn a_level_that_means_nothing_is_refused() {
        let check = |level: &str, expected: &Expect| {
            let error = json(level, output().0).map(drop).expect_err("no level");
            expected.assert_eq(&error.to_string());
        };
        check(
            "loud",
            &expect![[
                r#"log level is "loud"; it is off, error, warn, info, debug, trace or a list such as info,shardgate::shard=debug"#
            ]],
        );
        check(
            "",
            &expect![[
                r#"log level is ""; it is off, error, warn, info, debug, trace or a list such as info,shardgate::shard=debug"#
            ]],
        );
        check(
            "info,shardgate=loud",
            &expect![[
                r#"log level is "info,shardgate=loud"; it is off, error, warn, info, debug, trace or a list such as info,shardgate::shard=debug"#
            ]],
        );
        check(
            "shardgate=debug",
            &expect![[
                r#"log level is "shardgate=debug"; it is off, error, warn, info, debug, trace or a list such as info,shardgate::shard=debug"#
            ]],
        );
    }
}
