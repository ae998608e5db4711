//! The engine with its threads, on real files, and on a disk that fails.

mod damage;
mod ends;

use std::{
    collections::BTreeMap,
    fs,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake},
    time::{Duration, Instant},
};

use futures_util::future::{join_all, poll_immediate};
use ksi_sdk::protocol::EventName;
use tempfile::TempDir;

use super::{place::committer, recovery::Places, *};
use crate::{
    disk::sim::{Fault, SimDisk},
    record::Fact,
    store::simulated::SimulatedShelf,
    testing::{block_on, open_engine, wait_until},
};

fn small() -> Options {
    Options {
        segment_bytes: 64 << 10,
        checkpoint_bytes: 64 << 10,
        checkpoint_age: Duration::from_secs(600),
        keep_facts_bytes: 64 << 10,
        store_cache_bytes: 1 << 20,
        ..Options::default()
    }
}

/// Opens; waits for an engine that was dropped to let go.
fn open(dir: &TempDir, options: &Options) -> (Rc<Engine>, Recovery) {
    block_on(open_engine(dir.path(), options)).unwrap()
}

/// Closes in order, and lets go of the directory.
fn close(engine: Rc<Engine>) {
    block_on(engine.close()).unwrap();
    assert_eq!(Rc::strong_count(&engine), 1);
}

