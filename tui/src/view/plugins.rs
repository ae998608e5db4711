//! The plugin view: the table, or the description of one plugin over it.

use ksi_protocol::system::PluginStatus;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Paragraph, Row, Table, Wrap},
};

use super::theme::{self, Theme};
use crate::{figures, state::State};

/// One column: its head, its width, and what it shows.
struct Column {
    head: &'static str,
    width: u16,
    /// Screens narrower than this leave it out, unless `w` asks for all.
    from_width: u16,
    cell: fn(&PluginStatus) -> String,
}

const fn column(
    head: &'static str,
    width: u16,
    from_width: u16,
    cell: fn(&PluginStatus) -> String,
) -> Column {
    Column { head, width, from_width, cell }
}

/// All columns, in order; the last error takes what is left.
static COLUMNS: [Column; 12] = [
    column("NAME", 14, 0, |p| p.name.clone()),
    column("STATE", 8, 0, |p| p.state.as_str().into()),
    column("BUSY", 5, 0, |p| p.in_flight.to_string()),
    column("RST", 4, 0, |p| p.restarts.to_string()),
    column("HANDLED", 9, 60, |p| figures::count(p.handled)),
    column("PLACE", 10, 60, |p| p.placement.as_str().into()),
    column("SBX", 4, 60, |p| figures::or_dash(&p.sandbox)),
    column("GEN", 4, 60, |p| p.generation.to_string()),
    column("RSS", 10, 80, |p| p.rss_bytes.map_or_else(|| "-".into(), figures::bytes)),
    column("PID", 8, 100, |p| p.pid.map_or_else(|| "-".into(), |pid| pid.to_string())),
    column("VERSION", 8, 100, |p| figures::or_dash(&p.version)),
    column("READY", 8, 110, |p| p.ready_ms.map_or_else(|| "-".into(), figures::span)),
];

/// Columns that must be left for the last error, or it is not shown.
const LAST_ERROR_MIN: u16 = 12;

/// Draws the table or the description.
pub(super) fn draw(state: &State, theme: &Theme, frame: &mut Frame<'_>, area: Rect) {
    let Some(status) = &state.status else {
        let text = format!("waiting for the first figures from {}", state.socket);
        frame.render_widget(Line::styled(text, theme.dim()), area);
        return;
    };
    if let Some(described) = &state.plugins.described {
        let lines = described.lines(&status.plugins);
        let visible = lines.iter().skip(described.scroll).take(usize::from(area.height));
        let lines: Vec<Line<'_>> = visible
            .map(|line| {
                let heading = line.ends_with(':') && !line.starts_with(' ');
                Line::styled(line.as_str(), if heading { theme.heading() } else { theme.plain() })
            })
            .collect();
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
        return;
    }
    let [title_area, rows_area] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let rows = state.plugins.rows(&status.plugins);
    let mut title = vec![
        Span::raw(format!("{} of {} plugins ", rows.len(), status.plugins.len())),
        Span::styled(format!("by {} ", state.plugins.sort.name()), theme.accent()),
    ];
    if !state.plugins.filter.is_all() {
        title.push(Span::styled(format!("/{}", state.plugins.filter), theme.accent()));
    }
    frame.render_widget(Line::from(title), title_area);
    let selected = state.plugins.selected(&rows);
    frame.render_widget(table(&rows, selected, state.wide, theme, rows_area), rows_area);
}

/// The columns for a screen, and whether there is room for the last error.
/// With `wide`, a screen that cannot hold all of them shows those that it
/// otherwise leaves out.
fn columns(width: u16, wide: bool) -> (Vec<&'static Column>, bool) {
    let used = |columns: &[&Column]| 2 + columns.iter().map(|c| c.width + 1).sum::<u16>();
    let fits = |columns: &[&Column]| width >= used(columns) + LAST_ERROR_MIN;
    let mut columns: Vec<&Column> = COLUMNS.iter().filter(|c| width >= c.from_width).collect();
    if wide && !(columns.len() == COLUMNS.len() && fits(&columns)) {
        let (name, rest) = (&COLUMNS[..1], &COLUMNS[1..]);
        columns = name.iter().chain(rest.iter().filter(|c| width < c.from_width)).collect();
        while columns.len() > 2 && !fits(&columns) {
            columns.pop();
        }
    }
    let with_error = fits(&columns);
    (columns, with_error)
}

/// The rows around the selected one, in the columns that fit.
fn table(rows: &[&PluginStatus], selected: usize, wide: bool, theme: &Theme, area: Rect) -> Table<'static> {
    let (columns, with_error) = columns(area.width, wide);
    let height = usize::from(area.height.saturating_sub(1)).max(1);
    let start = (selected + 1).saturating_sub(height);
    let shown = rows.iter().enumerate().skip(start).take(height).map(|(index, plugin)| {
        let mut cells = vec![theme::sign(plugin).to_owned()];
        cells.extend(columns.iter().map(|column| (column.cell)(plugin)));
        if with_error {
            cells.push(plugin.last_error.clone().unwrap_or_default());
        }
        let style = theme.of_plugin(plugin);
        Row::new(cells).style(if index == selected { style.patch(theme.selected()) } else { style })
    });
    let mut heads = vec![""];
    let mut widths = vec![Constraint::Length(1)];
    for column in &columns {
        heads.push(column.head);
        widths.push(Constraint::Length(column.width));
    }
    if with_error {
        heads.push("LAST ERROR");
        widths.push(Constraint::Fill(1));
    }
    Table::new(shown, widths).header(Row::new(heads).style(theme.heading()))
}
