//! The rules of the scheduler, one by one and by chance.

use proptest::{collection::vec, option, prelude::ProptestConfig, prop_assert, prop_assert_eq, prop_oneof};
use proptest::{proptest, strategy::Strategy};

use super::*;

const LIMITS: [usize; 2] = [1, 3];
const BOUNDS: Bounds = Bounds { requests: 16, bytes: 1000 };

fn job(lane: usize, conversation: Option<&str>, priority: i8) -> Job {
    let conversation = conversation.map(str::to_owned);
    Job { lane, asker: Asker::default(), conversation, priority, bytes: 1, whole_lane: false }
}

/// A request of somebody, written `principal` or `principal/agent`.
fn of(asker: &str, priority: i8) -> Job {
    let (principal, agent) = asker.split_once('/').unwrap_or((asker, ""));
    let asker = Asker { principal: principal.into(), agent: agent.into() };
    Job { asker, ..job(0, None, priority) }
}

/// A scheduler of one lane, and whose its tickets are.
struct Crowd {
    scheduler: Scheduler,
    whose: HashMap<Ticket, String>,
}

impl Crowd {
    fn new() -> Self {
        let bounds = Bounds { requests: 1000, bytes: 100_000 };
        Self { scheduler: Scheduler::new(bounds, &[1]), whose: HashMap::new() }
    }

    fn push(&mut self, asker: &str, count: usize, priority: i8) {
        for _ in 0..count {
            let ticket = self.scheduler.push(of(asker, priority)).unwrap();
            self.whose.insert(ticket, asker.to_owned());
        }
    }

    /// Whose the next ones are, one after the other. What one asker has comes in its order.
    fn served(&mut self, count: usize) -> Vec<String> {
        let mut last: HashMap<String, Ticket> = HashMap::new();
        let mut names = Vec::new();
        for _ in 0..count {
            let Some(ticket) = self.scheduler.start() else { break };
            self.scheduler.release(ticket);
            let name = self.whose[&ticket].clone();
            let before = last.insert(name.clone(), ticket);
            assert!(before < Some(ticket), "{name}: {ticket} after {before:?}");
            names.push(name);
        }
        names
    }
}

fn times(served: &[String], beginning: &str) -> usize {
    served.iter().filter(|name| name.starts_with(beginning)).count()
}

/// 0 for a ticket that does not wait in its lane, 1 for the next one, and so on.
fn position(scheduler: &Scheduler, lane: usize, ticket: Ticket) -> usize {
    scheduler.waiting(lane).iter().position(|other| *other == ticket).map_or(0, |before| before + 1)
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
    assert_eq!((position(&scheduler, 1, first), position(&scheduler, 1, late)), (1, 2));
    assert!(started(&mut scheduler).is_empty(), "the conversation is not free yet");
    scheduler.transfer(second, 1);
    assert_eq!(position(&scheduler, 1, second), 2, "it came after the first, and before the late one");
    assert!(started(&mut scheduler).is_empty(), "it still waits for its conversation");
    scheduler.transfer(second, 0);
    assert_eq!(position(&scheduler, 0, second), 1);
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
    assert_eq!((position(&scheduler, 0, urgent), position(&scheduler, 0, late)), (1, 2));
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
            assert_eq!(arrived - 1, 10 * BOUNDS.requests);
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
    assert_eq!(scheduler.push(big(1)), Err(Error::Share(1)));
    scheduler.push(of("another", 0)).unwrap();
    assert_eq!(scheduler.push(of("a third", 0)), Err(Error::Requests(2)));
    assert!(scheduler.push(job(1, None, 0)).is_ok(), "another lane has its own queue");
    assert_eq!((scheduler.queued(0), scheduler.queued(1)), (2, 1));
}

