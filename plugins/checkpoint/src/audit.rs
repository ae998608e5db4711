//! `audit:*`: the audit trail as the daemon writes it and others ask for it.

use std::{rc::Rc, time::Duration};

use ksi_sdk::{
    Ctx,
    prelude::{Code, Refusal},
    protocol::audit::{Append, Appended, Export, Exported, Page, Query, Verified},
};

use crate::{Checkpoint, status::TrailRequest, trail::Trail};

impl Checkpoint {
    /// The plugin does without it where this fails: the next call opens the trail
    /// again, and the daemon tells how it fares.
    pub(super) async fn open_trail(self: Rc<Self>, ctx: Ctx) {
        let opened = self.with_trail(&ctx, |trail, now_ms| Ok((trail.open(now_ms)?, trail.aside()?))).await;
        let (notes, aside) = match opened {
            Ok(opened) => opened,
            Err(refusal) => return ctx.error(&refusal.message),
        };
        notes.iter().for_each(|note| ctx.error(note));
        self.trail_aside.replace(aside);
        if let Ok(open) = self.opened() {
            open.tell_health(&ctx, &self.trail_aside.borrow());
        }
    }

    /// Does something with the trail, on a thread that may block.
    pub(super) async fn with_trail<T: Send + 'static>(
        &self,
        ctx: &Ctx,
        act: impl FnOnce(&Trail, u64) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (trail, now_ms) = (self.trail.clone(), ctx.now_ms());
        ctx.spawn_blocking(move || act(&trail, now_ms)).await?
    }

    pub(super) async fn audit_append(self: Rc<Self>, ctx: Ctx, ask: Append) -> Result<Appended, Refusal> {
        if ctx.origin() != "daemon" {
            return Err(Refusal::new(Code::Denied, "only the daemon itself writes the audit trail")
                .hint("`audit:query` reads it"));
        }
        let appended = self.with_trail(&ctx, move |trail, now_ms| trail.append(ask.records, now_ms)).await?;
        if !self.signing.replace(true) {
            ctx.spawn(self.clone().sign_in_time(ctx.clone()));
        }
        Ok(appended)
    }

    /// Signs what has no head when it is time, and ends when nothing waits.
    async fn sign_in_time(self: Rc<Self>, ctx: Ctx) {
        loop {
            match self.with_trail(&ctx, Trail::tick).await {
                Ok(Some(wait_ms)) => ctx.sleep(Duration::from_millis(wait_ms)).await,
                Ok(None) => break,
                Err(refusal) => {
                    ctx.error(&refusal.message);
                    break;
                }
            }
        }
        self.signing.set(false);
    }

    pub(super) async fn audit_query(self: Rc<Self>, ctx: Ctx, ask: Query) -> Result<Page, Refusal> {
        self.with_trail(&ctx, move |trail, now_ms| trail.query(&ask, now_ms)).await
    }

    pub(super) async fn audit_verify(
        self: Rc<Self>,
        ctx: Ctx,
        _ask: TrailRequest,
    ) -> Result<Verified, Refusal> {
        self.with_trail(&ctx, Trail::verify).await
    }

    pub(super) async fn audit_export(self: Rc<Self>, ctx: Ctx, ask: Export) -> Result<Exported, Refusal> {
        let path = self.outgoing.file(ask.name, || format!("audit-{}.jsonl", ctx.now_ms()))?;
        self.with_trail(&ctx, move |trail, now_ms| trail.export(&path, now_ms)).await
    }
}
