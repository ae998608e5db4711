//! What becomes of entries after their end: retries, keys, results, and how
//! long each is kept.

use ksi_sdk::protocol::{Bytes, Code, Refusal, work::Policy};

use super::world::{START, World, limited};
use crate::{
    ledger::{Admission, Ending, Id, KEY_MS, Key, Limits, State, digest},
    record::keys,
    testing::policy,
};

#[test]
fn a_key_belongs_to_one_payload_for_a_day_after_the_end() {
    let mut world = limited(9);
    let (id, new) = world.accept_keyed("k", b"one").unwrap();
    assert!(new);
    assert_eq!(world.accept_keyed("k", b"one").unwrap(), (id, false));
    assert_eq!(world.accept_keyed("k", b"two").unwrap_err().code, Code::Conflict);
    world.crash();
    assert_eq!(world.accept_keyed("k", b"one").unwrap(), (id, false));
    world.pass(0);
    world.done(id);
    world.pass(KEY_MS - 1);
    assert_eq!(world.accept_keyed("k", b"one").unwrap(), (id, false));
    assert_eq!(world.accept_keyed("k", b"two").unwrap_err().code, Code::Conflict);
    world.pass(1);
    let (next, new) = world.accept_keyed("k", b"two").unwrap();
    assert!(new && next != id);
}

#[test]
fn under_a_key_the_fields_may_come_in_another_order() {
    const ONE: &[u8] = b"\x82\xa1a\x01\xa1b\x02";
    const SAME: &[u8] = b"\x82\xa1b\xcc\x02\xa1a\x01";
    const OTHER: &[u8] = b"\x82\xa1a\x02\xa1b\x01";
    let mut world = limited(9);
    let (id, _) = world.accept_keyed("k", ONE).unwrap();
    assert_eq!(world.accept_keyed("k", SAME).unwrap(), (id, false));
    assert_eq!(world.accept_keyed("k", OTHER).unwrap_err().code, Code::Conflict);
    world.done(id);
    assert_eq!(world.accept_keyed("k", SAME).unwrap(), (id, false), "also after its end");
    // What a release before this one has written down is known by its bytes.
    let key = Key { text: "l".into(), payload: digest::of_bytes(ONE) };
    let order = world.order("a:keyed", policy(), Some(key));
    let admission = world.ledger.accept(world.now, order, Bytes::from_static(ONE), None).unwrap();
    let Admission::New { id, step } = admission else { panic!("{admission:?}") };
    world.books.ends.insert(id, (0, 1));
    world.carry(step);
    assert_eq!(world.accept_keyed("l", ONE).unwrap(), (id, false));
    assert_eq!(world.accept_keyed("l", OTHER).unwrap_err().code, Code::Conflict);
}

#[test]
fn an_operator_has_ended_work_done_again_under_its_name() {
    let mut world = limited(9);
    let id = world.accept("a:b", Policy { attempts: 1, ..policy() });
    assert_eq!(world.retry(id).unwrap_err().code, Code::Conflict, "it has not ended");
    for attempts in 1..4 {
        assert_eq!(world.entry(id).unwrap().attempts, attempts, "attempts are counted on");
        world.refuse(id, Code::Denied);
        assert_eq!(world.how(id), Some(Ending::Failed));
        world.pass(60_000);
        world.retry(id).unwrap();
    }
    assert_eq!(world.entry(id).unwrap().info(id).refusal, None, "why it ended before is over");
    world.done(id);
    let refusal = world.retry(id).unwrap_err();
    assert_eq!(refusal.code, Code::Conflict);
    let cancelled = world.accept("a:b", policy());
    world.cancel(cancelled);
    assert_eq!(world.retry(cancelled).unwrap_err().code, Code::Conflict);
}

