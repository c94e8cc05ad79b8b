//! `shardgate migrate` and `shardgate user …`: changes to users from the command line. Running instances hear of them
//! through the log of revocations.

use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::Stores;
use super::password::{Cost, Hasher, PASSWORD_BYTES_MAX, Scratch, StoredHash};
use super::start::REFRESH_KEY_FILE;
use super::store::{NewUser, StoreFailure, UserChange, UserStore};
use super::user::{User, fresh_id, normal_email};
use crate::config::{self, Config};
use crate::embedded;
use crate::sessions::is_user_id;

/// Who did it, in the log of revocations.
const BY: &str = "cli";

/// What is shorter is guessed soon (NIST SP 800-63B §5.1.1.2).
const PASSWORD_CHARS_MIN: usize = 8;

/// Users that are read at once.
const PAGE: u32 = 1000;

/// What is done about users.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user; the password is asked for, or read from standard input.
    Add {
        /// The e-mail address to log in with.
        email: String,
        /// One of the configuration's roles.
        #[arg(long, default_value = "user")]
        role: String,
        /// A permission besides those of the role; may be repeated.
        #[arg(long = "permission", value_name = "PERMISSION")]
        permissions: Vec<String>,
        /// The user's id; without it, a fresh one is made.
        #[arg(long)]
        id: Option<String>,
    },
    /// List all users.
    List {
        /// As a JSON list instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lock a user out and end all its sessions.
    Disable(UserArgument),
    /// Let a user in again.
    Enable(UserArgument),
    /// Set a user's password, asked for or read from standard input, and end all its sessions.
    Passwd(UserArgument),
    /// Set a user's role and permissions, and end all its sessions, so that it logs in with the new ones.
    Roles {
        /// Which user.
        #[command(flatten)]
        whom: UserArgument,
        /// One of the configuration's roles.
        role: String,
        /// A permission besides those of the role; may be repeated. Those that the user had go.
        #[arg(long = "permission", value_name = "PERMISSION")]
        permissions: Vec<String>,
    },
}

/// Which user.
#[derive(Debug, Args)]
pub struct UserArgument {
    /// The user's e-mail address or id.
    user: String,
}

/// Makes the tables of the configured stores, or brings them up to date.
pub fn migrate(config: &Config, output: &mut impl Write) -> anyhow::Result<()> {
    on_runtime(async {
        let kept = Stores::open(config)?;
        kept.users.migrate().await.context("the tables cannot be made")?;
        let what = match kept.users {
            UserStore::Embedded(store) => store.path().display().to_string(),
            UserStore::Postgres(_) => "the table users in PostgreSQL".to_owned(),
        };
        Ok(writeln!(output, "{what} is up to date")?)
    })
}

/// Does what is to be done about users.
pub fn user(command: UserCommand, config: &Config, output: &mut impl Write) -> anyhow::Result<()> {
    on_runtime(async {
        check_store(config, matches!(command, UserCommand::Add { .. }))?;
        let kept = Stores::open(config)?;
        match command {
            UserCommand::Add { email, role, permissions, id } => {
                let email = normal_email(&email).ok_or_else(|| anyhow!("{email:?} is no e-mail address"))?;
                check_role(config, &role)?;
                check_permissions(&permissions)?;
                let id = id.or_else(fresh_id).context("the system has no random bytes")?;
                if !is_user_id(&id) {
                    bail!("{id:?} is no id of a user; it is up to 128 of A-Z, a-z, 0-9, ., _, -, : and @");
                }
                let password = hash(config, &new_password()?)?;
                let line = format!("added {id} {email} ({role})");
                let added = kept.users.add(NewUser { id, email, role, permissions, password }).await;
                added.map_err(told)?;
                Ok(writeln!(output, "{line}")?)
            }
            UserCommand::List { json } => list(&kept.users, json, output).await,
            UserCommand::Disable(whom) => {
                let user = change(&kept, &whom, |_| Ok(UserChange::Disabled(true)), true).await?;
                Ok(writeln!(output, "disabled {user}; all its sessions have ended")?)
            }
            UserCommand::Enable(whom) => {
                let user = change(&kept, &whom, |_| Ok(UserChange::Disabled(false)), false).await?;
                Ok(writeln!(output, "enabled {user}")?)
            }
            UserCommand::Passwd(whom) => {
                let set = |_: &User| Ok(UserChange::Password(hash(config, &new_password()?)?));
                let user = change(&kept, &whom, set, true).await?;
                Ok(writeln!(output, "set the password of {user}; all its sessions have ended")?)
            }
            UserCommand::Roles { whom, role, permissions } => {
                check_role(config, &role)?;
                check_permissions(&permissions)?;
                let line = format!("({role})");
                let user = change(&kept, &whom, |_| Ok(UserChange::Role { role, permissions }), true).await?;
                Ok(writeln!(output, "changed {user} {line}; all its sessions have ended")?)
            }
        }
    })
}

