//! A process that is killed while it renews: what it was told was spent is spent.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Where the process that is killed finds its data directory.
const DIRECTORY: &str = "SHARDGATE_TEST_KILLED_IN";

/// A spent token is at once one that was used before.
const STRICT: SessionRules = SessionRules { lifetime_ms: u64::MAX / 2, grace_ms: 0, per_user_max: 3 };

fn open(directory: &std::path::Path) -> Sessions {
    let store = Embedded::start(directory, &[COMPONENT]).expect("threads start");
    Sessions::embedded(store, Keyring::new(b"0123456789abcdef0123456789abcdef", []), STRICT, KEPT)
}

/// The process that is killed, when it is started as that; by itself it has nothing to do. It tells each token once its
/// predecessor is spent.
#[test]
#[expect(clippy::print_stdout, reason = "the one who kills it reads along")]
fn renews_for_ever() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    run(async {
        let sessions = open(directory.as_ref());
        let mut token = sessions.create("42", &note("")).await.expect("it begins").refresh_token;
        loop {
            println!("token {}", token.reveal());
            token = sessions.refresh(token.reveal(), &note("")).await.expect("it is renewed").refresh_token;
        }
    });
}

#[test]
fn a_spent_token_stays_spent_when_the_process_is_killed() {
    for renewals in [3, 17] {
        let directory = TempDir::new().expect("a directory");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "sessions::tests::killed::renews_for_ever", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let told = lines.filter_map(|line| Some(line.split_once("token ")?.1.to_owned()));
        let tokens: Vec<String> = told.take(renewals).collect();
        // By its id, and with SIGKILL.
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        assert_eq!(tokens.len(), renewals, "it renewed as long as it lived");
        run(async {
            let sessions = open(directory.path());
            let last_spent = &tokens[renewals - 2];
            let refused = sessions.refresh(last_spent, &note("")).await.expect_err("it was told to be spent");
            assert_eq!(refused, RefreshError::Reused);
            let heard = sessions.follow().next().await;
            assert_eq!(heard.entries.len(), 1, "and that ends the session: {heard:?}");
            let refused = sessions.refresh(&tokens[renewals - 1], &note("")).await;
            assert_eq!(refused.expect_err("it has ended"), RefreshError::Invalid);
        });
    }
}
