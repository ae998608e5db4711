//! The overview: health, figures over time, and the plugins, those that need
//! a look on top.

use ksi_protocol::system::Status;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Cell, Row, Sparkline, Table},
};

use super::theme::{self, Theme};
use crate::{
    figures,
    state::{
        State,
        plugins::{Sort, sorted},
        rates::Series,
    },
};

/// Bodies of fewer rows show the four figures that say most.
const ALL_FIGURES_FROM_ROWS: u16 = 14;

/// Bodies of this many rows give every figure two lines.
const TALL_FROM_ROWS: u16 = 30;

/// Columns of a figure's name and value, before its sparkline.
const LABEL_COLUMNS: u16 = 27;

/// Draws the overview.
pub(super) fn draw(state: &State, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let Some(status) = &state.status else {
        let text = format!("waiting for the first figures from {}", state.socket);
        frame.render_widget(Line::styled(text, theme.dim()), area);
        return;
    };
    let summary = summary(state, status, theme, area);
    let figures = figures(state, area);
    let rows_each = if area.height >= TALL_FROM_ROWS { 2 } else { 1 };
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(u16::try_from(summary.len()).unwrap_or(u16::MAX)),
        Constraint::Length(u16::try_from(figures.len()).unwrap_or(u16::MAX).saturating_mul(rows_each)),
        Constraint::Fill(1),
    ])
    .areas(area);
    frame.render_widget(ratatui::widgets::Paragraph::new(summary), top);
    let rows = Layout::vertical(figures.iter().map(|_| Constraint::Length(rows_each))).split(middle);
    for (figure, row) in figures.iter().zip(rows.iter()) {
        figure.draw(theme, frame, *row);
    }
    frame.render_widget(table(status, theme, area.width), bottom);
}

/// What the daemon says of itself, and what the monitor has missed.
fn summary(state: &State, status: &Status, theme: &Theme, area: Rect) -> Vec<Line<'static>> {
    let health = &status.health;
    let gaps =
        format!("gaps {} ({} lost) ", figures::count(state.events.gaps), figures::count(state.events.missed));
    let gaps = Span::styled(gaps, if state.events.gaps > 0 { theme.warn() } else { theme.plain() });
    let ready = format!("plugins {}/{} ", health.plugins_ready, health.plugins_total);
    let memory = format!("rss {} ", figures::bytes(status.rss_bytes));
    let mut lines = vec![Line::from(vec![gaps, Span::raw(ready), Span::raw(memory)])];
    if area.height >= ALL_FIGURES_FROM_ROWS {
        lines.push(Line::raw(format!(
            "pid {}  subscriptions {}  boot {}  socket {}",
            health.pid, status.subscriptions, status.boot, status.socket
        )));
    }
    let reasons_max = if area.height >= ALL_FIGURES_FROM_ROWS { 3 } else { 1 };
    for reason in health.reasons.iter().take(reasons_max) {
        lines.push(Line::styled(format!("! {reason}"), theme.of_health(health.status)));
    }
    let more = health.reasons.len().saturating_sub(reasons_max);
    if more > 0 {
        lines.push(Line::styled(format!("  and {more} more reasons"), theme.dim()));
    }
    lines
}

/// A figure, its value now, and its way there.
struct Figure<'a> {
    label: &'static str,
    value: String,
    series: &'a Series,
    alarming: bool,
}

fn figures(state: &State, area: Rect) -> Vec<Figure<'_>> {
    let rates = &state.rates;
    let latency = &rates.latency_us;
    let percentile = |percent| latency.percentile(percent).map_or_else(|| "-".into(), figures::micros);
    let count = |series: &Series| series.last().map_or_else(|| "-".into(), figures::count);
    let figure = |label, series, alarming| Figure { label, value: count(series), series, alarming };
    let mut all = vec![
        figure("events/s", &rates.events, false),
        figure("requests/s", &rates.requests, false),
        figure("refusals/s", &rates.refusals, true),
        Figure {
            label: "p50 p95",
            value: format!("{} {}", percentile(50), percentile(95)),
            series: latency,
            alarming: false,
        },
    ];
    if area.height >= ALL_FIGURES_FROM_ROWS {
        all.insert(3, figure("dropped/s", &rates.dropped, true));
        all.insert(4, figure("sessions", &rates.sessions, false));
        all.insert(5, figure("in flight", &rates.in_flight, false));
    }
    all
}

impl Figure<'_> {
    fn draw(&self, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
        let [left, right] =
            Layout::horizontal([Constraint::Length(LABEL_COLUMNS), Constraint::Fill(1)]).areas(area);
        let alarm = self.alarming && self.series.last().is_some_and(|value| value > 0);
        let style = if alarm { theme.warn() } else { theme.plain() };
        let value_columns = usize::from(LABEL_COLUMNS) - 12;
        let text = format!("{:<10} {:>value_columns$}", self.label, self.value);
        frame.render_widget(Line::styled(text, style), left);
        let style = if alarm { theme.warn() } else { theme.accent() };
        frame.render_widget(
            Sparkline::default()
                .data(self.series.tail(usize::from(right.width)))
                .absent_value_symbol(" ")
                .style(style),
            right,
        );
    }
}

fn table(status: &Status, theme: &Theme, width: u16) -> Table<'static> {
    let wide = width >= 70;
    let rows = sorted(&status.plugins, Sort::Warnings).into_iter().map(|plugin| {
        let mut cells = vec![
            Cell::from(theme::sign(plugin)),
            Cell::from(plugin.name.clone()),
            Cell::from(plugin.state.as_str()),
            Cell::from(figures::count(plugin.in_flight as u64)),
            Cell::from(plugin.restarts.to_string()),
        ];
        if wide {
            cells.push(Cell::from(figures::count(plugin.handled)));
            cells.push(Cell::from(plugin.placement.as_str()));
            cells.push(Cell::from(plugin.last_error.clone().unwrap_or_default()));
        }
        Row::new(cells).style(theme.of_plugin(plugin))
    });
    let mut heads = vec!["", "PLUGIN", "STATE", "BUSY", "RST"];
    let mut widths = vec![
        Constraint::Length(1),
        Constraint::Length(14),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(4),
    ];
    if wide {
        heads.extend(["HANDLED", "PLACE", "LAST ERROR"]);
        widths.extend([Constraint::Length(9), Constraint::Length(10), Constraint::Fill(1)]);
    }
    Table::new(rows, widths).header(Row::new(heads).style(theme.heading()))
}