#[test]
fn a_key_that_was_forgotten_is_not_taken_back_by_a_retry() {
    let mut world = limited(9);
    let (old, _) = world.accept_keyed("k", b"one").unwrap();
    world.cancel(old);
    let keeps = Policy { keep_ms: 3 * KEY_MS, ..policy() };
    let order = world.order("a:keyed", keeps, Some(Key::new("l", b"one")));
    let step = match world.ledger.accept(world.now, order, Bytes::from_static(b"one"), None).unwrap() {
        Admission::New { id, step } => {
            world.books.ends.insert(id, (0, 1));
            (id, step)
        }
        other => panic!("{other:?}"),
    };
    let id = step.0;
    world.carry(step.1);
    world.refuse(id, Code::Denied);
    world.pass(KEY_MS);
    let (newer, new) = world.accept_keyed("l", b"two").unwrap();
    assert!(new);
    world.retry(id).unwrap();
    assert_eq!(world.accept_keyed("l", b"two").unwrap(), (newer, false));
    world.crash();
    assert_eq!(world.accept_keyed("l", b"two").unwrap(), (newer, false));
}

#[test]
fn results_are_kept_for_their_time_and_within_their_bounds() {
    let mut world = World::new(Limits { kept: 5, ..Limits::default() });
    for _ in 0..9 {
        let id = world.accept("a:b", policy());
        world.done(id);
        world.pass(1);
    }
    let kept = |world: &World| world.books.table.keys().filter(|key| key[0] == keys::RESULT).count();
    assert_eq!((kept(&world), world.ledger.figures().kept), (5, 5));
    let unknown = world.accept("a:b", Policy { repeat: false, ..policy() });
    world.refuse(unknown, Code::Unknown);
    world.pass(600_000);
    assert_eq!(world.entries().len(), 1, "what somebody has to look at stays longer");
    assert_eq!(world.how(unknown), Some(Ending::Unknown));
    world.pass(30 * KEY_MS);
    assert!(world.books.table.is_empty(), "nothing is left behind");
    assert_eq!(world.retry(unknown).unwrap_err().code, Code::NotFound);
}

#[test]
fn large_results_push_out_others() {
    let mut world = World::new(Limits { kept_bytes: 1_000, ..Limits::default() });
    for _ in 0..3 {
        let id = world.accept("a:b", policy());
        world.answer(id, Ok(Bytes::from(vec![0xc0; 400])));
        world.pass(1);
    }
    assert_eq!(world.ledger.figures().kept, 1);
    assert!(world.ledger.figures().kept_bytes <= 1_000);
}

#[test]
fn a_key_is_answered_with_work_that_is_known_when_its_result_is_pushed_out_or_too_old() {
    let mut world = World::new(Limits { kept: 1, ..Limits::default() });
    let (pushed, _) = world.accept_keyed("k", b"one").unwrap();
    world.done(pushed);
    let (old, _) = world.accept_keyed("l", b"two").unwrap();
    world.refuse(old, Code::Denied);
    world.pass(1);
    assert_eq!((world.is_small(pushed), world.is_small(old)), (true, false));
    world.pass(policy().keep_ms);
    assert!(world.is_small(old));
    world.crash();
    let figures = world.ledger.figures();
    assert_eq!((figures.kept, figures.kept_bytes, figures.remembered), (0, 0, 2));
    assert_eq!(world.accept_keyed("k", b"one").unwrap(), (pushed, false));
    assert_eq!(world.accept_keyed("l", b"two").unwrap(), (old, false));
    assert_eq!((world.how(pushed), world.how(old)), (Some(Ending::Done), Some(Ending::Failed)));
    let refusal = world.retry(old).unwrap_err();
    assert_eq!(refusal.code, Code::Conflict);
    assert!(refusal.message.contains("not kept any more"), "{refusal:?}");
    world.pass(KEY_MS);
    assert!(world.entries().is_empty(), "with its key");
    assert!(world.books.table.keys().all(|key| key[0] == keys::KEY), "no mark is left behind");
}

