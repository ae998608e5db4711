//! Turns single values into what they mean: durations, sizes, patterns, names.
//!
//! A value that comes as plain text, from a variable or a flag, is read as
//! what its key expects. Each function here quotes the value that it refuses,
//! which is why secrets never come this way but through [`free_table`].

use std::{
    ops::RangeInclusive,
    path::{Component, Path},
    time::Duration,
};

use ksi_identity::Capability;
use ksi_protocol::{
    Pattern, nearest,
    sandbox::{Layer, Network},
};
use ksi_trust::Key;
use serde_json::{Map, Value as Json};

use super::{
    problem::Origin,
    section::Report,
    tree::{self, Node, Table, Value},
};
use crate::log;

/// Why a value is refused; the message goes on after the key's name.
#[derive(Debug)]
pub(super) struct Complaint {
    pub(super) message: String,
    pub(super) hint: String,
    /// A place inside the value, where it is not the whole.
    pub(super) at: Option<Origin>,
}

pub(super) type Parsed<T> = Result<T, Complaint>;

/// A value as `config:show` has it.
pub(super) trait Shown {
    /// In a form that could stand in a file.
    fn shown(&self) -> Json;
}

macro_rules! shown {
    ($($type:ty => |$value:ident| $shown:expr),* $(,)?) => {
        $(impl Shown for $type {
            fn shown(&self) -> Json {
                let $value = self;
                $shown
            }
        })*
    };
}

shown! {
    bool => |value| Json::from(*value),
    u32 => |value| Json::from(*value),
    u64 => |value| Json::from(*value),
    usize => |value| Json::from(*value),
    String => |value| Json::from(value.as_str()),
    Duration => |value| Json::from(humantime::format_duration(*value).to_string()),
    log::Format => |value| Json::from(match value { log::Format::Text => "text", log::Format::Json => "json" }),
    ksi_protocol::system::Placement => |value| Json::from(value.as_str()),
    super::Delivery => |value| Json::from(value.as_str()),
    super::Audit => |value| Json::from(value.as_str()),
    super::Frozen => |value| Json::from(value.as_str()),
    Key => |value| Json::from(value.to_string()),
    Layer => |value| Json::from(value.level()),
    Vec<Layer> => |value| value.iter().map(|layer| layer.as_str()).collect(),
    Vec<u16> => |value| Json::from(value.as_slice()),
    Network => |value| match value {
        Network::None => Json::from("none"),
        Network::Loopback => Json::from("loopback"),
        Network::Ports(ports) => Json::from(ports.as_slice()),
    },
}

impl Shown for Vec<Pattern> {
    fn shown(&self) -> Json {
        self.iter().map(|pattern| Json::from(pattern.as_str())).collect()
    }
}

impl Shown for Vec<Capability> {
    fn shown(&self) -> Json {
        self.iter().map(|capability| Json::from(capability.as_str())).collect()
    }
}

impl Shown for Vec<String> {
    fn shown(&self) -> Json {
        self.iter().map(|text| Json::from(text.as_str())).collect()
    }
}

impl Shown for Vec<u32> {
    fn shown(&self) -> Json {
        self.iter().copied().map(Json::from).collect()
    }
}

fn complain<T>(message: impl Into<String>, hint: impl Into<String>) -> Parsed<T> {
    Err(Complaint { message: message.into(), hint: hint.into(), at: None })
}

fn wrong_type<T>(node: &Node, expected: &str, hint: impl Into<String>) -> Parsed<T> {
    match &node.value {
        Value::Loose(text) => complain(format!("is `{text}`, expected {expected}"), hint),
        other => complain(format!("is {}, expected {expected}", other.kind()), hint),
    }
}

/// Any text.
pub(super) fn text(node: &Node) -> Parsed<String> {
    match &node.value {
        Value::Text(text) | Value::Loose(text) => Ok(text.clone()),
        _ => wrong_type(node, "a string", "put it in quotes"),
    }
}

/// A public key. It is no secret, so it may be quoted.
pub(super) fn key(node: &Node) -> Parsed<Key> {
    let line = text(node)?;
    let hint = "`ksi key show models` and `ksi key show plugins` print them";
    line.parse().or_else(|error| complain(format!("is `{line}`; {error}"), hint))
}

