//! Writing the trail to a file that proves itself; `ksi_trust::audit` has its
//! form and reads it again.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::audit::Exported,
    trust::{
        Digest,
        audit::{Begin, End, Entry, Head, Line},
    },
};
use serde_json::value::RawValue;

use super::{Trail, View};
use crate::{
    disk::{Directory, Part},
    journal::JournalError,
};

/// Why an export is not written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("record {0} is no text of JSON")]
    Record(u64),
}

impl Trail {
    /// Writes everything up to now to a file that is not there yet, with a head
    /// after its last record.
    ///
    /// # Errors
    ///
    /// `conflict` where something has that path, `unavailable` where it cannot be
    /// written or the trail is damaged: an export that could not be verified is
    /// none.
    pub fn export(&self, path: &Path, now_ms: u64) -> Result<Exported, Refusal> {
        self.with(now_ms, |open, _| if open.unsigned > 0 { open.sign(now_ms) } else { Ok(()) })?;
        let view = self.view(now_ms)?;
        write(&view, path, now_ms).map_err(|error| {
            let (code, hint) = match &error {
                Error::Disk(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    (Code::Conflict, "an export never overwrites: another name")
                }
                Error::Disk(_) => {
                    (Code::Unavailable, "look at the disk: its space, and the rights of the directory")
                }
                Error::Journal(_) | Error::Record(_) => (
                    Code::Unavailable,
                    "`ksi audit verify` names what is damaged; what could not be verified is no export",
                ),
            };
            Refusal::new(code, format!("{}: {error}", path.display())).hint(hint)
        })
    }
}

fn write(view: &View, path: &Path, now_ms: u64) -> Result<Exported, Error> {
    if let Some(parent) = path.parent() {
        Directory::new(parent)?;
    }
    if path.symlink_metadata().is_ok() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
    }
    let part = Part::beside(path)?;
    let mut out = BufWriter::new(part.file());
    let mut heads: Vec<&Head> = view.heads.iter().flatten().collect();
    heads.sort_by_key(|head| head.seq);
    let mut heads = heads.into_iter().peekable();
    let mut records = view.archive.read(0);
    let (mut first, mut last, mut count) = (0, 0, 0);
    while let Some(read) = records.next() {
        let (seq, payload) = read?;
        if count == 0 {
            first = seq;
            let before = Digest::from(records.chain_before());
            line(&mut out, &Line::Begin(Begin::new(seq, before, view.key.clone(), now_ms)))?;
            while heads.next_if(|head| head.seq < seq).is_some() {}
        }
        let text = std::str::from_utf8(&payload).map_err(|_| Error::Record(seq))?.to_owned();
        let record = RawValue::from_string(text).map_err(|_| Error::Record(seq))?;
        line(&mut out, &Line::Entry(Entry { seq, chain: records.chain_after().into(), record }))?;
        while let Some(head) = heads.next_if(|head| head.seq <= seq) {
            line(&mut out, &Line::Head(head.clone()))?;
        }
        (last, count) = (seq, count + 1);
        // What comes meanwhile is for the next export: this one ends with a head.
        if heads.peek().is_none() {
            break;
        }
    }
    if count == 0 {
        let before = Digest::from(view.archive.origin());
        line(&mut out, &Line::Begin(Begin::new(1, before, view.key.clone(), now_ms)))?;
    }
    line(&mut out, &Line::End(End { last, records: count }))?;
    out.flush()?;
    drop(out);
    let bytes = part.file().metadata()?.len();
    // Not over what somebody else has put there meanwhile.
    part.place(path)?;
    let (path, public_key) = (path.display().to_string(), view.key.clone());
    Ok(Exported { path, records: count, first_seq: first, last_seq: last, bytes, public_key })
}

fn line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
