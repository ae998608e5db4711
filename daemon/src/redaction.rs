//! What must not leave the process in words: the one place through which log
//! lines, the last words of plugins and their refusals go.
//!
//! Secrets that are known are found wherever they stand, as they are and in the
//! forms in which programs write them: escaped, percent-encoded, in hexadecimal
//! and in base64, at any offset. What is not known but has the shape of a
//! credential, such as `sk-…` or `Bearer …`, is cut off behind what gives it
//! away; so is, in a URL, what stands before the `@`. Words about secrets
//! (`max_tokens`, `api_key`) are left alone.
//!
//! It does not look into payloads: what a plugin answers is its own.
//!
//! # Invariants
//!
//! * A line without a secret comes out as it went in, and is not copied.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use aho_corasick::{AhoCorasick, Input, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ksi_protocol::{Refusal, secret::BYTES_MIN};

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// What credentials of well-known kinds begin with, and how many characters
/// must follow at least.
const SHAPES: [(&str, usize); 9] = [
    ("sk-", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("github_pat_", 20),
    ("xoxb-", 20),
    ("AKIA", 16),
    ("eyJ", 30),
    ("Bearer ", 16),
    ("bearer ", 16),
];

/// What comes before who somebody is in a URL, which ends with an `@`: a name and a
/// password, or a token in the place of both.
const URL: &str = "://";

/// Lines of a secret of several lines that are secrets themselves.
const LINE_BYTES_MIN: usize = 16;

/// Finds secrets in texts.
#[derive(Debug)]
struct Redactor {
    known: BTreeSet<String>,
    automaton: AhoCorasick,
    /// Patterns from here on are [`SHAPES`], and the last one [`URL`].
    shapes_from: usize,
}

impl Redactor {
    fn new(known: BTreeSet<String>) -> Self {
        let mut patterns: BTreeSet<Vec<u8>> = BTreeSet::new();
        for value in &known {
            let lines = value.lines().filter(|line| line.len() >= LINE_BYTES_MIN);
            for part in std::iter::once(value.as_str()).chain(lines) {
                forms(part, &mut patterns);
            }
        }
        let shapes_from = patterns.len();
        let shapes = SHAPES.iter().map(|(prefix, _)| *prefix).chain([URL]);
        let all = patterns.iter().map(Vec::as_slice).chain(shapes.map(str::as_bytes));
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(all)
            .expect("secrets are bounded in number and size, far below what the automaton can hold");
        Self { known, automaton, shapes_from }
    }

    fn redact<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let mut out = Vec::new();
        let (mut done, mut at) = (0, 0);
        while let Some(found) = self.automaton.find(Input::new(text).span(at..text.len())) {
            at = found.end();
            let secret = match found.pattern().as_usize().checked_sub(self.shapes_from) {
                None => Some(found.start()..found.end()),
                Some(shape) if shape == SHAPES.len() => {
                    user_len(&text[found.end()..]).map(|length| found.end()..found.end() + length)
                }
                Some(shape) => {
                    let end = found.end() + token_len(&text[found.end()..]);
                    let long = end - found.end() >= SHAPES[shape].1;
                    let begins = found.start() == 0 || !is_token(text[found.start() - 1]);
                    (long && begins).then_some(found.end()..end)
                }
            };
            if let Some(secret) = secret {
                out.extend_from_slice(&text[done..secret.start]);
                out.extend_from_slice(MASK.as_bytes());
                (done, at) = (secret.end, secret.end);
            }
        }
        if done == 0 {
            return Cow::Borrowed(text);
        }
        out.extend_from_slice(&text[done..]);
        Cow::Owned(out)
    }
}

/// Length of what may be a credential at the beginning of a text.
fn token_len(text: &[u8]) -> usize {
    text.iter().take_while(|byte| is_token(**byte) || b".+/=~".contains(byte)).count()
}

/// Length of what says in a URL who somebody is, where there is any: up to the last
/// `@` before the path.
fn user_len(text: &[u8]) -> Option<usize> {
    let ends = |byte: &u8| byte.is_ascii_whitespace() || b"/?#\"'<>\\`".contains(byte);
    let authority = text.split(ends).next().unwrap_or_default();
    authority.iter().rposition(|byte| *byte == b'@').filter(|length| *length > 0)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
}

