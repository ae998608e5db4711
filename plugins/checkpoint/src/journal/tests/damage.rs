//! Damage at every place of a file.

use super::*;
use crate::disk::Disk;

const SEGMENT: u64 = 7000;
const NAME: &str = "00000000000000000001.journal";
const ASIDE: &str = "00000000000000000001.damaged";

/// A journal of one segment, written in batches of different length; where
/// the frames of the records end.
fn written() -> (SimDisk, Vec<Bytes>, Vec<usize>) {
    let disk = SimDisk::default();
    let mut chance = Chance::new(7);
    let (mut journal, _) = open_with(&disk, SEGMENT).unwrap();
    let (mut kept, mut ends) = (Vec::new(), Vec::new());
    let mut end = FRAMES + Opening::FRAME;
    for batch in [1, 4, 1, 7, 1, 1, 12, 2, 9, 1, 3] {
        let payloads = payloads(&mut chance, batch, 60);
        journal.append(&payloads, NOW).unwrap();
        for payload in payloads {
            end += FRAME + payload.len();
            ends.push(end);
            kept.push(payload);
        }
    }
    assert!(kept.len() >= 40 && end < usize::try_from(SEGMENT).unwrap());
    drop(journal);
    disk.kill();
    (disk, kept, ends)
}

/// Checks that every record that is given is as it was written, and which
/// are not given.
fn missing(journal: &Journal, kept: &[Bytes]) -> Vec<Seq> {
    let (records, _) = all(&journal.archive());
    let mut missing: Vec<Seq> = (1..=kept.len() as Seq).collect();
    for (seq, payload) in records {
        assert_eq!(payload, kept[usize::try_from(seq - 1).unwrap()], "record {seq}");
        missing.retain(|other| *other != seq);
    }
    missing
}

#[test]
fn no_flipped_bit_goes_unnoticed_and_none_costs_another_record() {
    let (disk, kept, ends) = written();
    let whole = disk.bytes(NAME);
    for bit in 0..whole.len() * 8 {
        let disk = disk.copy();
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        disk.overwrite(NAME, flipped.clone());
        let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
        let hit = ends.iter().position(|end| bit / 8 < *end);
        let in_record = bit / 8 >= FRAMES + Opening::FRAME && hit.is_some();
        let lost: Vec<Seq> = if in_record { vec![hit.unwrap() as Seq + 1] } else { vec![] };
        assert_eq!(missing(&journal, &kept), lost, "bit {bit}");
        if hit.is_some() {
            // Never cut: the file is kept as it is, and nobody writes it.
            assert!(!opened.damage.is_empty(), "bit {bit}");
            assert_eq!(opened.torn_bytes, 0, "bit {bit}");
            assert!(disk.bytes(ASIDE) == flipped && disk.is_protected(ASIDE), "bit {bit}");
        } else {
            assert!(opened.torn_bytes > 0 || !opened.damage.is_empty(), "bit {bit}");
        }
        assert!(journal.next_seq() > kept.len() as Seq, "bit {bit}: a position may be used twice");
        let told =
            opened.damage.iter().any(|hole| lost.iter().all(|seq| (hole.from..=hole.to).contains(seq)));
        assert!(told || lost.is_empty(), "bit {bit}: {:?}", opened.damage);
    }
}

#[test]
fn no_truncation_goes_unnoticed_and_all_before_it_is_kept() {
    let (disk, kept, ends) = written();
    let whole = disk.bytes(NAME);
    for length in 0..whole.len() {
        let disk = disk.copy();
        disk.overwrite(NAME, whole[..length].to_vec());
        let (mut journal, opened) = open_with(&disk, SEGMENT).unwrap();
        let whole = ends.iter().filter(|end| **end <= length).count() as Seq;
        let lost: Vec<Seq> = (whole + 1..=kept.len() as Seq).collect();
        assert_eq!(missing(&journal, &kept), lost, "length {length}");
        assert!(!opened.damage.is_empty(), "length {length}");
        assert!(journal.next_seq() > kept.len() as Seq, "length {length}: a position may be used twice");
        let seq = journal.append(&[Bytes::from_static(b"after")], NOW).unwrap();
        let last = journal.archive().read(seq).next().unwrap().unwrap();
        assert_eq!(last, (seq, Bytes::from_static(b"after")), "length {length}");
    }
}

#[test]
fn a_write_that_was_cut_short_at_any_byte_is_torn_and_no_damage() {
    let (disk, kept, ends) = written();
    let whole = disk.bytes(NAME);
    // The last batch has three records.
    let acked = kept.len() - 3;
    for length in ends[acked - 1]..*ends.last().unwrap() {
        let disk = disk.copy();
        let mut cut = whole.clone();
        cut[length..].fill(0);
        disk.overwrite(NAME, cut);
        let (mut journal, opened) = open_with(&disk, SEGMENT).unwrap();
        assert_eq!(opened.damage, [], "length {length}");
        let complete = ends.iter().filter(|end| **end <= length).count() as Seq;
        assert_eq!(opened.last, complete, "length {length}");
        assert_eq!(opened.torn_bytes > 0, !ends.contains(&length), "length {length}");
        assert_eq!(journal.append(&[Bytes::from_static(b"after")], NOW).unwrap(), complete + 1);
        let report = journal.archive().verify(&mut || {}).unwrap();
        assert_eq!((report.damage, report.records), (vec![], complete + 1), "length {length}");
    }
}

