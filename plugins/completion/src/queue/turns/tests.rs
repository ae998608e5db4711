//! The discipline, by chance: whatever comes and goes, its invariants hold.

use std::collections::HashMap;

use proptest::{
    collection::vec, prelude::ProptestConfig, prop_assert, prop_assert_eq, prop_oneof, proptest,
    sample::Index, strategy::Strategy,
};

use super::*;

/// Starts after which one is a class higher.
const STEP: usize = 12;

/// A lane that starts one at a time, and what it should know.
struct Lane {
    ready: Ready,
    arrived: Ticket,
    started: usize,
    /// Those that wait, with whose they are.
    waiting: BTreeMap<Ticket, (Asker, i8)>,
    /// Since when each principal waits for its next turn in a class.
    since: HashMap<(String, i8), usize>,
    /// Whose turns there were: principal, agent, priority.
    turns: Vec<(String, String, i8)>,
}

impl Lane {
    fn new(step: usize) -> Self {
        Self {
            ready: Ready::new(step),
            arrived: 0,
            started: 0,
            waiting: BTreeMap::new(),
            since: HashMap::new(),
            turns: Vec::new(),
        }
    }

    fn push(&mut self, principal: &str, agent: &str, priority: i8) -> Ticket {
        self.arrived += 1;
        let asker = Asker { principal: principal.into(), agent: agent.into() };
        self.ready.insert(&asker, key(self.arrived, priority));
        self.since.entry((principal.into(), priority)).or_insert(self.started);
        self.waiting.insert(self.arrived, (asker, priority));
        self.arrived
    }

    /// Starts one; checks that it may go first.
    fn start(&mut self) -> Option<Ticket> {
        let ticket = self.ready.take();
        let Some(ticket) = ticket else {
            assert!(self.waiting.is_empty(), "these are not started: {:?}", self.waiting);
            return None;
        };
        let (asker, priority) = self.waiting[&ticket].clone();
        let same = |(_, other): &(&Ticket, &(Asker, i8))| *other == &(asker.clone(), priority);
        let first = self.waiting.iter().find(same).map(|(first, _)| *first);
        assert_eq!(Some(ticket), first, "{asker:?} is not served in its order");
        let waited = self.started - self.since[&(asker.principal.clone(), priority)];
        let highest = self.waiting.values().map(|(_, priority)| *priority).max();
        let levels = usize::try_from(highest.unwrap_or(priority) - priority).unwrap();
        assert!(waited >= levels * self.ready.step as usize, "{asker:?} goes before {levels} classes");
        self.started += 1;
        self.forget(ticket);
        self.since.entry((asker.principal.clone(), priority)).and_modify(|since| *since = self.started);
        self.turns.push((asker.principal, asker.agent, priority));
        Some(ticket)
    }

    fn cancel(&mut self, ticket: Ticket) {
        let (asker, priority) = self.waiting[&ticket].clone();
        assert!(self.ready.remove(&asker, key(ticket, priority)));
        assert!(!self.ready.remove(&asker, key(ticket, priority)), "it is gone");
        self.forget(ticket);
    }

    fn forget(&mut self, ticket: Ticket) {
        let (asker, priority) = self.waiting.remove(&ticket).unwrap();
        let class = (asker.principal, priority);
        if self.waiting.values().all(|(other, at)| (&other.principal, *at) != (&class.0, class.1)) {
            self.since.remove(&class);
        }
    }

    /// Lets others come and go.
    fn go_on(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Push { principal, agent, priority } => {
                    self.push(&format!("p{principal}"), &format!("a{agent}"), *priority);
                }
                Step::Start => {
                    self.start();
                }
                Step::Cancel(index) => {
                    if !self.waiting.is_empty() {
                        let ticket = *index.get(&self.waiting.keys().copied().collect::<Vec<_>>());
                        self.cancel(ticket);
                    }
                }
            }
        }
    }
}

fn key(ticket: Ticket, priority: i8) -> Key {
    Key { arrival: 0, ticket, priority }
}

#[derive(Debug, Clone)]
enum Step {
    Push { principal: u8, agent: u8, priority: i8 },
    Start,
    Cancel(Index),
}

