//! Filters: which events and plugins are shown.
//!
//! A text with a `*` is a pattern over event names (`agent:*`), any other is
//! looked for as it stands in the name, origin and correlation id. `!` in
//! front turns it round. Payloads are not searched: that would mean decoding
//! what nobody looks at.

use std::fmt;

use ksi_protocol::{Pattern, frame::Event};

/// Which events are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    inverse: bool,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Test {
    #[default]
    All,
    Text(String),
    Pattern(Pattern),
}

impl Filter {
    /// Reads a filter as it is typed after `/`.
    ///
    /// # Errors
    ///
    /// A text with a `*` that is no pattern; says which rule it breaks.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (inverse, wanted) = inverted(text);
        if !wanted.contains('*') {
            return Ok(Self::text(text));
        }
        let pattern = Pattern::parse(wanted).map_err(|error| error.to_string())?;
        Ok(Self { inverse, test: Test::Pattern(pattern) })
    }

    /// Reads a filter in which nothing but a leading `!` is special.
    pub(crate) fn text(text: &str) -> Self {
        let (inverse, wanted) = inverted(text);
        if wanted.is_empty() {
            return Self::default();
        }
        Self { inverse, test: Test::Text(wanted.to_owned()) }
    }

    /// Whether everything is shown.
    pub(crate) fn is_all(&self) -> bool {
        self.test == Test::All
    }

    /// Whether this event is shown.
    pub(crate) fn shows(&self, event: &Event) -> bool {
        let found = match &self.test {
            Test::All => return true,
            Test::Pattern(pattern) => pattern.matches(event.event.as_str()),
            Test::Text(text) => {
                event.event.as_str().contains(text.as_str())
                    || event.origin.contains(text.as_str())
                    || event.correlation_id.as_deref().is_some_and(|id| id.contains(text.as_str()))
            }
        };
        found != self.inverse
    }

    /// Whether something with any of these texts is shown.
    pub(crate) fn shows_any(&self, texts: &[&str]) -> bool {
        let found = match &self.test {
            Test::All => return true,
            Test::Pattern(pattern) => texts.iter().any(|text| pattern.matches(text)),
            Test::Text(wanted) => texts.iter().any(|text| text.contains(wanted.as_str())),
        };
        found != self.inverse
    }
}

fn inverted(text: &str) -> (bool, &str) {
    let text = text.trim();
    match text.strip_prefix('!') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    }
}

/// As it was typed.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.inverse { "!" } else { "" };
        match &self.test {
            Test::All => Ok(()),
            Test::Text(text) => write!(f, "{mark}{text}"),
            Test::Pattern(pattern) => write!(f, "{mark}{pattern}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::EventName;

    fn shows(filter: &str, name: &str, origin: &str) -> bool {
        let event = Event {
            sub: 1,
            seq: 1,
            event: EventName::parse(name).unwrap(),
            data: ksi_protocol::empty(),
            origin: origin.into(),
            at_ms: 0,
            correlation_id: Some("c-17".into()),
            tenant: None,
            chain: None,
        };
        Filter::parse(filter).unwrap().shows(&event)
    }

    #[test]
    fn a_filter_is_a_text_or_a_pattern_and_can_be_turned_round() {
        for (filter, expected) in [
            ("", true),
            ("!", true),
            ("spawn", true),
            ("agent", true),
            ("Agent", false),
            ("plugin:agent", true),
            ("c-17", true),
            ("llama", false),
            ("!llama", true),
            ("!agent", false),
            ("agent:*", true),
            ("*:spawned", true),
            ("agent:*:x", false),
            ("!agent:*", false),
            ("! llama:*", true),
            ("*", true),
        ] {
            assert_eq!(shows(filter, "agent:spawned", "plugin:agent"), expected, "{filter}");
        }
    }

    #[test]
    fn a_star_that_makes_no_pattern_is_refused_with_its_reason() {
        assert!(Filter::parse("agent:x*").unwrap_err().contains("x*"));
        assert!(Filter::parse("a b*").is_err());
    }

    #[test]
    fn a_filter_is_shown_as_it_was_typed() {
        for text in ["", "agent", "!agent", "agent:*", "!**"] {
            assert_eq!(Filter::parse(text).unwrap().to_string(), text);
        }
    }
}