#[test]
fn nobody_fills_a_queue_alone_and_what_is_left_is_shared_again() {
    let mut scheduler = Scheduler::new(BOUNDS, &[1]);
    let mut fill = |name: &str| {
        let mut held = 0;
        loop {
            match scheduler.push(of(name, 0)) {
                Ok(_) => held += 1,
                Err(error) => return (held, error),
            }
        }
    };
    let filled = ["a", "b", "c", "d", "e", "f"].map(&mut fill);
    let full = Error::Requests(BOUNDS.requests);
    assert_eq!(
        filled,
        [
            (8, Error::Share(8)),
            (4, Error::Share(4)),
            (2, Error::Share(2)),
            (1, Error::Share(1)),
            (1, full),
            (0, full)
        ]
    );
    let ticket = scheduler.start().unwrap();
    assert!(scheduler.push(of("f", 0)).is_ok(), "one that runs does not wait");
    scheduler.release(ticket);
    assert_eq!(scheduler.push(of("a/x", 0)), Err(full));
}

#[test]
fn nobody_fills_the_memory_alone_and_one_request_always_finds_what_is_left() {
    let mut scheduler = Scheduler::new(Bounds { requests: 100, bytes: 1000 }, &[4]);
    let big = |name: &str, bytes| Job { bytes, ..of(name, 0) };
    let mut mine = vec![scheduler.push(big("a", 300)).unwrap(), scheduler.push(big("a/x", 200)).unwrap()];
    let full = Err(Error::BytesShare { own: 500, max: 1000 });
    assert_eq!(scheduler.push(big("a/y", 1)), full, "half is for others");
    started(&mut scheduler);
    assert_eq!(scheduler.push(big("a", 1)), full, "what runs is held, too");
    let other = scheduler.push(big("b", 400)).unwrap();
    assert_eq!(scheduler.push(big("c", 101)), Err(Error::Bytes { held: 900, max: 1000 }));
    scheduler.release(other);
    scheduler.release(mine.pop().unwrap());
    assert!(scheduler.push(big("a", 200)).is_ok(), "what was given back can be had again");
    scheduler.release(mine.pop().unwrap());
    assert!(scheduler.push(big("d", 800)).is_ok(), "one large one alone");
    assert_eq!(scheduler.push(big("d", 1)), Err(Error::Bytes { held: 1000, max: 1000 }));
}

#[test]
fn whoever_comes_later_starts_while_nothing_ends() {
    let mut scheduler = Scheduler::new(Bounds { requests: 1000, bytes: 1000 }, &[16]);
    let mut starts = |name: &str| {
        (0..10).for_each(|_| assert!(scheduler.push(of(name, 0)).is_ok()));
        started(&mut scheduler).len()
    };
    let all = ["a", "b", "c", "d", "e", "f"].map(&mut starts);
    assert_eq!(all, [8, 4, 2, 1, 1, 0]);
    assert_eq!((scheduler.running(0), scheduler.queued(0)), (16, 44));
}

#[test]
fn who_sees_every_tenant_may_have_a_whole_lane() {
    let mut scheduler = Scheduler::new(BOUNDS, &[4]);
    let whole = |name: &str| Job { whole_lane: true, ..of(name, 0) };
    let all: Vec<_> = (0..4).map(|_| scheduler.push(whole("owner")).unwrap()).collect();
    assert_eq!(started(&mut scheduler), all);
    let other = [scheduler.push(of("a", 0)).unwrap(), scheduler.push(of("a", 0)).unwrap()];
    scheduler.release(all[0]);
    assert_eq!(started(&mut scheduler), [other[0]]);
    scheduler.release(all[1]);
    assert!(started(&mut scheduler).is_empty(), "one has half of what others leave");
    scheduler.release(all[2]);
    assert_eq!(started(&mut scheduler), [other[1]]);
}

#[test]
fn who_was_held_back_makes_up_for_no_turns_and_nobody_gains_by_it() {
    let mut scheduler = Scheduler::new(Bounds { requests: 1000, bytes: 100_000 }, &[4]);
    let mut whose = HashMap::new();
    let mut push = |scheduler: &mut Scheduler, name: &'static str, count| {
        for _ in 0..count {
            whose.insert(scheduler.push(of(name, 0)).unwrap(), name);
        }
    };
    push(&mut scheduler, "a", 100);
    let held = started(&mut scheduler);
    assert_eq!(held.len(), 2, "half is for others");
    push(&mut scheduler, "b", 100);
    push(&mut scheduler, "c", 100);
    let mut running = started(&mut scheduler);
    // Those of `a` do not end for long, while others have many turns.
    for _ in 0..40 {
        scheduler.release(running.remove(0));
        running.extend(started(&mut scheduler));
        assert_eq!(running.len(), 2);
    }
    push(&mut scheduler, "d", 100);
    running.extend(held);
    let mut turns = Vec::new();
    while turns.len() < 40 {
        scheduler.release(running.remove(0));
        let next = started(&mut scheduler);
        turns.extend(next.iter().copied());
        running.extend(next);
    }
    for name in ["a", "b", "c", "d"] {
        let had = turns.iter().filter(|ticket| whose[ticket] == name).count();
        assert!((9..=11).contains(&had), "{name} had {had} of {} turns", turns.len());
    }
}

