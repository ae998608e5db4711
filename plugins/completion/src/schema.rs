//! Whether an answer is the JSON that was asked for.
//!
//! Providers promise to keep a schema, and not all can. Looked at here: `type`,
//! `enum`, `const`, `required`, `properties`, `additionalProperties`, `items`,
//! `prefixItems`, lengths and bounds, `anyOf`, `oneOf`, `allOf`, `not`, and `$ref`
//! inside the schema. Other keywords (`pattern`, `format`) are the provider's to
//! keep. What does not fit is refused with its place; it is never mended.

use ksi_provider::{Failure, Generated, ResponseFormat, StopReason};
use ksi_sdk::prelude::{Refusal, json};
use serde_json::{Map, Value};

/// How deep a schema may lead: a `$ref` may lead to itself.
const DEPTH_MAX: usize = 128;

/// Checks the text of an answer, and of each of its alternatives, against what it was
/// to be. One that calls tools has no text to check.
pub(crate) fn check(format: Option<&ResponseFormat>, answer: &Generated) -> Result<(), Refusal> {
    let schema = match format {
        None | Some(ResponseFormat::Text) => return Ok(()),
        Some(ResponseFormat::Json) => None,
        Some(ResponseFormat::JsonSchema(schema)) => Some(&schema.schema),
    };
    let Generated { text, tool_calls, stop_reason, alternatives, .. } = answer;
    if tool_calls.is_empty() {
        check_text(schema, "the answer", text, *stop_reason)?;
    }
    let mut texts = alternatives.iter().enumerate().filter(|(_, one)| one.tool_calls.is_empty());
    texts.try_for_each(|(index, one)| {
        check_text(schema, &format!("`alternatives[{index}]`"), &one.text, one.stop_reason)
    })
}

/// Checks one text, which is called `name` where it does not fit.
fn check_text(
    schema: Option<&Map<String, Value>>,
    name: &str,
    text: &str,
    stop_reason: StopReason,
) -> Result<(), Refusal> {
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
    match schema {
        None if !value.is_object() => Err(refused(format!("{name} is JSON, and no object"))),
        None => Ok(()),
        Some(root) => fits(&Value::Object(root.clone()), &Value::Object(root.clone()), &value, "", 0)
            .map_err(|(path, why)| {
                let place = if path.is_empty() { name.into() } else { format!("`{path}` of {name}") };
                let refusal = refused(format!("{place} does not fit the schema: {why}"));
                let details = refusal.details.clone().map(|mut details| {
                    details["path"] = json!(path);
                    details
                });
                Refusal { details, ..refusal }
            }),
    }
}

type Misfit = (String, String);

