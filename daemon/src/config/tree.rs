//! One layer as a tree: tables, lists and values, each with its place.
//!
//! Knows TOML and nothing of what keys mean.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Origin, Problem};

/// A table of a layer.
pub(super) type Table = BTreeMap<String, Node>;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Place of the value.
    pub(super) at: Origin,
    /// Place of its key, the first one for a table with several headers.
    pub(super) key_at: Origin,
}

/// What a layer can hold.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Real(f64),
    Switch(bool),
    Date(String),
    List(Vec<Node>),
    Table(Table),
    /// From a variable or a flag, where text is all there is: its type is
    /// what the key expects.
    Loose(String),
}

impl Value {
    /// With its article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Loose(_) => "a string",
            Self::Whole(_) => "a whole number",
            Self::Real(_) => "a fractional number",
            Self::Switch(_) => "a boolean",
            Self::Date(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Finds lines and columns of byte offsets.
struct Places<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    /// Offset at which each line begins.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    fn new(file: &'a Arc<str>, text: &'a str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file, text, lines: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn of(&self, span: Range<usize>) -> Origin {
        let offset = self.text.floor_char_boundary(span.start);
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        let column = self.text[start..offset].chars().count() + 1;
        Origin::File { file: Arc::clone(self.file), line, column }
    }
}

/// Parses a file.
///
/// # Errors
///
/// All that is wrong with its syntax.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Table, Vec<Problem>> {
    let places = Places::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<_> = errors
        .iter()
        .map(|error| Problem::new(&places.of(error.span().unwrap_or(0..0)), error.message(), ""))
        .collect();
    let table = table(&places, root.get_ref(), &mut problems);
    if problems.is_empty() { Ok(table) } else { Err(problems) }
}

/// Parses a value as it would stand in a file, `["a", "b"]` for example.
/// `None` where it is no TOML value.
pub(super) fn parse_value(text: &str, at: &Origin) -> Option<Node> {
    let file: Arc<str> = Arc::from("");
    // A line break could smuggle in a second key.
    if text.contains('\n') {
        return None;
    }
    let mut table = parse(&file, &format!("value = {text}")).ok()?;
    let mut node = table.remove("value")?;
    place_at(&mut node, at);
    Some(node)
}

/// Parses a key as it would stand in a file: `events."a:b".timeout`.
///
/// # Errors
///
/// Says what is wrong with it.
pub(super) fn parse_key(text: &str) -> Result<Vec<String>, String> {
    let document = format!("{text} = 0");
    let parsed = DeTable::parse(&document).map_err(|error| error.message().to_owned())?;
    let mut path = Vec::new();
    let mut table = parsed.get_ref();
    while let Some((key, value)) = table.iter().next() {
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Ok(path),
        }
    }
    Err("it is no key".to_owned())
}

/// Lays one layer over another: tables key by key, all else as a whole.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, node) in over {
        match (base.get_mut(&key).map(|below| &mut below.value), node.value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, Node { value, ..node });
            }
        }
    }
}

fn table(places: &Places<'_>, parsed: &DeTable<'_>, problems: &mut Vec<Problem>) -> Table {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key_at = places.of(key.span());
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        (key.to_string(), node(places, value, key_at, problems))
    };
    parsed.iter().map(entry).collect()
}

fn node(
    places: &Places<'_>,
    parsed: &Spanned<DeValue<'_>>,
    key_at: Origin,
    problems: &mut Vec<Problem>,
) -> Node {
    let at = places.of(parsed.span());
    let value = match parsed.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(on) => Value::Switch(*on),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => Value::Whole(number),
            Err(_) => {
                problems.push(Problem::new(
                    &at,
                    format!("the number {digits} is too large"),
                    "64 bits are the limit",
                ));
                Value::Whole(0)
            }
        },
        DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Real(number),
            _ => {
                problems.push(Problem::new(&at, format!("{digits} is no finite number"), ""));
                Value::Real(0.0)
            }
        },
        DeValue::Array(items) => Value::List(
            items.iter().map(|item| node(places, item, places.of(item.span()), problems)).collect(),
        ),
        // The place of a table that is no inline table is its header's, which
        // the key has too.
        DeValue::Table(inner) => Value::Table(table(places, inner, problems)),
    };
    Node { value, at, key_at }
}

/// Gives a tree that was parsed from a variable the variable's place.
fn place_at(node: &mut Node, at: &Origin) {
    node.at = at.clone();
    node.key_at = at.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| place_at(item, at)),
        Value::Table(table) => table.values_mut().for_each(|item| place_at(item, at)),
        _ => {}
    }
}