/// `true` or `false`.
pub(super) fn switch(node: &Node) -> Parsed<bool> {
    match &node.value {
        Value::Switch(on) => Ok(*on),
        Value::Loose(text) if text == "true" => Ok(true),
        Value::Loose(text) if text == "false" => Ok(false),
        _ => wrong_type(node, "true or false", "write it without quotes"),
    }
}

/// A whole number within bounds.
pub(super) fn whole<T>(range: RangeInclusive<u64>) -> impl Fn(&Node) -> Parsed<T>
where
    T: TryFrom<u64>,
{
    move |node| {
        let (low, high) = (range.start(), range.end());
        let expected = format!("a whole number from {low} to {high}");
        let number = match &node.value {
            Value::Whole(number) => i128::from(*number),
            Value::Loose(text) => match text.trim().replace('_', "").parse::<i64>() {
                Ok(number) => i128::from(number),
                Err(_) => return wrong_type(node, &expected, ""),
            },
            Value::Text(text) if text.parse::<i64>().is_ok() => {
                return wrong_type(node, &expected, "write it without quotes");
            }
            _ => return wrong_type(node, &expected, ""),
        };
        let inside = u64::try_from(number).ok().filter(|number| range.contains(number));
        match inside.and_then(|number| T::try_from(number).ok()) {
            Some(value) => Ok(value),
            None => complain(format!("is {number}, expected {expected}"), ""),
        }
    }
}

/// A duration such as `"100ms"`, `"5s"` or `"1m 30s"`, within bounds.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Node) -> Parsed<Duration> {
    move |node| {
        const HINT: &str = "durations are strings with a unit, for example \"100ms\", \"5s\" or \"10m\"";
        let written = match &node.value {
            Value::Text(text) | Value::Loose(text) => text,
            _ => return wrong_type(node, "a duration", HINT),
        };
        let Ok(duration) = humantime::parse_duration(written) else {
            return complain(format!("is `{written}`, expected a duration"), HINT);
        };
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [low, high] = [range.start(), range.end()].map(|end| humantime::format_duration(*end));
        complain(format!("is `{written}`, expected a duration from {low} to {high}"), "")
    }
}

