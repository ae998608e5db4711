//! Recovery: from the files of a directory to a journal that can be written.
//!
//! Reads the segments in order, cuts off what a crash left half-written, puts
//! damaged files aside, and makes everything that it found durable.
//!
//! # Invariants
//!
//! - A damaged file is never written, only renamed and protected.
//! - What may have been written without having been synced, and the zeros
//!   behind it, is written once more before it is synced: after a failed sync
//!   the system may believe that its cache is on the disk.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use super::{
    Options, WRITE_MAX,
    error::JournalError,
    format::{self, Chain, FRAME, FRAMES, Frame, Head, Opening, SECTOR},
    report::{Damage, Opened},
    scan::{Expected, Hole, Scan, scan},
    segment::{self, Named, Preparation, Segment, Spare, UNFINISHED, damaged, read_padded},
};
use crate::{
    disk::{Disk, File},
    record::Seq,
};

/// What recovery hands to the writer.
pub(crate) struct Recovered {
    pub(crate) identity: [u8; 16],
    /// Segments with records, oldest first.
    pub(crate) segments: Vec<Segment>,
    /// Whether the last one is to be written on.
    pub(crate) active: bool,
    /// Index of the next segment to be made.
    pub(crate) next_index: u64,
    pub(crate) spare: Option<Spare>,
    pub(crate) next: Seq,
    pub(crate) chain: Chain,
    /// Names of the files that are set aside.
    pub(crate) aside: Vec<String>,
    pub(crate) opened: Opened,
}

/// A file, with as much as its beginning tells.
struct Found {
    index: u64,
    name: String,
    damaged: bool,
    file: Arc<dyn File>,
    len: u64,
    head: Option<Head>,
    /// Whether both copies of the head are whole.
    head_whole: bool,
    opening: Option<(Frame, Opening)>,
    /// Whether it has no record.
    empty: bool,
}

/// Recovers what is in a directory.
pub(crate) fn recover(disk: &Arc<dyn Disk>, options: &Options) -> Result<Recovered, JournalError> {
    let mut found = list(&**disk)?;
    let identity = found.iter().rev().find_map(|found| found.head).map(|head| head.identity);
    let identity = identity.unwrap_or_else(random);
    for found in &mut found {
        found.look(&identity)?;
    }
    let mut recovery = Recovery {
        disk: &**disk,
        identity,
        segments: Vec::new(),
        next: None,
        last: 0,
        opened: Opened::default(),
        active: false,
        next_index: found.last().map_or(1, |last| last.index + 1),
    };
    if let Some(unused) = found.pop_if(|last| last.empty && !last.damaged && last.is_whole()) {
        recovery.remove(&unused)?;
    }
    for at in 0..found.len() {
        let (current, later) = found.split_at_mut(at + 1);
        recovery.segment(&mut current[at], later, options)?;
    }
    // What was renamed or removed here, and what the last process may not have lived to sync.
    disk.sync().map_err(|error| JournalError::io("sync", &disk.place(), error))?;
    let next_index = recovery.next_index;
    let head = Head { index: next_index, size: segment::size(next_index, options.segment_bytes), identity };
    let next = recovery.next.map_or(recovery.last + 1, |(next, _)| next);
    let chain = recovery.next.map_or(head.origin(), |(_, chain)| chain);
    let Recovery { segments, mut opened, active, .. } = recovery;
    opened.first = segments.first().map_or(0, |segment| segment.first);
    opened.last = next - 1;
    let names = disk.list().map_err(|error| JournalError::io("list", &disk.place(), error))?;
    let aside = names.into_iter().filter(|name| segment::is_aside(name)).collect();
    let (spare, next_index) = match active {
        false => (Some(Preparation { disk: disk.clone(), head }.run()?), next_index + 1),
        true => (None, next_index),
    };
    Ok(Recovered { identity, segments, active, next_index, spare, next, chain, aside, opened })
}

/// The files of the journal in order. What was not finished is removed.
fn list(disk: &dyn Disk) -> Result<Vec<Found>, JournalError> {
    let names = disk.list().map_err(|error| JournalError::io("list", &disk.place(), error))?;
    let mut indexed = BTreeMap::new();
    for name in names {
        match Named::parse(&name) {
            Some(Named::Damaged(index)) => drop(indexed.insert(index, (name, true))),
            Some(Named::Sound(index)) => {
                indexed.entry(index).or_insert((name, false));
            }
            None if name == UNFINISHED => {
                disk.remove(&name).map_err(|error| JournalError::io("remove", &name, error))?;
            }
            None => {}
        }
    }
    let open = |(index, (name, damaged)): (u64, (String, bool))| {
        let io = |error| JournalError::io("open", &name, error);
        let file = disk.open(&name, !damaged).map_err(io)?;
        let len = file.length().map_err(io)?;
        let bytes = read_padded(&*file, &name, FRAMES as u64)?;
        let head = Head::decode(&bytes).filter(|(head, _)| head.index == index);
        let head_whole = head.is_some_and(|(_, whole)| whole);
        let head = head.map(|(head, _)| head);
        let (opening, empty) = (None, false);
        Ok(Found { index, damaged, file: Arc::from(file), len, head, head_whole, opening, empty, name })
    };
    indexed.into_iter().map(open).collect()
}

