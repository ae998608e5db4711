//! A payload inside another: the result of work inside what is said about the
//! work.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// One MessagePack value that is part of a payload as the value that it is,
/// not as bytes: on the JSON face it is JSON, and nobody in between needs to
/// know its type.
///
/// ```
/// use ksi_protocol::{Payload, encode, decode};
///
/// let result = Payload(encode("done").unwrap());
/// let outer: Vec<Payload> = decode(&encode(&[&result]).unwrap()).unwrap();
/// assert_eq!(outer, [result]);
/// ```
///
/// An extension type of MessagePack becomes an array of its number and its
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::one_value(&self.0).map_err(|refusal| ser::Error::custom(refusal.message))?;
        let mut reader = crate::reader(&self.0);
        serde_transcode::Transcoder::new(&mut reader).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = Vec::new();
        let mut writer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
        serde_transcode::transcode(deserializer, &mut writer).map_err(de::Error::custom)?;
        Ok(Self(bytes.into()))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::json::{from_json, to_json};

    #[test]
    fn a_payload_in_another_is_seen_as_its_value_on_both_faces() {
        let inner = json!({"text": "hi", "n": [1, -2, 3.5, null, true], "deep": {"a": {"b": "c"}}});
        let outer = crate::encode(&json!({})).unwrap();
        assert_eq!(Payload(outer.clone()), crate::decode(&outer).unwrap());

        let payload = Payload(from_json(&inner).unwrap());
        let on_the_wire = crate::encode(&vec![payload.clone()]).unwrap();
        assert_eq!(to_json(&on_the_wire).unwrap(), json!([inner]));
        assert_eq!(serde_json::to_value(&payload).unwrap(), inner);

        let read: Vec<Payload> = crate::decode(&on_the_wire).unwrap();
        assert_eq!(read.first(), Some(&payload));
        let read: Payload = serde_json::from_value::<Value>(inner)
            .and_then(|value| serde_json::from_str(&value.to_string()))
            .unwrap();
        assert_eq!(to_json(&read.0).unwrap(), to_json(&payload.0).unwrap());
    }

    #[test]
    fn bytes_in_a_payload_stay_bytes() {
        let bytes = Bytes::from_static(&[0xc4, 3, 1, 2, 3]);
        let wrapped = crate::encode(&[Payload(bytes.clone())]).unwrap();
        assert_eq!(crate::decode::<Vec<Payload>>(&wrapped).unwrap(), [Payload(bytes)]);
    }

    #[test]
    fn what_is_not_one_value_is_not_written() {
        assert!(crate::encode(&Payload(Bytes::from_static(&[0x01, 0x02]))).is_err());
        assert!(crate::encode(&Payload(Bytes::new())).is_err());
    }
}
