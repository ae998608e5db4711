//! The audit trail as a file that proves itself: records in a chain of digests,
//! and signed heads of the chain.
//!
//! An export is lines of JSON: where it begins, the records in order, each with
//! the chain's value after it, heads where they were signed, and its end. Who
//! has the public key can check it without the daemon.
//!
//! What this can show: a record that was changed, left out, put in or moved,
//! between two records or before a head; an export that is cut short; a head
//! that the key did not sign. What it cannot show: that nothing came after the
//! last head, and that whoever holds the secret key has told the truth.
//!
//! # Invariants
//!
//! * The bytes of a record are what the chain was made of; they are never
//!   written anew from what they mean.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Digest, Key, Unverified};

/// Version of the form of an export.
const VERSION: u32 = 1;
/// Longest line that is looked at.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// The chain's value after a record.
#[must_use]
pub fn link(before: Digest, seq: u64, record: &[u8]) -> Digest {
    Digest::of_parts(&[before.as_bytes(), &seq.to_le_bytes(), record])
}

/// The chain at one place, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last record that it covers.
    pub seq: u64,
    /// The chain's value after that record.
    pub chain: Digest,
    /// When it was signed, milliseconds since 1970.
    pub at_ms: u64,
    /// A minisign signature of [`Head::message`].
    pub signature: String,
}

impl Head {
    /// What is signed.
    #[must_use]
    pub fn message(seq: u64, chain: Digest, at_ms: u64) -> String {
        format!("head of a KSI audit trail\nseq {seq}\nchain {chain}\nat_ms {at_ms}\n")
    }

    /// Whether the holder of the key has signed it.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the signature.
    pub fn verify(&self, key: &Key) -> Result<(), Unverified> {
        key.verify(Self::message(self.seq, self.chain, self.at_ms).as_bytes(), &self.signature)
    }
}

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// The first one.
    Begin(Begin),
    /// A record.
    Entry(Entry),
    /// A head.
    Head(Head),
    /// The last one.
    End(End),
}

/// Where an export begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    version: u32,
    /// Position of the first record.
    pub first: u64,
    /// The chain's value before it.
    pub before: Digest,
    /// The key that the heads are signed with, one line.
    pub public_key: String,
    /// When it was written, milliseconds since 1970.
    pub at_ms: u64,
}

impl Begin {
    /// An export of the present form.
    #[must_use]
    pub fn new(first: u64, before: Digest, public_key: String, at_ms: u64) -> Self {
        Self { version: VERSION, first, before, public_key, at_ms }
    }
}

/// A record of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its position.
    pub seq: u64,
    /// The chain's value after it.
    pub chain: Digest,
    /// The record, byte for byte.
    pub record: Box<RawValue>,
}

/// Where an export ends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Position of the last record; one less than the first where there is
    /// none.
    pub last: u64,
    /// How many records there are.
    pub records: u64,
}

/// What a whole export proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Position of the first record.
    pub first_seq: u64,
    /// Position of the last record.
    pub last_seq: u64,
    /// How many there are.
    pub records: u64,
    /// Heads that were checked.
    pub heads: u64,
    /// The last record that a head covers; what comes after it is in the chain
    /// and not signed yet. 0 where no head is there.
    pub signed_seq: u64,
    /// The key that has signed.
    pub public_key: String,
    /// Whether that is the key that was asked for, and not only what the export
    /// says of itself.
    pub key_given: bool,
}

/// What is wrong with an export, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("line {line}{}: {what}", .seq.map(|seq| format!(", record {seq}")).unwrap_or_default())]
pub struct Flaw {
    /// Counted from 1.
    pub line: u64,
    /// The record, or the last one that a head covers, where it is known.
    pub seq: Option<u64>,
    /// A sentence.
    pub what: String,
}

