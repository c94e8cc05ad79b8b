//! The environment variables that OpenTelemetry has for everybody, as keys of `[trace]`. They go over what the file says, as
//! the environment does everywhere; a variable of our own goes over them. docs/tracing.md has the table.

use super::env::{is_written, put};
use super::raw::{Table, Value, quoted};
use super::report::{Location, Report};
use super::trace::TRACES_PATH;

/// Puts them over what the file says. `given` finds a variable that is set to something.
pub(super) fn overlay<'e>(root: &mut Table, given: &impl Fn(&str) -> Option<&'e str>, report: &mut Report) {
    if is_off(given) {
        remove_endpoint(root);
        return;
    }
    let mut set = |key: &str, variable: &str, value: &str| put(root, "trace", key, variable, value);
    // A variable for traces goes before the one for all signals.
    let either = |name: &str| {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
        names.into_iter().find_map(|name| given(&name).map(|value| (name, value)))
    };
    // The one for traces is taken as it is, the one for all signals has the path of traces behind it.
    if let Some(url) = given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        set("endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{url}{}", if has_path { "" } else { "/" }));
    } else if let Some(url) = given("OTEL_EXPORTER_OTLP_ENDPOINT") {
        set("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", &format!("{}{TRACES_PATH}", url.trim_end_matches('/')));
    }
    for (key, name) in [("headers", "HEADERS"), ("compression", "COMPRESSION"), ("ca_file", "CERTIFICATE")] {
        if let Some((variable, value)) = either(name) {
            set(key, &variable, value);
        }
    }
    if let Some((variable, value)) = either("TIMEOUT") {
        match value.parse::<u64>() {
            Ok(millis) => set("timeout", &variable, &format!("{millis}ms")),
            Err(_) => report.wrong_at(
                Location::Variable(variable),
                "",
                &quoted(value),
                "it is a whole number of milliseconds, like 10000",
            ),
        }
    }
    for (key, variable) in [("service_name", "OTEL_SERVICE_NAME"), ("attributes", "OTEL_RESOURCE_ATTRIBUTES")] {
        if let Some(value) = given(variable) {
            set(key, variable, value);
        }
    }
    if let Some(sampler) = given(SAMPLER) {
        let ratio = given(SAMPLER_ARG).unwrap_or("1");
        let (heeds_parents, (from, ratio)) = match sampler {
            "always_on" => ("false", (SAMPLER, "1")),
            "always_off" => ("false", (SAMPLER, "0")),
            "traceidratio" => ("false", (SAMPLER_ARG, ratio)),
            "parentbased_always_on" => ("true", (SAMPLER, "1")),
            "parentbased_always_off" => ("true", (SAMPLER, "0")),
            "parentbased_traceidratio" => ("true", (SAMPLER_ARG, ratio)),
            other => {
                let right = "it is always_on, always_off or traceidratio, or one of these behind \"parentbased_\"";
                report.wrong_at(Location::Variable(SAMPLER.to_owned()), "", &quoted(other), right);
                return;
            }
        };
        set("heed_parents", SAMPLER, heeds_parents);
        set("sample_ratio", from, ratio);
    }
}

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Refuses what asks for another way than the one there is, where spans go anywhere.
pub(super) fn check<'e>(root: &Table, given: &impl Fn(&str) -> Option<&'e str>, report: &mut Report) {
    if !is_written(root, "trace", "endpoint") {
        return;
    }
    let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some((variable, protocol)) = names.into_iter().find_map(|name| given(name).map(|value| (name, value)))
        && protocol != "http/protobuf"
    {
        let right = "spans go by \"http/protobuf\" only, which collectors take on port 4318; say so in \
                     OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, and name that port in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        report.wrong_at(Location::Variable(variable.to_owned()), "", &quoted(protocol), right);
    }
    if let Some(exporter) = given(EXPORTER).filter(|exporter| !matches!(*exporter, "otlp" | "none")) {
        let right = "it is \"otlp\", or \"none\" where spans are to go nowhere";
        report.wrong_at(Location::Variable(EXPORTER.to_owned()), "", &quoted(exporter), right);
    }
}

const EXPORTER: &str = "OTEL_TRACES_EXPORTER";

/// Whether the environment says that spans go nowhere.
fn is_off<'e>(given: &impl Fn(&str) -> Option<&'e str>) -> bool {
    let is_disabled = given("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    is_disabled || given(EXPORTER) == Some("none")
}

fn remove_endpoint(root: &mut Table) {
    if let Some(node) = root.get_mut("trace")
        && let Value::Table(table) = &mut node.value
    {
        table.remove("endpoint");
    }
}
