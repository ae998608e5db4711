//! Names that somebody may have meant who wrote another.
//!
//! Whoever asks for what is not there may do so without end, and in any length:
//! what is longer than any name is compared with none, and what has too few
//! letters in common with a name is not compared exactly.

/// How alike two names must be to be offered: 0 is nothing in common, 1 the same.
const LIKENESS_MIN: f64 = 0.5;

/// Longest text in bytes that may be a name misspelt. To compare two texts takes
/// memory and time in both lengths.
const WORD_BYTES_MAX: usize = 256;

/// Those of some names that are like a word, the nearest first and each once; at
/// most so many.
pub fn ranked<'a>(word: &str, names: impl IntoIterator<Item = &'a str>, max: usize) -> Vec<&'a str> {
    if word.len() > WORD_BYTES_MAX {
        return Vec::new();
    }
    let mut near: Vec<_> = names
        .into_iter()
        .filter(|name| name.len() <= WORD_BYTES_MAX && may_be_alike(word, name))
        .map(|name| (strsim::normalized_damerau_levenshtein(word, name), name))
        .filter(|&(likeness, _)| likeness >= LIKENESS_MIN)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup_by_key(|&mut (_, name)| name);
    near.into_iter().take(max).map(|(_, name)| name).collect()
}

/// The name that is most like a word, where one is like it at all.
pub fn best<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    ranked(word, names, 1).pop()
}

/// Whether texts have so much in common, in any order, that they can be alike: of
/// letters that they share they share the bytes, so these are at least as many.
fn may_be_alike(a: &str, b: &str) -> bool {
    let mut left = [0_usize; 256];
    for byte in a.bytes() {
        left[usize::from(byte)] += 1;
    }
    let is_common = |byte: &u8| {
        let left = &mut left[usize::from(*byte)];
        let is_common = *left > 0;
        *left = left.saturating_sub(1);
        is_common
    };
    let common = b.bytes().filter(is_common).count();
    common as f64 >= LIKENESS_MIN * a.chars().count().max(b.chars().count()) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_alike_is_offered_the_nearest_first() {
        let names =
            ["echo:say", "state:ack", "echo:stay", "audit:query", "echo:say", "echo:sad", "echo:count"];
        assert_eq!(ranked("echo:sya", names, 3), ["echo:say", "echo:stay", "echo:sad"]);
        assert_eq!(ranked("echo:sya", names, 1), ["echo:say"]);
        for far in ["zzqqxx", "zzqqxx:a", "", "e"] {
            assert_eq!(ranked(far, names, 3), [""; 0], "{far}");
        }
        assert_eq!(best("txt", ["text", "loud"]), Some("text"));
        assert_eq!(best("zzz", ["text", "loud"]), None);
        assert_eq!(best("zzz", []), None);
    }

    #[test]
    fn what_is_longer_than_any_name_is_compared_with_none() {
        // To compare these two would take a terabyte.
        let long = "a".repeat(400_000);
        let longer = format!("{long}b");
        assert_eq!(best(&long, [longer.as_str()]), None);
        assert_eq!(best("completoin", [longer.as_str(), "completion"]), Some("completion"));
        let (name, word) = ("a".repeat(WORD_BYTES_MAX), "a".repeat(WORD_BYTES_MAX - 1));
        assert_eq!(best(&word, [name.as_str()]), Some(name.as_str()));
        assert_eq!(best(&name, [word.as_str()]), Some(word.as_str()));
        assert_eq!(best(&format!("{name}a"), [word.as_str()]), None);
    }

    proptest! {
        #[test]
        fn the_cheap_look_passes_over_nothing_that_is_alike(a in "[abäß:]{0,8}", b in "[abäß:]{0,8}") {
            let is_alike = strsim::normalized_damerau_levenshtein(&a, &b) >= LIKENESS_MIN;
            prop_assert_eq!(best(&a, [b.as_str()]).is_some(), is_alike);
        }
    }
}
