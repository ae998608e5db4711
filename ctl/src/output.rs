//! Output: one report, six formats.
//!
//! A verb makes a [`Report`], the data that a program reads together with the
//! table or text that a person reads, and [`Output`] prints it as `-o` says.
//! Data goes to standard output, chatter to standard error; colours and bars
//! appear only on a terminal, and `NO_COLOR` and `CLICOLOR_FORCE` are obeyed.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::ValueEnum;
use clap::builder::{
    StyledStr,
    styling::{AnsiColor, Style},
};
use comfy_table::{Cell, Color, ContentArrangement, Table as Grid, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{Failure, Result},
    exit::Exit,
    time::whole_ms,
};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For a person.
    #[default]
    Table,
    /// For a person with a wide terminal: more columns.
    Wide,
    /// One indented JSON document.
    Json,
    /// One JSON document a line; lists give one line for each item.
    Jsonl,
    /// YAML.
    Yaml,
    /// Only names, one a line.
    Name,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Even into a pipe.
    Always,
    /// Not at all.
    Never,
}

/// One table for a person. Columns marked `wide` appear with `-o wide`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a title that begins with `+` is for wide
    /// output only.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let columns =
            titles.iter().map(|title| title.strip_prefix('+').map_or((*title, false), |t| (t, true)));
        Self { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    fn visible(&self, wide: bool) -> impl Iterator<Item = usize> {
        (0..self.columns.len()).filter(move |&index| wide || !self.columns[index].1)
    }

    fn grid(&self, wide: bool, headers: bool, color: bool) -> Grid {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING);
        if io::stdout().is_terminal() {
            grid.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if color {
            grid.enforce_styling();
        } else {
            grid.set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
        }
        if headers {
            grid.set_header(self.visible(wide).map(|index| self.columns[index].0).collect::<Vec<_>>());
        }
        for row in &self.rows {
            let cells = self.visible(wide).map(|index| {
                let cell = Cell::new(&row[index]);
                match tint(&row[index]) {
                    Some(tint) if color => cell.fg(tint),
                    _ => cell,
                }
            });
            grid.add_row(cells.collect::<Vec<_>>());
        }
        for column in grid.column_iter_mut() {
            column.set_padding((0, 2));
        }
        grid
    }
}

/// Words of state that deserve a colour.
fn tint(cell: &str) -> Option<Color> {
    match cell {
        "ready" | "ok" | "loaded" | "done" => Some(Color::Green),
        "starting" | "draining" | "backoff" | "warn" | "degraded" => Some(Color::Yellow),
        "held" | "quarantined" | "unhealthy" | "fail" | "stopped" | "dead" | "failed" => Some(Color::Red),
        _ => None,
    }
}

/// What a person reads.
#[derive(Debug, Clone)]
enum Human {
    Table(Table),
    Text(String),
    /// The data itself, indented.
    Data,
}

/// What a verb has to say.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    data: Value,
    /// The key of `data` below which a list lies.
    items: Option<&'static str>,
    human: Human,
    names: Vec<String>,
}

impl Report {
    /// A reply as it came.
    pub(crate) fn data(data: Value) -> Self {
        let names = data.get("name").and_then(Value::as_str).map(str::to_owned).into_iter().collect();
        Self { data, items: None, human: Human::Data, names }
    }

    /// Data with a text for people.
    ///
    /// # Errors
    ///
    /// Fails where `data` cannot be JSON.
    pub(crate) fn text(data: &impl Serialize, text: impl Into<String>) -> Result<Self> {
        Ok(Self { human: Human::Text(text.into()), ..Self::data(to_value(data)?) })
    }

    /// A list: `data[items]` for programs, a table for people, and the names
    /// of the items.
    ///
    /// # Errors
    ///
    /// Fails where `data` cannot be JSON.
    pub(crate) fn list(
        data: &impl Serialize,
        items: &'static str,
        names: Vec<String>,
        table: Table,
    ) -> Result<Self> {
        Ok(Self { data: to_value(data)?, items: Some(items), human: Human::Table(table), names })
    }

    /// Names for `-o name`, where they are not the `name` of the data.
    pub(crate) fn named(mut self, names: Vec<String>) -> Self {
        self.names = names;
        self
    }
}

fn to_value(data: &impl Serialize) -> Result<Value> {
    serde_json::to_value(data).map_err(|error| Failure::failed(format!("cannot be written as JSON: {error}")))
}

/// How this run prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// `-o`.
    pub(crate) format: Format,
    /// Column titles.
    pub(crate) headers: bool,
    /// Chatter is left out.
    pub(crate) quiet: bool,
    /// Colours on standard output.
    pub(crate) color: bool,
}

