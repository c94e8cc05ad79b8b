//! Asks where a name is: the hosts file, then the servers of DNS, by the rules of `/etc/resolv.conf`. When it is asked, and
//! what comes of the answer, is for `lookup`.

use std::{
    collections::BTreeMap,
    future::pending,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, Record, RecordType, rdata::SRV},
    },
    system_conf::parse_resolv_conf,
};
use tokio::{sync::watch, time::timeout};

use super::readers::{NotRead, Readers, Reading};
use crate::{
    config::{Nameserver, open_regular, watch::Watch},
    upstream::{Family, ListAnswer, ListResult, Listed, NameAnswer, NoAddress, SrvRecord, srv_instances},
};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As much of these files as is read.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// How long a server may take; less where `/etc/resolv.conf` says so. The question is sent again meanwhile.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a question may take, whatever there is of servers and domains.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(15);
/// What the hosts file says holds until it changes, which is looked for each second.
const OWN_TIME_TO_LIVE: Duration = Duration::MAX;

/// A look-up under way.
pub(super) type Asked = Pin<Box<dyn Future<Output = Result<NameAnswer, NoAddress>> + Send>>;

/// A question for a list of instances under way.
pub(super) type AskedList = Pin<Box<dyn Future<Output = ListResult> + Send>>;

/// The system's files and the servers of DNS. One per configuration, on the control thread.
#[derive(Debug)]
pub(super) struct Resolver {
    nameservers: Vec<Nameserver>,
    /// Shared by all configurations: the files are read by one at a time.
    readers: Readers,
    /// As they were before the look under way, if there is one; nothing until they were read.
    files: Option<SystemFiles>,
    look: Option<Reading<Looked>>,
    /// The look takes too long.
    is_late: bool,
    /// Nothing until the files were read, or that has taken too long.
    view: watch::Sender<Option<Arc<View>>>,
}

/// What the system's files hold, and since when they are watched for something else.
#[derive(Clone, Debug)]
struct SystemFiles {
    hosts: Watch,
    resolv_conf: Watch,
    addresses: Arc<BTreeMap<Box<str>, Vec<IpAddr>>>,
    rules: Arc<str>,
}

/// The files as they are now, and whether they hold something else than before.
type Looked = (SystemFiles, bool);

/// What the system's files say. Questions under way keep the one that they began with.
#[derive(Debug, Default)]
struct View {
    hosts: Arc<BTreeMap<Box<str>, Vec<IpAddr>>>,
    search: Vec<Name>,
    /// A name with so many dots is looked up as it is before it is with a domain.
    dots: usize,
    /// In the order in which they are asked.
    servers: Vec<TokioResolver>,
}

impl SystemFiles {
    /// Reads them; `before` is what is known of them.
    fn read(before: Option<&Self>) -> Looked {
        // Before they are read, so that no change is missed.
        let (hosts, resolv_conf) = (Watch::new(HOSTS), Watch::new(RESOLV_CONF));
        let mut files = Self { hosts, resolv_conf, addresses: Arc::default(), rules: Arc::default() };
        files.fill();
        let is_same = |before: &Self| before.addresses == files.addresses && before.rules == files.rules;
        let has_changed = !before.is_some_and(is_same);
        (files, has_changed)
    }

    /// Reads them if they have changed.
    fn look(mut self) -> Looked {
        // One that is not there says nothing, as before.
        let has_changed = |watch: &mut Watch| watch.changed().unwrap_or(false);
        let have_changed = has_changed(&mut self.hosts) | has_changed(&mut self.resolv_conf);
        if have_changed {
            self.fill();
        }
        (self, have_changed)
    }

    fn fill(&mut self) {
        self.addresses = Arc::new(read(self.hosts.path()).map(|text| parse_hosts(&text)).unwrap_or_default());
        self.rules = read(self.resolv_conf.path()).unwrap_or_default().into();
    }
}

impl Resolver {
    /// By the system's files, which are read first; whoever asks meanwhile waits for that.
    pub(super) fn new(nameservers: &[Nameserver]) -> Self {
        Self::reading(nameservers, Readers::new(1), None)
    }

    /// That of another configuration. The system's files are read anew for it.
    pub(super) fn fork(&self, nameservers: &[Nameserver]) -> Self {
        Self::reading(nameservers, self.readers.clone(), self.files.clone())
    }

    fn reading(nameservers: &[Nameserver], readers: Readers, files: Option<SystemFiles>) -> Self {
        let before = files.clone();
        let look = Some(readers.read(move || SystemFiles::read(before.as_ref())));
        let view = watch::Sender::new(None);
        Self { nameservers: nameservers.to_vec(), readers, files, look, is_late: false, view }
    }

