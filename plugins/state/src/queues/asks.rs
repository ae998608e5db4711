//! The events of queues: what is asked is checked here, what is decided in
//! memory is written, and only then answered.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_util::{StreamExt, future::select, stream};
use ksi_sdk::{CancelToken, Ctx, prelude::Refusal, protocol::Payload};

use super::{Open, Waiting};
use crate::{
    StatePlugin,
    change::{READS, expiry},
    line::Item,
    payload::queue::{
        Ack, ItemState, Nack, Pop, PopAnswer, Popped, Purge, PurgeAnswer, Push, PushAnswer, Queue,
        QueueAnswer, QueueItem, Settled,
    },
    place::{Place, invalid},
    record::data_key,
    value,
    values::{in_range, moment},
    writing::Writing,
};

/// Most items of one answer, and of one `ack`.
const COUNT_MAX: i64 = 100;
const IDS_MAX: usize = 1000;
/// Bytes of data after which an answer takes no more items.
const ANSWER_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// Longest lease in seconds, longest wait and delay in milliseconds: a day.
const LEASE_SECONDS_MAX: i64 = 86_400;
const WAIT_MS_MAX: i64 = 86_400_000;
/// Longest time for which nobody else may have an item, by a lease or a delay.
pub(super) const HIDDEN_MS_MAX: u64 = 86_400_000;
/// Items that a purge removes with one write.
const PURGE_ITEMS: usize = 256;

/// What a `pop` wants, checked.
#[derive(Debug, Clone, Copy)]
struct Want {
    count: usize,
    lease_ms: Option<u64>,
    wait: Duration,
    deliveries_max: u64,
}

impl Want {
    fn new(ask: &Pop) -> Result<Self, Refusal> {
        let unsigned = i64::unsigned_abs;
        let lease = in_range("lease_seconds", ask.lease_seconds, 1, LEASE_SECONDS_MAX)?;
        let count = in_range("count", ask.count, 1, COUNT_MAX)?.unwrap_or(1);
        let wait = in_range("wait_ms", ask.wait_ms, 0, WAIT_MS_MAX)?.unwrap_or(0);
        let deliveries = in_range("max_deliveries", ask.max_deliveries, 1, 1_000_000)?;
        Ok(Self {
            count: usize::try_from(count).unwrap_or(1),
            lease_ms: lease.map(|seconds| unsigned(seconds) * 1000),
            wait: Duration::from_millis(unsigned(wait)),
            deliveries_max: deliveries.map_or(u64::MAX, unsigned),
        })
    }
}

impl StatePlugin {
    pub(crate) async fn push(self: Rc<Self>, ctx: Ctx, ask: Push) -> Result<PushAnswer, Refusal> {
        let place = Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?;
        value::check("data", &ask.data)?;
        let now_ms = self.now_ms();
        let item = Item {
            size: ask.data.0.len() as u64,
            pushed_at_ms: now_ms,
            expires_at_ms: expiry(ask.ttl_seconds, now_ms)?,
            deliveries: 0,
            lease: 0,
            hidden_until_ms: 0,
            dead: false,
        };
        let expires_at_ms = moment(item.expires_at_ms);
        let open = self.open_queue(place);
        let writing = self.begin_writing(&ctx)?;
        let (id, length) = self.to_the_end(writing, self.clone().add(open, item, ask.data)).await??;
        Ok(PushAnswer { id, length, expires_at_ms })
    }

    pub(crate) async fn pop(self: Rc<Self>, ctx: Ctx, ask: Pop) -> Result<PopAnswer, Refusal> {
        let want = Want::new(&ask)?;
        let open = self.open_queue(Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?);
        let wait = ctx.time_for(want.wait);
        let mut over = pin!(ctx.sleep(wait));
        let mut waiting = None;
        loop {
            let claim = self.clone().claim(open.clone(), want, ctx.cancel_token());
            let answer = self.to_the_end(self.begin_writing(&ctx)?, claim).await??;
            if !answer.items.is_empty() || wait.is_zero() || self.stopping.get() {
                return Ok(answer);
            }
            if waiting.is_none() {
                waiting = Some(Waiting::begin(&self.queues.waiting, self.config.waiters_max)?);
            }
            let news = open.news.until(|| self.stopping.get() || open.line.borrow().has_ready());
            let news = pin!(news);
            if let futures_util::future::Either::Right(_) = select(news, &mut over).await {
                return Ok(PopAnswer::default());
            }
        }
    }

