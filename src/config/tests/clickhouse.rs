//! `[clickhouse]`: what is wrong with it, told without its secrets.

use super::env;
use crate::config::resolve;
use expect_test::{Expect, expect};
use std::path::Path;

#[track_caller]
fn check(file: &str, expected: &Expect) {
    let wrong = resolve(Some((Path::new("f.toml"), file)), &env(&[])).expect_err("it is wrong").to_string();
    assert!(!wrong.contains("hunter2"), "{wrong}");
    expected.assert_eq(&wrong);
}

#[test]
fn what_is_wrong_is_told_and_what_is_secret_is_not() {
    for url in ["http://u:hunter2@ch:8123", "http://ch:8123/?user=u&password=hunter2", "ch?password=hunter2"] {
        check(
            &format!("[clickhouse]\nurl = \"{url}\"\n"),
            &expect![[
                r#"f.toml:2: clickhouse.url is ***; it is "http://host:8123" or "https://host:8443", without a user, a path or a ?"#
            ]],
        );
    }
    check(
        "[clickhouse]\nurl = \"tcp://ch:9000\"\nuser = \"\"\n",
        &expect![[r#"
        f.toml:2: clickhouse.url is "tcp://ch:9000"; it is "http://host:8123" or "https://host:8443", without a user, a path or a ?
        f.toml:3: clickhouse.user is ""; it is 1 to 128 printable ASCII characters"#]],
    );
    check(
        "[clickhouse]\ndatabase = \"a`b\"\ntable = \"1\"\npassword = \"hunter2\"\npassword_file = \"/x\"\n\
         memory_max = 1048576\nbatch_bytes = 1048576\n",
        &expect![[r#"
            f.toml:2: clickhouse.database is "a`b"; it is a name of up to 64 of A-Z, a-z, 0-9 and _, without a digit first
            f.toml:3: clickhouse.table is "1"; it is a name of up to 64 of A-Z, a-z, 0-9 and _, without a digit first
            f.toml:5: clickhouse.password_file is given, and so is clickhouse.password; name the password once
            f.toml:6: clickhouse.memory_max is 1048576; write a size from "8MiB" to "16GiB""#]],
    );
}
