//! The rules of dispatch, one by one.

use ksi_sdk::protocol::{Bytes, Code, Refusal, work::Policy};
use serde_json::json;

use super::world::{START, World, limited};
use crate::{
    ledger::{Admission, Effect, Ending, Figures, Id, Limits, Order, State},
    testing::policy,
};

#[test]
fn an_acceptance_with_room_holds_its_first_lease_in_one_write() {
    let mut world = limited(1);
    let order = world.order("a:b", policy(), None);
    let Admission::New { id, step } =
        world.ledger.accept(START, order, Bytes::from_static(b"x"), None).unwrap()
    else {
        panic!("it is new")
    };
    assert_eq!(step.batch.changes().len(), 2, "the payload and the entry");
    let Effect::Run(run) = &step.effects[0] else { panic!("it is begun") };
    assert_eq!((run.id, run.lease), (id, 1));
    assert_eq!((run.origin.as_str(), run.correlation_id.as_deref()), ("session:1", Some("c-1")));
    world.ledger.withdraw(id);
    assert_eq!(world.ledger.figures(), Figures::default());
}

#[test]
fn events_have_lanes_of_their_own_in_order_and_with_their_limit() {
    let mut world = limited(2);
    let a: Vec<Id> = (0..4).map(|_| world.accept("a:b", policy())).collect();
    let other = world.accept("a:c", policy());
    assert_eq!(world.books.running.len(), 3);
    assert!(world.books.running.contains_key(&other));
    assert_eq!(world.state(a[2]), State::Accepted);
    world.done(a[1]);
    assert!(world.books.running.contains_key(&a[2]) && !world.books.running.contains_key(&a[3]));
    world.cancel(a[0]);
    assert!(world.books.running.contains_key(&a[3]));
}

#[test]
fn what_comes_back_takes_its_old_place() {
    let mut world = limited(1);
    let first = world.accept("a:b", policy());
    let second = world.accept("a:b", policy());
    let third = world.accept("a:b", policy());
    world.answer(first, Err(Refusal::new(Code::Internal, "not now").retry_after_ms(100)));
    assert!(world.books.running.contains_key(&second));
    world.pass(100);
    world.done(second);
    assert!(world.books.running.contains_key(&first));
    world.done(first);
    world.done(third);
}

#[test]
fn attempts_that_count_are_used_up_and_the_last_refusal_is_kept() {
    let mut world = limited(9);
    let id = world.accept("a:b", policy());
    let later = Refusal { retryable: true, ..Refusal::new(Code::Internal, "not today") };
    for attempt in 1..=3 {
        assert_eq!(world.entry(id).unwrap().attempts, attempt);
        world.answer(id, Err(later.clone()));
        world.pass(1_000);
    }
    assert_eq!(world.how(id), Some(Ending::Failed));
    let info = world.entry(id).unwrap().info(id);
    assert_eq!((info.refusal, info.attempts), (Some(later), 3));
    assert_eq!(world.books.last_ended.as_ref().unwrap().code, Some(Code::Internal));
}

#[test]
fn what_nobody_could_take_costs_no_attempt_and_expires_at_last() {
    let mut world = limited(9);
    let id = world.accept("a:b", policy());
    for code in [Code::Busy, Code::Unavailable, Code::NoOwner, Code::ShuttingDown].repeat(3) {
        world.refuse(id, code);
        assert!(matches!(world.state(id), State::Waiting { until_ms } if until_ms <= world.now + 1_000));
        world.pass(1_000);
        assert_eq!(world.entry(id).unwrap().attempts, 1);
    }
    world.refuse(id, Code::NoOwner);
    world.pass(1_000);
    world.answer(id, Err(Refusal::new(Code::Busy, "full").retry_after_ms(3_600_000)));
    world.pass(60_000);
    assert_eq!(world.how(id), Some(Ending::Expired));
    assert_eq!(world.books.last_ended.as_ref().unwrap().code, Some(Code::Timeout));
    let refusal = world.entry(id).unwrap().info(id).refusal.unwrap();
    assert_eq!(refusal.message, "it was not done within 60000 ms; the last attempt: busy: full");
}