    /// Takes what is at the front.
    async fn claim(self: Rc<Self>, open: Open, want: Want, asker: CancelToken) -> Result<PopAnswer, Refusal> {
        let now_ms = self.now_ms();
        let taken = open.line.borrow_mut().take(now_ms, want.count, ANSWER_BYTES_MAX, want.deliveries_max);
        self.touched(&open);
        let held = || taken.items.iter().chain(&taken.dead).map(|(id, _)| *id);
        let ids: Vec<u64> = taken.items.iter().map(|(id, _)| *id).collect();
        let read = self.read_data(&open, &ids).await;
        let data = match read {
            Ok(data) if !asker.is_cancelled() => data,
            other => {
                open.restore(held(), self.now_ms());
                self.touched(&open);
                return other.map(|_| PopAnswer::default());
            }
        };
        if held().next().is_none() {
            return Ok(PopAnswer::default());
        }
        let lease =
            want.lease_ms.filter(|_| !ids.is_empty()).map(|ms| (self.queues.numbers.next(), now_ms + ms));
        let mut answer = PopAnswer {
            items: Vec::with_capacity(ids.len()),
            lease: lease.map(|(lease, _)| lease),
            lease_until_ms: lease.map(|(_, until)| until),
        };
        let mut written = Vec::with_capacity(ids.len() + taken.dead.len());
        for ((id, item), data) in taken.items.into_iter().zip(data) {
            let deliveries = item.deliveries + 1;
            let pushed_at_ms = item.pushed_at_ms;
            written.push((
                id,
                lease.filter(|_| data.is_some()).map(|(lease, hidden_until_ms)| Item {
                    lease,
                    hidden_until_ms,
                    deliveries,
                    ..item
                }),
            ));
            answer.items.extend(data.map(|data| Popped { id, data, deliveries, pushed_at_ms }));
        }
        let dead = |item| Item { dead: true, lease: 0, hidden_until_ms: 0, ..item };
        written.extend(taken.dead.into_iter().map(|(id, item)| (id, Some(dead(item)))));
        self.write_items(&open, &written).await?;
        Ok(answer)
    }

    async fn read_data(&self, open: &Open, ids: &[u64]) -> Result<Vec<Option<Payload>>, Refusal> {
        let read = |id: &u64| self.state.get::<Payload>(data_key(&open.place, *id));
        let mut reads = pin!(stream::iter(ids).map(read).buffered(READS));
        let mut data = Vec::with_capacity(ids.len());
        while let Some(read) = reads.next().await {
            data.push(read?.map(|found| found.value));
        }
        Ok(data)
    }

    pub(crate) async fn ack(self: Rc<Self>, ctx: Ctx, ask: Ack) -> Result<Settled, Refusal> {
        let open = self.open_queue(Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?);
        self.settle(self.begin_writing(&ctx)?, open, ask.ids, ask.lease, |_| None).await
    }

    pub(crate) async fn nack(self: Rc<Self>, ctx: Ctx, ask: Nack) -> Result<Settled, Refusal> {
        let open = self.open_queue(Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?);
        let delay_ms = in_range("delay_ms", ask.delay_ms, 0, WAIT_MS_MAX)?.unwrap_or(0).unsigned_abs();
        let hidden_until_ms = if delay_ms == 0 { 0 } else { self.now_ms() + delay_ms };
        let back = |item: Item| {
            let deliveries = if item.dead { 0 } else { item.deliveries };
            Some(Item { lease: 0, hidden_until_ms, dead: false, deliveries, ..item })
        };
        self.settle(self.begin_writing(&ctx)?, open, ask.ids, ask.lease, back).await
    }

