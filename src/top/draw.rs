//! The screen, out of what is to be on it.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Sparkline, Table},
};

use super::{
    text,
    view::{Tab, View},
};

/// Windows with fewer rows are low.
const LOW: u16 = 14;
/// So wide are columns at least, and so far apart.
const NAME_MIN: usize = 14;
const NUMBER_MIN: usize = 7;
const GAP: usize = 2;
/// So wide is a name at most.
const CELL_MAX: usize = 120;

/// Draws all of it; `now` is the time since 1970.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, now: Duration) {
    // A low window has the table rather than the graph.
    let [graph, gap] = if frame.area().height < LOW { [0, 0] } else { [3, 1] };
    let [head, graph, tabs, _, table, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(graph),
        Constraint::Length(1),
        Constraint::Length(gap),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, view, now);
    draw_graph(frame, graph, view);
    draw_tabs(frame, tabs, view);
    draw_table(frame, table, view);
    let keys = "q end   ←→ table   ↑↓ move   s sort   p pause";
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View, now: Duration) {
    let title = Span::styled(format!("shardgate {}", view.source), Style::new().add_modifier(Modifier::BOLD));
    let mut first = vec![title];
    if let Some((why, since)) = &view.silence {
        let gone = text::lasting(now.saturating_sub(*since).as_secs());
        first.push(Span::styled(format!("  no answer for {gone}: {why}"), Style::new().fg(Color::Red)));
    } else if view.is_paused {
        first.push(Span::styled("  paused", Style::new().fg(Color::Yellow)));
    }
    let mut lines = vec![Line::from(first)];
    match &view.state {
        Some(state) => {
            let tone = colour(&state.process.status);
            let [one, two] = text::head(state);
            lines.push(Line::styled(one, Style::new().fg(tone)));
            lines.push(Line::raw(two));
        }
        None if view.silence.is_none() => lines.push(Line::raw("waiting for the first answer")),
        None => {}
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// Requests a second, as far back as there is room.
fn draw_graph(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let Some(state) = view.state.as_ref().filter(|_| area.height > 0) else { return };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is no number of requests is none"
    )]
    let values: Vec<u64> = state.history.requests.iter().map(|value| value.unwrap_or(0.0) as u64).collect();
    let from = values.len().saturating_sub(usize::from(area.width));
    let graph = Sparkline::default().data(&values[from..]).style(Style::new().fg(Color::Blue));
    frame.render_widget(graph, area);
    let most = values[from..].iter().max().copied().unwrap_or(0);
    let label = Paragraph::new(format!("requests/s, up to {most}")).alignment(Alignment::Right);
    frame.render_widget(
        label.style(Style::new().add_modifier(Modifier::DIM)),
        Rect { height: 1.min(area.height), ..area },
    );
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let tabs = Tab::ALL.iter().flat_map(|tab| {
        let style = if *tab == view.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        [Span::styled(format!(" {} ", tab.name()), style), Span::raw(" ")]
    });
    let mut line: Vec<_> = tabs.collect();
    if view.tab == Tab::Routes {
        line.push(Span::styled(format!("by {}", view.sort.name()), Style::new().add_modifier(Modifier::DIM)));
    }
    frame.render_widget(Paragraph::new(Line::from(line)), area);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let (head, rows) = view.rows();
    if head.is_empty() {
        return;
    }
    let has_words = head.get(1) == Some(&"STATUS");
    let width_of = |at: usize| if at == 0 || at == 1 && has_words { NAME_MIN } else { head[at].len().max(NUMBER_MIN) };
    // Where not all fit, the first say the most.
    let mut columns = head.len();
    while columns > 1 && (0..columns).map(|at| width_of(at) + GAP).sum::<usize>() > usize::from(area.width) + GAP {
        columns -= 1;
    }
    let widths = (0..columns).map(|at| match at {
        0 => Constraint::Fill(1),
        1 if has_words => Constraint::Fill(1),
        _ => Constraint::Length(u16::try_from(width_of(at)).unwrap_or(u16::MAX)),
    });
    let cell = |at: usize, text: &str| {
        let text = text::harmless(text, CELL_MAX);
        let is_left = at == 0 || at == 1 && has_words;
        let style = if at == 1 && has_words {
            Style::new().fg(colour(text.split([' ', ',']).next().unwrap_or("")))
        } else {
            Style::new()
        };
        Cell::from(Line::styled(text, style).alignment(if is_left { Alignment::Left } else { Alignment::Right }))
    };
    let titles = Row::new(
        head.iter().enumerate().take(columns).map(|(at, title)| cell_of(title, at == 0 || at == 1 && has_words)),
    );
    let shown = rows.iter().skip(view.top).take(usize::from(area.height));
    let shown = shown
        .map(|row| Row::new(row.iter().enumerate().take(columns).map(|(at, text)| cell(at, text)).collect::<Vec<_>>()));
    let titles = titles.style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(shown, widths).header(titles).column_spacing(2), area);
}

