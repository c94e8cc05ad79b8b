//! `[trace]`, and the variables that OpenTelemetry has for it.

use super::env;
use crate::config::{Compression, Trace, resolve};
use expect_test::{Expect, expect};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "[trace]\nendpoint = \"http://file:4318\"\nservice_name = \"file\"\nsample_ratio = 0.25\n";

#[track_caller]
fn trace(file: &str, variables: &[(&str, &str)]) -> Trace {
    resolve(Some((Path::new("f.toml"), file)), &env(variables)).expect("it is right").trace
}

#[track_caller]
fn check(file: &str, variables: &[(&str, &str)], expected: &Expect) {
    let wrong = resolve(Some((Path::new("f.toml"), file)), &env(variables)).expect_err("it is wrong").to_string();
    assert!(!wrong.contains("hunter2"), "{wrong}");
    expected.assert_eq(&wrong);
}

fn url(file: &str, variables: &[(&str, &str)]) -> Option<String> {
    trace(file, variables).url()
}

#[test]
fn our_variable_goes_before_opentelemetrys_and_that_before_the_file() {
    const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/base/");
    const TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318");
    const OWN: (&str, &str) = ("SHARDGATE_TRACE_ENDPOINT", "http://own:4318");
    let file = || Some("http://file:4318/v1/traces".to_owned());
    assert_eq!((url("", &[]), url(FILE, &[])), (None, file()));
    assert_eq!(url(FILE, &[ALL]).as_deref(), Some("http://all:4318/base/v1/traces"));
    assert_eq!(url(FILE, &[ALL, TRACES]).as_deref(), Some("http://traces:4318/"), "as it is");
    assert_eq!(url(FILE, &[ALL, TRACES, OWN]).as_deref(), Some("http://own:4318/v1/traces"));
    for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
        assert_eq!((url(FILE, &[ALL, off]), url("", &[OWN, off]).is_some()), (None, true));
    }
    assert_eq!(url(FILE, &[("OTEL_SDK_DISABLED", "1"), ("OTEL_TRACES_EXPORTER", "otlp")]), file());
    assert_eq!(url(FILE, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), file(), "set to nothing is not set");
    assert_eq!(trace(FILE, &[]).service_name, "file");
    assert_eq!(trace(FILE, &[("OTEL_SERVICE_NAME", "otel")]).service_name, "otel");
}

