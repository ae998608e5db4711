//! Reads back what an earlier opening has written.

use ksi_sdk::{Ctx, prelude::Refusal};

use super::{PAGE, unreadable};
use crate::{
    engine::Engine,
    ledger::{Entry, Id, Ledger},
    record::keys,
};

/// Reads all entries, in pages; how many cannot be read. Those stay as they are.
pub(super) async fn load(ctx: &Ctx, engine: &Engine, ledger: &mut Ledger) -> Result<usize, Refusal> {
    // In the order of the entries.
    let mut marks = marks(engine).await?.into_iter().peekable();
    let (mut after, mut count) = (None, 0);
    loop {
        let page = engine.scan(&[keys::WORK], after.as_deref(), PAGE).await?;
        for (key, value) in &page {
            match (Id::of_work_key(key), Entry::decode(value)) {
                (Some(id), Ok(entry)) => {
                    while marks.next_if(|mark| *mark < id).is_some() {}
                    match marks.next_if_eq(&id) {
                        Some(_) => ledger.load_small(id, &entry),
                        None => ledger.load(id, entry),
                    }
                }
                (Some(id), Err(refusal)) => {
                    ctx.error(&format!("the work {id} is left alone: {}", unreadable(&refusal).message));
                    count += 1;
                }
                (None, _) => {
                    ctx.error(&format!("a key of {} bytes among those of work is left alone", key.len()));
                    count += 1;
                }
            }
        }
        match page.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => return Ok(count),
        }
    }
}

/// Names of the entries of which only the end is kept, in order.
async fn marks(engine: &Engine) -> Result<Vec<Id>, Refusal> {
    let (mut after, mut marks) = (None, Vec::new());
    loop {
        let page = engine.scan(&[keys::MARK], after.as_deref(), PAGE).await?;
        marks.extend(page.iter().filter_map(|(key, _)| Id::of_mark_key(key)));
        match page.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => return Ok(marks),
        }
    }
}
