//! The crash proof: the power goes at every step of a workload.
//!
//! A workload of a seed (commits, deletes, facts, reads, checkpoints, exports,
//! restores) runs on a simulated disk and a simulated store, once without a
//! fault to count its steps, then once for each step with the power cut there, or an
//! error. What is recovered is compared with a model, and work goes on.
//! `KSI_CRASH_POINTS` runs more than the suite does, `KSI_CRASH_SEED` begins
//! at another seed.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use ksi_sdk::protocol::{Bytes, EventName, Refusal};

use super::{
    checkpointer::Checkpointer,
    options::Options,
    recovery::{Opening, Places, recover},
    report::Recovery,
    shared::{Log, Shared},
    thread::facts,
};
use crate::{
    disk::{
        File,
        sim::{Chance, Fault, SimDisk},
    },
    journal::{Journal, JournalError, PAYLOAD_MAX, SubmitError},
    overlay::merge,
    record::{Batch, Fact, Record, Seq},
    store::{Shelf, Store, export, memory::MemoryShelf, simulated::SimulatedShelf},
};

/// Points in the suite.
const POINTS: u64 = 50_000;

type Content = BTreeMap<Bytes, Bytes>;

/// The journal without a thread: what is in line is written when somebody waits for it.
struct Direct {
    journal: Journal,
    line: Vec<Bytes>,
    stopped: Option<Arc<JournalError>>,
}

impl Log for Direct {
    fn submit(&mut self, payload: Bytes) -> Result<Seq, SubmitError> {
        if let Some(why) = &self.stopped {
            return Err(SubmitError::Stopped(why.clone()));
        }
        if payload.len() > PAYLOAD_MAX {
            return Err(SubmitError::TooLarge { bytes: payload.len(), limit: PAYLOAD_MAX });
        }
        self.line.push(payload);
        Ok(self.next_seq() - 1)
    }

    fn next_seq(&self) -> Seq {
        self.journal.next_seq() + self.line.len() as u64
    }

    fn stopped(&self) -> Option<Arc<JournalError>> {
        self.stopped.clone()
    }

    fn hurry(&mut self, _: Seq, _: usize) {
        let line = std::mem::take(&mut self.line);
        if let Err(error) = self.journal.append(&line, 0) {
            self.stopped = Some(Arc::new(error));
        }
    }

    fn close(mut self: Box<Self>) -> Result<(), Arc<JournalError>> {
        self.hurry(Seq::MAX, 1);
        self.stopped.map_or(Ok(()), Err)
    }
}

/// The bytes of an export, as a file.
struct Image(Vec<u8>);

impl File for Image {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn image(content: &Content, seq: Seq) -> Image {
    let mut store = MemoryShelf::default().open("it").unwrap().store;
    let mut batch = Batch::new();
    for (key, value) in content {
        batch.put(key.clone(), value.clone());
    }
    store.apply(batch.changes()).unwrap();
    let mut file = Vec::new();
    export::write(&*store, seq, &mut file, &mut |_| {}).unwrap();
    Image(file)
}

fn options() -> Options {
    Options { segment_bytes: 2048, keep_facts_bytes: 3000, batch_keys: 3, ..Options::default() }
}

/// What was done, and what of it is certain.
struct Model {
    /// The content after each position.
    after: BTreeMap<Seq, Content>,
    facts: BTreeMap<Seq, Fact>,
    /// Everything up to here was told to be durable.
    durable: Seq,
    epoch: u64,
    /// The highest position that an export had which was restored.
    given: Seq,
}

struct Life {
    checkpointer: Checkpointer,
    shared: Arc<Shared>,
}

impl Life {
    fn content(&self) -> Content {
        let store = self.checkpointer.store().unwrap();
        let page = store.range(b"", None, usize::MAX, usize::MAX).unwrap();
        let all = merge(page, self.shared.state().overlay.range(b"", None, usize::MAX));
        all.into_iter().filter(|(key, _)| key.first() != Some(&crate::record::keys::META)).collect()
    }

