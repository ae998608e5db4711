//! Leases, times and the order of a queue; and a model of all of it.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, prop_oneof, proptest};

use super::*;

fn item() -> Item {
    Item {
        size: 1,
        pushed_at_ms: 0,
        expires_at_ms: 0,
        deliveries: 0,
        lease: 0,
        hidden_until_ms: 0,
        dead: false,
    }
}

fn line(items: impl IntoIterator<Item = (u64, Item)>) -> Line {
    let mut line = Line::default();
    for (id, item) in items {
        line.announce(id);
        line.land(id, Some(item), 0);
    }
    line
}

fn ids(taken: &[(u64, Item)]) -> Vec<u64> {
    taken.iter().map(|(id, _)| *id).collect()
}

fn take(line: &mut Line, now_ms: u64, count: usize) -> Vec<u64> {
    ids(&line.take(now_ms, count, u64::MAX, u64::MAX).items)
}

fn leased(lease: u64, until: u64) -> Item {
    Item { lease, hidden_until_ms: until, deliveries: 1, ..item() }
}

#[test]
fn items_leave_in_their_order_and_none_overtakes_one_being_pushed() {
    let mut line = Line::default();
    for id in [1, 2, 3] {
        line.announce(id);
    }
    line.land(3, Some(item()), 0);
    line.land(1, Some(item()), 0);
    assert_eq!(take(&mut line, 0, 9), [1]);
    assert!(!line.has_ready(), "2 is on its way");
    line.land(2, None, 0);
    assert_eq!(take(&mut line, 0, 9), [3]);
}

#[test]
fn a_lease_hides_an_item_until_its_end() {
    let mut line = line([(1, item()), (2, item())]);
    assert_eq!(take(&mut line, 10, 1), [1]);
    line.settle(1, Some(leased(7, 50)), 10);
    assert_eq!(line.next_due(), Some(50));
    assert_eq!(take(&mut line, 49, 9), [2]);
    line.restore(2, 49);
    assert!(line.turn(50));
    assert!(!line.turn(50));
    assert_eq!(take(&mut line, 50, 9), [1, 2], "in its old place");
}

#[test]
fn only_the_lease_that_holds_counts() {
    let mut line = line([(1, leased(7, 50))]);
    assert_eq!(line.hold(1, Some(8), 10), None);
    assert_eq!(line.hold(1, Some(7), 50), None, "it is over");
    assert!(line.hold(1, None, 50).is_some());
    assert_eq!(line.hold(1, None, 50), None, "it is held");
    assert_eq!(line.hold(2, None, 50), None);
}

#[test]
fn an_item_is_dropped_when_its_time_is_over_unless_somebody_has_it() {
    let mut line = line([
        (1, Item { expires_at_ms: 30, ..item() }),
        (2, Item { expires_at_ms: 30, ..leased(7, 50) }),
        (3, Item { expires_at_ms: 30, hidden_until_ms: 90, ..item() }),
        (4, Item { expires_at_ms: 30, dead: true, ..item() }),
    ]);
    assert_eq!(line.next_due(), Some(30));
    assert_eq!(line.counts(), Counts { length: 3, ready: 1, dead: 1, bytes: 4 });
    assert_eq!(take(&mut line, 30, 9), [0; 0]);
    assert_eq!(line.counts(), Counts { length: 1, ready: 0, dead: 0, bytes: 4 });
    assert_eq!(ids(&line.take_gone(30, 9)), [1, 3, 4]);
    assert_eq!(line.after(0, 30).map(|(id, _)| id).collect::<Vec<_>>(), [2]);
    for id in [1, 3, 4] {
        line.settle(id, None, 30);
    }
    assert_eq!(line.next_due(), Some(50));
    assert!(line.hold(2, Some(7), 49).is_some(), "it can still be acknowledged");
    line.restore(2, 49);
    assert!(!line.turn(50));
    assert_eq!(ids(&line.take_gone(50, 9)), [2]);
    line.settle(2, None, 50);
    assert!(line.is_empty());
    assert_eq!(line.counts(), Counts::default());
}

#[test]
fn one_handed_out_too_often_is_set_aside() {
    let mut line = line([(1, Item { deliveries: 3, ..item() }), (2, item())]);
    let taken = line.take(0, 1, u64::MAX, 3);
    assert_eq!((ids(&taken.items), ids(&taken.dead)), (vec![2], vec![1]));
    line.settle(1, Some(Item { dead: true, ..item() }), 0);
    line.settle(2, None, 0);
    assert_eq!(take(&mut line, 0, 9), [0; 0]);
    assert_eq!(line.counts().dead, 1);
    assert!(line.hold(1, None, 0).is_some());
}

