//! The layout of every type that crosses the boundary, and every number that
//! has a meaning there, compared with `tests/golden/layout.txt`.
//!
//! A difference means that libraries built before it no longer fit: raise
//! [`ksi_abi::ABI_MAJOR`], or append the field at the end and raise
//! [`ksi_abi::ABI_MINOR`]. `KSI_BLESS=1` writes the file anew.

use std::{
    fs,
    mem::{align_of, offset_of, size_of},
    path::Path,
};

use ksi_abi::{
    ABI_MAJOR, ABI_MINOR, Buffer, FAILED, FEATURE_CHILD_ONLY, FEATURE_PANIC_WALL, FEATURES_KNOWN, FULL,
    Header, HostTable, INVALID, Kind, MAGIC, Message, OK, POISONED, PluginEntry, PluginTable, SECTION,
    SYMBOL, Slice,
};

macro_rules! layout {
    ($out:expr, $type:ident { $($field:ident),+ $(,)? }) => {
        $out.push(format!("{} size {} align {}", stringify!($type), size_of::<$type>(), align_of::<$type>()));
        $($out.push(format!("  {} at {}", stringify!($field), offset_of!($type, $field)));)+
        // A pattern without `..` does not compile where a field is missing.
        let _ = |value: &$type| { let $type { $($field: _),+ } = value; };
    };
}

const KINDS: [Kind; 18] = [
    Kind::Request,
    Kind::Event,
    Kind::Emit,
    Kind::Cancel,
    Kind::Reply,
    Kind::Chunk,
    Kind::End,
    Kind::Refusal,
    Kind::Accepted,
    Kind::Credit,
    Kind::Timer,
    Kind::Ready,
    Kind::Drain,
    Kind::Drained,
    Kind::Log,
    Kind::Intercept,
    Kind::Verdict,
    Kind::Health,
];

/// One line for each fact.
fn described() -> String {
    let mut out = Vec::new();
    out.push(format!("abi {ABI_MAJOR}.{ABI_MINOR}"));
    out.push(format!("magic {MAGIC:02x?}\nsection {SECTION}\nsymbol {SYMBOL}"));
    out.push(format!("entry size {}", size_of::<PluginEntry>()));
    layout!(out, Header { magic, abi_major, abi_minor, size, features, name, version });
    layout!(out, Slice { ptr, len });
    layout!(out, Buffer { ptr, len, capacity, release });
    layout!(out, Message { size, kind, id, arg, name, payload, meta });
    layout!(out, PluginTable { size, reserved, describe, create, deliver, poll, destroy });
    layout!(out, HostTable { size, reserved, context, send, wake });
    for kind in KINDS {
        out.push(format!("kind {kind:?} {}", kind as u32));
    }
    out.push(format!("feature panic_wall {FEATURE_PANIC_WALL}\nfeature child_only {FEATURE_CHILD_ONLY}"));
    out.push(format!("features known {FEATURES_KNOWN}"));
    for (name, status) in
        [("ok", OK), ("poisoned", POISONED), ("failed", FAILED), ("invalid", INVALID), ("full", FULL)]
    {
        out.push(format!("status {name} {status}"));
    }
    out.join("\n") + "\n"
}

#[test]
#[cfg(target_pointer_width = "64")]
fn the_layout_of_everything_that_crosses_the_boundary_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layout.txt");
    if std::env::var_os("KSI_BLESS").is_some() {
        fs::write(&path, described()).unwrap();
    }
    assert_eq!(described(), fs::read_to_string(path).unwrap());
}

#[test]
fn every_kind_comes_back_from_its_number_and_no_other_number_is_a_kind() {
    for kind in KINDS {
        assert_eq!(Kind::from_u32(kind as u32), Some(kind));
    }
    let known: Vec<u32> = (0..10_000).filter(|number| Kind::from_u32(*number).is_some()).collect();
    assert_eq!(known, KINDS.map(|kind| kind as u32), "this test lists every kind");
    assert_eq!(Kind::from_u32(u32::MAX), None);
}

#[test]
fn a_header_holds_its_texts_padded_with_zeros_and_cut_at_the_end() {
    let header = Header::new("echo", &"9".repeat(40), FEATURE_CHILD_ONLY);
    assert_eq!((header.magic, header.abi_major, header.features), (MAGIC, ABI_MAJOR, FEATURE_CHILD_ONLY));
    assert_eq!(header.size as usize, size_of::<Header>());
    assert_eq!(&header.name[..6], b"echo\0\0");
    assert_eq!(header.version, [b'9'; 32]);
}

#[test]
fn an_empty_message_names_its_size_and_kind() {
    let message = Message::new(Kind::Ready, 7);
    assert_eq!((message.size as usize, message.kind, message.id), (size_of::<Message>(), 12, 7));
    assert_eq!((message.arg, message.name.len, message.payload.len, message.meta.len), (0, 0, 0, 0));
}
