//! A plugin file, looked at before it is loaded.
//!
//! Reads the ELF headers and the plugin header in its own section. A text file
//! named `.so`, a library of another architecture, one that is no plugin, and a
//! plugin of another ABI are refused here, without running a line of theirs.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use ksi_abi::{ABI_MAJOR, ABI_MINOR, FEATURE_CHILD_ONLY, FEATURE_PANIC_WALL, FEATURES_KNOWN, MAGIC, SECTION};
use ksi_protocol::{Code, Refusal};
use ksi_trust::{Digest, Digests};
use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::{
        ReadCache,
        elf::{FileHeader as _, SectionHeader as _},
    },
};

/// Why a file is not a plugin that this host can load.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    #[error("{path} is not a shared library for this machine: {why}")]
    NotALibrary { path: PathBuf, why: String },
    #[error("{0} is a shared library, but no KSI plugin: it has no section {SECTION}")]
    NotAPlugin(PathBuf),
    #[error("{path} has a damaged plugin header: {why}")]
    Header { path: PathBuf, why: &'static str },
    #[error(
        "{path} speaks plugin ABI {theirs_major}.{theirs_minor}, this KSI speaks {ABI_MAJOR}.{ABI_MINOR}"
    )]
    Abi { path: PathBuf, theirs_major: u16, theirs_minor: u16 },
    #[error("{path} needs features {unknown:#x} that this KSI does not have (it has {FEATURES_KNOWN:#x})")]
    Features { path: PathBuf, unknown: u64 },
    #[error("{0} was not built with ksi-sdk: its panics would not be caught")]
    NoPanicWall(PathBuf),
    #[error("cannot load {path}: {why}")]
    Load { path: PathBuf, why: String },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not what was checked: its digest is {found}, expected is {expected}")]
    Digest { path: PathBuf, found: Digest, expected: String },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (code, hint) = match &error {
            Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => (
                Code::NotFound,
                "give the path of a plugin library, or build it with `cargo build --release`",
            ),
            Error::Abi { .. } => (Code::Conflict, "build the plugin against the ksi-sdk of this KSI"),
            Error::Digest { .. } => (
                Code::Denied,
                "the file was replaced while the plugin was started; look who did it, then `ksi plugin reload`",
            ),
            Error::Read { .. } => (Code::Unavailable, "is the disk whole? `ksi logs` may say more"),
            Error::Load { .. } => (Code::Unavailable, "`ldd` on the file shows what it lacks"),
            _ => (Code::InvalidPayload, "`ksi plugin new NAME` writes a plugin that builds"),
        };
        Self::new(code, error.to_string()).hint(hint)
    }
}

/// A file that was checked. Holds it open, so that what is loaded is what was
/// checked.
#[derive(Debug)]
pub struct Image {
    /// Where the file was found.
    pub path: PathBuf,
    /// Name in the header.
    pub name: String,
    /// Version in the header.
    pub version: String,
    /// Whether the plugin says that it needs a process of its own.
    pub child_only: bool,
    file: File,
}

impl Image {
    /// Opens and checks a file.
    ///
    /// # Errors
    ///
    /// Says what the file is instead of a plugin for this KSI.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = |source| Error::Open { path: path.into(), source };
        // A pipe would wait for somebody who writes into it.
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(open)?;
        if !file.metadata().map_err(open)?.is_file() {
            return Err(Error::NotAFile(path.into()));
        }
        let header = section(&file, path)?;
        let header = Header::parse(&header, path)?;
        Ok(Self {
            path: path.into(),
            name: header.name,
            version: header.version,
            child_only: header.features & FEATURE_CHILD_ONLY != 0,
            file,
        })
    }

    /// Digest and size of the checked file.
    ///
    /// # Errors
    ///
    /// As reading fails.
    pub fn digest(&self, digests: &Digests) -> Result<(Digest, u64), Error> {
        let failed = |source| Error::Read { path: self.path.clone(), source };
        digests.of_file(&self.file, |file| file).map_err(failed)
    }

    /// What the system says of the checked file.
    ///
    /// # Errors
    ///
    /// As the system fails.
    pub fn metadata(&self) -> Result<Metadata, Error> {
        self.file.metadata().map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    /// Refuses the file unless it has this digest.
    ///
    /// # Errors
    ///
    /// Names both digests.
    pub fn must_be(&self, expected: &str) -> Result<(), Error> {
        let (found, _) = self.digest(&Digests::default())?;
        if expected.parse() == Ok(found) {
            return Ok(());
        }
        Err(Error::Digest { path: self.path.clone(), found, expected: expected.to_owned() })
    }

    /// Another descriptor of the checked file.
    pub(crate) fn reopened(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }
}

