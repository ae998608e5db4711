//! What every store must do, tried on all of them against a `BTreeMap`; and what the one on sled must survive.

use std::{collections::BTreeMap, fs, io::Cursor, path::Path, sync::Arc, time::Duration};

use ksi_sdk::protocol::Bytes;
use proptest::prelude::*;

use super::{
    KEY_MAX, Shelf, SledShelf, Store, StoreError, export, memory::MemoryShelf, simulated::SimulatedShelf,
};
use crate::record::Change;

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<Change>),
    Checkpoint,
    /// Close in order, or drop as a crash of the process does after a checkpoint.
    Reopen {
        in_order: bool,
    },
    /// Take what an export holds into another store, and go on with that.
    Export,
}

fn change() -> impl Strategy<Value = Change> {
    // Few keys, so that they are overwritten; one is the beginning of another.
    let key = prop_oneof![
        Just(vec![]),
        Just(vec![0]),
        Just(vec![0, 0]),
        "[ab]{1,3}".prop_map(String::into_bytes),
        Just(vec![255; KEY_MAX])
    ];
    // Around every border of how a value is kept.
    let length = prop_oneof![8 => 0..60_usize, 1 => 2046..2051_usize, 1 => 4094..4098_usize, 1 => 32_766..32_771_usize, 1 => Just(70_000_usize)];
    let value = (length, any::<u8>()).prop_map(|(length, seed)| {
        Bytes::from((0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect::<Vec<_>>())
    });
    (key, proptest::option::weighted(0.7, value)).prop_map(|(key, value)| Change { key: key.into(), value })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(change(), 1..8).prop_map(Step::Apply),
        2 => Just(Step::Checkpoint),
        2 => any::<bool>().prop_map(|in_order| Step::Reopen { in_order }),
        1 => Just(Step::Export),
    ];
    proptest::collection::vec(step, 1..16)
}

fn open(shelf: &mut dyn Shelf, name: &str) -> Box<dyn Store> {
    let shelved = shelf.open(name).expect("it opens");
    assert!(shelved.repairs.is_empty(), "{:?}", shelved.repairs);
    shelved.store
}

fn conforms(shelf: &mut dyn Shelf, steps: &[Step]) {
    let mut model = BTreeMap::<Bytes, Bytes>::new();
    assert!(!shelf.has("store").unwrap());
    let mut store = open(shelf, "store");
    for step in steps {
        match step {
            Step::Apply(changes) => {
                store.apply(changes).unwrap();
                super::memory::apply(&mut model, changes);
            }
            Step::Checkpoint => store.checkpoint().unwrap(),
            Step::Reopen { in_order } => {
                match in_order {
                    true => store.close().unwrap(),
                    false => {
                        store.checkpoint().unwrap();
                        drop(store);
                    }
                }
                store = open(shelf, "store");
            }
            Step::Export => {
                let mut file = Vec::new();
                let written = export::write(&*store, 7, &mut file, &mut |_| {}).unwrap();
                let mut other = open(shelf, "other");
                let read = export::read("it", &mut Cursor::new(&file), &mut |change| other.apply(&[change]));
                assert_eq!(read.unwrap(), written);
                other.close().unwrap();
                drop(store);
                shelf.remove("store").unwrap();
                shelf.rename("other", "store").unwrap();
                store = open(shelf, "store");
            }
        }
        same(&*store, &model);
    }
    store.verify(&mut |_| {}).unwrap();
}

fn same(store: &dyn Store, model: &BTreeMap<Bytes, Bytes>) {
    let stat = store.stat().unwrap();
    assert_eq!(stat.keys, model.len() as u64);
    assert_eq!(
        stat.live_bytes,
        model.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>()
    );
    for key in [&b""[..], b"\0", b"\0\0", b"a", b"ab", b"aba", b"zz"] {
        assert_eq!(store.get(key).unwrap().as_ref(), model.get(key));
    }
    let all: Vec<_> = model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(store.range(b"", None, usize::MAX, usize::MAX).unwrap(), all);
    let within: Vec<_> =
        all.iter().filter(|(key, _)| key[..] >= b"a"[..] && key[..] < b"b"[..]).cloned().collect();
    assert_eq!(store.range(b"a", Some(b"b"), usize::MAX, usize::MAX).unwrap(), within);
    assert_eq!(store.range(b"", None, 2, usize::MAX).unwrap(), all[..all.len().min(2)]);
    assert_eq!(store.range(b"", None, 9, 0).unwrap(), all[..all.len().min(1)]);
    assert_eq!(store.range(b"b", Some(b"a"), 9, 9).unwrap(), []);
}