/// The users that `shardgate demo` has: address, role, password.
pub const DEMO_USERS: [(&str, &str, &str); 3] = [
    ("ada@example.com", "admin", "ada-demo-password"),
    ("ben@example.com", "analyst", "ben-demo-password"),
    ("cleo@example.com", "user", "cleo-demo-password"),
];

/// Adds the users of the demo; those that are there stay as they are. It blocks for as long as their hashes take.
pub fn add_demo_users(config: &Config) -> anyhow::Result<()> {
    on_runtime(async {
        let users = Stores::open(config)?.users;
        users.migrate().await?;
        for (email, role, password) in DEMO_USERS {
            if users.by_email(email).await?.is_some() {
                continue;
            }
            let id = fresh_id().context("the system has no random bytes")?;
            let password = hash(config, password)?;
            let (email, role) = (email.to_owned(), role.to_owned());
            users.add(NewUser { id, email, role, permissions: Vec::new(), password }).await?;
        }
        Ok(())
    })
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Makes a change, and then ends the user's sessions where that goes with it.
async fn change(
    kept: &Stores,
    whom: &UserArgument,
    what: impl FnOnce(&User) -> anyhow::Result<UserChange>,
    ends_sessions: bool,
) -> anyhow::Result<Named> {
    let user = find(&kept.users, &whom.user).await?;
    let change = what(&user)?;
    if !kept.users.change(&user.id, change).await.map_err(told)? {
        bail!("{} has been removed meanwhile", user.id);
    }
    let named = Named { id: user.id, email: user.email };
    if ends_sessions {
        // Whoever disables a user twice after a failure loses nothing.
        kept.sessions.end_all(&named.id, BY).await.with_context(|| {
            format!("{named} was changed, but its sessions go on until they are renewed; run the command again")
        })?;
    }
    Ok(named)
}

struct Named {
    id: String,
    email: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, shown(&self.email))
    }
}

/// By e-mail address if it looks like one, else, or if nobody has it, by id.
async fn find(users: &UserStore, whom: &str) -> anyhow::Result<User> {
    if let Some(email) = normal_email(whom)
        && let Some(user) = users.by_email(&email).await.map_err(told)?
    {
        return Ok(user);
    }
    users
        .by_id(whom)
        .await
        .map_err(told)?
        .ok_or_else(|| anyhow!("there is no user {whom:?}; `shardgate user list` lists all"))
}

fn check_role(config: &Config, role: &str) -> anyhow::Result<()> {
    if config.roles.contains_key(role) {
        return Ok(());
    }
    let roles: Vec<&str> = config.roles.keys().map(String::as_str).collect();
    bail!("{role:?} is no role of the configuration; there are {}", roles.join(", "))
}

/// What a token can carry and a route can ask for.
fn check_permissions(permissions: &[String]) -> anyhow::Result<()> {
    match permissions.iter().find(|permission| !config::is_permission(permission)) {
        None => Ok(()),
        Some(wrong) => bail!("{:?} is no permission; {}", shown(wrong), config::PERMISSION_FORM),
    }
}

/// Whether the embedded store, if it is the one, is where it is looked for: a command in another directory would make an
/// empty one there, and one beside a gateway whose file went away would give it that.
fn check_store(config: &Config, may_begin: bool) -> anyhow::Result<()> {
    let directory = &config.data.dir;
    let is_there = directory.join(embedded::FILE_NAME).exists();
    // Keys without a store: there was one.
    let is_virgin = !directory.join(REFRESH_KEY_FILE).exists();
    if config.accounts.postgres_url.is_some() || is_there || (may_begin && is_virgin) {
        return Ok(());
    }
    // A path that is whole is the same wherever the command runs.
    let advice = if directory.is_absolute() {
        "look whether the gateway runs by another configuration".to_owned()
    } else {
        format!(
            "{} is looked for from where the command runs: run it where the gateway runs, or write a whole path into data.dir",
            directory.display()
        )
    };
    let place = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
    bail!(
        "data.dir: there is no {} in {}; {advice}, put the file back, or make an empty one: \
         `shardgate migrate`",
        embedded::FILE_NAME,
        place.display()
    )
}

