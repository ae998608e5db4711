//! How a plugin becomes ready: its state is brought up to date, it opens, and
//! what comes meanwhile waits.

use std::cell::{Cell, RefCell};

use ksi_sdk::{
    prelude::*,
    testing::{Answer, FakeHost, FakeSpace},
};

use crate::Nothing;

/// A plugin of version 3 that reads its notes before it is ready.
#[derive(Default)]
struct Notes {
    notes: RefCell<Vec<String>>,
    heard: Cell<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    /// Asks somebody before it is ready.
    asks: bool,
    naps_ms: u64,
    refuses: bool,
    works: bool,
}

impl Plugin for Notes {
    const NAME: &'static str = "notes";
    const ABOUT: &'static str = "Keeps notes";
    const STATE_VERSION: u32 = 3;

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self::default())
    }

    fn register(on: &mut Register<Self>) {
        on.request("notes:list", Self::list);
        on.event("world:*", Self::hear);
    }

    async fn migrate(state: State, from: u32) -> Result<Batch, Refusal> {
        let batch = state.batch();
        match from {
            0 => Ok(batch),
            1 | 2 => {
                let note = state.get::<String>("note").await?.unwrap_or_default();
                Ok(batch.delete("note").put("note/1", &note.value))
            }
            _ => Err(Refusal::new(Code::Conflict, "who wrote this?")),
        }
    }

    async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
        let config: Config = ctx.config()?;
        if config.asks {
            ctx.request::<_, serde_json::Value>("other:ready", &json!({})).await?;
        }
        if config.naps_ms > 0 {
            ctx.sleep(Duration::from_millis(config.naps_ms)).await;
        }
        if config.works {
            ctx.spawn_blocking(|| ()).await?;
        }
        if config.refuses {
            return Err(Refusal::new(Code::NotFound, "no file `notes.txt`").hint("make one"));
        }
        let page = ctx.state().scan::<String>("note/", None, 100).await?;
        self.notes.borrow_mut().extend(page.entries.into_iter().map(|entry| entry.value));
        Ok(())
    }

    async fn drain(self: Rc<Self>, ctx: Ctx) {
        ctx.info("drained");
    }
}

impl Notes {
    async fn list(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<(Vec<String>, u32), Refusal> {
        Ok((self.notes.borrow().clone(), self.heard.get()))
    }

    async fn hear(self: Rc<Self>, _ctx: Ctx, _: Event) {
        self.heard.set(self.heard.get() + 1);
    }
}

fn refusal<P: Plugin>(started: Result<FakeHost<P>, Refusal>) -> Refusal {
    started.err().expect("it does not start")
}

#[test]
fn a_fresh_state_gets_the_version_of_the_plugin() {
    let host = FakeHost::<Notes>::start(json!({})).expect("it starts");
    assert_eq!(host.space().state_version(), 3);
    assert_eq!(host.space().keys(), Vec::<String>::new());
}

#[test]
fn an_older_state_is_migrated_together_with_its_version_and_then_read() {
    let space = FakeSpace::new();
    space.set_state_version(1);
    space.put("note", &json!("buy milk"));
    let host = FakeHost::<Notes>::start_on(&space, json!({})).expect("it starts");
    assert_eq!(host.request("notes:list", json!({})), Ok(json!([["buy milk"], 0])));
    assert_eq!((space.state_version(), space.keys()), (3, vec!["note/1".to_owned()]));
    // The next start finds it as it should be.
    let host = host.restart(json!({})).expect("it starts again");
    assert_eq!(host.request("notes:list", json!({})), Ok(json!([["buy milk"], 0])));
}

#[test]
fn a_newer_state_is_left_alone_and_the_start_refused() {
    let space = FakeSpace::new();
    space.set_state_version(9);
    let refusal = refusal(FakeHost::<Notes>::start_on(&space, json!({})));
    assert_eq!(refusal.code, Code::Conflict);
    for part in ["plugin notes", "version 9", "up to 3"] {
        assert!(refusal.message.contains(part), "{refusal}");
    }
    assert!(!refusal.hint.is_empty());
    assert_eq!(space.state_version(), 9);
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let space = FakeSpace::new();
    space.set_state_version(1);
    space.put("note", &json!(["not", "a", "text"]));
    let refusal = refusal(FakeHost::<Notes>::start_on(&space, json!({})));
    assert!(refusal.message.contains("`note`"), "{refusal}");
    assert_eq!((space.state_version(), space.keys()), (1, vec!["note".to_owned()]));
}

#[test]
fn a_plugin_whose_author_wrote_no_migration_does_not_guess() {
    struct Plain;
    impl Plugin for Plain {
        const NAME: &'static str = "plain";
        const ABOUT: &'static str = "Has a version";
        const STATE_VERSION: u32 = 2;
        fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
            Ok(Self)
        }
        fn register(_on: &mut Register<Self>) {}
    }
    let space = FakeSpace::new();
    FakeHost::<Plain>::start_on(&space, json!({})).expect("there is nothing to migrate");
    space.set_state_version(1);
    let refusal = refusal(FakeHost::<Plain>::start_on(&space, json!({})));
    assert!(refusal.message.contains("version 1"), "{refusal}");
}

