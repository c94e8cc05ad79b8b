//! Instances that have registered themselves: what a member of a registry's set says.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{LeftOut, Listed};
use crate::config::{Instance, ServerAddress, Zone};

/// Longer members are none.
const MEMBER_BYTES_MAX: usize = 256;
/// A lease that ends later is a mistake: most likely its end is written in milliseconds.
const LEASE_MAX: Duration = Duration::from_hours(24);

/// The members of a registry's set whose leases have not ended, each with its lease's end in seconds since 1970. `now` is
/// the same by the registry's clock.
///
/// A member is an address and a port, and behind these what else there is to say: `10.0.0.7:8080 weight=2 zone=eu-1a`. Who
/// is registered twice counts with the lease that ends last. What is none is left out: one service's mistake is not to hold
/// the others'.
pub fn registered<'a>(now: f64, members: impl IntoIterator<Item = (&'a [u8], f64)>) -> Listed {
    let mut left_out = LeftOut::default();
    let mut found = BTreeMap::<ServerAddress, (f64, Instance)>::new();
    for (member, lease_end) in members {
        match read(member).and_then(|instance| check_lease(now, lease_end).map(|()| instance)) {
            Ok(instance) => {
                let last = found.get(&instance.address).map_or(f64::MIN, |(lease_end, _)| *lease_end);
                if lease_end > last {
                    found.insert(instance.address.clone(), (lease_end, instance));
                }
            }
            Err(why) => left_out.add(|| {
                let shown = &member[..member.len().min(64)];
                format!("the member \"{}\" {why}", shown.escape_ascii())
            }),
        }
    }
    let instances = found.into_values().map(|(_, instance)| instance).collect();
    Listed { instances, left_out, time_to_live: Duration::ZERO }
}

/// Any bytes as members, each behind a byte that says how long it is and one that says how long its lease lasts.
#[cfg(any(test, fuzzing))]
pub fn fuzz_registered(mut bytes: &[u8]) {
    let mut members = Vec::new();
    while let [length, left, rest @ ..] = bytes {
        let (member, rest) = rest.split_at(rest.len().min((*length).into()));
        members.push((member, f64::from(*left) * 600.0));
        bytes = rest;
    }
    let listed = registered(100.0, members.iter().copied());
    assert!(listed.instances.len() + listed.left_out.count <= members.len());
    for instance in &listed.instances {
        let ServerAddress::Port { host, port, .. } = &instance.address else { panic!("{instance} is no port") };
        assert!(host.parse::<IpAddr>().is_ok() && *port != 0, "{instance}");
    }
}

fn check_lease(now: f64, lease_end: f64) -> Result<(), String> {
    let left = lease_end - now;
    if left > 0.0 && left <= LEASE_MAX.as_secs_f64() {
        return Ok(());
    }
    Err(format!("has a lease until {lease_end}: write a time in seconds since 1970, at most a day ahead"))
}