#[test]
fn principals_take_turns_however_many_requests_one_of_them_has() {
    let mut crowd = Crowd::new();
    crowd.push("flood", 400, 0);
    assert_eq!(times(&crowd.served(100), "flood"), 100, "nobody else asks");
    crowd.push("one", 60, 0);
    crowd.push("two", 60, 0);
    let served = crowd.served(150);
    for name in ["flood", "one", "two"] {
        assert_eq!(times(&served, name), 50, "{served:?}");
    }
    for three in served.chunks(3) {
        assert!(["flood", "one", "two"].iter().all(|name| times(three, name) == 1), "{three:?}");
    }
    // Whoever waits for its answers before it asks on gets its turn as well, and no more.
    crowd.push("flood", 20, 0);
    for round in 0..20 {
        crowd.push("patient", 1, 0);
        let before = (0..).find(|_| crowd.served(1) == ["patient"]).unwrap();
        assert!((1..=3).contains(&before) || round == 0, "it waited for {before} in round {round}");
    }
}

#[test]
fn agents_share_the_turns_of_their_principal() {
    let mut crowd = Crowd::new();
    crowd.push("a/flood", 200, 0);
    crowd.push("a/x", 20, 0);
    crowd.push("a/y", 20, 0);
    crowd.push("b", 60, 0);
    let served = crowd.served(90);
    assert_eq!(times(&served, "b"), 45, "{served:?}");
    for agent in ["a/flood", "a/x", "a/y"] {
        assert_eq!(times(&served, agent), 15, "{served:?}");
    }
}

#[test]
fn a_new_name_for_every_request_does_not_help() {
    let mut crowd = Crowd::new();
    for n in 0..50 {
        crowd.push(&format!("many/{n}"), 1, 0);
    }
    crowd.push("one", 10, 0);
    assert_eq!(times(&crowd.served(20), "one"), 10);
}

#[test]
fn a_priority_goes_before_turns_and_who_waits_for_long_gains_one() {
    let mut crowd = Crowd::new();
    crowd.push("normal", 10, 0);
    crowd.push("urgent", 10, 1);
    assert_eq!(times(&crowd.served(10), "urgent"), 10);
    let rounds = BOUNDS.requests;
    let mut scheduler = Scheduler::new(BOUNDS, &[1]);
    let patient = scheduler.push(of("patient", 0)).unwrap();
    for n in 0.. {
        scheduler.push(of(&format!("urgent {n}"), 10)).unwrap();
        let next = scheduler.start().unwrap();
        scheduler.release(next);
        if next == patient {
            assert_eq!(n, 10 * rounds);
            break;
        }
    }
}

#[test]
fn who_comes_after_a_rush_of_a_higher_priority_waits_for_one_turn_of_each_other() {
    for (waits, rushes, comes) in [
        ("waits", "rushes", "comes"),
        ("one/waits", "one/rushes", "one/comes"),
        ("one/waits", "two", "one/comes"),
    ] {
        let mut crowd = Crowd::new();
        crowd.push(waits, 200, 0);
        crowd.push(rushes, 300, 1);
        assert_eq!(times(&crowd.served(300), rushes), 300);
        crowd.push(comes, 3, 0);
        let served = crowd.served(6);
        assert_eq!(times(&served, comes), 3, "{served:?}");
    }
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
    assert!(scheduler.held.is_empty());
    assert!(scheduler.lanes[0].shares.is_empty() && scheduler.lanes[0].ready.is_empty());
    assert!(scheduler.lanes[0].runs.is_empty());
    for round in 0..100 {
        let ticket = scheduler.push(of(&format!("p{round}"), 0)).unwrap();
        started(&mut scheduler);
        scheduler.release(ticket);
    }
    assert!(scheduler.lanes[0].ready.known() < 5, "{}", scheduler.lanes[0].ready.known());
}

