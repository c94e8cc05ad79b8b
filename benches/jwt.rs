//! Checking tokens as a shard does: one that it remembers, and one that it sees for the first time, by algorithm; and
//! signing one.

use std::fs;
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::auth::revocation::{Bounds, Kind, Moment};
use shardgate::auth::{Checker, Grant, Issuer, KeySet, OwnKeys, Revocation, Revocations};
use shardgate::config::{self, Auth};
use std::collections::BTreeMap;

const NOW: Duration = Duration::from_secs(1_790_000_000);

const KEYS: [(&str, Option<&str>); 5] = [
    ("HS256", None),
    ("RS256", Some("rsa.pem")),
    ("PS256", Some("rsa.pem")),
    ("ES256", Some("p256.pem")),
    ("EdDSA", Some("ed25519.pem")),
];

/// One key of the tests, and what signs with it.
fn auth(algorithm: &str, file: Option<&str>) -> (Auth, KeySet, Issuer) {
    let key = match file {
        None => "secret = \"a secret of this bench, of 32 bytes or more\"".to_owned(),
        Some(name) => {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
            format!("file = {:?}", path.display().to_string())
        }
    };
    let text = format!("[[auth.keys]]\nkid = \"2026-11\"\nalgorithm = \"{algorithm}\"\n{key}\n");
    let auth = config::resolve(Some((Path::new("bench"), &text)), &BTreeMap::new()).expect("it is right").auth;
    let own = OwnKeys::load(&auth, Path::new("")).expect("the key is right");
    let keys = KeySet::new(&auth, &own, &BTreeMap::new());
    let issuer = Issuer::new(&auth, &own).expect("it signs");
    (auth, keys, issuer)
}

fn grant(permissions: &[String]) -> Grant<'_> {
    Grant {
        sub: "0197c9f2-8a4e-7bd0-9d5c-2f6a4be0c001",
        email: "ada@example.com",
        role: "user",
        permissions,
        sid: "s_9fJ2kQ7xW1bTzR4m",
        session_began_ms: 1_789_999_000_123,
    }
}

/// As a busy gateway has them.
fn revocations() -> Revocations {
    let (kept, leeway) = (Duration::from_hours(1), Duration::from_secs(5));
    let mut revocations = Revocations::new(Bounds { kept, leeway, entries_max: 100_000 });
    for n in 0..10_000 {
        let (kind, id, by) = (Kind::Session, format!("s_{n}").into(), "bench".into());
        revocations.apply(&Revocation { kind, id, at_ms: 1, by }, Moment::default());
    }
    revocations
}

fn check(criterion: &mut Criterion) {
    let revocations = revocations();
    let permissions = ["events:write".to_owned(), "hub:read".to_owned()];
    for (algorithm, file) in KEYS {
        let (_, keys, issuer) = auth(algorithm, file);
        let tokens: Vec<String> =
            (0..1000).map(|_| issuer.issue(&grant(&permissions), NOW).expect("signed").token.to_string()).collect();
        let mut group = criterion.benchmark_group(format!("jwt/{algorithm}, {} bytes", tokens[0].len()));
        let mut checker = Checker::new(16_384);
        for token in &tokens {
            checker.check(&keys, &revocations, token.as_bytes(), NOW).expect("it passes");
        }
        // All of them in turn, so that the caches of the processor do not hold just the one.
        let mut turn = tokens.iter().cycle();
        group.bench_function("remembered", |bencher| {
            bencher.iter(|| {
                let token = turn.next().expect("it is a cycle");
                checker.check(black_box(&keys), &revocations, black_box(token.as_bytes()), NOW).is_ok()
            });
        });
        let mut cold = Checker::new(0);
        group.bench_function("cold", |bencher| {
            bencher.iter(|| cold.check(black_box(&keys), &revocations, black_box(tokens[0].as_bytes()), NOW).is_ok());
        });
        group.bench_function("sign", |bencher| {
            bencher.iter(|| issuer.issue(black_box(&grant(&permissions)), NOW).is_ok());
        });
        group.finish();
    }
}

/// Every token is new, and the shard remembers fewer than there are.
fn evict(criterion: &mut Criterion) {
    let (_, keys, issuer) = auth("HS256", None);
    let revocations = revocations();
    let tokens: Vec<String> =
        (0..4096).map(|_| issuer.issue(&grant(&[]), NOW).expect("signed").token.to_string()).collect();
    let mut checker = Checker::new(1024);
    let mut turn = tokens.iter().cycle();
    criterion.bench_function("jwt/HS256, more tokens than places", |bencher| {
        bencher.iter(|| {
            let token = turn.next().expect("it is a cycle");
            checker.check(black_box(&keys), &revocations, black_box(token.as_bytes()), NOW).is_ok()
        });
    });
}

criterion_group!(benches, check, evict);
criterion_main!(benches);
