//! The file of signed heads: lines of JSON, the oldest first.
//!
//! # Failure
//!
//! A line that a crash has cut short is cut off when the file is opened; it was
//! never told. Any other line that makes no sense stays, and is told.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use ksi_sdk::trust::audit::Head;

/// The open file.
pub(super) struct Heads {
    path: PathBuf,
    file: File,
}

impl Heads {
    /// Opens it; one that is not there is empty.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = append_to(&path)?;
        let bytes = fs::read(&path)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
        Ok(Self { path, file })
    }

    /// Adds a head; it is on the disk when this returns.
    pub(super) fn append(&mut self, head: &Head) -> io::Result<()> {
        let mut line = serde_json::to_vec(head).map_err(io::Error::other)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    /// All heads; of a line that is none, what is wrong with it.
    pub(super) fn read(&self) -> io::Result<Vec<Result<Head, String>>> {
        let bytes = fs::read(&self.path)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate();
        let head = |(at, line): (usize, &[u8])| {
            serde_json::from_slice(line).map_err(|error| format!("line {} of the heads: {error}", at + 1))
        };
        Ok(lines.map(head).collect())
    }

    /// The last record that a head covers.
    pub(super) fn last_seq(&self) -> io::Result<u64> {
        Ok(self.read()?.iter().flatten().map(|head| head.seq).max().unwrap_or(0))
    }

    /// Lets go of the heads before a record. What makes no sense stays.
    pub(super) fn let_go(&mut self, first: u64) -> io::Result<()> {
        let bytes = fs::read(&self.path)?;
        let stays =
            |line: &&[u8]| serde_json::from_slice::<Head>(line).map_or(true, |head| head.seq >= first);
        let kept: Vec<u8> =
            bytes.split_inclusive(|byte| *byte == b'\n').filter(stays).flatten().copied().collect();
        if kept.len() == bytes.len() {
            return Ok(());
        }
        let part = self.path.with_extension("part");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(&kept)?;
        file.sync_all()?;
        fs::rename(&part, &self.path)?;
        self.file = append_to(&self.path)?;
        Ok(())
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