#[derive(Debug, Clone)]
enum Step {
    Push { lane: usize, asker: u8, conversation: Option<u8>, priority: i8 },
    Release(usize),
    Transfer(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (0..LIMITS.len(), 0..6_u8, option::of(0..4_u8), -2..=2_i8)
        .prop_map(|(lane, asker, conversation, priority)| Step::Push { lane, asker, conversation, priority });
    let release = (0..64_usize).prop_map(Step::Release);
    let transfer = (0..64_usize, 0..LIMITS.len()).prop_map(|(index, lane)| Step::Transfer(index, lane));
    vec(prop_oneof![3 => push, 2 => release, 1 => transfer], 0..200)
}

/// Three principals, of which each has two agents.
fn asker(number: u8) -> Asker {
    Asker { principal: (number / 2).to_string(), agent: (number % 2).to_string() }
}

/// What a ticket is, as the model of the test knows it.
#[derive(Debug, Clone)]
struct Known {
    ticket: Ticket,
    lane: usize,
    asker: u8,
    conversation: Option<u8>,
    priority: i8,
    key: (i64, Ticket),
    running: bool,
    begun: bool,
}

/// Whether `one` could start now, by the rules and not by the indexes.
fn may_start(all: &[Known], one: &Known) -> bool {
    let busy = |other: &&Known| other.running && other.lane == one.lane;
    let kin = |other: &&Known| one.conversation.is_some() && other.conversation == one.conversation;
    let running = all.iter().filter(busy).count();
    let own = all.iter().filter(busy).filter(|other| other.asker / 2 == one.asker / 2).count();
    !one.running
        && own < fair_share(LIMITS[one.lane], running - own)
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
                Step::Push { lane, asker: whose, conversation, priority } => {
                    let name = conversation.map(|c| c.to_string());
                    let job = Job { asker: asker(whose), ..job(lane, name.as_deref(), priority) };
                    if let Ok(ticket) = scheduler.push(job) {
                        let step = BOUNDS.requests as i64;
                        let key = (ticket as i64 - i64::from(priority) * step, ticket);
                        let (running, begun) = (false, false);
                        let asker = whose;
                        all.push(Known { ticket, lane, asker, conversation, priority, key, running, begun });
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
                    let of = |known: &Known| (known.lane, known.asker, known.priority);
                    of(other) == of(&one) && other.ticket < one.ticket && may_start(&all, other)
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
            if let Step::Push { lane, asker: whose, conversation, priority } = step {
                let name = conversation.map(|c| c.to_string());
                let job = Job { asker: asker(whose), ..job(lane, name.as_deref(), priority) };
                waiting.extend(scheduler.push(job));
            }
        }
        while let Some(ticket) = scheduler.start() {
            waiting.remove(&ticket);
            scheduler.release(ticket);
        }
        prop_assert!(waiting.is_empty(), "never started: {waiting:?}");
    }

    #[test]
    fn places_in_the_queue_are_the_order_of_the_starts(steps in steps(), before in 0..20_usize) {
        let mut scheduler = Scheduler::new(BOUNDS, &[1, 1]);
        for (number, step) in steps.into_iter().enumerate() {
            if let Step::Push { lane, asker: whose, priority, .. } = step {
                let _ = scheduler.push(Job { asker: asker(whose), ..job(lane, None, priority) });
            }
            if number < before && let Some(ticket) = scheduler.start() {
                scheduler.release(ticket);
            }
        }
        let told = scheduler.waiting(0);
        let starts = std::iter::from_fn(|| {
            let ticket = scheduler.start()?;
            let lane = scheduler.slots[&ticket].lane;
            scheduler.release(ticket);
            Some((lane, ticket))
        });
        let started: Vec<_> = starts.filter(|(lane, _)| *lane == 0).map(|(_, ticket)| ticket).collect();
        prop_assert_eq!(told, started);
    }
}
