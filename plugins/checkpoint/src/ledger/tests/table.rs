//! Every state against every input.

use ksi_sdk::protocol::{Bytes, Code, Refusal, work::Policy};
use serde_json::json;

use super::world::{START, World};
use crate::{
    ledger::{Ending, Id, Limits, State},
    testing::policy,
};

const STATES: [&str; 12] = [
    "accepted",
    "suspect",
    "leased",
    "alone",
    "waiting",
    "done",
    "failed",
    "expired",
    "cancelled",
    "dead",
    "unknown",
    "forgotten",
];

/// An entry in a state, and the lease that it has or had.
fn world_in(state: &str) -> (World, Id, u32) {
    let mut world = World::new(Limits { in_flight: 4, ..Limits::default() });
    let mut fellow = None;
    if matches!(state, "accepted" | "suspect" | "expired") {
        fellow = Some(world.accept("a:b", Policy { timeout_ms: 100_000, ..policy() }));
        // Its older fellow holds the place that there is for the entry.
        world.limits.in_flight = 2;
        world.ledger.limits.in_flight = 2;
        if state == "suspect" {
            (world.limits.in_flight, world.ledger.limits.in_flight) = (4, 4);
        }
    }
    let id = world.accept("a:b", policy());
    match state {
        "suspect" => (0..2).for_each(|_| world.crash()),
        "alone" => {
            (0..2).for_each(|_| world.crash());
            assert!(world.books.running.contains_key(&id));
        }
        "waiting" => world.answer(id, Err(Refusal::new(Code::Busy, "full").retry_after_ms(500))),
        "done" => world.done(id),
        "failed" => world.refuse(id, Code::Denied),
        "expired" => {
            world.pass(60_000);
            fellow.into_iter().for_each(|fellow| world.done(fellow));
        }
        "cancelled" => world.cancel(id),
        "dead" => {
            for _ in 0..3 {
                world.refuse(id, Code::PluginRestarted);
                world.pass(1_000);
            }
        }
        "unknown" => {
            world.ledger.live.get_mut(&id).unwrap().policy = policy_once();
            world.refuse(id, Code::Unknown);
        }
        "forgotten" => {
            world.done(id);
            world.forget(id).unwrap();
        }
        _ => {}
    }
    assert_eq!(name(&world, id), state);
    (world, id, 1)
}

fn policy_once() -> std::rc::Rc<Policy> {
    std::rc::Rc::new(Policy { repeat: false, ..policy() })
}

fn name(world: &World, id: Id) -> &'static str {
    match world.entry(id).map(|entry| entry.state) {
        None => "forgotten",
        Some(State::Accepted) => "accepted",
        Some(State::Suspect) => "suspect",
        Some(State::Leased { suspect: false, .. }) => "leased",
        Some(State::Leased { suspect: true, .. }) => "alone",
        Some(State::Waiting { .. }) => "waiting",
        Some(State::Ended { how, .. }) => match how {
            Ending::Done => "done",
            Ending::Failed => "failed",
            Ending::Expired => "expired",
            Ending::Cancelled => "cancelled",
            Ending::Dead => "dead",
            Ending::Unknown => "unknown",
        },
    }
}

type Input = fn(&mut World, Id, u32);

fn outcome(world: &mut World, id: Id, lease: u32, answer: Result<Bytes, Refusal>) {
    let step = world.ledger.outcome(world.now, id, lease, answer);
    if !step.effects.is_empty() || !step.batch.is_empty() {
        world.books.running.remove(&id);
    }
    world.carry(step);
}

fn current(world: &World, id: Id) -> u32 {
    world.books.running.get(&id).copied().unwrap_or(1)
}

