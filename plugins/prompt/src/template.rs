//! One template: what it says of itself, which variables it has, and its
//! rendering within limits.

use std::{collections::BTreeSet, io};

use ksi_sdk::prelude::{Code, Refusal, json};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

/// Steps of a rendering, about one for each tag, value and turn of a loop.
const FUEL: u64 = 200_000;
/// Longest output.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// How deep blocks and macros may lie in each other.
const DEPTH_MAX: usize = 64;
/// What every template is called inside its environment.
const NAME: &str = "prompt";

/// What a template says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) about: Option<String>,
    pub(crate) required: Vec<String>,
    pub(crate) optional: Vec<String>,
}

/// Reads a template without rendering it.
pub(crate) fn describe(text: &str) -> Result<Words, Refusal> {
    let environment = environment(text)?;
    let template = environment.get_template(NAME).map_err(|error| broken(&error))?;
    let (mut about, mut optional) = (None, BTreeSet::new());
    for line in text.lines() {
        let comment = line.trim().strip_prefix("{#").and_then(|line| line.strip_suffix("#}"));
        let Some((key, value)) = comment.and_then(|comment| comment.trim_matches('-').split_once(':')) else {
            break;
        };
        match key.trim() {
            "about" => about = Some(value.trim().to_owned()),
            "optional" => {
                optional.extend(value.split(',').map(|name| name.trim().to_owned()));
            }
            _ => {}
        }
    }
    let used: BTreeSet<String> = template.undeclared_variables(false).into_iter().collect();
    let globals: BTreeSet<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
    let required = used.iter().filter(|name| !optional.contains(*name) && !globals.contains(*name));
    Ok(Words { about, required: required.cloned().collect(), optional: optional.into_iter().collect() })
}

/// Puts variables into a template.
pub(crate) fn render(text: &str, variables: &Map<String, Value>) -> Result<String, Refusal> {
    let Words { required, optional, .. } = describe(text)?;
    let missing: Vec<_> = required.iter().filter(|name| !variables.contains_key(*name)).collect();
    let unknown: Vec<_> =
        variables.keys().filter(|name| !required.contains(name) && !optional.contains(name)).collect();
    if let Some(first) = missing.first().or(unknown.first()) {
        let why = if missing.is_empty() { "is none of the prompt's" } else { "is missing" };
        return Err(Refusal::new(Code::InvalidPayload, format!("the variable `{first}` {why}"))
            .hint("`ksi send prompt:list` shows what each prompt requires")
            .details(json!({
                "path": format!("variables.{first}"), "missing": missing, "unknown": unknown,
                "required": required, "optional": optional,
            })));
    }
    let environment = environment(text)?;
    let template = environment.get_template(NAME).map_err(|error| broken(&error))?;
    let mut out = Bounded(Vec::new());
    template.render_captured_to(object(variables), &mut out).map_err(|error| match error.kind() {
        ErrorKind::OutOfFuel => {
            Refusal::new(Code::TooLarge, format!("the prompt takes more than {FUEL} steps to render"))
        }
        ErrorKind::WriteFailure => Refusal::new(
            Code::TooLarge,
            format!("the rendered prompt is longer than {OUTPUT_BYTES_MAX} bytes"),
        ),
        _ => broken(&error),
    })?;
    String::from_utf8(out.0).map_err(|_| Refusal::new(Code::Internal, "the rendered prompt is no text"))
}

/// JSON as the template language has it.
fn value(json: &Value) -> minijinja::Value {
    match json {
        Value::Null => ().into(),
        Value::Bool(truth) => (*truth).into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(value).collect(),
        Value::Object(fields) => object(fields),
    }
}

fn object(fields: &Map<String, Value>) -> minijinja::Value {
    minijinja::Value::from_pairs(fields.iter().map(|(key, json)| (key.as_str(), value(json))))
}

/// An environment with one template and nothing that leads out of it.
fn environment(text: &str) -> Result<Environment<'static>, Refusal> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH_MAX);
    environment.add_template_owned(NAME, text.to_owned()).map_err(|error| broken(&error))?;
    Ok(environment)
}

fn broken(error: &Error) -> Refusal {
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    Refusal::new(
        Code::InvalidPayload,
        format!("the prompt cannot be rendered{line}: {}{detail}", error.kind()),
    )
}

/// Output up to its limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str, variables: Value) -> Result<String, Refusal> {
        let Value::Object(variables) = variables else { panic!("an object") };
        render(text, &variables)
    }

    #[test]
    fn a_template_says_what_it_needs() {
        let text = "{# about: Greets #}\n{# optional: tone #}\nHello {{ name }}{% if tone %}, {{ tone }}{% endif %}\
                    {% for i in range(2) %}{{ i }}{% endfor %}{% set x = 1 %}{{ x }}";
        let words = describe(text).unwrap();
        assert_eq!(words.about.as_deref(), Some("Greets"));
        assert_eq!((words.required, words.optional), (vec!["name".to_owned()], vec!["tone".to_owned()]));
        assert_eq!(rendered(text, json!({"name": "Ada"})).unwrap().trim(), "Hello Ada011");
        assert_eq!(rendered(text, json!({"name": "Ada", "tone": "hi"})).unwrap().trim(), "Hello Ada, hi011");
    }

    #[test]
    fn variables_that_are_missing_or_unknown_are_named() {
        let refusal = rendered("{{ a }} {{ b }}", json!({"a": 1})).unwrap_err();
        assert_eq!(refusal.details.unwrap()["missing"], json!(["b"]));
        let refusal = rendered("{{ a }}", json!({"a": 1, "c": 2})).unwrap_err();
        assert_eq!(refusal.details.unwrap()["unknown"], json!(["c"]));
    }

    #[test]
    fn what_is_put_in_is_text_and_never_a_template() {
        assert_eq!(rendered("{{ a }}", json!({"a": "{{ b }} <b>"})).unwrap(), "{{ b }} <b>");
    }

    #[test]
    fn no_template_runs_long_grows_without_end_or_leads_out() {
        let long = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
        assert_eq!(rendered(long, json!({})).unwrap_err().code, Code::TooLarge);
        let wide = "{% for i in range(2000) %}{{ a }}{% endfor %}";
        assert_eq!(rendered(wide, json!({"a": "x".repeat(1000)})).unwrap_err().code, Code::TooLarge);
        let out = "{% include '/etc/passwd' %}";
        assert_eq!(rendered(out, json!({})).unwrap_err().code, Code::InvalidPayload);
        let broken = rendered("line\n{% if %}", json!({})).unwrap_err();
        assert!(broken.message.contains("line 2"), "{broken}");
    }
}