#[test]
fn many_whose_owner_is_away_cost_few_attempts_and_all_go_when_he_is_back() {
    let mut world = limited(16);
    let long = Policy { expires_ms: u64::MAX, ..policy() };
    let ids: Vec<Id> = (0..1_000).map(|_| world.accept("a:b", long)).collect();
    let mut attempts = 0;
    let away_until = world.now + 60_000;
    while world.now < away_until {
        match world.books.running.keys().copied().next() {
            Some(id) => {
                attempts += 1;
                world.refuse(id, Code::NoOwner);
            }
            None => world.pass(10),
        }
    }
    assert!((60..600).contains(&attempts), "{attempts} attempts in a minute of pauses up to a second");
    let mut rounds = 0;
    while world.ledger.figures().pending > 0 {
        world.pass(1_000);
        let running: Vec<Id> = world.books.running.keys().copied().collect();
        running.into_iter().for_each(|id| world.done(id));
        rounds += 1;
        assert!(rounds < 200, "{} are left", world.ledger.figures().pending);
    }
    assert!(ids.iter().all(|id| world.how(*id) == Some(Ending::Done)));
}

#[test]
fn a_busy_owner_is_asked_for_no_more_than_he_takes() {
    let mut world = limited(16);
    for _ in 0..100 {
        world.accept("a:b", policy());
    }
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..40 {
        let mut fresh: Vec<Id> =
            world.books.running.keys().copied().filter(|id| !held.contains(id)).collect();
        fresh.sort_unstable();
        for id in fresh {
            // He takes four at a time.
            if held.len() < 4 {
                held.push(id);
            } else {
                refused += 1;
                world.refuse(id, Code::Busy);
            }
        }
        world.pass(100);
    }
    assert_eq!(held.len(), 4);
    assert!(refused < 200, "{refused}");
    let before = world.books.running.len();
    world.done(held[0]);
    assert!(world.books.running.len() >= before, "the place is taken at once");
}

#[test]
fn one_that_asks_for_a_long_pause_does_not_hold_up_the_others() {
    let mut world = limited(1);
    let long = Policy { expires_ms: u64::MAX, ..policy() };
    let patient = world.accept("a:b", long);
    let second = world.accept("a:b", long);
    world.answer(patient, Err(Refusal::new(Code::Busy, "full").retry_after_ms(3_600_000)));
    world.pass(999);
    assert!(world.books.running.is_empty(), "the lane pauses");
    // Time has passed, and the tick for it is late: nobody overtakes.
    world.now += 1;
    let third = world.accept("a:b", long);
    assert!(world.books.running.is_empty());
    world.pass(0);
    assert!(world.books.running.contains_key(&second));
    world.done(second);
    assert!(world.books.running.contains_key(&third));
}

#[test]
fn one_that_comes_back_may_try_while_others_run() {
    let mut world = limited(9);
    let slow = world.accept("a:b", Policy { timeout_ms: 1_000_000, ..policy() });
    let refused = world.accept("a:b", policy());
    world.refuse(refused, Code::Busy);
    let next = world.accept("a:b", policy());
    assert!(!world.books.running.contains_key(&next), "no more than run already");
    world.pass(100);
    assert!(world.books.running.contains_key(&refused) && world.books.running.contains_key(&slow));
    world.done(refused);
    assert!(world.books.running.contains_key(&next));
}

#[test]
fn a_refusal_that_names_a_time_is_waited_for() {
    let mut world = limited(9);
    let id = world.accept("a:b", policy());
    world.answer(id, Err(Refusal::new(Code::Busy, "full").retry_after_ms(7_000)));
    assert_eq!(world.state(id), State::Waiting { until_ms: START + 7_000 });
    world.pass(6_999);
    assert!(world.books.running.is_empty());
    world.pass(1);
    world.done(id);
}

#[test]
fn three_crashes_of_the_handler_in_ten_minutes_are_death() {
    let many = Policy { attempts: 9, expires_ms: u64::MAX, ..policy() };
    let mut world = limited(9);
    let id = world.accept("a:b", many);
    for _ in 0..3 {
        world.refuse(id, Code::PluginRestarted);
        world.pass(1_000);
    }
    assert_eq!(world.how(id), Some(Ending::Dead));
    let refusal = world.entry(id).unwrap().info(id).refusal.unwrap();
    assert!(refusal.message.contains("3 times") && !refusal.retryable, "{refusal:?}");

    let slow = world.accept("a:b", Policy { timeout_ms: 1_000_000, ..many });
    for _ in 0..8 {
        world.refuse(slow, Code::PluginRestarted);
        world.pass(301_000);
        assert!(world.books.running.contains_key(&slow), "two crashes fall into ten minutes at most");
    }
    world.refuse(slow, Code::PluginRestarted);
    assert_eq!(world.how(slow), Some(Ending::Dead), "its attempts are used up");
}

