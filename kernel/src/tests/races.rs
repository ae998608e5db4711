//! Races: what holds when threads do everything at once.
//!
//! Whatever ends a request first, its asker gets one last answer, and every
//! charge is taken back.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ksi_identity::Authority;
use ksi_protocol::{
    Code, EventName, Pattern, Refusal, descriptor::InterceptSpec, frame::Class, frame::Stage,
};

use crate::{
    Answer, Ask, Delivery, Effects, Emission, Kernel, Port, Quota, Role, Token, Verdict, port::locked,
};

fn event(text: &str) -> EventName {
    EventName::parse(text).unwrap()
}

fn attach(kernel: &Kernel<()>, origin: &str, role: Role) -> Arc<Port<()>> {
    kernel.attach(role, (), Quota::default(), Authority::full(origin))
}

fn gone() -> Refusal {
    Refusal::new(Code::PluginRestarted, "gone")
}

/// Last answers by the asker's ids, and what others were asked.
#[derive(Default)]
struct Seen {
    last: Mutex<HashMap<(Arc<str>, u64), u32>>,
    asked: Mutex<Vec<(Arc<Port<()>>, Delivery)>>,
}

impl Seen {
    fn take_in(&self, effects: &mut Effects<()>) {
        for (port, delivery) in effects.deliveries.drain(..) {
            match delivery {
                Delivery::Answer { id, answer, .. } if answer.is_last() => {
                    *locked(&self.last).entry((Arc::clone(&port.origin), id)).or_default() += 1;
                }
                Delivery::Request { .. } | Delivery::Intercept { .. } => {
                    locked(&self.asked).push((port, delivery));
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_request_that_everybody_ends_at_once_has_one_last_answer() {
    const ROUNDS: u64 = 3_000;
    let kernel = Kernel::new();
    let asker = attach(&kernel, "session:1", Role::Client);
    let owner = attach(&kernel, "plugin:echo", Role::Plugin);
    kernel.own(&owner, &[event("echo:say")]).unwrap();
    let (seen, token) = (Seen::default(), AtomicU64::new(0));
    let (start, stop) = (Barrier::new(4), Barrier::new(4));
    let race = |act: &(dyn Fn(u64, Token, &mut Effects<()>) + Sync)| {
        let mut effects = Effects::new();
        for round in 0..ROUNDS {
            start.wait();
            act(round, token.load(Ordering::SeqCst), &mut effects);
            seen.take_in(&mut effects);
            stop.wait();
        }
    };
    let race = &race;
    thread::scope(|scope| {
        let (kernel, asker, owner) = (&kernel, &asker, &owner);
        scope.spawn(move || {
            race(&|now_ms, token, effects| {
                let _ = kernel.answer(owner, token, Answer::Chunk(Bytes::new()), now_ms, effects);
                kernel.answer(owner, token, Answer::Reply(Bytes::new()), now_ms, effects).unwrap();
            });
        });
        scope.spawn(move || race(&|round, _, effects| kernel.cancel(asker, round, effects)));
        scope.spawn(move || {
            race(&|_, _, effects| {
                kernel.expire(u64::MAX - 1, effects);
            });
        });
        let mut effects = Effects::new();
        for round in 0..ROUNDS {
            kernel.request(asker, Ask::new(round, event("echo:say"), Bytes::new()), round, &mut effects);
            seen.take_in(&mut effects);
            token.store(round + 1, Ordering::SeqCst);
            start.wait();
            stop.wait();
        }
    });
    let last = locked(&seen.last);
    assert_eq!(last.len(), ROUNDS as usize);
    assert!(last.values().all(|&times| times == 1));
    assert_eq!((kernel.in_flight(), owner.holding(), asker.in_flight()), (0, 0, 0));
    assert_eq!(kernel.expire(u64::MAX - 1, &mut Effects::new()), None);
}

/// Answers whatever was asked, requests with a nested one now and then.
fn serve(kernel: &Kernel<()>, seen: &Seen, done: &AtomicBool) {
    let mut effects = Effects::new();
    let mut nested = 0;
    loop {
        let Some((port, delivery)) = locked(&seen.asked).pop() else {
            if done.load(Ordering::SeqCst) {
                return;
            }
            thread::yield_now();
            continue;
        };
        // The port may be gone and the request over; neither is a fault.
        match delivery {
            Delivery::Request { token, envelope } => {
                if envelope.parent.is_none() && token % 3 == 0 {
                    nested += 1;
                    let mut ask = Ask::new(u64::MAX - nested, event("echo:say"), Bytes::new());
                    ask.parent = Some(token);
                    kernel.request(&port, ask, 0, &mut effects);
                }
                kernel.answer(&port, token, Answer::End(Bytes::new()), 0, &mut effects).unwrap();
            }
            Delivery::Intercept { token, .. } => {
                kernel.verdict(&port, token, Verdict::Pass, 0, &mut effects).unwrap();
            }
            _ => {}
        }
        seen.take_in(&mut effects);
    }
}

/// One life of an owner and of an interceptor before and after it: until they
/// have answered a few requests.
fn live(kernel: &Kernel<()>, seen: &Seen) -> [Arc<Port<()>>; 2] {
    let mut effects = Effects::new();
    let owner = attach(kernel, "plugin:echo", Role::Plugin);
    let guard = attach(kernel, "plugin:guard", Role::Plugin);
    for stage in [Stage::Before, Stage::After] {
        let pattern = Pattern::parse("**").unwrap();
        kernel.intercept(&guard, [InterceptSpec { pattern, stage, order: 0, fail_open: true }]);
    }
    kernel.own(&owner, &[event("echo:say")]).unwrap();
    kernel.subscribe(&owner, 1, Pattern::parse("a:*").unwrap(), Class::Live, 0).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while owner.handled() < 20 {
        assert!(Instant::now() < deadline, "nothing is answered");
        thread::yield_now();
    }
    kernel.detach(&guard, &gone(), &mut effects);
    kernel.detach(&owner, &gone(), &mut effects);
    seen.take_in(&mut effects);
    [owner, guard]
}

/// Asks, cancels and emits until done. Returns how often it asked.
fn ask(kernel: &Kernel<()>, asker: &Arc<Port<()>>, seen: &Seen, done: &AtomicBool) -> u64 {
    let mut effects = Effects::new();
    let mut id = 0;
    while !done.load(Ordering::SeqCst) {
        if asker.in_flight() >= 100 {
            thread::yield_now();
            continue;
        }
        kernel.request(asker, Ask::new(id, event("echo:say"), Bytes::new()), 0, &mut effects);
        seen.take_in(&mut effects);
        if id % 5 == 0 {
            kernel.cancel(asker, id, &mut effects);
            kernel.emit(asker, Emission::new(event("a:b"), Bytes::new()), 0, &mut effects).unwrap();
            seen.take_in(&mut effects);
        }
        id += 1;
    }
    id
}

#[test]
fn charges_return_to_zero_while_owners_and_interceptors_come_and_go() {
    const LIVES: usize = 100;
    let kernel = Kernel::new();
    let askers = [attach(&kernel, "session:1", Role::Client), attach(&kernel, "session:2", Role::Client)];
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    let (asked, lives) = thread::scope(|scope| {
        let (kernel, seen, done) = (&kernel, &seen, &done);
        let asking = askers.each_ref().map(|asker| scope.spawn(move || ask(kernel, asker, seen, done)));
        scope.spawn(move || serve(kernel, seen, done));
        // Whatever happens here, the others are told to stop.
        let lives = catch_unwind(AssertUnwindSafe(|| {
            (0..LIVES).flat_map(|_| live(kernel, seen)).collect::<Vec<_>>()
        }));
        done.store(true, Ordering::SeqCst);
        (asking.map(|asking| asking.join().unwrap()), lives.unwrap())
    });
    let mut effects = Effects::new();
    kernel.expire(u64::MAX - 1, &mut effects);
    seen.take_in(&mut effects);
    let last = locked(&seen.last);
    for (asker, asked) in askers.iter().zip(asked) {
        for id in 0..asked {
            assert_eq!(last.get(&(Arc::clone(&asker.origin), id)), Some(&1), "{} {id}", asker.origin);
        }
        assert_eq!(asker.in_flight(), 0);
    }
    for port in &lives {
        assert_eq!((port.holding(), port.in_flight()), (0, 0), "{}", port.origin);
    }
    let figures = kernel.figures();
    assert_eq!((figures.in_flight, figures.subscriptions, figures.endpoints), (0, 0, 2));
    assert!(figures.deliveries >= 20 * LIVES as u64 && figures.refusals > 0, "{figures:?}");
}

#[test]
fn there_is_no_moment_at_which_the_gate_of_a_guard_that_comes_and_goes_is_open() {
    const LOOKS: usize = 200_000;
    let kernel = Kernel::new();
    let asker = attach(&kernel, "session:1", Role::Client);
    let expect = || kernel.expect_interceptor("plugin:guard", vec![Pattern::parse("**").unwrap()]);
    let word = |pattern| InterceptSpec {
        pattern: Pattern::parse(pattern).unwrap(),
        stage: Stage::Before,
        order: 0,
        fail_open: false,
    };
    expect();
    let open = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let say = event("echo:say");
            let is_open = |_| kernel.interceptors.of(Stage::Before, &say, &asker, None).is_none();
            (0..LOOKS).any(is_open)
        });
        while !asking.is_finished() {
            let guard = attach(&kernel, "plugin:guard", Role::Plugin);
            kernel.intercept(&guard, ["a:*", "b:*", "echo:*"].map(word));
            kernel.detach(&guard, &gone(), &mut Effects::new());
            expect();
        }
        asking.join().unwrap()
    });
    assert!(!open);
}

#[test]
fn the_earliest_deadline_is_told_when_it_moves_forward() {
    let kernel = Kernel::new();
    let asker = attach(&kernel, "session:1", Role::Client);
    let owner = attach(&kernel, "plugin:echo", Role::Plugin);
    kernel.own(&owner, &[event("echo:say")]).unwrap();
    let mut effects = Effects::new();
    for (id, timeout_ms, told) in [(1, 500, Some(500)), (2, 800, None), (3, 200, Some(200)), (4, 200, None)] {
        let mut ask = Ask::new(id, event("echo:say"), Bytes::new());
        ask.timeout = Some(Duration::from_millis(timeout_ms));
        kernel.request(&asker, ask, 0, &mut effects);
        assert_eq!(effects.deadline.take(), told, "request {id}");
    }
    for (now_ms, next, ended) in
        [(199, Some(200), 0), (200, Some(500), 2), (700, Some(800), 1), (800, None, 1)]
    {
        effects.deliveries.clear();
        assert_eq!(kernel.expire(now_ms, &mut effects), next);
        // A cancel for the owner and a refusal for the asker.
        assert_eq!(effects.deliveries.len(), 2 * ended, "at {now_ms}");
    }
}
