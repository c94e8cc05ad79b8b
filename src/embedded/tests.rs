//! What the embedded store promises: durable before the answer, one failure undoes one change, trouble is told and passes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::shard::clock;

static NOTES: [Component; 1] =
    [Component { name: "notes", steps: &["CREATE TABLE notes (id INTEGER PRIMARY KEY, note TEXT UNIQUE) STRICT"] }];
static NOTES_LATER: [Component; 2] = [
    Component {
        name: "notes",
        steps: &[
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, note TEXT UNIQUE) STRICT",
            "ALTER TABLE notes ADD COLUMN by TEXT; UPDATE notes SET by = 'nobody'",
        ],
    },
    Component { name: "more", steps: &["CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT"] },
];

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(work)
}

fn store() -> (TempDir, Embedded) {
    let directory = TempDir::new().expect("a directory");
    let store = Embedded::start(directory.path(), &NOTES).expect("threads");
    (directory, store)
}

async fn add(store: &Embedded, note: &str) -> Result<(), EmbeddedFailure> {
    let note = note.to_owned();
    store.write(move |connection| connection.execute("INSERT INTO notes (note) VALUES (?1)", [note]).map(|_| ())).await
}

async fn count(store: &Embedded) -> Result<i64, EmbeddedFailure> {
    store.read(|connection| connection.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))).await
}

#[test]
fn what_was_answered_is_there_for_every_reader() {
    let (directory, store) = store();
    run(async {
        add(&store, "one").await.expect("written");
        assert_eq!(count(&store).await.expect("read"), 1);
        let other = Embedded::start(directory.path(), &NOTES).expect("threads");
        assert_eq!(count(&other).await.expect("read"), 1);
    });
    assert!(store.health().is_up());
}

#[test]
fn the_files_are_for_their_owner_alone() {
    let parent = TempDir::new().expect("a directory");
    let directory = parent.path().join("a/b");
    let store = Embedded::start(&directory, &NOTES).expect("threads");
    run(add(&store, "one")).expect("written");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let files: Vec<_> =
        fs::read_dir(&directory).expect("readable").map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() > 1, "with a log beside it");
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
}

#[test]
fn what_waits_together_becomes_durable_together_and_fails_alone() {
    let (_directory, store) = store();
    run(async {
        // The first holds the lane until the rest are queued.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let mut first = Box::pin(store.write(move |_| {
            let _ = wait.recv();
            Ok(())
        }));
        let mut rest = Vec::new();
        for number in 0..100 {
            // Each note comes twice, and must be unique.
            rest.push(Box::pin({
                let store = store.clone();
                async move { add(&store, &format!("note {}", number / 2)).await }
            }));
        }
        std::future::poll_fn(|context| {
            assert!(first.as_mut().poll(context).is_pending());
            for work in &mut rest {
                assert!(work.as_mut().poll(context).is_pending());
            }
            std::task::Poll::Ready(())
        })
        .await;
        go.send(()).expect("it waits");
        first.await.expect("done");
        let mut conflicts = 0;
        for work in rest {
            if let Err(failure) = work.await {
                assert!(failure.is_conflict() && !failure.is_away(), "{failure:?}");
                conflicts += 1;
            }
        }
        assert_eq!((conflicts, count(&store).await.expect("read")), (50, 50));
    });
}

#[test]
fn a_full_queue_refuses_and_a_panic_undoes_its_own_change() {
    let (_directory, store) = store();
    run(async {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (tell, begun) = std::sync::mpsc::channel::<()>();
        let mut first = Box::pin(store.write(move |_| {
            let _ = tell.send(());
            wait.recv().map_err(|_| rusqlite::Error::InvalidQuery)
        }));
        let mut queued: Vec<_> = (0..=QUEUE).map(|_| Box::pin(store.write(|_| Ok(())))).collect();
        let mut refused = 0;
        std::future::poll_fn(|context| {
            assert!(first.as_mut().poll(context).is_pending());
            // The lane has taken it from the queue, and nothing else.
            begun.recv().expect("it begins");
            queued.retain_mut(|work| match work.as_mut().poll(context) {
                std::task::Poll::Ready(Err(EmbeddedFailure::Busy)) => {
                    refused += 1;
                    false
                }
                _ => true,
            });
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(refused, 1);
        go.send(()).expect("it waits");
        first.await.expect("done");
        for work in queued {
            work.await.expect("done");
        }
        let panics = store.write(|connection| {
            connection.execute("INSERT INTO notes (note) VALUES ('half')", [])?;
            if connection.is_autocommit() { Ok(()) } else { panic!("on purpose") }
        });
        assert!(matches!(panics.await, Err(EmbeddedFailure::Panicked)));
        assert_eq!(count(&store).await.expect("read"), 0);
        add(&store, "after").await.expect("it goes on");
    });
}

#[test]
fn steps_are_made_once_and_a_newer_file_is_left_alone() {
    let (directory, store) = store();
    run(add(&store, "one")).expect("written");
    drop(store);
    let later = Embedded::start(directory.path(), &NOTES_LATER).expect("threads");
    let by: String =
        run(later.read(|connection| connection.query_row("SELECT by FROM notes", [], |row| row.get(0)))).expect("read");
    assert_eq!(by, "nobody");
    drop(later);
    let again = Embedded::start(directory.path(), &NOTES_LATER).expect("threads");
    assert_eq!(run(count(&again)).expect("read"), 1);
    let older = Embedded::start(directory.path(), &NOTES).expect("threads");
    assert_eq!(older.health().away, Some(FileFault::Newer));
    assert!(matches!(run(add(&older, "two")), Err(EmbeddedFailure::Away(FileFault::Newer, _))));
}

#[test]
fn a_file_that_goes_is_missed_and_used_again_when_it_is_back() {
    let (directory, store) = store();
    let away = directory.path().join("away.db");
    run(async {
        add(&store, "one").await.expect("written");
        store.write(|connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))).await.ok();
        fs::rename(store.path(), &away).expect("moved");
        assert!(matches!(add(&store, "two").await, Err(EmbeddedFailure::Away(FileFault::Missing, _))));
        assert!(matches!(count(&store).await, Err(EmbeddedFailure::Away(FileFault::Missing, _))));
        assert_eq!(store.health().away, Some(FileFault::Missing));
        assert!(!store.path().exists(), "no empty file takes its place");
        fs::rename(&away, store.path()).expect("moved back");
        add(&store, "two").await.expect("written");
        assert_eq!(count(&store).await.expect("read"), 2);
        assert!(store.health().is_up());
    });
}