fn steps(priorities: std::ops::RangeInclusive<i8>) -> impl Strategy<Value = Vec<Step>> {
    let push = (0..5_u8, 0..3_u8, priorities).prop_map(|(principal, agent, priority)| Step::Push {
        principal,
        agent,
        priority,
    });
    let cancel = proptest::prelude::any::<Index>().prop_map(Step::Cancel);
    vec(prop_oneof![4 => push, 3 => proptest::strategy::Just(Step::Start), 1 => cancel], 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_waits_in_vain_each_in_its_order_and_classes_are_kept(steps in steps(-3..=3)) {
        let mut lane = Lane::new(STEP);
        lane.go_on(&steps);
        while lane.start().is_some() {}
        prop_assert!(lane.ready.is_empty() && lane.ready.known() == 0);
    }

    #[test]
    fn whoever_comes_waits_for_at_most_one_turn_of_each_other(
        before in steps(-2..=2),
        after in steps(-2..=0),
        priority in -2..=2_i8,
    ) {
        let mut lane = Lane::new(STEP);
        lane.go_on(&before);
        let (began, newcomer) = (lane.turns.len(), lane.push("newcomer", "x", priority));
        // Cancelled by nobody, and others go on coming.
        lane.go_on(&after.into_iter().filter(|step| !matches!(step, Step::Cancel(_))).collect::<Vec<_>>());
        while lane.waiting.contains_key(&newcomer) {
            lane.start();
        }
        let turn = lane.turns[began..].iter().position(|(name, ..)| name == "newcomer").unwrap();
        let mut others = HashMap::new();
        for (name, _, at) in &lane.turns[began..began + turn] {
            *others.entry((name, at)).or_insert(0) += 1;
        }
        let most = others.iter().filter(|((_, at), _)| **at <= priority).map(|(_, turns)| *turns).max();
        prop_assert!(most.unwrap_or(0) <= 1, "{others:?} before one of priority {priority}");
    }

    #[test]
    fn who_wait_all_the_time_have_equal_turns(
        busy in 2..5_usize,
        agents in 1..4_usize,
        steps in steps(0..=0),
    ) {
        let mut lane = Lane::new(1000);
        lane.go_on(&steps[..steps.len() / 2]);
        let began = lane.turns.len();
        let names = || (0..busy).flat_map(|n| (0..agents).map(move |a| (format!("busy{n}"), format!("a{a}"))));
        for (name, agent) in names() {
            lane.push(&name, &agent, 0);
            lane.push(&name, &agent, 0);
        }
        for step in steps[steps.len() / 2..].iter().filter(|step| !matches!(step, Step::Cancel(_))) {
            lane.go_on(std::slice::from_ref(step));
            let last = lane.turns.last().cloned();
            if let Some((name, agent, _)) = last.filter(|(name, ..)| name.starts_with("busy")) {
                lane.push(&name, &agent, 0);
            }
        }
        let turns = |of: &dyn Fn(&(String, String, i8)) -> bool| lane.turns[began..].iter().filter(|t| of(t)).count();
        let each: Vec<_> = (0..busy).map(|n| turns(&|turn| turn.0 == format!("busy{n}"))).collect();
        prop_assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 2, "{each:?}");
        let each: Vec<_> = (0..agents).map(|a| turns(&|t| t.0 == "busy0" && t.1 == format!("a{a}"))).collect();
        prop_assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 2, "{each:?}");
    }

    #[test]
    fn a_rush_of_a_higher_priority_is_outwaited(
        before in steps(-3..=3),
        priority in -3..=3_i8,
        above in 1..4_i8,
        rush in vec(0..40_u8, 1..20),
    ) {
        // No more wait than ageing counts with.
        let (mut lane, step) = (Lane::new(64), 64);
        lane.go_on(&before[..before.len().min(60)]);
        let patient = lane.push("patient", "x", priority);
        let (began, mut most) = (lane.started, 0);
        for name in rush.iter().cycle() {
            // Some come again and again, and many come once.
            let name = if *name < 5 { format!("p{name}") } else { format!("fresh{}", lane.arrived) };
            lane.push(&name, "", priority + above);
            most = most.max(lane.since.len());
            if lane.start() == Some(patient) {
                break;
            }
            let highest = usize::try_from(3.max(priority + above) - priority).unwrap();
            prop_assert!(lane.started - began <= (highest + 1) * step + most, "it starves");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_by_what_waits(backlog in 1..20_usize, starts in 0..400_usize) {
        let mut lane = Lane::new(1000);
        lane.push("steady", "", 0);
        for _ in 0..backlog {
            lane.push(&format!("fresh{}", lane.arrived), "", 0);
        }
        for _ in 0..starts {
            lane.push(&format!("fresh{}", lane.arrived), "", 0);
            lane.start();
            prop_assert_eq!(lane.waiting.len(), backlog + 1);
            prop_assert!(lane.ready.known() <= 3 * (backlog + 1), "{}", lane.ready.known());
        }
    }
}
