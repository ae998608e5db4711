//! From a schema, as `schemars` derives it, to flags and payloads.

use serde_json::json;

use super::*;

fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "description": "Say something.",
        "properties": {
            "text": {"type": "string", "description": "What to\nsay."},
            "times": {"type": ["integer", "null"], "format": "uint32", "minimum": 0, "default": null},
            "speed": {"type": "number", "default": 1.5},
            "loud": {"type": "boolean", "default": false},
            "stop": {"type": "array", "items": {"type": "string"}},
            "numbers": {"type": "array", "items": {"type": "integer"}},
            "class": {"anyOf": [{"$ref": "#/$defs/Class"}, {"type": "null"}]},
            "role": {"$ref": "#/$defs/Role"},
            "inner": {"$ref": "#/$defs/Inner"},
            "free": true,
            "deep": {"$ref": "#/$defs/Circle"}
        },
        "required": ["text", "role"],
        "additionalProperties": false,
        "$defs": {
            "Class": {"type": "string", "enum": ["live", "latest"], "description": "How."},
            "Role": {"oneOf": [{"type": "string", "const": "user", "description": "a"},
                               {"type": "string", "const": "assistant", "description": "b"}]},
            "Inner": {"type": "object", "properties": {"x": {"type": "integer"}}},
            "Circle": {"$ref": "#/$defs/Circle"}
        }
    })
}

fn payload(base: Value, given: &[(&str, &[&str])]) -> Result<Value> {
    let given: Vec<_> = given
        .iter()
        .map(|(name, words)| ((*name).to_owned(), words.iter().map(|word| (*word).to_owned()).collect()))
        .collect();
    Fields::of(Some(&schema())).payload("echo:say", base, &given)
}

#[test]
fn fields_have_the_types_of_the_schema() {
    let fields = Fields::of(Some(&schema()));
    for (name, expected) in [
        ("text", "text"),
        ("times", "integer"),
        ("speed", "number"),
        ("loud", "true or false"),
        ("stop", "list of text"),
        ("numbers", "list of integer"),
        ("class", "live|latest"),
        ("role", "user|assistant"),
        ("inner", "object, as JSON"),
        ("free", "any JSON"),
        ("deep", "any JSON"),
    ] {
        assert_eq!(fields.get(name).unwrap().kind.word(), expected, "{name}");
    }
    assert_eq!(fields.get("text").unwrap().doc, "What to say.");
    assert_eq!(fields.get("class").unwrap().doc, "How.");
    assert_eq!(fields.get("speed").unwrap().default.as_deref(), Some("1.5"));
    assert_eq!(fields.get("times").unwrap().default, None);
    assert!(fields.get("text").unwrap().required && !fields.get("loud").unwrap().required);
    assert_eq!(fields.get("other"), None);
}

#[test]
fn words_become_typed_values() {
    let given: &[(&str, &[&str])] = &[
        ("text", &["5"]),
        ("role", &["user"]),
        ("times", &["18446744073709551615"]),
        ("speed", &["2"]),
        ("loud", &["true"]),
        ("stop", &["a", "b"]),
        ("numbers", &["[1, 2]"]),
        ("inner", &[r#"{"x":1}"#]),
        ("free", &["[1]"]),
        ("deep", &["plain"]),
        ("class", &["latest"]),
    ];
    assert_eq!(
        payload(Value::Null, given).unwrap(),
        json!({"text": "5", "role": "user", "times": 18_446_744_073_709_551_615_u64, "speed": 2, "loud": true,
               "stop": ["a", "b"], "numbers": [1, 2], "inner": {"x": 1}, "free": [1], "deep": "plain",
               "class": "latest"})
    );
}

#[test]
fn flags_go_on_top_of_json() {
    let base = json!({"text": "old", "role": "user"});
    assert_eq!(payload(base, &[("text", &["new"])]).unwrap(), json!({"text": "new", "role": "user"}));
}

#[test]
fn every_mistake_is_named_at_once() {
    let given: &[(&str, &[&str])] = &[
        ("txt", &["hi"]),
        ("times", &["many"]),
        ("speed", &["NaN"]),
        ("loud", &["perhaps"]),
        ("class", &["lates"]),
        ("numbers", &["1", "x"]),
        ("inner", &["[1]"]),
        ("role", &["user", "assistant"]),
    ];
    let failure = payload(Value::Null, given).unwrap_err();
    assert_eq!(failure.exit as u8, 2);
    for part in [
        "--txt is no field of it; did you mean --text?",
        "--times takes integer, not `many`",
        "--speed takes number, not `NaN`",
        "--loud takes true or false, not `perhaps`",
        "--class takes live|latest, not `lates`; did you mean `latest`?",
        "--numbers takes integer, not `x`",
        "--inner takes object, as JSON, not `[1]`",
        "--role takes one value, and 2 were given",
        "--text (text) is missing: What to say.",
    ] {
        assert!(failure.message.contains(part), "no `{part}` in: {}", failure.message);
    }
    assert!(failure.hint.contains("ksi send echo:say --help"));
}

#[test]
fn without_a_schema_any_field_goes() {
    let fields = Fields::of(None);
    let given = [("n".to_owned(), vec!["5".to_owned()]), ("t".to_owned(), vec!["x y".to_owned()])];
    assert_eq!(fields.payload("a:b", Value::Null, &given).unwrap(), json!({"n": 5, "t": "x y"}));
}

#[test]
fn an_event_without_fields_takes_none() {
    let closed = json!({"type": "object", "additionalProperties": false});
    let fields = Fields::of(Some(&closed));
    assert_eq!(fields.payload("a:b", Value::Null, &[]).unwrap(), json!({}));
    let given = [("n".to_owned(), vec!["5".to_owned()])];
    assert!(fields.payload("a:b", Value::Null, &given).is_err());
}

#[test]
fn a_payload_that_is_no_object_stands_alone() {
    let fields = Fields::of(None);
    assert_eq!(fields.payload("a:b", json!([1]), &[]).unwrap(), json!([1]));
    assert!(fields.payload("a:b", json!([1]), &[("n".to_owned(), vec!["5".to_owned()])]).is_err());
}
