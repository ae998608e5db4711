//! Flags from a JSON schema: `--key value` typed by what the event declares.
//!
//! It reads the parts of JSON Schema that derived schemas use (types, `$ref`,
//! `anyOf` with null, enums, arrays) and takes everything else for "any JSON".
//! It does not validate: the daemon does. It only turns words into values and
//! says early what cannot be right.
//!
//! # Invariants
//!
//! A value of the wrong type never leaves: each mistake names the field, the
//! type that it wants, and what was given. All mistakes are named at once.

use ksi_protocol::nearest;
use serde_json::{Map, Value};

use crate::error::{Failure, Result};

/// Nesting of `$ref` and `anyOf` that is followed; a schema that goes in
/// circles ends here.
const DEPTH_MAX: usize = 16;

/// What a field takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A text.
    Text,
    /// One of these texts.
    Choice(Vec<String>),
    /// Several of one kind.
    List(Box<Kind>),
    /// An object, as JSON.
    Object,
    /// Any JSON; what is not JSON is a text.
    Any,
}

impl Kind {
    /// The type in words.
    pub(crate) fn word(&self) -> String {
        match self {
            Self::Integer => "integer".into(),
            Self::Number => "number".into(),
            Self::Boolean => "true or false".into(),
            Self::Text => "text".into(),
            Self::Choice(words) => words.join("|"),
            Self::List(kind) => format!("list of {}", kind.word()),
            Self::Object => "object, as JSON".into(),
            Self::Any => "any JSON".into(),
        }
    }

    /// Turns a word of the command line into a value.
    fn value(&self, text: &str) -> std::result::Result<Value, String> {
        let wrong = || format!("takes {}, not `{text}`", self.word());
        match self {
            Self::Integer => match text.parse::<i64>() {
                Ok(n) => Ok(n.into()),
                Err(_) => text.parse::<u64>().map(Value::from).map_err(|_| wrong()),
            },
            Self::Number => {
                let number = text.parse::<i64>().map(Value::from);
                number.or_else(|_| {
                    let number = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
                    number.map(Value::from).ok_or_else(wrong)
                })
            }
            Self::Boolean => match text {
                "true" | "yes" => Ok(true.into()),
                "false" | "no" => Ok(false.into()),
                _ => Err(wrong()),
            },
            Self::Text => Ok(text.into()),
            Self::Choice(words) if words.iter().any(|word| word == text) => Ok(text.into()),
            Self::Choice(words) => {
                let near = nearest::best(text, words.iter().map(String::as_str));
                Err(near.map_or_else(wrong, |near| format!("{}; did you mean `{near}`?", wrong())))
            }
            Self::List(_) => self.values(&[text]),
            Self::Object => match serde_json::from_str(text) {
                Ok(value @ Value::Object(_)) => Ok(value),
                _ => Err(wrong()),
            },
            Self::Any => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
        }
    }

    /// Turns all words given for one field into its value: a list takes one
    /// from each, or a whole JSON array; anything else takes one word.
    fn values(&self, texts: &[&str]) -> std::result::Result<Value, String> {
        match (self, texts) {
            (Self::List(_), [one]) if one.trim_start().starts_with('[') => match serde_json::from_str(one) {
                Ok(list @ Value::Array(_)) => Ok(list),
                _ => Err(format!("takes {}, and `{one}` is no JSON array", self.word())),
            },
            (Self::List(kind), texts) => texts.iter().map(|text| kind.value(text)).collect(),
            (_, [one]) => self.value(one),
            (_, texts) => Err(format!("takes one value, and {} were given", texts.len())),
        }
    }
}

/// One field of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its name in the payload.
    pub(crate) name: String,
    /// What it takes.
    pub(crate) kind: Kind,
    /// Whether the event cannot do without.
    pub(crate) required: bool,
    /// What it is for.
    pub(crate) doc: String,
    /// What holds when it is left out, as JSON.
    pub(crate) default: Option<String>,
}

/// The fields of a payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// In the order of the schema.
    pub(crate) known: Vec<Field>,
    /// Whether other fields are allowed too.
    pub(crate) open: bool,
}

impl Fields {
    /// Reads the schema of a payload; no schema means that any field goes.
    pub(crate) fn of(schema: Option<&Value>) -> Self {
        let Some(root) = schema else { return Self { known: Vec::new(), open: true } };
        let object = resolve(root, root, 0);
        let required = object.get("required").and_then(Value::as_array);
        let is_required =
            |name: &str| required.is_some_and(|names| names.iter().any(|required| required == name));
        let properties = object.get("properties").and_then(Value::as_object);
        let known: Vec<_> = properties
            .into_iter()
            .flatten()
            .map(|(name, schema)| Field {
                name: name.clone(),
                kind: kind(root, schema, 0),
                required: is_required(name),
                doc: doc(root, schema),
                default: schema.get("default").filter(|value| !value.is_null()).map(Value::to_string),
            })
            .collect();
        let closed = object.get("additionalProperties") == Some(&Value::Bool(false));
        // A schema that lists fields means these; one that lists none and is
        // not closed describes something that flags cannot.
        Self { open: !closed && known.is_empty(), known }
    }

