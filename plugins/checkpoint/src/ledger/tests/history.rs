//! Random histories: whatever happens, the books are in order.

use ksi_sdk::protocol::{Bytes, Code, Refusal, work::Policy};
use proptest::prelude::*;
use serde_json::json;

use super::world::{Books, World};
use crate::{
    ledger::{Id, KEY_MS, Limits, State},
    record::keys,
    testing::policy,
};

#[derive(Debug, Clone)]
enum Input {
    Accept {
        event: u8,
        asker: u8,
        repeat: bool,
        attempts: u32,
    },
    AcceptKeyed {
        key: u8,
        payload: bool,
    },
    Answer {
        who: usize,
        how: usize,
    },
    Heartbeat {
        who: usize,
    },
    Late {
        who: usize,
    },
    Pass(u64),
    Cancel {
        who: usize,
    },
    Retry {
        who: usize,
    },
    Forget {
        who: usize,
    },
    Crash,
    /// The daemon dies before its last step was durable.
    CrashBefore,
    Restart,
    /// The journal stops and is opened again, while the daemon lives.
    Reopen {
        who: usize,
        begun: bool,
    },
    /// The same, and the last step was not durable.
    ReopenBefore,
}

fn inputs() -> impl Strategy<Value = Input> {
    let who = any::<usize>();
    prop_oneof![
        6 => (0..3_u8, 0..3_u8, any::<bool>(), 1..4_u32)
            .prop_map(|(event, asker, repeat, attempts)| Input::Accept { event, asker, repeat, attempts }),
        2 => (0..3_u8, any::<bool>()).prop_map(|(key, payload)| Input::AcceptKeyed { key, payload }),
        8 => (who, 0..9_usize).prop_map(|(who, how)| Input::Answer { who, how }),
        1 => who.prop_map(|who| Input::Heartbeat { who }),
        1 => who.prop_map(|who| Input::Late { who }),
        4 => prop_oneof![0..200_u64, 0..30_000_u64, 0..700_000_u64].prop_map(Input::Pass),
        1 => who.prop_map(|who| Input::Cancel { who }),
        1 => who.prop_map(|who| Input::Retry { who }),
        1 => who.prop_map(|who| Input::Forget { who }),
        1 => Just(Input::Crash),
        1 => Just(Input::CrashBefore),
        1 => Just(Input::Restart),
        1 => (who, any::<bool>()).prop_map(|(who, begun)| Input::Reopen { who, begun }),
        1 => Just(Input::ReopenBefore),
    ]
}

fn answer(how: usize) -> Result<Bytes, Refusal> {
    let code = match how {
        0..3 => return Ok(Bytes::from(vec![0xc0; how])),
        3 => Code::Busy,
        4 => Code::Timeout,
        5 => Code::PluginRestarted,
        6 => Code::NoOwner,
        7 => Code::Denied,
        _ => {
            let planned = Refusal::new(Code::PluginRestarted, "reloaded");
            return Err(planned.details(json!({"planned": true})));
        }
    };
    Err(Refusal::new(code, "no"))
}

/// One of the entries that were ever accepted.
fn pick(world: &World, who: usize) -> Option<Id> {
    let ids = &world.books.ends;
    ids.keys().nth(who % ids.len().max(1)).copied()
}

fn running(world: &World, who: usize) -> Option<Id> {
    let mut ids: Vec<Id> = world.books.running.keys().copied().collect();
    ids.sort_unstable();
    ids.get(who % ids.len().max(1)).copied()
}

fn act(world: &mut World, input: &Input, before: Option<Books>) {
    match *input {
        Input::Accept { event, asker, repeat, attempts } => {
            world.asker = ["user:a", "user:b", "user:c"][usize::from(asker)];
            let event = ["a:b", "a:c", "a:d"][usize::from(event)];
            world.accept(event, Policy { repeat, attempts, ..policy() });
        }
        Input::AcceptKeyed { key, payload } => {
            let key = ["k", "l", "m"][usize::from(key)];
            let payload: &[u8] = if payload { b"one" } else { b"two" };
            if let Err(refusal) = world.accept_keyed(key, payload) {
                assert_eq!(refusal.code, Code::Conflict);
            }
        }
        Input::Answer { who, how } => {
            if let Some(id) = running(world, who) {
                world.answer(id, answer(how));
            }
        }
        Input::Heartbeat { who } => {
            if let Some(id) = running(world, who) {
                world.ledger.heartbeat(world.now, id, world.books.running[&id]);
            }
        }
        Input::Late { who } => {
            if let Some(id) = pick(world, who) {
                let lease = world.books.running.get(&id).map_or(1, |lease| lease + 1);
                if world.books.running.get(&id) != Some(&lease) {
                    let step = world.ledger.outcome(world.now, id, lease, Ok(Bytes::new()));
                    assert!(step.batch.is_empty() && step.effects.is_empty());
                }
            }
        }
        Input::Pass(ms) => world.pass(ms),
        Input::Cancel { who } => {
            if let Some(id) = pick(world, who) {
                world.cancel(id);
            }
        }
        Input::Retry { who } => {
            if let Some(id) = pick(world, who) {
                let state = world.entry(id).map(|entry| entry.state);
                let may = matches!(state, Some(State::Ended { how, .. }) if how.keeps_payload())
                    && !world.is_small(id);
                assert_eq!(world.retry(id).is_ok(), may, "{state:?}");
            }
        }
        Input::Forget { who } => {
            if let Some(id) = pick(world, who)
                && world.entry(id).is_some()
                && let Err(refusal) = world.forget(id)
            {
                assert_eq!(refusal.code, Code::Conflict);
            }
        }
        Input::Crash => world.crash(),
        Input::CrashBefore => {
            if let Some(before) = before {
                world.books = before;
            }
            world.crash();
        }
        Input::Restart => world.plan_restart(),
        Input::Reopen { who, begun } => {
            let unbegun = running(world, who).filter(|_| !begun);
            world.reopen(None, unbegun);
        }
        Input::ReopenBefore => world.reopen(before, None),
    }
}

fn settle(world: &mut World) {
    for _ in 0..10_000 {
        if world.ledger.figures().pending == 0 {
            break;
        }
        match running(world, 0) {
            Some(id) => world.done(id),
            None => world.pass(1_000),
        }
    }
    for (id, (ends, most)) in &world.books.ends {
        assert_eq!(ends, most, "{id} has not ended");
    }
    world.pass(31 * KEY_MS);
    let left = world.books.table.keys().filter(|key| key[0] != keys::KEY).count();
    assert_eq!(left, 0, "something is never forgotten");
}

proptest! {
    // PROPTEST_CASES may ask for more.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1_000)))]

    #[test]
    fn all_that_is_accepted_ends_once_whatever_happens(
        history in proptest::collection::vec(inputs(), 1..80),
        in_flight in 1..8_usize,
        kept in 2..20_usize,
        keys in 0..4_usize,
    ) {
        let mut world = World::new(Limits { in_flight, kept, keys, ..Limits::default() });
        let mut before = None;
        for input in &history {
            let now = world.books.clone();
            act(&mut world, input, before);
            before = Some(now);
        }
        settle(&mut world);
    }
}
