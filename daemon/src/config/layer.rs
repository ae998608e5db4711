//! Gathers the layers and lays them over each other.
//!
//! Each layer of the user's is checked by itself first, so that a mistake is
//! reported even where a later layer hides it; then the merged whole is checked
//! for what must be there.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    path::Path,
    sync::Arc,
};

use super::{
    Config, Invalid, SHIPPED, SHIPPED_NAME, Sources, manifest,
    problem::{Origin, Problem, suggest},
    section::{Report, Scope},
    tree::{self, Node, Table, Value},
};

/// Largest configuration file: the shipped one is 50 times smaller.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What the names of variables begin with.
const PREFIX: &str = "KSI_";

/// Whether a variable belongs to this layer: `KSI_SECTION__KEY`.
pub(super) fn is_variable(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.contains("__"))
}

pub(super) fn load(sources: &Sources) -> Result<Config, Invalid> {
    let mut problems = Vec::new();
    let mut merged = Table::new();
    let manifest = match &sources.events {
        // Of a mistake in what is shipped only what no layer hides is the user's
        // concern, and tests find it first.
        None => tree::parse(&Arc::from(SHIPPED_NAME), SHIPPED).map(|shipped| {
            merged = shipped;
            Table::new()
        }),
        Some(path) => read(path, true),
    };
    for file in [manifest, read(&sources.file, false)] {
        match file {
            Ok(layer) => add(&mut merged, layer, &mut problems),
            Err(found) => problems.extend(found),
        }
    }
    let variables = variables(&merged, &sources.variables, &mut problems);
    add(&mut merged, variables, &mut problems);
    let sets = sets(&sources.sets, &mut problems);
    add(&mut merged, sets, &mut problems);

    // What lies in a file that cannot be parsed would be missed here.
    if !problems.is_empty() {
        return Err(Invalid { problems });
    }
    let report = Report::new(Scope::Whole);
    let config = manifest::read(&report, &merged);
    let (problems, effective) = report.into_parts();
    if problems.is_empty() { Ok(Config { effective, ..config }) } else { Err(Invalid { problems }) }
}

/// Checks one layer by itself and lays it over the others.
fn add(merged: &mut Table, layer: Table, problems: &mut Vec<Problem>) {
    let report = Report::new(Scope::Layer);
    manifest::read(&report, &layer);
    problems.extend(report.into_parts().0);
    tree::merge(merged, layer);
}

fn read(path: &Path, required: bool) -> Result<Table, Vec<Problem>> {
    let place = path.display().to_string();
    let problem =
        |message: String, hint: &str| vec![Problem { place: place.clone(), message, hint: hint.to_owned() }];
    let mut bytes = Vec::new();
    // A pipe or a device could keep the start waiting for ever.
    let outcome = fs::metadata(path).and_then(|metadata| {
        if !metadata.is_file() {
            return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
        }
        fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)
    });
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound && !required => return Ok(Table::new()),
        Err(error) => return Err(problem(format!("cannot be read: {error}"), "")),
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => {
            return Err(problem(format!("is larger than {FILE_BYTES_MAX} bytes"), "is it the right file?"));
        }
        Ok(_) => {}
    }
    match String::from_utf8(bytes) {
        Ok(text) => tree::parse(&Arc::from(&*place), &text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(problem(format!("line {line} is not UTF-8"), "save the file as UTF-8"))
        }
    }
}