fn read(member: &[u8]) -> Result<Instance, String> {
    const FORM: &str = "is no \"address:port\"";
    let text = std::str::from_utf8(member).map_err(|_| FORM.to_owned())?;
    if text.len() > MEMBER_BYTES_MAX {
        return Err(format!("is longer than {MEMBER_BYTES_MAX} bytes"));
    }
    let mut words = text.split_ascii_whitespace();
    let address = words.next().and_then(|word| word.parse().ok()).ok_or_else(|| FORM.to_owned())?;
    match &address {
        ServerAddress::Port { host, .. } if host.parse::<IpAddr>().is_ok() => {}
        // Whoever registers knows its address, and a lease of a name would be one of whoever has the name then.
        _ => return Err("has no address before its port, but a name or a path".to_owned()),
    }
    let mut instance = Instance::from(address);
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("has \"{}\"", word.escape_debug()))?;
        let number = || value.parse::<u16>().map_err(|_| format!("has a {key} that is no number from 0 to 65535"));
        match key {
            "weight" => instance.weight = number()?,
            "priority" => instance.priority = number()?,
            "zone" => instance.zone = Some(value.parse::<Zone>().map_err(|why| format!("has a zone: {why}"))?),
            _ => return Err("says more than weight, priority and zone".to_owned()),
        }
    }
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    const NOW: f64 = 1_800_000_000.25;

    fn shown(members: &[(&[u8], f64)]) -> String {
        let Listed { instances, left_out, .. } = registered(NOW, members.iter().copied());
        let mut out = String::new();
        for Instance { address, weight, priority, zone } in instances {
            let zone = zone.map(|zone| zone.to_string()).unwrap_or_default();
            out.extend([format!("{address} {weight} {priority} {zone}\n")]);
        }
        out.extend([format!("left out: {} {}\n", left_out.count, left_out.why.unwrap_or_default())]);
        out
    }

    #[test]
    fn members_are_addresses_and_what_they_say_besides() {
        expect![[r"
            10.0.0.7:8080 1 0 
            10.0.0.8:80 3 1 eu-1a
            https://10.0.0.9:8443 2 0 
            [2001:db8::1]:80 1 0 
            left out: 0 
        "]]
        .assert_eq(&shown(&[
            (b"https://10.0.0.9:8443 weight=2", NOW + 1.0),
            (b"10.0.0.8:80 weight=3 priority=1 zone=eu-1a", NOW + 10.0),
            (b"10.0.0.7:8080", NOW + 0.001),
            (b"10.0.0.8:80 weight=2", NOW + 9.0),
            (b"[2001:db8::1]:80", NOW + 86_400.0),
        ]));
    }

    #[test]
    fn what_is_no_instance_is_left_out_with_the_reason() {
        let why = |member: &[u8], lease_end: f64| {
            let shown = shown(&[(b"10.0.0.1:1", NOW + 5.0), (member, lease_end)]);
            let (good, bad) = shown.split_once('\n').expect("two lines");
            assert!(good.starts_with("10.0.0.1:1 "), "{shown}");
            bad.trim_end().to_owned() + "\n"
        };
        let soon = NOW + 5.0;
        let mut all = String::new();
        for member in [
            &b"shop:80"[..],
            b"localhost:80",
            b"10.0.0.1",
            b"10.0.0.1:0",
            b"10.0.0.1:80 weight=-1",
            b"10.0.0.1:80 weight=70000",
            b"10.0.0.1:80 zone=a/b",
            b"10.0.0.1:80 colour=red",
            b"10.0.0.1:80 red",
            b"unix:/run/x",
            b"http://10.0.0.1:80",
            b"\xff\xfe\n",
            b"",
            &[b'1'; 300],
        ] {
            all += &why(member, soon);
        }
        for lease_end in [NOW * 1000.0, f64::INFINITY, f64::NAN, NOW, NOW - 1.0] {
            all += &why(b"10.0.0.2:2", lease_end);
        }
        expect![[r#"
            left out: 1 the member "shop:80" has no address before its port, but a name or a path
            left out: 1 the member "localhost:80" has no address before its port, but a name or a path
            left out: 1 the member "10.0.0.1" is no "address:port"
            left out: 1 the member "10.0.0.1:0" is no "address:port"
            left out: 1 the member "10.0.0.1:80 weight=-1" has a weight that is no number from 0 to 65535
            left out: 1 the member "10.0.0.1:80 weight=70000" has a weight that is no number from 0 to 65535
            left out: 1 the member "10.0.0.1:80 zone=a/b" has a zone: it is up to 64 of A-Za-z0-9._-
            left out: 1 the member "10.0.0.1:80 colour=red" says more than weight, priority and zone
            left out: 1 the member "10.0.0.1:80 red" has "red"
            left out: 1 the member "unix:/run/x" has no address before its port, but a name or a path
            left out: 1 the member "http://10.0.0.1:80" is no "address:port"
            left out: 1 the member "\xff\xfe\n" is no "address:port"
            left out: 1 the member "" is no "address:port"
            left out: 1 the member "1111111111111111111111111111111111111111111111111111111111111111" is longer than 256 bytes
            left out: 1 the member "10.0.0.2:2" has a lease until 1800000000250: write a time in seconds since 1970, at most a day ahead
            left out: 1 the member "10.0.0.2:2" has a lease until inf: write a time in seconds since 1970, at most a day ahead
            left out: 1 the member "10.0.0.2:2" has a lease until NaN: write a time in seconds since 1970, at most a day ahead
            left out: 1 the member "10.0.0.2:2" has a lease until 1800000000.25: write a time in seconds since 1970, at most a day ahead
            left out: 1 the member "10.0.0.2:2" has a lease until 1799999999.25: write a time in seconds since 1970, at most a day ahead
        "#]].assert_eq(&all);
    }

    proptest! {
        /// Nothing that is fuzzed panics with chance bytes.
        #[test]
        fn chance_bytes_are_members_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_registered(&bytes);
        }

        /// Whatever stands in a registry: an instance has an address and a port, and each only once.
        #[test]
        fn any_members_give_addresses_or_nothing(
            members in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..80), any::<f64>()), 0..20),
            good in prop::collection::vec((0_u8..4, 1_u16..4, 0.5_f64..100.0), 0..20),
        ) {
            let good: Vec<_> = good.iter().map(|(host, port, left)| (format!("10.0.0.{host}:{port}"), left)).collect();
            let good = good.iter().map(|(member, left)| (member.as_bytes(), NOW + **left));
            let all = members.iter().map(|(member, lease_end)| (&member[..], *lease_end)).chain(good.clone());
            let listed = registered(NOW, all);
            for (member, _) in good {
                let count = listed.instances.iter().filter(|one| one.to_string().as_bytes() == member).count();
                prop_assert_eq!(count, 1);
            }
            for instance in &listed.instances {
                let is_address = matches!(&instance.address,
                    ServerAddress::Port { host, port, .. } if host.parse::<IpAddr>().is_ok() && *port != 0);
                prop_assert!(is_address, "{}", instance);
            }
        }
    }
}