fn put(engine: &Engine, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Seq {
    let mut batch = Batch::new();
    batch.put(key, value);
    engine.commit(batch).unwrap()
}

fn get(engine: &Engine, key: &str) -> Option<Bytes> {
    block_on(engine.get(key.as_bytes())).unwrap()
}

fn fact(data: &'static str) -> Fact {
    let event = EventName::parse("agent:spawned").unwrap();
    Fact {
        at_ms: 1,
        event,
        origin: "plugin:agent".into(),
        correlation_id: None,
        tenant: None,
        data: data.into(),
    }
}

/// An engine on a simulated disk, with the journal's own thread.
fn on_sim(disk: &SimDisk) -> Result<(Rc<Engine>, Recovery), Refusal> {
    let places = Places {
        journal: Arc::new(disk.clone()),
        exports: Arc::new(disk.clone()),
        shelf: Box::new(SimulatedShelf::new(Arc::new(|| Ok(())))),
    };
    block_on(Engine::start(small(), move || {
        Ok(((), recovery::recover(places, small(), Box::new(committer))?))
    }))
}

#[test]
fn all_that_is_wanted_in_one_turn_is_synced_at_its_end_and_the_engine_can_be_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let turns = Rc::new(Cell::new(0));
    let counted = turns.clone();
    let ends = engine.clone().sync_at_turns_end(async move || {
        counted.set(counted.get() + 1);
        // Behind all that waits by now.
        let mut passed = false;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            if std::mem::replace(&mut passed, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    let mut ends = pin!(ends);
    for round in 1..=300 {
        let seqs: Vec<Seq> = (0..5_u8).map(|n| put(&engine, format!("{round}-{n}"), vec![n; 40])).collect();
        let durable = join_all(seqs.iter().map(|seq| engine.durable(*seq)));
        let Either::Right((told, _)) = block_on(select(ends.as_mut(), pin!(durable))) else {
            panic!("the engine has stopped")
        };
        assert!(told.iter().all(Result::is_ok));
        assert!(engine.synced_seq() >= *seqs.last().unwrap());
        // The journal's thread may have been faster.
        assert!(turns.get() <= round, "one turn for all");
    }
    assert!(turns.get() > 0);
    block_on(engine.close()).unwrap();
    block_on(ends);
}

/// Whether it was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn whoever_waits_for_the_end_is_told_of_a_store_that_failed_beside_who_syncs() {
    let disk = SimDisk::default();
    let broken = Arc::new(AtomicBool::new(false));
    let step = broken.clone();
    let places = Places {
        journal: Arc::new(disk.clone()),
        exports: Arc::new(disk.clone()),
        shelf: Box::new(SimulatedShelf::new(Arc::new(move || match step.load(Ordering::Relaxed) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }))),
    };
    let (engine, _) = block_on(Engine::start(small(), move || {
        Ok(((), recovery::recover(places, small(), Box::new(committer))?))
    }))
    .unwrap();
    let (told, syncs) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    let (watcher, syncer) = (told.clone().into(), syncs.clone().into());
    let mut stopped = pin!(engine.stopped());
    assert!(stopped.as_mut().poll(&mut Context::from_waker(&watcher)).is_pending());
    let mut ends = pin!(engine.clone().sync_at_turns_end(async || ()));
    for n in 0..3_u8 {
        engine.hurry(put(&engine, vec![n], "x"));
        assert!(ends.as_mut().poll(&mut Context::from_waker(&syncer)).is_pending());
    }
    told.0.store(false, Ordering::Relaxed);
    broken.store(true, Ordering::Relaxed);
    block_on(engine.checkpoint()).unwrap_err();
    wait_until("a word of it", || told.0.load(Ordering::Relaxed));
    assert!(stopped.as_mut().poll(&mut Context::from_waker(&watcher)).is_ready());
    let _ = block_on(engine.close());
    block_on(ends);
}

#[test]
fn what_was_durable_is_there_after_a_reopening_and_each_start_has_its_number() {
    let dir = tempfile::tempdir().unwrap();
    for start in 1..=6_u64 {
        let (engine, recovery) = open(&dir, &small());
        assert_eq!((engine.epoch(), recovery.epoch), (start, start));
        assert!(recovery.notes.is_empty() && recovery.rebuilt.is_none(), "{recovery:?}");
        for earlier in 1..start {
            assert_eq!(get(&engine, &format!("k{earlier}")).unwrap(), format!("v{earlier}"));
        }
        let seq = put(&engine, format!("k{start}"), format!("v{start}"));
        block_on(engine.durable(seq)).unwrap();
        // In order, by a drop, and by a drop after a checkpoint.
        match start % 3 {
            0 => close(engine),
            1 => drop(block_on(engine.checkpoint()).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn the_directory_belongs_to_one_engine() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let refused = block_on(Engine::open(dir.path().to_owned(), small())).err().unwrap();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("in use"), "{}", refused.message);
    block_on(engine.close()).unwrap();
    assert_eq!(engine.commit(Batch::new()).unwrap_err().code, Code::ShuttingDown);
    assert_eq!(block_on(engine.get(b"cold")).unwrap_err().code, Code::ShuttingDown);
    drop(engine);
    close(open(&dir, &small()).0);
}

#[test]
fn a_reader_waits_for_durability_and_the_latest_value_is_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let seq = put(&engine, "a", "1");
    assert_eq!(engine.peek(b"a"), Peek::Value(seq, "1".into()));
    assert_eq!(engine.peek(b"b"), Peek::Store);
    assert_eq!(block_on(engine.latest(b"a")).unwrap().unwrap(), "1");
    assert_eq!(get(&engine, "a").unwrap(), "1");
    assert!(engine.synced_seq() >= seq, "it was shown before it was durable");
    block_on(engine.checkpoint()).unwrap();
    assert_eq!(engine.peek(b"a"), Peek::Store);
    assert_eq!(get(&engine, "a").unwrap(), "1");
    let mut batch = Batch::new();
    batch.delete("a");
    assert_eq!(engine.next_seq(), engine.commit(batch).unwrap());
    assert_eq!(get(&engine, "a"), None);
    close(engine);
}

#[test]
fn a_scan_sees_all_layers_as_one_map() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let mut model = BTreeMap::<Bytes, Bytes>::new();
    let mut chance = crate::disk::sim::Chance::new(7);
    for round in 0..40 {
        let mut batch = Batch::new();
        for _ in 0..50 {
            let key = Bytes::from(format!(
                "{}{}",
                ["a", "b", "b\u{ff}", "c"][chance.below(4) as usize],
                chance.below(60)
            ));
            match chance.below(3) {
                0 => {
                    batch.delete(key.clone());
                    model.remove(&key);
                }
                _ => {
                    let value = Bytes::from(format!("{round}"));
                    batch.put(key.clone(), value.clone());
                    model.insert(key, value);
                }
            }
        }
        engine.commit(batch).unwrap();
        if round % 3 == 0 {
            block_on(engine.checkpoint()).unwrap();
        }
        for prefix in ["", "a", "b", "c1", "d"] {
            let wanted: Vec<_> = model.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes())).collect();
            let (mut found, mut after) = (Vec::new(), None::<Bytes>);
            loop {
                let page = block_on(engine.scan(prefix.as_bytes(), after.as_deref(), 17)).unwrap();
                assert!(page.len() <= 17);
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                found.extend(page);
            }
            found.retain(|(key, _)| key[0] != crate::record::keys::META);
            assert_eq!(found.iter().map(|(key, value)| (key, value)).collect::<Vec<_>>(), wanted, "{prefix}");
        }
    }
    close(engine);
}

