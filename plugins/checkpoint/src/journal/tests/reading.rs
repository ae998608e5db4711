//! Reading, retiring and locking.

use super::*;
use crate::disk::{Directory, Disk};

const SEGMENT: u64 = 40_000;

/// Journal of some segments with numbered records.
fn numbered(disk: &SimDisk, count: u64) -> Journal {
    let (mut journal, _) = open_with(disk, SEGMENT).unwrap();
    for number in 1..=count {
        let payload = Bytes::from(format!("{number:0>300}"));
        assert_eq!(journal.append(&[payload], NOW).unwrap(), number);
    }
    journal
}

#[test]
fn reading_begins_at_any_position_and_goes_on_with_what_is_written_meanwhile() {
    let disk = SimDisk::default();
    let mut journal = numbered(&disk, 400);
    let archive = journal.archive();
    assert!(archive.stat().segments.len() > 3);
    for from in [0, 1, 2, 99, 100, 101, 250, 399, 400] {
        let mut records = archive.read(from);
        for number in from.max(1)..=400 {
            let (seq, payload) = records.next().unwrap().unwrap();
            assert_eq!((seq, &payload[..]), (number, format!("{number:0>300}").as_bytes()));
        }
        assert!(records.next().is_none());
    }
    let mut ahead = archive.read(401);
    assert!(ahead.next().is_none());
    for number in 401..=600 {
        journal.append(&[Bytes::from(vec![b'x'; 200])], NOW).unwrap();
        assert_eq!(ahead.next().unwrap().unwrap().0, number);
        assert!(ahead.next().is_none());
    }
}

#[test]
fn retiring_keeps_the_file_before_and_all_after_it() {
    let disk = SimDisk::default();
    let journal = numbered(&disk, 500);
    let archive = journal.archive();
    let segments = archive.stat().segments;
    let before = segments[3].first + 1;
    let mut slow = archive.read(1);
    assert_eq!(slow.next().unwrap().unwrap().0, 1);
    let retired = archive.retire(before).unwrap();
    assert_eq!((retired.segments, retired.bytes), (2, 2 * SEGMENT));
    assert_eq!(archive.stat().first, segments[2].first);
    assert_eq!(archive.retire(before).unwrap(), Retired::default());
    let rest = all(&archive);
    assert_eq!(
        (rest.0.first().unwrap().0, rest.0.len() as u64),
        (segments[2].first, 501 - segments[2].first)
    );
    assert_eq!(rest.1, []);
    // Who reads an old file has it open; then it goes on with what is kept.
    let seqs: Vec<_> = slow.map(|item| item.unwrap().0).collect();
    let expected: Vec<_> = (2..segments[1].first).chain(segments[2].first..=500).collect();
    assert_eq!(seqs, expected);
    drop(journal);
    drop(archive);
    let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
    assert_eq!((opened.first, opened.last), (segments[2].first, 500));
    assert_eq!(journal.archive().verify(&mut || {}).unwrap().damage, []);
}

#[test]
fn what_was_checkpointed_is_not_read_at_the_opening_but_can_be_read_and_verified() {
    let disk = SimDisk::default();
    let journal = numbered(&disk, 500);
    let segments = journal.archive().stat().segments;
    let head = journal.archive().verify(&mut || {}).unwrap().head;
    drop(journal);
    let check_from = segments[2].first;
    let options = Options { segment_bytes: SEGMENT, check_from, ..Options::default() };
    let (journal, opened) = Journal::open(Arc::new(disk.clone()), options.clone()).unwrap();
    assert_eq!((opened.first, opened.last), (1, 500));
    assert_eq!(all(&journal.archive()).0.len(), 500);
    let report = journal.archive().verify(&mut || {}).unwrap();
    assert_eq!((report.damage, report.records, report.head), (vec![], 500, head));
    let kinds: Vec<_> = journal.archive().stat().segments.iter().map(|segment| segment.kinds).collect();
    let zero = format::kind(b"0");
    assert!(kinds.iter().all(|kinds| *kinds == zero), "{kinds:?}");
    drop(journal);
    let mut bytes = disk.bytes(&segments[0].name);
    bytes[5000] ^= 1;
    disk.overwrite(&segments[0].name, bytes);
    let (journal, opened) = Journal::open(Arc::new(disk), options).unwrap();
    assert_eq!(opened.damage, []);
    assert_eq!(journal.archive().verify(&mut || {}).unwrap().damage.len(), 1);
    let (records, damage) = all(&journal.archive());
    assert_eq!((records.len(), damage.len()), (499, 1));
}

