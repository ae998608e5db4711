//! Where something is kept: a namespace and a name in it, as one text whose
//! order is the order of the names.
//!
//! # Invariants
//!
//! - Two different pairs never make one place: the namespace ends with a NUL,
//!   and a NUL inside it is written as two other characters.
//! - The places of one namespace stand together, in the order of the bytes of
//!   their names; so all names with a prefix are one range.

use std::{fmt, rc::Rc};

use ksi_sdk::prelude::{Code, Refusal, json};

/// Longest namespace in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 128;
/// Longest key or name of a queue in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// A namespace and a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(Rc<str>);

impl Place {
    /// The place of a name; `field` is how the payload calls the name.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for an empty part, `too_large` for one too long.
    pub fn new(namespace: &str, field: &str, name: &str) -> Result<Self, Refusal> {
        check("namespace", namespace, NAMESPACE_BYTES_MAX)?;
        check(field, name, KEY_BYTES_MAX)?;
        Ok(Self::start(namespace, name))
    }

    /// Where the names that begin with a prefix begin: every such place starts
    /// with this text, and no other does.
    ///
    /// # Errors
    ///
    /// As [`Place::new`], but a prefix may be empty.
    pub fn prefix(namespace: &str, prefix: &str) -> Result<Self, Refusal> {
        check("namespace", namespace, NAMESPACE_BYTES_MAX)?;
        if !prefix.is_empty() {
            check("prefix", prefix, KEY_BYTES_MAX)?;
        }
        Ok(Self::start(namespace, prefix))
    }

    fn start(namespace: &str, name: &str) -> Self {
        let mut text = String::with_capacity(namespace.len() + name.len() + 1);
        for character in namespace.chars() {
            match character {
                '\0' => text.push_str("\u{1}\u{1}"),
                '\u{1}' => text.push_str("\u{1}\u{2}"),
                other => text.push(other),
            }
        }
        text.push('\0');
        text.push_str(name);
        Self(text.into())
    }

    /// A place as it was stored.
    #[must_use]
    pub fn stored(text: &str) -> Option<Self> {
        text.contains('\0').then(|| Self(text.into()))
    }

    /// The text of the place.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('\0').unwrap_or((&self.0, ""))
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        let (namespace, _) = self.parts();
        namespace.replace("\u{1}\u{1}", "\0").replace("\u{1}\u{2}", "\u{1}")
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn check(field: &str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    if text.len() > bytes_max {
        let message = format!("`{field}` has {} bytes, and at most {bytes_max} are allowed", text.len());
        return Err(Refusal::new(Code::TooLarge, message)
            .details(json!({ "path": field, "bytes": text.len(), "bytes_max": bytes_max })));
    }
    Ok(())
}

/// A field that does not fit.
pub(crate) fn invalid(path: &str, why: &str) -> Refusal {
    Refusal::new(Code::InvalidPayload, format!("`{path}` {why}"))
        .hint("`ksi describe EVENT` shows the fields and their limits")
        .details(json!({ "path": path }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        let hostile = prop_oneof![
            any::<char>(),
            proptest::sample::select(vec!['\0', '\u{1}', '\u{2}', '/', '.', 'a', 'ä', '\u{10ffff}'])
        ];
        proptest::collection::vec(hostile, 1..8).prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn places_are_equal_and_ordered_as_their_parts(
            a in (name(), name()), b in (name(), name())
        ) {
            let place = |(namespace, name): &(String, String)| Place::new(namespace, "key", name).unwrap();
            assert_eq!(place(&a).cmp(&place(&b)), a.cmp(&b));
            assert_eq!((place(&a).namespace(), place(&a).name().to_owned()), a);
            let prefix = Place::prefix(&a.0, &a.1).unwrap();
            let inside = b.0 == a.0 && b.1.starts_with(&a.1);
            assert_eq!(place(&b).as_str().starts_with(prefix.as_str()), inside);
            assert_eq!(Place::stored(place(&a).as_str()), Some(place(&a)));
        }
    }

    #[test]
    fn parts_that_look_like_paths_do_not_collide() {
        let place = |namespace, key| Place::new(namespace, "key", key).unwrap();
        assert_ne!(place("a", "b/c"), place("a/b", "c"));
        assert_ne!(place("a", "\0b"), place("a\0", "b"));
        assert_ne!(place("a\u{1}", "b"), place("a\0", "b"));
        assert_eq!(place("\u{1}\u{1}", "b").namespace(), "\u{1}\u{1}");
    }

    #[test]
    fn parts_have_limits() {
        let long = "k".repeat(KEY_BYTES_MAX);
        assert!(Place::new("a", "key", &long).is_ok());
        let refusal = Place::new("a", "key", &format!("{long}k")).unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
        assert_eq!(refusal.details.unwrap()["bytes_max"], KEY_BYTES_MAX);
        assert_eq!(Place::new("", "key", "a").unwrap_err().code, Code::InvalidPayload);
        assert_eq!(Place::new("a", "key", "").unwrap_err().code, Code::InvalidPayload);
        assert_eq!(Place::new(&"n".repeat(129), "key", "a").unwrap_err().code, Code::TooLarge);
    }
}
