//! Names become addresses without anybody waiting who has other things to do: the system's resolver blocks for as long as
//! DNS is silent and cannot be called off, so each name is asked for on a thread of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{SocketAddr, ToSocketAddrs as _},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::gateway::{Addresses, NoAddress};

/// Names that are asked for at once, those included that nobody waits for any more. A resolver that answers at all takes
/// far more in a second; one that does not is not given more threads than this.
const AT_ONCE_MAX: usize = 32;

/// Addresses of one name that are instances. Whoever answers for DNS decides how many come; more than these are no service
/// of anybody's, and each is a pool on each shard.
const ADDRESSES_MAX: usize = 256;

/// What tells where a name is, and may block.
type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// One per process, on the control thread. Looks up the names of one configuration at a time; a newer one takes its place.
pub(super) struct Lookups {
    resolve: Arc<Resolve>,
    /// Names whose threads have not told yet, and for which configuration they began.
    under_way: BTreeMap<Box<str>, u64>,
    /// Counts configurations.
    round: u64,
    due: Instant,
    timeout: Duration,
    /// Names of this configuration that nobody has told of.
    missing: BTreeSet<Box<str>>,
    /// Those of them that no thread asks for yet.
    waiting: Vec<Box<str>>,
    found: BTreeMap<Box<str>, Result<Box<[SocketAddr]>, NoAddress>>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
}

/// What a thread has to say of its name.
type Told = (Box<str>, io::Result<Vec<SocketAddr>>);

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups")
            .field("under_way", &self.under_way)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Lookups {
    /// By the system's resolver.
    pub(super) fn new() -> Self {
        Self::by(|name| Ok((name, 0).to_socket_addrs()?.collect()))
    }

    /// By this. It runs on many threads at once.
    fn by(resolve: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self {
            resolve: Arc::new(resolve),
            under_way: BTreeMap::new(),
            round: 0,
            due: Instant::now(),
            timeout: Duration::ZERO,
            missing: BTreeSet::new(),
            waiting: Vec::new(),
            found: BTreeMap::new(),
            tell,
            told,
        }
    }

    /// Begins to look these up, and forgets what was asked before; what its threads still bring serves, if it is wanted.
    pub(super) fn begin(&mut self, names: BTreeSet<Box<str>>, timeout: Duration) {
        self.round += 1;
        self.timeout = timeout;
        self.due = Instant::now() + timeout;
        self.found.clear();
        self.waiting = names.iter().filter(|name| !self.under_way.contains_key(*name)).cloned().collect();
        self.missing = names;
        self.ask();
    }

    /// What became of all of them, when that is known or the time is up. Dropping the future loses nothing.
    pub(super) async fn done(&mut self) -> Addresses {
        while !self.missing.is_empty() {
            tokio::select! {
                Some(told) = self.told.recv() => self.take(told),
                () = sleep_until(self.due) => {
                    let late = std::mem::take(&mut self.missing).into_iter();
                    self.found.extend(late.map(|name| (name, Err(NoAddress::Late(self.timeout)))));
                    self.waiting.clear();
                }
            }
        }
        Addresses::new(std::mem::take(&mut self.found))
    }

    fn take(&mut self, (name, found): Told) {
        let began = self.under_way.remove(&name);
        if self.missing.contains(&name) {
            match found {
                // It failed for an earlier configuration, and much of that may have been before this one.
                Err(_) if began.is_some_and(|round| round < self.round) => self.waiting.push(name),
                found => self.end(name, found),
            }
        }
        self.ask();
    }

    fn end(&mut self, name: Box<str>, found: io::Result<Vec<SocketAddr>>) {
        self.missing.remove(&name);
        let found = match found.map(|addresses| in_order(&name, addresses)) {
            Ok(addresses) if addresses.is_empty() => Err(NoAddress::Unknown("it has no address".to_owned())),
            Ok(addresses) => Ok(addresses),
            Err(error) => Err(NoAddress::Unknown(error.to_string())),
        };
        self.found.insert(name, found);
    }

    /// Starts as many threads as may run.
    fn ask(&mut self) {
        while self.under_way.len() < AT_ONCE_MAX
            && let Some(name) = self.waiting.pop()
        {
            let (resolve, tell, asked) = (Arc::clone(&self.resolve), self.tell.clone(), name.clone());
            let ask = move || {
                let found = catch_unwind(AssertUnwindSafe(|| resolve(&asked)));
                let found = found.unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
                // Nobody listens any more when the process ends.
                let _ = tell.send((asked, found));
            };
            // It is never joined: the process ends without it.
            match thread::Builder::new().name("lookup".to_owned()).spawn(ask) {
                Ok(_) => drop(self.under_way.insert(name, self.round)),
                Err(error) => self.end(name, Err(error)),
            }
        }
    }
}

