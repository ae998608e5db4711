//! What an opening makes of stores and journals that are damaged, lost, half made or old.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use ksi_sdk::protocol::{Bytes, Code};
use tempfile::TempDir;

use super::{block_on, close, get, open, put, small};
use crate::{
    engine::{Engine, Options},
    record::Batch,
};

/// Much more than the journal keeps, so that a lost store can only come from an export.
fn grown(dir: &TempDir) -> BTreeMap<Bytes, Bytes> {
    let (engine, _) = open(dir, &small());
    let mut model = BTreeMap::new();
    for number in 0..6000_u32 {
        let (key, value) =
            (Bytes::from(format!("k{:03}", number % 500)), Bytes::from(vec![(number / 500) as u8; 300]));
        model.insert(key.clone(), value.clone());
        let mut batch = Batch::new();
        batch.put(key, value);
        while let Err(refusal) = engine.commit(batch.clone()) {
            assert_eq!(refusal.code, Code::Busy);
            std::thread::yield_now();
        }
    }
    block_on(engine.close()).unwrap();
    let health = engine.health();
    assert!(health.first_seq > 1 && health.export_seq >= health.first_seq - 1, "{health:?}");
    model
}

fn same(engine: &Engine, model: &BTreeMap<Bytes, Bytes>) {
    let all = block_on(engine.scan(b"k", None, usize::MAX)).unwrap();
    assert!(all.into_iter().eq(model.clone()), "not what was there");
}

#[test]
fn a_store_that_is_lost_or_damaged_is_rebuilt_and_told() {
    let damages: [fn(&Path); 8] = [
        |store| fs::remove_dir_all(store).unwrap(),
        |store| {
            let db = store.join("tree/db");
            let length = fs::metadata(&db).unwrap().len();
            let file = fs::OpenOptions::new().write(true).open(db).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16384], length / 3).unwrap();
        },
        |store| fs::write(store.join("tree/db"), "no database").unwrap(),
        |store| fs::write(store.join("tree/conf"), "no configuration").unwrap(),
        |store| fs::remove_dir_all(store.join("tree")).unwrap(),
        |store| fs::remove_dir_all(store.join("values")).unwrap(),
        |store| fs::remove_file(store.join("tree/db")).unwrap(),
        |store| fs::write(store.join("tree/db"), "").unwrap(),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let model = grown(&dir);
        damage(&dir.path().join("store"));
        let (engine, recovery) = open(&dir, &Options { open_timeout: Duration::from_secs(2), ..small() });
        same(&engine, &model);
        // Zeros may lie where nothing is in use, or cost no more than the journal still has.
        if number != 1 {
            let rebuilt = recovery.rebuilt.unwrap_or_else(|| panic!("{number}: {:?}", recovery.notes));
            assert!(rebuilt.from_export > 400 && rebuilt.export_seq > 0, "{rebuilt:?}");
        }
        assert_eq!(block_on(engine.verify()).unwrap().damage, []);
        close(engine);
        let (engine, recovery) = open(&dir, &small());
        assert_eq!(recovery.rebuilt, None);
        same(&engine, &model);
        close(engine);
    }
}

#[test]
fn a_store_from_an_older_copy_is_not_taken_for_the_present() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    put(&engine, "k000", "old");
    close(engine);
    let copy = |from: &str, to: &str| {
        let (from, to) = (dir.path().join(from), dir.path().join(to));
        assert!(std::process::Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
    };
    copy("store", "copy");
    let model = grown(&dir);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    copy("copy", "store");
    let (engine, recovery) = open(&dir, &small());
    assert!(recovery.rebuilt.is_some(), "{recovery:?}");
    same(&engine, &model);
    close(engine);
}

