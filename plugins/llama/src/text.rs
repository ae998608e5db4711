//! Text from tokens: whole characters out of bytes, and the search for stop
//! strings across token borders.
//!
//! A token is a piece of bytes, not of text: a character may be spread over
//! several. Neither type here ever yields half a character, and what was held
//! back is never lost: `finish` returns it.

/// Joins bytes to characters.
#[derive(Debug, Default)]
pub struct Characters {
    /// The start of a character whose end has not come yet; at most 3 bytes.
    pending: Vec<u8>,
}

impl Characters {
    /// Adds bytes and returns the characters that are whole now. Bytes that
    /// can never become a character turn into U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[length..];
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left at the end: U+FFFD for a character that never ended.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Looks for the first stop string in a text that arrives in pieces.
///
/// The answer does not depend on how the text is cut: the search ends with the
/// first character that completes a stop string, and where that completes
/// several, the longest counts.
#[derive(Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    /// The end of the text so far that may be the start of a stop string.
    pending: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// Whether a stop string is complete; nothing that follows counts.
    pub stopped: bool,
}

impl Stops {
    /// A search for these strings; an empty one is ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, pending: String::new() }
    }

    /// Adds a piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        if self.stops.is_empty() {
            return Passed { text: piece.to_owned(), stopped: false };
        }
        for character in piece.chars() {
            self.pending.push(character);
            let found = self.stops.iter().filter(|stop| self.pending.ends_with(stop.as_str()));
            if let Some(length) = found.map(String::len).max() {
                let mut text = std::mem::take(&mut self.pending);
                text.truncate(text.len() - length);
                return Passed { text, stopped: true };
            }
        }
        let held = self.stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0);
        let rest = self.pending.split_off(self.pending.len() - held);
        Passed { text: std::mem::replace(&mut self.pending, rest), stopped: false }
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }
}

/// Length of the longest end of `text` that starts `stop` without being all of
/// it.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(length, _)| length)
        .rev()
        .find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Cuts `text` as the whole would be cut, character by character.
    fn reference(text: &str, stops: &[String]) -> (String, bool) {
        let mut seen = String::new();
        for character in text.chars() {
            seen.push(character);
            let longest = stops.iter().filter(|stop| seen.ends_with(stop.as_str())).map(String::len).max();
            if let Some(length) = longest {
                seen.truncate(seen.len() - length);
                return (seen, true);
            }
        }
        (seen, false)
    }

    fn stream(pieces: &[&str], stops: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut search = Stops::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let passed = search.push(piece);
            text.push_str(&passed.text);
            if passed.stopped {
                return (text, true);
            }
        }
        text.push_str(&search.finish());
        (text, false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        assert_eq!(stream(&["one EN", "D two"], &["END"]), ("one ".to_owned(), true));
        assert_eq!(stream(&["aa", "ab"], &["aab"]), ("a".to_owned(), true));
        assert_eq!(stream(&["x\nUs", "er", ": y"], &["\nUser:"]), ("x".to_owned(), true));
    }

    #[test]
    fn a_start_of_a_stop_string_is_held_back_and_then_returned() {
        let mut search = Stops::new(&["END".to_owned()]);
        assert_eq!(search.push("the E"), Passed { text: "the ".to_owned(), stopped: false });
        assert_eq!(search.push("N"), Passed { text: String::new(), stopped: false });
        assert_eq!(search.push("T"), Passed { text: "ENT".to_owned(), stopped: false });
        assert_eq!(search.push("E"), Passed { text: String::new(), stopped: false });
        assert_eq!(search.finish(), "E");
    }

    #[test]
    fn the_longest_of_several_complete_stop_strings_cuts() {
        assert_eq!(stream(&["abc"], &["c", "bc"]), ("a".to_owned(), true));
    }

    #[test]
    fn a_broken_character_becomes_a_replacement_character() {
        let mut characters = Characters::default();
        assert_eq!(characters.push(&[0xE2, 0x82]), "");
        assert_eq!(characters.push(b"a"), "\u{FFFD}a");
        assert_eq!(characters.push(&[0xF0, 0x9F]), "");
        assert_eq!(characters.finish(), "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn the_cut_does_not_depend_on_the_pieces(
            text in "[abc€😀]{0,40}",
            stops in proptest::collection::vec("[abc€😀]{1,4}", 0..4),
            cuts in proptest::collection::vec(0usize..40, 0..10),
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
            cuts.push(characters.len());
            cuts.sort_unstable();
            let mut start = 0;
            let mut pieces = Vec::new();
            for cut in cuts {
                pieces.push(characters[start..cut].iter().collect::<String>());
                start = cut;
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(stream(&pieces, &borrowed), reference(&text, &stops));
        }

        #[test]
        fn characters_survive_any_cut_of_their_bytes(text in "\\PC{0,30}", size in 1usize..5) {
            let mut characters = Characters::default();
            let mut joined = String::new();
            for bytes in text.as_bytes().chunks(size) {
                joined.push_str(&characters.push(bytes));
            }
            joined.push_str(&characters.finish());
            prop_assert_eq!(joined, text);
        }

        #[test]
        fn any_bytes_give_what_a_lossy_decoding_gives(
            bytes in proptest::collection::vec(any::<u8>(), 0..60), size in 1usize..5,
        ) {
            let mut characters = Characters::default();
            let mut joined = String::new();
            for piece in bytes.chunks(size) {
                joined.push_str(&characters.push(piece));
            }
            joined.push_str(&characters.finish());
            prop_assert_eq!(joined, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