#[test]
fn many_that_wait_are_woken_and_one_that_gives_up_strands_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    for round in 0..50 {
        let mut waiting: Vec<_> = (0..64)
            .map(|number| {
                let seq = put(&engine, format!("{number}"), format!("{round}"));
                let engine = engine.clone();
                Box::pin(async move { engine.durable(seq).await })
            })
            .collect();
        // Each is polled, so that it waits, and then some go: the last one, whom the next sync would wake, too.
        waiting.retain_mut(|future| block_on(poll_immediate(future)).is_none());
        waiting.truncate(40);
        waiting.retain({
            let mut number = 0;
            move |_| {
                number += 1;
                number % 3 != round % 3
            }
        });
        let results = block_on(join_all(waiting));
        assert!(results.iter().all(Result::is_ok));
    }
    close(engine);
}

#[test]
fn memory_is_bounded_and_the_engine_goes_on_when_the_disk_has_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { overlay_max_bytes: 256 << 10, ..small() };
    let (engine, _) = open(&dir, &options);
    let (mut busy, mut key) = (0, 0_u32);
    let deadline = Instant::now() + Duration::from_secs(20);
    while busy == 0 || key < 3000 {
        assert!(Instant::now() < deadline, "{busy} {key}");
        let mut batch = Batch::new();
        batch.put(key.to_be_bytes().to_vec(), vec![1; 1000]);
        match engine.commit(batch) {
            Ok(_) => key += 1,
            Err(refusal) => {
                assert!(refusal.code == Code::Busy && refusal.retry_after_ms.is_some());
                busy += 1;
            }
        }
        assert!(engine.health().overlay_bytes < 300 << 10);
    }
    close(engine);
    let (engine, _) = open(&dir, &options);
    assert_eq!(
        block_on(engine.scan(&[], None, usize::MAX))
            .unwrap()
            .iter()
            .filter(|(key, _)| key.len() == 4)
            .count(),
        key as usize
    );
    close(engine);
}

#[test]
fn a_key_or_a_batch_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let mut batch = Batch::new();
    batch.put(vec![1; crate::store::KEY_MAX + 1], "");
    assert_eq!(engine.commit(batch).unwrap_err().code, Code::TooLarge);
    let mut batch = Batch::new();
    batch.put("a", vec![1; crate::journal::PAYLOAD_MAX]);
    assert_eq!(engine.commit(batch).unwrap_err().code, Code::TooLarge);
    assert!(engine.health().accepting);
    close(engine);
}

#[test]
fn after_an_error_of_the_disk_nothing_is_accepted_and_what_was_durable_is_found_again() {
    for fault in [Fault::Io, Fault::Full] {
        let disk = SimDisk::default();
        let (engine, _) = on_sim(&disk).unwrap();
        let seq = put(&engine, "a", "1");
        block_on(engine.durable(seq)).unwrap();
        disk.fail_at(disk.steps() + 1, fault);
        let doubtful = put(&engine, "b", "2");
        let refused = block_on(engine.durable(doubtful)).unwrap_err();
        assert!(refused.code == Code::Unavailable && !refused.hint.is_empty(), "{refused:?}");
        let again = engine.commit(Batch::new()).unwrap_err();
        assert_eq!((again.code, &again.message), (Code::Unavailable, &refused.message));
        let health = engine.health();
        assert!(!health.accepting && health.reason.contains(&refused.message), "{health:?}");
        assert_eq!(get(&engine, "a").unwrap(), "1");
        assert_eq!(block_on(engine.get(b"b")).unwrap_err().code, Code::Unavailable);
        assert_eq!(block_on(engine.fact_after(seq)).unwrap_err().code, Code::Unavailable);
        drop(engine);
        disk.kill();
        let (engine, recovery) = on_sim(&disk).unwrap();
        assert_eq!(recovery.epoch, 2);
        assert_eq!(get(&engine, "a").unwrap(), "1");
        let seq = put(&engine, "c", "3");
        block_on(engine.durable(seq)).unwrap();
        close(engine);
    }
}