fn fits(root: &Value, schema: &Value, value: &Value, path: &str, depth: usize) -> Result<(), Misfit> {
    let misfit = |why: String| Err((path.to_owned(), why));
    let rules = match schema {
        Value::Bool(false) => return misfit("nothing is allowed here".into()),
        Value::Object(rules) if depth < DEPTH_MAX => rules,
        _ => return Ok(()),
    };
    let deeper = |schema: &Value, value: &Value, path: &str| fits(root, schema, value, path, depth + 1);
    if let Some(target) =
        rules.get("$ref").and_then(Value::as_str).and_then(|name| root.pointer(name.strip_prefix('#')?))
    {
        deeper(target, value, path)?;
    }
    if let Some(expected) = rules.get("const")
        && expected != value
    {
        return misfit(format!("it must be {expected}"));
    }
    if let Some(Value::Array(allowed)) = rules.get("enum")
        && !allowed.contains(value)
    {
        return misfit(format!("it must be one of {}", Value::Array(allowed.clone())));
    }
    if let Some(kind) = rules.get("type") {
        let mut kinds = kind.as_array().map_or(std::slice::from_ref(kind), Vec::as_slice).iter();
        if !kinds.any(|kind| kind.as_str().is_none_or(|kind| is_a(value, kind))) {
            return misfit(format!("it must be of type {kind}"));
        }
    }
    bounds(rules, value).map_or(Ok(()), misfit)?;
    combinations(rules, value, path, &deeper)?;
    match value {
        Value::Object(fields) => object(rules, fields, path, &deeper),
        Value::Array(items) => {
            let first = rules.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for (index, item) in items.iter().enumerate() {
                if let Some(schema) = first.get(index).or_else(|| rules.get("items")) {
                    deeper(schema, item, &format!("{path}[{index}]"))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
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

/// What a value is too much or too little of.
fn bounds(rules: &Map<String, Value>, value: &Value) -> Option<String> {
    let size = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems")),
        Value::Object(fields) => Some((fields.len(), "minProperties", "maxProperties")),
        _ => None,
    };
    let limit = |key: &str| rules.get(key).and_then(Value::as_u64);
    if let Some((size, min, max)) = size {
        let size = size as u64;
        return match (limit(min), limit(max)) {
            (Some(least), _) if size < least => Some(format!("`{min}` is {least}, and it has {size}")),
            (_, Some(most)) if size > most => Some(format!("`{max}` is {most}, and it has {size}")),
            _ => None,
        };
    }
    let number = value.as_f64()?;
    let limit = |key: &str| rules.get(key).and_then(Value::as_f64);
    let wrong = [
        ("minimum", limit("minimum").is_some_and(|least| number < least)),
        ("maximum", limit("maximum").is_some_and(|most| number > most)),
        ("exclusiveMinimum", limit("exclusiveMinimum").is_some_and(|least| number <= least)),
        ("exclusiveMaximum", limit("exclusiveMaximum").is_some_and(|most| number >= most)),
    ];
    let (key, _) = wrong.into_iter().find(|(_, wrong)| *wrong)?;
    Some(format!("`{key}` is {}, and it is {value}", rules[key]))
}

fn combinations(
    rules: &Map<String, Value>,
    value: &Value,
    path: &str,
    deeper: &impl Fn(&Value, &Value, &str) -> Result<(), Misfit>,
) -> Result<(), Misfit> {
    let list = |key: &str| rules.get(key).and_then(Value::as_array);
    for schema in list("allOf").into_iter().flatten() {
        deeper(schema, value, path)?;
    }
    let fitting =
        |schemas: &Vec<Value>| schemas.iter().filter(|one| deeper(one, value, path).is_ok()).count();
    let misfit = |why: &str| Err((path.to_owned(), why.to_owned()));
    match (list("anyOf").map(fitting), list("oneOf").map(fitting), rules.get("not")) {
        (Some(0), ..) => misfit("it fits none of `anyOf`"),
        (_, Some(0), _) => misfit("it fits none of `oneOf`"),
        (_, Some(2..), _) => misfit("it fits more than one of `oneOf`"),
        (.., Some(not)) if deeper(not, value, path).is_ok() => misfit("it fits what it must `not`"),
        _ => Ok(()),
    }
}

fn object(
    rules: &Map<String, Value>,
    fields: &Map<String, Value>,
    path: &str,
    deeper: &impl Fn(&Value, &Value, &str) -> Result<(), Misfit>,
) -> Result<(), Misfit> {
    let required = rules.get("required").and_then(Value::as_array);
    let missing =
        required.into_iter().flatten().filter_map(Value::as_str).find(|key| !fields.contains_key(*key));
    if let Some(key) = missing {
        return Err((path.to_owned(), format!("`{key}` is missing")));
    }
    let properties = rules.get("properties").and_then(Value::as_object);
    let patterns = rules.contains_key("patternProperties");
    for (key, value) in fields {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (properties.and_then(|known| known.get(key)), rules.get("additionalProperties")) {
            (Some(schema), _) => deeper(schema, value, &path)?,
            (None, Some(more)) if !patterns => deeper(more, value, &path)?,
            (None, _) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(schema: Value, value: Value) -> Option<String> {
        fits(&schema, &schema, &value, "", 0).err().map(|(path, why)| format!("{path}: {why}"))
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
}
