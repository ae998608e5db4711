//! What a file must be before a line of it is run.
//!
//! The libraries are written here byte by byte, as small as ELF allows, so
//! that these tests need no plugin and no compiler.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_abi::{ABI_MAJOR, ABI_MINOR, FEATURE_CHILD_ONLY, FEATURE_PANIC_WALL, Header, MAGIC, SECTION};
use ksi_host::{Image, Library};
use ksi_protocol::{Code, Refusal};
use tempfile::TempDir;

/// ELF numbers that the tests change.
const SHARED: u16 = 3;
const EXECUTABLE: u16 = 2;
const HERE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
const ELSEWHERE: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };

/// The bytes of a header as it lies in a file.
fn header(name: &str, version: &str, features: u64) -> Vec<u8> {
    let header = Header::new(name, version, features);
    let mut bytes = header.magic.to_vec();
    bytes.extend(header.abi_major.to_le_bytes());
    bytes.extend(header.abi_minor.to_le_bytes());
    bytes.extend(header.size.to_le_bytes());
    bytes.extend(header.features.to_le_bytes());
    bytes.extend(header.name);
    bytes.extend(header.version);
    assert_eq!(bytes.len(), size_of::<Header>(), "no padding");
    bytes
}

/// A good one.
fn good() -> Vec<u8> {
    header("good", "1.2.3", FEATURE_PANIC_WALL)
}