#[test]
fn what_comes_while_it_opens_is_answered_when_it_has_opened() {
    let host = FakeHost::<Notes>::begin(&FakeSpace::new(), json!({"asks": true})).expect("it begins");
    let call = host.open("notes:list", json!({}));
    let given_up = host.open("notes:list", json!({}));
    host.emit("world:began", json!({}));
    host.cancel(&given_up);
    assert_eq!((host.is_ready(), host.try_next(&call)), (Ok(false), None));
    host.reply(&host.expect("other:ready"), json!({}));
    assert_eq!(host.is_ready(), Ok(true));
    // A listener runs beside the requests; it has had its turn by now.
    assert_eq!(host.next(&call), Answer::Reply(json!([[], 0])));
    assert_eq!(host.request("notes:list", json!({})), Ok(json!([[], 1])));
    assert_eq!(host.try_next(&given_up), None);
}

#[test]
fn a_plugin_may_wait_for_a_thread_or_the_time_to_be_ready() {
    FakeHost::<Notes>::start(json!({"works": true})).expect("its thread comes back");
    let host = FakeHost::<Notes>::begin(&FakeSpace::new(), json!({"naps_ms": 50})).expect("it begins");
    host.advance(Duration::from_millis(49));
    assert_eq!(host.is_ready(), Ok(false));
    host.advance(Duration::from_millis(1));
    assert_eq!(host.is_ready(), Ok(true));
}

#[test]
fn a_refusal_to_open_is_a_refusal_to_start() {
    let said = refusal(FakeHost::<Notes>::start(json!({"refuses": true})));
    assert_eq!((said.code, &*said.message, &*said.hint), (Code::NotFound, "no file `notes.txt`", "make one"));

    // Also when it comes later; then it does nothing any more.
    let config = json!({"refuses": true, "naps_ms": 5});
    let host = FakeHost::<Notes>::begin(&FakeSpace::new(), config).expect("it begins");
    let call = host.open("notes:list", json!({}));
    host.advance(Duration::from_millis(5));
    assert_eq!(host.is_ready().expect_err("it refuses").message, "no file `notes.txt`");
    let late = host.open("notes:list", json!({}));
    assert_eq!((host.try_next(&call), host.try_next(&late)), (None, None));
}

#[test]
fn a_plugin_that_opens_waits_for_its_state_and_says_so_once() {
    let space = FakeSpace::new();
    space.refuse(Some(Refusal::new(Code::Unavailable, "plugin checkpoint is starting")));
    let host = FakeHost::<Notes>::begin(&space, json!({})).expect("it begins");
    for _ in 0..20 {
        host.advance(Duration::from_millis(100));
        assert_eq!(host.is_ready(), Ok(false));
    }
    let logged = host.logged();
    assert_eq!(logged, [(2, "waits for its state: plugin checkpoint is starting".to_owned())]);
    space.refuse(None);
    host.advance(Duration::from_millis(500));
    assert_eq!((host.is_ready(), space.state_version()), (Ok(true), 3));
}

#[test]
fn a_plugin_that_opens_does_not_wait_for_what_will_not_come() {
    let space = FakeSpace::new();
    let mut held = Refusal::new(Code::Unavailable, "plugin checkpoint is held after repeated failures");
    held.retryable = false;
    for said in [held, Refusal::new(Code::Denied, "not you")] {
        space.refuse(Some(said.clone()));
        assert_eq!(refusal(FakeHost::<Notes>::start_on(&space, json!({}))), said);
    }
}

#[test]
fn a_plugin_that_is_stopped_while_it_opens_is_done_at_once() {
    let host = FakeHost::<Notes>::begin(&FakeSpace::new(), json!({"asks": true})).expect("it begins");
    let asked = host.expect("other:ready");
    assert!(host.drain(), "nothing is under way that anybody waits for");
    assert!(host.has_cancelled(&asked));
    assert_eq!(host.logged(), []);
}

#[test]
fn a_plugin_without_a_version_is_ready_at_once_whatever_becomes_of_its_state() {
    struct Light;
    impl Plugin for Light {
        const NAME: &'static str = "light";
        const ABOUT: &'static str = "Keeps nothing";
        fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
            Ok(Self)
        }
        fn register(_on: &mut Register<Self>) {}
    }
    let space = FakeSpace::new();
    space.refuse(Some(Refusal::new(Code::Unavailable, "gone")));
    FakeHost::<Light>::start_on(&space, json!({})).expect("it needs none");
}