fn shelf(dir: &Path) -> SledShelf {
    SledShelf::new(dir.to_owned(), 1 << 20, Duration::from_secs(10))
}

proptest! {
    #[test]
    fn a_store_in_memory_is_a_map(steps in steps()) {
        conforms(&mut MemoryShelf::default(), &steps);
    }

    #[test]
    fn a_simulated_store_is_a_map(steps in steps()) {
        conforms(&mut SimulatedShelf::new(Arc::new(|| Ok(()))), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_store_on_sled_is_a_map(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        conforms(&mut shelf(dir.path()), &steps);
    }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Change {
    Change { key: key.into(), value: Some(value.into()) }
}

/// A store with some of everything, not closed in order, as a crash leaves it.
fn filled(dir: &Path, keys: u64) {
    let mut store = open(&mut shelf(dir), "store");
    for chunk in 0..keys.div_ceil(256) {
        let some = chunk * 256..keys.min((chunk + 1) * 256);
        let changes: Vec<_> = some.map(|key| put(key.to_be_bytes().to_vec(), vec![key as u8; 256])).collect();
        store.apply(&changes).unwrap();
    }
    store.apply(&[put("pieces", vec![5; 20_000]), put("file", vec![6; 40_000])]).unwrap();
    store.checkpoint().unwrap();
}

fn snapshots(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir.join("store/tree")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snap.")).collect()
}

#[test]
fn a_key_that_is_too_long_is_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&mut shelf(dir.path()), "store");
    let refused = store.apply(&[put("a", "b"), put(vec![1; KEY_MAX + 1], "c")]);
    assert!(matches!(refused, Err(StoreError::KeyTooLong(bytes)) if bytes == KEY_MAX + 1));
    assert_eq!(store.get(b"a").unwrap(), None);
}

#[test]
fn a_store_half_made_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("store.new/tree")).unwrap();
    fs::write(dir.path().join("store.new/tree/conf"), "segm").unwrap();
    fs::write(dir.path().join("store.new/tree/db"), [0; 100]).unwrap();
    let mut store = open(&mut shelf(dir.path()), "store");
    store.apply(&[put("a", "b")]).unwrap();
    assert_eq!(store.get(b"a").unwrap().unwrap(), "b");
}

#[test]
fn a_snapshot_that_a_crash_left_half_written_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 1000);
    fs::write(dir.path().join("store/tree/snap.FFFFFFFFFFFFFFFF.generating"), "half").unwrap();
    let shelved = shelf(dir.path()).open("store").unwrap();
    assert!(shelved.verified && shelved.repairs.len() == 1, "{:?}", shelved.repairs);
    assert_eq!(shelved.store.stat().unwrap().keys, 1002);
}

#[test]
fn a_snapshot_of_garbage_is_made_anew() {
    for garbage in [&b""[..], b"short", &[7; 4000]] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1000);
        drop(shelf(dir.path()).open("store").unwrap());
        let found = snapshots(dir.path());
        assert!(!found.is_empty());
        found.iter().for_each(|path| fs::write(path, garbage).unwrap());
        let shelved = shelf(dir.path()).open("store").unwrap();
        assert_eq!(shelved.repairs.len(), 1, "{:?}", shelved.repairs);
        assert_eq!(shelved.store.verify(&mut |_| {}).unwrap().keys, 1002);
    }
}