/// A file with an ELF header, one section of this name and content, and the
/// names of the sections.
fn elf(kind: u16, machine: u16, section: &str, content: &[u8]) -> Vec<u8> {
    let names = format!("\0{section}\0.shstrtab\0");
    let (content_at, names_at) = (64, 64 + content.len());
    let table_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(kind.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    // Entry and program headers: none.
    file.extend([0; 16]);
    file.extend((table_at as u64).to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    // Sizes of the header, of program headers and of section headers, of which
    // there are three, the last with the names.
    for number in [64_u16, 56, 0, 64, 3, 2] {
        file.extend(number.to_le_bytes());
    }
    file.extend(content);
    file.extend(names.as_bytes());
    file.resize(table_at, 0);
    let mut entry = |name: u32, kind: u32, at: usize, size: usize| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend([0; 16]);
        file.extend((at as u64).to_le_bytes());
        file.extend((size as u64).to_le_bytes());
        file.extend([0; 8]);
        file.extend(1_u64.to_le_bytes());
        file.extend([0; 8]);
    };
    entry(0, 0, 0, 0);
    entry(1, 1, content_at, content.len());
    entry(u32::try_from(section.len()).expect("a short name") + 2, 3, names_at, names.len());
    file
}

/// What happens to a header.
type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

struct Shelf(TempDir);

impl Shelf {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn put(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("library.so");
        fs::write(&path, bytes).expect("a file can be written");
        path
    }

    /// Opens a plugin with this header.
    fn open(&self, header: &[u8]) -> Result<Image, Refusal> {
        open(&self.put(&elf(SHARED, HERE, SECTION, header)))
    }
}

fn open(path: &Path) -> Result<Image, Refusal> {
    Image::open(path).map_err(Refusal::from)
}

fn refused(opened: Result<Image, Refusal>) -> (Code, String) {
    let refusal = opened.expect_err("it is no plugin for this host");
    assert!(!refusal.hint.is_empty(), "{refusal} says what to do");
    (refusal.code, refusal.message)
}

#[test]
fn a_good_header_is_read_without_loading_the_file() {
    let shelf = Shelf::new();
    let image = shelf.open(&good()).expect("it is a plugin");
    assert_eq!((&*image.name, &*image.version, image.child_only), ("good", "1.2.3", false));
    let needy = header("needy", "0", FEATURE_PANIC_WALL | FEATURE_CHILD_ONLY);
    assert!(shelf.open(&needy).expect("it is a plugin").child_only);
}

#[test]
fn names_up_to_the_end_of_their_field_are_read_whole() {
    let (name, version) = ("n".repeat(64), "v".repeat(32));
    let image = Shelf::new().open(&header(&name, &version, FEATURE_PANIC_WALL)).expect("it is a plugin");
    assert_eq!((image.name, image.version), (name, version));
}

#[test]
fn what_is_no_library_is_refused_by_what_it_is() {
    let shelf = Shelf::new();
    let whole = elf(SHARED, HERE, SECTION, &good());
    for (bytes, words) in [
        (b"".to_vec(), "not a shared library"),
        (b"#!/bin/sh\nrm -rf /\n".to_vec(), "not a shared library"),
        (b"\x7fELF".to_vec(), "not a shared library"),
        (whole[..whole.len() / 2].to_vec(), "not a shared library"),
        (elf(SHARED, ELSEWHERE, SECTION, &good()), "it is built for"),
        (elf(EXECUTABLE, HERE, SECTION, &good()), "it is a program"),
        (elf(1, HERE, SECTION, &good()), "it is an object file"),
        (elf(SHARED, HERE, ".text", &good()), "no KSI plugin"),
    ] {
        let (code, message) = refused(open(&shelf.put(&bytes)));
        assert_eq!(code, Code::InvalidPayload, "{message}");
        assert!(message.contains(words), "no {words:?} in {message:?}");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let shelf = Shelf::new();
    let (code, message) = refused(open(shelf.0.path()));
    assert_eq!(code, Code::InvalidPayload);
    assert!(message.contains("is not a file"), "{message}");
    let (code, message) = refused(open(&shelf.0.path().join("missing.so")));
    assert_eq!(code, Code::NotFound);
    assert!(message.contains("missing.so"), "{message}");
    let pipe = shelf.0.path().join("pipe.so");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe can be made");
    assert!(refused(open(&pipe)).1.contains("is not a file"), "nobody waits for a writer");
    assert!(refused(open(Path::new("/dev/null"))).1.contains("is not a file"));
}

#[test]
fn another_abi_is_refused_with_both_versions() {
    let shelf = Shelf::new();
    let with = |major: u16, minor: u16| {
        let mut header = good();
        header[8..10].copy_from_slice(&major.to_le_bytes());
        header[10..12].copy_from_slice(&minor.to_le_bytes());
        header
    };
    let ours = format!("{ABI_MAJOR}.{ABI_MINOR}");
    for (major, minor) in [(ABI_MAJOR + 1, ABI_MINOR), (99, 0), (0, 0), (ABI_MAJOR, ABI_MINOR + 2)] {
        let (code, message) = refused(shelf.open(&with(major, minor)));
        assert_eq!(code, Code::Conflict);
        assert!(message.contains(&format!("{major}.{minor}")) && message.contains(&ours), "{message}");
    }
    shelf.open(&with(ABI_MAJOR, ABI_MINOR + 1)).expect("one minor version apart is near enough");
}

#[test]
fn damaged_headers_are_refused() {
    let shelf = Shelf::new();
    let damage = |change: Damage<'_>| {
        let mut header = good();
        change(&mut header);
        refused(shelf.open(&header))
    };
    let cases: [(Damage<'_>, &str); 7] = [
        (&|header| header[0] ^= 1, "magic"),
        (&|header| header.truncate(119), "too short"),
        (&|header| header.clear(), "too short"),
        (&|header| header.resize(65 * 1024, 0), "absurdly large"),
        (&|header| header[24] = 0, "name"),
        (&|header| header[24] = 0xff, "name"),
        (&|header| header[88] = 0, "version"),
    ];
    for (change, words) in cases {
        let (code, message) = damage(change);
        assert_eq!(code, Code::InvalidPayload, "{message}");
        assert!(message.contains(words), "no {words:?} in {message:?}");
    }
    assert_eq!(MAGIC.len(), 8);
}

#[test]
fn unknown_features_and_a_missing_panic_wall_are_refused() {
    let shelf = Shelf::new();
    let (code, message) = refused(shelf.open(&header("new", "1", FEATURE_PANIC_WALL | 1 << 40)));
    assert_eq!(code, Code::InvalidPayload);
    assert!(message.contains("0x10000000000"), "{message}");
    let (code, message) = refused(shelf.open(&header("bare", "1", FEATURE_CHILD_ONLY)));
    assert_eq!(code, Code::InvalidPayload);
    assert!(message.contains("panics"), "{message}");
}

#[test]
fn every_prefix_of_a_plugin_is_refused_without_a_panic() {
    let shelf = Shelf::new();
    let whole = elf(SHARED, HERE, SECTION, &good());
    for end in 0..whole.len() {
        open(&shelf.put(&whole[..end])).expect_err("it is cut");
    }
    open(&shelf.put(&whole)).expect("it is whole");
}

#[test]
fn every_flipped_byte_is_read_or_refused_without_a_panic() {
    let shelf = Shelf::new();
    let whole = elf(SHARED, HERE, SECTION, &good());
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            // Either is fine, as long as it comes back.
            let _ = open(&shelf.put(&bytes));
        }
    }
}

#[test]
fn a_plugin_that_the_linker_does_not_take_is_refused_with_its_reason() {
    // A good header, and nothing that could be loaded.
    let image = Shelf::new().open(&good()).expect("its header is good");
    let refusal = Library::load(&image).expect_err("there is nothing to load");
    assert_eq!(refusal.code, Code::Unavailable);
    assert!(refusal.message.contains("cannot load"), "{refusal}");
    assert!(refusal.hint.contains("ldd"), "{refusal:?}");
}
