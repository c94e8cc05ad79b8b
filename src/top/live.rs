//! The terminal itself: keys in, screens out, while another thread asks. However it ends, the terminal is as it was.

use std::{
    sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    ask::Source,
    draw::draw,
    view::{Key, View},
};
use crate::{admin::state::State, shard::clock};

/// From one answer to the next question.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// So long a key may wait for what has come meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A screen that has not ended by itself after this long cannot: a terminal that is gone answers every read at once, with nothing.
const END_WITHIN: Duration = Duration::from_secs(1);
/// So many rows are a page.
const PAGE: isize = 10;

/// What the thread that asks has to say.
enum News {
    Answer(Result<Box<State>, String>),
    /// The process shall end.
    End,
}

/// Shows what `source` says until the user has enough. The thread that asks ends with the process.
pub(super) fn run(runtime: Runtime, source: Source) -> anyhow::Result<()> {
    let (tell, news) = sync_channel(4);
    let mut view = View::new(source.authority());
    let asker = thread::Builder::new().name("asker".to_owned());
    asker.spawn(move || runtime.block_on(ask(&source, &tell))).context("the thread that asks could not be started")?;
    // From here on a panic, too, gives the terminal back.
    let shown = ratatui::try_init().context("the terminal cannot be used").and_then(|mut terminal| {
        let shown = show(&mut terminal, &mut view, &news);
        if is_terminal_gone() {
            // There is nobody to give it back to, or to tell why; whoever tries fails.
            std::process::exit(0);
        }
        shown
    });
    ratatui::restore();
    shown
}

async fn ask(source: &Source, tell: &SyncSender<News>) {
    let (Ok(mut end), Ok(mut gone)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup())) else { return };
    loop {
        tokio::select! {
            answer = source.ask() => {
                let answer = answer.map(Box::new).map_err(|error| format!("{error:#}"));
                // A screen that stands still is told later.
                if let Err(TrySendError::Disconnected(_)) = tell.try_send(News::Answer(answer)) {
                    return;
                }
            }
            _ = end.recv() => break,
            _ = gone.recv() => break,
        }
        tokio::select! {
            () = sleep(ASK_INTERVAL) => {}
            _ = end.recv() => break,
            _ = gone.recv() => break,
        }
        if is_terminal_gone() {
            break;
        }
    }
    // Whoever has ended needs not be told.
    let _ = tell.try_send(News::End);
    sleep(END_WITHIN).await;
    // Nor needs one that is gone be given back.
    let _ = ratatui::try_restore();
    std::process::exit(0);
}

/// Whether nobody is at the other end any more. Not all who start a program in a terminal see to it that SIGHUP comes.
fn is_terminal_gone() -> bool {
    let input = std::io::stdin();
    let mut look = [PollFd::new(&input, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    poll(&mut look, Some(&now)).is_ok() && look[0].revents().intersects(gone)
}

fn show(terminal: &mut DefaultTerminal, view: &mut View, news: &Receiver<News>) -> anyhow::Result<()> {
    let mut has_changed = true;
    let mut second = 0;
    loop {
        let now = clock::unix_now();
        // A silence grows longer while nothing comes.
        if has_changed || view.silence.is_some() && now.as_secs() != second {
            terminal.draw(|frame| draw(frame, view, now))?;
            (has_changed, second) = (false, now.as_secs());
        }
        if event::poll(LOOK_INTERVAL)? {
            has_changed = true;
            // Another size is drawn with the rest.
            if let Event::Key(key) = event::read()?
                && let Some(key) = key_of(key)
                && view.press(key)
            {
                return Ok(());
            }
        }
        loop {
            match news.try_recv() {
                Ok(News::Answer(answer)) => {
                    has_changed = true;
                    view.take(answer.map(|state| *state), clock::unix_now());
                }
                Err(TryRecvError::Empty) => break,
                Ok(News::End) | Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn key_of(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::End,
        KeyCode::Char('q') | KeyCode::Esc => Key::End,
        KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => Key::Next,
        KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => Key::Previous,
        KeyCode::Down | KeyCode::Char('j') => Key::Move(1),
        KeyCode::Up | KeyCode::Char('k') => Key::Move(-1),
        KeyCode::PageDown => Key::Move(PAGE),
        KeyCode::PageUp => Key::Move(-PAGE),
        KeyCode::Home => Key::First,
        KeyCode::End => Key::Last,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('p') => Key::Pause,
        _ => return None,
    })
}
