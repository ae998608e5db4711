//! The help: all keys of the view below it, and of every view.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::theme::Theme;
use crate::{
    input::{self, Binding, Mode},
    state::{State, View},
};

/// Draws the help over the body.
pub(super) fn draw(state: &State, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let mode = match state.view {
        View::Overview => Mode::Overview,
        View::Events => Mode::Events,
        View::Plugins => Mode::Plugins,
    };
    let mut lines = Vec::new();
    section(&mut lines, theme, state.view.name(), input::own(mode));
    match mode {
        Mode::Events => section(&mut lines, theme, "An opened event", input::own(Mode::Detail)),
        Mode::Plugins => section(&mut lines, theme, "An opened plugin", input::own(Mode::Described)),
        _ => {}
    }
    section(&mut lines, theme, "Everywhere", input::global());
    lines.push(Line::styled("Signs", theme.heading()));
    lines.push(Line::raw("  !  a plugin that is not ready    ~  one that was restarted or has failed"));
    lines.push(Line::raw("  p50 p95: round trip of the monitor's own system:health, last minute"));
    lines.push(Line::raw("  figures are asked for once a second; events are heard as they happen"));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

fn section(lines: &mut Vec<Line<'static>>, theme: &Theme, title: &str, bindings: &'static [Binding]) {
    if bindings.is_empty() {
        return;
    }
    lines.push(Line::styled(title.to_owned(), theme.heading()));
    for binding in bindings.iter().filter(|binding| !binding.about.is_empty()) {
        lines.push(Line::from(vec![
            Span::styled(format!("  {:<10}", binding.shown), theme.accent()),
            Span::raw(binding.about),
        ]));
    }
}