    fn submit(&self, mut record: Record) -> Result<Seq, Refusal> {
        let payload = record.encode().into();
        self.shared.state().commit(&mut record, payload)
    }
}

fn open(disk: &SimDisk, shelf: &SimulatedShelf) -> Result<(Life, Recovery), Refusal> {
    let places = Places {
        journal: Arc::new(disk.clone()),
        exports: Arc::new(disk.clone()),
        shelf: Box::new(shelf.clone()),
    };
    let start = |journal, _| -> io::Result<Box<dyn Log>> {
        Ok(Box::new(Direct { journal, line: Vec::new(), stopped: None }))
    };
    let Opening { checkpointer, shared, recovery } = recover(places, options(), Box::new(start))?;
    Ok((Life { checkpointer, shared }, recovery))
}

fn batch(chance: &mut Chance, seq: Seq, content: &mut Content) -> Batch {
    let mut batch = Batch::new();
    let mut put = |batch: &mut Batch, key: Bytes, value: Bytes| {
        batch.put(key.clone(), value.clone());
        content.insert(key, value);
    };
    // So that the content after each position differs.
    put(&mut batch, "n".into(), seq.to_string().into());
    for _ in 0..chance.below(4) {
        let key = Bytes::from(format!("k{}", chance.below(6)));
        let length = if chance.below(8) == 0 { 700 } else { chance.below(40) as usize };
        put(&mut batch, key, vec![chance.below(256) as u8; length].into());
    }
    if chance.below(3) == 0 {
        let key = Bytes::from(format!("k{}", chance.below(6)));
        batch.delete(key.clone());
        content.remove(&key);
    }
    batch
}

/// Runs a workload until its end, or until something fails.
fn work(life: &mut Life, model: &mut Model, chance: &mut Chance, steps: u64) -> Result<(), Refusal> {
    let mut content = life.content();
    let mut seq = model.durable;
    for _ in 0..steps {
        match chance.below(24) {
            0..=9 => {
                let mut next = content.clone();
                let batch = batch(chance, seq + 1, &mut next);
                seq = life.submit(Record::Changes(batch))?;
                content = next;
                model.after.insert(seq, content.clone());
            }
            10..=12 => {
                let fact = Fact {
                    at_ms: seq,
                    event: EventName::parse("a:b").unwrap(),
                    origin: "test".into(),
                    correlation_id: None,
                    tenant: None,
                    data: vec![1; chance.below(90) as usize].into(),
                };
                seq = life.submit(Record::Fact(fact.clone()))?;
                model.facts.insert(seq, fact);
            }
            13..=17 => {
                life.shared.wait_synced(seq)?;
                model.durable = seq;
            }
            18..=20 => {
                let report = life.checkpointer.checkpoint(&mut |_| {})?;
                assert_eq!(report.seq, seq);
                model.durable = seq;
            }
            21 => {
                life.checkpointer.checkpoint(&mut |_| {})?;
                model.durable = seq;
                life.checkpointer.export_own(&mut |_| {})?;
            }
            22 if chance.below(3) == 0 => {
                let past = chance.below(model.after.len() as u64) as usize;
                let past = model.after.values().nth(past).unwrap().clone();
                model.after.insert(seq + 1, past.clone());
                let given = chance.below(2 * seq + 9);
                let (_, keys, position) =
                    life.checkpointer.restore_from("it", &image(&past, given), model.epoch)?;
                model.given = model.given.max(given);
                assert_eq!((keys, position), (past.len() as u64, seq + 1));
                (content, seq) = (past, position);
                model.durable = seq;
            }
            _ => assert_eq!(life.content(), content),
        }
    }
    Ok(())
}

/// Compares what was recovered with the model. `exact` where the last opening was the only one since the crash.
fn check(life: &Life, recovery: &Recovery, model: &mut Model, exact: bool, lost: bool) {
    assert!(recovery.last_seq >= model.durable, "{} of {} were durable", recovery.last_seq, model.durable);
    assert!(recovery.epoch > model.epoch);
    assert!(
        recovery.notes.iter().all(|note| note.starts_with("finished the restore")),
        "{:?}",
        recovery.notes
    );
    assert!(recovery.rebuilt.is_none() || lost, "{:?}", recovery.rebuilt);
    assert_eq!(recovery.lost, None);
    let synced = life.shared.archive.synced();
    assert!(synced > model.given, "{} was given out elsewhere, and now {synced}", model.given);
    assert_eq!(life.shared.archive.verify(&mut || {}).unwrap().damage, []);
    let content = life.content();
    let at = |seq: Seq| model.after.range(..=seq).next_back().map(|(seq, content)| (*seq, content));
    let (certain, _) = at(model.durable).unwrap();
    if exact {
        assert_eq!(&content, at(recovery.last_seq).unwrap().1);
    } else {
        assert!(model.after.range(certain..).any(|(_, then)| *then == content), "no state that ever was");
    }
    let page = facts(&life.shared.archive, 1, usize::MAX).unwrap();
    assert!(page.end);
    let kept: BTreeMap<_, _> = page.facts.into_iter().collect();
    assert!(kept.iter().all(|(seq, fact)| model.facts.get(seq) == Some(fact)), "a fact that never was");
    let lost = model
        .facts
        .range(page.first_kept..)
        .find(|(seq, _)| **seq <= model.durable && !kept.contains_key(seq));
    assert_eq!(lost, None);
    *model = Model {
        durable: life.shared.archive.synced(),
        after: BTreeMap::from([(life.shared.archive.synced(), content)]),
        facts: kept,
        epoch: recovery.epoch,
        given: model.given,
    };
}

/// Steps of the first workload of a seed.
const WORK: u64 = 40;

/// What a shelf asks at each step: whether the disk goes along.
fn step(disk: &SimDisk) -> Arc<dyn Fn() -> io::Result<()> + Send + Sync> {
    let disk = disk.clone();
    Arc::new(move || disk.tick())
}

/// One workload with a fault at a step, and what comes after. Steps that the workload took.
fn point(seed: u64, fault: Option<(u64, Fault)>) -> u64 {
    let disk = SimDisk::default();
    let mut shelf = SimulatedShelf::new(step(&disk));
    let mut chance = Chance::new(seed);
    // What comes after the fault differs from point to point.
    let mut after = Chance::new(seed ^ fault.map_or(0, |(step, _)| step << 32));
    let mut model = Model {
        after: BTreeMap::from([(0, Content::new())]),
        facts: BTreeMap::new(),
        durable: 0,
        epoch: 0,
        given: 0,
    };
    if let Some((step, fault)) = fault {
        disk.fail_at(step, fault);
    }
    let first = open(&disk, &shelf).and_then(|(mut life, recovery)| {
        check(&life, &recovery, &mut model, true, false);
        work(&mut life, &mut model, &mut chance, WORK)
    });
    let steps = disk.steps();
    assert!(fault.is_some() || first.is_ok(), "{first:?}");
    let mut exact = model.durable > 0;
    for _ in 0..2 {
        if after.below(4) == 0 {
            disk.kill();
        } else {
            disk.power_cycle(after.below(u64::MAX));
            let mut random = Chance::new(after.below(u64::MAX));
            shelf = shelf.crash(|| random.below(u64::MAX), step(&disk));
        }
        // Sometimes the recovery does not get to its end either.
        if after.below(2) == 0 {
            disk.fail_at(1 + after.below(20), Fault::Power);
            if open(&disk, &shelf).is_err() {
                exact = false;
                continue;
            }
            exact = false;
            disk.kill();
        }
    }
    disk.kill();
    // Now and then the store is lost too; export and journal have it all.
    let lost = after.below(8) == 0;
    if lost {
        shelf.put_aside(super::checkpointer::STORE).expect("it can be moved");
    }
    let (mut life, recovery) = open(&disk, &shelf).expect("it opens without faults");
    check(&life, &recovery, &mut model, exact, lost);
    work(&mut life, &mut model, &mut after, 6).expect("it goes on");
    let content = life.content();
    let seq = life.shared.state().overlay.seq();
    life.shared.wait_synced(seq).expect("it goes on");
    drop(life);
    disk.kill();
    let (life, _) = open(&disk, &shelf).expect("it opens again");
    assert_eq!(life.content(), content);
    steps
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn the_power_may_go_at_any_step() {
    let points = number("KSI_CRASH_POINTS", POINTS);
    let mut seed = number("KSI_CRASH_SEED", 1);
    let now = Arc::new(Mutex::new(String::new()));
    struct Tell(Arc<Mutex<String>>);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("the point that failed: {}", self.0.lock().unwrap());
            }
        }
    }
    let _tell = Tell(now.clone());
    let mut done = 0;
    while done < points {
        *now.lock().unwrap() = format!("seed {seed} without a fault");
        let steps = point(seed, None);
        for step in 1..=steps {
            let fault = match (seed + step) % 6 {
                0 => Fault::Io,
                1 => Fault::Full,
                _ => Fault::Power,
            };
            *now.lock().unwrap() = format!("KSI_CRASH_SEED={seed}, step {step}, {fault:?}");
            point(seed, Some((step, fault)));
            done += 1;
        }
        seed += 1;
    }
}