/// Each address once, in an order that does not depend on the resolver's: it turns them from answer to answer.
fn in_order(name: &str, mut addresses: Vec<SocketAddr>) -> Box<[SocketAddr]> {
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() > ADDRESSES_MAX {
        tracing::warn!(
            name,
            addresses = addresses.len(),
            "a name of instances has more addresses than are used; the first {ADDRESSES_MAX} in order are"
        );
        addresses.truncate(ADDRESSES_MAX);
    }
    addresses.into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    /// A name that was asked for, and where its answer goes.
    struct Asked {
        name: String,
        answer: std_mpsc::Sender<io::Result<Vec<SocketAddr>>>,
    }

    impl Asked {
        fn answer(self, found: io::Result<&str>) {
            let found = found.map(|text| text.split(' ').map(|address| address.parse().expect("an address")).collect());
            self.answer.send(found).expect("its thread waits");
        }
    }

    fn no() -> io::Result<&'static str> {
        Err(io::Error::other("no such name"))
    }

    /// Look-ups that block until the test answers them.
    fn blocking() -> (Lookups, std_mpsc::Receiver<Asked>) {
        let (ask, asked) = std_mpsc::channel();
        let lookups = Lookups::by(move |name| {
            let (answer, answered) = std_mpsc::channel();
            ask.send(Asked { name: name.to_owned(), answer }).expect("the test runs");
            answered.recv().unwrap_or_else(|_| Err(io::Error::other("the test left")))
        });
        (lookups, asked)
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<Box<str>> {
        names.into_iter().map(Box::from).collect()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work)
    }

    /// The next so many that are asked for, by name.
    fn next<const N: usize>(asked: &std_mpsc::Receiver<Asked>) -> [Asked; N] {
        let mut all = [(); N].map(|()| asked.recv().expect("it is asked for"));
        all.sort_by(|one, two| one.name.cmp(&two.name));
        all
    }

    fn addresses(text: &str) -> Box<[SocketAddr]> {
        text.split(' ').map(|address| address.parse().expect("an address")).collect()
    }

    fn shown(addresses: &Addresses) -> String {
        format!("{addresses:?}")
    }

    /// Waits a little for what is not to come yet, and so cannot be waited for.
    async fn is_pending(lookups: &mut Lookups) -> bool {
        timeout(Duration::from_millis(20), lookups.done()).await.is_err()
    }

    /// The next that is asked for while the rest is waited for.
    async fn meanwhile(lookups: &mut Lookups, asked: &std_mpsc::Receiver<Asked>) -> Asked {
        loop {
            if let Ok(asked) = asked.try_recv() {
                return asked;
            }
            let _ = timeout(Duration::from_millis(1), lookups.done()).await.expect_err("one is missing");
        }
    }

    #[test]
    fn names_are_asked_for_at_the_same_time_and_each_failure_is_told() {
        run(async {
            let (mut lookups, asked) = blocking();
            lookups.begin(names(["a", "b", "c"]), LONG);
            let [a, b, c] = next(&asked);
            assert_eq!([&*a.name, &*b.name, &*c.name], ["a", "b", "c"], "none waits for another");
            c.answer(Ok("192.0.2.3:0"));
            a.answer(no());
            assert!(is_pending(&mut lookups).await, "one is missing");
            b.answer(no());
            let expected = Addresses::new(BTreeMap::from([
                ("a".into(), Err(NoAddress::Unknown("no such name".to_owned()))),
                ("b".into(), Err(NoAddress::Unknown("no such name".to_owned()))),
                ("c".into(), Ok(addresses("192.0.2.3:0"))),
            ]));
            assert_eq!(shown(&lookups.done().await), shown(&expected));
        });
    }

    #[test]
    fn every_address_counts_once_in_an_order_of_its_own_and_so_many_at_most() {
        run(async {
            let (mut lookups, asked) = blocking();
            lookups.begin(names(["both", "many"]), LONG);
            let [both, many] = next(&asked);
            both.answer(Ok("[::1]:0 127.0.0.1:0 [::1]:0"));
            let all: Vec<String> =
                (0..ADDRESSES_MAX + 9).rev().map(|host| format!("10.0.{}.{}:0", host / 256, host % 256)).collect();
            many.answer(Ok(&all.join(" ")));
            let expected = Addresses::new(BTreeMap::from([
                ("both".into(), Ok(addresses("127.0.0.1:0 [::1]:0"))),
                ("many".into(), Ok(addresses(&all[9..].iter().rev().cloned().collect::<Vec<_>>().join(" ")))),
            ]));
            assert_eq!(shown(&lookups.done().await), shown(&expected));
        });
    }

    #[test]
    fn who_does_not_answer_in_time_is_given_up_and_not_asked_twice_at_once() {
        run(async {
            let (mut lookups, asked) = blocking();
            let short = Duration::from_millis(1);
            lookups.begin(names(["a"]), short);
            let [a] = next(&asked);
            let late = Addresses::new(BTreeMap::from([("a".into(), Err(NoAddress::Late(short)))]));
            assert_eq!(shown(&lookups.done().await), shown(&late));
            lookups.begin(names(["a", "b"]), LONG);
            let [b] = next(&asked);
            assert_eq!(b.name, "b", "the other is still being asked for");
            b.answer(Ok("192.0.2.2:0"));
            a.answer(Ok("192.0.2.1:0"));
            let both = [("a", "192.0.2.1:0"), ("b", "192.0.2.2:0")];
            let both = both.map(|(name, address)| (Box::from(name), Ok(addresses(address))));
            assert_eq!(shown(&lookups.done().await), shown(&Addresses::new(both.into())));
        });
    }

    #[test]
    fn what_failed_for_an_earlier_configuration_is_asked_again() {
        run(async {
            let (mut lookups, asked) = blocking();
            lookups.begin(names(["a", "gone"]), LONG);
            let [a, gone] = next(&asked);
            lookups.begin(names(["a"]), LONG);
            gone.answer(Ok("192.0.2.9:0"));
            a.answer(no());
            let again = meanwhile(&mut lookups, &asked).await;
            assert_eq!(again.name, "a");
            again.answer(Ok("192.0.2.1:0"));
            let found = BTreeMap::from([("a".into(), Ok(addresses("192.0.2.1:0")))]);
            assert_eq!(shown(&lookups.done().await), shown(&Addresses::new(found)), "and no more than was wanted");
        });
    }

    #[test]
    fn there_are_never_more_threads_than_may_be() {
        run(async {
            let (mut lookups, asked) = blocking();
            let all: BTreeSet<Box<str>> = (0..=AT_ONCE_MAX).map(|index| format!("n{index}").into()).collect();
            lookups.begin(all, Duration::from_millis(1));
            let held = next::<AT_ONCE_MAX>(&asked);
            let _ = lookups.done().await;
            assert_eq!(lookups.under_way.len(), AT_ONCE_MAX);
            lookups.begin(names(["fresh"]), LONG);
            assert!(is_pending(&mut lookups).await);
            assert!(asked.try_recv().is_err(), "there is no place");
            held.into_iter().next().expect("one of them").answer(no());
            let fresh = meanwhile(&mut lookups, &asked).await;
            assert_eq!(fresh.name, "fresh", "what nobody wants any more is not asked for");
            fresh.answer(Ok("192.0.2.1:0"));
            let _ = lookups.done().await;
        });
    }

    #[test]
    fn a_resolver_that_panics_is_one_that_failed() {
        run(async {
            let mut lookups = Lookups::by(|_| panic!("as the test wants"));
            lookups.begin(names(["a"]), LONG);
            assert!(shown(&lookups.done().await).contains("panicked"));
        });
    }

    #[test]
    fn without_names_nothing_is_waited_for() {
        run(async {
            let (mut lookups, _asked) = blocking();
            lookups.begin(BTreeSet::new(), LONG);
            let _ = lookups.done().await;
        });
    }

    #[test]
    fn the_systems_resolver_knows_this_machine() {
        run(async {
            let mut lookups = Lookups::new();
            lookups.begin(names(["localhost"]), LONG);
            assert!(shown(&lookups.done().await).contains("localhost\": Ok(["));
        });
    }
}