/// One of some words.
pub(super) fn choice<T: Clone>(words: &[(&'static str, T)]) -> impl Fn(&Node) -> Parsed<T> {
    move |node| {
        let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        let (Value::Text(written) | Value::Loose(written)) = &node.value else {
            return wrong_type(node, &expected, "");
        };
        match words.iter().find(|(name, _)| name == written) {
            Some((_, value)) => Ok(value.clone()),
            None => {
                let hint = nearest::best(written, names.iter().copied());
                let hint = hint.map(|name| format!("did you mean `{name}`?")).unwrap_or_default();
                complain(format!("is `{written}`, expected {expected}"), hint)
            }
        }
    }
}

/// A level of the log.
pub(super) fn log_level(node: &Node) -> Parsed<String> {
    let level = text(node)?;
    match log::parse_level(&level) {
        Ok(_) => Ok(level),
        Err(error) => {
            complain(format!("is `{level}`, expected one of {}", log::LEVELS.join(", ")), error.hint)
        }
    }
}

/// A text that a rule holds for.
pub(super) fn text_where(
    rule: fn(&str) -> bool,
    expected: &'static str,
    hint: &'static str,
) -> impl Fn(&Node) -> Parsed<String> {
    move |node| {
        let written = text(node)?;
        if rule(&written) {
            Ok(written)
        } else {
            complain(format!("is `{written}`, expected {expected}"), hint)
        }
    }
}

/// A list of patterns over event names.
pub(super) fn patterns(node: &Node) -> Parsed<Vec<Pattern>> {
    list(node, "a list of event patterns", |item| {
        let written = text(item)?;
        Pattern::parse(&written).or_else(|error| {
            complain(
                format!("has no event pattern at this place: {error}"),
                "for example \"llama:*\" or \"state:**\"",
            )
        })
    })
}

/// A list of capabilities.
pub(super) fn capabilities(node: &Node) -> Parsed<Vec<Capability>> {
    list(node, "a list of capabilities", |item| {
        Capability::parse(&text(item)?).or_else(|error| {
            complain(format!("has none at this place: {error}"), "for example \"completion.*\"")
        })
    })
}

/// A list of texts.
pub(super) fn texts(node: &Node) -> Parsed<Vec<String>> {
    list(node, "a list of strings", text)
}

/// A list of user ids.
pub(super) fn uids(node: &Node) -> Parsed<Vec<u32>> {
    list(node, "a list of user ids", whole(0..=u64::from(u32::MAX - 1)))
}

/// A list of absolute paths. All of the file system is no grant.
pub(super) fn paths(node: &Node) -> Parsed<Vec<String>> {
    list(node, "a list of paths", |item| {
        let written = text(item)?;
        let path = Path::new(&written);
        if !path.is_absolute() {
            let hint =
                "write it from the root on, for example \"/srv/models\"; `~` and variables mean nothing";
            return complain(format!("names `{written}`, expected an absolute path"), hint);
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return complain(format!("names `{written}`, which leads back by `..`"), "write where it leads");
        }
        if path.parent().is_none() {
            let hint = "name what it needs; `disable` leaves layers out";
            return complain("names the root, which grants everything", hint);
        }
        Ok(written)
    })
}

/// A list of TCP ports.
pub(super) fn ports(node: &Node) -> Parsed<Vec<u16>> {
    list(node, "a list of TCP ports", whole(1..=65535))
}

/// What of the network may be reached.
pub(super) fn network(node: &Node) -> Parsed<Network> {
    const WORDS: [(&str, Network); 2] = [("none", Network::None), ("loopback", Network::Loopback)];
    match &node.value {
        Value::Text(_) => choice(&WORDS)(node),
        Value::Loose(text) if WORDS.iter().any(|(word, _)| word == text) => choice(&WORDS)(node),
        _ => list(node, "none, loopback or a list of TCP ports", whole(1..=65535)).map(Network::Ports),
    }
}

/// A list of layers of the sandbox that can be left out.
pub(super) fn layers(node: &Node) -> Parsed<Vec<Layer>> {
    let layers: Vec<_> = Layer::ALL
        .into_iter()
        .filter(|layer| *layer > Layer::Limits)
        .map(|layer| (layer.as_str(), layer))
        .collect();
    list(node, "a list of layers", choice(&layers))
}

/// A list; as plain text `a,b` or `["a", "b"]`.
fn list<T>(node: &Node, expected: &str, parse: impl Fn(&Node) -> Parsed<T>) -> Parsed<Vec<T>> {
    let split;
    let items = match &node.value {
        Value::List(items) => items,
        Value::Loose(text) => {
            split = loose_list(text, &node.at);
            &split
        }
        _ => return wrong_type(node, expected, "write [\"one\", \"two\"]"),
    };
    let item =
        |item: &Node| parse(item).map_err(|complaint| Complaint { at: Some(item.at.clone()), ..complaint });
    items.iter().map(item).collect()
}

fn loose_list(text: &str, at: &Origin) -> Vec<Node> {
    if let Some(Node { value: Value::List(items), .. }) = tree::parse_value(text, at) {
        return items;
    }
    let item = |part: &str| Node { value: Value::Loose(part.to_owned()), at: at.clone(), key_at: at.clone() };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(item).collect()
}

/// A table whose keys nobody here knows, as JSON. Each value is recorded under
/// its path.
pub(super) fn free_table(report: &Report, path: &[String], table: &Table) -> Json {
    let mut object = Map::new();
    for (key, node) in table {
        let mut path = path.to_vec();
        path.push(key.clone());
        let typed = match &node.value {
            Value::Loose(text) => tree::parse_value(text, &node.at),
            _ => None,
        };
        let value = match &typed.as_ref().unwrap_or(node).value {
            Value::Table(inner) if !inner.is_empty() => free_table(report, &path, inner),
            other => {
                let value = free_value(other);
                report.record(path, value.clone(), &node.at);
                value
            }
        };
        object.insert(key.clone(), value);
    }
    Json::Object(object)
}

fn free_value(value: &Value) -> Json {
    match value {
        Value::Text(text) | Value::Loose(text) | Value::Date(text) => Json::from(text.as_str()),
        Value::Whole(number) => Json::from(*number),
        Value::Real(number) => Json::from(*number),
        Value::Switch(on) => Json::from(*on),
        Value::List(items) => items.iter().map(|item| free_value(&item.value)).collect(),
        Value::Table(table) => {
            Json::Object(table.iter().map(|(key, node)| (key.clone(), free_value(&node.value))).collect())
        }
    }
}