impl Output {
    /// Applies `--color` to both streams, and finds out whether that means
    /// colours.
    pub(crate) fn new(format: Format, headers: bool, quiet: bool, when: ColorWhen) -> Self {
        let choice = match when {
            ColorWhen::Auto => anstream::ColorChoice::Auto,
            ColorWhen::Always => anstream::ColorChoice::Always,
            ColorWhen::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        let color = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
        Self { format, headers, quiet, color }
    }

    /// Whether a program reads the output.
    pub(crate) fn machine(&self) -> bool {
        matches!(self.format, Format::Json | Format::Jsonl | Format::Yaml)
    }

    /// Whether a person reads the output.
    pub(crate) fn people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Prints a report to standard output.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn print(&self, report: &Report) -> Result<()> {
        let mut out = anstream::stdout().lock();
        self.render(report, &mut out)?;
        out.flush()?;
        Ok(())
    }

    /// Prints one of several reports that come one after the other, each as it comes:
    /// every one is a document of its own, on a line in `jsonl`, behind `---` in YAML.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn item(&self, report: &Report) -> Result<()> {
        let mut out = anstream::stdout().lock();
        self.render_item(report, &mut out)?;
        out.flush()?;
        Ok(())
    }

    fn render_item(&self, report: &Report, out: &mut impl Write) -> Result<()> {
        if self.format == Format::Yaml {
            writeln!(out, "---")?;
        }
        self.render(report, out)
    }

    /// Writes a report.
    ///
    /// # Errors
    ///
    /// Fails where the writer does.
    pub(crate) fn render(&self, report: &Report, out: &mut impl Write) -> Result<()> {
        match self.format {
            Format::Json => writeln!(out, "{:#}", report.data)?,
            Format::Jsonl => match report.items.and_then(|items| report.data.get(items)) {
                Some(Value::Array(items)) => {
                    for item in items {
                        writeln!(out, "{item}")?;
                    }
                }
                _ => writeln!(out, "{}", report.data)?,
            },
            Format::Yaml => {
                let text = serde_yaml_ng::to_string(&report.data)
                    .map_err(|error| Failure::failed(format!("cannot be written as YAML: {error}")))?;
                write!(out, "{text}")?;
            }
            Format::Name => {
                for name in &report.names {
                    writeln!(out, "{name}")?;
                }
            }
            Format::Table | Format::Wide => self.human(report, out)?,
        }
        Ok(())
    }

    fn human(&self, report: &Report, out: &mut impl Write) -> Result<()> {
        match &report.human {
            Human::Table(table) if table.rows.is_empty() => self.note("nothing to list"),
            Human::Table(table) => {
                let grid = table.grid(self.format == Format::Wide, self.headers, self.color);
                for line in grid.lines() {
                    writeln!(out, "{}", line.trim_end())?;
                }
            }
            Human::Text(text) if text.is_empty() => {}
            Human::Text(text) => writeln!(out, "{}", text.trim_end_matches('\n'))?,
            Human::Data => writeln!(out, "{:#}", report.data)?,
        }
        Ok(())
    }

    /// A part of a stream that is no text, for a person: one line of JSON.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn line(&self, value: &Value) -> Result<()> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{value}")?;
        out.flush()?;
        Ok(())
    }

    /// A piece of text as it comes, without a newline.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn piece(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            // What a model or a plugin says must not steer the terminal.
            out.write_all(harmless(text).as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        Ok(())
    }

    /// A text that may hold colours, such as help.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn styled(text: &StyledStr) -> Result<()> {
        let mut out = anstream::stdout().lock();
        write!(out, "{}", text.ansi())?;
        out.flush()?;
        Ok(())
    }

    /// A line of chatter on standard error, unless `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// A line on standard error that even `--quiet` does not hide.
    pub(crate) fn warn(&self, text: &str) {
        // Nobody is left to hear of a failure to write to standard error.
        let _ = writeln!(anstream::stderr(), "{text}");
    }

    /// Prints a failure on standard error.
    pub(crate) fn fail(&self, failure: &Failure) {
        // A person knows who has pressed Ctrl-C; a program that waits is told.
        let told = failure.exit == Exit::Interrupted && self.machine();
        if failure.silent && !told {
            return;
        }
        if self.machine() {
            self.warn(&failure.to_json().to_string());
            return;
        }
        self.warn(&format!("{}: {}", painted("error", AnsiColor::Red), failure.message));
        if !failure.hint.is_empty() {
            self.warn(&format!(" {}: {}", painted("hint", AnsiColor::Cyan), failure.hint));
        }
    }
}

/// A text without control characters, line ends and tabs excepted.
fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}

/// Lines cut to what a terminal shows, without anything that steers it.
pub(crate) fn short_lines(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    const CHARS_MAX: usize = 160;
    let cut = |line: String| match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    };
    lines.into_iter().map(|line| harmless(&cut(line)).into_owned()).collect()
}

