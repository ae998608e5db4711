//! Capabilities: patterns over the names of permissions.

use std::fmt;

/// Longest name of a permission, and longest capability, in bytes.
const BYTES_MAX: usize = 64;

/// A pattern over permissions: `completion.use`, `completion.*`, `*.read`. A `*`
/// stands for one word, and `*` alone for everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability(Box<str>);

/// Why a text is no capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidCapability(Box<str>);

impl std::error::Error for InvalidCapability {}

impl fmt::Display for InvalidCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.0.chars().take(BYTES_MAX).collect();
        write!(
            f,
            "`{text}` is no capability: write `*`, or two or more words joined by dots, each of lower-case \
             letters, digits and `_`, or `*`; at most {BYTES_MAX} bytes"
        )
    }
}

impl Capability {
    /// Parses and checks a capability.
    ///
    /// # Errors
    ///
    /// Says what one looks like.
    pub fn parse(text: &str) -> Result<Self, InvalidCapability> {
        let words = || text.split('.').all(|word| word == "*" || is_word(word));
        if text == "*" || (text.len() <= BYTES_MAX && text.contains('.') && words()) {
            return Ok(Self(text.into()));
        }
        Err(InvalidCapability(text.into()))
    }

    /// `*`.
    #[must_use]
    pub fn everything() -> Self {
        Self("*".into())
    }

    /// The text as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it gives a permission.
    #[must_use]
    pub fn gives(&self, permission: &str) -> bool {
        if &*self.0 == "*" {
            return true;
        }
        let (mut ours, mut theirs) = (self.0.split('.'), permission.split('.'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(ours), Some(theirs)) if ours == "*" || ours == theirs => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_word(word: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !word.is_empty() && word.bytes().all(allowed)
}

/// Whether a text can name a permission: two or more words joined by dots.
#[must_use]
pub fn is_permission(text: &str) -> bool {
    text.contains('.') && text.len() <= BYTES_MAX && text.split('.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gives(capability: &str, permission: &str) -> bool {
        Capability::parse(capability).unwrap().gives(permission)
    }

    #[test]
    fn a_star_is_one_word_and_alone_it_is_everything() {
        for (capability, permission, expected) in [
            ("*", "a.b", true),
            ("*", "a.b.c", true),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "ab.c", false),
            ("*.read", "state.read", true),
            ("*.read", "state.write", false),
            ("*.*", "a.b", true),
            ("*.*", "a.b.c", false),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.b.c", "a.b", false),
        ] {
            assert_eq!(gives(capability, permission), expected, "{capability} on {permission}");
        }
    }

    #[test]
    fn what_is_no_capability_is_refused_with_what_one_looks_like() {
        let long = format!("a.{}", "b".repeat(BYTES_MAX));
        for text in ["", "a", "**", "a.", ".a", "a..b", "A.b", "a.b*", "a b.c", "a:b", "ä.b", long.as_str()]
        {
            let error = Capability::parse(text).unwrap_err().to_string();
            assert!(error.contains("two or more words"), "{text}: {error}");
        }
        assert!(Capability::parse(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn a_permission_has_no_star() {
        assert!(is_permission("a.b_2.c"));
        for text in ["", "*", "a.*", "a", "a.B", &"a.".repeat(40)] {
            assert!(!is_permission(text), "{text}");
        }
    }
}
