//! The operator's log on standard error: start, stop, reload and trouble, never a line for a request.
//!
//! People get text, programs one JSON object a line. Whatever a message quotes from outside, a line stays one line and
//! holds no control character but our own colours.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, Layer as Lines, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::escape::push_line;
use crate::config::{LogFormat, env};

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

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for programs.
    Json,
    /// Text for people.
    Text {
        /// With a terminal's colours (ECMA-48).
        is_colourful: bool,
    },
}

impl Format {
    /// What is wanted of lines that go to standard error or output, a terminal or not.
    pub fn wanted(format: LogFormat, is_terminal: bool) -> Self {
        let is_colourful = || is_terminal && !env::process().contains_key("NO_COLOR");
        match format {
            LogFormat::Auto if !is_terminal => Self::Json,
            LogFormat::Json => Self::Json,
            LogFormat::Auto | LogFormat::Text => Self::Text { is_colourful: is_colourful() },
        }
    }
}

/// What is let through, while the process runs.
static FILTER: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// Starts the log of the process, once.
pub fn init(level: &str, format: LogFormat) -> Result<(), InitError> {
    let format = Format::wanted(format, io::stderr().is_terminal());
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let filtered = tracing_subscriber::registry().with(filter);
    match format {
        Format::Json => filtered.with(json(io::stderr)).try_init()?,
        Format::Text { is_colourful } => filtered.with(text(is_colourful, io::stderr)).try_init()?,
    }
    // Nobody else has got this far: the log starts once.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Changes what the log of this process lets through, at once and until it is changed again: a level, or a list such as
/// `info,shardgate::upstream=debug`. A level that means nothing changes nothing.
pub fn set_level(level: &str) -> Result<(), InitError> {
    let filter = filter(level)?;
    if let Some(handle) = FILTER.get() {
        // It fails only where the log is gone.
        let _ = handle.reload(filter);
    }
    Ok(())
}

/// Whether [`set_level`] takes this level.
pub fn check_level(level: &str) -> Result<(), InitError> {
    filter(level).map(drop)
}

/// The pool of connections tells of each that breaks; the store of users tells of the server, once. The resolver tells of
/// every answer that is no good; whoever follows names tells of the name. Whoever names such a target, or another that begins
/// so, hears it.
const QUIET: &str = "deadpool=off,hickory=off";

/// Who has changed what: said at WARN whatever the level is, so that nobody can keep it out of the log by the level first.
pub const AUDIT: &str = "audit";

/// A longer list is nobody's.
const LEVEL_BYTES_MAX: usize = 1024;

fn filter(level: &str) -> Result<Targets, InitError> {
    let refused = |source| InitError::Level { level: level.to_owned(), source };
    // The parser takes a single word that is no level for the name of a module, and then logs nothing else.
    let means_a_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    if level.len() > LEVEL_BYTES_MAX || !level.split(',').any(|part| means_a_level(part.trim())) {
        return Err(refused(None));
    }
    let targets: Targets = format!("{QUIET},{level}").parse().map_err(|source| refused(Some(source)))?;
    Ok(targets.with_target(AUDIT, Level::WARN))
}

fn json<S, W>(output: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    Lines::new()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(EscapingWriter(output))
}

fn text<S, W>(is_colourful: bool, output: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    Lines::new().event_format(ReadableFormat { is_colourful }).with_writer(output)
}

/// Lines for people: time, level, sentence, then what belongs to it.
struct ReadableFormat {
    is_colourful: bool,
}

impl<S, F> FormatEvent<S, F> for ReadableFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, F>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = EventText::default();
        event.record(&mut said);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        // Milliseconds do: 2026-11-23T10:15:00.000
        let time = time.get(..23).unwrap_or(&time);
        let level = *event.metadata().level();
        let (dim, bright, plain) = if self.is_colourful { ("\x1b[2m", colour(level), "\x1b[0m") } else { ("", "", "") };
        write!(out, "{dim}{time}Z{plain} {bright}{level:<5}{plain} ")?;
        // Where a line comes from is of use to whoever looks closely only.
        if level >= Level::DEBUG {
            write!(out, "{dim}{}:{plain} ", event.metadata().target())?;
        }
        writeln!(out, "{}{dim}{}{plain}", harmless(&said.message), harmless(&said.fields))
    }
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[1;31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG | Level::TRACE => "\x1b[34m",
    }
}