/// The plugin of all that runs crashes.
fn fall(world: &mut World) {
    let mut running: Vec<Id> = world.books.running.keys().copied().collect();
    running.sort_unstable();
    for id in running {
        world.refuse(id, Code::PluginRestarted);
    }
}

/// Lets all run but for the poison, which takes its plugin with it; when it did.
fn poisoned(world: &mut World, poison: &[Id]) -> Vec<u64> {
    let mut crashes = Vec::new();
    while world.ledger.figures().pending > 0 {
        let running: Vec<Id> = world.books.running.keys().copied().collect();
        if running.iter().any(|id| poison.contains(id)) {
            crashes.push(world.now);
            fall(world);
        } else {
            running.into_iter().for_each(|id| world.done(id));
        }
        world.pass(1_000);
    }
    crashes
}

#[test]
fn who_merely_ran_beside_poison_is_not_charged_for_the_crash() {
    let mut world = limited(9);
    let long = Policy { attempts: 9, expires_ms: u64::MAX, ..policy() };
    let ids: Vec<Id> = (0..6).map(|_| world.accept("a:b", long)).collect();
    let neighbour = world.accept("a:c", long);
    let once = world.accept("a:b", Policy { repeat: false, ..policy() });
    let elsewhere = world.accept("b:c", long);
    world.done(elsewhere);
    let poison = ids[2];
    assert_eq!(poisoned(&mut world, &[poison]).len(), 5, "the first two, and three over which it is charged");
    assert_eq!(world.how(poison), Some(Ending::Dead));
    assert_eq!(world.how(once), Some(Ending::Unknown), "it may not be repeated unasked");
    for id in ids.into_iter().chain([neighbour]).filter(|id| *id != poison) {
        assert_eq!(world.how(id), Some(Ending::Done));
        assert_eq!(world.entry(id).unwrap().info(id).crashes, 0);
    }
}

#[test]
fn those_in_doubt_run_one_at_a_time_beside_all_others() {
    let mut world = limited(9);
    let ids: Vec<Id> = (0..3).map(|_| world.accept("a:b", policy())).collect();
    world.pass(10);
    fall(&mut world);
    world.pass(1_000);
    assert_eq!(world.books.running.len(), 3, "the first crash blames nobody");
    assert!(world.entry(ids[0]).unwrap().expires_ms > START + 60_000, "their time begins anew");
    fall(&mut world);
    world.pass(1_000);
    let first = *world.books.running.keys().next().unwrap();
    assert_eq!((world.books.running.len(), world.ledger.figures().suspects), (1, 2));
    let others: Vec<Id> = ids.into_iter().filter(|id| *id != first).collect();
    let fresh = world.accept("a:c", policy());
    assert!(world.books.running.contains_key(&fresh), "all else flows");
    world.cancel(others[0]);
    fall(&mut world);
    world.pass(1_000);
    assert!(world.books.running.contains_key(&fresh), "it has seen one crash only");
    assert!(world.books.running.contains_key(&others[1]), "who was charged least comes first");
    assert!(!world.books.running.contains_key(&first));
    let crashes = |id: Id| world.entry(id).unwrap().info(id).crashes;
    assert_eq!([first, others[1], fresh].map(crashes), [1, 0, 0]);
    for id in [others[1], fresh, first] {
        world.done(id);
    }
}

#[test]
fn however_many_are_poison_they_crash_their_plugin_four_times_a_minute_at_most() {
    let mut world = limited(9);
    let long = Policy { attempts: 9, expires_ms: u64::MAX, ..policy() };
    let ids: Vec<Id> = (0..6).map(|_| world.accept("a:b", long)).collect();
    let crashes = poisoned(&mut world, &ids[1..5]);
    assert_eq!(crashes.len(), 2 + 4 * 3);
    assert!(
        crashes.windows(5).all(|five| five[4] - five[0] >= 60_000),
        "it is let come to rest: {crashes:?}"
    );
    let ends: Vec<_> = ids.iter().map(|id| world.how(*id).unwrap()).collect();
    let [done, dead] = [Ending::Done, Ending::Dead];
    assert_eq!(ends, [done, dead, dead, dead, dead, done]);
}

