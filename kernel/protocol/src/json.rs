//! The JSON face: one line each way, for people, shells and every language.
//!
//! A line is parsed into an [`Input`] (an optional `id` of any scalar kind and
//! what is wanted), and answers are written as lines that echo the id.
//! Payloads are MessagePack inside the daemon; this module transcodes at the
//! edge. MessagePack bytes become arrays of numbers, map keys become texts
//! (arrays and maps as keys are refused), and numbers that JSON lacks (NaN,
//! infinities) become `null`.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{
    Deserialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};

use crate::{
    frame::{Class, Gap, Welcome},
    limits::{DEPTH_MAX, LINE_ID_BYTES_MAX},
    name::EventName,
    pattern::Pattern,
    refusal::{Code, Refusal},
    token::Token,
};

/// One line from a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Echoed in every answer; a text or a number.
    pub id: Option<Value>,
    /// What is wanted.
    pub verb: Verb,
}

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the frames of the same names")]
pub enum Verb {
    Hello {
        token: Option<Token>,
    },
    Request {
        event: EventName,
        data: Bytes,
        timeout_ms: Option<u64>,
        credit: Option<u32>,
        correlation_id: Option<String>,
        idempotency_key: Option<String>,
        expires_in_ms: Option<u64>,
    },
    Emit {
        event: EventName,
        data: Bytes,
        correlation_id: Option<String>,
    },
    Subscribe {
        pattern: Pattern,
        class: Class,
        since_seq: Option<u64>,
        consumer: Option<String>,
        credit: Option<u32>,
    },
    Unsubscribe(Value),
    Cancel(Value),
    Credit(Value, u32),
}

/// A line that cannot be understood: the refusal, and the id to echo where
/// the line had one.
#[derive(Debug, Clone, PartialEq)]
pub struct Malformed {
    /// The line's id.
    pub id: Option<Value>,
    /// What is wrong.
    pub refusal: Refusal,
}

const REQUEST: &[&str] =
    &["event", "id", "data", "timeout_ms", "credit", "correlation_id", "idempotency_key", "expires_in_ms"];

/// The keys that begin each kind of line, and those that may go with it.
const SHAPES: &[(&str, &[&str])] = &[
    ("hello", &["hello", "id"]),
    ("event", REQUEST),
    ("emit", &["emit", "id", "data", "correlation_id"]),
    ("subscribe", &["subscribe", "id", "class", "since_seq", "consumer", "credit"]),
    ("unsubscribe", &["unsubscribe", "id"]),
    ("cancel", &["cancel", "id"]),
    ("credit", &["credit", "id", "n"]),
];

/// Longest sentence in bytes on what is wrong with a line.
const WHY_BYTES_MAX: usize = 1024;

