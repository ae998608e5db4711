//! Whether an answer is the JSON that was asked for.
//!
//! Providers promise to keep a schema, and not all can. Looked at here: `type`,
//! `enum`, `const`, `required`, `properties`, `additionalProperties`, `items`,
//! `prefixItems`, lengths and bounds, `anyOf`, `oneOf`, `allOf`, `not`, and `$ref`
//! inside the schema. Other keywords (`pattern`, `format`) are the provider's to
//! keep. What does not fit is refused with its place; it is never mended.
//!
//! # Invariants
//!
//! - A check ends soon, whatever the schema and the answer are: all that it does is
//!   paid for out of one purse ([`STEPS_MAX`]), that of the alternatives too.

use std::{
    cell::Cell,
    fmt::{self, Write},
};

use ksi_provider::{Failure, Generated, ResponseFormat, StopReason};
use ksi_sdk::prelude::{Refusal, json};
use serde_json::{Map, Value};

/// How deep a schema may lead: a `$ref` may lead to itself.
const DEPTH_MAX: usize = 128;

/// Steps that all of one check may take, each some nanoseconds: a comparison of two
/// plain values is one. It bounds how long nobody else has a turn.
const STEPS_MAX: usize = 2_000_000;

/// What looking at one value by one schema takes, beside what is compared there.
const VISIT_STEPS: usize = 20;

/// How much of a text is compared or counted in a step.
const STEP_BYTES: usize = 64;

/// Most of a part of the schema that is shown where an answer does not fit it.
const SHOWN_BYTES_MAX: usize = 500;

/// Checks the text of an answer, and of each of its alternatives, against what it was
/// to be. One that calls tools has no text to check.
pub(crate) fn check(format: Option<&ResponseFormat>, answer: &Generated) -> Result<(), Refusal> {
    let check = match format {
        None | Some(ResponseFormat::Text) => return Ok(()),
        Some(ResponseFormat::Json) => None,
        Some(ResponseFormat::JsonSchema(schema)) => Some(Check::new(Value::Object(schema.schema.clone()))),
    };
    let Generated { text, tool_calls, stop_reason, alternatives, .. } = answer;
    if tool_calls.is_empty() {
        check_text(check.as_ref(), "the answer", text, *stop_reason)?;
    }
    let mut texts = alternatives.iter().enumerate().filter(|(_, one)| one.tool_calls.is_empty());
    texts.try_for_each(|(index, one)| {
        check_text(check.as_ref(), &format!("`alternatives[{index}]`"), &one.text, one.stop_reason)
    })
}

/// Checks one text, which is called `name` where it does not fit.
fn check_text(check: Option<&Check>, name: &str, text: &str, stop_reason: StopReason) -> Result<(), Refusal> {
    let refused = |why: String| {
        let refusal = Failure::InvalidAnswer.refusal(why);
        match stop_reason {
            StopReason::Length => refusal
                .hint("it was cut at its longest length; `max_tokens` (`ksi ask --max-tokens`) allows more"),
            _ => refusal.hint("another model may keep the schema; `fallbacks` names others"),
        }
    };
    let value: Value = serde_json::from_str(text.trim())
        .map_err(|error| refused(format!("{name} is not the JSON that was asked for: {error}")))?;
    let Some(check) = check else {
        return match value.is_object() {
            true => Ok(()),
            false => Err(refused(format!("{name} is JSON, and no object"))),
        };
    };
    check.fits(&check.root, &value, 0).map_err(|misfit| match misfit {
        Misfit::Wrong(wrong) => {
            let path = wrong.path();
            let place = if path.is_empty() { name.into() } else { format!("`{path}` of {name}") };
            let refusal = refused(format!("{place} does not fit the schema: {}", wrong.why));
            let details = refusal.details.clone().map(|mut details| {
                details["path"] = json!(path);
                details
            });
            Refusal { details, ..refusal }
        }
        // No provider is to blame, and no other could do better.
        Misfit::Costly => {
            let message = format!("whether {name} fits the schema takes too long to find out");
            Failure::Rejected.refusal(message).hint("ask by a schema with fewer alternatives")
        }
    })
}