impl Found {
    /// Reads the opening.
    fn look(&mut self, identity: &[u8; 16]) -> Result<(), JournalError> {
        if self.head.is_none_or(|head| head.identity != *identity) {
            (self.head, self.head_whole) = (None, false);
        }
        let size = self.size();
        let bytes =
            read_padded(&*self.file, &self.name, size.min((FRAMES + Opening::FRAME + SECTOR) as u64))?;
        let head = self.head(identity);
        let opening = bytes.get(FRAMES..).and_then(|bytes| {
            let frame = format::frame(bytes, head.key()).filter(|frame| frame.opening)?;
            Opening::decode(&bytes[frame.payload.clone()]).map(|opening| (frame, opening))
        });
        self.empty = opening.is_none() && {
            let all = read_padded(&*self.file, &self.name, size)?;
            all.get(FRAMES..).is_none_or(format::is_zero)
        };
        self.opening = opening;
        Ok(())
    }

    /// The position after the last record before it, as its opening says.
    fn follows(&self) -> Option<Seq> {
        self.opening.as_ref().map(|(frame, opening)| opening.follows(frame.seq))
    }

    fn head(&self, identity: &[u8; 16]) -> Head {
        self.head.unwrap_or(Head { index: self.index, size: self.len, identity: *identity })
    }

    /// Whether head and length are as they were made.
    fn is_whole(&self) -> bool {
        self.head_whole && self.head.is_some_and(|head| head.size == self.len)
    }

    /// Bytes that it has or should have.
    fn size(&self) -> u64 {
        self.head.map_or(self.len, |head| head.size.max(self.len))
    }
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    identity: [u8; 16],
    segments: Vec<Segment>,
    /// What comes next, and the chain before it.
    next: Option<(Seq, Chain)>,
    last: Seq,
    opened: Opened,
    active: bool,
    next_index: u64,
}

