//! The scenarios against the mock hub, over real sockets. Counts, never times.

use clap::Parser;
use serde_json::Value;

use crate::front;
use crate::hub::mock::{self, Faults};
use crate::options::{Cli, Command};
use crate::report::Conditions;

/// Runs a scenario for a moment; tells its report, or why there is none.
fn run(port: u16, line: &str) -> Result<Value, String> {
    run_on(&[port], line)
}

/// The same with several instances.
fn run_on(ports: &[u16], line: &str) -> Result<Value, String> {
    run_at(ports.iter().map(|port| format!("ws://127.0.0.1:{port}/ws")), line)
}

fn run_at(urls: impl Iterator<Item = String>, line: &str) -> Result<Value, String> {
    // Each test is a thread of its own.
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let secret = std::env::temp_dir().join(format!("shardgate-loadtest-{process}-{thread:?}"));
    std::fs::write(&secret, mock::SECRET).expect("written");
    let urls = urls.fold(String::new(), |urls, url| format!("{urls} --url {url}"));
    let line =
        format!("shardgate-loadtest {line}{urls} --secret {} --warm-up 100ms --quiet --timeout 10s", secret.display());
    let Command::Hub(command) = Cli::try_parse_from(line.split(' ')).expect("a valid line").command else {
        panic!("{line} is no scenario of the hub")
    };
    let conditions = Conditions {
        command: Vec::new(),
        date: String::new(),
        version: "",
        kernel: String::new(),
        cores: 0,
        processor: String::new(),
    };
    let measured = super::measure(&command);
    std::fs::remove_file(&secret).expect("removed");
    measured.map(|report| report.json(&conditions)).map_err(|error| error.to_string())
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn idle_sockets_join_and_get_the_large_message() {
    let own = std::process::id();
    let line = format!("hub-idle --from 20 --to 60 --hold 50ms --burst-hold 50ms --threads 2 --server-pid {own}");
    let report = run(mock::hub(0), &line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sockets"), number(&report, "burst_deliveries")), (60, 60));
    assert_eq!(report["joining_us"]["count"], 60);
    assert!(report["rss_bytes_per_socket"].is_number() && report["after_burst_ratio"].is_number(), "{report:#}");
}

#[test]
fn echoes_come_back_at_the_rate() {
    let report = run(mock::hub(0), "hub-echo --connections 5 --rate 200 --duration 500ms").expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sent"), number(&report, "deliveries")), (100, 100));
}

#[test]
fn every_member_of_every_room_counts() {
    let line = "hub-fan-out --rooms 3 --members 8 --rate 60 --duration 500ms --threads 2";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sent"), number(&report, "deliveries"), number(&report, "missing")), (30, 240, 0));
    assert_eq!(report["latency_us"]["count"], 240);
    assert_eq!(report["to_the_last_us"]["count"], 30, "each message has one last member");
}

#[test]
fn sockets_go_over_tls() {
    let url = format!("wss://127.0.0.1:{}/ws", front::tls(mock::hub(0)));
    for (line, deliveries) in [
        ("hub-fan-out --rooms 3 --members 8 --rate 60 --duration 500ms --threads 2", 240),
        ("hub-echo --connections 5 --rate 200 --duration 500ms", 100),
    ] {
        let report = run_at(std::iter::once(url.clone()), line).expect("it runs");
        assert_eq!(report["failed"], false, "{report:#}");
        assert_eq!((number(&report, "deliveries"), number(&report, "missing")), (deliveries, 0));
    }
}

#[test]
fn who_stops_reading_is_counted_apart() {
    // 48 KiB, 100 times a second: more than kernel and mock hold for one that does not read.
    let line = "hub-slow-readers --members 10 --slow 2 --rate 100 --payload-bytes 48KiB --duration 1500ms";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "before_deliveries"), number(&report, "beside_deliveries")), (150 * 8, 150 * 8));
    let slow = report["slow_ended"].as_object().expect("counts").values().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(slow, 2, "{report:#}");
}

#[test]
fn a_crowd_leaves_and_others_go_on() {
    let line = "hub-mass-disconnect --connections 100 --others 4 --rate 40 --accepts 20 --duration 1s";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "dropped"), number(&report, "after_deliveries")), (100, 160));
    let new = report["new_joining_us"]["count"].as_u64().expect("a count");
    assert!((36..=40).contains(&new), "{new} of 20 a second in 2 s");
    assert_eq!(number(&report, "attempts"), 104 + new);
}

#[test]
fn a_crowd_comes_back_whoever_is_refused() {
    let line =
        "hub-reconnect-storm --connections 50 --jitter 200ms --others 4 --rate 20 --accepts 0.1 --duration 500ms";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "attempts"), &report["returning_us"]["count"]), (104, &50.into()), "{report:#}");
    // Every 70th is refused: the 70th and no other of the first return's 50, which tries once more.
    let report = run(mock::hub(70), line).expect("it runs");
    assert_eq!(
        (&report["failed"], &report["attempts_failed"]["refused_503"]),
        (&false.into(), &1.into()),
        "{report:#}"
    );
    assert_eq!((number(&report, "attempts"), &report["returning_us"]["count"]), (105, &50.into()), "{report:#}");
    assert!(report["all_back_after_s"].as_f64() > Some(0.5), "it waited half a second at least: {report:#}");
}