/// Parses one line (without its newline).
///
/// # Errors
///
/// Says what is wrong and how the line should look; an unknown key is an
/// error, so that a typing mistake is not silently ignored.
pub fn parse(line: &[u8]) -> Result<Input, Box<Malformed>> {
    let malformed = |id, refusal| Box::new(Malformed { id, refusal });
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        let refusal = Refusal::new(Code::InvalidFrame, format!("line is not JSON: {error}"));
        malformed(
            None,
            refusal.hint(r#"one JSON object a line, for example {"event":"system:health","data":{}}"#),
        )
    })?;
    let Value::Object(mut object) = value else {
        let refusal = Refusal::new(Code::InvalidFrame, "line is not a JSON object");
        return Err(malformed(None, refusal.hint(r#"for example {"event":"system:health","data":{}}"#)));
    };
    let id = object.get("id").filter(|id| !id.is_null()).cloned();
    match verb(&mut object, id.as_ref()) {
        Ok(verb) => Ok(Input { id, verb }),
        Err(mut refusal) => {
            // It may quote what was sent, which is no shorter than a line may be.
            refusal.message.truncate(refusal.message.floor_char_boundary(WHY_BYTES_MAX));
            Err(malformed(id.filter(is_id), refusal))
        }
    }
}

fn is_id(id: &Value) -> bool {
    id.is_number() || id.as_str().is_some_and(|id| id.len() <= LINE_ID_BYTES_MAX)
}

/// What [`is_id`] takes.
fn an_id() -> String {
    format!("a number, or a text of at most {LINE_ID_BYTES_MAX} bytes")
}

fn verb(object: &mut Map<String, Value>, id: Option<&Value>) -> Result<Verb, Refusal> {
    let invalid = |why: String| Refusal::new(Code::InvalidFrame, why);
    if id.is_some_and(|id| !is_id(id)) {
        return Err(invalid(format!("`id` must be {}", an_id())));
    }
    let Some((kind, allowed)) = SHAPES.iter().find(|(kind, _)| object.contains_key(*kind)) else {
        return Err(invalid("line says neither what to ask nor what to tell".into())
            .hint("it needs one of: event, emit, subscribe, unsubscribe, cancel, credit"));
    };
    if let Some(unknown) = object.keys().find(|key| !allowed.contains(&key.as_str())) {
        return Err(invalid(format!("unknown key `{unknown}` beside `{kind}`"))
            .hint(format!("allowed here: {}", allowed.join(", "))));
    }
    let subject = object.remove(*kind).unwrap_or_default();
    if *kind == "hello" {
        return hello(subject);
    }
    let text = |subject: &Value| {
        subject.as_str().map(str::to_owned).ok_or_else(|| invalid(format!("`{kind}` must be a text")))
    };
    Ok(match *kind {
        "event" => Verb::Request {
            event: EventName::parse(&text(&subject)?).map_err(|e| invalid(e.to_string()))?,
            data: data(object)?,
            timeout_ms: field(object, "timeout_ms")?,
            credit: field(object, "credit")?,
            correlation_id: field(object, "correlation_id")?,
            idempotency_key: field(object, "idempotency_key")?,
            expires_in_ms: field(object, "expires_in_ms")?,
        },
        "emit" => Verb::Emit {
            event: EventName::parse(&text(&subject)?).map_err(|e| invalid(e.to_string()))?,
            data: data(object)?,
            correlation_id: field(object, "correlation_id")?,
        },
        "subscribe" => Verb::Subscribe {
            pattern: Pattern::parse(&text(&subject)?).map_err(|e| invalid(e.to_string()))?,
            class: field(object, "class")?.unwrap_or_default(),
            since_seq: field(object, "since_seq")?,
            consumer: field(object, "consumer")?,
            credit: field(object, "credit")?,
        },
        _ if !is_id(&subject) => {
            return Err(invalid(format!("`{kind}` must be the id of an earlier line, {}", an_id())));
        }
        "unsubscribe" => Verb::Unsubscribe(subject),
        "cancel" => Verb::Cancel(subject),
        _ => Verb::Credit(subject, field(object, "n")?.unwrap_or(1)),
    })
}

/// What the first line may say of whoever sends it. An error never shows what was
/// sent.
fn hello(subject: Value) -> Result<Verb, Refusal> {
    let Value::Object(mut subject) = subject else {
        return Err(
            Refusal::new(Code::InvalidFrame, "`hello` must be an object").hint(r#"{"hello":{"token":"…"}}"#)
        );
    };
    let token = match subject.remove("token") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(Token::new(&text)),
        Some(_) => return Err(Refusal::new(Code::InvalidFrame, "`hello.token` must be a text")),
    };
    match subject.keys().next() {
        None => Ok(Verb::Hello { token }),
        Some(unknown) => {
            let message = format!("unknown key `{unknown}` in `hello`");
            Err(Refusal::new(Code::InvalidFrame, message).hint("allowed here: token"))
        }
    }
}

fn field<T: serde::de::DeserializeOwned>(
    object: &mut Map<String, Value>,
    key: &str,
) -> Result<Option<T>, Refusal> {
    match object.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|error| Refusal::new(Code::InvalidFrame, format!("`{key}`: {error}"))),
    }
}

fn data(object: &mut Map<String, Value>) -> Result<Bytes, Refusal> {
    match object.remove("data") {
        None | Some(Value::Null) => Ok(crate::empty()),
        Some(value) => from_json(&value),
    }
}

/// JSON to the MessagePack of a payload.
///
/// # Errors
///
/// Refuses nesting beyond [`DEPTH_MAX`], which no receiver would decode.
pub fn from_json(value: &Value) -> Result<Bytes, Refusal> {
    if depth(value) > DEPTH_MAX {
        return Err(Refusal::invalid_payload(format!("nested deeper than {DEPTH_MAX} levels")));
    }
    crate::encode(value).map_err(|error| Refusal::invalid_payload(error.to_string()))
}

/// The MessagePack of a payload to JSON.
///
/// # Errors
///
/// Refuses bytes that are not one MessagePack value.
pub fn to_json(payload: &[u8]) -> Result<Value, Refusal> {
    let Transcoded(value) = Transcoded::deserialize(&mut crate::reader(payload))
        .map_err(|error| Refusal::invalid_payload(format!("not MessagePack: {error}")))?;
    crate::one_value(payload)?;
    Ok(value)
}