/// Why a value is not taken.
enum Misfit<'v> {
    /// It does not fit.
    Wrong(Wrong<'v>),
    /// Nobody knows whether it fits: there are no steps left to find out.
    Costly,
}

/// What does not fit, and where.
struct Wrong<'v> {
    why: String,
    /// From the inside out.
    path: Vec<Segment<'v>>,
}

/// A step from a value to one inside it.
enum Segment<'v> {
    Key(&'v str),
    Index(usize),
}

impl Wrong<'_> {
    fn path(&self) -> String {
        let mut path = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Index(index) => path.push_str(&format!("[{index}]")),
                Segment::Key(key) if path.is_empty() => path.push_str(key),
                Segment::Key(key) => path.extend([".", key]),
            }
        }
        path
    }
}

type Fit<'v> = Result<(), Misfit<'v>>;

fn wrong<'v>(why: impl Into<String>) -> Fit<'v> {
    Err(Misfit::Wrong(Wrong { why: why.into(), path: Vec::new() }))
}

/// Says of a misfit that it is inside.
fn inside<'v>(fit: Fit<'v>, segment: Segment<'v>) -> Fit<'v> {
    fit.map_err(|misfit| match misfit {
        Misfit::Wrong(mut wrong) => {
            wrong.path.push(segment);
            Misfit::Wrong(wrong)
        }
        Misfit::Costly => Misfit::Costly,
    })
}