impl Recovery<'_> {
    fn segment(&mut self, found: &mut Found, later: &[Found], options: &Options) -> Result<(), JournalError> {
        self.check_index(found);
        let follower = later.iter().find(|later| !later.empty);
        let end = follower.and_then(Found::follows);
        // What is missing may be in a file between.
        let until = end.filter(|_| follower.is_some_and(|later| later.index == found.index + 1));
        let head = found.head(&self.identity);
        if found.index == 1 {
            self.next = Some((1, head.origin()));
        }
        if let (Some((frame, opening)), Some(until)) = (&found.opening, until)
            && until <= options.check_from
            && !found.damaged
            && found.is_whole()
        {
            let kinds =
                follower.and_then(|later| later.opening.as_ref()).map_or(0, |(_, next)| next.kinds_before);
            self.next = None;
            self.last = until - 1;
            let segment = Segment {
                end: found.len,
                kinds,
                ..self.known(found, &head, frame.seq, until, opening.begun_ms)
            };
            self.segments.push(segment);
            return Ok(());
        }
        let bytes = read_padded(&*found.file, &found.name, found.size())?;
        let cut = found.len < found.size();
        let sealed = follower.is_some() || cut;
        let expected = Expected { key: head.key(), next: self.next, sealed, until };
        let Some(mut scan) = scan(&bytes, expected) else {
            return self.nothing_in(found, end, options);
        };
        add_holes(found, cut, until, &mut scan);
        let holes = std::mem::take(&mut scan.holes);
        let mut damage: Vec<Damage> = holes.into_iter().map(|hole| hole.of(&found.name)).collect();
        let is_damaged = found.damaged || !damage.is_empty();
        if is_damaged {
            self.put_aside(found, &mut damage)?;
        } else if follower.is_none() {
            self.opened.torn_bytes = scan.torn as u64;
            if scan.end == FRAMES {
                return self.remove(found);
            }
            repair(found, &bytes, &scan)?;
        }
        self.active = follower.is_none() && !is_damaged;
        self.next = Some((scan.next, scan.chain));
        self.last = scan.next.saturating_sub(1);
        self.opened.damage.extend(damage.iter().cloned());
        let begun_ms = scan.opening.map_or(0, |opening| opening.begun_ms);
        let known = self.known(found, &head, scan.first, scan.next, begun_ms);
        let (end, kinds, marks) = (scan.end as u64, scan.kinds, scan.marks);
        self.segments.push(Segment { end, kinds, marks, damage, ..known });
        Ok(())
    }

    fn known(&self, found: &Found, head: &Head, first: Seq, next: Seq, begun_ms: u64) -> Segment {
        Segment {
            index: found.index,
            name: found.name.clone(),
            file: found.file.clone(),
            size: head.size,
            key: head.key(),
            first,
            next,
            end: FRAMES as u64,
            kinds: 0,
            begun_ms,
            marks: Vec::new(),
            damage: Vec::new(),
        }
    }

    /// Reports files that are missing between others.
    fn check_index(&mut self, found: &Found) {
        let Some(before) = self.segments.last().map(|segment| segment.index) else { return };
        if found.index == before + 1 {
            return;
        }
        let from = self.next.take().map_or(self.last + 1, |(next, _)| next);
        let to = found.follows().unwrap_or(from).saturating_sub(1);
        if to >= from {
            let segment = super::segment::sound(before + 1);
            self.opened.damage.push(Damage { segment, from, to, offset: 0, what: "the file is missing" });
        }
    }

    /// A file without a record: not yet used, or emptied by damage.
    fn nothing_in(
        &mut self,
        found: &mut Found,
        until: Option<Seq>,
        options: &Options,
    ) -> Result<(), JournalError> {
        let from = self.next.map_or(self.last + 1, |(next, _)| next);
        // How many there were, if nothing tells: as many as fit.
        let lost = if found.is_whole() { 0 } else { options.segment_bytes / FRAME as u64 };
        let to = until.unwrap_or(from + lost).saturating_sub(1);
        if found.is_whole() && to < from {
            return Ok(());
        }
        let what = "there is nothing in the file";
        let mut damage = vec![Damage { segment: found.name.clone(), from, to, offset: 0, what }];
        self.put_aside(found, &mut damage)?;
        self.opened.damage.append(&mut damage);
        if to >= from {
            (self.next, self.last) = (None, to);
        }
        Ok(())
    }

    /// Removes a segment at the end that has no record. It is not used: that
    /// zeros are read does not mean that they are on the disk.
    fn remove(&mut self, found: &Found) -> Result<(), JournalError> {
        self.next_index = found.index;
        self.disk.remove(&found.name).map_err(|error| JournalError::io("remove", &found.name, error))
    }

    /// Keeps a damaged file from being written or deleted.
    fn put_aside(&self, found: &mut Found, damage: &mut [Damage]) -> Result<(), JournalError> {
        if !found.damaged {
            let name = damaged(found.index);
            let io = |error| JournalError::io("put aside", &name, error);
            self.disk.protect(&found.name).map_err(io)?;
            self.disk.rename(&found.name, &name).map_err(io)?;
            found.name = name;
        }
        damage.iter_mut().for_each(|damage| damage.segment.clone_from(&found.name));
        Ok(())
    }
}

/// Adds what is wrong with the file itself to what the scan of its frames found.
fn add_holes(found: &Found, cut: bool, until: Option<Seq>, scan: &mut Scan) {
    if !found.head_whole {
        let (from, what) = (scan.first, "the head of the file");
        scan.holes.push(Hole { from, to: from.saturating_sub(1), offset: 0, what });
    }
    if cut {
        // A file is as long as it was made before it has a name: no crash shortens it.
        let lost = if until.is_some() { 0 } else { (found.size() - found.len) / FRAME as u64 };
        let (from, what) = (scan.next, "the file is shorter than it was made");
        scan.holes.push(Hole { from, to: (from + lost).saturating_sub(1), offset: found.len, what });
        scan.next += lost;
    }
}

/// Cuts off what is torn, and makes durable what is there.
fn repair(found: &Found, bytes: &[u8], scan: &Scan) -> Result<(), JournalError> {
    let io = |doing| move |error| JournalError::io(doing, &found.name, error);
    // Zeros that were read may be only believed to be on the disk: as far as a write can have reached,
    // they are written too. Only the first write of a segment is longer than the limit.
    let reach = if scan.records == 0 { bytes.len() } else { (scan.end + WRITE_MAX).min(bytes.len()) };
    let mut written = bytes[scan.unproven..reach.max(scan.end + scan.torn)].to_vec();
    written[scan.end - scan.unproven..].fill(0);
    found.file.write_at(&written, scan.unproven as u64).map_err(io("repair"))?;
    found.file.sync().map_err(io("sync"))
}

/// An identity that no other journal has. The hasher's keys are random for
/// each process.
fn random() -> [u8; 16] {
    let mut identity = [0; 16];
    for (at, half) in identity.chunks_exact_mut(8).enumerate() {
        half.copy_from_slice(&RandomState::new().hash_one(at).to_le_bytes());
    }
    identity
}