#[test]
fn large_items_make_a_take_smaller_but_never_empty() {
    let mut line = line((1..=4).map(|id| (id, Item { size: 10, ..item() })));
    assert_eq!(ids(&line.take(0, 9, 5, 9).items), [1]);
    assert_eq!(ids(&line.take(0, 9, 20, 9).items), [2, 3]);
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64),
    Take(usize, u64),
    Ack(u64),
    Nack(u64, u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..40_u64).prop_map(Step::Push),
        (1..4_usize, 0..20_u64).prop_map(|(count, lease)| Step::Take(count, lease)),
        (1..30_u64).prop_map(Step::Ack),
        (1..30_u64, 0..10_u64).prop_map(|(id, delay)| Step::Nack(id, delay)),
        (1..15_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a plain map of all items: none is lost, none is had by two at
    /// once, and each comes out in its order when its time has come.
    #[test]
    fn it_does_what_a_plain_list_does(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut line, mut model) = (Line::default(), BTreeMap::<u64, Item>::new());
        let (mut now, mut next, mut lease) = (100, 1, 1);
        for step in steps {
            match step {
                Step::Push(ttl) => {
                    let expires_at_ms = if ttl < 20 { 0 } else { now + ttl };
                    let pushed = Item { expires_at_ms, ..item() };
                    line.announce(next);
                    line.land(next, Some(pushed.clone()), now);
                    model.insert(next, pushed);
                    next += 1;
                }
                Step::Take(count, until) => {
                    let taken = line.take(now, count, u64::MAX, 3);
                    let free = model.iter().filter(|(_, item)| {
                        item.state(now) == ItemState::Ready && !expired(item.expires_at_ms, now)
                    });
                    let free: Vec<u64> = free.map(|(id, _)| *id).collect();
                    let (dead, live): (Vec<u64>, Vec<u64>) =
                        free.into_iter().partition(|id| model[id].deliveries >= 3);
                    let live: Vec<u64> = live.into_iter().take(count).collect();
                    assert_eq!(ids(&taken.items), live);
                    assert!(taken.dead.iter().all(|(id, _)| dead.contains(id)));
                    for (id, item) in taken.dead {
                        let item = Item { dead: true, ..item };
                        line.settle(id, Some(item.clone()), now);
                        model.insert(id, item);
                    }
                    for (id, item) in taken.items {
                        let deliveries = item.deliveries + 1;
                        let item = Item { lease, deliveries, hidden_until_ms: now + until, ..item };
                        line.settle(id, Some(item.clone()), now);
                        model.insert(id, item);
                    }
                    lease += 1;
                }
                Step::Ack(id) => {
                    let here = model.get(&id).is_some_and(|item| !item.is_gone(now));
                    assert_eq!(line.hold(id, None, now).is_some(), here);
                    if here {
                        line.settle(id, None, now);
                        model.remove(&id);
                    }
                }
                Step::Nack(id, delay) => {
                    if let Some(item) = line.hold(id, None, now) {
                        let item = Item { lease: 0, hidden_until_ms: now + delay, ..item };
                        line.settle(id, Some(item.clone()), now);
                        model.insert(id, item);
                    }
                }
                Step::Wait(time) => {
                    now += time;
                    line.turn(now);
                    for (id, _) in line.take_gone(now, usize::MAX) {
                        line.settle(id, None, now);
                        assert!(model.remove(&id).is_some_and(|item| item.is_gone(now)));
                    }
                    assert!(!model.values().any(|item| item.is_gone(now)));
                }
            }
            let here: Vec<(u64, &Item)> = line.after(0, now).collect();
            let kept = model.iter().filter(|(_, item)| !item.is_gone(now));
            assert_eq!(here, kept.map(|(id, item)| (*id, item)).collect::<Vec<_>>());
            let next = model.values().filter_map(|item| item.due(now)).min();
            if let Some(next) = next {
                assert!(line.next_due().is_some_and(|due| due <= next), "nothing is slept through");
            }
            assert_eq!(line.counts().length + line.counts().dead, here.len() as u64);
        }
    }
}