#[test]
fn facts_are_found_in_order_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let from = engine.next_seq();
    let first = engine.append_fact(fact("1")).unwrap();
    put(&engine, "a", "b");
    let second = engine.append_fact(fact("2")).unwrap();
    assert_eq!(block_on(engine.fact_after(first)).unwrap(), second);
    let page = block_on(engine.facts(from, 1)).unwrap();
    assert_eq!((page.facts, page.next, page.end), (vec![(first, fact("1"))], first + 1, false));
    let page = block_on(engine.facts(page.next, 9)).unwrap();
    assert_eq!((page.facts, page.next, page.end), (vec![(second, fact("2"))], second + 1, true));
    let follower = engine.clone();
    let mut told = Box::pin(async move { follower.fact_after(second).await });
    assert!(block_on(poll_immediate(&mut told)).is_none());
    let third = engine.append_fact(fact("3")).unwrap();
    assert_eq!(block_on(told).unwrap(), third);
    close(engine);
    let (engine, _) = open(&dir, &small());
    let page = block_on(engine.facts(0, 9)).unwrap();
    assert_eq!(page.facts, [(first, fact("1")), (second, fact("2")), (third, fact("3"))]);
    close(engine);
}

#[test]
fn a_checkpoint_comes_by_itself_in_time_and_at_a_size() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &Options { checkpoint_age: Duration::from_millis(5), ..small() });
    put(&engine, "a", "1");
    wait_until("a checkpoint by age", || engine.health().checkpoints == 1);
    put(&engine, "a", "2");
    wait_until("another", || engine.health().checkpoints == 2);
    close(engine);
    let (engine, _) = open(&dir, &small());
    put(&engine, "b", vec![1; 70_000]);
    wait_until("a checkpoint by size", || engine.health().checkpoints == 1);
    assert_eq!(get(&engine, "a").unwrap(), "2");
    close(engine);
}

#[test]
fn a_checkpoint_waits_for_a_pause_until_too_much_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let never = Duration::from_secs(600);
    let options = Options { checkpoint_pause: never, overlay_max_bytes: 512 << 10, ..small() };
    let (engine, _) = open(&dir, &options);
    put(&engine, "a", vec![1; 200_000]);
    // The checkpointer has heard of it when it answers this.
    assert_eq!(get(&engine, "none"), None);
    assert_eq!(engine.health().checkpoints, 0);
    put(&engine, "b", vec![1; 70_000]);
    wait_until("a checkpoint", || engine.health().checkpoints == 1);
    close(engine);
}

#[test]
fn an_export_is_restored_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved/export.ksi");
    let (engine, _) = open(&dir, &small());
    for number in 0..300 {
        put(&engine, format!("k{number}"), vec![number as u8; 300]);
    }
    put(&engine, "large", vec![9; 50_000]);
    fs::create_dir(dir.path().join("saved")).unwrap();
    let beside = dir.path().join("saved/export.new");
    fs::write(&beside, "mine").unwrap();
    let exported = block_on(engine.export(&path)).unwrap();
    assert_eq!(block_on(engine.export(&path)).unwrap_err().code, Code::Conflict);
    assert_eq!(fs::read(beside).unwrap(), b"mine");
    assert_eq!(fs::read_dir(dir.path().join("saved")).unwrap().count(), 2);
    assert_eq!(exported.bytes, fs::metadata(&path).unwrap().len());
    put(&engine, "k0", "changed");
    put(&engine, "new", "new");
    block_on(engine.checkpoint()).unwrap();
    put(&engine, "k1", "changed");
    let report = block_on(engine.restore(&path)).unwrap();
    assert_eq!((report.keys, report.export_seq), (301, exported.seq));
    let mut late = Batch::new();
    late.put("k0", "late");
    let refusal = engine.commit(late).unwrap_err();
    assert!(refusal.message.contains("restored") && refusal.retryable, "{refusal:?}");
    assert_eq!(block_on(engine.stopped()), refusal);
    assert_eq!(get(&engine, "k0").unwrap(), vec![0; 300]);
    close(engine);
    for _ in 0..2 {
        let engine = open(&dir, &small()).0;
        assert_eq!(get(&engine, "k0").unwrap(), vec![0; 300]);
        assert_eq!(get(&engine, "k1").unwrap(), vec![1; 300]);
        assert_eq!(get(&engine, "large").unwrap(), vec![9; 50_000]);
        assert_eq!(get(&engine, "new"), None);
        put(&engine, "after", "after");
        assert_eq!(get(&engine, "after").unwrap(), "after");
        assert_eq!(block_on(engine.verify()).unwrap().damage, []);
        close(engine);
    }
    let (engine, recovery) = open(&dir, &small());
    assert_eq!(recovery.epoch, 4, "the number of the start goes on");
    let mut damaged = fs::read(&path).unwrap();
    damaged[1000] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert_eq!(block_on(engine.restore(&path)).unwrap_err().code, Code::InvalidPayload);
    assert_eq!(block_on(engine.restore(&dir.path().join("none"))).unwrap_err().code, Code::NotFound);
    assert_eq!(get(&engine, "after").unwrap(), "after");
    close(engine);
}