    /// The field of this name; in an open payload every field exists.
    pub(crate) fn get(&self, name: &str) -> Option<Field> {
        let known = self.known.iter().find(|field| field.name == name).cloned();
        known.or_else(|| {
            self.open.then(|| Field {
                name: name.to_owned(),
                kind: Kind::Any,
                required: false,
                doc: String::new(),
                default: None,
            })
        })
    }

    /// Builds the payload: `base`, with the words given for fields on top.
    ///
    /// # Errors
    ///
    /// Names every wrong and every missing field.
    pub(crate) fn payload(&self, event: &str, base: Value, given: &[(String, Vec<String>)]) -> Result<Value> {
        let mut object = match base {
            Value::Object(object) => object,
            Value::Null => Map::new(),
            other if given.is_empty() => return Ok(other),
            _ => return Err(Failure::usage("flags need an object beneath them, and --json is none")),
        };
        let mut mistakes = Vec::new();
        for (name, texts) in given {
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            let Some(field) = self.get(name) else {
                let near = nearest::best(name, self.known.iter().map(|field| field.name.as_str()));
                let near = near.map_or(String::new(), |near| format!("; did you mean --{near}?"));
                mistakes.push(format!("--{name} is no field of it{near}"));
                continue;
            };
            match field.kind.values(&texts) {
                Ok(value) => drop(object.insert(name.clone(), value)),
                Err(why) => mistakes.push(format!("--{name} {why}")),
            }
        }
        for field in self.known.iter().filter(|field| field.required && !object.contains_key(&field.name)) {
            let doc = if field.doc.is_empty() { String::new() } else { format!(": {}", field.doc) };
            mistakes.push(format!("--{} ({}) is missing{doc}", field.name, field.kind.word()));
        }
        if mistakes.is_empty() {
            return Ok(object.into());
        }
        Err(Failure::usage(format!("`{event}` cannot be asked like this: {}", mistakes.join("; ")))
            .hint(format!("its fields: ksi send {event} --help")))
    }
}

/// Follows `$ref`, and the one alternative that is not null.
fn resolve<'a>(root: &'a Value, schema: &'a Value, depth: usize) -> &'a Value {
    if depth > DEPTH_MAX {
        return schema;
    }
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
        return root.pointer(pointer).map_or(schema, |target| resolve(root, target, depth + 1));
    }
    let alternatives = ["anyOf", "oneOf", "allOf"].iter().find_map(|key| schema.get(*key)?.as_array());
    let mut real =
        alternatives.into_iter().flatten().filter(|schema| schema.get("type") != Some(&"null".into()));
    match (real.next(), real.next()) {
        (Some(only), None) => resolve(root, only, depth + 1),
        _ => schema,
    }
}

/// What the field is for: its own words, else those of its type.
fn doc(root: &Value, schema: &Value) -> String {
    let own = schema.get("description").or_else(|| resolve(root, schema, 0).get("description"));
    own.and_then(Value::as_str).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn kind(root: &Value, schema: &Value, depth: usize) -> Kind {
    if depth > DEPTH_MAX {
        return Kind::Any;
    }
    let schema = resolve(root, schema, depth);
    if let Some(words) = choices(schema) {
        return Kind::Choice(words);
    }
    let named = match schema.get("type") {
        Some(Value::String(name)) => Some(name.as_str()),
        Some(Value::Array(names)) => {
            let mut real = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            match (real.next(), real.next()) {
                (Some(only), None) => Some(only),
                _ => None,
            }
        }
        _ => None,
    };
    match named {
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        Some("string") => Kind::Text,
        Some("array") => {
            Kind::List(Box::new(schema.get("items").map_or(Kind::Any, |items| kind(root, items, depth + 1))))
        }
        Some("object") => Kind::Object,
        _ => Kind::Any,
    }
}

/// The texts of an enum, written as `enum` or as constants with documentation.
fn choices(schema: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words.iter().filter(|word| !word.is_null()).map(text).collect();
    }
    if let Some(word) = schema.get("const") {
        return Some(vec![text(word)?]);
    }
    let alternatives = schema.get("oneOf").or_else(|| schema.get("anyOf"))?.as_array()?;
    let groups: Option<Vec<_>> = alternatives.iter().map(choices).collect();
    Some(groups?.concat()).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests;