#[test]
fn a_damaged_file_is_an_error_or_harmless_but_never_a_silent_loss() {
    let mut damaged = 0;
    for at in 0..12_u64 {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3000);
        let path = dir.path().join("store/tree/db");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16384], length * at / 12).unwrap();
        let mut shelf = SledShelf::new(dir.path().to_owned(), 1 << 20, Duration::from_secs(2));
        match shelf.open("store") {
            Ok(shelved) => {
                // Sled may take damage for the end of its log. Then all after it is missing, the position that is
                // covered too, so the engine knows what to replay.
                let keys = shelved.store.verify(&mut |_| {}).unwrap().keys;
                assert!([3000, 3002].contains(&keys) || keys.is_multiple_of(256), "{keys}");
                let page = shelved.store.range(b"", None, usize::MAX, usize::MAX).unwrap();
                assert!(
                    page.iter()
                        .zip(0_u64..keys.min(3000))
                        .all(|((key, _), number)| key[..] == number.to_be_bytes())
                );
            }
            Err(StoreError::Damaged(_)) => {
                damaged += 1;
                let aside = shelf.put_aside("store").unwrap().unwrap();
                assert!(aside.join("tree/db.copy").exists());
                assert_eq!(open(&mut shelf, "store").stat().unwrap().keys, 0);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(damaged > 0, "nothing was damaged at all");
}

#[test]
fn what_is_missing_from_the_files_of_values_is_noticed_and_what_is_unused_removed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 10);
    let values = dir.path().join("store/values");
    fs::write(values.join("0123.new"), "half").unwrap();
    let shelved = shelf(dir.path()).open("store").unwrap();
    assert_eq!(shelved.repairs.len(), 1);
    assert_eq!(shelved.store.get(b"file").unwrap().unwrap(), vec![6; 40_000]);
    drop(shelved);
    let file = fs::read_dir(&values).unwrap().next().unwrap().unwrap().path();
    let mut content = fs::read(&file).unwrap();
    content[9] ^= 1;
    fs::write(&file, content).unwrap();
    let shelved = shelf(dir.path()).open("store").unwrap();
    assert!(matches!(shelved.store.get(b"file"), Err(StoreError::Damaged(_))));
    drop(shelved);
    fs::remove_file(file).unwrap();
    assert!(matches!(shelf(dir.path()).open("store"), Err(StoreError::Damaged(_))));
}

#[test]
fn files_of_values_go_when_their_keys_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&mut shelf(dir.path()), "store");
    let files = || fs::read_dir(dir.path().join("store/values")).unwrap().count();
    let large = |byte: u8| vec![byte; 40_000];
    store.apply(&[put("a", large(1)), put("b", large(1)), put("c", large(2))]).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(files(), 3);
    store.apply(&[put("a", large(3)), Change { key: "b".into(), value: None }]).unwrap();
    assert_eq!(files(), 4, "nothing goes before its absence is durable");
    store.apply(&[put("b", large(1))]).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(files(), 3);
    assert_eq!(store.verify(&mut |_| {}).unwrap().keys, 3);
}

#[test]
fn an_export_that_was_changed_anywhere_is_refused() {
    let mut store = MemoryShelf::default().open("store").unwrap().store;
    store.apply(&[put("a", "1"), put("b", vec![2; 300]), put("", "")]).unwrap();
    let mut file = Vec::new();
    export::write(&*store, 9, &mut file, &mut |_| {}).unwrap();
    let read = |bytes: &[u8]| export::read("it", &mut Cursor::new(bytes), &mut |_| Ok(()));
    assert_eq!(read(&file).unwrap().seq, 9);
    for end in 0..file.len() {
        assert!(read(&file[..end]).is_err());
    }
    for bit in 0..file.len() * 8 {
        let mut changed = file.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&changed).is_err(), "bit {bit}");
    }
    file.push(0);
    assert!(read(&file).is_err());
}

#[test]
fn a_store_that_does_not_open_in_time_is_given_up_and_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 10);
    // As an opening that hangs keeps it.
    let file = fs::File::open(dir.path().join("store/tree/db")).unwrap();
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let mut shelf = SledShelf::new(dir.path().to_owned(), 1 << 20, Duration::from_millis(50));
    assert!(matches!(shelf.open("store"), Err(StoreError::Damaged(_))));
    shelf.put_aside("store").unwrap();
    let mut shelf = self::shelf(dir.path());
    assert_eq!(open(&mut shelf, "store").stat().unwrap().keys, 0);
    drop(held);
}

#[test]
fn whoever_reads_waits_for_one_page_of_what_takes_long() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5_000);
    let store = open(&mut shelf(dir.path()), "store");
    let mut served = 0;
    let mut between = |store: &dyn Store| {
        assert_eq!(store.get(b"pieces").unwrap().unwrap(), vec![5; 20_000]);
        served += 1;
    };
    store.verify(&mut between).unwrap();
    assert_eq!(served, 5_012 / super::PAGE);
    let mut between = |store: &dyn Store| {
        assert_eq!(store.get(b"file").unwrap().unwrap(), vec![6; 40_000]);
        served += 1;
    };
    export::write(&*store, 9, &mut Vec::new(), &mut between).unwrap();
    assert_eq!(served, 5_012 / super::PAGE + 5_002_usize.div_ceil(super::PAGE));
}
