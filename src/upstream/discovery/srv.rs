//! Instances that SRV records tell (RFC 2782).

use std::time::Duration;

use super::{LeftOut, Listed};
use crate::config::{Instance, ServerAddress};

/// As many records of one name are taken, as of addresses.
const RECORDS_MAX: usize = 256;

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvRecord {
    /// Those with a lower number come first.
    pub priority: u16,
    /// Its share among those of its priority.
    pub weight: u16,
    /// The port of the service.
    pub port: u16,
    /// The host, in lower case, perhaps with a dot at its end.
    pub target: String,
}

/// The instances of these records of a name, which says what they speak (RFC 2782).
pub fn srv_instances(name: &str, records: impl IntoIterator<Item = SrvRecord>) -> Listed {
    let mut left_out = LeftOut::default();
    let scheme = if name.starts_with("_https.") { "https://" } else { "" };
    let read = |record| read(scheme, &record).map_err(|why| left_out.add(|| why)).ok();
    let mut instances: Vec<_> = records.into_iter().filter_map(read).collect();
    // Of too many, and of two for one host and port, the first count: not by the answer's order, which is another one each time.
    instances.sort_by(|one, other| {
        let (this, that) = ((one.priority, &one.address), (other.priority, &other.address));
        this.cmp(&that).then(other.weight.cmp(&one.weight))
    });
    for _ in instances.drain(RECORDS_MAX.min(instances.len())..) {
        left_out.add(|| format!("there are more records than {RECORDS_MAX}"));
    }
    Listed { instances, left_out, time_to_live: Duration::ZERO }
}

fn read(scheme: &str, record: &SrvRecord) -> Result<Instance, String> {
    let host = record.target.strip_suffix('.').unwrap_or(&record.target);
    if host.is_empty() {
        // RFC 2782: the service is decidedly not available.
        return Err("a record says that there is no such service".to_owned());
    }
    let address = format!("{scheme}{host}:{}", record.port).parse::<ServerAddress>();
    let is_port = |address: &ServerAddress| matches!(address, ServerAddress::Port { .. });
    let address = address.ok().filter(is_port);
    let address = address.ok_or_else(|| format!("\"{}:{}\" is no host and port", host.escape_debug(), record.port))?;
    // Those with 0 are to be chosen hardly ever beside others, and alike among themselves; an instance with 0 never would.
    Ok(Instance { weight: record.weight.max(1), priority: record.priority, ..Instance::from(address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, port: u16, target: &str) -> SrvRecord {
        SrvRecord { priority, weight, port, target: target.to_owned() }
    }

    #[test]
    fn records_are_instances_with_their_weight_and_priority() {
        let listed = srv_instances(
            "_http._tcp.a.test",
            [record(10, 0, 80, "a.test."), record(0, 60, 8080, "b.test"), record(0, 5, 1, "10.0.0.1.")],
        );
        let shown = |Instance { address, weight, priority, .. }: &Instance| format!("{address} {weight} {priority}");
        let all: Vec<_> = listed.instances.iter().map(shown).collect();
        assert_eq!(all, ["10.0.0.1:1 5 0", "b.test:8080 60 0", "a.test:80 1 10"]);
        assert_eq!(listed.left_out, LeftOut::default());
        let listed = srv_instances("_https._tcp.a.test", [record(0, 1, 443, "a.test."), record(0, 1, 80, "b.test.")]);
        let all: Vec<_> = listed.instances.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["https://a.test", "https://b.test:80"], "their name says what they speak");
    }

    #[test]
    fn what_can_be_no_instance_is_left_out() {
        let wrong = ["", ".", "a b.test.", "unix:/run/x", "[::1]", "-a.test.", "a..test.", "1.2.3."];
        let listed = srv_instances(
            "a",
            wrong.map(|target| record(0, 1, 80, target)).into_iter().chain([record(0, 1, 0, "a.test.")]),
        );
        assert_eq!(listed.instances.iter().map(ToString::to_string).collect::<Vec<_>>(), ["[::1]:80"]);
        assert_eq!(listed.left_out.count, 8);
    }

    #[test]
    fn the_order_of_an_answer_says_nothing() {
        let many = (0..300).map(|number| record(number / 150, 1, 80, &format!("n{number}.test.")));
        let twice = [record(0, 1, 80, "n7.test."), record(1, 9, 80, "n7.test."), record(0, 5, 80, "n7.test.")];
        let records: Vec<_> = many.chain(twice).collect();
        let listed = srv_instances("a", records.clone());
        assert_eq!((listed.instances.len(), listed.left_out.count), (RECORDS_MAX, 47));
        let seventh = listed.instances.iter().find(|instance| instance.to_string() == "n7.test:80");
        assert_eq!(seventh.map(|instance| (instance.priority, instance.weight)), Some((0, 5)));
        assert_eq!(srv_instances("a", records.into_iter().rev()), listed);
    }
}