/// How many arrays and objects lie inside one another.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// What answers share besides their content.
#[derive(Debug, Clone, Copy)]
pub struct Heading<'a> {
    /// The client's id.
    pub id: Option<&'a Value>,
    /// The event that was asked for, or that happened.
    pub event: &'a str,
    /// Ties together what follows from one cause.
    pub correlation_id: &'a str,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

impl Heading<'_> {
    fn line(&self, parts: impl IntoIterator<Item = (&'static str, Value)>) -> String {
        let mut object = Map::new();
        if let Some(id) = self.id {
            object.insert("id".into(), id.clone());
        }
        object.insert("event".into(), self.event.into());
        object.extend(parts.into_iter().map(|(key, value)| (key.to_owned(), value)));
        object.insert("correlation_id".into(), self.correlation_id.into());
        object.insert("timestamp".into(), timestamp(self.at_ms).into());
        Value::Object(object).to_string()
    }

    /// The one answer to a request.
    #[must_use]
    pub fn reply(&self, data: &[u8]) -> String {
        self.line([("data", readable(data))])
    }

    /// A part of a streamed answer.
    #[must_use]
    pub fn chunk(&self, data: &[u8]) -> String {
        self.line([("chunk", readable(data))])
    }

    /// The last part of a streamed answer.
    #[must_use]
    pub fn end(&self, data: &[u8]) -> String {
        self.line([("data", readable(data)), ("end", true.into())])
    }

    /// A durable request is safe.
    #[must_use]
    pub fn accepted(&self, request_id: &str, seq: u64) -> String {
        self.line([("accepted", json!({"request_id": request_id, "seq": seq}))])
    }

    /// The request is refused.
    #[must_use]
    pub fn refusal(&self, refusal: &Refusal) -> String {
        self.line([("refusal", json!(refusal))])
    }

    /// An event for the subscription whose id is in the heading.
    #[must_use]
    pub fn event(&self, sub: &Value, seq: u64, origin: &str, data: &[u8]) -> String {
        self.line([
            ("data", readable(data)),
            ("sub", sub.clone()),
            ("seq", seq.into()),
            ("origin", origin.into()),
        ])
    }
}

/// A refusal that belongs to no request.
#[must_use]
pub fn refusal_line(id: Option<&Value>, refusal: &Refusal) -> String {
    match id {
        Some(id) => json!({"id": id, "refusal": refusal}).to_string(),
        None => json!({"refusal": refusal}).to_string(),
    }
}

/// The answer to `hello`.
#[must_use]
pub fn welcome_line(id: Option<&Value>, welcome: &Welcome) -> String {
    match id {
        Some(id) => json!({"id": id, "welcome": welcome}).to_string(),
        None => json!({"welcome": welcome}).to_string(),
    }
}

/// Events that a subscription lost.
#[must_use]
pub fn gap_line(sub: &Value, gap: &Gap) -> String {
    let Gap { missed, from_seq, to_seq, .. } = gap;
    json!({"gap": {"sub": sub, "missed": missed, "from_seq": from_seq, "to_seq": to_seq}}).to_string()
}

/// The last millisecond of the year 9999, beyond which RFC 3339 has no form.
const AT_MS_MAX: u64 = 253_402_300_799_999;

/// RFC 3339 in UTC with milliseconds. A time after the year 9999, which only a
/// broken peer sends, is shown as its last millisecond.
#[must_use]
pub fn timestamp(at_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(at_ms.min(AT_MS_MAX));
    humantime::format_rfc3339_millis(time).to_string()
}

/// A payload as JSON; one that is no MessagePack is shown as such rather
/// than dropped.
fn readable(data: &[u8]) -> Value {
    to_json(data).unwrap_or_else(|refusal| json!({"undecodable": refusal.message}))
}

/// A JSON value read from any self-describing format, bytes included.
struct Transcoded(Value);

impl<'de> Deserialize<'de> for Transcoded {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TranscodeVisitor).map(Self)
    }
}

struct TranscodeVisitor;

