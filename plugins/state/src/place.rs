//! Where something is kept: a tenant, a namespace of his and a name in it, as one
//! text whose order is the order of the names.
//!
//! # Invariants
//!
//! - Two different triples never make one place: the namespace ends with a NUL,
//!   and a NUL inside it is written as two other characters; a tenant stands
//!   between two pairs of characters that no namespace has.
//! - The places of one namespace stand together, in the order of the bytes of
//!   their names; so all names with a prefix are one range.

use std::{fmt, rc::Rc};

use ksi_sdk::{
    prelude::{Code, Refusal, json},
    protocol::LOCAL_TENANT,
};

/// Longest namespace in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 128;
/// Longest key or name of a queue in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// What stands before and after a tenant.
const TENANT: [&str; 2] = ["\u{1}\u{3}", "\u{1}\u{4}"];

/// A tenant, a namespace and a name. What belongs to nobody has a place of its
/// own; the tenant `local` is not written, as it was before there were others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(Rc<str>);

impl Place {
    /// The place of a name; `field` is how the payload calls the name.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for an empty part, `too_large` for one too long.
    pub fn new(tenant: Option<&str>, namespace: &str, field: &str, name: &str) -> Result<Self, Refusal> {
        check("namespace", namespace, NAMESPACE_BYTES_MAX)?;
        check(field, name, KEY_BYTES_MAX)?;
        Ok(Self::start(tenant, namespace, name))
    }

    /// Where the names that begin with a prefix begin: every such place starts
    /// with this text, and no other does.
    ///
    /// # Errors
    ///
    /// As [`Place::new`], but a prefix may be empty.
    pub fn prefix(tenant: Option<&str>, namespace: &str, prefix: &str) -> Result<Self, Refusal> {
        check("namespace", namespace, NAMESPACE_BYTES_MAX)?;
        if !prefix.is_empty() {
            check("prefix", prefix, KEY_BYTES_MAX)?;
        }
        Ok(Self::start(tenant, namespace, prefix))
    }

    fn start(tenant: Option<&str>, namespace: &str, name: &str) -> Self {
        let mut text = String::with_capacity(namespace.len() + name.len() + 1);
        if tenant != Some(LOCAL_TENANT) {
            text.push_str(TENANT[0]);
            escape(tenant.unwrap_or_default(), &mut text);
            text.push_str(TENANT[1]);
        }
        escape(namespace, &mut text);
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

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> Option<String> {
        let Some((tenant, _)) = tenant_of(self.parts().0) else { return Some(LOCAL_TENANT.to_owned()) };
        Some(unescaped(tenant)).filter(|tenant| !tenant.is_empty())
    }

    /// The tenant as it stands in the place: two places have the same where their
    /// tenant is the same.
    pub(crate) fn owner(&self) -> &str {
        tenant_of(self.parts().0).map_or(LOCAL_TENANT, |(tenant, _)| tenant)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        let (namespace, _) = self.parts();
        unescaped(tenant_of(namespace).map_or(namespace, |(_, namespace)| namespace))
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }
}

/// The tenant, and what follows it.
fn tenant_of(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(TENANT[0])?.split_once(TENANT[1])
}

fn escape(part: &str, text: &mut String) {
    for character in part.chars() {
        match character {
            '\0' => text.push_str("\u{1}\u{1}"),
            '\u{1}' => text.push_str("\u{1}\u{2}"),
            other => text.push(other),
        }
    }
}

fn unescaped(text: &str) -> String {
    let mut characters = text.chars();
    let mut part = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        part.push(match character {
            '\u{1}' if characters.next() == Some('\u{1}') => '\0',
            other => other,
        });
    }
    part
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
            let place = |(namespace, name): &(String, String)| {
                Place::new(Some(LOCAL_TENANT), namespace, "key", name).unwrap()
            };
            assert_eq!(place(&a).cmp(&place(&b)), a.cmp(&b));
            assert_eq!((place(&a).namespace(), place(&a).name().to_owned()), a);
            let prefix = Place::prefix(Some(LOCAL_TENANT), &a.0, &a.1).unwrap();
            let inside = b.0 == a.0 && b.1.starts_with(&a.1);
            assert_eq!(place(&b).as_str().starts_with(prefix.as_str()), inside);
            assert_eq!(Place::stored(place(&a).as_str()), Some(place(&a)));
        }
    }

    fn tenant() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(prop_oneof![
            name(),
            proptest::sample::select(vec!["local", "a-b", "a_b", "../x", "a\u{1}\u{4}b"])
                .prop_map(String::from)
        ])
    }

    proptest! {
        #[test]
        fn no_two_tenants_share_a_place_or_a_range(
            a in (tenant(), name(), name()), b in (tenant(), name(), name())
        ) {
            let place = |(tenant, namespace, name): &(Option<String>, String, String)| {
                Place::new(tenant.as_deref(), namespace, "key", name).unwrap()
            };
            assert_eq!(place(&a) == place(&b), a == b);
            assert_eq!(place(&a).owner() == place(&b).owner(), a.0 == b.0);
            let back = Place::stored(place(&a).as_str()).unwrap();
            assert_eq!((back.tenant(), back.namespace(), back.name().to_owned()), a.clone());
            let prefix = Place::prefix(a.0.as_deref(), &a.1, "").unwrap();
            let inside = place(&b).as_str().starts_with(prefix.as_str());
            assert_eq!(inside, a.0 == b.0 && a.1 == b.1);
        }
    }

    #[test]
    fn parts_that_look_like_paths_do_not_collide() {
        let place = |namespace, key| Place::new(None, namespace, "key", key).unwrap();
        assert_ne!(place("a", "b/c"), place("a/b", "c"));
        assert_ne!(place("a", "\0b"), place("a\0", "b"));
        assert_ne!(place("a\u{1}", "b"), place("a\0", "b"));
        assert_eq!(place("\u{1}\u{1}", "b").namespace(), "\u{1}\u{1}");
    }

    #[test]
    fn parts_have_limits() {
        let long = "k".repeat(KEY_BYTES_MAX);
        assert!(Place::new(None, "a", "key", &long).is_ok());
        let refusal = Place::new(None, "a", "key", &format!("{long}k")).unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
        assert_eq!(refusal.details.unwrap()["bytes_max"], KEY_BYTES_MAX);
        assert_eq!(Place::new(None, "", "key", "a").unwrap_err().code, Code::InvalidPayload);
        assert_eq!(Place::new(None, "a", "key", "").unwrap_err().code, Code::InvalidPayload);
        assert_eq!(Place::new(None, &"n".repeat(129), "key", "a").unwrap_err().code, Code::TooLarge);
    }
}