/// Makes a layer of environment variables.
///
/// A variable's name has only capitals, digits and underscores. Each part of
/// it therefore stands for the key of the layers beneath that is the same in
/// lower case, with `_` for whatever a variable cannot hold:
/// `KSI_EVENTS__COMPLETION_REQUEST__TIMEOUT` is
/// `events."completion:request".timeout`.
fn variables(base: &Table, variables: &[(String, String)], problems: &mut Vec<Problem>) -> Table {
    let mut layer = Table::new();
    let mut sorted: Vec<_> = variables.iter().filter(|(name, _)| is_variable(name)).collect();
    sorted.sort();
    for (name, value) in sorted {
        let origin = Origin::Variable(Arc::from(name.as_str()));
        let mut path = Vec::new();
        let mut below = Some(base);
        let mut fault = None;
        for part in name.trim_start_matches(PREFIX).split("__") {
            match key_of(below, part) {
                Ok(key) => {
                    below = below.and_then(|table| match table.get(&key).map(|node| &node.value) {
                        Some(Value::Table(inner)) => Some(inner),
                        _ => None,
                    });
                    path.push(key);
                }
                Err(why) => fault = fault.or(Some(why)),
            }
        }
        let placed = match fault {
            Some(why) => Err(why),
            None => insert(&mut layer, &path, value, &origin),
        };
        if let Err(why) = placed {
            let hint = "write KSI_SECTION__KEY, with two underscores between section and key";
            problems.push(Problem::new(&origin, why, hint));
        }
    }
    layer
}

/// The key that a part of a variable's name stands for.
fn key_of(table: Option<&Table>, part: &str) -> Result<String, String> {
    let plain = part.to_ascii_lowercase();
    if plain.is_empty() {
        return Err("a part of its name is empty".to_owned());
    }
    let Some(table) = table.filter(|table| !table.contains_key(&plain)) else { return Ok(plain) };
    let spelt = |key: &str| {
        let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
        key.to_ascii_lowercase().chars().map(letter).collect::<String>()
    };
    let same: Vec<_> = table.keys().filter(|key| spelt(key) == plain).collect();
    match same.as_slice() {
        [] => Ok(plain),
        [one] => Ok((*one).clone()),
        [one, other, ..] => {
            Err(format!("`{part}` may mean `{one}` or `{other}`; say it in the file or with --set"))
        }
    }
}

/// Makes a layer of `section.key=value`.
fn sets(sets: &[String], problems: &mut Vec<Problem>) -> Table {
    let mut layer = Table::new();
    for set in sets {
        let parsed = match split_set(set) {
            None => Err("it has no `=`".to_owned()),
            Some((key, value)) => tree::parse_key(key).and_then(|path| {
                let origin = Origin::Flag(Arc::from(key.trim()));
                insert(&mut layer, &path, value, &origin)
            }),
        };
        if let Err(why) = parsed {
            let key = set.split('=').next().unwrap_or_default();
            let origin = Origin::Flag(Arc::from(key.trim()));
            problems.push(Problem::new(&origin, why, "write --set section.key=value"));
        }
    }
    layer
}

/// Splits at the first `=` that is not inside quotes.
fn split_set(set: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, letter) in set.char_indices() {
        match (quote, letter) {
            (None, '=') => return Some((&set[..at], set[at + 1..].trim())),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            _ => {}
        }
    }
    None
}

/// Puts a text at a path; a later one of the same path wins.
fn insert(layer: &mut Table, path: &[String], text: &str, at: &Origin) -> Result<(), String> {
    let node = |value: Value| Node { value, at: at.clone(), key_at: at.clone() };
    let Some((last, sections)) = path.split_last() else { return Err("it has no key".to_owned()) };
    let mut table = layer;
    for section in sections {
        let inner = table.entry(section.clone()).or_insert_with(|| node(Value::Table(Table::new())));
        match &mut inner.value {
            Value::Table(inner) => table = inner,
            _ => return Err(format!("`{section}` is given a value and a key of its own")),
        }
    }
    if let Some(Node { value: Value::Table(inner), .. }) = table.get(last) {
        let keys: Vec<_> = inner.keys().map(String::as_str).collect();
        return Err(format!(
            "`{last}` is given a value and a key of its own; {}",
            suggest("", &keys, "it has")
        ));
    }
    table.insert(last.clone(), node(Value::Loose(text.to_owned())));
    Ok(())
}
