//! Engines that are ended from outside, because nobody can ask them to end.

use super::*;

#[test]
fn one_whose_owner_has_panicked_lets_go_of_the_directory_and_journals_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let (lost, _) = open(&dir, &small());
    put(&lost, "k", "kept");
    let leash = lost.leash();
    leash.end();
    let mut batch = Batch::new();
    batch.put("k", "late");
    assert_eq!(lost.commit(batch).unwrap_err().code, Code::ShuttingDown);
    let (next, recovery) = block_on(Engine::open(dir.path().to_owned(), small())).unwrap();
    assert_eq!((recovery.epoch, get(&next, "k")), (2, Some("kept".into())));
    assert!(block_on(lost.get(b"other")).is_err(), "its threads have ended");
    drop(lost);
    put(&next, "k", "new");
    close(next);
    let (again, _) = open(&dir, &small());
    assert_eq!(get(&again, "k"), Some("new".into()));
    again.leash().end();
    drop(again);
}

#[test]
fn one_that_is_leashed_while_much_is_asked_of_it_ends_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (lost, _) = open(&dir, &small());
    for number in 0..2_000 {
        put(&lost, format!("k{number}"), vec![7; 100]);
    }
    let asked = join_all((0..JOBS_MAX + 10).map(|_| lost.get(b"none")));
    // How many are answered by then is up to the threads.
    drop(block_on(poll_immediate(asked)));
    lost.leash().end();
    let (next, _) = block_on(Engine::open(dir.path().to_owned(), small())).unwrap();
    assert!(get(&next, "k1999").is_some());
    close(next);
}