#[test]
fn without_leave_to_repeat_an_unknown_outcome_is_the_end() {
    let mut world = limited(9);
    let once = Policy { repeat: false, ..policy() };
    for code in [Code::PluginRestarted, Code::Timeout, Code::Unknown] {
        let id = world.accept("a:b", once);
        world.refuse(id, code);
        assert_eq!(world.how(id), Some(Ending::Unknown), "{code}");
        let refusal = world.entry(id).unwrap().info(id).refusal.unwrap();
        assert_eq!((refusal.code, refusal.retryable), (Code::Unknown, false));
    }
    let id = world.accept("a:b", once);
    let planned = Refusal::new(Code::PluginRestarted, "reloaded").details(json!({"planned": true}));
    world.answer(id, Err(planned));
    assert_eq!(world.entry(id).unwrap().attempts, 0, "a planned end costs no attempt");
    world.pass(1_000);
    world.done(id);
}

#[test]
fn once_what_held_all_back_is_over_every_pause_ends() {
    let mut world = limited(9);
    let ids: Vec<Id> = (0..3).map(|_| world.accept("a:b", policy())).collect();
    let frozen = || Refusal::new(Code::Unavailable, "frozen").retry_after_ms(3_600_000);
    for id in &ids {
        world.answer(*id, Err(frozen()));
    }
    world.pass(1_000);
    assert!(ids.iter().all(|id| matches!(world.state(*id), State::Waiting { .. })));
    let step = world.ledger.hurry(world.now);
    world.carry(step);
    for id in ids {
        assert_eq!(world.entry(id).unwrap().attempts, 1, "what was refused did not count");
        world.done(id);
    }
}

#[test]
fn a_lease_runs_out_unless_its_handler_gives_a_word() {
    let mut world = limited(9);
    let id = world.accept("a:b", policy());
    let lease = world.books.running[&id];
    for _ in 0..5 {
        world.pass(4_900);
        world.ledger.heartbeat(world.now, id, lease);
        world.ledger.heartbeat(world.now, id, lease + 1);
    }
    assert!(world.books.running.contains_key(&id));
    world.pass(5_000);
    assert!(world.books.running.is_empty(), "it is abandoned");
    world.pass(60_000);
    assert_eq!(world.how(id), Some(Ending::Failed), "it was tried again, and was silent");

    let id = world.accept("a:b", policy());
    world.pass(5_000);
    assert!(matches!(world.state(id), State::Waiting { .. }));
    let late = world.ledger.outcome(world.now, id, 1, Ok(Bytes::from_static(b"late")));
    assert!(late.batch.is_empty() && late.effects.is_empty(), "the lease was given up");
}

#[test]
fn what_is_queued_too_long_is_never_begun() {
    let mut world = limited(1);
    let first = world.accept("a:b", Policy { timeout_ms: 100_000, ..policy() });
    let second = world.accept("a:b", policy());
    world.pass(60_000);
    assert_eq!(world.how(second), Some(Ending::Expired));
    let refusal = world.entry(second).unwrap().info(second).refusal.unwrap();
    assert_eq!(refusal.message, "it was not done within 60000 ms");
    assert!(world.books.running.contains_key(&first), "what runs may go on");
    let third = world.accept("a:b", policy());
    world.now += 60_000;
    world.done(first);
    assert_eq!(world.how(third), Some(Ending::Expired), "its turn came too late");
}

#[test]
fn too_much_that_waits_is_refused_busy() {
    let mut world = World::new(Limits { pending: 4, in_flight: 1, ..Limits::default() });
    let accept = |world: &mut World, principal: &str| {
        let order = Order { principal: Some(principal.into()), ..world.order("a:b", policy(), None) };
        world.ledger.accept(world.now, order, Bytes::new(), None).map(|admission| match admission {
            Admission::New { id, .. } | Admission::Same { id, .. } => id,
        })
    };
    let refused = |world: &mut World, principal: &str| {
        let refusal = accept(world, principal).unwrap_err();
        assert_eq!((refusal.code, refusal.retryable), (Code::Busy, true));
        refusal.message
    };
    let first = accept(&mut world, "user:a").unwrap();
    accept(&mut world, "user:a").unwrap();
    assert!(refused(&mut world, "user:a").contains("the rest is for others"));
    // So others have room, down to the last place.
    for principal in ["user:b", "user:c"] {
        accept(&mut world, principal).unwrap();
    }
    assert!(refused(&mut world, "user:d").starts_with("4 pieces"));
    world.ledger.withdraw(first);
    accept(&mut world, "user:d").unwrap();
    assert!(refused(&mut world, "user:a").starts_with("4 pieces"));
}

