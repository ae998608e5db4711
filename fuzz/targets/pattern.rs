//! A pattern and a name, one line each, against the definition of matching.
#![no_main]

use ksi_protocol::{EventName, Pattern};
use libfuzzer_sys::fuzz_target;

/// The definition, word for word.
fn covers(pattern: &[&str], name: &[&str]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((&"**", rest)), None) => covers(rest, name),
        (Some((&"**", rest)), Some((_, tail))) => covers(rest, name) || covers(pattern, tail),
        (Some(_), None) => false,
        (Some((wanted, rest)), Some((segment, tail))) => {
            (*wanted == "*" || wanted == segment) && covers(rest, tail)
        }
    }
}

fuzz_target!(|text: &str| {
    let (pattern, name) = text.split_once('\n').unwrap_or((text, "a:b"));
    let (Ok(pattern), Ok(name)) = (Pattern::parse(pattern), EventName::parse(name)) else { return };
    let segments: Vec<&str> = pattern.as_str().split(':').collect();
    let expected = segments == ["*"] || covers(&segments, &name.as_str().split(':').collect::<Vec<_>>());
    assert_eq!(pattern.matches(name.as_str()), expected);
});
