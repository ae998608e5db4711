//! `work:*`: what is asked about work, and what operators do with it.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Ctx, Plugin, Register,
    prelude::{Code, Refusal},
    protocol::{
        Payload,
        work::{ListWork, WaitWork, WorkInfo, WorkName, WorkPage, WorkState},
    },
};

use super::{
    PAGE, Work,
    payload::{Cancel, Dead, Died, Done, Drop, Failed, Get, List, Retry, Wait},
    unreadable,
};
use crate::{
    ledger::{Entry, Id, not_found},
    record::keys,
};

/// Entries on a page of a list, where it is not said.
const PAGE_DEFAULT: u32 = 100;

/// Most entries on a page. With keys, origins and refusals an entry takes some
/// hundred bytes, so a page stays far below a frame.
const PAGE_MAX: u32 = 1_000;

type Of<P> = fn(&P) -> Result<Rc<Work>, Refusal>;

pub(super) fn register<P: Plugin>(on: &mut Register<P>, of: Of<P>) {
    on.request("work:list", move |plugin: Rc<P>, ctx, List(ask)| {
        let work = of(&plugin);
        async move { work?.list(&ctx, ask).await }
    });
    on.request("work:dead", move |plugin: Rc<P>, ctx, Dead(ask)| {
        let work = of(&plugin);
        async move { work?.dead(&ctx, ask).await }
    });
    on.request("work:get", move |plugin: Rc<P>, ctx, Get(ask)| {
        let work = of(&plugin);
        async move { work?.get(&ctx, &ask).await }
    });
    on.request("work:wait", move |plugin: Rc<P>, ctx, Wait(ask)| {
        let work = of(&plugin);
        async move { work?.wait(&ctx, ask).await }
    });
    on.request("work:cancel", move |plugin: Rc<P>, ctx, Cancel(ask)| {
        let work = of(&plugin);
        async move { work?.cancel(&ctx, &ask).await }
    });
    on.request("work:retry", move |plugin: Rc<P>, ctx, Retry(ask)| {
        let work = of(&plugin);
        async move { work?.retry(&ctx, &ask).await }
    });
    on.request("work:drop", move |plugin: Rc<P>, ctx, Drop(ask)| {
        let work = of(&plugin);
        async move { work?.forget(&ctx, &ask).await }
    });
    on.emits::<Done>("work:done");
    on.emits::<Failed>("work:failed");
    on.emits::<Died>("work:died");
}

/// Who waits is to ask whoever keeps the work next.
fn again(why: &str) -> Refusal {
    Refusal::new(Code::Unavailable, why).hint("the work is kept; ask again").retry_after_ms(200)
}

