//! Keys and secrets as platforms hand them on: files that a group may read, variables, and a newline at the end of both.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::Gateway;

const SOON: Duration = Duration::from_secs(15);

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn kid(gateway: &Gateway) -> String {
    gateway.get("/.well-known/jwks.json").json()["keys"][0]["kid"].as_str().unwrap_or_default().to_owned()
}

/// What a start that is refused says.
#[track_caller]
fn refusal(config: &str) -> String {
    let mut gateway = Gateway::launch(config, |_| {});
    assert_eq!(gateway.wait_exit(SOON), Some(2), "{}", gateway.log());
    gateway.log()
}

#[test]
fn a_group_may_read_a_key_and_everybody_may_not() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("key.pem");
    fs::copy(data("p256.pem"), &file).expect("copied");
    let config = format!("[[auth.keys]]\nkid = \"mounted\"\nalgorithm = \"ES256\"\nfile = \"{}\"\n", file.display());
    for mode in [0o400, 0o440, 0o640, 0o660] {
        set_mode(&file, mode);
        assert_eq!(kid(&Gateway::start(&config)), "mounted", "{mode:o}");
    }
    set_mode(&file, 0o644);
    let said = refusal(&config);
    let owner = fs::metadata(&file).expect("it is there").uid();
    let (file, key) = (file.display(), "auth.keys[0].file");
    let told = format!(
        "{key} is \"{file}\": everybody may use the file (mode 0644, owner {owner}); take that away: chmod o= {file}"
    );
    assert!(said.contains(&told), "{said}");
}

#[test]
fn the_gateways_own_keys_are_taken_when_a_volume_was_mounted_for_a_group() {
    let directory = TempDir::new().expect("a temporary directory");
    let config = format!("[data]\ndir = \"{}\"\n", directory.path().join("data").display());
    let file = |name: &str| directory.path().join("data").join(name);
    let first = kid(&Gateway::start(&config));
    // As `fsGroup` of Kubernetes leaves all files of a volume.
    for name in ["token-key.pem", "refresh-key", "shardgate.db"] {
        set_mode(&file(name), 0o660);
    }
    set_mode(&directory.path().join("data"), 0o2770);
    assert_eq!(kid(&Gateway::start(&config)), first);
    for name in ["token-key.pem", "refresh-key"] {
        set_mode(&file(name), 0o664);
        let said = refusal(&config);
        let told = ["everybody may use the file (mode 0664", "chmod o= ", name];
        assert!(told.iter().all(|part| said.contains(part)), "{said}");
        set_mode(&file(name), 0o660);
    }
}

#[test]
fn a_key_may_stand_in_a_variable() {
    let config = "[[auth.keys]]\nkid = \"from-env\"\nalgorithm = \"ES256\"\nsecret = \"${KEY_PEM}\"\n";
    let pem = fs::read_to_string(data("p256.pem")).expect("a key");
    for value in [pem.clone(), format!("\n{pem}\n\n"), pem.trim_end().replace('\n', "\\n")] {
        let gateway = Gateway::start_as(config, |command| {
            command.env("KEY_PEM", &value);
        });
        assert_eq!(kid(&gateway), "from-env");
        assert!(!gateway.log().contains(pem.lines().nth(1).expect("three lines")), "it is told to nobody");
        // A reload keeps it, as the process keeps its variables.
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", 2, SOON);
        assert_eq!(kid(&gateway), "from-env");
    }
    let launch = |value: &str| {
        Gateway::launch(config, |command| {
            command.env("KEY_PEM", value);
        })
    };
    let mut gateway = launch("no key at all, and yet as long as one");
    assert_eq!(gateway.wait_exit(SOON), Some(2));
    assert!(gateway.log().contains("auth.keys[0].secret is no PEM"), "{}", gateway.log());
    let rsa = fs::read_to_string(data("rsa.pem")).expect("a key");
    let mut gateway = launch(&rsa);
    assert_eq!(gateway.wait_exit(SOON), Some(2));
    assert!(gateway.log().contains("auth.keys[0].secret: it is no key for ES256"), "{}", gateway.log());
}

/// A secret that both the file and the variable end with a newline of is the same.
#[test]
fn white_space_around_secrets_and_urls_is_no_part_of_them() {
    const SECRET: &str = "an example of 32 bytes or more: no secret";
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("secret");
    fs::write(&file, format!(" {SECRET}\r\n\n")).expect("written");
    set_mode(&file, 0o600);
    let key = |more: &str| {
        format!(
            "[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n[data]\ndir = \"{}\"\n\
             [[auth.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\n{more}\n",
            directory.path().join("data").display()
        )
    };
    let token = |config: &str| {
        let gateway = Gateway::start_as(config, |command| {
            command.env("TOKEN_SECRET", format!("{SECRET}\n")).env("SHARDGATE_SESSIONS_SECRET", format!("{SECRET}\n"));
        });
        let claims = serde_json::json!({
            "iss": "shardgate", "aud": "shardgate", "sub": "42", "role": "user", "permissions": [], "sid": "s_1",
            "iat": jiff::Timestamp::now().as_second(), "exp": jiff::Timestamp::now().as_second() + 60,
        });
        shardgate::auth::install();
        let header = jsonwebtoken::Header { kid: Some("a".to_owned()), ..jsonwebtoken::Header::default() };
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&header, &claims, &key).expect("signed");
        let mut client = gateway.connect();
        client.send(format!("GET /auth/me HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n"));
        assert_eq!(client.read_response().status, 200, "{config}");
    };
    token(&key(&format!("file = \"{}\"", file.display())));
    token(&key("secret = \"${TOKEN_SECRET}\""));
    token(&key(&format!("secret = \" {SECRET} \"")));

    let check = |name: &str, value: &str| {
        let mut command = crate::harness::shardgate(directory.path());
        let output = command.args(["check", "--no-files"]).env(name, value).output().expect("it runs");
        output.status.code()
    };
    for (name, value) in [
        ("SHARDGATE_ACCOUNTS_POSTGRES_URL", " postgres://u:p@h/d?sslmode=verify-full\n"),
        ("SHARDGATE_ACCOUNTS_POSTGRES_CONNECTIONS_MAX", "7\n"),
        ("PORT", "8080\n"),
        ("SHARDGATE_LISTENER_ADDRESS", "127.0.0.1\n"),
        ("SHARDGATE_SESSIONS_SECRET", "\n"),
    ] {
        assert_eq!(check(name, value), Some(0), "{name}");
    }
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let directory = TempDir::new().expect("a temporary directory");
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let pipe = pipe.display();
    for (key, config) in [
        ("auth.keys[0].file", format!("[[auth.keys]]\nkid = \"a\"\nalgorithm = \"ES256\"\nfile = \"{pipe}\"\n")),
        (
            "auth.issuers[0].jwks_file",
            format!("[[auth.issuers]]\nissuer = \"i\"\naudiences = [\"a\"]\njwks_file = \"{pipe}\"\n"),
        ),
        (
            "auth.issuers[0]: ca_file",
            format!(
                "[[auth.issuers]]\nissuer = \"i\"\naudiences = [\"a\"]\njwks_url = \"https://127.0.0.1:9\"\nca_file = \"{pipe}\"\n"
            ),
        ),
    ] {
        let said = refusal(&config);
        assert!(said.contains(key) && said.contains("it is no regular file"), "{said}");
    }
}
