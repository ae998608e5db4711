//! Calls and values as Python writes them.

use serde_json::{Map, Number, Value};

/// Values within values, at most.
const DEPTH_MAX: usize = 32;

/// The call with which a text begins: its name, its arguments, each with a name,
/// and the rest of the text.
pub(super) fn call(text: &str) -> Option<(&str, Value, &str)> {
    let (name, mut rest) = name(text)?;
    rest = rest.strip_prefix('(')?.trim_start();
    let mut arguments = Map::new();
    loop {
        if let Some(rest) = rest.strip_prefix(')') {
            return Some((name, Value::Object(arguments), rest));
        }
        let (key, after) = self::name(rest)?;
        let (value, after) = literal(after.trim_start().strip_prefix('=')?, DEPTH_MAX)?;
        arguments.insert(key.to_owned(), value);
        rest = after_one(after, ')')?;
    }
}

/// The value that a text is.
pub(super) fn value(text: &str) -> Option<Value> {
    let (value, rest) = literal(text, DEPTH_MAX)?;
    rest.trim().is_empty().then_some(value)
}

/// What follows one of several: past the comma, or where they end.
fn after_one(text: &str, end: char) -> Option<&str> {
    let text = text.trim_start();
    match text.strip_prefix(',') {
        Some(rest) => Some(rest.trim_start()),
        None => text.starts_with(end).then_some(text),
    }
}

fn name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_alphanumeric() && !"_.-".contains(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// The value with which a text begins, and the rest.
fn literal(text: &str, depth: usize) -> Option<(Value, &str)> {
    let text = text.trim_start();
    match text.chars().next()? {
        '\'' | '"' => string(text).map(|(string, rest)| (Value::String(string), rest)),
        '[' => list(&text[1..], ']', depth.checked_sub(1)?),
        '(' => list(&text[1..], ')', depth.checked_sub(1)?),
        '{' => dictionary(&text[1..], depth.checked_sub(1)?),
        _ => word(text),
    }
}

fn list(text: &str, end: char, depth: usize) -> Option<(Value, &str)> {
    let (mut values, mut rest) = (Vec::new(), text.trim_start());
    loop {
        if let Some(rest) = rest.strip_prefix(end) {
            return Some((Value::Array(values), rest));
        }
        let (value, after) = literal(rest, depth)?;
        values.push(value);
        rest = after_one(after, end)?;
    }
}

fn dictionary(text: &str, depth: usize) -> Option<(Value, &str)> {
    let (mut values, mut rest) = (Map::new(), text.trim_start());
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((Value::Object(values), rest));
        }
        let (key, after) = string(rest)?;
        let (value, after) = literal(after.trim_start().strip_prefix(':')?, depth)?;
        values.insert(key, value);
        rest = after_one(after, '}')?;
    }
}

fn word(text: &str) -> Option<(Value, &str)> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let value = match word {
        "True" | "true" => Value::Bool(true),
        "False" | "false" => Value::Bool(false),
        "None" | "null" => Value::Null,
        _ => Value::Number(number(word)?),
    };
    Some((value, rest))
}

fn number(word: &str) -> Option<Number> {
    if !word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return None;
    }
    let whole = word.parse::<u64>().map(Number::from).or_else(|_| word.parse::<i64>().map(Number::from));
    whole.ok().or_else(|| Number::from_f64(word.parse().ok()?))
}

fn string(text: &str) -> Option<(String, &str)> {
    let mut characters = text.chars();
    let quote = characters.next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut string = String::new();
    loop {
        match characters.next()? {
            c if c == quote => return Some((string, characters.as_str())),
            '\\' => {
                let (escaped, rest) = escape(characters.as_str())?;
                string.push_str(&escaped);
                characters = rest.chars();
            }
            c => string.push(c),
        }
    }
}

/// What stands behind a backslash.
fn escape(text: &str) -> Option<(String, &str)> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let digits = match kind {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => {
            let plain = match kind {
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                'r' => "\r".to_owned(),
                '\n' => String::new(),
                '\\' | '\'' | '"' => kind.to_string(),
                _ => format!("\\{kind}"),
            };
            return Some((plain, rest));
        }
    };
    let code = u32::from_str_radix(rest.get(..digits)?, 16).ok()?;
    Some((char::from_u32(code)?.to_string(), &rest[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_read_as_python_writes_them() {
        for (text, expected) in [
            ("'it\\'s \\u00e9 \\x41 \\q\\n'", json!("it's é A \\q\n")),
            ("[1, -2.5, True, None, (\"a\",),]", json!([1, -2.5, true, null, ["a"]])),
            ("[-9223372036854775808, 18446744073709551615]", json!([i64::MIN, u64::MAX])),
            ("{'a': {\"b\": []}, 'c': 1e3}", json!({"a": {"b": []}, "c": 1000.0})),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
        let deep = "[".repeat(100);
        for text in ["", "'open", "[1, 2", "{1: 2}", "word", "nan", "-inf", "1 2", "'\\u12'", &deep] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_has_arguments_with_names_only() {
        let arguments = json!({"city": "Oslo (N)", "days": 3});
        assert_eq!(
            call("get.weather(city='Oslo (N)', days = 3,) etc."),
            Some(("get.weather", arguments, " etc."))
        );
        assert_eq!(call("time()"), Some(("time", json!({}), "")));
        for text in ["time", "time(", "time(3)", "(a=1)", "time(a=1 b=2)", "time(a=b)"] {
            assert_eq!(call(text), None, "{text}");
        }
    }
}
