//! The rules of the scheduler, one by one and by chance.

use proptest::{collection::vec, option, prelude::ProptestConfig, prop_assert, prop_assert_eq, prop_oneof};
use proptest::{proptest, strategy::Strategy};

use super::*;

const LIMITS: [usize; 2] = [1, 3];
const BOUNDS: Bounds = Bounds { requests: 16, bytes: 1000 };

fn job(lane: usize, conversation: Option<&str>, priority: i8) -> Job {
    Job { lane, conversation: conversation.map(str::to_owned), priority, bytes: 1 }
}

fn started(scheduler: &mut Scheduler) -> Vec<Ticket> {
    std::iter::from_fn(|| scheduler.start()).collect()
}

#[test]
fn the_higher_priority_goes_first_and_the_earlier_one_among_equals() {
    let mut scheduler = Scheduler::new(BOUNDS, &[1]);
    let tickets: Vec<_> =
        [0, 0, 5, -1, 5].map(|priority| scheduler.push(job(0, None, priority)).unwrap()).to_vec();
    let mut order = Vec::new();
    while let Some(ticket) = scheduler.start() {
        order.push(ticket);
        scheduler.release(ticket);
    }
    assert_eq!(order, [2, 4, 0, 1, 3].map(|i: usize| tickets[i]));
}

#[test]
fn a_conversation_is_serial_even_across_lanes_and_does_not_hold_up_others() {
    let mut scheduler = Scheduler::new(BOUNDS, &[4, 4]);
    let first = scheduler.push(job(0, Some("a"), 0)).unwrap();
    let second = scheduler.push(job(1, Some("a"), 0)).unwrap();
    let other = scheduler.push(job(1, Some("b"), 0)).unwrap();
    assert_eq!(started(&mut scheduler), [first, other]);
    scheduler.release(first);
    assert_eq!(started(&mut scheduler), [second]);
}

#[test]
fn a_ticket_that_goes_to_another_lane_keeps_its_conversation_and_its_rank() {
    let mut scheduler = Scheduler::new(BOUNDS, &[1, 1]);
    let first = scheduler.push(job(0, Some("a"), 0)).unwrap();
    let second = scheduler.push(job(0, Some("a"), 0)).unwrap();
    let other = scheduler.push(job(1, None, 0)).unwrap();
    let late = scheduler.push(job(1, None, 0)).unwrap();
    assert_eq!(started(&mut scheduler), [first, other]);
    scheduler.transfer(first, 1);
    assert_eq!((scheduler.position(first), scheduler.position(late)), (Some(1), Some(2)));
    assert!(started(&mut scheduler).is_empty(), "the conversation is not free yet");
    scheduler.transfer(second, 1);
    assert_eq!(scheduler.position(second), Some(2), "it came after the first, and before the late one");
    assert!(started(&mut scheduler).is_empty(), "it still waits for its conversation");
    scheduler.transfer(second, 0);
    assert_eq!(scheduler.position(second), Some(1));
    scheduler.release(other);
    assert_eq!(started(&mut scheduler), [first], "it came before the one that waits there");
    scheduler.transfer(first, 0);
    scheduler.release(first);
    assert_eq!(started(&mut scheduler), [second, late]);
}

#[test]
fn an_urgent_request_overtakes_inside_its_conversation() {
    let mut scheduler = Scheduler::new(BOUNDS, &[1]);
    let running = scheduler.push(job(0, Some("a"), 0)).unwrap();
    assert_eq!(started(&mut scheduler), [running]);
    let late = scheduler.push(job(0, Some("a"), 0)).unwrap();
    let urgent = scheduler.push(job(0, Some("a"), 3)).unwrap();
    assert_eq!((scheduler.position(urgent), scheduler.position(late)), (Some(1), Some(2)));
    scheduler.release(running);
    assert_eq!(started(&mut scheduler), [urgent]);
}

#[test]
fn a_stream_of_urgent_requests_does_not_starve_the_others() {
    let mut scheduler = Scheduler::new(BOUNDS, &[1]);
    let patient = scheduler.push(job(0, None, 0)).unwrap();
    for arrived in 1.. {
        scheduler.push(job(0, None, 10)).unwrap();
        let next = scheduler.start().unwrap();
        scheduler.release(next);
        if next == patient {
            assert_eq!(arrived, 10 * BOUNDS.requests);
            break;
        }
    }
}

#[test]
fn what_is_beyond_the_bounds_is_refused_and_changes_nothing() {
    let mut scheduler = Scheduler::new(Bounds { requests: 2, bytes: 10 }, &[1, 1]);
    let big = |bytes| Job { bytes, ..job(0, None, 0) };
    assert_eq!(scheduler.push(big(11)), Err(Error::TooLarge { bytes: 11, max: 10 }));
    let first = scheduler.push(big(9)).unwrap();
    assert_eq!(scheduler.push(big(2)), Err(Error::Bytes { held: 9, max: 10 }));
    scheduler.release(first);
    scheduler.push(big(1)).unwrap();
    scheduler.push(big(1)).unwrap();
    assert_eq!(scheduler.push(big(1)), Err(Error::Requests(2)));
    assert!(scheduler.push(job(1, None, 0)).is_ok(), "another lane has its own queue");
    assert_eq!((scheduler.queued(0), scheduler.queued(1)), (2, 1));
}