/// The log has said what to do.
fn told(failure: StoreFailure) -> anyhow::Error {
    failure.into()
}

/// Asks twice on a terminal, and otherwise takes the first line of standard input.
fn new_password() -> anyhow::Result<Zeroizing<String>> {
    let password = if io::stdin().is_terminal() {
        let password = Zeroizing::new(rpassword::prompt_password("New password: ")?);
        if *password != *Zeroizing::new(rpassword::prompt_password("Again: ")?) {
            bail!("the two passwords differ");
        }
        password
    } else {
        let mut line = Zeroizing::new(String::with_capacity(2 * PASSWORD_BYTES_MAX));
        io::stdin().lock().take(2 * PASSWORD_BYTES_MAX as u64).read_line(&mut line)?;
        let end = line.trim_end_matches(['\r', '\n']).len();
        line.truncate(end);
        line
    };
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        bail!(
            "the password has {} bytes; it has {PASSWORD_CHARS_MIN} characters or more, and at most {PASSWORD_BYTES_MAX} bytes",
            password.len()
        );
    }
    Ok(password)
}

fn hash(config: &Config, password: &str) -> anyhow::Result<StoredHash> {
    let memory_kib = u32::try_from(config.accounts.password_memory >> 10)?;
    let hasher = Hasher::new(Cost { memory_kib, passes: config.accounts.password_passes })?;
    Ok(hasher.hash(&mut Scratch::new(), password)?)
}

async fn list(users: &UserStore, json: bool, output: &mut impl Write) -> anyhow::Result<()> {
    let mut after = String::new();
    let mut count = 0_u64;
    loop {
        let page = users.list(&after, PAGE).await.map_err(told)?;
        if json {
            for user in &page {
                write!(output, "{}\n  {}", if count == 0 { "[" } else { "," }, as_json(user))?;
                count += 1;
            }
        } else {
            table(&page, count == 0, output)?;
            count += page.len() as u64;
        }
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after.clone_from(&last.email),
            _ => break,
        }
    }
    if json {
        writeln!(output, "{}", if count == 0 { "[]" } else { "\n]" })?;
    } else if count == 0 {
        writeln!(output, "there are no users; `shardgate user add` adds one")?;
    }
    Ok(())
}

fn as_json(user: &User) -> serde_json::Value {
    json!({
        "id": user.id,
        "email": user.email,
        "role": user.role,
        "permissions": user.permissions,
        "disabled": user.is_disabled,
        "createdAt": time(user.created_ms),
        "updatedAt": time(user.updated_ms),
    })
}

fn time(ms: u64) -> String {
    let time = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn table(users: &[User], with_head: bool, output: &mut impl Write) -> io::Result<()> {
    let mut rows = Vec::with_capacity(users.len() + 1);
    if with_head && !users.is_empty() {
        rows.push(["ID", "EMAIL", "ROLE", "STATE", "CREATED", "PERMISSIONS"].map(str::to_owned));
    }
    for user in users {
        let state = if user.is_disabled { "disabled" } else { "active" };
        let (created, permissions) = (time(user.created_ms), user.permissions.join(","));
        rows.push([&user.id, &user.email, &user.role, state, &created, &permissions].map(shown));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(output, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Others may have written it: nothing in it moves the cursor.
fn shown(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_table_lines_up_and_moves_no_cursor() {
        let user = |id: &str, email: &str, permissions: &[&str]| User {
            id: id.to_owned(),
            email: email.to_owned(),
            role: "user".to_owned(),
            permissions: permissions.iter().map(|&permission| permission.to_owned()).collect(),
            password: None,
            is_disabled: id == "2",
            created_ms: 1_700_000_000_000,
            updated_ms: 1_700_000_000_000,
        };
        let users = [user("1", "ada@example.com", &["a", "b:*"]), user("2", "\u{1b}[31mb@c", &[])];
        let mut output = Vec::new();
        table(&users, true, &mut output).expect("written");
        expect![[r"
            ID  EMAIL            ROLE  STATE     CREATED               PERMISSIONS
            1   ada@example.com  user  active    2023-11-14T22:13:20Z  a,b:*
            2   �[31mb@c         user  disabled  2023-11-14T22:13:20Z
        "]]
        .assert_eq(&String::from_utf8(output).expect("UTF-8"));
    }
}
