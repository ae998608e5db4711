//! What the journal tells about itself.

use std::fmt;

use crate::record::Seq;

/// What was found at the opening.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Position of the oldest record that is kept; 0 where there is none.
    pub first: Seq,
    /// Position of the newest record. The next one gets `last + 1`, at least.
    pub last: Seq,
    /// Bytes of a write that a crash had cut short. They were never
    /// acknowledged, and are gone.
    pub torn_bytes: u64,
    /// Damage, oldest first: to be reported loudly. Empty in a healthy life.
    pub damage: Vec<Damage>,
}

/// Records that were acknowledged, or may have been, and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file, as it is named now. It is never written or deleted again.
    pub segment: String,
    /// First position that is lost.
    pub from: Seq,
    /// Last position that is lost; where that cannot be known, the highest
    /// that it can have been. Less than `from` where what is damaged lies between
    /// records and is none that is known.
    pub to: Seq,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: &'static str,
}

impl std::error::Error for Damage {}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, from, to, what, .. } = self;
        match to.checked_sub(*from) {
            None => write!(f, "what lies before record {from} of {segment} is damaged")?,
            Some(0) => write!(f, "record {from} of {segment} is damaged")?,
            Some(_) => write!(f, "records {from} to {to} of {segment} are damaged")?,
        }
        write!(f, " ({what}); the file is kept aside")
    }
}

/// The outcome of a walk over everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Position of the oldest record; 0 where there is none.
    pub first: Seq,
    /// Position of the newest record that was walked to.
    pub last: Seq,
    /// Records that are as they were written.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Files, without the one that is prepared.
    pub segments: usize,
    /// All damage, oldest first.
    pub damage: Vec<Damage>,
    /// The chain's value after the last record, hexadecimal: whoever keeps it
    /// elsewhere can tell later that nothing before was changed.
    pub head: String,
}

/// One file of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStat {
    /// Its name.
    pub name: String,
    /// Position of its first record.
    pub first: Seq,
    /// Position of its last synced record; `first - 1` where there is none.
    pub last: Seq,
    /// Bytes that are in use, without what is preallocated.
    pub bytes: u64,
    /// When its first record was written, milliseconds since 1970.
    pub begun_ms: u64,
    /// Which payloads are in it: bit `n` is set where one begins with byte `n`
    /// (modulo 64).
    pub kinds: u64,
    /// Whether it is damaged; such a file is never deleted.
    pub damaged: bool,
}

/// How large the journal is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Position of the oldest record; 0 where there is none.
    pub first: Seq,
    /// Position of the newest synced record.
    pub last: Seq,
    /// Bytes in use.
    pub bytes: u64,
    /// The files, oldest first.
    pub segments: Vec<SegmentStat>,
    /// Names of the files with damage, those of the journal and those that are no
    /// part of it any more. Nobody but an operator takes them away.
    pub aside: Vec<String>,
}

/// What was let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Files.
    pub segments: usize,
    /// Bytes of the disk, preallocated ones too.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_the_records_that_it_has_cost_and_none_that_there_are_not() {
        let told = |from, to| {
            Damage { segment: "7.journal".into(), from, to, offset: 0, what: "checksum" }.to_string()
        };
        let aside = "damaged (checksum); the file is kept aside";
        assert_eq!(told(5, 9), format!("records 5 to 9 of 7.journal are {aside}"));
        assert_eq!(told(5, 5), format!("record 5 of 7.journal is {aside}"));
        assert_eq!(told(5, 4), format!("what lies before record 5 of 7.journal is {aside}"));
    }
}