/// Walks an export along, from its first line to its last.
///
/// # Errors
///
/// The first flaw.
pub fn verify(reader: impl BufRead, key: Option<&Key>) -> Result<Proof, Flaw> {
    let mut lines = Lines { reader, line: 0 };
    let Some(Line::Begin(begin)) = lines.next()? else {
        return Err(lines.flaw(None, "it does not begin as an export of an audit trail does"));
    };
    if begin.version != VERSION {
        let what = format!("it is of version {}, this KSI reads version {VERSION}", begin.version);
        return Err(lines.flaw(None, what));
    }
    if begin.first == 0 {
        return Err(lines.flaw(None, "its first record has no position: they are counted from 1"));
    }
    let own: Key = begin.public_key.parse().map_err(|error| lines.flaw(None, format!("its key: {error}")))?;
    if key.is_some_and(|key| *key != own) {
        return Err(lines.flaw(None, format!("it is signed with another key: {own}")));
    }
    let mut walk = Walk {
        next: begin.first,
        chain: begin.before,
        proof: Proof {
            first_seq: begin.first,
            last_seq: begin.first.saturating_sub(1),
            records: 0,
            heads: 0,
            signed_seq: 0,
            public_key: own.to_string(),
            key_given: key.is_some(),
        },
    };
    loop {
        match lines.next()? {
            Some(Line::Entry(entry)) => {
                walk.entry(&entry).map_err(|what| lines.flaw(Some(entry.seq), what))?
            }
            Some(Line::Head(head)) => {
                walk.head(&head, &own).map_err(|what| lines.flaw(Some(head.seq), what))?
            }
            Some(Line::End(end)) => {
                walk.end(&end).map_err(|what| lines.flaw(None, what))?;
                break;
            }
            Some(Line::Begin(_)) => return Err(lines.flaw(None, "it begins a second time")),
            None => return Err(lines.flaw(None, "it is cut short: its last line is missing")),
        }
    }
    match lines.next()? {
        None => Ok(walk.proof),
        Some(_) => Err(lines.flaw(None, "it goes on after its end")),
    }
}

/// How far the records were followed.
struct Walk {
    next: u64,
    chain: Digest,
    proof: Proof,
}

impl Walk {
    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        if entry.seq != self.next {
            return Err(format!("record {} is expected here", self.next));
        }
        let chain = link(self.chain, entry.seq, entry.record.get().as_bytes());
        if chain != entry.chain {
            return Err(format!(
                "it, or what was before it, was changed: the chain's value is {chain}, the export says {}",
                entry.chain
            ));
        }
        self.next = entry.seq.checked_add(1).ok_or("its position is absurd")?;
        self.chain = chain;
        self.proof.records += 1;
        self.proof.last_seq = entry.seq;
        Ok(())
    }

    fn head(&mut self, head: &Head, key: &Key) -> Result<(), String> {
        head.verify(key).map_err(|error| format!("the head is not to be believed: {error}"))?;
        if head.seq != self.proof.last_seq {
            return Err(format!("the head stands after record {}", self.proof.last_seq));
        }
        if head.chain != self.chain {
            return Err(format!(
                "the signed head says the chain's value was {}, and it is {}",
                head.chain, self.chain
            ));
        }
        self.proof.heads += 1;
        self.proof.signed_seq = head.seq;
        Ok(())
    }

    fn end(&self, end: &End) -> Result<(), String> {
        let Proof { last_seq, records, .. } = self.proof;
        match (end.last, end.records) == (last_seq, records) {
            true => Ok(()),
            false => Err(format!(
                "its end counts {} records up to {}, and there are {records} up to {last_seq}",
                end.records, end.last
            )),
        }
    }
}

/// Lines of bounded length.
struct Lines<R> {
    reader: R,
    line: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<Line>, Flaw> {
        self.line += 1;
        let mut line = Vec::new();
        let read: io::Result<usize> =
            (&mut self.reader).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(None),
            Ok(length) if length as u64 > LINE_BYTES_MAX => {
                return Err(self.flaw(None, "the line is absurdly long"));
            }
            Ok(_) => {}
            Err(error) => return Err(self.flaw(None, format!("it cannot be read: {error}"))),
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| self.flaw(None, format!("it is no line of an export: {error}")))
    }

    fn flaw(&self, seq: Option<u64>, what: impl Into<String>) -> Flaw {
        Flaw { line: self.line, seq, what: what.into() }
    }
}

#[cfg(test)]
mod tests;