#[test]
fn what_is_no_database_or_no_directory_is_told_and_passes() {
    let directory = TempDir::new().expect("a directory");
    fs::write(directory.path().join(FILE_NAME), b"this is no database, however long it may be").expect("written");
    let store = Embedded::start(directory.path(), &NOTES).expect("threads");
    assert_eq!(store.health().away, Some(FileFault::Corrupt));
    run(async {
        assert!(matches!(add(&store, "one").await, Err(EmbeddedFailure::Away(FileFault::Corrupt, _))));
        fs::remove_file(store.path()).expect("removed");
        add(&store, "one").await.expect("an empty one was never in use");
    });
    let file = directory.path().join("a-file");
    fs::write(&file, b"").expect("written");
    let store = Embedded::start(&file, &NOTES).expect("threads");
    assert_eq!(store.health().away, Some(FileFault::CannotOpen));
    assert!(run(store.probe()).is_err());
}

#[test]
fn another_processs_lock_is_waited_for_and_then_told() {
    let (_directory, store) = store();
    let other = Connection::open(store.path()).expect("open");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    run(async {
        assert!(matches!(add(&store, "one").await, Err(EmbeddedFailure::Away(FileFault::Locked, _))));
        assert_eq!(count(&store).await.expect("readers go on"), 0);
        assert_eq!(store.health().away, Some(FileFault::Locked));
        // Known to be held, it is hardly waited for: five in turn take less than the first alone.
        let waited = store.health().latency;
        let began = clock::now();
        for _ in 0..5 {
            assert!(matches!(add(&store, "two").await, Err(EmbeddedFailure::Away(FileFault::Locked, _))));
        }
        assert!(clock::now().since(began) < waited, "{waited:?}");
        other.execute_batch("ROLLBACK").expect("unlocked");
        store.probe().await.expect("it passes");
        assert!(store.health().is_up());
    });
}

#[test]
fn a_full_disk_undoes_all_and_passes() {
    let (_directory, store) = store();
    run(async {
        add(&store, "one").await.expect("written");
        // SQLite's own bound gives the error that a full disk gives.
        let fill = store.write(|connection| {
            let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
            connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
            connection.execute("INSERT INTO notes (note) VALUES (?1)", ["x".repeat(1 << 16)])?;
            Ok(())
        });
        assert!(matches!(fill.await, Err(EmbeddedFailure::Away(FileFault::DiskFull, _))));
        assert_eq!(store.health().away, Some(FileFault::DiskFull));
        // The connection is opened anew, without the bound.
        add(&store, "two").await.expect("written");
        assert_eq!(count(&store).await.expect("read"), 2);
    });
}

#[test]
fn readers_cannot_write_and_notice_changes() {
    let (directory, store) = store();
    run(async {
        let version =
            || store.read(|connection| connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)));
        let before = version().await.expect("read");
        assert_eq!(version().await.expect("read"), before);
        add(&store, "one").await.expect("written");
        let after = version().await.expect("read");
        assert_ne!(after, before);
        let other = Embedded::start(directory.path(), &NOTES).expect("threads");
        add(&other, "two").await.expect("written");
        assert_ne!(version().await.expect("read"), after, "also what another process writes");
        let write = store.read(|connection| connection.execute("DELETE FROM notes", [])).await;
        assert!(write.is_err());
        assert_eq!(count(&store).await.expect("read"), 2);
    });
}

#[test]
fn a_read_that_nobody_waits_for_is_left_out_but_a_write_is_made() {
    let (_directory, store) = store();
    run(async {
        drop(Box::pin(add(&store, "never asked")));
        let mut asked = Box::pin(add(&store, "asked"));
        std::future::poll_fn(|context| {
            let _ = asked.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
        drop(asked);
        store.probe().await.expect("up");
        assert_eq!(count(&store).await.expect("read"), 1);
    });
}

#[test]
fn a_read_only_file_is_told() {
    // Root writes anywhere: a child as somebody else shows it.
    if rustix::process::geteuid().is_root() {
        return;
    }
    let (directory, store) = store();
    drop(store);
    fs::set_permissions(directory.path().join(FILE_NAME), Permissions::from_mode(0o400)).expect("set");
    let store = Embedded::start(directory.path(), &NOTES).expect("threads");
    assert!(matches!(
        run(add(&store, "one")),
        Err(EmbeddedFailure::Away(FileFault::ReadOnly | FileFault::CannotOpen, _))
    ));
}