#[test]
fn too_many_bytes_that_wait_are_refused_busy_also_after_a_restart() {
    let mut world = World::new(Limits { pending_bytes: 400, in_flight: 1, ..Limits::default() });
    let accept = |world: &mut World, principal: &str, bytes: usize| {
        let order = Order { principal: Some(principal.into()), ..world.order("a:b", policy(), None) };
        let admission = world.ledger.accept(world.now, order, Bytes::from(vec![0; bytes]), None)?;
        let Admission::New { id, step } = admission else { panic!("it is new") };
        world.books.ends.insert(id, (0, 1));
        world.carry(step);
        Ok::<Id, Refusal>(id)
    };
    let refused = |world: &mut World, principal: &str, bytes: usize| {
        let refusal = accept(world, principal, bytes).unwrap_err();
        assert_eq!((refusal.code, refusal.retryable), (Code::Busy, true));
        refusal.message
    };
    let first = accept(&mut world, "user:a", 150).unwrap();
    assert!(refused(&mut world, "user:a", 51).contains("150 bytes waits; the rest is for others"));
    accept(&mut world, "user:a", 50).unwrap();
    world.plan_restart();
    assert!(refused(&mut world, "user:a", 1).contains("200 bytes waits; the rest is for others"));
    accept(&mut world, "user:b", 100).unwrap();
    assert!(refused(&mut world, "user:c", 101).starts_with("work with payloads of 300 bytes"));
    world.done(first);
    accept(&mut world, "user:c", 101).unwrap();
    let before = world.ledger.figures();
    let order = world.order("a:b", policy(), None);
    let Ok(Admission::New { id, .. }) = world.ledger.accept(START, order, Bytes::from_static(b"x"), None)
    else {
        panic!("it is new")
    };
    world.ledger.withdraw(id);
    assert_eq!(world.ledger.figures(), before);
}

#[test]
fn a_stopping_ledger_takes_work_and_begins_none() {
    let mut world = limited(1);
    let running = world.accept("a:b", policy());
    let waiting = world.accept("a:b", policy());
    world.ledger.stop();
    world.done(running);
    let late = world.accept("a:b", policy());
    world.pass(30_000);
    assert_eq!((world.state(waiting), world.state(late)), (State::Accepted, State::Accepted));
    world.plan_restart();
    assert!(world.books.running.contains_key(&waiting));
}

#[test]
fn a_planned_end_of_the_daemon_costs_nothing_and_blames_nobody() {
    let mut world = limited(9);
    let once = world.accept("a:b", Policy { repeat: false, attempts: 1, ..policy() });
    let again = world.accept("a:c", policy());
    for _ in 0..9 {
        world.plan_restart();
        assert_eq!(world.books.running.len(), 2);
        assert_eq!(world.entry(once).unwrap().attempts, 1);
    }
    world.done(once);
    world.done(again);
}

#[test]
fn one_death_of_the_daemon_makes_nobody_suspect_and_nobody_expire() {
    let mut world = limited(9);
    let ids: Vec<Id> = (0..4).map(|_| world.accept("a:b", policy())).collect();
    world.pass(4_000);
    world.crash();
    assert_eq!(world.books.running.len(), 4, "all of them run again, beside each other");
    assert_eq!(world.entry(ids[0]).unwrap().expires_ms, world.now + 60_000, "their time begins anew");
    assert!(ids.iter().all(|id| world.entry(*id).unwrap().attempts == 1));
    let late = world.accept("a:b", policy());
    world.now += 60_000;
    world.crash();
    assert_eq!(world.how(late), Some(Ending::Expired), "the daemon was away for too long");
}

