//! The index against a scan of all subscriptions.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ksi_protocol::{EventName, Pattern, frame::Class};
use proptest::prelude::*;

use ksi_identity::Authority;

use crate::{Delivery, Effects, Emission, Kernel, Port, Quota, Role};

#[derive(Debug, Clone)]
enum Step {
    Subscribe { port: usize, id: u64, pattern: String },
    Unsubscribe { port: usize, id: u64 },
    Emit { port: usize, event: String },
    Replace { port: usize },
}

const PORTS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let segments = |from: Vec<&'static str>, at_least| {
        prop::collection::vec(prop::sample::select(from), at_least..=4).prop_map(|parts| parts.join(":"))
    };
    let pattern = segments(vec!["a", "b", "a", "*", "**"], 1)
        .prop_filter("one literal segment is no pattern", |pattern| pattern.contains([':', '*']));
    let event = segments(vec!["a", "b"], 2);
    let (port, id) = (0..PORTS, 0..6_u64);
    let step = prop_oneof![
        4 => (port.clone(), id.clone(), pattern)
            .prop_map(|(port, id, pattern)| Step::Subscribe { port, id, pattern }),
        2 => (port.clone(), id).prop_map(|(port, id)| Step::Unsubscribe { port, id }),
        4 => (port.clone(), event).prop_map(|(port, event)| Step::Emit { port, event }),
        1 => port.prop_map(|port| Step::Replace { port }),
    ];
    prop::collection::vec(step, 1..60)
}

fn attach(kernel: &Kernel<usize>, port: usize) -> Arc<Port<usize>> {
    kernel.attach(Role::Client, port, Quota::default(), Authority::full("session"))
}

proptest! {
    #[test]
    fn whoever_a_scan_finds_is_told_and_nobody_else(steps in steps()) {
        let kernel = Kernel::new();
        let mut ports: Vec<_> = (0..PORTS).map(|port| attach(&kernel, port)).collect();
        let mut listening: BTreeMap<(usize, u64), Pattern> = BTreeMap::new();
        let mut effects = Effects::new();
        for step in steps {
            match step {
                Step::Subscribe { port, id, pattern } => {
                    let pattern = Pattern::parse(&pattern).unwrap();
                    let added = kernel.subscribe(&ports[port], id, pattern.clone(), Class::Live, 0).is_ok();
                    prop_assert_eq!(added, !listening.contains_key(&(port, id)));
                    listening.entry((port, id)).or_insert(pattern);
                }
                Step::Unsubscribe { port, id } => {
                    let removed = kernel.unsubscribe(&ports[port], id).is_ok();
                    prop_assert_eq!(removed, listening.remove(&(port, id)).is_some());
                }
                Step::Emit { port, event } => {
                    let emission = Emission::new(EventName::parse(&event).unwrap(), Bytes::new());
                    let count = kernel.emit(&ports[port], emission, 0, &mut effects).unwrap();
                    let mut told: Vec<_> = effects
                        .drain()
                        .filter_map(|(to, delivery)| match delivery {
                            Delivery::Event { sub, .. } => Some((to.handle, sub)),
                            _ => None,
                        })
                        .collect();
                    told.sort_unstable();
                    let matches = |&(&(to, _), pattern): &(&(usize, u64), &Pattern)| {
                        to != port && pattern.matches(&event)
                    };
                    let expected: Vec<_> = listening.iter().filter(matches).map(|(key, _)| *key).collect();
                    prop_assert_eq!(count, expected.len());
                    prop_assert_eq!(told, expected);
                }
                Step::Replace { port } => {
                    let gone = ksi_protocol::Refusal::new(ksi_protocol::Code::Cancelled, "gone");
                    kernel.detach(&ports[port], &gone, &mut effects);
                    let old = ports[port].id;
                    ports[port] = attach(&kernel, port);
                    prop_assert_eq!((ports[port].id.index, ports[port].id.generation), (old.index, old.generation + 1));
                    listening.retain(|&(owner, _), _| owner != port);
                }
            }
            prop_assert_eq!(kernel.figures().subscriptions, listening.len());
        }
        for port in &ports {
            kernel.subscriptions.remove_all(port);
        }
        prop_assert!(kernel.subscriptions.exact.is_empty());
        prop_assert!(kernel.subscriptions.prefixed.is_empty());
        prop_assert!(kernel.subscriptions.everywhere.load().is_empty());
    }
}

#[test]
fn what_is_idle_is_not_looked_at() {
    let kernel = Kernel::new();
    let idle = attach(&kernel, 0);
    for agent in 0..10_000 {
        let pattern = if agent % 2 == 0 { format!("agent:a{agent}:*") } else { format!("agent:a{agent}") };
        kernel.subscribe(&idle, agent, Pattern::parse(&pattern).unwrap(), Class::Live, 0).unwrap();
    }
    assert_eq!(kernel.subscriptions.prefixed.len(), 5_000);
    assert_eq!(kernel.subscriptions.exact.len(), 5_000);
    assert!(kernel.subscriptions.everywhere.load().is_empty());
    let longest = |index: &super::Index<usize>| index.iter().map(|list| list.len()).max();
    assert_eq!(
        (longest(&kernel.subscriptions.prefixed), longest(&kernel.subscriptions.exact)),
        (Some(1), Some(1))
    );
}