/// Machines by their numbers in ELF and their names in Rust.
const MACHINES: [(elf::Machine, &str); 5] = [
    (elf::EM_X86_64, "x86_64"),
    (elf::EM_AARCH64, "aarch64"),
    (elf::EM_RISCV, "riscv64"),
    (elf::EM_386, "x86"),
    (elf::EM_ARM, "arm"),
];

fn section(file: &File, path: &Path) -> Result<Vec<u8>, Error> {
    let not_a_library = |why: String| Error::NotALibrary { path: path.into(), why };
    let broken = |error: object::read::Error| not_a_library(error.to_string());
    let cache = ReadCache::new(file);
    // Headers only: to read symbols, too, takes longer than all the rest.
    let header = FileHeader64::<Endianness>::parse(&cache).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let (theirs, ours) = (header.e_machine(endian), std::env::consts::ARCH);
    if !MACHINES.contains(&(theirs, ours)) {
        let known = MACHINES.iter().find(|(machine, _)| *machine == theirs);
        let theirs =
            known.map_or_else(|| format!("machine {} of ELF", theirs.0), |(_, name)| (*name).to_owned());
        return Err(not_a_library(format!("it is built for {theirs}, this machine is {ours}")));
    }
    match header.e_type(endian) {
        elf::ET_DYN => {}
        elf::ET_EXEC => return Err(not_a_library("it is a program".into())),
        elf::ET_REL => return Err(not_a_library("it is an object file that was not linked".into())),
        other => return Err(not_a_library(format!("it is of type {other} of ELF"))),
    }
    let sections = header.sections(endian, &cache).map_err(broken)?;
    let (_, section) =
        sections.section_by_name(endian, SECTION.as_bytes()).ok_or_else(|| Error::NotAPlugin(path.into()))?;
    if section.sh_size(endian) > 64 * 1024 {
        return Err(Error::Header { path: path.into(), why: "it is absurdly large" });
    }
    section.data(endian, &cache).map(<[u8]>::to_vec).map_err(broken)
}

/// The fields of a plugin header that survived the checks.
struct Header {
    features: u64,
    name: String,
    version: String,
}

impl Header {
    /// Reads the header by its documented offsets, which the golden layout of
    /// the ABI pins, so that no pointer is cast.
    fn parse(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let damaged = |why| Error::Header { path: path.into(), why };
        if bytes.len() < size_of::<ksi_abi::Header>() {
            return Err(damaged("it is too short"));
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (theirs_major, theirs_minor) = (u16_at(8), u16_at(10));
        if bytes[..8] != MAGIC {
            return Err(damaged("its magic number is wrong"));
        }
        if theirs_major != ABI_MAJOR || theirs_minor.abs_diff(ABI_MINOR) > 1 {
            return Err(Error::Abi { path: path.into(), theirs_major, theirs_minor });
        }
        let features =
            u64::from_le_bytes(bytes[16..24].try_into().map_err(|_| damaged("its features are cut"))?);
        if features & !FEATURES_KNOWN != 0 {
            return Err(Error::Features { path: path.into(), unknown: features & !FEATURES_KNOWN });
        }
        if features & FEATURE_PANIC_WALL == 0 {
            return Err(Error::NoPanicWall(path.into()));
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
            std::str::from_utf8(&field[..end]).ok().filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Ok(Self {
            features,
            name: text(&bytes[24..88]).ok_or_else(|| damaged("its name is no text"))?,
            version: text(&bytes[88..120]).ok_or_else(|| damaged("its version is no text"))?,
        })
    }
}
