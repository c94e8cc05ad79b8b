//! Arguments → configuration → `server::run` → exit code.

use std::{
    io::{Stdout, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{
    Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};
use shardgate::{
    accounts::cli::{self, UserCommand},
    config::{self, Config, Mistakes, env, watch::Watch},
    demo,
    server::{self, CUT, ProcessEnd},
    telemetry::log,
    top,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A thread-per-core API gateway and WebSocket hub.
///
/// Exit codes: 0 it ended as asked; 1 it could not start or go on; 2 the arguments or the configuration are wrong;
/// 3 it ended with requests refused or cut off.
#[derive(Debug, Parser)]
#[command(name = "shardgate", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM. SIGHUP reloads the configuration; a second SIGTERM ends at once.
    Run {
        /// The configuration file. Without it: `$SHARDGATE_CONFIG`, else ./shardgate.toml if there is one, else defaults.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run the gateway on port 3000 in front of three sample services, and say what to try.
    Demo {
        /// Serve HTTPS and secure WebSockets as well, with a certificate made for this run. On port 3443 unless another is named.
        #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "3443")]
        tls: Option<u16>,
    },
    /// Serve as an instance of one of the demo's services until standard input ends.
    #[command(hide = true)]
    DemoService {
        service: demo::Service,
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Check a configuration and report every mistake in it, and in the files of keys and certificates that it names.
    Check {
        /// The configuration file; see `run` for the one that is taken without it.
        file: Option<PathBuf>,
        /// Do not open the files that it names: they are on another machine, say.
        #[arg(long)]
        no_files: bool,
    },
    /// Print the configuration in force, defaults and environment included.
    Config {
        /// The configuration file; see `run` for the one that is taken without it.
        file: Option<PathBuf>,
        /// Print the JSON schema of configuration files instead.
        #[arg(long)]
        schema: bool,
    },
    /// Make the tables of users and of the access log's rows, or bring them up to date.
    Migrate {
        /// The configuration file; see `run` for the one that is taken without it.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Add, list and change users.
    User {
        /// The configuration file; see `run` for the one that is taken without it.
        #[arg(long, value_name = "FILE", global = true)]
        config: Option<PathBuf>,
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Show what goes on in a gateway, in a terminal: the operator's listener is asked once a second.
    Top {
        /// The operator's listener.
        #[arg(long, default_value = "http://127.0.0.1:3001")]
        url: String,
        /// A file with the certificates that an https listener's own is checked with, instead of those of the system.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// A file with an operator's token, where the listener asks for one to be read.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Print it as plain text, once.
        #[arg(long)]
        once: bool,
    },
    /// Print the version.
    Version,
}

/// The exit code for wrong arguments and configurations, as clap has it.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    match arguments().command {
        Command::Run { config } => with_config(config, serve),
        Command::Demo { tls } => match config::resolve(None, &demo::environment(env::process())) {
            Ok(config) => finish(demo::run(config, tls)),
            Err(mistakes) => wrong(&mistakes),
        },
        Command::DemoService { service, port } => finish(demo::serve(service, port).map(|()| ProcessEnd::Drained)),
        Command::Check { file, no_files } => with_config(file, |config, watch| {
            for warning in server::warnings(&config) {
                eprintln!("warning: {warning}");
            }
            let mut wrong = Vec::new();
            if !no_files {
                for warning in server::file_warnings(&config) {
                    eprintln!("warning: {warning}");
                }
                wrong = server::check_files(&config);
            }
            if !wrong.is_empty() {
                eprintln!("{}", wrong.join("\n"));
                return ExitCode::from(WRONG);
            }
            let source = watch.map_or_else(
                || "the defaults and the environment".to_owned(),
                |watch| watch.path().display().to_string(),
            );
            let (routes, upstreams) =
                (counted(config.routes.len(), "route"), counted(config.upstreams.len(), "upstream"));
            let listeners: Vec<_> = config.public_listeners().map(|listener| listener.address).collect();
            let listeners = server::listed(&listeners, " and ");
            print(&format!("{source}: no mistakes; {routes}, {upstreams}; listens on {listeners}\n"))
        }),
        Command::Config { schema: true, .. } => print(&format!("{:#}\n", config::docs::schema())),
        Command::Config { file, .. } => with_config(file, |config, _| print(&config.to_toml())),
        Command::Migrate { config } => change(config, server::migrate),
        Command::User { config, command } => change(config, |config, output| cli::user(command, config, output)),
        Command::Top { url, ca, token_file, once } => {
            finish(top::run(&top::Options { url, ca, token_file, once }).map(|()| ProcessEnd::Drained))
        }
        Command::Version => print(concat!("shardgate ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

/// The arguments. A file that stands where `--config FILE` is wanted is told of as that.
fn arguments() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        let context = error.get(ContextKind::InvalidArg).map(ToString::to_string);
        let _ = error.print();
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(file) = context.filter(|argument| !argument.starts_with('-'))
            && let Some(command @ ("run" | "migrate" | "user")) = std::env::args().nth(1).as_deref()
        {
            eprintln!("\nThe configuration file has a name before it: shardgate {command} --config {file}");
        }
        std::process::exit(error.exit_code())
    })
}

fn serve(config: Config, watch: Option<Watch>) -> ExitCode {
    if let Err(error) = log::init(&config.log.level, config.log.format) {
        eprintln!("shardgate: {error}");
        return ExitCode::from(WRONG);
    }
    // All of it at once, and before anything is made.
    let mistakes = server::check_files(&config);
    if !mistakes.is_empty() {
        eprintln!("{}", mistakes.join("\n"));
        return ExitCode::from(WRONG);
    }
    finish(server::run(config, watch, Box::new(|_, _| ())))
}

/// Finds and loads the configuration, or reports every mistake in it.
fn with_config(file: Option<PathBuf>, act: impl FnOnce(Config, Option<Watch>) -> ExitCode) -> ExitCode {
    let path = config::find(file, &env::process());
    // Before the file is read, so that no change between the two is missed.
    let watch = path.as_deref().map(Watch::new);
    match config::load(path.as_deref()) {
        Ok(config) => act(config, watch),
        Err(mistakes) => wrong(&mistakes),
    }
}

fn wrong(mistakes: &Mistakes) -> ExitCode {
    eprintln!("{mistakes}");
    ExitCode::from(WRONG)
}

/// Runs a command on what the gateway keeps; the log goes to standard error and tells trouble only.
fn change(file: Option<PathBuf>, act: impl FnOnce(&Config, &mut Stdout) -> anyhow::Result<()>) -> ExitCode {
    with_config(file, |config, _| {
        let outcome = log::init("warn", config.log.format)
            .map_err(Into::into)
            .and_then(|()| act(&config, &mut std::io::stdout()));
        finish(outcome.map(|()| ProcessEnd::Drained))
    })
}

/// Reports an error with what led to it.
fn finish(outcome: anyhow::Result<ProcessEnd>) -> ExitCode {
    match outcome {
        Ok(ProcessEnd::Drained) => ExitCode::SUCCESS,
        Ok(ProcessEnd::Cut) => ExitCode::from(CUT),
        Err(error) => {
            eprintln!("shardgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output; a reader that left early is no failure of ours.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
