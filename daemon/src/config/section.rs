//! Reads a table key by key, remembering which keys there are, what is wrong
//! with their values, and where each value comes from.
//!
//! The keys that a reader asks for are the keys that exist: there is no second
//! list of them that could disagree.

use std::{cell::RefCell, collections::BTreeMap};

use serde_json::Value as Json;

use super::{
    problem::{Origin, Problem, suggest},
    tree::{Node, Table, Value},
    value::{Complaint, Parsed, Shown},
};

/// Every value by its path, as `config:show` has it, with its origin.
pub(super) type Effective = BTreeMap<Vec<String>, (Json, Origin)>;

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One layer: keys may be missing.
    Layer,
    /// All layers merged.
    Whole,
}

/// What was found out while reading.
#[derive(Debug)]
pub(super) struct Report {
    scope: Scope,
    problems: RefCell<Vec<Problem>>,
    effective: RefCell<Effective>,
}

impl Report {
    pub(super) fn new(scope: Scope) -> Self {
        Self { scope, problems: RefCell::default(), effective: RefCell::default() }
    }

    /// Whether what is missing is missing for good.
    pub(super) fn is_whole(&self) -> bool {
        self.scope == Scope::Whole
    }

    pub(super) fn problem(&self, at: &Origin, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.borrow_mut().push(Problem::new(at, message, hint));
    }

    pub(super) fn record(&self, path: Vec<String>, value: Json, origin: &Origin) {
        self.effective.borrow_mut().insert(path, (value, origin.clone()));
    }

    pub(super) fn into_parts(self) -> (Vec<Problem>, Effective) {
        (self.problems.into_inner(), self.effective.into_inner())
    }
}

/// A table that is being read.
pub(super) struct Section<'a> {
    pub(super) report: &'a Report,
    /// `None` where no layer has the table.
    table: Option<&'a Table>,
    path: Vec<String>,
    /// Place of the table's key.
    pub(super) at: Origin,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole of a layer.
    pub(super) fn root(report: &'a Report, table: &'a Table) -> Self {
        Self { report, table: Some(table), path: Vec::new(), at: Origin::Default, known: Vec::new() }
    }

    /// The table under a key; empty where it is absent.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        self.known.push(key);
        self.below(key, self.table.and_then(|table| table.get(key)))
    }

    /// All tables under keys that the user chooses, with those keys.
    pub(super) fn each(&self) -> Vec<(String, Section<'a>)> {
        let table = self.table.into_iter().flatten();
        table.map(|(key, node)| (key.clone(), self.below(key, Some(node)))).collect()
    }

    fn below(&self, key: &str, node: Option<&'a Node>) -> Section<'a> {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            Some(other) => {
                let (name, kind) = (dotted(&path), other.kind());
                let at = node.map_or(&self.at, |node| &node.at);
                self.report.problem(
                    at,
                    format!("`{name}` is {kind}, expected a table"),
                    format!("write [{name}], or set its keys one by one"),
                );
                None
            }
            None => None,
        };
        let at = node.map_or_else(|| self.at.clone(), |node| node.key_at.clone());
        Section { report: self.report, table, path, at, known: Vec::new() }
    }

    /// The path of a key of this table, as it is written in a file.
    pub(super) fn name(&self, key: &str) -> String {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        dotted(&path)
    }

    /// The path of the table itself.
    pub(super) fn own_name(&self) -> String {
        dotted(&self.path)
    }

    /// The place of a key's value, or of the table where it is absent.
    pub(super) fn place(&self, key: &str) -> Origin {
        self.node(key).map_or_else(|| self.at.clone(), |node| node.at.clone())
    }

    fn node(&self, key: &str) -> Option<&'a Node> {
        self.table.and_then(|table| table.get(key))
    }

    /// A value; the default where it is absent or wrong.
    pub(super) fn get<T: Shown>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl Fn(&Node) -> Parsed<T>,
    ) -> T {
        let (value, origin) = match self.parsed(key, parse) {
            Some((value, origin)) => (value, origin),
            None => (default, Origin::Default),
        };
        self.record(key, value.shown(), &origin);
        value
    }

    /// A value that may be left out.
    pub(super) fn get_optional<T: Shown>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        parse: impl Fn(&Node) -> Parsed<T>,
    ) -> Option<T> {
        let parsed = self.parsed(key, parse);
        let origin = parsed.as_ref().map_or(Origin::Default, |(_, origin)| origin.clone());
        let value = parsed.map(|(value, _)| value).or(default);
        self.record(key, value.as_ref().map_or(Json::Null, Shown::shown), &origin);
        value
    }

    /// A value that some layer must have; `hint` is for where none has.
    pub(super) fn get_required<T: Shown>(
        &mut self,
        key: &'static str,
        hint: impl FnOnce() -> String,
        parse: impl Fn(&Node) -> Parsed<T>,
    ) -> Option<T> {
        let absent = self.node(key).is_none();
        let parsed = self.parsed(key, parse);
        if absent && self.report.is_whole() {
            self.report.problem(&self.at, format!("`{}` has no `{key}`", self.own_name()), hint());
        }
        let (value, origin) = parsed?;
        self.record(key, value.shown(), &origin);
        Some(value)
    }

    fn parsed<T>(&mut self, key: &'static str, parse: impl Fn(&Node) -> Parsed<T>) -> Option<(T, Origin)> {
        self.known.push(key);
        let node = self.node(key)?;
        match parse(node) {
            Ok(value) => Some((value, node.at.clone())),
            Err(Complaint { message, hint, at }) => {
                let at = at.as_ref().unwrap_or(&node.at);
                self.report.problem(at, format!("`{}` {message}", self.name(key)), hint);
                None
            }
        }
    }

    /// A key that there is no use for here: reports it where it is.
    pub(super) fn useless(&mut self, key: &'static str, why: &str, hint: &str) {
        self.known.push(key);
        if let Some(node) = self.node(key) {
            self.report.problem(&node.key_at, format!("`{}` {why}", self.name(key)), hint);
        }
    }

    /// The free-form table under a key, whose keys are recorded one by one.
    pub(super) fn free(&mut self, key: &'static str) -> Json {
        let section = self.section(key);
        let Some(table) = section.table.filter(|table| !table.is_empty()) else {
            self.record(key, Json::Object(serde_json::Map::new()), &Origin::Default);
            return Json::Object(serde_json::Map::new());
        };
        super::value::free_table(self.report, &section.path, table)
    }

    fn record(&self, key: &str, value: Json, origin: &Origin) {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        self.report.record(path, value, origin);
    }

    /// Reports the keys that nobody has asked for.
    pub(super) fn finish(self) {
        for (key, node) in self.table.into_iter().flatten() {
            if !self.known.contains(&key.as_str()) {
                let hint = suggest(key, &self.known, "known here:");
                self.report.problem(&node.key_at, format!("unknown key `{}`", self.name(key)), hint);
            }
        }
    }
}

/// A path as it is written in a file: `events."completion:request".timeout`.
pub(super) fn dotted(path: &[String]) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let key = |key: &String| match key.bytes().all(bare) && !key.is_empty() {
        true => key.clone(),
        // JSON's escapes are a subset of those of TOML.
        false => Json::from(key.as_str()).to_string(),
    };
    path.iter().map(key).collect::<Vec<_>>().join(".")
}
