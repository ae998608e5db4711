//! What an idempotency key knows its payload by: a digest that is the same for
//! whatever means the same.
//!
//! Maps of most languages have no order, and encoders choose the width of a number,
//! so an honest retry may have other bytes. What is digested is the payload in one
//! form of its own: fields in the order of their keys, numbers by their value, texts
//! without the kind of their length. Arrays keep their order, and so do fields of one
//! key.
//!
//! # Failure
//!
//! What is not one MessagePack value, is too deep, has keys of maps that are neither
//! texts nor numbers, or takes too many steps, is digested as it is: then only the
//! same bytes are the same payload.

use ksi_sdk::protocol::limits::DEPTH_MAX;
use sha2::{Digest as _, Sha256};

/// Values that are looked at, one inside several maps several times. With it the
/// digest takes milliseconds more than that of the bytes, and at most some MiB.
const STEPS_MAX: usize = 500_000;

/// Begins what is digested in its own form, and no MessagePack.
const OWN_FORM: [u8; 1] = [0xc1];

/// The beginning of a SHA-256.
pub(super) type Digest = [u8; 16];

/// The digest of what a payload means.
pub(super) fn of_meaning(payload: &[u8]) -> Digest {
    let mut form = Form { left: STEPS_MAX, hash: Sha256::new_with_prefix(OWN_FORM) };
    let mut rest = payload;
    match form.value(&mut rest, 0) {
        Some(()) if rest.is_empty() => super::entry::head(form.hash.finalize().as_slice()),
        _ => of_bytes(payload),
    }
}

/// The digest of a payload as it is.
pub(super) fn of_bytes(payload: &[u8]) -> Digest {
    super::entry::head(Sha256::digest(payload).as_slice())
}

