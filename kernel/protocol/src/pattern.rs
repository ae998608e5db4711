//! Patterns over event names.
//!
//! `*` stands for exactly one segment, `**` for any number of segments (none
//! too), and a pattern that is just `*` for everything. Anything else is
//! literal. What matching costs is bounded by the product of the two lengths, at
//! most eight segments each, whatever the pattern.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::name::{EventName, NameError, check_segments, is_name_byte};

/// A pattern such as `agent:*`, `state:**`, `completion:async` or `*`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Parses and checks a pattern.
    ///
    /// # Errors
    ///
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_segments(text, 1, |segment| {
            matches!(segment, "*" | "**") || segment.bytes().all(is_name_byte)
        })?;
        if !text.contains([':', '*']) {
            // No name has one segment, so this would never match anything.
            return Err(NameError::NeverMatches(text.into()));
        }
        Ok(Self(text.into()))
    }

    /// The text as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one name that this pattern matches, where it has no wildcard.
    #[must_use]
    pub fn exact(&self) -> Option<EventName> {
        EventName::parse(&self.0).ok()
    }

    /// The first segment where it is literal: all names that match begin with
    /// it.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        let first = self.0.split(':').next().unwrap_or_default();
        (!first.starts_with('*')).then_some(first)
    }

    /// Whether the pattern covers this name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        &*self.0 == "*" || matches_segments(&self.0, name)
    }
}

/// Splits off the first segment; `None` for the rest means that it was the
/// last one.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((first, rest)) => (first, Some(rest)),
        None => (text, None),
    }
}

/// Two cursors and one mark: where the names part, the last `**` takes one segment
/// more, and no earlier one need be tried again. So it takes at most as many steps
/// as there are pairs of a segment of either.
fn matches_segments(pattern: &str, name: &str) -> bool {
    let (mut wanted, mut here) = (Some(pattern), Some(name));
    // What follows the last `**`, and where in the name that is tried.
    let mut mark = None;
    while let Some(name) = here {
        let (segment, after) = split(name);
        match wanted.map(split) {
            Some(("**", None)) => return true,
            Some(("**", rest)) => {
                (wanted, mark) = (rest, Some((rest, name)));
            }
            Some((one, rest)) if one == "*" || one == segment => (wanted, here) = (rest, after),
            _ => {
                let Some((rest, tried)) = mark else { return false };
                (wanted, here) = (rest, split(tried).1);
                mark = here.map(|next| (rest, next));
            }
        }
    }
    wanted.is_none_or(all_doubles)
}

/// Whether what is left of a pattern may match no segment at all.
fn all_doubles(pattern: &str) -> bool {
    pattern.split(':').all(|segment| segment == "**")
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Pattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn one_star_is_one_segment_and_two_are_any_number() {
        for (pattern, name, expected) in [
            ("*", "a:b", true),
            ("*", "a:b:c", true),
            ("**", "a:b", true),
            ("a:*", "a:b", true),
            ("a:*", "a:b:c", false),
            ("a:*", "b:b", false),
            ("a:**", "a:b:c", true),
            ("a:b:**", "a:b", true),
            ("a:**:c", "a:c", true),
            ("a:**:c", "a:b:b:c", true),
            ("a:**:c", "a:b:b:d", false),
            ("*:b", "a:b", true),
            ("*:*", "a:b:c", false),
            ("**:c", "a:b:c", true),
            ("a:b", "a:b", true),
            ("a:b", "a:bc", false),
            ("a:*:**", "a:b", true),
            ("**:**:**:**:**:**:**:c", "a:b", false),
            ("**:**:**:**:**:**:**:c", "a:b:c", true),
            ("**:a:**:b:**", "a:c:a:b:c", true),
            ("**:a:b:**:c", "a:a:b:b:c", true),
            ("**:*:*:**", "a", false),
            ("a@k:*", "a@k:b", true),
            ("a:*", "a@k:b", false),
            ("*:b", "a@k:b", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in
            ["", "a", "a:", "***", "a:b*", "A:*", "a b", "a:b:c:d:e:f:g:h:i", "a@*:b", "*@a:b", "a:b@c"]
        {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    /// The definition, word for word, with no thought of speed.
    fn naive(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(&"**"), None) => naive(&pattern[1..], name),
            (Some(&"**"), Some(_)) => naive(&pattern[1..], name) || naive(pattern, &name[1..]),
            (Some(_), None) => false,
            (Some(&"*"), Some(_)) => naive(&pattern[1..], &name[1..]),
            (Some(wanted), Some(segment)) => wanted == segment && naive(&pattern[1..], &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_naive_matcher(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "*", "**"]), 1..=8),
            name in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 2..=8),
        ) {
            prop_assume!(pattern.len() > 1 || pattern[0].starts_with('*'));
            let expected = pattern == ["*"] || naive(&pattern, &name);
            prop_assert_eq!(matches(&pattern.join(":"), &name.join(":")), expected);
        }

        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "\\PC{0,40}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(pattern.as_str(), &text);
            }
        }
    }
}
