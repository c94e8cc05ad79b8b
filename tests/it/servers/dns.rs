//! A server of DNS that answers from a table which the test changes, or does not answer, or badly.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

/// How long a test waits for a question.
const PATIENCE: Duration = Duration::from_secs(15);
/// What fits into an answer by UDP; of what is longer it says that it is cut off (RFC 1035 §4.2.1).
const UDP_BYTES_MAX: usize = 512;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;

/// An SRV record: priority, weight, port, target.
pub(crate) type Srv = (u16, u16, u16, &'static str);

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With what is in the table.
    Table,
    /// With `SERVFAIL`.
    Fail,
    /// Without a word.
    Silent,
    /// That there are no records of any name.
    Empty,
    /// IPv4 from the table, IPv6 with `SERVFAIL`.
    FailsForIpv6,
}

/// A running server. It ends with the test binary.
#[derive(Debug)]
pub(crate) struct Dns {
    address: SocketAddr,
    /// To those who answer by UDP and by TCP.
    changes: [Sender<Change>; 2],
    /// Names that were asked for by UDP.
    questions: Receiver<String>,
}

#[derive(Clone, Debug)]
enum Change {
    Mode(Mode),
    TimeToLive(u32),
    Name(String, Vec<IpAddr>),
    Service(String, Vec<Srv>),
}

/// What one thread answers from.
struct Table {
    changes: Receiver<Change>,
    mode: Mode,
    time_to_live: u32,
    names: BTreeMap<String, Vec<IpAddr>>,
    services: BTreeMap<String, Vec<Srv>>,
}

/// A question.
struct Asked {
    name: String,
    /// What of the answer stands before the records.
    head_bytes: usize,
    answer: Option<Vec<u8>>,
}

impl Dns {
    /// Knows no name yet; what it says lives for no time.
    pub(crate) fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = tcp.local_addr().expect("it is bound");
        let udp = UdpSocket::bind(address).expect("the same port by UDP");
        let (tell, questions) = mpsc::channel();
        let [by_udp, by_tcp] = [(); 2].map(|()| mpsc::channel());
        let changes = [by_udp.0, by_tcp.0];
        thread::spawn(move || serve_udp(&udp, Table::new(by_udp.1), &tell));
        thread::spawn(move || serve_tcp(&tcp, Table::new(by_tcp.1)));
        Self { address, changes, questions }
    }

    /// The key that has it asked.
    pub(crate) fn config(&self) -> String {
        format!("nameservers = [\"{}\"]\n", self.address)
    }

    /// From now on it answers so.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.change(&Change::Mode(mode));
    }

    /// From now on what it says lives for so many seconds.
    pub(crate) fn set_time_to_live(&self, seconds: u32) {
        self.change(&Change::TimeToLive(seconds));
    }

    /// From now on the name has these addresses.
    pub(crate) fn set(&self, name: &str, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) {
        self.change(&Change::Name(name.to_owned(), addresses.into_iter().map(Into::into).collect()));
    }

    /// From now on the name has these SRV records.
    pub(crate) fn set_srv(&self, name: &str, records: &[Srv]) {
        self.change(&Change::Service(name.to_owned(), records.to_vec()));
    }

    fn change(&self, change: &Change) {
        for changes in &self.changes {
            changes.send(change.clone()).expect("it answers");
        }
    }

    /// Waits until this name is asked for.
    #[track_caller]
    pub(crate) fn wait_asked(&self, name: &str) {
        while self.questions.recv_timeout(PATIENCE).expect("a question") != name {}
    }

    /// Whether it is asked anything in this time, or was before and nobody has looked.
    pub(crate) fn is_asked_within(&self, time: Duration) -> bool {
        self.questions.recv_timeout(time).is_ok()
    }
}

impl Table {
    fn new(changes: Receiver<Change>) -> Self {
        Self { changes, mode: Mode::Table, time_to_live: 0, names: BTreeMap::new(), services: BTreeMap::new() }
    }