/// Whether it fits, where it need not.
fn decided(fit: Fit<'_>) -> Result<bool, Misfit<'_>> {
    match fit {
        Ok(()) => Ok(true),
        Err(Misfit::Wrong(_)) => Ok(false),
        Err(Misfit::Costly) => Err(Misfit::Costly),
    }
}

/// The check of one answer.
struct Check {
    root: Value,
    /// Steps that it may take still.
    left: Cell<usize>,
}

impl Check {
    fn new(root: Value) -> Self {
        Self { root, left: Cell::new(STEPS_MAX) }
    }

    /// Takes steps; to be called before what takes them.
    fn pay<'v>(&self, steps: usize) -> Fit<'v> {
        let left = self.left.get().checked_sub(steps).ok_or(Misfit::Costly)?;
        self.left.set(left);
        Ok(())
    }

    fn fits<'v>(&self, schema: &Value, value: &'v Value, depth: usize) -> Fit<'v> {
        self.pay(VISIT_STEPS)?;
        let rules = match schema {
            Value::Bool(false) => return wrong("nothing is allowed here"),
            Value::Object(rules) if depth < DEPTH_MAX => rules,
            _ => return Ok(()),
        };
        let depth = depth + 1;
        if let Some(name) = rules.get("$ref").and_then(Value::as_str) {
            self.pay(name.len())?;
            if let Some(target) = name.strip_prefix('#').and_then(|place| self.root.pointer(place)) {
                self.fits(target, value, depth)?;
            }
        }
        if let Some(expected) = rules.get("const")
            && !self.equal(expected, value)?
        {
            return wrong(format!("it must be {}", shown(expected)));
        }
        if let Some(allowed @ Value::Array(list)) = rules.get("enum")
            && !any(list, |one| self.equal(one, value))?
        {
            return wrong(format!("it must be one of {}", shown(allowed)));
        }
        if let Some(kind) = rules.get("type") {
            let kinds = kind.as_array().map_or(std::slice::from_ref(kind), Vec::as_slice);
            self.pay(kinds.len())?;
            if !kinds.iter().any(|kind| kind.as_str().is_none_or(|kind| is_a(value, kind))) {
                return wrong(format!("it must be of type {}", shown(kind)));
            }
        }
        self.bounds(rules, value)?;
        self.combinations(rules, value, depth)?;
        match value {
            Value::Object(fields) => self.object(rules, fields, depth),
            Value::Array(items) => {
                let first = rules.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                for (index, item) in items.iter().enumerate() {
                    if let Some(schema) = first.get(index).or_else(|| rules.get("items")) {
                        inside(self.fits(schema, item, depth), Segment::Index(index))?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether two values are the same.
    fn equal<'v>(&self, one: &Value, other: &Value) -> Result<bool, Misfit<'v>> {
        self.pay(1)?;
        match (one, other) {
            (Value::String(one), Value::String(other)) if one.len() == other.len() => {
                self.pay(one.len() / STEP_BYTES)?;
                Ok(one == other)
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (one, other) in one.iter().zip(other) {
                    if !self.equal(one, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Object(one), Value::Object(other)) if one.len() == other.len() => {
                for (key, one) in one {
                    self.pay(key.len() / STEP_BYTES)?;
                    let Some(other) = other.get(key) else { return Ok(false) };
                    if !self.equal(one, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Array(_) | Value::Object(_) | Value::String(_), _) => Ok(false),
            (one, other) => Ok(one == other),
        }
    }

    /// Whether a value is neither too much nor too little of something.
    fn bounds<'v>(&self, rules: &Map<String, Value>, value: &Value) -> Fit<'v> {
        let limit = |key: &str| rules.get(key).and_then(Value::as_u64);
        let within = |size: usize, (min, least): (&str, Option<u64>), (max, most): (&str, Option<u64>)| {
            let size = size as u64;
            match (least, most) {
                (Some(least), _) if size < least => wrong(format!("`{min}` is {least}, and it has {size}")),
                (_, Some(most)) if size > most => wrong(format!("`{max}` is {most}, and it has {size}")),
                _ => Ok(()),
            }
        };
        let limits = |min, max| ((min, limit(min)), (max, limit(max)));
        match value {
            Value::String(text) => match limits("minLength", "maxLength") {
                ((_, None), (_, None)) => Ok(()),
                (min, max) => {
                    self.pay(text.len() / STEP_BYTES)?;
                    within(text.chars().count(), min, max)
                }
            },
            Value::Array(items) => {
                let (min, max) = limits("minItems", "maxItems");
                within(items.len(), min, max)
            }
            Value::Object(fields) => {
                let (min, max) = limits("minProperties", "maxProperties");
                within(fields.len(), min, max)
            }
            Value::Number(number) => number.as_f64().map_or(Ok(()), |number| in_range(rules, value, number)),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    fn combinations<'v>(&self, rules: &Map<String, Value>, value: &'v Value, depth: usize) -> Fit<'v> {
        let list = |key: &str| rules.get(key).and_then(Value::as_array);
        for schema in list("allOf").into_iter().flatten() {
            self.fits(schema, value, depth)?;
        }
        let fits = |schema: &Value| decided(self.fits(schema, value, depth));
        if let Some(schemas) = list("anyOf")
            && !any(schemas, fits)?
        {
            return wrong("it fits none of `anyOf`");
        }
        if let Some(schemas) = list("oneOf") {
            let mut fitting = 0;
            for schema in schemas {
                fitting += usize::from(fits(schema)?);
            }
            match fitting {
                0 => return wrong("it fits none of `oneOf`"),
                1 => {}
                _ => return wrong("it fits more than one of `oneOf`"),
            }
        }
        match rules.get("not") {
            Some(not) if fits(not)? => wrong("it fits what it must `not`"),
            _ => Ok(()),
        }
    }

    fn object<'v>(
        &self,
        rules: &Map<String, Value>,
        fields: &'v Map<String, Value>,
        depth: usize,
    ) -> Fit<'v> {
        let required = rules.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            self.pay(1 + key.len() / STEP_BYTES)?;
            if !fields.contains_key(key) {
                return wrong(format!("`{}` is missing", cut(key)));
            }
        }
        let properties = rules.get("properties").and_then(Value::as_object);
        let patterns = rules.contains_key("patternProperties");
        let more = rules.get("additionalProperties").filter(|_| !patterns);
        for (key, value) in fields {
            self.pay(1 + key.len() / STEP_BYTES)?;
            if let Some(schema) = properties.and_then(|known| known.get(key)).or(more) {
                inside(self.fits(schema, value, depth), Segment::Key(key))?;
            }
        }
        Ok(())
    }
}

/// Whether one of a list is as wanted.
fn any<'v>(list: &[Value], wanted: impl Fn(&Value) -> Result<bool, Misfit<'v>>) -> Result<bool, Misfit<'v>> {
    for one in list {
        if wanted(one)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => true,
    }
}

fn in_range<'v>(rules: &Map<String, Value>, value: &Value, number: f64) -> Fit<'v> {
    let limit = |key: &str| rules.get(key).and_then(Value::as_f64);
    let broken = [
        ("minimum", limit("minimum").is_some_and(|least| number < least)),
        ("maximum", limit("maximum").is_some_and(|most| number > most)),
        ("exclusiveMinimum", limit("exclusiveMinimum").is_some_and(|least| number <= least)),
        ("exclusiveMaximum", limit("exclusiveMaximum").is_some_and(|most| number >= most)),
    ];
    match broken.into_iter().find(|(_, broken)| *broken) {
        Some((key, _)) => wrong(format!("`{key}` is {}, and it is {value}", rules[key])),
        None => Ok(()),
    }
}

/// The beginning of a text.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]
}

/// A part of a schema as JSON, of which no more is written than is shown.
fn shown(value: &Value) -> String {
    /// Takes no more than it has room for.
    struct Room(String);

    impl Write for Room {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let left = SHOWN_BYTES_MAX.saturating_sub(self.0.len());
            self.0.push_str(&text[..text.floor_char_boundary(left)]);
            if text.len() > left { Err(fmt::Error) } else { Ok(()) }
        }
    }

    let mut room = Room(String::new());
    if write!(room, "{value}").is_err() {
        room.0.push('…');
    }
    room.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(schema: Value, value: Value) -> Option<String> {
        let check = Check::new(schema);
        check.fits(&check.root, &value, 0).err().map(|misfit| match misfit {
            Misfit::Wrong(wrong) => format!("{}: {}", wrong.path(), wrong.why),
            Misfit::Costly => "costly".into(),
        })
    }

    #[test]
    fn what_fits_is_taken_and_what_does_not_is_refused_with_its_place() {
        let person = json!({"type": "object", "required": ["name"], "additionalProperties": false, "properties": {
            "name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}}}});
        for (value, place) in [
            (json!({"name": "Ada", "age": 3.0, "tags": ["a", "b"]}), None),
            (json!([]), Some("")),
            (json!({}), Some("")),
            (json!({"name": ""}), Some("name")),
            (json!({"name": 1}), Some("name")),
            (json!({"name": "A", "age": -1}), Some("age")),
            (json!({"name": "A", "age": 1.5}), Some("age")),
            (json!({"name": "A", "tags": ["a", "c"]}), Some("tags[1]")),
            (json!({"name": "A", "tags": ["a", "a", "a"]}), Some("tags")),
            (json!({"name": "A", "more": 1}), Some("more")),
        ] {
            let found = why(person.clone(), value.clone());
            let found = found.as_ref().and_then(|why| why.split(": ").next());
            assert_eq!(found, place, "{value}");
        }
    }

    #[test]
    fn combinations_and_references_are_followed() {
        let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"],
            "properties": {"v": {"type": "number"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}}});
        assert_eq!(why(tree.clone(), json!({"v": 1, "next": {"v": 2, "next": null}})), None);
        assert!(why(tree, json!({"v": 1, "next": {"v": "x"}})).is_some());
        let one = json!({"oneOf": [{"type": "integer"}, {"minimum": 5}], "not": {"const": 1}});
        assert_eq!((why(one.clone(), json!(2)), why(one.clone(), json!(7.5))), (None, None));
        assert!(why(one.clone(), json!(7)).is_some() && why(one.clone(), json!(1)).is_some());
        let endless = json!({"$ref": "#"});
        assert_eq!(why(endless, json!(1)), None, "it ends");
    }

    #[test]
    fn a_place_is_named_from_the_outside_in() {
        let schema = json!({"properties": {"a": {"items": {"properties": {"b": {"type": "null"}}}}}});
        assert!(why(schema, json!({"a": [{}, {"b": 1}]})).unwrap().starts_with("a[1].b: "));
    }

    #[test]
    fn what_is_shown_of_a_schema_is_bounded() {
        let many: Vec<_> = (0..10_000).map(|number| format!("ä{number}")).collect();
        let found = why(json!({ "enum": many }), json!(1)).unwrap();
        assert!(found.ends_with('…') && found.len() < SHOWN_BYTES_MAX + 50, "{found}");
        let found = why(json!({ "required": ["k".repeat(10_000)] }), json!({})).unwrap();
        assert!(found.len() < SHOWN_BYTES_MAX + 50, "{found}");
    }

    #[test]
    fn a_check_that_would_not_end_soon_is_given_up() {
        let long = "x".repeat(100_000);
        let each_other = |key: &str| json!({ key: [{"$ref": "#"}, {"$ref": "#"}] });
        let other = format!("{}y", &long[1..]);
        let (zeros, ones) = (vec![0; 1000], [vec![0; 999], vec![1]].concat());
        let numbers: Vec<_> = (0..5000).collect();
        let thousand = |value: Value| vec![value; 1000];
        let behind = |many: Value, last: Value| [thousand(many), vec![last]].concat();
        for (schema, value) in [
            (each_other("allOf"), json!({})),
            (each_other("oneOf"), json!({})),
            // Where the innermost fits nothing, each alternative is tried.
            (json!({"anyOf": [{"not": {"$ref": "#"}}, {"not": {"$ref": "#"}}]}), json!(1)),
            // A field inside which everything begins anew.
            (
                json!({"properties": {"a": {"allOf": thousand(json!({"$ref": "#"}))}}}),
                json!({"a": {"a": {"a": 1}}}),
            ),
            // What is wanted is the last of many that look like it.
            (json!({"items": {"enum": numbers}}), json!(vec![4999; 5000])),
            (json!({"items": {"enum": behind(json!(long), json!(other))}}), json!(vec![other; 10])),
            (json!({"items": {"enum": behind(json!(zeros), json!(ones))}}), json!(vec![ones; 10])),
            (json!({"items": {"type": behind(json!("null"), json!("integer"))}}), json!(vec![1; 5000])),
            (json!({"allOf": thousand(json!({"maxLength": 1_000_000}))}), json!(long.repeat(2))),
            (json!({"items": {"required": thousand(json!("a"))}}), json!(vec![json!({"a": 1}); 5000])),
            (json!({"items": {"$ref": format!("#/{}", "/".repeat(100_000))}}), json!(vec![1; 100])),
        ] {
            let shown = shown(&schema);
            let check = Check::new(schema);
            let fit = check.fits(&check.root, &value, 0);
            assert!(matches!(fit, Err(Misfit::Costly)), "{shown}");
        }
    }

    #[test]
    fn what_takes_too_long_is_refused_as_wrong_and_blames_no_provider() {
        let schema = json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]});
        let check = Check::new(schema);
        let refusal = check_text(Some(&check), "the answer", "{}", StopReason::Stop).unwrap_err();
        assert_eq!(Failure::of(&refusal), Some(Failure::Rejected), "{refusal}");
        assert!(!refusal.retryable);
        // What the first text took is not there for the next.
        let last = STEPS_MAX / 2 - 2 * VISIT_STEPS;
        let check = Check::new(json!({ "enum": (0..=last).collect::<Vec<_>>() }));
        assert!(check_text(Some(&check), "the answer", &last.to_string(), StopReason::Stop).is_ok());
        let refusal = check_text(Some(&check), "the answer", "-1", StopReason::Stop).unwrap_err();
        assert_eq!(Failure::of(&refusal), Some(Failure::InvalidAnswer));
        let refusal = check_text(Some(&check), "the answer", "-1", StopReason::Stop).unwrap_err();
        assert_eq!(Failure::of(&refusal), Some(Failure::Rejected));
    }

    #[test]
    fn a_large_answer_by_a_large_schema_is_checked_to_the_end() {
        let words: Vec<_> = (0..200).map(|number| format!("word {number}")).collect();
        let schema = json!({"type": "array", "items": {"type": "object", "required": ["id", "word", "text"],
            "additionalProperties": false, "properties": {
            "id": {"type": "integer", "minimum": 0}, "word": {"enum": words},
            "text": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1}]}}}});
        let item = |number: usize| {
            let word = format!("word {}", number % 200);
            json!({"id": number, "word": word, "text": "x".repeat(500)})
        };
        let mut items: Vec<_> = (0..5000).map(item).collect();
        assert_eq!(why(schema.clone(), json!(items)), None);
        items[4999]["word"] = json!("another");
        assert!(why(schema, json!(items)).unwrap().starts_with("[4999].word: it must be one of"));
    }
}