impl<'de> Visitor<'de> for TranscodeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(value.to_vec().into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Transcoded::deserialize(deserializer).map(|t| t.0)
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Transcoded::deserialize(deserializer).map(|t| t.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Transcoded(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((Key(key), Transcoded(value))) = map.next_entry()? {
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

/// The key of a map as a text. Arrays and maps are refused: each level of maps
/// as keys would double the backslashes of the one below, so that a payload of
/// some dozen bytes would fill the memory.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor).map(Self)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map key that is no array and no map")
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E>(self, key: f64) -> Result<String, E> {
        Ok(Value::from(key).to_string())
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<String, E> {
        Ok(Value::from(key.to_vec()).to_string())
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok(Value::Null.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Refusal {
        parse(line.as_bytes()).unwrap_err().refusal
    }

    #[test]
    fn the_shortest_request_is_an_event() {
        let input = parse(br#"{"event":"system:health"}"#).unwrap();
        let Verb::Request { event, data, .. } = input.verb else { panic!("not a request") };
        assert_eq!((event.as_str(), &data), ("system:health", &crate::empty()));
        assert_eq!(input.id, None);
    }

    #[test]
    fn a_line_that_cannot_be_understood_says_why_and_keeps_its_id() {
        for (line, part) in [
            ("{", "not JSON"),
            ("[1]", "not a JSON object"),
            ("{}", "neither"),
            (r#"{"event":5}"#, "must be a text"),
            (r#"{"event":"nope"}"#, "1 segments"),
            (r#"{"event":"a:b","dta":{}}"#, "unknown key `dta`"),
            (r#"{"event":"a:b","timeout_ms":"x"}"#, "`timeout_ms`"),
            (r#"{"subscribe":"a b"}"#, "not a name"),
            (r#"{"subscribe":"a:*","class":"fast"}"#, "`class`"),
            (r#"{"subscribe":"a:*","since_seq":-1}"#, "`since_seq`"),
            (r#"{"subscribe":"a:*","since":1}"#, "unknown key `since`"),
            (r#"{"event":"a:b","id":[1]}"#, "`id`"),
            (r#"{"cancel":null}"#, "`cancel` must be the id"),
            (r#"{"unsubscribe":{}}"#, "`unsubscribe` must be the id"),
            (r#"{"credit":[1],"n":2}"#, "`credit` must be the id"),
        ] {
            let refusal = refused(line);
            assert!(refusal.message.contains(part), "{line}: {}", refusal.message);
            assert_eq!(refusal.code, Code::InvalidFrame);
        }
        let malformed = parse(br#"{"id":7,"event":"A"}"#).unwrap_err();
        assert_eq!(malformed.id, Some(json!(7)));
    }

    #[test]
    fn an_id_is_short_and_what_is_wrong_with_a_line_is_said_in_few_words() {
        let line = |id: usize| json!({"event": "a:b", "id": "x".repeat(id)}).to_string();
        assert!(parse(line(LINE_ID_BYTES_MAX).as_bytes()).is_ok());
        let malformed = parse(line(LINE_ID_BYTES_MAX + 1).as_bytes()).unwrap_err();
        assert_eq!((malformed.id, malformed.refusal.code), (None, Code::InvalidFrame));
        assert!(malformed.refusal.message.contains("at most 128 bytes"), "{}", malformed.refusal);
        let long = "\u{1}".repeat(1 << 20);
        for line in [
            json!({"cancel": long}),
            json!({"event": "a:b", "id": 1, long.clone(): 1}),
            json!({"event": "a:b", "credit": long}),
            json!({"subscribe": "a:*", "class": long}),
        ] {
            assert!(refused(&line.to_string()).message.len() <= WHY_BYTES_MAX);
        }
    }

    #[test]
    fn payloads_survive_the_way_to_messagepack_and_back() {
        let value = json!({"a":[1,-2,3.5,null,true,"x"],"b":{"c":18_446_744_073_709_551_615_u64}});
        assert_eq!(to_json(&from_json(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn messagepack_that_json_lacks_is_still_shown() {
        // {1: bin [1,2], "n": NaN}
        let mut bytes = vec![0x82, 0x01, 0xc4, 2, 1, 2, 0xa1, b'n', 0xcb];
        bytes.extend(f64::NAN.to_be_bytes());
        assert_eq!(to_json(&bytes).unwrap(), json!({"1":[1,2],"n":null}));
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_and_does_not_overflow() {
        let bytes = vec![0x91; 100_000];
        assert!(to_json(&bytes).is_err());
    }

    #[test]
    fn an_answer_echoes_the_id() {
        let id = json!("x1");
        let heading = Heading { id: Some(&id), event: "a:b", correlation_id: "c", at_ms: 0 };
        let line: Value = serde_json::from_str(&heading.end(&crate::empty())).unwrap();
        assert_eq!(
            line,
            json!({"id":"x1","event":"a:b","data":{},"end":true,"correlation_id":"c",
                   "timestamp":"1970-01-01T00:00:00.000Z"})
        );
    }
}
