//! Grammars over a vocabulary of single bytes: whatever is written within them,
//! and wherever it is cut, it is JSON by its schema.

use super::*;
use ksi_provider::Schema;
use proptest::prelude::*;
use serde_json::Map;

/// The token that ends the turn; those before are single bytes.
const END: u32 = 256;

fn grammars() -> Grammars {
    let mut pieces: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    pieces.push(Vec::new());
    Grammars::new(&Vocabulary { pieces, ends: vec![END] }).unwrap()
}

fn schema(schema: Value) -> ResponseFormat {
    let Value::Object(schema) = schema else { panic!("an object") };
    ResponseFormat::JsonSchema(Schema { schema, name: None })
}

/// Writes what `choice` takes of the allowed bytes, up to `length` of them;
/// whether it came to an end by itself.
fn write(
    constraint: &mut Constraint,
    length: usize,
    mut choice: impl FnMut(usize) -> usize,
) -> (Vec<u8>, bool) {
    let mut text = Vec::new();
    while text.len() < length && !constraint.is_done() {
        let Ok(allowed) = constraint.allowed() else { break };
        let tokens: Vec<i32> = (0..=256).filter(|token| allowed.has(LlamaToken(*token))).collect();
        let token = tokens[choice(tokens.len())];
        if token == 256 {
            return (text, true);
        }
        if constraint.accept(LlamaToken(token)).is_err() {
            break;
        }
        text.push(u8::try_from(token).unwrap());
    }
    let done = constraint.is_done();
    (text, done)
}

/// Whether a value fits a schema, as far as the schemas here go.
fn fits(value: &Value, schema: &Value) -> bool {
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| fits(value, option));
    }
    match schema["type"].as_str() {
        Some("string") => {
            let least = usize::try_from(schema["minLength"].as_u64().unwrap_or(0)).unwrap();
            value.as_str().is_some_and(|text| text.chars().count() >= least)
        }
        // Large ones are read as floating-point numbers.
        Some("integer") => value.as_f64().is_some_and(|number| {
            number.fract() == 0.0 && schema["minimum"].as_f64().is_none_or(|least| number >= least)
        }),

        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("array") => value.as_array().is_some_and(|items| {
            let least = usize::try_from(schema["minItems"].as_u64().unwrap_or(0)).unwrap();
            items.len() >= least && items.iter().all(|item| fits(item, &schema["items"]))
        }),
        Some("object") => value.as_object().is_some_and(|object| {
            let known = schema["properties"].as_object().cloned().unwrap_or_default();
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            required.iter().all(|key| object.contains_key(key.as_str().unwrap()))
                && object.iter().all(|(key, value)| known.get(key).is_none_or(|schema| fits(value, schema)))
        }),
        _ => true,
    }
}

fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "string", "minLength": 3})),
        Just(json!({"type": "integer", "minimum": 17})),
        Just(json!({"type": "number"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"enum": ["red", "green", 7, null]})),
        Just(json!({})),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (inner.clone(), 0..3)
                .prop_map(|(items, least)| { json!({"type": "array", "items": items, "minItems": least}) }),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(|options| json!({ "anyOf": options })),
            (proptest::collection::btree_map("[a-zé]{1,5}", inner, 0..4), any::<bool>(), any::<bool>())
                .prop_map(|(properties, all, more)| {
                    let required: Vec<&String> = properties.keys().filter(|_| all).collect();
                    let properties: Map<String, Value> = properties.clone().into_iter().collect();
                    json!({"type": "object", "required": required, "properties": properties,
                        "additionalProperties": more})
                }),
        ]
    })
}

#[test]
fn any_text_needs_no_constraint() {
    assert!(grammars().compile(&ResponseFormat::Text).unwrap().is_none());
}

