//! The shelf of checkpoints.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn shelf(kept: usize) -> (tempfile::TempDir, Shelf) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(dir.path().join("checkpoints"), kept);
    (dir, shelf)
}

fn put(shelf: &Shelf, at_ms: u64, seq: u64) -> Checkpoint {
    fs::create_dir_all(&shelf.dir).unwrap();
    let id = name(at_ms, seq);
    let path = shelf.file(&id);
    fs::write(&path, b"content").unwrap();
    let label = Some(format!("number {seq}"));
    let path = path.display().to_string();
    let made = Checkpoint { id, path, seq, bytes: 7, keys: Some(1), at_ms, label };
    shelf.add(&made).unwrap();
    made
}

#[test]
fn a_shelf_that_was_never_used_is_empty() {
    let (_dir, shelf) = shelf(3);
    assert_eq!(shelf.list().unwrap(), []);
}

#[test]
fn the_newest_come_first_and_the_oldest_go() {
    let (_dir, shelf) = shelf(2);
    let first = put(&shelf, 1_000, 1);
    let second = put(&shelf, 2_000, 2);
    assert_eq!(shelf.list().unwrap(), [second.clone(), first.clone()]);
    let mode = fs::metadata(shelf.note(&first.id)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "a note is for its owner only");
    let third = put(&shelf, 3_000, 3);
    assert_eq!(shelf.list().unwrap(), [third, second]);
    assert!(!Path::new(&first.path).exists() && !shelf.note(&first.id).exists());
}

#[test]
fn the_newest_is_kept_also_where_the_clock_was_set_back() {
    let (_dir, shelf) = shelf(2);
    let first = put(&shelf, 3_000, 1);
    let second = put(&shelf, 1_000, 2);
    assert_eq!(shelf.list().unwrap(), [second.clone(), first]);
    let third = put(&shelf, 500, 3);
    assert_eq!(shelf.list().unwrap(), [third.clone(), second]);
    // Positions of another journal, to which no clock and no position of this one compares.
    let other = put(&shelf, 100, 1);
    assert_eq!(shelf.list().unwrap(), [third, other.clone()]);
    assert!(Path::new(&other.path).exists() && shelf.note(&other.id).exists());
}

#[test]
fn a_checkpoint_without_its_note_is_listed_with_what_its_name_says() {
    let (_dir, shelf) = shelf(2);
    let made = put(&shelf, 1_000, 9);
    fs::write(shelf.note(&made.id), b"torn {").unwrap();
    fs::write(shelf.dir.join("other.txt"), b"not one").unwrap();
    assert_eq!(shelf.list().unwrap(), [Checkpoint { keys: None, label: None, ..made }]);
}

#[test]
fn what_is_restored_is_named_by_exactly_one_name_that_leads_nowhere_else() {
    let (_dir, shelf) = shelf(2);
    let made = put(&shelf, 1_000, 9);
    let by = |id: Option<&str>, path: Option<&str>| {
        shelf.find(Restore { id: id.map(str::to_owned), path: path.map(str::to_owned) })
    };
    assert_eq!(by(Some(&made.id), None).unwrap(), Path::new(&made.path));
    assert_eq!(by(None, Some("/a/b")).unwrap(), Path::new("/a/b"));
    for id in ["", "../../etc/passwd", "1", "1-x", "/1-2"] {
        assert_eq!(by(Some(id), None).unwrap_err().code, Code::NotFound, "{id}");
    }
    for (id, path) in [(None, None), (Some(&*made.id), Some("/a")), (None, Some("a/b"))] {
        assert_eq!(by(id, path).unwrap_err().code, Code::InvalidPayload);
    }
}
