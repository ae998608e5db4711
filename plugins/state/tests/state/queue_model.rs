//! A queue against a plain list, over restarts and as time passes: no item is
//! lost, and none is anybody's twice within a lease.

use std::collections::{BTreeMap, BTreeSet};

use ksi_sdk::prelude::Duration;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Push,
    Pop {
        count: usize,
        lease: Option<u64>,
    },
    /// Of the items that were ever taken: which, and whether under its lease.
    Ack(usize, bool),
    Nack(usize, u64),
    Wait(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::strategy::Just(Step::Push),
        3 => (1..4_usize, proptest::option::weighted(0.8, 1..10_u64))
            .prop_map(|(count, lease)| Step::Pop { count, lease }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, leased)| Step::Ack(which, leased)),
        1 => (any::<usize>(), 0..5_u64).prop_map(|(which, delay)| Step::Nack(which, delay)),
        2 => (1..6_u64).prop_map(Step::Wait),
        1 => proptest::strategy::Just(Step::Restart),
    ]
}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    /// Items in the queue: from when they can be taken, and under which lease.
    items: BTreeMap<u64, (u64, u64)>,
    /// All that was ever taken, with the lease.
    taken: Vec<(u64, u64)>,
    pushed: BTreeSet<u64>,
}

impl Model {
    fn pop(&mut self, host: &Host, count: usize, lease: Option<u64>) {
        let answer = ask(host, "state:pop", json!({"queue": "q", "count": count, "lease_seconds": lease}));
        let free = self.items.iter().filter(|(_, (from, _))| *from <= self.now);
        let free: Vec<u64> = free.map(|(id, _)| *id).take(count).collect();
        assert_eq!(ids(&answer["items"]), free);
        let number = answer["lease"].as_u64().unwrap_or(0);
        assert_eq!(number != 0, lease.is_some() && !free.is_empty());
        for (id, item) in free.into_iter().zip(answer["items"].as_array().unwrap()) {
            assert_eq!(item["data"], json!({"of": id_of(item)}));
            self.taken.push((id, number));
            match lease {
                Some(seconds) => self.items.insert(id, (self.now + seconds, number)),
                None => self.items.remove(&id),
            };
        }
    }

    fn ack(&mut self, host: &Host, which: usize, leased: bool) {
        let Some((id, lease)) = self.taken.get(which % self.taken.len().max(1)).copied() else { return };
        let mut ack = json!({"queue": "q", "ids": [id]});
        if leased {
            ack["lease"] = lease.into();
        }
        let here =
            self.items.get(&id).is_some_and(|(from, held)| !leased || (*held == lease && *from > self.now));
        let answer = ask(host, "state:ack", ack);
        assert_eq!(ids(&answer["ids"]).len(), usize::from(here));
        if here {
            self.items.remove(&id);
        }
    }
}

/// The data of an item names it by its place among all that were pushed.
fn id_of(item: &Value) -> Value {
    item["data"]["of"].clone()
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    #[test]
    fn no_item_is_lost_or_had_twice(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut host, mut model) = (host(), Model::default());
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push => {
                    let id = push(&host, json!({"of": n}));
                    assert!(model.pushed.last().is_none_or(|last| id > *last), "in the order of their numbers");
                    model.pushed.insert(id);
                    model.items.insert(id, (0, 0));
                }
                Step::Pop { count, lease } => model.pop(&host, count, lease),
                Step::Ack(which, leased) => model.ack(&host, which, leased),
                Step::Nack(which, delay) => {
                    let Some((id, _)) = model.taken.get(which % model.taken.len().max(1)) else { continue };
                    let nack = json!({"queue": "q", "ids": [id], "delay_ms": delay * 1000});
                    let answer = ask(&host, "state:nack", nack);
                    assert_eq!(ids(&answer["missing"]).is_empty(), model.items.contains_key(id));
                    if let Some(item) = model.items.get_mut(id) {
                        *item = (model.now + delay, 0);
                    }
                }
                Step::Wait(seconds) => {
                    model.now += seconds;
                    host.advance(Duration::from_secs(seconds));
                }
                Step::Restart => host = host.restart(json!({})).unwrap(),
            }
            let shown = ask(&host, "state:queue", json!({"queue": "q", "limit": 1000}));
            assert_eq!(ids(&shown["items"]), model.items.keys().copied().collect::<Vec<_>>());
            let ready = model.items.values().filter(|(from, _)| *from <= model.now).count();
            assert_eq!((&shown["length"], &shown["ready"]), (&json!(model.items.len()), &json!(ready)));
            let keys = host.space().keys().len();
            let counter = usize::from(!model.pushed.is_empty());
            assert_eq!(keys, 2 * model.items.len() + counter, "nothing else is left behind");
        }
    }
}