/// A life that ends with a checkpoint, the loss of all files of the journal, and an opening with the power
/// cut at a step. Steps that the opening took.
fn without_journal(seed: u64, cut: Option<u64>) -> u64 {
    let disk = SimDisk::default();
    let mut shelf = SimulatedShelf::new(step(&disk));
    let mut chance = Chance::new(seed);
    let mut model = Model {
        // The record of the start is the first.
        after: BTreeMap::from([(1, Content::new())]),
        facts: BTreeMap::new(),
        durable: 1,
        epoch: 1,
        given: 0,
    };
    let (mut life, _) = open(&disk, &shelf).unwrap();
    work(&mut life, &mut model, &mut chance, WORK).unwrap();
    let covered = life.checkpointer.checkpoint(&mut |_| {}).unwrap().seq;
    let content = life.content();
    drop(life);
    disk.kill();
    for name in crate::disk::Disk::list(&disk).unwrap().iter().filter(|name| name.ends_with(".journal")) {
        crate::disk::Disk::remove(&disk, name).unwrap();
    }
    crate::disk::Disk::sync(&disk).unwrap();
    disk.kill();
    if let Some(cut) = cut {
        disk.fail_at(cut, Fault::Power);
    }
    let first = open(&disk, &shelf);
    let steps = disk.steps();
    if let Ok((life, recovery)) = &first {
        assert_eq!(recovery.lost, Some((1, covered)));
        assert_eq!(life.content(), content);
    }
    drop(first);
    disk.power_cycle(chance.below(u64::MAX));
    let mut random = Chance::new(chance.below(u64::MAX));
    shelf = shelf.crash(|| random.below(u64::MAX), step(&disk));
    for lost in [false, true] {
        if lost {
            // Export and journal have it all, also of the journal that is no more.
            shelf.put_aside(super::checkpointer::STORE).unwrap();
        }
        let (life, recovery) = open(&disk, &shelf).unwrap();
        assert_eq!(life.content(), content, "{recovery:?}");
        assert!(life.shared.archive.synced() > covered, "{recovery:?}");
        assert_eq!(life.shared.archive.verify(&mut || {}).unwrap().damage, []);
        drop(life);
        disk.kill();
    }
    steps
}