    /// Lets something become of items.
    async fn settle(
        self: &Rc<Self>,
        writing: Writing,
        open: Open,
        ids: Vec<u64>,
        lease: Option<u64>,
        become_of: impl Fn(Item) -> Option<Item>,
    ) -> Result<Settled, Refusal> {
        if !(1..=IDS_MAX).contains(&ids.len()) {
            let why = format!("has {} ids, and must have from 1 to {IDS_MAX}", ids.len());
            return Err(invalid("ids", &why));
        }
        let (mut answer, mut written) = (Settled::default(), Vec::with_capacity(ids.len()));
        let now_ms = self.now_ms();
        for id in ids {
            match open.line.borrow_mut().hold(id, lease, now_ms) {
                Some(item) => {
                    written.push((id, become_of(item)));
                    answer.ids.push(id);
                }
                None => answer.missing.push(id),
            }
        }
        // An id that comes twice is not missing because it was held the first time.
        answer.missing.retain(|id| !answer.ids.contains(id));
        if !written.is_empty() {
            let this = self.clone();
            self.to_the_end(writing, async move { this.write_items(&open, &written).await }).await??;
        }
        Ok(answer)
    }

    pub(crate) async fn queue(self: Rc<Self>, ctx: Ctx, ask: Queue) -> Result<QueueAnswer, Refusal> {
        let open = self.open_queue(Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?);
        let limit = in_range("limit", ask.limit, 0, 1000)?.unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(0);
        let now_ms = self.now_ms();
        let (mut answer, shown) = {
            let mut line = open.line.borrow_mut();
            line.turn(now_ms);
            let counts = line.counts();
            let mut answer = QueueAnswer {
                length: counts.length,
                ready: counts.ready,
                leased: counts.length - counts.ready,
                dead: counts.dead,
                bytes: counts.bytes,
                oldest_at_ms: line.after(0, now_ms).next().map(|(_, item)| item.pushed_at_ms),
                ..QueueAnswer::default()
            };
            let mut shown = Vec::new();
            let mut bytes = 0;
            for (id, item) in line.after(ask.after.unwrap_or(0), now_ms) {
                bytes += item.size;
                if shown.len() == limit || (bytes > ANSWER_BYTES_MAX && !shown.is_empty()) {
                    answer.next = shown.last().map(|(id, _)| *id);
                    break;
                }
                shown.push((id, item.clone()));
            }
            (answer, shown)
        };
        self.touched(&open);
        let ids: Vec<u64> = shown.iter().map(|(id, _)| *id).collect();
        let data = self.read_data(&open, &ids).await?;
        for ((id, item), data) in shown.into_iter().zip(data) {
            // One without data left the queue while it was read.
            let Some(data) = data else { continue };
            answer.items.push(QueueItem {
                id,
                state: item.state(now_ms),
                data,
                deliveries: item.deliveries,
                pushed_at_ms: item.pushed_at_ms,
                expires_at_ms: moment(item.expires_at_ms),
                hidden_until_ms: is_away(&item, now_ms).then_some(item.hidden_until_ms),
            });
        }
        Ok(answer)
    }

    pub(crate) async fn purge(self: Rc<Self>, ctx: Ctx, ask: Purge) -> Result<PurgeAnswer, Refusal> {
        let open = self.open_queue(Place::new(ctx.tenant(), &ask.namespace, "queue", &ask.queue)?);
        let this = self.clone();
        let work = async move {
            let mut removed = 0;
            let Some(last) = open.line.borrow().last() else { return Ok::<u64, Refusal>(removed) };
            loop {
                let held = open.line.borrow_mut().take_all(last, PURGE_ITEMS);
                if held.is_empty() {
                    return Ok(removed);
                }
                let written: Vec<_> = held.into_iter().map(|(id, _)| (id, None)).collect();
                this.write_items(&open, &written).await?;
                removed += written.len() as u64;
            }
        };
        Ok(PurgeAnswer { removed: self.to_the_end(self.begin_writing(&ctx)?, work).await?? })
    }
}

fn is_away(item: &Item, now_ms: u64) -> bool {
    matches!(item.state(now_ms), ItemState::Leased | ItemState::Delayed)
}
