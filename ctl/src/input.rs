//! What is read whole before it is sent: standard input, and files that the
//! command line names.
//!
//! All of it goes into one frame, so no more is read than a frame can hold: an
//! input without an end is refused, and does not fill the memory.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use ksi_protocol::limits::FRAME_BYTES_MAX;

use crate::error::{Failure, Result};

/// All of standard input.
///
/// # Errors
///
/// Refuses what is no text, and what no request could carry.
pub(crate) fn standard() -> Result<String> {
    text(io::stdin().lock(), "standard input")
}

/// All of a file.
///
/// # Errors
///
/// As [`standard`], and where it cannot be read.
pub(crate) fn file(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    text(File::open(path).map_err(|error| unreadable(&name, &error))?, &name)
}

fn text(source: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = source.take(FRAME_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(name, &error))?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(Failure::too_large(name));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{name} is not text in UTF-8")))
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use crate::exit::Exit;

    use super::*;

    #[test]
    fn an_input_without_an_end_is_refused() {
        for endless in [0, b'x'] {
            let failure = text(io::repeat(endless), "it").unwrap_err();
            assert_eq!((failure.exit, failure.code.as_str()), (Exit::Usage, "too_large"));
            assert!(failure.message.starts_with("it is longer") && !failure.hint.is_empty(), "{failure:?}");
        }
    }

    #[test]
    fn what_just_fits_is_read_whole() {
        let all = vec![b'x'; FRAME_BYTES_MAX];
        assert_eq!(text(all.as_slice(), "it").unwrap().len(), all.len());
        assert_eq!(text(&b"\xff"[..], "it").unwrap_err().exit, Exit::Usage);
        assert_eq!(file(Path::new("/nowhere")).unwrap_err().exit, Exit::Usage);
    }
}