#[test]
fn a_journal_that_is_lost_takes_no_position_with_it_wherever_the_power_goes() {
    for seed in 1..=40 {
        for cut in 1..=without_journal(seed, None) {
            without_journal(seed, Some(cut));
        }
    }
}

#[test]
fn all_that_takes_long_serves_who_reads_meanwhile() {
    let disk = SimDisk::default();
    let shelf = SimulatedShelf::new(Arc::new(|| Ok(())));
    let (mut life, _) = open(&disk, &shelf).unwrap();
    for number in 0..2_000_u64 {
        let mut batch = Batch::new();
        batch.put(number.to_be_bytes().to_vec(), "x");
        life.submit(Record::Changes(batch)).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export.ksi");
    // So that what the others call is not what this does.
    life.checkpointer.checkpoint(&mut |_| {}).unwrap();
    let served = Cell::new(0);
    let mut between = |store: &dyn Store| {
        assert_eq!(store.get(&7_u64.to_be_bytes()).unwrap().unwrap(), "x");
        served.set(served.get() + 1);
    };
    let checkpointer = &mut life.checkpointer;
    let segments = checkpointer.shared.archive.stat().segments.len();
    assert!(segments > 0);
    // The simulated store is verified in one step; its export has 4 pages.
    checkpointer.export(&file, &mut between).unwrap();
    assert_eq!(served.take(), 4);
    checkpointer.export_own(&mut between).unwrap();
    assert_eq!(served.take(), 1 + 4);
    checkpointer.verify(&mut between).unwrap();
    assert_eq!(served.take(), segments + 1);
}