/// What is left as it is by those who percent-encode: nothing, what the standard
/// says, what older ones do, and what forms do, where a space is a plus.
const PLAIN: [Option<&[u8]>; 4] = [None, Some(b"-_.~"), Some(b"-_."), Some(b"-_.*")];

fn percent(bytes: &[u8], plain: Option<&[u8]>, upper: bool) -> Vec<u8> {
    let is_form = plain == PLAIN[3];
    let coded = |byte: &u8| match plain {
        Some(plain) if byte.is_ascii_alphanumeric() || plain.contains(byte) => vec![*byte],
        _ if is_form && *byte == b' ' => vec![b'+'],
        _ if upper => format!("%{byte:02X}").into_bytes(),
        _ => format!("%{byte:02x}").into_bytes(),
    };
    bytes.iter().flat_map(coded).collect()
}

/// All ways in which a secret may be written.
fn forms(value: &str, into: &mut BTreeSet<Vec<u8>>) {
    let bytes = value.as_bytes();
    let quoted = |text: String| text[1..text.len() - 1].to_owned();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let texts = [
        value.to_owned(),
        quoted(serde_json::Value::from(value).to_string()),
        quoted(format!("{value:?}")),
        hex.to_uppercase(),
        hex,
    ];
    into.extend(texts.into_iter().map(String::into_bytes));
    into.extend(PLAIN.iter().flat_map(|plain| [true, false].map(|upper| percent(bytes, *plain, upper))));
    for shift in 0..3 {
        // Inside something longer, the neighbours have a part in the first and
        // the last character; what is between them depends on the secret alone.
        let shifted = [&[0; 3][..shift], bytes].concat();
        let (first, last) = ([0, 2, 3][shift], usize::from(!shifted.len().is_multiple_of(3)));
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let coded = engine.encode(&shifted);
            let core = &coded.as_bytes()[first..coded.len() - last];
            into.extend((core.len() >= BYTES_MIN).then(|| core.to_vec()));
        }
    }
}

/// What this process knows.
static KNOWN: LazyLock<RwLock<Arc<Redactor>>> =
    LazyLock::new(|| RwLock::new(Arc::new(Redactor::new(BTreeSet::new()))));

fn known() -> Arc<Redactor> {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Keeps these values out of all words from now on. Those that are too short to
/// be told from other words are passed over.
pub fn learn(values: impl IntoIterator<Item = String>) {
    let fresh: Vec<String> = {
        let now = known();
        let is_fresh = |value: &String| value.len() >= BYTES_MIN && !now.known.contains(value);
        values.into_iter().filter(is_fresh).collect()
    };
    if fresh.is_empty() {
        return;
    }
    let mut shared = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let all = shared.known.iter().cloned().chain(fresh).collect();
    *shared = Arc::new(Redactor::new(all));
}

/// Lines of the log, or of anything else, without the secrets.
#[must_use]
pub fn bytes(lines: &[u8]) -> Cow<'_, [u8]> {
    known().redact(lines)
}

/// A text without the secrets.
#[must_use]
pub fn text(text: String) -> String {
    match known().redact(text.as_bytes()) {
        Cow::Borrowed(_) => text,
        Cow::Owned(redacted) => String::from_utf8_lossy(&redacted).into_owned(),
    }
}

/// A plugin's refusal without the secrets.
#[must_use]
pub fn refusal(refusal: Refusal) -> Refusal {
    let details = refusal.details.map(|details| {
        let plain = details.to_string();
        match known().redact(plain.as_bytes()) {
            Cow::Borrowed(_) => details,
            // A mask breaks no text of JSON; anything else it might break is
            // better left out.
            Cow::Owned(redacted) => serde_json::from_slice(&redacted).unwrap_or_default(),
        }
    });
    Refusal { message: text(refusal.message), hint: text(refusal.hint), details, ..refusal }
}

#[cfg(test)]
mod tests;
