//! Memory that nobody uses, left to the system.
//!
//! A large block comes from the system and goes back to it ([`map_large`]), and what
//! one thread leaves free is there for others ([`share_arenas`]). A
//! start runs much code once (configuration, schemas, recovery) and leaves
//! holes in the heap. What stays resident of that is of no use: a page of code or
//! of constants that is needed again comes from the page cache, and the heap grows
//! again where it must, so it is given back ([`settle`]); and so is what a rush leaves
//! free ([`trim`]), which the allocator keeps for as long as it runs. This module frees nothing
//! that is in use, and nothing depends on whether the system listens.
#![expect(unsafe_code, reason = "the advice is about addresses")]

use std::{fs, io, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

/// From this size on a block is mapped for itself, in bytes.
#[cfg(target_env = "gnu")]
const LARGE: std::ffi::c_int = 512 << 10;

/// Has the allocator map each block of half a MiB or more for itself. By itself
/// glibc takes the largest mapped block that was ever freed for a sign that such
/// blocks come often, and cuts those that follow from the heap: what is asked for
/// as zeros is then written, so it is resident, used or not, and a hole stays
/// where it was. Statistics that a library keeps in large arrays, most of them
/// never counted up, cost a daemon 3 to 6 MB so. See mallopt(3),
/// `M_MMAP_THRESHOLD`.
///
/// To be called before other threads run. Not for a program that takes and frees
/// such blocks in its inner loop.
pub fn map_large() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, and no other thread allocates.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Has the allocator keep one arena for each processor, two at least. By itself
/// glibc gives every thread its own, and what one thread frees of another's stays
/// there: of 13 MB of events that waited for two slow readers, 36 were resident on a
/// busy machine, where they are queued now by one thread and now by another. See mallopt(3), `M_ARENA_MAX`.
///
/// To be called before other threads run.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = std::ffi::c_int::try_from(processors.max(2)).unwrap_or(std::ffi::c_int::MAX);
        // SAFETY: it sets a number of the allocator's, and no other thread allocates.
        unsafe {
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, arenas);
        }
    }
}

/// Gives back free heap. Takes a few milliseconds for each 100 MB of it.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it returns pages that hold nothing, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Gives back free heap, and the code and constants that were touched so far. To
/// be called once the start is over; takes a few milliseconds.
///
/// # Errors
///
/// Where `/proc` cannot be read, or the system refuses; then memory stays as it
/// was, or some of it.
pub fn settle() -> io::Result<()> {
    trim();
    for (start, end) in unchanged(&fs::read_to_string("/proc/self/smaps")?) {
        let Some(address) = NonNull::new(std::ptr::with_exposed_provenance_mut(start)) else { continue };
        // SAFETY: nobody may write the range, and every page of it is the file's, so what is dropped is
        // mapped again from the file, with the same bytes, when it is next touched.
        unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED)? };
    }
    Ok(())
}

/// The ranges of `/proc/self/smaps` that map a file, that nobody may write, and
/// of which no page is a changed copy, as those are that the linker has
/// relocated: see proc_pid_smaps(5).
fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match fields.next() {
            Some("Anonymous:") => {
                found.extend(candidate.take().filter(|_| fields.next() == Some("0")));
            }
            Some(head) if !head.ends_with(':') => candidate = constant(head, fields),
            _ => {}
        }
    }
    found
}

/// The range of a mapping's first line, where it is a file's and read-only.
fn constant<'a>(range: &str, mut fields: impl Iterator<Item = &'a str>) -> Option<(usize, usize)> {
    let (access, inode) = (fields.next()?, fields.nth(2)?);
    if !matches!(access, "r-xp" | "r--p") || inode == "0" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_read_again_from_a_file_is_given_back() {
        let cases = [
            ("7f00-7fa0 r-xp 00001000 fd:00 77 /usr/lib/libc.so.6", "0", true),
            ("7f00-7fa0 r--p 00001000 fd:00 77 /a path/with spaces.so (deleted)", "0", true),
            ("7f00-7fa0 r--p 00001000 fd:00 77 /usr/lib/relocated.so", "8", false),
            ("7f00-7fa0 r-xp 00001000 fd:00 77 /usr/lib/patched.so", "4", false),
            ("7f00-7fa0 rw-p 00001000 fd:00 77 /usr/lib/libc.so.6", "0", false),
            ("7f00-7fa0 r--s 00001000 fd:00 77 /shared", "0", false),
            ("7f00-7fa0 r-xp 00000000 00:00 0 [vdso]", "0", false),
            ("7f00-7fa0 rw-p 00000000 00:00 0", "0", false),
            ("7f00 r-xp 00000000 fd:00 77", "0", false),
        ];
        for (line, anonymous, given_back) in cases {
            let mapping = format!("{line}\nSize: 160 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n");
            // What stands before and after must not be taken for it.
            let smaps = format!(
                "1-2 rw-p 0 00:00 0\nAnonymous: 0 kB\n{mapping}3-4 rw-p 0 00:00 0\nAnonymous: 0 kB\n"
            );
            let expected = if given_back { vec![(0x7f00, 0x7fa0)] } else { vec![] };
            assert_eq!(unchanged(&smaps), expected, "{line}");
        }
    }

    #[test]
    fn the_program_goes_on_with_less_resident_code() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
            line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        settle().unwrap();
        assert!(resident() < before, "{before} kB before");
    }
}
