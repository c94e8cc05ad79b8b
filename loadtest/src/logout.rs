//! How long a log-out takes to be seen elsewhere: a user logs in and out at one instance while another is asked with the
//! token, again and again, and streams an answer to it. Plain blocking sockets: one user at a time, and what is measured
//! takes far longer than a wake-up.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::options::Logout;
use crate::report::{self, Conditions};
use crate::{socket, target};

/// A kept connection to one instance.
pub(crate) struct Caller<'url> {
    authority: Cow<'url, str>,
    stream: TcpStream,
    timeout: Duration,
}

/// What an instance said.
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) content: Vec<u8>,
}

impl<'url> Caller<'url> {
    pub(crate) fn connect(url: &'url str, timeout: Duration) -> anyhow::Result<Self> {
        let (authority, _) = target::split_url(url)?;
        let stream = TcpStream::connect(target::resolve(authority, false)?).with_context(|| url.to_owned())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self { authority: authority.into(), stream, timeout })
    }

    /// A connection to an address, made within the timeout.
    pub(crate) fn at(address: SocketAddr, timeout: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self { authority: address.to_string().into(), stream, timeout })
    }

    fn send(&mut self, method: &str, path: &str, token: &str, body: &str) -> io::Result<()> {
        let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let length = match body.len() {
            0 if method == "GET" => String::new(),
            length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{bearer}{length}\r\n{body}", self.authority);
        self.stream.write_all(head.as_bytes())
    }

    /// Asks and waits for the whole answer. A connection that the instance does not keep is made anew.
    pub(crate) fn ask(&mut self, method: &str, path: &str, token: &str, body: &str) -> anyhow::Result<Said> {
        self.send(method, path, token, body)?;
        let mut answer = Answer::new(false);
        let mut content = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while !answer.is_done() {
            let read = self.stream.read(&mut buffer).with_context(|| format!("{method} {path}"))?;
            if read == 0 {
                ensure!(answer.end(), "{method} {path}: the connection was closed before the answer was complete");
                break;
            }
            let taken = answer.take(&buffer[..read], &mut |part| content.extend_from_slice(part));
            taken.map_err(|mistake| anyhow::anyhow!("{method} {path}: {mistake}"))?;
        }
        if !answer.keeps_alive {
            let address = self.stream.peer_addr()?;
            self.stream = TcpStream::connect(address)?;
            self.stream.set_nodelay(true)?;
            self.stream.set_read_timeout(Some(self.timeout))?;
        }
        Ok(Said { status: answer.status, content })
    }
}

/// The access token of a log-in's answer.
pub(crate) fn access_token(content: &[u8]) -> Option<String> {
    let content: Value = serde_json::from_slice(content).ok()?;
    Some(content.get("accessToken")?.as_str()?.to_owned())
}

