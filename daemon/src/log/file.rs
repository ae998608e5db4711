//! A file of lines that is moved aside when it is full: `ksid.log` becomes
//! `ksid.log.1`, that one `ksid.log.2`, and the oldest goes.
//!
//! Writes whole lines and says how many it could not write. Knows no queue,
//! no thread and no format.
//!
//! # Invariants
//!
//! * The file exceeds its limit only where one line alone does.
//! * A line is never joined to a half one that a full disk left behind.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Pause between two attempts to open a file that cannot be opened.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The file, open or not.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    /// Older files to keep.
    keep: usize,
    open: Option<Open>,
    /// Why it could not be opened, and when that was.
    refused: Option<(Instant, ErrorKind, String)>,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// Devices and pipes are written, never moved.
    regular: bool,
    /// The last write ended inside a line.
    torn: bool,
}

/// What was not written, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: io::Error,
    /// Lines that are lost.
    pub(super) lines: u64,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, bytes_max: u64, keep: usize) -> Self {
        Self { path, bytes_max, keep, open: None, refused: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets the open file, so that the next write opens what lies at the
    /// path by then.
    pub(super) fn reopen(&mut self) {
        self.open = None;
        self.refused = None;
    }

    /// Appends whole lines, moving the file aside as often as needed. Without
    /// lines, only opens the file.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        let mut rest = lines;
        self.write_some(&mut rest).map_err(|error| Failure {
            error,
            lines: rest.iter().filter(|byte| **byte == b'\n').count() as u64,
        })
    }

    fn write_some(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        self.ensure_open()?;
        while !rest.is_empty() {
            let bytes_max = self.bytes_max;
            let open = self.ensure_open()?;
            let room = if open.regular { bytes_max.saturating_sub(open.size) } else { u64::MAX };
            match fitting(rest, room) {
                0 if open.size > 0 => self.rotate()?,
                // A line larger than the limit gets a file of its own.
                0 => open.append(rest, first_line(rest))?,
                fits => open.append(rest, fits)?,
            }
        }
        Ok(())
    }

    fn ensure_open(&mut self) -> io::Result<&mut Open> {
        // Taken out and put back, because a borrow in one arm would last for both.
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open_anew()?,
        };
        Ok(self.open.insert(open))
    }

    fn open_anew(&mut self) -> io::Result<Open> {
        if let Some((at, kind, text)) = &self.refused
            && at.elapsed() < REOPEN_PAUSE
        {
            return Err(io::Error::new(*kind, text.clone()));
        }
        let opened = open(&self.path);
        self.refused = opened.as_ref().err().map(|error| (Instant::now(), error.kind(), error.to_string()));
        opened
    }

    /// Moves every file one place on and starts a new one.
    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            let open = self.ensure_open()?;
            open.file.set_len(0)?;
            open.size = 0;
            return Ok(());
        }
        // More than are kept now lie there where fewer are kept than before.
        let mut surplus = self.keep;
        while remove(&self.numbered(surplus))? {
            surplus += 1;
        }
        for number in (1..self.keep).rev() {
            rename(&self.numbered(number), &self.numbered(number + 1))?;
        }
        rename(&self.path, &self.numbered(1))?;
        self.open = None;
        self.ensure_open()?;
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

impl Open {
    /// Appends the first `take` bytes of `rest` and moves `rest` on; on
    /// failure, by whole lines only.
    fn append(&mut self, rest: &mut &[u8], take: usize) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.size += 1;
            self.torn = false;
        }
        let lines = &rest[..take];
        let mut written = 0;
        let result = loop {
            if written == lines.len() {
                break Ok(());
            }
            match self.file.write(&lines[written..]) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.size += written as u64;
        self.torn = written > 0 && lines[written - 1] != b'\n';
        let done = if result.is_ok() { take } else { fitting(lines, written as u64) };
        *rest = &rest[done..];
        result
    }
}

fn open(path: &Path) -> io::Result<Open> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    Ok(Open { file, size: metadata.len(), regular: metadata.is_file(), torn: false })
}

/// How many bytes of whole lines fit.
fn fitting(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1)
}

/// Removes a file; `false` where there was none.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames a file that may be absent.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(dir: &Path) -> Vec<(String, u64)> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
        };
        let mut sizes: Vec<_> = fs::read_dir(dir).unwrap().map(entry).collect();
        sizes.sort();
        sizes
    }

    #[test]
    fn a_full_file_moves_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(dir.path().join("ksid.log"), 10, 2);
        for line in ["1234\n", "abcd\n", "efgh\n", "ijkl\n", "mnop\n", "qrst\n", "uvwx\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        let expected = [("ksid.log", 5), ("ksid.log.1", 10), ("ksid.log.2", 10)];
        assert_eq!(sizes(dir.path()), expected.map(|(name, size)| (name.to_owned(), size)));
        assert_eq!(fs::read_to_string(dir.path().join("ksid.log.2")).unwrap(), "efgh\nijkl\n");
    }

    #[test]
    fn a_batch_is_split_at_lines_and_never_inside_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        let mut log = LogFile::new(path.clone(), 12, 9);
        log.write(b"one\ntwo\nthree\na line longer than the limit\nfour\n").unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("ksid.log.3"), "one\ntwo\n");
        assert_eq!(read("ksid.log.2"), "three\n");
        assert_eq!(read("ksid.log.1"), "a line longer than the limit\n");
        assert_eq!(read("ksid.log"), "four\n");
    }

    #[test]
    fn keeping_fewer_files_removes_what_is_too_many() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=5 {
            fs::write(dir.path().join(format!("ksid.log.{number}")), "old\n").unwrap();
        }
        let mut log = LogFile::new(dir.path().join("ksid.log"), 4, 1);
        log.write(b"abc\ndef\n").unwrap();
        let names: Vec<_> = sizes(dir.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ksid.log", "ksid.log.1"]);
    }

    #[test]
    fn keeping_none_empties_the_file_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(dir.path().join("ksid.log"), 4, 0);
        log.write(b"abc\ndef\n").unwrap();
        assert_eq!(sizes(dir.path()), [("ksid.log".to_owned(), 4)]);
    }

    #[test]
    fn a_limit_counts_what_an_earlier_run_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        fs::write(&path, "1234567\n").unwrap();
        LogFile::new(path, 10, 1).write(b"abc\n").unwrap();
        assert_eq!(sizes(dir.path()), [("ksid.log".to_owned(), 4), ("ksid.log.1".to_owned(), 8)]);
    }

    #[test]
    fn a_full_disk_is_a_failure_with_the_number_of_lines() {
        let mut log = LogFile::new(PathBuf::from("/dev/full"), 4, 2);
        let failure = log.write(b"a\nb\nc\n").unwrap_err();
        assert_eq!(failure.error.raw_os_error(), Some(nix::libc::ENOSPC));
        assert_eq!(failure.lines, 3);
        assert!(Path::new("/dev/full").exists());
    }

    #[test]
    fn a_half_line_ends_before_the_next_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        let mut log = LogFile::new(path.clone(), 100, 1);
        log.write(b"whole\nha").unwrap();
        log.write(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nha\nnext\n");
    }

    #[test]
    fn a_new_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state/ksid.log");
        LogFile::new(path.clone(), 100, 1).write(b"x\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_moved_by_another_is_found_again_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        let mut log = LogFile::new(path.clone(), 100, 1);
        log.write(b"old\n").unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        log.reopen();
        log.write(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }
}