/// Text in a colour; the stream it is written to removes the colour again
/// where there shall be none.
pub(crate) fn painted(text: &str, color: AnsiColor) -> String {
    let style = Style::new().bold().fg_color(Some(color.into()));
    format!("{style}{text}{style:#}")
}

/// Bytes for a person: `11.9 MB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Milliseconds for a person: `950 ms`, `12.3 s`, `3h 4m`.
pub(crate) fn millis(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        _ if ms < 1000 => format!("{ms} ms"),
        0..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A duration for a person, as [`millis`].
pub(crate) fn elapsed(time: Duration) -> String {
    millis(whole_ms(time))
}

/// What a report looks like on standard output that is no terminal.
#[cfg(test)]
pub(crate) fn printed(report: &Report, format: Format) -> String {
    let output = Output { format, headers: true, quiet: true, color: false };
    let mut out = Vec::new();
    output.render(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list() -> Report {
        let mut table = Table::new(&["NAME", "STATE", "+PID"]);
        table.row(["echo".into(), "ready".into(), "-".into()]);
        table.row(["llama".into(), "held".into(), "42".into()]);
        let data = json!({"plugins": [{"name": "echo"}, {"name": "llama"}]});
        Report::list(&data, "plugins", vec!["echo".into(), "llama".into()], table).unwrap()
    }

    #[test]
    fn a_list_prints_in_every_format() {
        assert_eq!(printed(&list(), Format::Table), "NAME   STATE\necho   ready\nllama  held\n");
        assert_eq!(printed(&list(), Format::Wide), "NAME   STATE  PID\necho   ready  -\nllama  held   42\n");
        assert_eq!(printed(&list(), Format::Name), "echo\nllama\n");
        assert_eq!(printed(&list(), Format::Jsonl), "{\"name\":\"echo\"}\n{\"name\":\"llama\"}\n");
        assert_eq!(printed(&list(), Format::Yaml), "plugins:\n- name: echo\n- name: llama\n");
        let json: Value = serde_json::from_str(&printed(&list(), Format::Json)).unwrap();
        assert_eq!(json["plugins"][1]["name"], "llama");
    }

    #[test]
    fn what_comes_one_after_the_other_can_be_told_apart() {
        let two = |format| {
            let output = Output { format, headers: true, quiet: true, color: false };
            let mut out = Vec::new();
            for n in 1..=2 {
                let report =
                    Report::text(&json!({"n": n, "name": format!("a{n}")}), format!("item {n}")).unwrap();
                output.render_item(&report, &mut out).unwrap();
            }
            String::from_utf8(out).unwrap()
        };
        assert_eq!(two(Format::Yaml), "---\nn: 1\nname: a1\n---\nn: 2\nname: a2\n");
        assert_eq!(two(Format::Jsonl), "{\"n\":1,\"name\":\"a1\"}\n{\"n\":2,\"name\":\"a2\"}\n");
        let json = two(Format::Json);
        let documents = serde_json::Deserializer::from_str(&json).into_iter::<Value>();
        assert_eq!(documents.map(|one| one.unwrap()["n"].clone()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(two(Format::Table), "item 1\nitem 2\n");
        assert_eq!(two(Format::Name), "a1\na2\n");
    }

    #[test]
    fn titles_can_be_left_out() {
        let output = Output { format: Format::Table, headers: false, quiet: true, color: false };
        let mut out = Vec::new();
        output.render(&list(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "echo   ready\nllama  held\n");
    }

    #[test]
    fn colours_mark_states_only_where_they_are_wanted() {
        let output = Output { format: Format::Table, headers: true, quiet: true, color: true };
        let mut out = Vec::new();
        output.render(&list(), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("\u{1b}["));
        assert!(!printed(&list(), Format::Table).contains('\u{1b}'));
    }

    #[test]
    fn a_text_report_is_text_for_people_and_data_for_programs() {
        let report = Report::text(&json!({"n": 1, "name": "a"}), "one\n").unwrap();
        assert_eq!(printed(&report, Format::Table), "one\n");
        assert_eq!(printed(&report, Format::Jsonl), "{\"n\":1,\"name\":\"a\"}\n");
        assert_eq!(printed(&report, Format::Name), "a\n");
    }

    #[test]
    fn a_text_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\tb\n\u{1b}[2Jc\r"), "a\tb\n\u{fffd}[2Jc\u{fffd}");
        assert!(matches!(harmless("grüße\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(11_900_000), "11.9 MB");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(millis(950), "950 ms");
        assert_eq!(millis(12_340), "12.3 s");
        assert_eq!(millis(11_040_000), "3h 4m");
    }
}