#[test]
fn requests_go_on_beside_the_sockets() {
    let line =
        "targets --rooms 2 --members 10 --rate 40 --http-rate 100 --http-connections 4 --duration 500ms --baseline";
    let report = run(mock::hub(0), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sockets"), number(&report, "deliveries")), (20, 200));
    assert_eq!(report["http_statuses"]["200"], 50);
    assert_eq!(report["http_alone_statuses"]["200"], 50);
}

/// Two rooms of ten members, of which five are on each instance; 40 messages before half time and 40 after, all of which
/// every member should get. `more` is put behind the line.
fn across(faults: Faults, more: &str) -> Value {
    let ports = mock::instances(faults);
    let line = "hub-instances --rooms 2 --members 10 --rate 80 --duration 500ms --settle 0 --jitter 100ms --threads 2";
    run_on(&ports, &format!("{line}{more}")).expect("it runs")
}

/// What members got, and what they were told.
fn verdict(report: &Value) -> [u64; 5] {
    ["delivered", "told_missing", "missing_untold", "doubled", "out_of_order"].map(|name| number(report, name))
}

#[test]
fn members_on_two_instances_get_each_message_once() {
    let report = across(Faults::default(), "");
    assert_eq!(report["failed"], false, "{report:#}");
    // The warm-up's eight are followed too.
    assert_eq!(verdict(&report), [88 * 10, 0, 0, 0, 0], "{report:#}");
    assert_eq!((number(&report, "before_deliveries"), number(&report, "after_deliveries")), (400, 400));
    assert_eq!((number(&report, "expected"), number(&report, "unanswered")), (880, 0));
}

#[test]
fn what_is_refused_for_now_is_sent_again() {
    let report = across(Faults { put_off: 20, ..Faults::default() }, "");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!(verdict(&report), [880, 0, 0, 0, 0]);
    // 88 messages and those that were sent again: every 20th of them.
    assert_eq!(report["refused_and_sent_again"]["dependency_unavailable"], 4, "{report:#}");
}

#[test]
fn what_is_lost_or_doubled_fails_the_run_unless_it_is_told() {
    let lost = across(Faults { lose: 100, ..Faults::default() }, "");
    assert_eq!((&lost["failed"], verdict(&lost)), (&true.into(), [872, 0, 8, 0, 0]), "{lost:#}");
    let told = across(Faults { lose: 100, tells: true, ..Faults::default() }, "");
    assert_eq!((&told["failed"], verdict(&told)), (&false.into(), [872, 8, 0, 0, 0]), "{told:#}");
    let doubled = across(Faults { double: 200, ..Faults::default() }, "");
    assert_eq!((&doubled["failed"], verdict(&doubled)), (&true.into(), [880, 0, 0, 4, 0]), "{doubled:#}");
}

#[test]
fn those_of_an_instance_that_is_killed_come_back_to_the_other() {
    // The hub's second instance dies with its 50th message, and this process, which stands for it, half way.
    let mut instance = std::process::Command::new("sleep").arg("600").spawn().expect("it is everywhere");
    let line = format!(" --kill-pid {}", instance.id());
    let report = across(Faults { die: 50, ..Faults::default() }, &line);
    assert!(!instance.wait().expect("ours").success(), "it was killed");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!(verdict(&report), [880, 0, 0, 0, 0], "{report:#}");
    assert_eq!((number(&report, "returned"), number(&report, "sockets")), (10, 20));
    assert!(number(&report, "recovered") > 0, "{report:#}");

    // Who was not told to expect it takes it for a failure.
    let report = across(Faults { die: 50, forgets: true, ..Faults::default() }, "");
    assert_eq!(report["failed"], true, "{report:#}");
    let [delivered, told, missing, ..] = verdict(&report);
    assert_eq!((delivered + told, missing), (880, 0), "{report:#}");
    assert!(told > 0, "what was not recovered was told: {report:#}");
}

#[test]
fn what_happens_half_way_is_told_beside_the_readiness() {
    let ready = mock::hub(0);
    let line =
        format!(" --ready http://127.0.0.1:{ready}/health/ready/hub --ready http://127.0.0.1:1/ --half-way false");
    let ports = mock::instances(Faults::default());
    let mut words = vec!["hub-instances --members 4 --duration 300ms --settle 0"];
    words.push(&line);
    let report = run_on(&ports, &words.concat()).expect("it runs");
    assert_eq!(report["failed"], true, "the command failed: {report:#}");
    // The mock wants a token for that.
    assert_eq!(report["ready_1"][0]["status"], "401", "{report:#}");
    assert_eq!(report["ready_2"][0]["status"], "no answer", "{report:#}");
    assert!(report["ready_1"][0]["from_s"].as_f64() < Some(0.0), "{report:#}");
}

#[test]
fn a_knee_is_where_messages_begin_to_be_missing_or_late() {
    let line = "hub-knee --rooms 2 --members 5 --rate 50 --step 50 --steps 2 --duration 200ms --p99-max 10s";
    let report = run_on(&mock::instances(Faults::default()), line).expect("it runs");
    assert_eq!((&report["failed"], &report["knee_per_s"]), (&false.into(), &100.0.into()), "{report:#}");
    assert_eq!(report["steps"].as_array().map(Vec::len), Some(2));
    assert_eq!((&report["steps"][0]["latency_us"]["count"], &report["steps"][1]["per_s"]), (&50.into(), &100.0.into()));
    // 75 deliveries with the first step's warm-up, and so its last steps are whole: the loss is in the second.
    let report = run_on(&mock::instances(Faults { lose: 100, ..Faults::default() }), line).expect("it runs");
    assert_eq!((&report["failed"], &report["knee_per_s"]), (&false.into(), &50.0.into()), "{report:#}");
    let late = run_on(&mock::instances(Faults::default()), &line.replace("10s", "0")).expect("it runs");
    assert_eq!((&late["failed"], &late["knee_per_s"]), (&true.into(), &0.0.into()), "{late:#}");
}

#[test]
fn sockets_of_all_instances_close_when_their_session_logs_out() {
    let line = "hub-log-out --sessions 20 --beside 50 --duration 400ms";
    let report = run_on(&mock::instances(Faults::default()), line).expect("it runs");
    assert_eq!(report["failed"], false, "{report:#}");
    assert_eq!((number(&report, "sockets"), &report["closed_us"]["count"]), (40, &40.into()));
    assert_eq!((&report["closed"]["closed_4102"], &report["beside_statuses"]["204"]), (&40.into(), &20.into()));
}

#[test]
fn instances_are_told_to_reload_while_sockets_are_open() {
    // Whoever gets this signal counts it and goes on, as an instance does.
    let count = std::env::temp_dir().join(format!("shardgate-loadtest-reloads-{}", std::process::id()));
    let script = format!("trap 'echo >> {}' HUP; echo; while :; do sleep 0.01; done", count.display());
    let mut instance = std::process::Command::new("sh");
    let mut instance = instance.args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn().expect("a shell");
    let mut begun = [0];
    std::io::Read::read_exact(instance.stdout.as_mut().expect("piped"), &mut begun).expect("it listens to signals");
    let line = format!(
        "hub-fan-out --members 8 --rate 60 --duration 500ms --reloads 5 --reload-every 100ms --server-pid {}",
        instance.id()
    );
    let report = run(mock::hub(0), &line).expect("it runs");
    instance.kill().and_then(|()| instance.wait()).expect("ours");
    assert_eq!((&report["failed"], number(&report, "reloads")), (&false.into(), 5), "{report:#}");
    assert!(number(&report, "rss_before_reloads_kib") > 0);
    // Signals that come while one waits are one.
    let signals = std::fs::read_to_string(&count).expect("written").lines().count();
    assert!((1..=5).contains(&signals), "{signals}");
    std::fs::remove_file(&count).expect("removed");
}

#[test]
fn a_hub_that_refuses_or_is_not_there_fails_the_run() {
    let refused = run(mock::hub(1), "hub-fan-out --members 3 --duration 100ms");
    assert_eq!(refused, Err("no socket got into its room".to_owned()));
    let unused = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let absent = run(unused.expect("a free port").port(), "hub-fan-out --members 3 --duration 100ms");
    assert_eq!(absent, Err("no socket got into its room".to_owned()));
    // Some are in their rooms and some are not: the run goes on, and has failed.
    let some = run(mock::hub(3), "hub-fan-out --members 3 --rate 10 --duration 300ms").expect("it runs");
    assert_eq!((&some["failed"], number(&some, "not_joined")), (&true.into(), 1), "{some:#}");
}

#[test]
fn a_command_line_says_what_is_wrong_with_it() {
    let refusal = |line: &str| run(1, line).expect_err("refused");
    assert!(refusal("hub-idle --from 5 --to 5").contains("less than"));
    assert!(refusal("hub-fan-out --room a/b").contains("--room"));
    assert!(refusal("hub-fan-out --server-pid 4294967295").contains("no process"));
    assert!(refusal("hub-fan-out --redis-pid 4294967295").contains("no process"));
    assert!(refusal("hub-instances --kill-pid 4294967295").contains("no process"));
    assert!(refusal("hub-instances --rate 1000000 --duration 60m").contains("MiB"));
    assert!(refusal("hub-instances --ready https://127.0.0.1/").contains("--ready"));
    let reloads = format!("hub-fan-out --reloads 100 --server-pid {}", std::process::id());
    assert!(refusal(&reloads).contains("longer than --duration"));
    assert!(refusal("hub-slow-readers --rooms 2 --slow 3").contains("as many in each"));
    assert!(refusal("hub-fan-out --rooms 1000 --members 1000").contains("500000"));
}