#[test]
fn a_journal_that_is_lost_is_told_and_costs_nothing_that_was_checkpointed() {
    let dir = tempfile::tempdir().unwrap();
    let model = grown(&dir);
    let (engine, recovery) = open(&dir, &small());
    let last = recovery.last_seq;
    close(engine);
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let (engine, recovery) = open(&dir, &small());
    assert!(recovery.lost.is_some_and(|(from, to)| from == 1 && to > last), "{recovery:?}");
    assert!(recovery.words()[0].contains("records of the journal are lost"), "{:?}", recovery.words());
    same(&engine, &model);
    assert!(put(&engine, "k000", "new") > last, "a position is given out once more");
    let page = block_on(engine.facts(2, 10)).unwrap();
    assert!(page.end && page.first_kept > last, "{page:?}");
    assert_eq!(block_on(engine.verify()).unwrap().damage, []);
    close(engine);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    let (engine, recovery) = open(&dir, &small());
    assert!(recovery.rebuilt.is_some());
    assert_eq!(get(&engine, "k000").unwrap(), "new");
    assert_eq!(get(&engine, "k001"), model.get(&b"k001"[..]).cloned());
    close(engine);
}

#[test]
fn where_an_export_comes_from_elsewhere_positions_go_on_after_its_own() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = there.path().join("export.ksi");
    let (engine, _) = open(&there, &small());
    let version = (0..40).fold(0, |_, number| put(&engine, "k", number.to_string()));
    let exported = block_on(engine.export(&path)).unwrap().seq;
    assert!(exported >= version);
    close(engine);
    let (engine, _) = open(&here, &small());
    let own = put(&engine, "other", "gone");
    let restored = block_on(engine.restore(&path)).unwrap();
    assert!(restored.seq > own && restored.seq < exported);
    close(engine);
    for start in 0..3 {
        let (engine, recovery) = open(&here, &small());
        assert_eq!((recovery.words(), &recovery.rebuilt), (vec![], &None));
        assert_eq!(get(&engine, "k").unwrap(), if start == 0 { "39" } else { "new" });
        assert!(put(&engine, "k", "new") > exported);
        // A consumer that had come so far there is told what is not kept here.
        let page = block_on(engine.facts(version - 3, 10)).unwrap();
        assert_eq!((page.end, page.holes), (true, vec![(version - 3, exported)]));
        assert_eq!(block_on(engine.verify()).unwrap().damage, []);
        close(engine);
    }
    fs::remove_dir_all(here.path().join("store")).unwrap();
    let (engine, recovery) = open(&here, &small());
    assert!(recovery.rebuilt.is_some() && recovery.notes.is_empty(), "{recovery:?}");
    assert_eq!(get(&engine, "k").unwrap(), "new");
    close(engine);
}

#[test]
fn damage_that_is_found_while_it_is_read_ends_the_use_of_the_store_and_the_next_opening_has_it_all() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = open(&dir, &small());
    let value = Bytes::from(vec![7; 1 << 20]);
    put(&engine, "large", value.clone());
    put(&engine, "other", "1");
    block_on(engine.checkpoint()).unwrap();
    let file = fs::read_dir(dir.path().join("store/values")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    fs::write(file, bytes).unwrap();
    let refusal = block_on(engine.get(b"large")).unwrap_err();
    assert!(refusal.message.contains("checksum"), "{refusal:?}");
    assert_eq!(block_on(engine.stopped()), refusal, "whoever opens it anew is told");
    assert!(!engine.health().accepting);
    assert_eq!(engine.commit(Batch::new()).unwrap_err(), refusal);
    let _ = block_on(engine.close());
    drop(engine);
    let (engine, recovery) = open(&dir, &small());
    assert!(recovery.rebuilt.is_some(), "{recovery:?}");
    assert_eq!((get(&engine, "large"), get(&engine, "other")), (Some(value), Some("1".into())));
    close(engine);
}

#[test]
fn a_kill_while_the_first_store_is_made_leaves_nothing_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["store.new/tree", "store.gone/tree", "rebuilt.new/tree", "exports", "journal"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("store.new/tree/conf"), "seg").unwrap();
    fs::write(dir.path().join("exports/export.new"), "KSIEX").unwrap();
    let (engine, recovery) = open(&dir, &small());
    assert!(recovery.notes.is_empty() && recovery.epoch == 1, "{recovery:?}");
    put(&engine, "a", "1");
    assert_eq!(get(&engine, "a").unwrap(), "1");
    close(engine);
}