    /// What is asked for, and what is said; nothing to what is no question.
    fn answer(&mut self, question: &[u8]) -> Option<Asked> {
        for change in self.changes.try_iter() {
            match change {
                Change::Mode(mode) => self.mode = mode,
                Change::TimeToLive(seconds) => self.time_to_live = seconds,
                Change::Name(name, addresses) => drop(self.names.insert(name, addresses)),
                Change::Service(name, records) => drop(self.services.insert(name, records)),
            }
        }
        // RFC 1035 §4.1.1 and §4.1.2: behind a head of twelve bytes stand the labels, a type and a class.
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let length = usize::from(*question.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
            at += length;
        }
        let name = labels.join(".");
        let kind = u16::from_be_bytes(question.get(at..at + 2)?.try_into().ok()?);
        let is_known = self.names.contains_key(&name) || self.services.contains_key(&name);
        let records = self.records(&name, kind);
        let (code, records) = match self.mode {
            Mode::Silent => return Some(Asked { name, head_bytes: 0, answer: None }),
            Mode::Fail => (2, Vec::new()),
            Mode::FailsForIpv6 if kind == TYPE_AAAA => (2, Vec::new()),
            Mode::Empty => (0, Vec::new()),
            Mode::Table | Mode::FailsForIpv6 if !is_known => (3, Vec::new()),
            Mode::Table | Mode::FailsForIpv6 => (0, records),
        };
        // An answer to a question that asked for recursion, which there is.
        let mut answer = [question.get(..2)?, &[0x81, 0x80 | code, 0, 1]].concat();
        answer.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(question.get(12..at + 4)?);
        let head_bytes = answer.len();
        for record in records {
            // The name is the question's.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(self.time_to_live.to_be_bytes());
            answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
            answer.extend(record);
        }
        Some(Asked { name, head_bytes, answer: Some(answer) })
    }

    /// What the records of a name and a kind hold.
    fn records(&self, name: &str, kind: u16) -> Vec<Vec<u8>> {
        if kind == TYPE_SRV {
            return self.services.get(name).into_iter().flatten().map(srv_bytes).collect();
        }
        let bytes = |address: &IpAddr| match address {
            IpAddr::V4(address) if kind == TYPE_A => Some(address.octets().to_vec()),
            IpAddr::V6(address) if kind == TYPE_AAAA => Some(address.octets().to_vec()),
            _ => None,
        };
        self.names.get(name).into_iter().flatten().filter_map(bytes).collect()
    }
}

/// RFC 2782: priority, weight, port, and the labels of the target.
fn srv_bytes((priority, weight, port, target): &Srv) -> Vec<u8> {
    let mut bytes: Vec<u8> = [priority, weight, port].into_iter().flat_map(|number| number.to_be_bytes()).collect();
    for label in target.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

fn serve_udp(socket: &UdpSocket, mut table: Table, tell: &Sender<String>) {
    let mut question = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let Some(Asked { name, head_bytes, answer }) = table.answer(&question[..length]) else { continue };
        if let Some(mut answer) = answer {
            if answer.len() > UDP_BYTES_MAX {
                answer.truncate(head_bytes);
                answer[2] |= 2;
                answer[6..8].fill(0);
            }
            // Whoever asked may have left.
            let _ = socket.send_to(&answer, from);
        }
        // A test that is over hears nothing any more.
        let _ = tell.send(name);
    }
}

fn serve_tcp(listener: &TcpListener, mut table: Table) {
    for mut stream in listener.incoming().flatten() {
        // One connection after the other does, as none is waited for long.
        while let Ok(question) = read_framed(&mut stream) {
            let Some(Asked { answer: Some(answer), .. }) = table.answer(&question) else { break };
            let length = u16::try_from(answer.len()).expect("it is short");
            if stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).is_err() {
                break;
            }
        }
    }
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    Ok(question)
}
