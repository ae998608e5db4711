//! The power goes, or the disk fails, at every step of a random workload.

use super::*;
use crate::disk::sim::Fault;

const SEGMENT: u64 = 5000;

/// What has to be there.
#[derive(Default)]
struct Model {
    /// Payloads by position, from 1 on; acknowledged ones first.
    written: Vec<Bytes>,
    acked: usize,
    /// What was retired at most: everything before.
    retired: Seq,
}

impl Model {
    /// Works on an open journal until it fails; whether it did not.
    fn work(&mut self, journal: &mut Journal, chance: &mut Chance, actions: u64) -> bool {
        for _ in 0..actions {
            let done = match chance.below(10) {
                0 => {
                    let before = chance.below(self.acked as u64 + 2);
                    self.retired = self.retired.max(before);
                    journal.archive().retire(before).is_ok()
                }
                1..3 => self.prepare(journal),
                _ => {
                    let count = 1 + chance.below(5);
                    let below = [30, 900, 30, 900, 7000][usize::try_from(chance.below(5)).unwrap()];
                    self.append(journal, &payloads(chance, count, below))
                }
            };
            if !done {
                return false;
            }
        }
        true
    }

    fn append(&mut self, journal: &mut Journal, payloads: &[Bytes]) -> bool {
        assert_eq!(journal.next_seq() - 1, self.written.len() as Seq);
        self.written.extend_from_slice(payloads);
        let done = journal.append(payloads, NOW);
        // Part of a long batch may have been acknowledged.
        self.acked = usize::try_from(journal.archive().synced()).unwrap();
        match done {
            Ok(last) => {
                assert_eq!(last, self.written.len() as Seq);
                true
            }
            Err(_) => {
                let again = journal.append(&[Bytes::from_static(b"again")], NOW);
                assert!(matches!(again, Err(JournalError::Stopped(_))), "written after an error");
                false
            }
        }
    }

    fn prepare(&self, journal: &mut Journal) -> bool {
        let Some(preparation) = journal.preparation() else { return true };
        let index = preparation.head.index;
        let spare = preparation.run().ok();
        let done = spare.is_some();
        journal.prepared(index, spare);
        done
    }

    /// Compares an open journal with what has to be there, and takes over what
    /// it has.
    fn check(&mut self, journal: &Journal, opened: &Opened) {
        assert_eq!(opened.damage, [], "what was torn is taken for damage");
        let (records, damage) = all(&journal.archive());
        assert_eq!(damage, []);
        let first = records.first().map_or(journal.next_seq(), |(seq, _)| *seq);
        assert!(
            first <= self.retired.max(1),
            "{first} is the first, only before {} was retired",
            self.retired
        );
        for (at, (seq, payload)) in records.iter().enumerate() {
            assert_eq!(*seq, first + at as Seq, "a hole");
            assert_eq!(*payload, self.written[usize::try_from(seq - 1).unwrap()], "record {seq} is another");
        }
        let last = journal.next_seq() - 1;
        assert_eq!(last, first + records.len() as Seq - 1);
        assert!(last >= self.acked as Seq, "{} were acknowledged, {last} are there", self.acked);
        self.acked = usize::try_from(last).unwrap();
        self.written.truncate(self.acked);
        let report = journal.archive().verify(&mut || {}).unwrap();
        assert_eq!((report.damage, report.records), (vec![], records.len() as u64));
    }
}

/// One life: a workload with a fault at a step, perhaps another fault during
/// the recovery, then a life without. The steps of the first part.
fn live(seed: u64, fault: Option<(u64, Fault)>, again: Option<u64>) -> u64 {
    let disk = SimDisk::default();
    let mut chance = Chance::new(seed);
    let mut model = Model::default();
    if let Some((step, fault)) = fault {
        disk.fail_at(step, fault);
    }
    if let Ok((mut journal, _)) = open_with(&disk, SEGMENT) {
        model.work(&mut journal, &mut chance, 30);
    }
    let steps = disk.steps();
    // A process that is killed, or lives on after an error, finds the system's cache.
    let crash = |disk: &SimDisk, chance: &mut Chance| match chance.below(3) {
        0 => disk.kill(),
        _ => disk.power_cycle(chance.below(u64::MAX)),
    };
    crash(&disk, &mut chance);
    if let Some(step) = again {
        disk.fail_at(step, fault.map_or(Fault::Power, |(_, fault)| fault));
        drop(open_with(&disk, SEGMENT));
        crash(&disk, &mut chance);
    }
    // Whatever was read may be told: it must survive a loss of power from then on.
    let (mut journal, opened) = open_with(&disk, SEGMENT).unwrap();
    model.check(&journal, &opened);
    if chance.below(2) == 0 {
        let more = payloads(&mut chance, 3, 900);
        assert!(model.append(&mut journal, &more));
    }
    drop(journal);
    disk.power_cycle(chance.below(u64::MAX) / 5 * 5);
    let (mut journal, opened) = open_with(&disk, SEGMENT).unwrap();
    model.check(&journal, &opened);
    assert!(model.work(&mut journal, &mut chance, 15));
    drop(journal);
    disk.power_cycle(chance.below(u64::MAX));
    let (journal, opened) = open_with(&disk, SEGMENT).unwrap();
    model.check(&journal, &opened);
    steps
}

/// Every step of some seeds with one kind of fault; how many lives.
fn every_step(fault: Fault, seeds: std::ops::Range<u64>) -> u64 {
    let mut lives = 0;
    for seed in seeds {
        let steps = live(seed, None, None);
        for step in 1..=steps {
            live(seed, Some((step, fault)), None);
            live(seed, Some((step, fault)), Some(1 + (seed + step) % 6));
            lives += 2;
        }
    }
    lives
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_at_any_step() {
    assert!(every_step(Fault::Power, 0..12) > 1500);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_disk_fails_at_any_step() {
    assert!(every_step(Fault::Io, 100..104) > 500);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_disk_is_full_at_any_step() {
    assert!(every_step(Fault::Full, 200..204) > 500);
}

#[test]
fn the_same_seed_gives_the_same_life() {
    let steps: Vec<_> = (0..5).map(|seed| live(seed, None, None)).collect();
    assert_eq!(steps, (0..5).map(|seed| live(seed, None, None)).collect::<Vec<_>>());
}