#[test]
fn after_another_death_suspects_run_alone_and_innocents_are_not_blamed() {
    let mut world = limited(9);
    let ids: Vec<Id> = (0..4).map(|_| world.accept("a:b", policy())).collect();
    let poison = ids[1];
    let once = world.accept("a:b", Policy { repeat: false, ..policy() });
    world.crash();
    assert_eq!(world.how(once), Some(Ending::Unknown), "it may not be repeated unasked");
    world.crash();
    let fresh = world.accept("a:b", policy());
    assert!(world.books.running.contains_key(&fresh), "all else flows");
    world.done(fresh);
    let mut deaths = 2;
    for _ in 0..50 {
        let Some(&id) = world.books.running.keys().next() else {
            world.pass(1_000);
            continue;
        };
        assert_eq!(world.books.running.len(), 1, "suspects run one at a time");
        if id == poison {
            deaths += 1;
            world.crash();
            assert!(world.books.running.is_empty() || !world.books.running.contains_key(&poison));
        } else {
            world.done(id);
        }
    }
    assert_eq!(deaths, 5, "the first two, and three over which it is blamed");
    assert_eq!(world.how(poison), Some(Ending::Dead));
    for id in ids.into_iter().filter(|id| *id != poison) {
        assert_eq!(world.how(id), Some(Ending::Done));
        assert_eq!(world.entry(id).unwrap().info(id).crashes, 0);
    }
}

#[test]
fn a_suspect_that_was_blamed_waits_longer_after_each_start() {
    let mut world = limited(9);
    let poison = world.accept("a:b", Policy { attempts: 9, ..policy() });
    for _ in 0..2 {
        world.crash();
        assert!(world.books.running.contains_key(&poison), "nobody is blamed yet");
    }
    for pause in [1_000, 2_000] {
        world.crash();
        world.pass(pause - 1);
        assert!(world.books.running.is_empty());
        world.pass(1);
        assert!(world.books.running.contains_key(&poison));
    }
    world.crash();
    assert_eq!(world.how(poison), Some(Ending::Dead));
}

#[test]
fn deaths_while_no_suspect_runs_blame_nobody() {
    let mut world = limited(9);
    let ids: Vec<Id> = (0..3).map(|_| world.accept("a:b", policy())).collect();
    for _ in 0..3 {
        world.crash();
    }
    for _ in 0..20 {
        world.pass(10);
        world.crash();
    }
    for _ in &ids {
        world.pass(1_000);
        let running: Vec<Id> = world.books.running.keys().copied().collect();
        assert_eq!(running.len(), 1);
        world.done(running[0]);
    }
    for id in ids {
        assert_eq!(world.how(id), Some(Ending::Done));
    }
}

#[test]
fn what_runs_when_only_the_journal_is_opened_again_goes_on_and_what_was_not_begun_is_handed_back() {
    let mut world = limited(2);
    let once = Policy { repeat: false, attempts: 1, ..policy() };
    let [runs, unbegun, waits] = [(); 3].map(|()| world.accept("a:b", once));
    world.pass(4_000);
    world.reopen(None, Some(unbegun));
    assert_eq!(world.books.running[&runs], 1, "it has its lease still");
    assert_eq!(world.books.running[&unbegun], 2, "it is begun now, and its only attempt is this");
    assert_eq!(world.state(waits), State::Accepted);
    world.pass(4_000);
    assert_eq!(world.how(runs), None, "its lease has begun anew");
    for id in [runs, unbegun, waits] {
        world.done(id);
        assert_eq!(world.how(id), Some(Ending::Done));
    }
}

#[test]
fn what_came_of_an_attempt_before_the_journal_was_opened_again_is_heard_and_a_death_is_still_one() {
    let mut world = limited(2);
    let once = world.accept("a:b", Policy { repeat: false, ..policy() });
    let before = world.books.clone();
    world.done(once);
    world.reopen(Some(before), None);
    assert_eq!(world.how(once), Some(Ending::Unknown), "as it was answered this time");
    let other = world.accept("a:b", Policy { repeat: false, ..policy() });
    world.reopen(None, None);
    world.crash();
    assert_eq!(world.how(other), Some(Ending::Unknown));
}

#[test]
fn a_suspect_that_runs_alone_does_so_over_an_opening_too() {
    let mut world = limited(2);
    let [first, second] = [(); 2].map(|()| world.accept("a:b", policy()));
    world.crash();
    world.crash();
    assert_eq!(world.books.running.len(), 1);
    world.reopen(None, None);
    assert_eq!(world.books.running.keys().collect::<Vec<_>>(), [&first]);
    world.done(first);
    world.done(second);
}
