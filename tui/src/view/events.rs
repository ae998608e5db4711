//! The event view: the stream, and beside it the opened event.
//!
//! Only the rows on the screen are turned into text, and of them only small
//! payloads are decoded.

use ksi_protocol::{frame::Event, json};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Paragraph, Row, Table, Wrap},
};

use super::theme::Theme;
use crate::{
    figures,
    state::{
        State,
        events::{EVENTS_MAX, Entry, Events},
    },
};

/// Largest payload that a row shows the beginning of: what does not fit the
/// widest screen need not be decoded ten times a second.
const PREVIEW_BYTES_MAX: usize = 2 * 1024;

/// Bodies of fewer rows show an opened event instead of the stream, not below
/// it.
const SPLIT_FROM_ROWS: u16 = 14;

/// Draws the stream.
pub(super) fn draw(state: &State, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let Some(detail) = &state.events.detail else {
        return list(state, theme, frame, area);
    };
    let list_rows = if area.height >= SPLIT_FROM_ROWS { area.height * 2 / 5 } else { 0 };
    let [top, title, bottom] =
        Layout::vertical([Constraint::Length(list_rows), Constraint::Length(1), Constraint::Fill(1)])
            .areas(area);
    if list_rows > 0 {
        list(state, theme, frame, top);
    }
    let position = format!("── event, line {} of {} ", detail.scroll + 1, detail.lines.len());
    frame.render_widget(Line::styled(format!("{position:─<200}"), theme.dim()), title);
    let visible = detail.lines.iter().skip(detail.scroll).take(usize::from(bottom.height));
    let lines: Vec<Line<'_>> = visible.map(|line| Line::raw(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), bottom);
}

fn list(state: &State, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let [title_area, rows_area] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    frame.render_widget(title(&state.events, theme), title_area);
    let columns = columns(area.width, state.wide);
    let height = usize::from(rows_area.height.saturating_sub(1));
    let window = state.events.window(height);
    let shown = window.start..(window.start + height).min(state.events.len());
    let rows = shown.clone().filter_map(|position| {
        let row = match state.events.at(position)? {
            Entry::Event(event) => Row::new(columns.iter().map(|column| (column.cell)(event))),
            Entry::Mark { .. } => Row::new([""]),
        };
        Some(if window.selected == Some(position) { row.style(theme.selected()) } else { row })
    });
    let heads = Row::new(columns.iter().map(|column| column.head)).style(theme.heading());
    let widths = columns.iter().map(|column| column.width);
    frame.render_widget(Table::new(rows, widths).header(heads), rows_area);
    // Marks run over all columns, which a table cannot do.
    for (row, position) in rows_area.rows().skip(1).zip(shown) {
        if let Some(Entry::Mark { text, at_ms }) = state.events.at(position) {
            let clock = if *at_ms == 0 { String::new() } else { figures::clock(*at_ms) + " " };
            frame.render_widget(Line::styled(format!("── {clock}{text}"), theme.warn()), row);
        }
    }
}

/// What is shown of how much, and what is special about it.
fn title(events: &Events, theme: &Theme) -> Line<'static> {
    let mut spans = Vec::new();
    if let Some(arrived) = events.arrived_in_pause() {
        spans.push(Span::styled(format!("PAUSED +{} ", figures::count(arrived)), theme.warn()));
    } else if events.follows() {
        spans.push(Span::styled("live ", theme.good()));
    }
    if !events.filter().is_all() {
        spans.push(Span::styled(format!("/{} ", events.filter()), theme.accent()));
    }
    let len = figures::count(events.len() as u64);
    spans.push(Span::raw(format!("{len} of {} ", figures::count(events.kept() as u64))));
    let gaps = format!("gaps {} ({} lost) ", figures::count(events.gaps), figures::count(events.missed));
    spans.push(Span::styled(gaps, if events.gaps > 0 { theme.warn() } else { theme.dim() }));
    spans.push(Span::styled(
        format!("heard {}, {} kept at most", figures::count(events.heard), figures::count(EVENTS_MAX as u64)),
        theme.dim(),
    ));
    Line::from(spans)
}

/// A column of the stream.
struct Column {
    head: &'static str,
    width: Constraint,
    cell: fn(&Event) -> String,
}

const fn column(head: &'static str, width: Constraint, cell: fn(&Event) -> String) -> Column {
    Column { head, width, cell }
}

const TIME: Column = column("TIME UTC", Constraint::Length(12), |event| figures::clock(event.at_ms));
const SHORT_TIME: Column = column("TIME UTC", Constraint::Length(SHORT_TIME_COLUMNS), |event| {
    figures::clock(event.at_ms).chars().take(usize::from(SHORT_TIME_COLUMNS)).collect()
});
const SEQ: Column = column("SEQ", Constraint::Length(9), |event| event.seq.to_string());
const NAME: Column = column("EVENT", Constraint::Length(26), |event| event.event.to_string());
const LAST_NAME: Column = column("EVENT", Constraint::Fill(1), |event| event.event.to_string());
const ORIGIN: Column = column("ORIGIN", Constraint::Length(18), |event| event.origin.to_string());
const CORRELATION: Column = column("CORRELATION", Constraint::Fill(1), |event| {
    event.correlation_id.clone().unwrap_or_else(|| "-".into())
});
const BYTES: Column = column("BYTES", Constraint::Length(8), |event| event.data.len().to_string());
const PAYLOAD: Column = column("PAYLOAD", Constraint::Fill(2), preview);

/// Columns of a time without its milliseconds.
const SHORT_TIME_COLUMNS: u16 = 8;

/// Screens of this many columns hold the whole envelope beside the payload.
const WHOLE_FROM_COLUMNS: u16 = 110;

/// Screens of fewer columns have no room for payloads.
const PAYLOAD_FROM_COLUMNS: u16 = 60;

/// The columns for a screen: what says most, or with `wide` the rest of the
/// envelope; side by side where there is room.
fn columns(width: u16, wide: bool) -> &'static [Column] {
    static NARROW: [Column; 2] = [SHORT_TIME, LAST_NAME];
    static NARROW_REST: [Column; 3] = [SHORT_TIME, LAST_NAME, ORIGIN];
    static BASIC: [Column; 4] = [TIME, NAME, ORIGIN, PAYLOAD];
    static REST: [Column; 5] = [SHORT_TIME, SEQ, NAME, BYTES, CORRELATION];
    static WHOLE: [Column; 7] = [TIME, SEQ, NAME, ORIGIN, BYTES, CORRELATION, PAYLOAD];
    match (width, wide) {
        (0..PAYLOAD_FROM_COLUMNS, false) => &NARROW,
        (0..PAYLOAD_FROM_COLUMNS, true) => &NARROW_REST,
        (_, false) => &BASIC,
        (PAYLOAD_FROM_COLUMNS..WHOLE_FROM_COLUMNS, true) => &REST,
        (_, true) => &WHOLE,
    }
}

/// The beginning of a payload, or its size.
fn preview(event: &Event) -> String {
    if event.data.len() > PREVIEW_BYTES_MAX {
        return format!("({})", figures::bytes(event.data.len() as u64));
    }
    match json::to_json(&event.data) {
        Ok(value) => value.to_string(),
        Err(_) => "(not MessagePack)".into(),
    }
}
