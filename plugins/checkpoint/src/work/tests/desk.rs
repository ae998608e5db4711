//! A plugin that does nothing but keep work.

use std::{cell::RefCell, rc::Rc, time::Duration};

use ksi_sdk::{
    Ctx, Plugin, Register,
    prelude::{Code, Deserialize, JsonSchema, Refusal, Serialize},
    protocol::{
        meta::Meta,
        work::{WorkInfo, WorkPage, WorkState},
    },
    testing::{Answer, Call, FakeHost},
};
use serde_json::{Value, json};

use crate::{
    engine::{Engine, Options},
    ledger::{Id, Limits},
    record::{Batch, keys},
    testing::{open_engine, policy, wait_until},
    work::{self, Attempts, Work},
};

#[derive(Default)]
pub(super) struct Desk {
    open: RefCell<Option<(Rc<Engine>, Rc<Work>)>>,
    attempts: Rc<Attempts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    in_flight: Option<usize>,
    kept: Option<usize>,
    /// Bytes that fit into memory before the store has them.
    memory: Option<usize>,
}

/// Count what is stored in a table.
#[derive(Debug, Deserialize, JsonSchema)]
struct Count {
    table: u8,
}

/// Stop the journal, as when the disk is full.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Break {}

/// Write something over work that nobody can read, and say nothing.
#[derive(Debug, Deserialize, JsonSchema)]
struct Spoil {
    request_id: String,
}

/// Say how much work could not be read.
#[derive(Debug, Deserialize, JsonSchema)]
struct Unreadable {}

/// Open the journal again.
#[derive(Debug, Deserialize, JsonSchema)]
struct Reopen {}

/// The count.
#[derive(Debug, Serialize, JsonSchema)]
struct Counted(usize);

impl Plugin for Desk {
    const NAME: &'static str = "checkpoint";
    const ABOUT: &'static str = "Keeps work, for a test";

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self::default())
    }

    fn register(on: &mut Register<Self>) {
        work::register(on, |desk| desk.opened().map(|(_, work)| work));
        on.request("desk:count", Self::count);
        on.request("desk:break", Self::break_journal);
        on.request("desk:spoil", Self::spoil);
        on.request("desk:unreadable", |desk: Rc<Self>, _, _: Unreadable| async move {
            Ok(Counted(desk.opened()?.1.unreadable()))
        });
        on.request("desk:reopen", |desk: Rc<Self>, ctx, _: Reopen| async move {
            desk.open(ctx).await?;
            Ok(Break {})
        });
    }

    async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
        let config: Config = ctx.config()?;
        let default = Limits::default();
        let limits = Limits {
            in_flight: config.in_flight.map_or(default.in_flight, |of_one| 2 * of_one),
            kept: config.kept.unwrap_or(default.kept),
            ..default
        };
        let mut options = Options::default();
        if let Some(memory) = config.memory {
            (options.overlay_max_bytes, options.checkpoint_bytes) = (memory, memory / 2);
        }
        let (engine, _) = open_engine(&ctx.dir().join("kept"), &options).await?;
        let work = Work::open(&ctx, engine.clone(), limits, &self.attempts).await?;
        *self.open.borrow_mut() = Some((engine, work));
        Ok(())
    }

    async fn drain(self: Rc<Self>, _ctx: Ctx) {
        let (engine, work) = self.opened().unwrap();
        work.close().await.unwrap();
        engine.close().await.unwrap();
    }
}

impl Desk {
    fn opened(&self) -> Result<(Rc<Engine>, Rc<Work>), Refusal> {
        self.open.borrow().clone().ok_or_else(|| Refusal::new(Code::Unavailable, "not open yet"))
    }

    /// What the plugin does when the engine has stopped.
    async fn break_journal(self: Rc<Self>, _ctx: Ctx, _ask: Break) -> Result<Break, Refusal> {
        let (engine, work) = self.opened()?;
        self.open.take();
        engine.leash().end();
        engine.stopped().await;
        work.end();
        Ok(Break {})
    }

    async fn spoil(self: Rc<Self>, _ctx: Ctx, ask: Spoil) -> Result<Break, Refusal> {
        let (engine, _) = self.opened()?;
        let mut batch = Batch::new();
        batch.put(Id::parse(&ask.request_id)?.work_key(), &b"of another release"[..]);
        engine.durable(engine.commit(batch)?).await?;
        Ok(Break {})
    }

    async fn count(self: Rc<Self>, _ctx: Ctx, ask: Count) -> Result<Counted, Refusal> {
        let (engine, _) = self.opened()?;
        Ok(Counted(engine.scan(&[ask.table], None, usize::MAX).await?.len()))
    }
}

pub(super) type Host = FakeHost<Desk>;

pub(super) const TABLES: [u8; 4] = [keys::WORK, keys::PAYLOAD, keys::RESULT, keys::KEY];

pub(super) fn start() -> Host {
    Host::start(json!({})).unwrap()
}

/// The name of what was accepted.
pub(super) fn accepted(host: &Host, call: &Call) -> String {
    match host.next(call) {
        Answer::Accepted(accepted) => accepted.request_id,
        other => panic!("not accepted: {other:?}"),
    }
}

pub(super) fn keep(host: &Host, event: &str, data: Value) -> String {
    let call = host.keep(event, data, policy());
    accepted(host, &call)
}

pub(super) fn keep_keyed(host: &Host, key: &str, data: Value) -> Call {
    let meta = Meta {
        origin: Some("session:1".into()),
        idempotency_key: Some(key.into()),
        work: Some(policy()),
        ..Meta::default()
    };
    host.open_as("echo:say", data, &meta)
}

pub(super) fn ask<T: serde::de::DeserializeOwned>(
    host: &Host,
    event: &str,
    data: Value,
) -> Result<T, Refusal> {
    host.request(event, data).map(|answer| serde_json::from_value(answer).unwrap())
}

pub(super) fn get(host: &Host, request_id: &str) -> WorkInfo {
    ask(host, "work:get", json!({ "request_id": request_id })).unwrap()
}

pub(super) fn wait(host: &Host, request_id: &str) -> WorkInfo {
    ask(host, "work:wait", json!({ "request_id": request_id })).unwrap()
}

/// Stops the journal; what runs goes on.
pub(super) fn stop_journal(host: &Host) {
    let _: Value = ask(host, "desk:break", json!({})).unwrap();
}

pub(super) fn reopen(host: &Host) {
    let _: Value = ask(host, "desk:reopen", json!({})).unwrap();
}

pub(super) fn list(host: &Host, ask_for: Value) -> WorkPage {
    ask(host, "work:list", ask_for).unwrap()
}

/// Lets time pass until work has this state.
pub(super) fn until(host: &Host, request_id: &str, state: WorkState) -> WorkInfo {
    for _ in 0..1_000 {
        let info = get(host, request_id);
        if info.state == state {
            return info;
        }
        assert!(!info.state.is_end(), "it ended as {}", info.state);
        host.advance(Duration::from_millis(100));
    }
    panic!("{request_id} never became {state}")
}

pub(super) fn count(host: &Host, table: u8) -> usize {
    ask(host, "desk:count", json!({ "table": table })).unwrap()
}

/// Lets time pass until nothing is stored of any work.
pub(super) fn until_nothing_is_left(host: &Host) {
    wait_until("the end of everything", || {
        host.advance(Duration::from_secs(3600));
        TABLES.map(|table| count(host, table)) == [0; 4]
    });
}