fn harmless(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    push_line(&mut out, text.as_bytes());
    String::from_utf8(out).unwrap_or_default()
}

/// An event taken apart.
#[derive(Default)]
struct EventText {
    message: String,
    /// ` key=value` for each of the others.
    fields: String,
}

impl Visit for EventText {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_word = !value.is_empty() && !value.contains([' ', '"', '=']);
        match (field.name(), is_word) {
            ("message", _) => self.message.push_str(value),
            (name, true) => _ = write!(self.fields, " {name}={value}"),
            (name, false) => _ = write!(self.fields, " {name}=\"{}\"", value.replace('"', "'")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => _ = write!(self.message, "{value:?}"),
            // What is shown by its `Display` may have blanks.
            _ => self.record_str(field, &format!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.record_str(field, &text);
    }
}

/// Escapes what the formatters leave in a line.
struct EscapingWriter<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for EscapingWriter<M> {
    type Writer = EscapingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter(self.0.make_writer())
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        EscapingWriter(self.0.make_writer_for(meta))
    }
}

impl<W: Write> Write for EscapingWriter<W> {
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
        let level = filter("info,shardgate::telemetry::quiet=error").expect("a level");
        let subscriber = tracing_subscriber::registry().with(level).with(json(output));
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
        tracing::subscriber::with_default(tracing_subscriber::registry().with(text(false, output)), || {
            tracing::info!(path = HOSTILE, "{HOSTILE}");
        });
        let lines = lines(&written);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].find(char::is_control), Some(lines[0].len() - 1), "{lines:?}");
    }

    #[test]
    fn people_read_a_sentence_and_what_belongs_to_it() {
        let (output, written) = output();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(text(true, output)), || {
            let error = io::Error::other("no such \"file\"");
            tracing::warn!(shards = 2, word = "one", %error, "the log is {}", "full");
            tracing::debug!("closely");
        });
        let lines = lines(&written);
        let shown: Vec<_> = lines.iter().map(|line| line.replace('\x1b', "^").split_off("^[2m".len() + 24)).collect();
        expect![[r#"
            ^[0m ^[33mWARN ^[0m the log is full^[2m shards=2 word=one error="no such 'file'"^[0m
            ^[0m ^[34mDEBUG^[0m ^[2mshardgate::telemetry::log::tests:^[0m closely^[2m^[0m
        "#]]
        .assert_eq(&shown.concat());
    }

    #[test]
    fn what_is_let_through_changes_while_it_runs() {
        let (output, written) = output();
        let (layer, handle) = reload::Layer::new(filter("info").expect("a level"));
        let subscriber = tracing_subscriber::registry().with(layer).with(json(output));
        tracing::subscriber::with_default(subscriber, || {
            let say = || {
                tracing::debug!(target: "shardgate::upstream::send", "closely");
                tracing::info!("usual");
            };
            say();
            handle.reload(filter("warn,shardgate::upstream=debug").expect("a list")).expect("it is there");
            say();
            handle.reload(filter("off").expect("a level")).expect("it is there");
            say();
        });
        let said: Vec<_> = lines(&written)
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["message"].to_string())
            .collect();
        assert_eq!(said, ["\"usual\"", "\"closely\""]);
        assert!(set_level("loud").is_err() && check_level("loud").is_err() && set_level("warn").is_ok());
        assert!(set_level(&format!("info,{}", "a=debug,".repeat(200))).is_err(), "too long");
    }

    #[test]
    fn a_level_that_means_nothing_is_refused() {
        let check = |level: &str, expected: &Expect| {
            let error = filter(level).expect_err("no level");
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