impl Work {
    async fn list(&self, ctx: &Ctx, ask: ListWork) -> Result<WorkPage, Refusal> {
        let ListWork { states, event, after, limit } = ask;
        let limit = limit.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Refusal::invalid_payload(format!("{limit} is not from 1 to {PAGE_MAX}")).at("limit"));
        }
        let wanted = |info: &WorkInfo| {
            (states.is_empty() || states.contains(&info.state))
                && event.as_ref().is_none_or(|pattern| pattern.matches(info.event.as_str()))
        };
        let mut after = after.map(|after| Id::parse(&after)).transpose()?.map(Id::work_key);
        let mut work: Vec<WorkInfo> = Vec::new();
        loop {
            let page = self.engine.scan(&[keys::WORK], after.as_deref(), PAGE).await?;
            for (key, value) in &page {
                let (Some(id), Ok(entry)) = (Id::of_work_key(key), Entry::decode(value)) else { continue };
                let info = entry.info(id);
                if !ctx.sees(entry.tenant.as_deref()) || !wanted(&info) {
                    continue;
                }
                // One more than fits says that there is a next page.
                if work.len() >= limit as usize {
                    let next = work.last().map(|info| info.request_id.clone());
                    return Ok(WorkPage { work, next });
                }
                work.push(info);
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(WorkPage { work, next: None }),
            }
        }
    }

    async fn dead(&self, ctx: &Ctx, mut ask: ListWork) -> Result<WorkPage, Refusal> {
        let both = [WorkState::Dead, WorkState::Unknown];
        match ask.states.iter().find(|state| !both.contains(state)) {
            Some(state) => {
                let why = format!("`{state}` is neither `dead` nor `unknown`");
                return Err(Refusal::invalid_payload(why).at("states").hint("`work:list` lists the others"));
            }
            None if ask.states.is_empty() => ask.states = both.to_vec(),
            None => {}
        }
        self.list(ctx, ask).await
    }

    async fn get(&self, ctx: &Ctx, ask: &WorkName) -> Result<WorkInfo, Refusal> {
        let id = self.visible(ctx, &ask.request_id).await?;
        self.info(id).await
    }

    /// The name of work that whoever asks may see; what belongs to another tenant
    /// is not there for him.
    async fn visible(&self, ctx: &Ctx, request_id: &str) -> Result<Id, Refusal> {
        let id = Id::parse(request_id)?;
        let stored = self.engine.latest(&id.work_key()).await?.ok_or_else(|| not_found(request_id))?;
        let entry = Entry::decode(&stored).map_err(|refusal| unreadable(&refusal))?;
        if ctx.sees(entry.tenant.as_deref()) { Ok(id) } else { Err(not_found(request_id)) }
    }

    /// What is durably known of work, with its result.
    async fn info(&self, id: Id) -> Result<WorkInfo, Refusal> {
        let stored = self.engine.get(&id.work_key()).await?.ok_or_else(|| not_found(&id.to_string()))?;
        let entry = Entry::decode(&stored).map_err(|refusal| unreadable(&refusal))?;
        let mut info = entry.info(id);
        if info.state == WorkState::Done {
            info.result = self.engine.get(&id.result_key()).await?.map(Payload);
        }
        Ok(info)
    }

    async fn wait(&self, ctx: &Ctx, ask: WaitWork) -> Result<WorkInfo, Refusal> {
        let id = self.visible(ctx, &ask.request_id).await?;
        let time = ctx.time_for(ask.timeout_ms.map_or(Duration::MAX, Duration::from_millis));
        if self.ledger.borrow().is_live(id) && !self.stopped.get() && !time.is_zero() {
            let (ended, late, rests) =
                (pin!(self.end_of(id)), pin!(self.ctx.sleep(time)), pin!(self.rests(id)));
            let wait = select(select(ended, late), rests);
            if !matches!(ctx.unless_draining(wait).await, Some(Either::Left(_))) {
                // The end of the plugin waits for it, or that of the daemon, and it may have none for long.
                return Err(again("the plugin that keeps work is being stopped"));
            }
        }
        if self.stopped.get() {
            return Err(again("the journal of the work is being opened again"));
        }
        self.info(id).await
    }

    /// Resolves when work that lives has ended, durably.
    async fn end_of(&self, id: Id) {
        let (ended, end) = oneshot::channel();
        {
            let mut waiters = self.waiters.borrow_mut();
            let waiting = waiters.entry(id).or_default();
            // Those who went away wait no more.
            waiting.retain(|waiter| !waiter.is_canceled());
            waiting.push(ended);
        }
        // It is never sent, only dropped.
        let _ = end.await;
    }

    async fn cancel(self: Rc<Self>, ctx: &Ctx, ask: &WorkName) -> Result<WorkInfo, Refusal> {
        let id = self.visible(ctx, &ask.request_id).await?;
        self.check_open()?;
        let step = self.ledger.borrow_mut().cancel(self.now(), id);
        if step.batch.is_empty() {
            let info = self.info(id).await?;
            return match info.state {
                WorkState::Cancelled => Ok(info),
                state => Err(Refusal::new(Code::Conflict, format!("the work {id} has ended as {state}"))),
            };
        }
        self.settle(step).await?;
        self.info(id).await
    }

    async fn retry(self: Rc<Self>, ctx: &Ctx, ask: &WorkName) -> Result<WorkInfo, Refusal> {
        let (id, entry) = self.ended(ctx, &ask.request_id).await?;
        let step = self.ledger.borrow_mut().retry(self.now(), id, entry)?;
        self.settle(step).await?;
        self.info(id).await
    }

    async fn forget(self: Rc<Self>, ctx: &Ctx, ask: &WorkName) -> Result<WorkInfo, Refusal> {
        let (id, entry) = self.ended(ctx, &ask.request_id).await?;
        let step = self.ledger.borrow_mut().forget(self.now(), id, &entry)?;
        self.settle(step).await?;
        Ok(entry.info(id))
    }

    /// The newest that is stored of work, with no wait between the reading and
    /// the return.
    async fn ended(&self, ctx: &Ctx, request_id: &str) -> Result<(Id, Entry), Refusal> {
        let id = Id::parse(request_id)?;
        let stored = self.engine.latest(&id.work_key()).await?.ok_or_else(|| not_found(request_id))?;
        self.check_open()?;
        let entry = Entry::decode(&stored).map_err(|refusal| unreadable(&refusal))?;
        if ctx.sees(entry.tenant.as_deref()) { Ok((id, entry)) } else { Err(not_found(request_id)) }
    }
}