#[test]
fn a_recursive_schema_ends_as_soon_as_it_can() {
    let tree = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "required": ["left", "size"],
        "additionalProperties": false,
        "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}, "size": {"type": "integer"}}}}});
    let grammars = grammars();
    for (start, expected) in [
        ("", r#"{"left": null, "size": 0}"#),
        (r#"{"left": {"left": nu"#, r#"{"left": {"left": null, "size": 0}, "size": 0}"#),
        (r#"{"left": null, "size": -"#, r#"{"left": null, "size": -0}"#),
    ] {
        let mut constraint = grammars.compile(&schema(tree.clone())).unwrap().unwrap();
        for byte in start.bytes() {
            constraint.accept(LlamaToken(i32::from(byte))).unwrap();
        }
        let whole = format!("{start}{}", constraint.ending(start.as_bytes()).unwrap());
        let value: Value = serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{whole}: {error}"));
        assert!(value["size"].is_number(), "{whole}");
        assert_eq!(whole, expected);
    }
}

#[test]
fn a_character_that_was_cut_is_ended_too() {
    let constraint = grammars().compile(&schema(json!({"type": "string"}))).unwrap().unwrap();
    let cut = &"\"aé".as_bytes()[..3];
    let ending = constraint.ending(cut).unwrap();
    let whole = format!("\"a{ending}");
    assert!(serde_json::from_str::<String>(&whole).is_ok(), "{whole}");
}

#[test]
fn a_schema_that_cannot_be_enforced_is_refused_in_one_line() {
    let grammars = grammars();
    for bad in [
        json!({"type": "strin"}),
        json!({"$ref": "https://example.org/schema.json"}),
        json!({"type": "string", "pattern": "(["}),
        json!({"type": "integer", "minimum": 5, "maximum": 1}),
        json!({"not": {"type": "string"}}),
    ] {
        let refusal = grammars.compile(&schema(bad.clone())).err().unwrap_or_else(|| panic!("{bad}"));
        assert_eq!(refusal.code, Code::InvalidPayload, "{bad}: {refusal}");
        assert!(!refusal.message.contains('\n'), "{refusal}");
    }
    let huge = schema(json!({"type": "string", "description": "x".repeat(SCHEMA_BYTES_MAX)}));
    assert_eq!(grammars.compile(&huge).err().unwrap().code, Code::TooLarge);
}

#[test]
fn an_absurd_schema_costs_neither_the_process_nor_its_time() {
    let grammars = grammars();
    let mut deep = json!({"type": "null"});
    for _ in 0..200 {
        deep = json!({"type": "array", "items": deep});
    }
    let wide: Map<String, Value> = (0..2000)
        .map(|n| (format!("key{n}"), json!({"type": "string", "pattern": "^(a|b)*c{3,9}$"})))
        .collect();
    let began = std::time::Instant::now();
    for absurd in [
        deep,
        json!({"type": "object", "properties": wide}),
        json!({"type": "string", "pattern": "^((a{1,900}){1,900}){1,900}$"}),
        json!({"type": "array", "minItems": 4_000_000_000_u64, "items": {}}),
        json!({"type": "string", "minLength": 4_000_000_000_u64}),
    ] {
        if let Ok(Some(mut constraint)) = grammars.compile(&schema(absurd)) {
            let (text, _) = write(&mut constraint, 50, |count| count / 2);
            let _ = constraint.ending(&text);
        }
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_written_and_wherever_it_is_cut_it_is_json_that_fits(
        form in schemas(), length in 0usize..120, choices in proptest::collection::vec(any::<u16>(), 120),
    ) {
        let form = match form { Value::Object(_) => form, other => panic!("{other}") };
        let mut constraint = grammars().compile(&schema(form.clone())).unwrap().unwrap();
        let mut choices = choices.into_iter();
        let (text, ended) =
            write(&mut constraint, length, |count| usize::from(choices.next().unwrap()) % count);
        let whole = if ended {
            String::from_utf8(text).unwrap()
        } else {
            let start = text.len() - incomplete(&text);
            let ending = constraint.ending(&text).unwrap_or_else(|| panic!("no ending for {form}"));
            format!("{}{ending}", std::str::from_utf8(&text[..start]).unwrap())
        };
        let value: Value = match serde_json::from_str(&whole) {
            Ok(value) => value,
            // `1E999` is JSON, though no number that a processor knows.
            Err(error) if error.to_string().contains("out of range") => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("{error}: {whole}"))),
        };
        prop_assert!(fits(&value, &form), "{} does not fit {}", whole, form);
    }
}
