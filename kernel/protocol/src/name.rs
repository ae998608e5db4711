//! Event names: `namespace:action`, parsed once at the boundary.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::{NAME_BYTES_MAX, NAME_SEGMENTS_MAX};

/// A namespaced event name such as `completion:async` or `state:entity:get`:
/// 2 to 8 segments of `[a-z0-9_.-]`, joined by `:`, at most 128 bytes. The first
/// may be `NAME@KEY`: the namespace of one instance of a plugin. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName(Arc<str>);

/// Why a text is no event name or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("name of {0} bytes is longer than {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not 2 to 8 segments.
    #[error("`{0}` is not `namespace:action`: it has {1} segments, and 2 to {NAME_SEGMENTS_MAX} are allowed")]
    Segments(String, usize),
    /// A pattern of one literal segment.
    #[error("`{0}` matches no event: write `{0}:*` or `{0}:**`")]
    NeverMatches(String),
    /// A segment is empty or has a forbidden character.
    #[error("`{0}` is not a name: segment `{1}` must be lower-case letters, digits, `_`, `-` or `.`")]
    Segment(String, String),
}

impl EventName {
    /// Parses and checks a name.
    ///
    /// # Errors
    ///
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_segments(text, 2, |segment| segment.bytes().all(is_name_byte))?;
        Ok(Self(text.into()))
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment, which says who owns the event.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }

    /// The plugin whose instance owns the event, which alone may ask for it:
    /// `llama` of `llama@tiny:generate`. `None` for all that is no instance's.
    #[must_use]
    pub fn manager(&self) -> Option<&str> {
        self.namespace().split_once('@').map(|(manager, _)| manager)
    }
}

pub(crate) fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.')
}

/// Whether a first segment is the namespace of an instance: `NAME@KEY`.
fn is_keyed(segment: &str) -> bool {
    let is_name = |part: &str| !part.is_empty() && part.bytes().all(is_name_byte);
    segment.split_once('@').is_some_and(|(name, key)| is_name(name) && is_name(key))
}

/// Checks what names and patterns share: length, number of segments, and
/// each segment by `allowed`.
pub(crate) fn check_segments(
    text: &str,
    segments_min: usize,
    allowed: impl Fn(&str) -> bool,
) -> Result<(), NameError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    let mut count = 0;
    for segment in text.split(':') {
        if segment.is_empty() || !(allowed(segment) || (count == 0 && is_keyed(segment))) {
            return Err(NameError::Segment(text.into(), segment.into()));
        }
        count += 1;
    }
    if count < segments_min || count > NAME_SEGMENTS_MAX {
        return Err(NameError::Segments(text.into(), count));
    }
    Ok(())
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for EventName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// Lets a map of names be asked with a plain text.
impl std::borrow::Borrow<str> for EventName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for EventName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EventName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_namespace_and_an_action() {
        let name = EventName::parse("state:entity:get").unwrap();
        assert_eq!(name.namespace(), "state");
        assert_eq!(name.as_str(), "state:entity:get");
        assert_eq!(name.manager(), None);
    }

    #[test]
    fn the_namespace_of_an_instance_has_a_key_and_nothing_else_does() {
        let name = EventName::parse("llama@my-model.2:generate").unwrap();
        assert_eq!((name.namespace(), name.manager()), ("llama@my-model.2", Some("llama")));
        for text in ["@a:b", "a@:b", "a@b@c:d", "a:b@c", "a@B:c", "*@a:b", "a@*:b", "a@b"] {
            assert!(EventName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        for (text, part) in [
            ("", "segment ``"),
            ("system", "1 segments"),
            ("a:", "segment ``"),
            (":a", "segment ``"),
            ("a::b", "segment ``"),
            ("A:b", "segment `A`"),
            ("a:b c", "segment `b c`"),
            ("a:*", "segment `*`"),
            ("a:b@c", "segment `b@c`"),
            ("a:b:c:d:e:f:g:h:i", "9 segments"),
            (&"a:".repeat(100), "200 bytes"),
        ] {
            let error = EventName::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
