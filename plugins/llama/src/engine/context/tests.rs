//! The calls into llama.cpp on the toy model: what would make it abort is a
//! fault here, and an aborted batch does no harm.

use std::rc::Rc;
use std::sync::OnceLock;

use ksi_sdk::prelude::{Ctx, Deserialize, JsonSchema, Plugin, Register, Serialize, json};
use ksi_sdk::testing::FakeHost;

use super::*;
use crate::models::Library;
use crate::vetting::Source;

fn context(slots: u32) -> (tempfile::TempDir, Context, Arc<AtomicBool>) {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::new(dir.path().join("models"), dir.path());
    let (entry, header) = library.find("ksi-tiny").unwrap();
    let source = Source::unchecked(entry, header);
    let model = Model::load(&source, &Tuning::default(), |_| true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let setup = Setup { context: 1024, slots, threads: 1, ..Setup::default() };
    let context = Context::new(model, setup, stop.clone()).unwrap();
    (dir, context, stop)
}

/// A batch with this many tokens for sequence 0, and scores after the last.
fn prompt(context: &Context, length: usize) -> Batch {
    let mut batch = context.batch();
    for position in 0..length {
        let token = i32::try_from(position % 1000).unwrap() + 3;
        assert!(batch.push(LlamaToken(token), position, 0, position + 1 == length));
    }
    batch
}

#[test]
fn a_batch_takes_no_number_that_llama_cpp_would_abort_on() {
    let (_dir, context, _) = context(2);
    let mut batch = context.batch();
    let token = LlamaToken(5);
    assert!(!batch.push(LlamaToken(-1), 0, 0, false), "a negative token");
    assert!(!batch.push(LlamaToken(2048), 0, 0, false), "a token beyond the vocabulary");
    assert!(!batch.push(token, 1024, 0, false), "a position beyond the context");
    assert!(!batch.push(token, usize::MAX, 0, false), "a position beyond all numbers");
    assert!(!batch.push(token, 0, 2, false), "a sequence beyond the slots");
    assert!(!batch.push(token, 0, -1, false), "a negative sequence");
    assert!(batch.is_empty());
    let capacity = batch.room();
    for position in 0..capacity {
        assert!(batch.push(token, position, 1, false));
    }
    assert!(!batch.push(token, capacity, 1, false), "more than the batch holds");
}

#[test]
fn an_empty_batch_is_a_fault_and_not_an_abort() {
    let (_dir, mut context, _) = context(1);
    let mut batch = context.batch();
    assert_eq!(context.decode(&mut batch, Vec::new(), None), Err(Fault::Failed(-1)));
}

#[test]
fn scores_exist_only_where_they_were_asked_for() {
    let (_dir, mut context, _) = context(1);
    assert!(context.scores(0).is_none(), "before any batch");
    let mut batch = prompt(&context, 8);
    context.decode(&mut batch, Vec::new(), None).unwrap();
    assert!(context.scores(3).is_none(), "not asked for");
    assert!(context.scores(8).is_none(), "beyond the batch");
    assert!(context.scores(usize::MAX).is_none(), "beyond all numbers");
    assert_eq!(context.scores(7).unwrap().len(), 2048);
}

#[test]
fn a_sequence_that_does_not_exist_is_not_forgotten() {
    let (_dir, mut context, _) = context(2);
    assert!(context.forget_after(0, 0));
    assert!(context.forget_after(1, 0));
    for sequence in [-1, 2, 300] {
        assert!(!context.forget_after(sequence, 0), "{sequence}");
    }
    assert!(!context.forget_after(0, usize::MAX));
}

#[test]
fn positions_that_go_backwards_are_a_fault() {
    let (_dir, mut context, _) = context(1);
    let mut batch = prompt(&context, 8);
    context.decode(&mut batch, Vec::new(), None).unwrap();
    assert!(matches!(context.decode(&mut batch, Vec::new(), None), Err(Fault::Failed(_))));
}

#[test]
fn an_aborted_batch_leaves_the_context_as_good_as_new() {
    let (_dir, mut context, stop) = context(1);
    let mut batch = prompt(&context, 300);
    context.decode(&mut batch, Vec::new(), None).unwrap();
    let expected = context.scores(299).unwrap().to_vec();
    assert!(context.forget_after(0, 0));
    stop.store(true, Ordering::Release);
    assert_eq!(context.decode(&mut batch, Vec::new(), None), Err(Fault::Aborted));
    assert!(context.scores(299).is_none(), "no scores of an aborted batch");
    stop.store(false, Ordering::Release);
    assert!(context.forget_after(0, 0));
    context.decode(&mut batch, vec![CancelToken::default()], None).unwrap();
    assert_eq!(context.scores(299).unwrap(), expected);
}

#[test]
fn a_warm_up_leaves_nothing_behind() {
    let (_dir, mut context, _) = context(2);
    let mut batch = prompt(&context, 8);
    context.decode(&mut batch, Vec::new(), None).unwrap();
    let expected = context.scores(7).unwrap().to_vec();
    context.forget_all();
    context.warm_up(&CancelToken::default()).unwrap();
    assert!(context.scores(0).is_none(), "nobody has asked for them");
    // Positions that are taken would be a fault.
    context.decode(&mut batch, Vec::new(), None).unwrap();
    assert_eq!(context.scores(7).unwrap(), expected);
}

#[test]
fn a_context_that_cannot_compute_is_found_by_the_warm_up() {
    let (_dir, mut context, stop) = context(1);
    stop.store(true, Ordering::Release);
    assert_eq!(context.warm_up(&CancelToken::default()).unwrap_err().code, Code::Unavailable);
}

/// A plugin whose requests leave their tokens behind, which are cancelled then.
struct Gone;

/// Nothing.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Nothing {}

static TOKEN: OnceLock<CancelToken> = OnceLock::new();

impl Plugin for Gone {
    const NAME: &'static str = "gone";
    const ABOUT: &'static str = "Leaves a token behind";

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self)
    }

    fn register(on: &mut Register<Self>) {
        on.request("gone:token", Self::token);
    }
}

impl Gone {
    async fn token(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<Nothing, Refusal> {
        TOKEN.get_or_init(|| ctx.cancel_token());
        Ok(Nothing {})
    }
}

#[test]
fn a_warm_up_ends_once_nobody_waits_for_the_load() {
    let host = FakeHost::<Gone>::start(json!({})).unwrap();
    host.request("gone:token", json!({})).unwrap();
    drop(host);
    let (_dir, mut context, _) = context(1);
    assert_eq!(context.warm_up(TOKEN.get().unwrap()).unwrap_err().code, Code::Cancelled);
    context.warm_up(&CancelToken::default()).unwrap();
}

#[test]
fn contexts_are_made_at_the_same_time_without_harm() {
    let (_dir, context, _) = context(1);
    let model = context.model().clone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let setup = Setup { context: 64, slots: 2, threads: 1, ..Setup::default() };
                let mut context = Context::new(model.clone(), setup, Arc::default()).unwrap();
                let mut batch = prompt(&context, 16);
                context.decode(&mut batch, Vec::new(), None).unwrap();
                assert!(context.scores(15).is_some());
            });
        }
    });
}
