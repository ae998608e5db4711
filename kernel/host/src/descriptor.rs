//! Descriptors that another program has left open for this one, known by their
//! numbers.
#![expect(unsafe_code, reason = "a number is no descriptor to the language")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc};

/// First number that a copy may have: those below are for standard input, output
/// and error.
const FIRST: libc::c_int = 3;

/// A copy of a descriptor of this process, closed on exec. What stands behind the
/// number is the caller's matter; it may be anything, also nothing.
///
/// It asks for nothing that a container forbids, as `pidfd_getfd` is by Docker.
///
/// # Errors
///
/// Where nothing is open under the number, or no descriptor is left.
pub fn copy_of(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: three integers; the call only looks at the table of descriptors.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST) };
    let copy = Errno::result(copy)?;
    // SAFETY: it was made just now, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::{fd::AsRawFd as _, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn a_copy_leads_to_the_same_and_outlives_what_it_was_made_of() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let copy = copy_of(ours.as_raw_fd()).unwrap();
        drop(ours);
        UnixStream::from(copy).write_all(b"x").unwrap();
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
        assert!(copy_of(RawFd::MAX).is_err());
        assert!(copy_of(-1).is_err());
    }
}