/// One marker of MessagePack with what belongs to it; arrays and maps are followed by
/// what is in them.
enum Token<'p> {
    Nil,
    Bool(bool),
    Float(f64),
    Key(Key<'p>),
    Extension(&'p [u8]),
    Array(usize),
    Map(usize),
}

/// What a field may be called.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key<'p> {
    Integer(i128),
    Text(&'p [u8]),
    Binary(&'p [u8]),
}

/// The form that is digested, as it is made. `None` of any of its methods: the payload
/// has none.
struct Form {
    /// Steps that it may take still.
    left: usize,
    hash: Sha256,
}

impl Form {
    /// Digests the value at the beginning of `rest`, and takes it off.
    fn value(&mut self, rest: &mut &[u8], depth: usize) -> Option<()> {
        match self.token(rest)? {
            Token::Nil => self.hash.update(b"n"),
            Token::Bool(value) => self.hash.update([b'b', u8::from(value)]),
            Token::Float(value) => self.put(b'f', &value.to_bits().to_le_bytes()),
            Token::Key(key) => self.key(&key),
            Token::Extension(body) => self.sized(b'x', body),
            Token::Array(count) => {
                let depth = deeper(depth)?;
                self.put(b'a', &count.to_le_bytes());
                for _ in 0..count {
                    self.value(rest, depth)?;
                }
            }
            Token::Map(count) => {
                let depth = deeper(depth)?;
                let mut fields = Vec::new();
                for _ in 0..count {
                    let Token::Key(key) = self.token(rest)? else { return None };
                    fields.push((key, self.skip(rest)?));
                }
                fields.sort_by(|(one, _), (other, _)| one.cmp(other));
                self.put(b'm', &count.to_le_bytes());
                for (key, mut value) in fields {
                    self.key(&key);
                    self.value(&mut value, depth)?;
                }
            }
        }
        Some(())
    }

    fn key(&mut self, key: &Key<'_>) {
        match key {
            Key::Integer(value) => self.put(b'i', &value.to_le_bytes()),
            Key::Text(text) => self.sized(b't', text),
            Key::Binary(bytes) => self.sized(b'y', bytes),
        }
    }

    fn put(&mut self, kind: u8, body: &[u8]) {
        self.hash.update([kind]);
        self.hash.update(body);
    }

    fn sized(&mut self, kind: u8, body: &[u8]) {
        self.put(kind, &body.len().to_le_bytes());
        self.hash.update(body);
    }

    /// Takes one value off, and returns its bytes.
    fn skip<'p>(&mut self, rest: &mut &'p [u8]) -> Option<&'p [u8]> {
        let from = *rest;
        let mut open: usize = 1;
        while open > 0 {
            let inner = match self.token(rest)? {
                Token::Array(count) => count,
                Token::Map(count) => count.checked_mul(2)?,
                _ => 0,
            };
            open = (open - 1).checked_add(inner)?;
        }
        from.get(..from.len() - rest.len())
    }

    fn token<'p>(&mut self, rest: &mut &'p [u8]) -> Option<Token<'p>> {
        self.left = self.left.checked_sub(1)?;
        let marker = take(rest, 1)?[0];
        let integer = |value: i128| Token::Key(Key::Integer(value));
        Some(match marker {
            0x00..=0x7f => integer(marker.into()),
            0xe0..=0xff => integer(marker.cast_signed().into()),
            0x80..=0x8f => Token::Map((marker & 0x0f).into()),
            0x90..=0x9f => Token::Array((marker & 0x0f).into()),
            0xa0..=0xbf => Token::Key(Key::Text(take(rest, (marker & 0x1f).into())?)),
            0xc0 => Token::Nil,
            0xc1 => return None,
            0xc2 | 0xc3 => Token::Bool(marker == 0xc3),
            0xc4..=0xc6 => Token::Key(Key::Binary(counted(rest, 1 << (marker - 0xc4), 0)?)),
            0xc7..=0xc9 => Token::Extension(counted(rest, 1 << (marker - 0xc7), 1)?),
            0xca => Token::Float(f32::from_be_bytes(take(rest, 4)?.try_into().ok()?).into()),
            0xcb => Token::Float(f64::from_be_bytes(take(rest, 8)?.try_into().ok()?)),
            0xcc..=0xcf => integer(number(rest, 1 << (marker - 0xcc))?.into()),
            0xd0 => integer(number(rest, 1)?.to_le_bytes()[0].cast_signed().into()),
            0xd1 => integer(i16::from_be_bytes(take(rest, 2)?.try_into().ok()?).into()),
            0xd2 => integer(i32::from_be_bytes(take(rest, 4)?.try_into().ok()?).into()),
            0xd3 => integer(i64::from_be_bytes(take(rest, 8)?.try_into().ok()?).into()),
            0xd4..=0xd8 => Token::Extension(take(rest, 1 + (1 << (marker - 0xd4)))?),
            0xd9..=0xdb => Token::Key(Key::Text(counted(rest, 1 << (marker - 0xd9), 0)?)),
            0xdc | 0xdd => Token::Array(length(rest, 2 << (marker - 0xdc))?),
            0xde | 0xdf => Token::Map(length(rest, 2 << (marker - 0xde))?),
        })
    }
}

fn deeper(depth: usize) -> Option<usize> {
    (depth < DEPTH_MAX).then_some(depth + 1)
}

fn take<'p>(rest: &mut &'p [u8], size: usize) -> Option<&'p [u8]> {
    let (head, tail) = rest.split_at_checked(size)?;
    *rest = tail;
    Some(head)
}

/// A big-endian number of so many bytes.
fn number(rest: &mut &[u8], size: usize) -> Option<u64> {
    Some(take(rest, size)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn length(rest: &mut &[u8], size: usize) -> Option<usize> {
    usize::try_from(number(rest, size)?).ok()
}

/// What follows a length of so many bytes, and has so many more than it says.
fn counted<'p>(rest: &mut &'p [u8], size: usize, more: usize) -> Option<&'p [u8]> {
    let length = length(rest, size)?.checked_add(more)?;
    take(rest, length)
}

#[cfg(test)]
mod tests {
    use ksi_sdk::protocol::encode;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn same(one: &[u8], other: &[u8]) -> bool {
        of_meaning(one) == of_meaning(other)
    }