#[test]
fn a_variable_for_traces_goes_before_the_one_for_all_signals() {
    let of = |name: &str, value: &str, traces_value: &str| {
        let all = (format!("OTEL_EXPORTER_OTLP_{name}"), value.to_owned());
        let traces = (format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), traces_value.to_owned());
        let all = [(all.0.as_str(), all.1.as_str()), (traces.0.as_str(), traces.1.as_str())];
        (trace(FILE, &all[..1]), trace(FILE, &all))
    };
    let (all, traces) = of("TIMEOUT", "250", "1500");
    assert_eq!((all.timeout, traces.timeout), (Duration::from_millis(250), Duration::from_millis(1500)));
    let (all, traces) = of("COMPRESSION", "gzip", "none");
    assert_eq!((all.compression, traces.compression), (Compression::Gzip, Compression::None));
    let (all, traces) = of("HEADERS", "a=b%20c", "d=e");
    let fields = |trace: &Trace| {
        format!(
            "{:?}",
            trace
                .request_fields()
                .iter()
                .map(|(name, value)| (name.clone(), value.reveal().to_owned()))
                .collect::<Vec<_>>()
        )
    };
    assert_eq!((fields(&all), fields(&traces)), (r#"[("a", "b c")]"#.to_owned(), r#"[("d", "e")]"#.to_owned()));
    assert!(!format!("{all:?}").contains("b%20c"), "it shows nowhere");
    assert_eq!(
        trace("", &[("OTEL_RESOURCE_ATTRIBUTES", "a=b,c=d%2Ce")]).resource(),
        [("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d,e".to_owned()),]
    );
}

#[test]
fn samplers_are_a_share_and_whether_parents_decide() {
    for (sampler, argument, ratio, heeds_parents) in [
        ("always_on", "0.1", 1.0, false),
        ("always_off", "", 0.0, false),
        ("traceidratio", "0.1", 0.1, false),
        ("traceidratio", "", 1.0, false),
        ("parentbased_always_on", "", 1.0, true),
        ("parentbased_always_off", "", 0.0, true),
        ("parentbased_traceidratio", "0.5", 0.5, true),
    ] {
        let found = trace(FILE, &[("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)]);
        assert_eq!(
            (found.sample_ratio.to_bits(), found.heed_parents),
            (f64::to_bits(ratio), heeds_parents),
            "{sampler}"
        );
    }
    let own = ("SHARDGATE_TRACE_SAMPLE_RATIO", "0.75");
    let found = trace(FILE, &[("OTEL_TRACES_SAMPLER", "always_off"), own]);
    assert_eq!(found.sample_ratio.to_bits(), 0.75_f64.to_bits());
    let found = trace(FILE, &[("OTEL_TRACES_SAMPLER_ARG", "0.5")]);
    assert_eq!(found.sample_ratio.to_bits(), 0.25_f64.to_bits(), "an argument of nothing");
}

#[test]
fn what_is_wrong_is_told_and_what_is_secret_is_not() {
    check(
        "[trace]\nendpoint = \"localhost:4318\"\nqueue_spans = 1\nattributes = \"a\"\nservice_name = \"\"\nca_file = \"/x\"\ncompression = \"zstd\"\n",
        &[],
        &expect![[r#"
            f.toml:2: trace.endpoint is "localhost:4318"; it is an http or https URL without a user and a query, like "http://localhost:4318/v1/traces"; credentials belong in trace.headers
            f.toml:3: trace.queue_spans is 1; it is a whole number from 1024 to 1000000
            f.toml:4: trace.attributes is "a", and there is a part without a =; write "name=value,name=value", with a comma in a value as %2C
            f.toml:5: trace.service_name is ""; it is 1 to 255 bytes of text
            f.toml:6: trace.ca_file is given, and trace.endpoint is no https URL; only https servers show certificates
            f.toml:7: trace.compression is "zstd"; it is one of "none", "gzip""#]],
    );
    check(
        "[trace]\nendpoint = \"http://user:hunter2@a:4318\"\nheaders = \"authorization hunter2\"\n",
        &[],
        &expect![[r#"
            f.toml:2: trace.endpoint is ***; it is an http or https URL without a user and a query, like "http://localhost:4318/v1/traces"; credentials belong in trace.headers
            f.toml:3: trace.headers is ***, and there is a part without a =; write "name=value,name=value", with a comma in a value as %2C"#]],
    );
    check(
        "[trace]\nheaders = \"host=hunter2\"\n",
        &[],
        &expect![[
            r#"f.toml:2: trace.headers is ***, and it has a field that the gateway writes itself; write "name=value,name=value", with a comma in a value as %2C"#
        ]],
    );
    check(
        FILE,
        &[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "br"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ],
        &expect![[r#"
            environment: OTEL_EXPORTER_OTLP_COMPRESSION is "br"; it is one of "none", "gzip"
            environment: trace.headers is ***, and there is a part without a =; write "name=value,name=value", with a comma in a value as %2C
            environment: OTEL_EXPORTER_OTLP_PROTOCOL is "grpc"; spans go by "http/protobuf" only, which collectors take on port 4318; say so in OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, and name that port in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
            environment: OTEL_EXPORTER_OTLP_TIMEOUT is "10s"; it is a whole number of milliseconds, like 10000
            environment: OTEL_TRACES_EXPORTER is "zipkin"; it is "otlp", or "none" where spans are to go nowhere
            environment: OTEL_TRACES_SAMPLER is "xray"; it is always_on, always_off or traceidratio, or one of these behind "parentbased_""#]],
    );
    check(
        FILE,
        &[
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ],
        &expect![[r#"
            environment: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is "http/json"; spans go by "http/protobuf" only, which collectors take on port 4318; say so in OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, and name that port in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
            environment: OTEL_TRACES_SAMPLER_ARG is "1.5"; it is a share from 0.0 to 1.0, like 0.1"#]],
    );
    // Where spans go nowhere, nobody asks how.
    assert_eq!(url("", &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin")]), None);
    assert_eq!(
        url(FILE, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]),
        url(FILE, &[])
    );
}