#[test]
fn nothing_is_remembered_of_what_has_ended() {
    let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
    for round in 0..10 {
        let ticket = scheduler.push(job(0, Some(&format!("c{round}")), 0)).unwrap();
        started(&mut scheduler);
        scheduler.release(ticket);
        scheduler.release(ticket);
    }
    assert!(scheduler.slots.is_empty() && scheduler.conversations.is_empty() && scheduler.bytes == 0);
}

#[derive(Debug, Clone)]
enum Step {
    Push { lane: usize, conversation: Option<u8>, priority: i8 },
    Release(usize),
    Transfer(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (0..LIMITS.len(), option::of(0..4_u8), -2..=2_i8)
        .prop_map(|(lane, conversation, priority)| Step::Push { lane, conversation, priority });
    let release = (0..64_usize).prop_map(Step::Release);
    let transfer = (0..64_usize, 0..LIMITS.len()).prop_map(|(index, lane)| Step::Transfer(index, lane));
    vec(prop_oneof![3 => push, 2 => release, 1 => transfer], 0..200)
}

/// What a ticket is, as the model of the test knows it.
#[derive(Debug, Clone)]
struct Known {
    ticket: Ticket,
    lane: usize,
    conversation: Option<u8>,
    key: Key,
    running: bool,
    begun: bool,
}

/// Whether `one` could start now, by the rules and not by the indexes.
fn may_start(all: &[Known], one: &Known) -> bool {
    let busy = |other: &&Known| other.running && other.lane == one.lane;
    let kin = |other: &&Known| one.conversation.is_some() && other.conversation == one.conversation;
    !one.running
        && all.iter().filter(busy).count() < LIMITS[one.lane]
        && !all
            .iter()
            .filter(kin)
            .any(|other| other.ticket != one.ticket && (other.begun || (!one.begun && other.key < one.key)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_start_is_the_best_allowed_one_and_none_allowed_is_left_waiting(steps in steps()) {
        let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
        let mut all: Vec<Known> = Vec::new();
        for step in steps {
            match step {
                Step::Push { lane, conversation, priority } => {
                    let name = conversation.map(|c| c.to_string());
                    if let Ok(ticket) = scheduler.push(job(lane, name.as_deref(), priority)) {
                        let step = BOUNDS.requests as i64;
                        let key = (ticket as i64 - i64::from(priority) * step, ticket);
                        let (running, begun) = (false, false);
                        all.push(Known { ticket, lane, conversation, key, running, begun });
                    }
                }
                Step::Release(index) if !all.is_empty() => {
                    let known = all.swap_remove(index % all.len());
                    scheduler.release(known.ticket);
                }
                Step::Transfer(index, lane) if !all.is_empty() => {
                    let index = index % all.len();
                    scheduler.transfer(all[index].ticket, lane);
                    all[index].running = false;
                    all[index].lane = lane;
                }
                Step::Release(_) | Step::Transfer(..) => {}
            }
            while let Some(ticket) = scheduler.start() {
                let one = all.iter().find(|known| known.ticket == ticket).unwrap().clone();
                prop_assert!(may_start(&all, &one), "{ticket} started against the rules");
                let better = |other: &&Known| {
                    other.lane == one.lane && other.key < one.key && may_start(&all, other)
                };
                prop_assert!(!all.iter().any(|other| better(&other)), "{ticket} jumped the queue");
                let known = all.iter_mut().find(|known| known.ticket == ticket).unwrap();
                (known.running, known.begun) = (true, true);
            }
            prop_assert!(!all.iter().any(|one| may_start(&all, one)), "an allowed one waits");
            for (lane, limit) in LIMITS.iter().enumerate() {
                let of = |running| all.iter().filter(|k| k.lane == lane && k.running == running).count();
                prop_assert_eq!(scheduler.running(lane), of(true));
                prop_assert_eq!(scheduler.queued(lane), of(false));
                prop_assert!(scheduler.running(lane) <= *limit);
            }
        }
    }

    #[test]
    fn whatever_is_pushed_is_started_in_the_end(steps in steps()) {
        let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
        let mut waiting = BTreeSet::new();
        for step in steps {
            if let Step::Push { lane, conversation, priority } = step {
                let name = conversation.map(|c| c.to_string());
                waiting.extend(scheduler.push(job(lane, name.as_deref(), priority)));
            }
        }
        while let Some(ticket) = scheduler.start() {
            waiting.remove(&ticket);
            scheduler.release(ticket);
        }
        prop_assert!(waiting.is_empty(), "never started: {waiting:?}");
    }
}
