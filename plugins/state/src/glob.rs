//! Patterns of keys: `*` is any text, `?` any one character, `\` takes the
//! next as it is.

/// A pattern.
#[derive(Debug)]
pub(crate) struct Glob(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Character(char),
    One,
    Any,
}

impl Glob {
    /// Reads a pattern. A `\` at the end is one.
    pub(crate) fn new(pattern: &str) -> Self {
        let mut parts = Vec::new();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            parts.push(match character {
                '*' if parts.last() == Some(&Part::Any) => continue,
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => Part::Character(characters.next().unwrap_or('\\')),
                other => Part::Character(other),
            });
        }
        Self(parts)
    }

    /// What every text that matches begins with.
    pub(crate) fn prefix(&self) -> String {
        let literal = self.0.iter().map_while(|part| match part {
            Part::Character(character) => Some(*character),
            Part::One | Part::Any => None,
        });
        literal.collect()
    }

    /// Whether a text matches. Takes time in proportion to both lengths at
    /// worst: only the last `*` is ever tried again.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let mut part = 0;
        let mut rest = text.chars();
        let mut again = None;
        loop {
            let before = rest.clone();
            match (self.0.get(part), rest.next()) {
                (None, None) => return true,
                (Some(Part::Any), _) => {
                    rest = before.clone();
                    again = Some((part, before));
                    part += 1;
                    continue;
                }
                (Some(Part::One), Some(_)) => {
                    part += 1;
                    continue;
                }
                (Some(Part::Character(wanted)), Some(character)) if *wanted == character => {
                    part += 1;
                    continue;
                }
                _ => {}
            }
            let Some((star, mut from)) = again.take() else { return false };
            if from.next().is_none() {
                return false;
            }
            again = Some((star, from.clone()));
            part = star + 1;
            rest = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    /// The same by trying everything.
    fn plain(pattern: &[Part], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(Part::Any), _) => {
                plain(&pattern[1..], text) || (!text.is_empty() && plain(pattern, &text[1..]))
            }
            (Some(Part::One), Some(_)) => plain(&pattern[1..], &text[1..]),
            (Some(Part::Character(wanted)), Some(character)) if wanted == character => {
                plain(&pattern[1..], &text[1..])
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_trying_everything_finds(pattern in r"[ab*?\\]{0,8}", text in r"[ab*\\]{0,8}") {
            let glob = Glob::new(&pattern);
            let characters: Vec<_> = text.chars().collect();
            assert_eq!(glob.matches(&text), plain(&glob.0, &characters), "{pattern} {text}");
            if glob.matches(&text) {
                assert!(text.starts_with(&glob.prefix()));
            }
        }
    }

    #[test]
    fn characters_are_not_bytes_and_a_backslash_escapes() {
        for (pattern, text, matches) in [
            ("user:*", "user:", true),
            ("user:*", "user", false),
            ("?", "ä", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"a\", r"a\", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*b*c", "abcbc", true),
            ("*.json", "a.json.gz", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), matches, "{pattern} {text}");
        }
        assert_eq!(Glob::new(r"a\*b*c").prefix(), "a*b");
    }
}
