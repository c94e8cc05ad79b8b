//! Routing by itself: host, path and method to a route, in a small table and in a large one.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::{gateway::router::Router, proto::head::Method};

/// A table of so many services with three routes each: a prefix, an exact path and one with parameters.
fn router(services: usize) -> Router {
    let mut router = Router::default();
    for service in 0..services {
        let paths = [
            format!("/api/service{service}/*"),
            format!("/api/service{service}/health"),
            format!("/api/service{service}/users/{{id}}/orders/{{order}}"),
        ];
        for (place, path) in paths.iter().enumerate() {
            let path = path.parse().expect("a path");
            router.add(service * paths.len() + place, &[], &path, &[]);
        }
    }
    router
}

fn find(criterion: &mut Criterion) {
    for services in [3, 1000] {
        let router = router(services);
        let mut group = criterion.benchmark_group(format!("router/{services} services"));
        for (name, path) in [
            ("prefix", "/api/service2/events/x/y"),
            ("exact", "/api/service2/health"),
            ("parameters", "/api/service2/users/42/orders/7"),
            ("none", "/nothing/here"),
        ] {
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    router.find(black_box(b"shop.example.com"), black_box(path.as_bytes()), Method::Get, b"GET")
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, find);
criterion_main!(benches);