    /// Looks whether the system's files have changed, unless a look is under way.
    pub(super) fn look(&mut self) {
        let files = self.files.clone();
        self.look.get_or_insert_with(|| {
            self.readers.read(move || files.map_or_else(|| SystemFiles::read(None), SystemFiles::look))
        });
    }

    /// Returns when the names are to be asked for anew, as the system's files hold something else. Dropping the future loses
    /// nothing.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some(look) = &mut self.look else { return pending().await };
            let looked = look.outcome().await;
            if !matches!(looked, Err(NotRead::Late(_))) {
                self.look = None;
            }
            if self.take(looked) {
                return;
            }
        }
    }

    /// Takes what came of a look; says whether that is something else than names were asked for by.
    fn take(&mut self, looked: Result<Looked, NotRead>) -> bool {
        let is_first = self.view.borrow().is_none();
        let was_late = std::mem::replace(&mut self.is_late, false);
        let has_changed = match looked {
            Ok((files, has_changed)) => {
                self.files = Some(files);
                if was_late {
                    tracing::info!("{HOSTS} and {RESOLV_CONF} can be read again");
                }
                has_changed
            }
            Err(why) => {
                self.is_late = matches!(why, NotRead::Late(_));
                tracing::warn!(
                    "{HOSTS} and {RESOLV_CONF} cannot be read: {why}; names are looked up by what was read before"
                );
                false
            }
        };
        if is_first || has_changed {
            self.view.send_replace(Some(Arc::new(View::new(self.files.as_ref(), &self.nameservers))));
        }
        let is_other = has_changed && !is_first;
        if is_other {
            tracing::info!("{HOSTS} or {RESOLV_CONF} has changed; the names of instances are looked up anew");
        }
        is_other
    }
}

impl Resolver {
    /// Looks a name up; `found_as` is the whole name that it was found as before.
    pub(super) fn ask(&self, name: &str, found_as: Option<&str>) -> Asked {
        let (views, name, found_as) = (self.view.subscribe(), name.to_owned(), found_as.map(str::to_owned));
        Box::pin(async move { first(views).await.ask(&name, found_as.as_deref()).await })
    }

    /// Asks for the SRV records of a name.
    pub(super) fn ask_srv(&self, name: &str) -> AskedList {
        let (views, name) = (self.view.subscribe(), name.to_owned());
        Box::pin(async move {
            let view = first(views).await;
            let answered = timeout(QUESTION_TIMEOUT, view.ask_srv(&name)).await;
            answered.unwrap_or_else(|_| Err("no server of DNS answers".to_owned()))
        })
    }
}

/// The view, once there is one.
async fn first(mut views: watch::Receiver<Option<Arc<View>>>) -> Arc<View> {
    // Whose resolver is gone is not heard any more.
    let view = views.wait_for(Option::is_some).await.ok().and_then(|view| view.clone());
    view.unwrap_or_default()
}

impl View {
    fn new(files: Option<&SystemFiles>, nameservers: &[Nameserver]) -> Self {
        let view = Self::of_resolv_conf(files.map_or("", |files| &files.rules), nameservers);
        Self { hosts: files.map(|files| Arc::clone(&files.addresses)).unwrap_or_default(), ..view }
    }

