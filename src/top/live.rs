//! The terminal itself: keys in, screens out, while another thread asks. However it ends, the terminal is as it was.

use std::{
    sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use ratatui::{DefaultTerminal, crossterm::terminal::disable_raw_mode};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, read},
    time::Timespec,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{ask::Source, draw::draw, keys, view::View};
use crate::{admin::state::State, shard::clock};

/// From one answer to the next question.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// So long keys may wait for what has come meanwhile, and a window of another size for its screen.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A screen that has not ended by itself after this long cannot: its terminal takes no more.
const END_WITHIN: Duration = Duration::from_secs(1);

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
    // That is all that a terminal can be told that takes no more.
    let _ = disable_raw_mode();
    std::process::exit(0);
}

/// Whether nobody is at the other end any more. Not all who start a program in a terminal see to it that SIGHUP comes.
fn is_terminal_gone() -> bool {
    matches!(wait_for_input(Duration::ZERO), Ok(Input::Gone))
}

/// What is to be had of the terminal's input.
enum Input {
    Nothing,
    Bytes,
    /// Nobody is at the other end.
    Gone,
}

fn wait_for_input(time: Duration) -> anyhow::Result<Input> {
    let input = std::io::stdin();
    let mut look = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut look, Some(&Timespec::try_from(time)?)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("the terminal cannot be read"),
    }
    let found = look[0].revents();
    Ok(match () {
        () if found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => Input::Gone,
        () if found.contains(PollFlags::IN) => Input::Bytes,
        () => Input::Nothing,
    })
}

fn show(terminal: &mut DefaultTerminal, view: &mut View, news: &Receiver<News>) -> anyhow::Result<()> {
    let mut has_changed = true;
    let mut second = 0;
    let mut size = terminal.size()?;
    let mut typed = Vec::new();
    loop {
        let now = clock::unix_now();
        // A silence grows longer while nothing comes.
        if has_changed || view.silence.is_some() && now.as_secs() != second {
            terminal.draw(|frame| draw(frame, view, now))?;
            (has_changed, second) = (false, now.as_secs());
        }
        let found = wait_for_input(LOOK_INTERVAL)?;
        match found {
            Input::Nothing => {}
            Input::Bytes => {
                let mut bytes = [0; 256];
                match read(std::io::stdin(), &mut bytes) {
                    Ok(0) => return Ok(()),
                    Ok(length) => typed.extend_from_slice(&bytes[..length]),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(error) => return Err(error).context("the terminal cannot be read"),
                }
            }
            Input::Gone => return Ok(()),
        }
        for key in keys::take(&mut typed, matches!(found, Input::Nothing)) {
            has_changed = true;
            if view.press(key) {
                return Ok(());
            }
        }
        let size_now = terminal.size()?;
        has_changed |= size != size_now;
        size = size_now;
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