#[test]
fn a_journal_that_is_in_use_is_refused_by_its_place_until_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk: Arc<dyn Disk> = Arc::new(Directory::new(dir.path()).unwrap());
        let lock_wait = Duration::ZERO;
        Journal::open(disk, Options { segment_bytes: SEGMENT, lock_wait, ..Options::default() })
    };
    let (journal, _) = open().unwrap();
    let refused = open().map(|_| ()).unwrap_err();
    assert!(matches!(refused, JournalError::Locked { .. }));
    let text = refused.to_string();
    assert!(text.contains("in use by this process") && text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(refused.refusal().hint.contains("stop the other daemon"));
    let archive = journal.archive();
    drop(journal);
    assert!(open().is_err(), "who reads still needs the files");
    std::fs::write(dir.path().join("lock"), "4194999").unwrap();
    assert!(open().map(|_| ()).unwrap_err().to_string().contains("in use by process 4194999"));
    drop(archive);
    assert!(open().is_ok());
}

#[test]
fn a_real_directory_keeps_records_over_restarts_and_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("a/b");
    let mut written = Vec::new();
    let mut chance = Chance::new(3);
    for _ in 0..4 {
        let disk = Arc::new(Directory::new(&place).unwrap());
        let (mut journal, opened) =
            Journal::open(disk, Options { segment_bytes: SEGMENT, ..Options::default() }).unwrap();
        assert_eq!((opened.last, opened.torn_bytes), (written.len() as Seq, 0));
        assert_eq!(opened.damage, []);
        for _ in 0..10 {
            let batch = payloads(&mut chance, 5, 3000);
            journal.append(&batch, NOW).unwrap();
            written.extend(batch);
        }
        let read: Vec<_> = journal.archive().read(1).map(|item| item.unwrap().1).collect();
        assert_eq!(read, written);
        assert_eq!(journal.archive().verify(&mut || {}).unwrap().damage, []);
    }
    for entry in std::fs::read_dir(&place).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn positions_that_are_skipped_are_no_hole_in_the_chain() {
    for before in [0, 1, 40] {
        let disk = SimDisk::default();
        let (mut journal, _) = open_with(&disk, 2000).unwrap();
        let mut chance = Chance::new(before);
        let mut model = Vec::new();
        let mut write = |journal: &mut Journal, count| {
            for payload in payloads(&mut chance, count, 90) {
                model.push((journal.next_seq(), payload.clone()));
                assert_eq!(journal.append(&[payload], NOW).unwrap(), model.last().unwrap().0);
            }
        };
        write(&mut journal, before);
        journal.skip_to(before);
        assert_eq!(journal.next_seq(), before + 1, "it is as far already");
        journal.skip_to(100);
        journal.skip_to(200);
        assert_eq!(journal.archive().synced(), before);
        write(&mut journal, 30);
        assert_eq!(journal.next_seq(), 230);
        drop(journal);
        // Read whole, and believed to be checkpointed.
        for check_from in [0, Seq::MAX] {
            disk.kill();
            let options = Options { segment_bytes: 2000, check_from, ..Options::default() };
            let (journal, opened) = Journal::open(Arc::new(disk.clone()), options).unwrap();
            assert_eq!((opened.last, opened.damage), (229, vec![]));
            let archive = journal.archive();
            assert_eq!(all(&archive), (model.clone(), vec![]));
            let report = archive.verify(&mut || {}).unwrap();
            assert_eq!((report.damage, report.records, report.last), (vec![], before + 30, 229));
            // Who stands where nothing is goes on where something is.
            for from in [before + 1, 150, 200] {
                assert_eq!(archive.read(from).next().unwrap().unwrap(), model[before as usize]);
            }
        }
        disk.kill();
        let (journal, _) = open_with(&disk, 2000).unwrap();
        let archive = journal.archive();
        // The newest file before is kept, as ever.
        archive.retire(200).unwrap();
        assert!(archive.stat().first <= 200);
        archive.retire(229).unwrap();
        assert!(archive.stat().first >= 200);
        assert_eq!(archive.read(1).next().unwrap().unwrap().0, archive.stat().first);
        assert_eq!(archive.verify(&mut || {}).unwrap().damage, vec![]);
    }
}