    fn of_resolv_conf(text: &str, nameservers: &[Nameserver]) -> Self {
        let text = &with_sound_domains(text);
        // It is refused without a server, which may be configured elsewhere.
        let parsed = parse_resolv_conf(text).or_else(|_| parse_resolv_conf(format!("{text}\nnameserver 127.0.0.1\n")));
        let (config, mut options) = parsed.unwrap_or_else(|_| (ResolverConfig::default(), ResolverOpts::default()));
        let own = text.lines().any(|line| line.trim_start().starts_with("nameserver"));
        let servers: Vec<SocketAddr> = match nameservers {
            [] if own => config.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)).collect(),
            [] => Vec::new(),
            nameservers => nameservers.iter().map(|server| server.0).collect(),
        };
        let search = match (config.search(), config.domain()) {
            ([], domain) => domain.cloned().into_iter().collect(),
            (search, _) => search.to_vec(),
        };
        let dots = options.ndots;
        options.timeout = options.timeout.clamp(Duration::from_secs(1), SERVER_TIMEOUT);
        // Each server is asked by itself, and what fails is asked again by whoever follows the name.
        options.attempts = 0;
        // No answer is older than its time to live.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let servers = servers.into_iter().filter_map(|server| resolver(server, options.clone())).collect();
        Self { hosts: Arc::default(), search, dots, servers }
    }

    async fn ask(&self, name: &str, found_as: Option<&str>) -> Result<NameAnswer, NoAddress> {
        let own = |addresses: Vec<IpAddr>| NameAnswer {
            addresses,
            time_to_live: OWN_TIME_TO_LIVE,
            untold: None,
            is_own: true,
            found_as: name.into(),
        };
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(own(addresses.clone()));
        }
        // RFC 6761 §6.3: nobody else is asked.
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(own(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
        }
        let answered = timeout(QUESTION_TIMEOUT, self.ask_dns(name, found_as)).await;
        answered.unwrap_or(Err(NoAddress::Late(QUESTION_TIMEOUT)))
    }

    async fn ask_dns(&self, name: &str, found_as: Option<&str>) -> Result<NameAnswer, NoAddress> {
        if self.servers.is_empty() {
            return Err(unknown("no server of DNS is known, in /etc/resolv.conf or by discovery.nameservers"));
        }
        let mut failure = None;
        for whole in self.whole_names(name)? {
            match self.ask_for(&whole).await {
                Ok(Some(answer)) => return Ok(answer),
                // Whoever has the name in the next domain is somebody else.
                Ok(None) if found_as == Some(whole.to_string().as_str()) => {
                    return Err(unknown("it has no address any more where it was found"));
                }
                Err(error) if found_as == Some(whole.to_string().as_str()) => return Err(error),
                // It may be there.
                Err(error @ NoAddress::Late(_)) => return Err(error),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| unknown("there is no such name")))
    }

    /// The instances that the SRV records of a name tell. The name is whole: no domains are tried.
    async fn ask_srv(&self, service: &str) -> ListResult {
        if self.servers.is_empty() {
            return Err("no server of DNS is known, in /etc/resolv.conf or by discovery.nameservers".to_owned());
        }
        let mut name = Name::from_ascii(service).map_err(|error| error.to_string())?;
        name.set_fqdn(true);
        let mut failure = None;
        for server in &self.servers {
            match server.lookup(name.clone(), RecordType::SRV).await {
                Ok(found) => return Ok(ListAnswer::Listed(instances_of(service, found.answers()))),
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) if !refers(&none) => {
                    return Err("it has no SRV records".to_owned());
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(_))) => failure = failure.or(Some(REFERS.to_owned())),
                Err(error) => failure = failure.or(Some(error.to_string())),
            }
        }
        Err(failure.unwrap_or_else(|| "nobody was asked".to_owned()))
    }

    /// The name with each domain that may be meant (resolv.conf(5)), in order.
    fn whole_names(&self, name: &str) -> Result<Vec<Name>, NoAddress> {
        let mut plain = Name::from_ascii(name).map_err(|error| unknown(&error.to_string()))?;
        // A domain may make it too long.
        let mut names: Vec<_> =
            self.search.iter().filter_map(|domain| plain.clone().append_domain(domain).ok()).collect();
        plain.set_fqdn(true);
        let is_first = name.matches('.').count() >= self.dots;
        names.insert(if is_first { 0 } else { names.len() }, plain);
        Ok(names)
    }

    /// Asks one server after the other. `None`: there is no such name, or it has no address.
    async fn ask_for(&self, name: &Name) -> Result<Option<NameAnswer>, NoAddress> {
        let mut failure = None;
        for server in &self.servers {
            let (v4, v6) =
                tokio::join!(server.lookup(name.clone(), RecordType::A), server.lookup(name.clone(), RecordType::AAAA));
            let late = server.options().timeout;
            let (untold, told, failed) = match (Told::of(v4, late), Told::of(v6, late)) {
                (Ok(v4), Ok(v6)) => (None, v4.and(v6), None),
                (Ok(v4), Err(error)) => (Some(Family::V6), v4, Some(error)),
                (Err(error), Ok(v6)) => (Some(Family::V4), v6, Some(error)),
                (Err(error), Err(_)) => (None, Told::default(), Some(error)),
            };
            match (told.addresses.is_empty(), failed) {
                (false, _) => {
                    let Told { addresses, time_to_live } = told;
                    let found_as = name.to_string().into();
                    return Ok(Some(NameAnswer { addresses, time_to_live, untold, is_own: false, found_as }));
                }
                (true, None) => return Ok(None),
                (true, Some(error)) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| unknown("nobody was asked")))
    }
}

/// What a server says of one family of addresses.
#[derive(Default)]
struct Told {
    addresses: Vec<IpAddr>,
    time_to_live: Duration,
}

