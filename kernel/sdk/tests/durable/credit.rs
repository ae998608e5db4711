//! Streams whose asker counts: the handler waits for room, on its own thread
//! and on others.

use std::{cell::Cell, sync::mpsc};

use ksi_sdk::{
    prelude::*,
    protocol::meta::Meta,
    testing::{Answer, Call, FakeHost},
};

thread_local! {
    /// Where the next thread that counts says how far it came.
    static ENDED: Cell<Option<mpsc::SyncSender<u64>>> = const { Cell::new(None) };
}

struct Counter;

/// Count to a number.
#[derive(Deserialize, JsonSchema)]
struct Count {
    to: u64,
    #[serde(default)]
    patient: bool,
}

/// A number.
#[derive(Serialize, JsonSchema)]
struct Number {
    n: u64,
}

impl Plugin for Counter {
    const NAME: &'static str = "counter";
    const ABOUT: &'static str = "Counts";

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self)
    }

    fn register(on: &mut Register<Self>) {
        on.stream("counter:count", Self::count);
        on.stream("counter:thread", Self::thread);
    }
}

impl Counter {
    async fn count(self: Rc<Self>, _ctx: Ctx, count: Count, out: Chunks<Number>) -> Result<Number, Refusal> {
        for n in 0..count.to {
            if count.patient {
                out.ready().await;
            }
            out.send(&Number { n })?;
        }
        Ok(Number { n: count.to })
    }

    async fn thread(self: Rc<Self>, ctx: Ctx, count: Count, out: Chunks<Number>) -> Result<Number, Refusal> {
        let ended = ENDED.take();
        let sent = ctx.spawn_blocking(move || {
            let sent = (0..count.to).take_while(|&n| {
                out.wait_ready();
                out.send(&Number { n }).is_ok()
            });
            let sent = sent.count() as u64;
            if let Some(ended) = ended {
                ended.send(sent).expect("the test waits");
            }
            sent
        });
        Ok(Number { n: sent.await? })
    }
}

fn open(host: &FakeHost<Counter>, event: &str, credit: Option<u32>, patient: bool) -> Call {
    let meta = Meta { credit, ..Meta::default() };
    host.open_as(event, json!({"to": 5, "patient": patient}), &meta)
}

/// The numbers that have come, and whether the answer has ended.
fn taken(host: &FakeHost<Counter>, call: &Call) -> (Vec<u64>, bool) {
    let mut numbers = Vec::new();
    loop {
        match host.try_next(call) {
            Some(Answer::Chunk(chunk)) => numbers.push(chunk["n"].as_u64().expect("a number")),
            Some(Answer::End(end)) => {
                assert_eq!(end, json!({"n": 5}));
                return (numbers, true);
            }
            None => return (numbers, false),
            Some(other) => panic!("{other:?}"),
        }
    }
}

fn host() -> FakeHost<Counter> {
    FakeHost::start(json!({})).expect("it starts")
}

#[test]
fn a_handler_that_waits_sends_what_its_asker_has_room_for() {
    let host = host();
    let call = open(&host, "counter:count", Some(2), true);
    assert_eq!(taken(&host, &call), (vec![0, 1], false));
    host.credit(&call, 1);
    assert_eq!(taken(&host, &call), (vec![2], false));
    host.credit(&call, 0);
    assert_eq!(taken(&host, &call), (vec![], false));
    host.credit(&call, 100);
    assert_eq!(taken(&host, &call), (vec![3, 4], true));
}

#[test]
fn an_asker_that_does_not_count_gets_everything_at_once() {
    let host = host();
    assert_eq!(taken(&host, &open(&host, "counter:count", None, true)), ((0..5).collect(), true));
    let call = open(&host, "counter:count", Some(0), true);
    assert_eq!(taken(&host, &call), (vec![], false));
    host.credit(&call, u32::MAX);
    assert_eq!(taken(&host, &call), ((0..5).collect(), true));
}

#[test]
fn a_handler_that_does_not_wait_is_not_held_up() {
    let host = host();
    assert_eq!(taken(&host, &open(&host, "counter:count", Some(1), false)), ((0..5).collect(), true));
}

#[test]
fn credit_for_what_is_over_or_never_was_is_nothing() {
    let host = host();
    let call = open(&host, "counter:count", Some(5), true);
    assert_eq!(taken(&host, &call), ((0..5).collect(), true));
    host.credit(&call, 1);
    assert_eq!(host.try_next(&call), None);
}

#[test]
fn a_thread_waits_for_room_too() {
    let host = host();
    let call = open(&host, "counter:thread", Some(1), true);
    assert_eq!(host.next(&call), Answer::Chunk(json!({"n": 0})));
    for n in 1..5 {
        assert_eq!(host.try_next(&call), None, "there is no room for {n}");
        host.credit(&call, 1);
        assert_eq!(host.next(&call), Answer::Chunk(json!({ "n": n })));
    }
    assert_eq!(host.next(&call), Answer::End(json!({"n": 5})));
}

#[test]
fn a_thread_that_waits_is_let_go_when_nobody_waits_for_it_any_more() {
    let (sender, ended) = mpsc::sync_channel(1);
    ENDED.set(Some(sender));
    let host = host();
    let call = open(&host, "counter:thread", Some(1), true);
    assert_eq!(host.next(&call), Answer::Chunk(json!({"n": 0})));
    host.cancel(&call);
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(1));
    assert_eq!(host.try_next(&call), None);
}
