//! Where a MessagePack value ends.
//!
//! The decoder stops after one value and does not say where, so what follows
//! is found here: a walk over the markers that neither recurses nor looks into
//! texts and `bin`s. It says nothing about whether the value is meaningful.

/// Length of the first value of `bytes`, or `None` where it is cut short or
/// has a marker that MessagePack reserves.
pub(crate) fn value_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut open: u64 = 1;
    while open > 0 {
        let marker = *bytes.get(at)?;
        let (head, body, inner) = head(marker, bytes.get(at + 1..)?)?;
        at = at.checked_add(1 + head)?.checked_add(body)?;
        open = open - 1 + inner;
    }
    (at <= bytes.len()).then_some(at)
}

/// What a marker announces: bytes of its own length field, bytes of content,
/// and values inside it.
fn head(marker: u8, rest: &[u8]) -> Option<(usize, usize, u64)> {
    let small = u64::from(marker & 0x0f);
    Some(match marker {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (0, 0, 0),
        0x80..=0x8f => (0, 0, 2 * small),
        0x90..=0x9f => (0, 0, small),
        0xa0..=0xbf => (0, usize::from(marker & 0x1f), 0),
        0xc1 => return None,
        0xc4 | 0xd9 => (1, number(rest, 1)?, 0),
        0xc5 | 0xda => (2, number(rest, 2)?, 0),
        0xc6 | 0xdb => (4, number(rest, 4)?, 0),
        0xc7 => (1, 1 + number(rest, 1)?, 0),
        0xc8 => (2, 1 + number(rest, 2)?, 0),
        0xc9 => (4, 1 + number(rest, 4)?, 0),
        0xcc | 0xd0 => (0, 1, 0),
        0xcd | 0xd1 => (0, 2, 0),
        0xca | 0xce | 0xd2 => (0, 4, 0),
        0xcb | 0xcf | 0xd3 => (0, 8, 0),
        0xd4..=0xd8 => (0, 1 + (1 << (marker - 0xd4)), 0),
        0xdc => (2, 0, number(rest, 2)? as u64),
        0xdd => (4, 0, number(rest, 4)? as u64),
        0xde => (2, 0, 2 * number(rest, 2)? as u64),
        0xdf => (4, 0, 2 * number(rest, 4)? as u64),
    })
}

/// The big-endian number in the first `size` bytes.
fn number(bytes: &[u8], size: usize) -> Option<usize> {
    Some(bytes.get(..size)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_marker_has_the_length_of_the_specification() {
        for (bytes, len) in [
            (&b"\x05rest"[..], 1),
            (b"\xff", 1),
            (b"\xc0\xc0", 1),
            (b"\xa2hi!", 3),
            (b"\xd9\x02hi!", 4),
            (b"\xda\x00\x02hi!", 5),
            (b"\xdb\x00\x00\x00\x02hi!", 7),
            (b"\xc4\x01x!", 3),
            (b"\xc5\x00\x01x!", 4),
            (b"\xc6\x00\x00\x00\x01x!", 6),
            (b"\x82\x01\x02\xa1a\x91\x03!", 7),
            (b"\xdc\x00\x02\x01\x02!", 5),
            (b"\xdd\x00\x00\x00\x01\x01!", 6),
            (b"\xde\x00\x01\x01\x02!", 5),
            (b"\xdf\x00\x00\x00\x01\x01\x02!", 7),
            (b"\xcc\x01!", 2),
            (b"\xcd\x01\x01!", 3),
            (b"\xca\0\0\0\0!", 5),
            (b"\xcb\0\0\0\0\0\0\0\0!", 9),
            (b"\xd4\x01\x02!", 3),
            (b"\xd8\x010123456789abcdef!", 18),
            (b"\xc7\x02\x01ab!", 5),
            (b"\xc8\x00\x02\x01ab!", 6),
            (b"\xc9\x00\x00\x00\x02\x01ab!", 8),
        ] {
            assert_eq!(value_len(bytes), Some(len), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_value_cut_short_has_no_end() {
        for bytes in
            [&b""[..], b"\xa2h", b"\xd9", b"\xdd\xff\xff\xff\xff", b"\x91", b"\xc1", b"\xc6\xff\xff\xff\xff"]
        {
            assert_eq!(value_len(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn what_the_encoder_writes_ends_where_it_ends(
            texts in prop::collection::vec("\\PC{0,300}", 0..20),
            numbers in prop::collection::vec(any::<i64>(), 0..20),
            reals in prop::collection::vec(any::<f64>(), 0..20),
        ) {
            let bytes = crate::encode(&(texts, numbers, reals)).unwrap();
            prop_assert_eq!(value_len(&bytes), Some(bytes.len()));
            prop_assert_eq!(value_len(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(len) = value_len(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
