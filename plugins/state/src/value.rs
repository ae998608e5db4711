//! Values as they travel and are kept: bytes that nobody here looks into,
//! but for how deep they are.
//!
//! A value that was taken has to fit into every answer that may carry it, or it
//! could never be read again: hence a limit of nesting below that of a frame.

use std::{collections::BTreeMap, fmt};

use ksi_sdk::{
    prelude::{Code, Refusal, json},
    protocol::{self, Payload},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::place::invalid;

/// Arrays and objects of a value that may be inside one another; a frame
/// allows 64, and answers put some around the value.
pub const DEPTH_MAX: usize = 48;
/// Largest value in bytes, as MessagePack.
pub const VALUE_BYTES_MAX: usize = 1_024_000;
/// Most bytes of metadata.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;

/// What users keep beside a value.
pub type Metadata = BTreeMap<String, Payload>;

/// Refuses a value that could not be given back.
///
/// # Errors
///
/// `too_large` with the limit, or `invalid_payload` where it is too deep.
pub(crate) fn check(field: &str, value: &Payload) -> Result<(), Refusal> {
    fits(field, value.0.len(), VALUE_BYTES_MAX)?;
    shallow(field, value)
}

/// The bytes of metadata, if there are not too many.
pub(crate) fn check_metadata(metadata: &Metadata) -> Result<usize, Refusal> {
    let bytes = metadata.iter().map(|(key, value)| key.len() + value.0.len()).sum();
    fits("metadata", bytes, METADATA_BYTES_MAX)?;
    metadata.values().try_for_each(|value| shallow("metadata", value))?;
    Ok(bytes)
}

fn fits(field: &str, bytes: usize, bytes_max: usize) -> Result<(), Refusal> {
    match bytes <= bytes_max {
        true => Ok(()),
        false => Err(Refusal::new(
            Code::TooLarge,
            format!("`{field}` has {bytes} bytes, and at most {bytes_max} are allowed"),
        )
        .hint("keep large data in a file, and its path here")
        .details(json!({ "path": field, "bytes": bytes, "bytes_max": bytes_max }))),
    }
}

fn shallow(field: &str, value: &Payload) -> Result<(), Refusal> {
    match protocol::decode::<Shallow>(&value.0) {
        Ok(Shallow) => Ok(()),
        Err(_) => {
            Err(invalid(field, &format!("has more than {DEPTH_MAX} arrays or objects inside one another")))
        }
    }
}

/// Any value that is not too deep.
struct Shallow;

impl<'de> Deserialize<'de> for Shallow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Inside(0).deserialize(deserializer).map(|()| Self)
    }
}

/// Passes over a value that is inside so many others.
#[derive(Clone, Copy)]
struct Inside(usize);

impl Inside {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.0 < DEPTH_MAX {
            true => Ok(Self(self.0 + 1)),
            false => Err(E::custom("too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Inside {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inside {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<(), D::Error> {
        IgnoredAny::deserialize(extension).map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while seq.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while map.next_key_seed(deeper)?.is_some() {
            map.next_value_seed(deeper)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn payload(value: &Value) -> Payload {
        Payload(protocol::json::from_json(value).unwrap())
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(check("value", &payload(&nested(DEPTH_MAX))), Ok(()));
        assert_eq!(
            check("value", &payload(&json!({"a": {"b": [null, true, 1.5, -1, u64::MAX, "x"]}}))),
            Ok(())
        );
        let refusal = check("value", &payload(&nested(DEPTH_MAX + 1))).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert!(refusal.message.contains("48"), "{refusal}");
        let object = (0..=DEPTH_MAX).fold(json!(1), |inner, _| json!({ "a": inner }));
        let metadata = Metadata::from([("m".into(), payload(&object))]);
        assert_eq!(check_metadata(&metadata).unwrap_err().code, Code::InvalidPayload);
    }

    #[test]
    fn size_has_a_limit() {
        let text = |bytes: usize| payload(&json!("x".repeat(bytes)));
        assert_eq!(check("value", &text(VALUE_BYTES_MAX - 5)), Ok(()), "with 5 bytes of length");
        let refusal = check("value", &text(VALUE_BYTES_MAX - 4)).unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
        assert_eq!(refusal.details.unwrap()["bytes"], VALUE_BYTES_MAX + 1);
        let metadata = Metadata::from([("m".into(), text(METADATA_BYTES_MAX))]);
        assert_eq!(check_metadata(&metadata).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn bytes_and_extensions_are_values_too() {
        for bytes in [&[0xc4, 1, 7][..], &[0xd4, 5, 7], &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(check("value", &Payload(bytes.to_vec().into())), Ok(()));
        }
    }
}
