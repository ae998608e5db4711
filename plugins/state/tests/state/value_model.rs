//! Values against a plain map, over restarts and as time passes.

use std::collections::BTreeMap;

use ksi_sdk::prelude::Duration;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Set { key: u8, ttl: Option<u64>, expect: Expect },
    Delete { key: u8, expect: Expect },
    Batch { sets: Vec<u8>, deletes: Vec<u8>, check: Option<(u8, bool)> },
    Wait(u64),
    Restart,
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Anything,
    Right,
    Wrong,
}

fn expect() -> impl Strategy<Value = Expect> {
    proptest::sample::select(vec![Expect::Anything, Expect::Anything, Expect::Right, Expect::Wrong])
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..6_u8;
    let ttl = proptest::option::of(1..20_u64);
    prop_oneof![
        4 => (key(), ttl, expect()).prop_map(|(key, ttl, expect)| Step::Set { key, ttl, expect }),
        2 => (key(), expect()).prop_map(|(key, expect)| Step::Delete { key, expect }),
        2 => (
            proptest::collection::btree_set(key(), 0..3),
            proptest::collection::btree_set(key(), 0..3),
            proptest::option::of((key(), any::<bool>())),
        )
            .prop_map(|(sets, deletes, check)| {
                let deletes = deletes.difference(&sets).copied().collect();
                Step::Batch { sets: sets.into_iter().collect(), deletes, check }
            }),
        2 => (1..8_u64).prop_map(Step::Wait),
        1 => proptest::strategy::Just(Step::Restart),
    ]
}

/// What a key has: version, value, and the second after which it is gone.
type Model = BTreeMap<String, (u64, u64, Option<u64>)>;

fn name(key: u8) -> String {
    ["a", "a/b", "\0", "ä", "a\u{1}", "zz"][usize::from(key)].into()
}

fn guard(ask: &mut Value, expect: Expect, version: u64) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::Right => {
            ask["expected_version"] = version.into();
            true
        }
        Expect::Wrong => {
            ask["expected_version"] = (version + 7).into();
            false
        }
    }
}

fn run(host: &Host, model: &mut Model, step: Step, n: u64, now: u64) {
    let version = |model: &Model, key: &str| model.get(key).map_or(0, |(version, ..)| *version);
    match step {
        Step::Set { key, ttl, expect } => {
            let key = name(key);
            let mut ask = json!({"key": key, "value": n, "ttl_seconds": ttl});
            let fits = guard(&mut ask, expect, version(model, &key));
            match host.request("state:set", ask) {
                Ok(answer) => {
                    assert!(fits);
                    let version = answer["version"].as_u64().unwrap();
                    model.insert(key, (version, n, ttl.map(|ttl| now + ttl)));
                }
                Err(refusal) => {
                    assert!(!fits, "{refusal}");
                    assert_eq!(refusal.details.unwrap()["version"], version(model, &key));
                }
            }
        }
        Step::Delete { key, expect } => {
            let key = name(key);
            let mut ask = json!({"key": key});
            let fits = guard(&mut ask, expect, version(model, &key));
            match host.request("state:delete", ask) {
                Ok(answer) => {
                    assert!(fits);
                    assert_eq!(answer["deleted"], model.remove(&key).is_some());
                }
                Err(refusal) => assert!(!fits && refusal.code == Code::Conflict, "{refusal}"),
            }
        }
        Step::Batch { sets, deletes, check } => {
            let mut operations: Vec<Value> =
                sets.iter().map(|key| json!({"set": {"key": name(*key), "value": n}})).collect();
            operations.extend(deletes.iter().map(|key| json!({"delete": {"key": name(*key)}})));
            let mut fits = !operations.is_empty() || check.is_some();
            if let Some((key, right)) = check {
                let version = version(model, &name(key)) + u64::from(!right);
                operations.push(json!({"check": {"key": name(key), "version": version}}));
                fits &= right;
            }
            match host.request("state:batch", json!({"operations": operations})) {
                Ok(answer) => {
                    assert!(fits);
                    let version = answer["version"].as_u64().unwrap();
                    let deleted = deletes.iter().filter(|key| model.remove(&name(**key)).is_some()).count();
                    assert_eq!(answer["deleted"], deleted);
                    model.extend(sets.iter().map(|key| (name(*key), (version, n, None))));
                }
                Err(refusal) => assert!(!fits, "{refusal}"),
            }
        }
        Step::Wait(_) | Step::Restart => {}
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]
    #[test]
    fn values_are_those_of_a_plain_map(steps in proptest::collection::vec(step(), 1..40)) {
        let (mut host, mut model, mut now) = (host(), Model::new(), 0);
        let mut highest = 0;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(seconds) => {
                    now += seconds;
                    host.advance(Duration::from_secs(seconds));
                    model.retain(|_, (.., until)| until.is_none_or(|until| until > now));
                }
                Step::Restart => host = host.restart(json!({})).unwrap(),
                step => run(&host, &mut model, step, n as u64, now),
            }
            let listed = ask(&host, "state:list", json!({"values": true}));
            let items = listed["items"].as_array().unwrap().iter().map(|item| {
                let numbers = (item["version"].as_u64().unwrap(), item["value"].as_u64().unwrap());
                (item["key"].as_str().unwrap().to_owned(), numbers)
            });
            let expected = model.iter().map(|(key, (version, value, _))| (key.clone(), (*version, *value)));
            assert_eq!(items.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            for (key, (version, value, _)) in &model {
                let answer = ask(&host, "state:get", json!({"key": key}));
                assert_eq!((&answer["version"], &answer["value"]), (&json!(version), &json!(value)));
                highest = highest.max(*version);
            }
            assert_eq!(host.space().keys().len(), 2 * model.len(), "nothing else is left behind");
        }
    }
}
