//! Models that come and go.

use super::*;
use crate::gguf::Header;

fn shelf(config: Config) -> (tempfile::TempDir, Shelf, Header) {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(models.join(format!("{name}.gguf")), crate::models::BUILTIN).unwrap();
    }
    let library = Library::new(models, dir.path());
    let header = library.find("ksi-tiny").unwrap().1;
    (dir, Shelf::new(config, library), header)
}

fn load(shelf: &Shelf, name: &str) -> Result<Loaded, Refusal> {
    shelf.load(name, &Tuning::default(), &CancelToken::default(), |_| true)
}

#[test]
fn models_make_room_within_the_budget_and_the_newest_stay() {
    // Each takes some 50 MiB, so two fit.
    let (_dir, shelf, _) = shelf(Config { max_loaded: 16, max_memory_mb: Some(128), ..Config::default() });
    for name in ["a", "b", "a", "c"] {
        load(&shelf, name).unwrap();
    }
    assert!(shelf.loaded().keys().eq(["a", "c"]));
    assert_eq!(shelf.moves().evictions.load(Ordering::Relaxed), 1);
    let taken: u64 = shelf.residents().values().map(|resident| resident.bytes).sum();
    assert!(taken <= 128 * 1024 * 1024, "{taken}");
    let held = [load(&shelf, "a").unwrap(), load(&shelf, "c").unwrap()];
    assert_eq!(load(&shelf, "b").err().unwrap().code, Code::Busy, "both are in use");
    drop(held);
    load(&shelf, "b").unwrap();
}

#[test]
fn a_model_beyond_the_budget_is_refused_before_another_has_to_go() {
    let (_dir, shelf, header) = shelf(Config { max_memory_mb: Some(128), ..Config::default() });
    load(&shelf, "a").unwrap();
    let big = Header { size_bytes: 40_000_000_000, ..header };
    let plan = Plan::of(&shelf.config, "big", &Tuning::default(), &big, 0, None).unwrap();
    let refusal = plan.next(&shelf.occupants()).unwrap_err();
    assert!(refusal.message.contains("max_memory_mb"), "{refusal}");
    assert!(shelf.loaded().keys().eq(["a"]));
}

#[test]
fn an_idle_model_expires_and_one_in_use_does_not() {
    let (_dir, shelf, _) = shelf(Config::default());
    let held = load(&shelf, "a").unwrap();
    drop(load(&shelf, "b").unwrap());
    assert!(shelf.expire(Duration::from_secs(3600)).is_empty());
    assert_eq!(shelf.expire(Duration::ZERO), ["b"]);
    drop(held);
    assert_eq!(shelf.expire(Duration::ZERO), ["a"]);
    assert_eq!(shelf.moves().expirations.load(Ordering::Relaxed), 2);
}

#[test]
fn models_come_and_go_at_random_and_nobody_waits_for_ever() {
    let (_dir, shelf, _) = shelf(Config { max_loaded: 2, ..Config::default() });
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let shelf = &shelf;
            scope.spawn(move || {
                for step in 0..40_usize {
                    let name = ["a", "b", "c"][(thread * 7 + step * 5) % 3];
                    match (thread + step) % 5 {
                        0 => drop(shelf.unload(name)),
                        1 => drop(shelf.expire(Duration::ZERO)),
                        _ => match load(shelf, name) {
                            Ok(loaded) => {
                                assert_eq!(loaded.report.model, name);
                                let tokens = loaded.ticket.engine().model().tokens_of("Hello").unwrap();
                                assert!(!tokens.is_empty());
                            }
                            Err(refusal) => assert_eq!(refusal.code, Code::Busy, "{refusal}"),
                        },
                    }
                    assert!(shelf.loaded().len() <= 2);
                }
            });
        }
    });
}