fn cell_of(title: &str, is_left: bool) -> Cell<'_> {
    Cell::from(Line::raw(title).alignment(if is_left { Alignment::Left } else { Alignment::Right }))
}

fn colour(status: &str) -> Color {
    match status {
        "healthy" | "up" => Color::Green,
        "degraded" | "untested" | "failing" | "drained" | "gone" => Color::Yellow,
        "unhealthy" | "down" | "ejected" => Color::Red,
        _ => Color::Reset,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::view::Key, *};

    #[track_caller]
    fn check(view: &View, [width, height]: [u16; 2], expected: &Expect) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no terminal is needed");
        terminal.draw(|frame| draw(frame, view, Duration::from_secs(10))).expect("drawn");
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for row in buffer.content.chunks(usize::from(width.max(1))) {
            let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        expected.assert_eq(&text);
    }

    fn view() -> View {
        let mut view = View::new("127.0.0.1:3001");
        view.take(Ok(super::super::view::tests::example()), Duration::ZERO);
        view
    }

    #[test]
    fn upstreams_with_their_instances() {
        check(
            &view(),
            [100, 16],
            &expect![[r"
            shardgate 127.0.0.1:3001
            degraded, up 1h 2m, configuration 0; 42 MiB resident, 0.72 cores, 24 connections, 7 sockets
            800 requests/s, 0.3 failing/s, 3 under way; p50 1.3ms, p99 31ms, p99.9 180ms
                                                      ▁▁▁▂▂▃▃▃▄▄▅▅▅▆▆▇▇█                   requests/s, up to 885
                                   ▁▁▂▂▂▃▃▄▄▅▅▅▆▆▇▇▇████████████████████
               ▁▁▂▂▂▃▃▄▄▄▅▅▆▆▆▇▇████████████████████████████████████████
             Upstreams   Shards   Routes

            UPSTREAM                    STATUS                       REQ/S   FAIL/S  UNDER WAY      P50      P99
            shop                        degraded (refused)             812      0.3          3    1.3ms     31ms
              10.0.0.5:9000             up                                                   1    1.5ms
              10.0.0.6:9000             drained by ann; up                                   1    1.5ms
              10.0.0.7:9000             down (refused)                                       1    1.5ms


            q end   ←→ table   ↑↓ move   s sort   p pause
        "]],
        );
    }

    #[test]
    fn shards_routes_and_a_silence() {
        let mut view = view();
        view.press(Key::Next);
        view.take(Err("it cannot be reached".to_owned()), Duration::from_secs(3));
        check(
            &view,
            [100, 13],
            &expect![[r"
                shardgate 127.0.0.1:3001  no answer for 7s: it cannot be reached
                degraded, up 1h 2m, configuration 0; 42 MiB resident, 0.72 cores, 24 connections, 7 sockets
                800 requests/s, 0.3 failing/s, 3 under way; p50 1.3ms, p99 31ms, p99.9 180ms
                 Upstreams   Shards   Routes
                SHARD                                        BUSY      LAG    REQ/S  UNDER WAY  CONNECTIONS  SOCKETS
                0                                             50%    400µs      400          0           12        0
                1 silent                                      25%    400µs      400          0           12        0





                q end   ←→ table   ↑↓ move   s sort   p pause
            "]],
        );
        view.press(Key::Next);
        view.press(Key::Sort);
        check(
            &view,
            [60, 14],
            &expect![[r"
                shardgate 127.0.0.1:3001  no answer for 7s: it cannot be rea
                degraded, up 1h 2m, configuration 0; 42 MiB resident, 0.72 c
                800 requests/s, 0.3 failing/s, 3 under way; p50 1.3ms, p99 3
                                                       requests/s, up to 885
                                       ▁▁▂▂▂▃▃▄▄▅▅▅▆▆▇▇▇████████████████████
                   ▁▁▂▂▂▃▃▄▄▄▅▅▆▆▆▇▇████████████████████████████████████████
                 Upstreams   Shards   Routes  by errors

                ROUTE           REQUESTS    REQ/S   ERRORS      P50      P99
                pay                   10      1.0        3        -     90ms
                shop                  90      1.0        1        -    5.0ms
                new                    5      1.0        0        -        -

                q end   ←→ table   ↑↓ move   s sort   p pause
            "]],
        );
    }

    #[test]
    fn any_window_will_do() {
        let empty = View::new("gate");
        for width in [0, 1, 2, 7, 30, 300] {
            for height in [0, 1, 2, 3, 5, 8, 9, 40] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no terminal is needed");
                for view in [&view(), &empty] {
                    terminal.draw(|frame| draw(frame, view, Duration::ZERO)).expect("drawn");
                }
            }
        }
    }
}
