//! Several askers of one event: nobody keeps the others from their turn.

use ksi_sdk::protocol::{Code, Refusal, work::Policy};

use super::world::World;
use crate::{
    ledger::{Ending, Id, Limits, State},
    testing::policy,
};

/// A world in which so many run of one event, whoever asks.
fn shared(in_flight: usize) -> World {
    World::new(Limits { in_flight, ..Limits::default() })
}

fn accept(world: &mut World, asker: &'static str, count: usize) -> Vec<Id> {
    world.asker = asker;
    (0..count).map(|_| world.accept("a:b", Policy { timeout_ms: 50_000, ..policy() })).collect()
}

fn running(world: &World, ids: &[Id]) -> usize {
    ids.iter().filter(|id| world.books.running.contains_key(id)).count()
}

#[test]
fn whoever_comes_later_finds_room_while_nothing_ends() {
    let mut world = shared(16);
    let flood = accept(&mut world, "user:a", 100);
    assert_eq!(running(&world, &flood), 8);
    for (asker, room) in [("user:b", 4), ("user:c", 2), ("user:d", 1), ("user:e", 1), ("user:f", 0)] {
        let ids = accept(&mut world, asker, 10);
        assert_eq!(running(&world, &ids), room, "{asker}");
    }
    assert_eq!(running(&world, &flood), 8, "what runs is not taken away");
    assert_eq!(world.books.running.len(), 16);
}

#[test]
fn a_limit_of_one_is_shared_in_turns() {
    let mut world = shared(1);
    let flood = accept(&mut world, "user:a", 20);
    let (b, c) = (accept(&mut world, "user:b", 5), accept(&mut world, "user:c", 5));
    world.done(flood[0]);
    let mut order = Vec::new();
    for _ in 0..12 {
        assert_eq!(world.books.running.len(), 1);
        let id = *world.books.running.keys().next().unwrap();
        order.push(world.entry(id).unwrap().principal.unwrap());
        world.done(id);
    }
    for three in order.chunks(3).collect::<Vec<_>>() {
        assert_eq!(three.iter().map(|name| &**name).collect::<Vec<_>>(), ["user:b", "user:c", "user:a"]);
    }
    assert!(b[..4].iter().chain(&c[..4]).all(|id| world.how(*id) == Some(Ending::Done)), "in their order");
}

#[test]
fn nobody_gets_a_turn_more_by_leaving_and_coming_back() {
    let mut world = shared(1);
    let mut next = accept(&mut world, "user:a", 1)[0];
    let patient = accept(&mut world, "user:z", 1)[0];
    accept(&mut world, "user:b", 1);
    for asker in ["user:a", "user:b", "user:a"] {
        world.done(next);
        // Each asks for one thing, and for the next once that is done.
        accept(&mut world, asker, 1);
        next = *world.books.running.keys().next().unwrap();
        if next == patient {
            return;
        }
    }
    panic!("who waited first did not come in three turns");
}

#[test]
fn turns_and_room_are_the_same_after_a_restart() {
    let mut world = shared(4);
    let flood = accept(&mut world, "user:a", 50);
    let others = accept(&mut world, "user:b", 10);
    assert_eq!((running(&world, &flood), running(&world, &others)), (2, 1));
    world.plan_restart();
    assert_eq!((running(&world, &flood), running(&world, &others)), (2, 1));
    world.crash();
    assert_eq!((running(&world, &flood), running(&world, &others)), (2, 1));
    let late = accept(&mut world, "user:c", 1);
    assert_eq!(running(&world, &late), 1);
}

#[test]
fn one_whose_share_is_used_up_elsewhere_holds_up_nobody_else() {
    let mut world = shared(8);
    let flood = accept(&mut world, "user:a", 10);
    let full = || Err(Refusal::new(Code::Busy, "your share is used up").retry_after_ms(1_000));
    for id in &flood[..4] {
        world.answer(*id, full());
    }
    assert_eq!(running(&world, &flood), 0, "it waits before it tries again");
    let ids = accept(&mut world, "user:b", 4);
    assert_eq!(running(&world, &ids), 4);
    assert!(matches!(world.state(flood[0]), State::Waiting { .. }));
    // And a queue with nothing but entries that wait is still known to be paused.
    world.cancel(flood[9]);
    let more = accept(&mut world, "user:a", 1);
    assert_eq!(running(&world, &more), 0);
    world.pass(1_000);
    assert!(running(&world, &flood) > 0);
}

#[test]
fn a_queue_whose_pause_is_over_while_the_lane_is_full_is_not_due() {
    let mut world = shared(2);
    let waits = accept(&mut world, "user:a", 2);
    world.answer(waits[0], Err(Refusal::new(Code::Busy, "full").retry_after_ms(1_000)));
    let (b, c) = (accept(&mut world, "user:b", 1), accept(&mut world, "user:c", 1));
    world.pass(1_000);
    assert_eq!((running(&world, &waits), running(&world, &b), running(&world, &c)), (0, 1, 1));
    assert!(world.ledger.due_ms().is_some_and(|due_ms| due_ms > world.now), "nobody is to look in vain");
    world.done(b[0]);
    assert_eq!(running(&world, &waits), 1);
}

#[test]
fn nothing_is_remembered_of_who_has_no_work_left() {
    let mut world = shared(2);
    for asker in ["user:a", "user:b", "user:c"] {
        let ids = accept(&mut world, asker, 3);
        world.cancel(ids[1]);
        world.done(ids[0]);
        world.done(ids[2]);
    }
    let lane = world.ledger.lanes.get(0);
    assert!(lane.is_empty(), "{lane:?}");
}