impl Told {
    fn of(found: Result<Lookup, NetError>, late: Duration) -> Result<Self, NoAddress> {
        match found {
            Ok(found) => Ok(Self::in_records(found.answers())),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) if refers(&none) => Err(unknown(REFERS)),
            Err(NetError::Dns(DnsError::NoRecordsFound(_))) => Ok(Self::default()),
            Err(NetError::Timeout) => Err(NoAddress::Late(late)),
            Err(error) => Err(unknown(&error.to_string())),
        }
    }

    fn in_records(records: &[Record]) -> Self {
        let addresses = records.iter().filter_map(|record| record.data.ip_addr()).collect();
        Self { addresses, time_to_live: shortest(records) }
    }

    /// What is said of both families holds for as long as each part does.
    fn and(mut self, mut other: Self) -> Self {
        if self.addresses.is_empty() {
            return other;
        }
        if !other.addresses.is_empty() {
            self.addresses.append(&mut other.addresses);
            self.time_to_live = self.time_to_live.min(other.time_to_live);
        }
        self
    }
}

/// Whether a server has named others who may know, and knows nothing itself (RFC 1034 §4.3.1).
fn refers(none: &NoRecords) -> bool {
    none.response_code == ResponseCode::NoError && none.soa.is_none() && none.ns.is_some()
}

const REFERS: &str = "a server refers to others, and does not ask them itself";

/// How long records hold together.
fn shortest(records: &[Record]) -> Duration {
    Duration::from_secs(records.iter().map(|record| record.ttl).min().unwrap_or(0).into())
}

/// The instances that the SRV records among these tell.
fn instances_of(name: &str, records: &[Record]) -> Listed {
    let of_srv = |record: &Record| {
        let RData::SRV(SRV { priority, weight, port, target, .. }) = &record.data else { return None };
        let target = target.to_ascii().to_ascii_lowercase();
        Some(SrvRecord { priority: *priority, weight: *weight, port: *port, target })
    };
    Listed { time_to_live: shortest(records), ..srv_instances(name, records.iter().filter_map(of_srv)) }
}

/// Any bytes as the answer of a server: what is taken of it leads nowhere that it may not.
#[cfg(any(test, fuzzing))]
pub fn fuzz_dns_answer(bytes: &[u8]) {
    use hickory_resolver::proto::op::Message;

    use crate::{
        shard::Instant,
        upstream::{Discovery, DiscoverySettings, Lists, Source},
    };
    let Ok(message) = Message::from_vec(bytes) else { return };
    let settings = DiscoverySettings { shrink_percent_max: 100, ..DiscoverySettings::default() };
    let (mut discovery, mut lists) = (Discovery::new(settings), Lists::new(settings));
    let source = Source::Srv("a.test".into());
    discovery.follow(&["a".into()].into(), Instant::START);
    lists.follow(&[source.clone()].into(), Instant::START);

    let Told { addresses, time_to_live } = Told::in_records(&message.answers);
    let answer = NameAnswer { addresses, time_to_live, untold: None, is_own: false, found_as: "a.test.".into() };
    discovery.answered("a", Ok(answer), Instant::START);
    let known = discovery.known("a").expect("it is followed");
    assert!(known.addresses.iter().all(|address| settings.takes(*address)), "{known:?}");
    assert!(!known.addresses.is_empty() || known.error.is_some());

    lists.answered(&source, Ok(ListAnswer::Listed(instances_of("a", &message.answers))), Instant::START);
    let known = lists.known(&source).expect("it is followed");
    assert!(known.instances.iter().all(|instance| instance.weight > 0), "{known:?}");
    assert!(!known.instances.is_empty() || known.error.is_some());
}

/// The text without domains to search that can be none: one of them would have all of the text refused.
fn with_sound_domains(text: &str) -> String {
    let mut sound = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(key @ ("search" | "domain")) => {
                let is_domain = |word: &&str| Name::from_str_relaxed(word).is_ok();
                let (domains, wrong): (Vec<&str>, Vec<&str>) = words.partition(is_domain);
                if !wrong.is_empty() {
                    tracing::warn!("{RESOLV_CONF} has {wrong:?} among its domains, which are passed over");
                }
                sound.extend([key, " ", &domains.join(" ")]);
            }
            _ => sound.push_str(line),
        }
        sound.push('\n');
    }
    sound
}

fn unknown(why: &str) -> NoAddress {
    NoAddress::Unknown(why.to_owned())
}

/// What asks one server: by UDP, and by TCP for an answer that is too long for that.
fn resolver(server: SocketAddr, options: ResolverOpts) -> Option<TokioResolver> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.into());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let built =
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build();
    built.inspect_err(|error| tracing::error!(%error, "a server of DNS cannot be asked")).ok()
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The addresses by name (hosts(5)).
fn parse_hosts(text: &str) -> BTreeMap<Box<str>, Vec<IpAddr>> {
    let mut hosts = BTreeMap::<Box<str>, Vec<IpAddr>>::new();
    for line in text.lines() {
        let line = line.split_once('#').map_or(line, |(line, _)| line);
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            hosts.entry(name.to_ascii_lowercase().into()).or_default().push(address);
        }
    }
    hosts
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