#[test]
fn the_disk_holds_a_small_multiple_of_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 128 << 10, checkpoint_bytes: 1 << 20, ..small() };
    let (engine, _) = open(&dir, &options);
    let mut chance = crate::disk::sim::Chance::new(1);
    for _ in 0..60_000 {
        let mut batch = Batch::new();
        batch.put(chance.below(4096).to_be_bytes().to_vec(), vec![chance.below(256) as u8; 1000]);
        while let Err(refusal) = engine.commit(batch.clone()) {
            assert_eq!(refusal.code, Code::Busy);
            std::thread::yield_now();
        }
    }
    block_on(engine.checkpoint()).unwrap();
    let live = 4096 * 1008;
    let disk = disk_bytes(dir.path());
    let store = engine.health().store_bytes;
    assert!(disk < 5 * live, "{disk} bytes for {live} that live, {store} of them in the store");
    close(engine);
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.path().is_dir() {
                    disk_bytes(&entry.path())
                } else {
                    entry.metadata().unwrap().len()
                }
            },
        )
        .sum()
}

#[test]
fn pending_entries_are_replayed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { checkpoint_bytes: 64 << 20, overlay_max_bytes: 128 << 20, ..Options::default() };
    let (engine, _) = open(&dir, &options);
    let mut last = 0;
    for number in 0..100_000_u32 {
        last = put(&engine, number.to_be_bytes().to_vec(), vec![1; 200]);
    }
    block_on(engine.durable(last)).unwrap();
    drop(engine);
    let (engine, recovery) = open(&dir, &options);
    assert!(recovery.replayed >= 100_000, "{recovery:?}");
    assert_eq!(get(&engine, "\0\0\0\0").unwrap(), vec![1; 200]);
    close(engine);
    let (_, recovery) = open(&dir, &options);
    assert_eq!(recovery.replayed, 0);
}

#[test]
fn pages_over_store_and_memory_are_together_what_one_look_finds() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &Options::default());
    let mut model = BTreeMap::new();
    for round in 0..4_u32 {
        for number in (0..60).filter(|number| (number + round) % 3 != 0) {
            let (key, value) = (Bytes::from(format!("k{number:02}")), Bytes::from(vec![round as u8; 20]));
            let mut batch = Batch::new();
            if (number / 7 + round) % 3 == 0 {
                batch.delete(key.clone());
                model.remove(&key);
            } else {
                batch.put(key.clone(), value.clone());
                model.insert(key, value);
            }
            engine.commit(batch).unwrap();
        }
        for limit in [1, 2, 7, 59, 60, 1_000] {
            let (mut pages, mut after) = (Vec::new(), None::<Bytes>);
            loop {
                let page = block_on(engine.scan(b"k", after.as_deref(), limit)).unwrap();
                assert!(page.len() <= limit);
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                pages.extend(page);
            }
            assert!(pages.into_iter().eq(model.clone()), "round {round}, {limit} on a page");
        }
        if round % 2 == 0 {
            block_on(engine.checkpoint()).unwrap();
        }
    }
    close(engine);
}