    #[test]
    fn fields_have_no_order_and_numbers_and_texts_no_width() {
        for (one, other) in [
            (&b"\x82\xa1a\x01\xa1b\x02"[..], &b"\x82\xa1b\x02\xa1a\x01"[..]),
            (
                b"\x81\xa1a\x82\x01\xc0\x02\xc3",
                b"\xde\x00\x01\xd9\x01a\xdf\x00\x00\x00\x02\xcc\x02\xc3\xd1\x00\x01\xc0",
            ),
            (b"\x07", b"\xd3\0\0\0\0\0\0\0\x07"),
            (b"\xff", b"\xd2\xff\xff\xff\xff"),
            (b"\xd0\x80", b"\xd1\xff\x80"),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
            (b"\xca\x3f\x80\0\0", b"\xcb\x3f\xf0\0\0\0\0\0\0"),
            (b"\x92\x01\x02", b"\xdd\0\0\0\x02\x01\x02"),
            (b"\xc4\x01x", b"\xc6\0\0\0\x01x"),
            (b"\xd4\x05x", b"\xc7\x01\x05x"),
        ] {
            assert!(same(one, other), "{one:02x?} {other:02x?}");
            assert!(one == other || of_bytes(one) != of_bytes(other));
        }
    }

    #[test]
    fn what_means_something_else_differs() {
        let all = [
            &b"\x82\xa1a\x01\xa1b\x02"[..],
            b"\x82\xa1a\x02\xa1b\x01",
            b"\x82\xa1a\x01\xa1a\x02",
            b"\x82\xa1a\x02\xa1a\x01",
            b"\x81\xa1a\x01",
            b"\x92\x01\x02",
            b"\x92\x02\x01",
            b"\x92\x91\x01\x02",
            b"\x91\x92\x01\x02",
            b"\xa1x",
            b"\xc4\x01x",
            b"\xd4\x01x",
            b"\xd4\x02x",
            b"\x01",
            b"\xff",
            b"\xcc\xff",
            b"\xcb\x3f\xf0\0\0\0\0\0\0",
            b"\xc0",
            b"\xc2",
            b"\xc3",
            b"\x80",
            b"\x90",
            b"\xa0",
            b"",
            b"\xc1",
            b"\xc0\xc0",
            b"\x81\xa1a",
        ];
        for (index, one) in all.iter().enumerate() {
            let alike = all.iter().position(|other| same(one, other));
            assert_eq!(alike, Some(index), "{one:02x?}");
        }
    }

    #[test]
    fn what_has_no_form_of_its_own_is_known_by_its_bytes() {
        let deep = [vec![0x91; DEPTH_MAX + 1], vec![0xc0]].concat();
        let fits = [vec![0x91; DEPTH_MAX], vec![0xc0]].concat();
        assert_ne!(of_meaning(&fits), of_bytes(&fits));
        let long = [&b"\xdd\x00\x07\xa1\x20"[..], &[0xc0; STEPS_MAX]].concat();
        let repeated =
            (1..DEPTH_MAX).fold(b"\xdc\xff\xff".to_vec(), |inner, _| [b"\x81\x01", &inner[..]].concat());
        let repeated = [repeated, vec![0xc0; 0xffff]].concat();
        for payload in [
            &deep[..],
            &long,
            &repeated,
            b"\x81\xc0\x01",
            b"\x81\x91\x01\x01",
            b"\xdf\xff\xff\xff\xff",
            b"\xc1",
            b"",
        ] {
            assert_eq!(of_meaning(payload), of_bytes(payload), "{:02x?}", &payload[..payload.len().min(9)]);
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0..3_u8).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[a-c]{0,2}", inner), 0..5)
                    .prop_map(|fields| json!(fields.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    /// The same with the fields of all maps the other way round.
    fn reversed(value: &Value) -> Value {
        match value {
            Value::Object(fields) => fields
                .iter()
                .rev()
                .map(|(key, value)| (key.clone(), reversed(value)))
                .collect::<Map<_, _>>()
                .into(),
            Value::Array(items) => items.iter().map(reversed).collect::<Vec<_>>().into(),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn two_values_have_one_digest_where_they_are_equal(one in value(), other in value()) {
            let bytes = |value: &Value| encode(value).unwrap();
            prop_assert!(same(&bytes(&one), &bytes(&reversed(&one))));
            prop_assert_eq!(same(&bytes(&one), &bytes(&other)), one == other);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            of_meaning(&bytes);
        }
    }
}