pub(crate) fn measure(options: &Logout) -> anyhow::Result<ExitCode> {
    let password = std::fs::read_to_string(&options.password_file)
        .with_context(|| format!("--password-file {}", options.password_file.display()))?;
    let mut histograms = Vec::new();
    for name in ["answered_us", "refused_us", "stream_ended_us"] {
        histograms.push((name, Histogram::<u64>::new_with_bounds(100, 600_000_000_000, 3)?));
    }
    let mut here = Caller::connect(&options.at, options.timeout)?;
    let mut there = Caller::connect(&options.seen_from, options.timeout)?;
    let mut failed = 0_u32;
    for nth in 0..options.count {
        match log_out(options, password.trim_end_matches('\n'), &mut here, &mut there) {
            Ok(took_ns) => {
                let each = histograms.iter_mut().zip(took_ns);
                each.for_each(|((_, histogram), ns)| histogram.saturating_record(ns));
            }
            Err(error) => {
                failed += 1;
                eprintln!("log-out {nth}: {error:#}");
                here = Caller::connect(&options.at, options.timeout)?;
                there = Caller::connect(&options.seen_from, options.timeout)?;
            }
        }
    }
    let mut fields = serde_json::Map::new();
    let mut out = io::stdout();
    for (name, histogram) in &histograms {
        let (text, value) = report::quantiles(histogram);
        writeln!(out, "{name:15}  {text}")?;
        fields.insert((*name).to_owned(), value);
    }
    writeln!(out, "{:15}  {}\n{:15}  {failed}", "log-outs", options.count, "failed")?;
    if let Some(file) = &options.json {
        fields.insert("log_outs".to_owned(), json!(options.count));
        fields.insert("failed".to_owned(), json!(failed));
        fields.insert("conditions".to_owned(), Conditions::now().to_json());
        let json = serde_json::to_string_pretty(&fields)?;
        std::fs::write(file, json + "\n").with_context(|| format!("--json {}", file.display()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// One user logs in here, is served there, and logs out here. How long it took, in nanoseconds from the log-out's sending,
/// until it was answered, the token was refused there, and the stream there had ended.
fn log_out(options: &Logout, password: &str, here: &mut Caller, there: &mut Caller) -> anyhow::Result<[u64; 3]> {
    let body = target::login_body(&options.email, password);
    let said = here.ask("POST", "/auth/login", "", &body)?;
    ensure!(said.status == 200, "the log-in was answered {}", said.status);
    let token = access_token(&said.content).context("the log-in's answer has no accessToken")?;
    let stream = begin_stream(options, &token)?;
    let said = there.ask("GET", &options.path, &token, "")?;
    ensure!(said.status < 400, "before the log-out {} was answered {}", options.path, said.status);
    let (tell, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || tell.send(watch(stream)));
        let sent_at = socket::now();
        here.send("POST", "/auth/logout", &token, "")?;
        // The other instance is asked while the log-out is under way: it may know before the answer is here.
        let (answer, answered) = mpsc::channel();
        let logging_out = scope.spawn(move || {
            let outcome = read_status(&mut here.stream);
            let _ = answer.send((outcome, socket::now()));
        });
        let due = sent_at + u64::try_from(options.timeout.as_nanos())?;
        let refused_ns = loop {
            let said = there.ask("GET", &options.path, &token, "")?;
            let now = socket::now();
            if said.status == 401 {
                break now - sent_at;
            }
            ensure!(said.status < 400, "after the log-out {} was answered {}", options.path, said.status);
            ensure!(now < due, "the token is still taken after {:?}", options.timeout);
        };
        let (outcome, answered_at) = answered.recv()?;
        ensure!(outcome? == 204, "the log-out was not answered 204");
        let _ = logging_out.join();
        let ended_at = match ended.recv_timeout(options.timeout) {
            Ok(ended_at) => ended_at?,
            Err(RecvTimeoutError::Timeout) => bail!("the stream goes on after {:?}", options.timeout),
            Err(error) => bail!("the stream was not watched: {error}"),
        };
        Ok([answered_at - sent_at, refused_ns, ended_at.saturating_sub(sent_at)])
    })
}

/// Opens the stream and waits for its first bytes.
fn begin_stream(options: &Logout, token: &str) -> anyhow::Result<TcpStream> {
    let mut caller = Caller::connect(&options.seen_from, options.timeout)?;
    caller.send("GET", &options.stream, token, "")?;
    let mut head = [0; 12];
    caller.stream.read_exact(&mut head).with_context(|| options.stream.clone())?;
    ensure!(head.ends_with(b" 200"), "{} was answered {:?}", options.stream, String::from_utf8_lossy(&head));
    Ok(caller.stream)
}

/// Reads a stream to its end, in order or by a reset, and says when that was.
fn watch(mut stream: TcpStream) -> io::Result<u64> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(socket::now()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(socket::now()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads an answer without content.
fn read_status(stream: &mut TcpStream) -> anyhow::Result<u16> {
    let mut answer = Answer::new(false);
    let mut buffer = [0; 16 * 1024];
    while !answer.is_done() {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection was closed before the answer was complete");
        answer.take(&buffer[..read], &mut |_| {}).map_err(anyhow::Error::msg)?;
    }
    Ok(answer.status)
}