#[test]
fn a_sector_of_zeros_among_what_was_synced_is_damage_and_not_torn() {
    let (disk, kept, ends) = written();
    let whole = disk.bytes(NAME);
    // The last write has three records; nothing but it may be torn.
    let last_write = ends[kept.len() - 4];
    for at in (0..last_write).step_by(format::SECTOR) {
        let disk = disk.copy();
        let hit = at..(at + format::SECTOR).min(last_write);
        let mut zeroed = whole.clone();
        zeroed[hit.clone()].fill(0);
        disk.overwrite(NAME, zeroed);
        let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
        assert_eq!(opened.torn_bytes, 0, "sector at {at}");
        assert!(!opened.damage.is_empty(), "sector at {at}");
        let begins = |index: usize| if index == 0 { FRAMES + Opening::FRAME } else { ends[index - 1] };
        let lost: Vec<Seq> = (0..kept.len())
            .filter(|index| begins(*index) < hit.end && ends[*index] > hit.start)
            .map(|index| index as Seq + 1)
            .collect();
        assert_eq!(missing(&journal, &kept), lost, "sector at {at}");
    }
}

#[test]
fn a_damaged_file_is_reported_at_every_open_and_kept_when_it_is_retired() {
    let (disk, _, ends) = written();
    let mut bytes = disk.bytes(NAME);
    bytes[ends[9] + 70] ^= 4;
    disk.overwrite(NAME, bytes);
    for _ in 0..3 {
        let (mut journal, opened) = open_with(&disk, SEGMENT).unwrap();
        let [hole] = &opened.damage[..] else { panic!("{:?}", opened.damage) };
        assert_eq!((hole.from, hole.to, hole.segment.as_str()), (11, 11, ASIDE));
        let report = journal.archive().verify(&mut || {}).unwrap();
        assert_eq!((report.damage[0].from, report.damage.len()), (11, 1));
        let (_, seen) = all(&journal.archive());
        assert_eq!(seen.iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>(), [(11, 11)]);
        journal.append(&[Bytes::from_static(b"on")], NOW).unwrap();
    }
    let (mut journal, _) = open_with(&disk, SEGMENT).unwrap();
    for _ in 0..3 {
        journal.append(&vec![Bytes::from(vec![1; 900]); 6], NOW).unwrap();
    }
    journal.archive().retire(journal.next_seq()).unwrap();
    drop(journal);
    assert!(disk.list().unwrap().contains(&"00000000000000000001.kept".to_owned()));
    let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
    assert_eq!(opened.damage, []);
    assert_eq!(journal.archive().verify(&mut || {}).unwrap().damage, []);
}

#[test]
fn a_file_that_is_missing_or_empty_is_reported_with_its_positions() {
    let disk = SimDisk::default();
    let (mut journal, _) = open_with(&disk, 4000).unwrap();
    for _ in 0..6 {
        journal.append(&vec![Bytes::from(vec![1; 700]); 3], NOW).unwrap();
    }
    let segments = journal.archive().stat().segments;
    let (first, last) = (segments[2].first, segments[2].last);
    drop(journal);
    for empty in [false, true] {
        let disk = disk.copy();
        match empty {
            false => disk.remove(&segments[2].name).unwrap(),
            true => disk.overwrite(&segments[2].name, vec![0; 4000]),
        }
        let (journal, opened) = open_with(&disk, 4000).unwrap();
        let holes: Vec<_> = opened.damage.iter().map(|hole| (hole.from, hole.to)).collect();
        assert_eq!(holes, [(first, last)], "{:?}", opened.damage);
        let (records, seen) = all(&journal.archive());
        assert_eq!(records.len() as u64, 18 - (last - first + 1));
        assert_eq!(seen.iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>(), [(first, last)]);
    }
}

#[test]
fn a_record_that_was_exchanged_with_right_checksums_breaks_the_chain() {
    let (disk, kept, ends) = written();
    let mut bytes = disk.bytes(NAME);
    let (head, _) = Head::decode(&bytes).unwrap();
    let length = kept[20].len();
    let mut forged = Vec::new();
    let mut writer = Writer { out: &mut forged, key: head.key(), synced: 0 };
    writer.record(21, &[0; 32], &vec![0xee; length]);
    bytes[ends[19]..ends[20]].copy_from_slice(&forged);
    disk.overwrite(NAME, bytes);
    let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
    assert_eq!(opened.damage.iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>(), [(21, 21)]);
    assert_eq!(journal.archive().verify(&mut || {}).unwrap().damage[0].from, 21);
}
