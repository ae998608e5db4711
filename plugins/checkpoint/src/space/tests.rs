//! Spaces over a real engine in a directory of its own.

use futures_util::{FutureExt, future::join_all};
use ksi_sdk::protocol::{
    limits::NAME_BYTES_MAX,
    space::{BATCH_CHANGES_MAX, Change, Check, KEY_BYTES_MAX, VALUE_BYTES_MAX},
};

use super::*;
use crate::{engine::Options, testing::block_on};

fn on<T>(work: impl AsyncFnOnce(std::rc::Rc<Engine>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (engine, _) = Engine::open(dir.path().to_owned(), Options::default()).await.unwrap();
        let result = work(engine.clone()).await;
        engine.close().await.unwrap();
        result
    })
}

fn space(name: &str) -> Space {
    Space::of(&format!("plugin:{name}")).unwrap()
}

fn put(key: &str, value: &str) -> Change {
    Change {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

fn check(key: &str, version: Seq) -> Check {
    Check { key: Bytes::copy_from_slice(key.as_bytes()), version }
}

async fn read(spaces: &Spaces, engine: &Engine, of: &str, key: &str) -> (Option<Bytes>, Seq) {
    let got =
        spaces.get(engine, &space(of), Get { key: Bytes::copy_from_slice(key.as_bytes()) }).await.unwrap();
    (got.value, got.version)
}

#[test]
fn a_value_is_read_back_with_its_version_and_nobody_else_sees_it() {
    on(async |engine| {
        let spaces = Spaces::default();
        let ask = Apply { changes: vec![put("k", "one")], ..Apply::default() };
        let Applied { version } = spaces.apply(&engine, &space("a"), ask).await.unwrap();
        assert_eq!(read(&spaces, &engine, "a", "k").await, (Some(Bytes::from_static(b"one")), version));
        assert_eq!(read(&spaces, &engine, "a-b", "k").await, (None, 0));
        assert_eq!(read(&spaces, &engine, "b", "k").await, (None, 0));
        let ask = Apply { changes: vec![put("k", "two")], ..Apply::default() };
        let later = spaces.apply(&engine, &space("a"), ask).await.unwrap().version;
        assert!(later > version);
    });
}

#[test]
fn a_failed_check_changes_nothing_and_says_what_is_there() {
    on(async |engine| {
        let spaces = Spaces::default();
        let ask = Apply { checks: vec![check("k", 0)], changes: vec![put("k", "one")] };
        let Applied { version } = spaces.apply(&engine, &space("a"), ask.clone()).await.unwrap();
        let refusal = spaces.apply(&engine, &space("a"), ask).await.unwrap_err();
        assert_eq!(refusal.code, Code::Conflict);
        assert_eq!(refusal.details.unwrap()["version"], version);
        let both = Apply {
            checks: vec![check("k", version), check("other", 7)],
            changes: vec![put("k", "x"), put("other", "y")],
        };
        let refusal = spaces.apply(&engine, &space("a"), both).await.unwrap_err();
        assert_eq!(refusal.details.unwrap(), serde_json::json!({"check": 1, "version": 0}));
        assert_eq!(read(&spaces, &engine, "a", "k").await.0.unwrap(), "one");
    });
}

#[test]
fn of_many_who_swap_the_same_version_at_once_one_wins() {
    on(async |engine| {
        let spaces = Spaces::default();
        let attempts = (0..16).map(|n| {
            let ask = Apply { checks: vec![check("k", 0)], changes: vec![put("k", &n.to_string())] };
            let (spaces, engine) = (&spaces, &engine);
            async move { spaces.apply(engine, &space("a"), ask).await.is_ok() }
        });
        let won = join_all(attempts).await.into_iter().filter(|won| *won).count();
        assert_eq!(won, 1);
    });
}

#[test]
fn pages_are_bounded_in_entries_and_bytes_and_miss_nothing() {
    on(async |engine| {
        let spaces = Spaces::default();
        let value = "v".repeat(900 * 1024);
        for n in 0..9 {
            let ask = Apply { changes: vec![put(&format!("big/{n}"), &value)], ..Apply::default() };
            spaces.apply(&engine, &space("a"), ask).await.unwrap();
        }
        let small = (0..50).map(|n| put(&format!("small/{n:02}"), "")).collect();
        spaces.apply(&engine, &space("a"), Apply { changes: small, ..Apply::default() }).await.unwrap();
        for (prefix, limit, expected) in [("big/", 0, 9), ("small/", 7, 50), ("small/", 0, 50), ("", 0, 59)] {
            let (mut after, mut seen) = (None, Vec::new());
            loop {
                let ask = Scan { prefix: Bytes::from(prefix), after: after.take(), limit };
                let page = spaces.scan(&engine, &space("a"), ask).await.unwrap();
                let bytes: usize = page.entries.iter().map(|entry| entry.value.len()).sum();
                assert!(bytes <= BATCH_BYTES_MAX && (limit == 0 || page.entries.len() <= limit as usize));
                seen.extend(page.entries.iter().map(|entry| entry.key.clone()));
                after = seen.last().cloned();
                if !page.more {
                    break;
                }
                assert!(!page.entries.is_empty(), "a page with more after it has something");
            }
            assert_eq!(seen.len(), expected, "{prefix} {limit}");
            assert!(seen.is_sorted());
        }
    });
}

#[test]
fn what_is_too_large_is_refused_with_its_size() {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let wide = "v".repeat(VALUE_BYTES_MAX + 1);
    let full = "v".repeat(VALUE_BYTES_MAX);
    on(async |engine| {
        let spaces = Spaces::default();
        for changes in [
            vec![put(&long, "")],
            vec![put("k", &wide)],
            (0..5).map(|n| put(&n.to_string(), &full)).collect(),
            vec![put("k", ""); BATCH_CHANGES_MAX + 1],
        ] {
            let ask = Apply { changes, ..Apply::default() };
            let refusal = spaces.apply(&engine, &space("a"), ask).now_or_never().unwrap().unwrap_err();
            assert_eq!(refusal.code, Code::TooLarge);
        }
    });
}

#[test]
fn only_plugins_have_a_space() {
    for origin in ["session:7", "daemon", "plugin:", "", "plugin"] {
        let refusal = Space::of(origin).err().unwrap();
        assert_eq!(refusal.code, Code::Denied, "{origin}");
    }
}

#[test]
fn a_key_has_all_the_bytes_that_are_promised_whatever_its_plugin_is_called() {
    on(async |engine| {
        let (spaces, longest) = (Spaces::default(), "p".repeat(NAME_BYTES_MAX));
        let key = "k".repeat(KEY_BYTES_MAX);
        let ask = Apply { changes: vec![put(&key, "one")], ..Apply::default() };
        let Applied { version } = spaces.apply(&engine, &space(&longest), ask).await.unwrap();
        engine.checkpoint().await.unwrap();
        assert_eq!(read(&spaces, &engine, &longest, &key).await, (Some(Bytes::from_static(b"one")), version));
    });
}