#[test]
fn keys_beyond_their_bound_are_forgotten_with_their_work_the_oldest_first() {
    let mut world = World::new(Limits { kept: 1, keys: 2, ..Limits::default() });
    let names = ["a", "b", "c", "d", "e"];
    let ids = names.map(|name| {
        let (id, _) = world.accept_keyed(name, b"one").unwrap();
        world.done(id);
        world.pass(1);
        id
    });
    assert_eq!(world.entries().len(), 3, "one whole, two small");
    assert_eq!(world.books.table.keys().filter(|key| key[0] == keys::KEY).count(), 3);
    for (name, id) in names.into_iter().zip(ids).skip(2) {
        assert_eq!(world.accept_keyed(name, b"one").unwrap(), (id, false));
    }
    assert!(world.accept_keyed("a", b"two").unwrap().1, "it is forgotten, and free");
}

#[test]
fn what_has_ended_is_forgotten_on_demand() {
    let mut world = limited(9);
    let id = world.accept("a:b", policy());
    assert_eq!(world.forget(id).unwrap_err().code, Code::Conflict);
    world.refuse(id, Code::Denied);
    let entry = world.entry(id).unwrap();
    world.forget(id).unwrap();
    assert!(world.books.table.is_empty());
    assert_eq!(world.ledger.forget(world.now, id, &entry).unwrap_err().code, Code::NotFound);
}

#[test]
fn what_is_forgotten_on_demand_takes_its_key_along_whole_or_small() {
    let mut world = limited(9);
    for pass in [0, policy().keep_ms] {
        let (id, _) = world.accept_keyed("k", b"one").unwrap();
        world.done(id);
        world.pass(pass);
        assert_eq!(world.is_small(id), pass > 0);
        world.forget(id).unwrap();
        assert!(world.books.table.is_empty());
        assert_eq!(world.ledger.due_ms(), None);
    }
}

#[test]
fn what_a_clock_that_was_ahead_has_put_off_comes_in_its_time() {
    const YEAR: u64 = 365 * 24 * 3600 * 1000;
    let mut world = limited(9);
    world.now += YEAR;
    // Each with a handler of its own, which holds up no other.
    let crashed = world.accept("c:b", policy());
    let crashes =
        |world: &World| world.entry(crashed).unwrap().trouble.map_or(vec![], |trouble| trouble.crashes);
    loop {
        world.refuse(crashed, Code::PluginRestarted);
        if !crashes(&world).is_empty() {
            break;
        }
        world.pass(1_000);
    }
    let (paused, asked) = (world.accept("a:b", policy()), world.accept("b:b", policy()));
    world.refuse(paused, Code::Busy);
    world.answer(asked, Err(Refusal::new(Code::Busy, "later").retry_after_ms(20_000)));
    let ids = [paused, crashed, asked];
    // With a right clock nothing of it changes.
    let before = ids.map(|id| world.entry(id));
    world.crash();
    assert_eq!(ids.map(|id| world.entry(id)), before);
    world.now = START;
    world.crash();
    for (id, longest_ms) in ids.into_iter().zip([1_000, 1_000, 20_000]) {
        let entry = world.entry(id).unwrap();
        assert!(
            matches!(entry.state, State::Waiting { until_ms } if until_ms <= START + longest_ms),
            "{entry:?}"
        );
        // It may as well be this clock that is behind: nobody's life is cut short.
        assert_eq!(entry.expires_ms, START + YEAR + policy().expires_ms);
    }
    assert_eq!(crashes(&world), [START]);
    for (id, pause_ms) in ids.into_iter().zip([1_000, 0, 19_000]) {
        world.pass(pause_ms);
        world.done(id);
        assert_eq!(world.how(id), Some(Ending::Done));
    }
}

#[test]
fn names_rise_over_a_restart_with_the_clock_put_back() {
    let mut world = limited(1);
    let mut order = world.order("a:b", policy(), None);
    order.id = Id::from_u128(1 << 90);
    let admission = world.ledger.accept(START, order, Bytes::new(), None).unwrap();
    let Admission::New { id: first, step } = admission else { panic!("it is new") };
    world.books.ends.insert(first, (0, 1));
    world.carry(step);
    world.crash();
    let second = world.accept("a:b", policy());
    assert!(second > first);
}
