//! The screen: a pure function of the state.
//!
//! Every view has a header with the views and the daemon's health, a banner
//! while there is no connection, the body, a line for what is typed or noted,
//! and a footer with the keys that hold now. Sizes below 40×12 lose parts, and
//! never panic.

mod events;
mod help;
mod overview;
mod plugins;
#[cfg(test)]
mod tests;
mod theme;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::Paragraph,
};

use crate::{
    figures, input,
    input::Mode,
    state::{Connection, State, View, prompt::Purpose},
};
use theme::Theme;

/// Screens lower than this spend one line on the footer, whatever is cut off.
const FOOTER_WRAPS_FROM_ROWS: u16 = 10;

/// Draws the state.
pub(crate) fn draw(state: &State, frame: &mut Frame<'_>) {
    let theme = Theme::new(state.colour);
    let area = frame.area();
    let footer = footer(state, &theme, area);
    let banner = state.banner();
    let [head, above, body, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(banner.is_some())),
        Constraint::Fill(1),
        Constraint::Length(u16::from(state.prompt.is_some() || state.notice.is_some())),
        Constraint::Length(u16::try_from(footer.len()).unwrap_or(1)),
    ])
    .areas(area);
    frame.render_widget(header(state, &theme), head);
    if let Some(text) = banner {
        frame.render_widget(Line::styled(text, theme.bad()), above);
    }
    match state.view {
        _ if state.help => help::draw(state, &theme, frame, body),
        View::Overview => overview::draw(state, &theme, frame, body),
        View::Events => events::draw(state, &theme, frame, body),
        View::Plugins => plugins::draw(state, &theme, frame, body),
    }
    if state.is_stale() && !state.help {
        frame.buffer_mut().set_style(body, theme.dim());
    }
    frame.render_widget(typed(state, &theme), below);
    frame.render_widget(Paragraph::new(footer), foot);
}

/// The views, then what is known of the daemon.
fn header(state: &State, theme: &Theme) -> Line<'static> {
    let mut spans = Vec::new();
    for (number, view) in (1..).zip(View::ALL) {
        let style = if view == state.view { theme.selected() } else { theme.plain() };
        spans.push(Span::styled(format!("{number} {}", view.name()), style));
        spans.push(Span::raw(" "));
    }
    let server = state.server.as_deref().unwrap_or("ksid");
    match (&state.requests, &state.status) {
        (Connection::Up, Some(status)) => {
            let health = &status.health;
            spans
                .push(Span::styled(format!("● {} ", health.status.as_str()), theme.of_health(health.status)));
            spans.push(Span::raw(format!("{server} up {}", figures::span(health.uptime_ms))));
        }
        (Connection::Lost(_), Some(status)) => {
            spans.push(Span::styled("○ unknown ", theme.bad()));
            let up = figures::span(status.health.uptime_ms);
            spans.push(Span::styled(format!("{server} was up {up}"), theme.dim()));
        }
        (Connection::Connecting, _) => spans.push(Span::styled("connecting…", theme.dim())),
        _ => spans.push(Span::styled("● no data yet", theme.dim())),
    }
    Line::from(spans)
}

/// What is being typed, or else what is to be noted.
fn typed(state: &State, theme: &Theme) -> Line<'static> {
    let Some(prompt) = &state.prompt else {
        return Line::styled(state.notice.clone().unwrap_or_default(), theme.warn());
    };
    let sign = match prompt.purpose {
        Purpose::Filter => "/",
        Purpose::Command => ":",
    };
    let mut spans = vec![
        Span::styled(sign, theme.accent()),
        Span::raw(prompt.text.clone()),
        Span::styled(" ", theme.selected()),
    ];
    if let Some(error) = &prompt.error {
        spans.push(Span::styled(format!("  {error}"), theme.bad()));
    }
    Line::from(spans)
}

/// The keys of the current view, in as many lines as they need and the screen
/// can spare.
fn footer(state: &State, theme: &Theme, area: Rect) -> Vec<Line<'static>> {
    let mut keys: Vec<(&str, &str)> = match &state.prompt {
        Some(prompt) if prompt.purpose == Purpose::Filter => {
            vec![("enter", "keep"), ("esc", "undo"), ("!", "inverse"), ("agent:*", "pattern")]
        }
        Some(_) => vec![("enter", "do"), ("esc", "cancel"), ("overview events plugins help q", "")],
        None => input::own(state.mode())
            .iter()
            .chain(input::global())
            .filter(|binding| !binding.label.is_empty())
            .map(|binding| (binding.shown, binding.label))
            .collect(),
    };
    if filtered(state) && state.prompt.is_none() && matches!(state.mode(), Mode::Events | Mode::Plugins) {
        keys.insert(1, ("esc", "clear"));
    }
    let lines_max = if area.height < FOOTER_WRAPS_FROM_ROWS { 1 } else { 3 };
    let mut lines: Vec<Line<'static>> = vec![Line::default()];
    let mut used = 0;
    for (shown, label) in keys {
        let width = shown.chars().count() + label.chars().count() + 3;
        if used > 0 && used + width > usize::from(area.width) + 2 && lines.len() < lines_max {
            lines.push(Line::default());
            used = 0;
        }
        used += width;
        if let Some(line) = lines.last_mut() {
            line.push_span(Span::styled(shown.to_owned(), theme.accent()));
            line.push_span(Span::styled(format!(" {label}  "), theme.dim()));
        }
    }
    lines
}

fn filtered(state: &State) -> bool {
    match state.view {
        View::Overview => false,
        View::Events => !state.events.filter().is_all(),
        View::Plugins => !state.plugins.filter.is_all(),
    }
}