const INPUTS: [(&str, Input); 17] = [
    ("answered", |world, id, _| outcome(world, id, current(world, id), Ok(Bytes::from_static(b"\x01")))),
    ("answered late", |world, id, _| outcome(world, id, 77, Ok(Bytes::from_static(b"\x01")))),
    ("refused for good", |world, id, _| {
        outcome(world, id, current(world, id), Err(Refusal::new(Code::Denied, "no")));
    }),
    ("refused for now", |world, id, _| {
        outcome(world, id, current(world, id), Err(Refusal::new(Code::Internal, "no").retry_after_ms(9)));
    }),
    ("nobody there", |world, id, _| {
        outcome(world, id, current(world, id), Err(Refusal::new(Code::NoOwner, "no").retry_after_ms(9)));
    }),
    ("handler crashed", |world, id, _| {
        outcome(
            world,
            id,
            current(world, id),
            Err(Refusal::new(Code::PluginRestarted, "no").retry_after_ms(9)),
        );
    }),
    ("handler restarted", |world, id, _| {
        let refusal = Refusal::new(Code::PluginRestarted, "no").details(json!({"planned": true}));
        outcome(world, id, current(world, id), Err(refusal.retry_after_ms(9)));
    }),
    ("timed out", |world, id, _| {
        outcome(world, id, current(world, id), Err(Refusal::new(Code::Timeout, "no").retry_after_ms(9)));
    }),
    ("heartbeat", |world, id, _| world.ledger.heartbeat(world.now, id, current(world, id))),
    ("tick", |world, _, _| {
        let step = world.ledger.tick(world.now);
        world.carry(step);
    }),
    ("a second passes", |world, _, _| {
        // Whoever else runs is stopped, so that there is a place.
        world.ledger.limits.in_flight = 4;
        world.pass(1_000);
    }),
    ("cancel", |world, id, _| world.cancel(id)),
    ("retry", |world, id, _| {
        let _ = world.retry(id);
    }),
    ("forget", |world, id, _| {
        let _ = world.forget(id);
    }),
    ("stop", |world, _, _| {
        world.ledger.stop();
        world.pass(1_000);
    }),
    ("daemon restarted", |world, _, _| world.plan_restart()),
    ("daemon died", |world, _, _| world.crash()),
];

/// What each input makes of each state, in the order of [`STATES`]; `-` where
/// nothing changes.
const TABLE: &str = "
answered          | -        -        done      done      -       - - - - - - -
answered late     | -        -        -         -         -       - - - - - - -
refused for good  | -        -        failed    failed    -       - - - - - - -
refused for now   | -        -        waiting   waiting   -       - - - - - - -
nobody there      | -        -        waiting   waiting   -       - - - - - - -
handler crashed   | -        -        waiting   waiting   -       - - - - - - -
handler restarted | -        -        waiting   waiting   -       - - - - - - -
timed out         | -        -        waiting   waiting   -       - - - - - - -
heartbeat         | -        -        -         -         -       - - - - - - -
tick              | -        -        -         -         -       - - - - - - -
a second passes   | -        -        -         -         leased  - - - - - - -
cancel            | cancelled cancelled cancelled cancelled cancelled - - - - - - -
retry             | -        -        -         -         -       - leased leased - leased leased -
forget            | -        -        -         -         -       forgotten forgotten forgotten forgotten forgotten forgotten -
stop              | -        -        -         -         -       - - - - - - -
daemon restarted  | -        alone    -         leased    -       - - - - - - -
daemon died       | -        -        -         suspect   -       - - - - - - -
";

#[test]
fn every_input_makes_of_every_state_what_the_table_says() {
    let mut seen = 0;
    for line in TABLE.trim().lines() {
        let (input, row) = line.split_once('|').unwrap();
        let (_, act) = INPUTS.iter().find(|(name, _)| *name == input.trim()).expect(input);
        let row: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(row.len(), STATES.len(), "{input}");
        for (state, expected) in STATES.into_iter().zip(row) {
            let (mut world, id, lease) = world_in(state);
            assert!(world.now >= START);
            act(&mut world, id, lease);
            let expected = if expected == "-" { state } else { expected };
            assert_eq!(name(&world, id), expected, "{state}, {input}");
            seen += 1;
        }
    }
    assert_eq!(seen, INPUTS.len() * STATES.len());
}
