//! The events of values: what is asked is checked here, and what was found
//! answered.

use std::{pin::pin, rc::Rc};

use futures_util::{StreamExt, stream};
use ksi_sdk::{
    Ctx,
    prelude::{Code, Refusal, json},
    protocol::{Bytes, Payload},
};

use crate::{
    StatePlugin,
    change::{READS, Step, check_distinct},
    glob::Glob,
    index::expired,
    payload::{
        Batch, BatchAnswer, Delete, DeleteAnswer, Get, GetAnswer, List, ListAnswer, ListItem, Operation, Set,
        SetAnswer,
    },
    place::{Place, invalid},
    record::{Stored, value_key},
    value::Metadata,
};

/// Most operations of a batch.
const OPERATIONS_MAX: usize = 256;
/// Most bytes that a batch writes, keys not counted.
const BATCH_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// Bytes of values after which a page ends.
const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Keys of a page where none is asked for, and most of them.
const PAGE_KEYS: i64 = 100;
const PAGE_KEYS_MAX: i64 = 1000;
/// Keys that are compared with a pattern for one page, so that no request
/// keeps the others waiting.
const KEYS_SEEN_MAX: usize = 10_000;

impl StatePlugin {
    pub(crate) async fn set(self: Rc<Self>, ctx: Ctx, ask: Set) -> Result<SetAnswer, Refusal> {
        let step = Step::set(ctx.tenant(), ask, self.now_ms())?;
        let expires_at_ms = step.expires_at_ms();
        let done = self.change(&ctx, vec![step]).await?;
        Ok(SetAnswer { version: done.version, expires_at_ms })
    }

    pub(crate) async fn get(self: Rc<Self>, ctx: Ctx, ask: Get) -> Result<GetAnswer, Refusal> {
        let place = Place::new(ctx.tenant(), &ask.namespace, "key", &ask.key)?;
        let known = self.index.borrow().live(&place, self.now_ms()).is_some();
        let found = match known {
            true => self.state.get::<Stored>(value_key(&place)).await?,
            false => None,
        };
        let found = found.filter(|found| !expired(found.value.expires_at_ms, self.now_ms()));
        Ok(match found {
            Some(found) => GetAnswer {
                found: true,
                version: found.version,
                expires_at_ms: moment(found.value.expires_at_ms),
                value: found.value.value,
                metadata: found.value.metadata,
            },
            None => GetAnswer {
                found: false,
                value: Payload(Bytes::from_static(&[NIL])),
                version: 0,
                metadata: Metadata::new(),
                expires_at_ms: None,
            },
        })
    }

    pub(crate) async fn delete(self: Rc<Self>, ctx: Ctx, ask: Delete) -> Result<DeleteAnswer, Refusal> {
        let done = self.change(&ctx, vec![Step::delete(ctx.tenant(), &ask)?]).await?;
        Ok(DeleteAnswer { deleted: done.deleted > 0 })
    }

    pub(crate) async fn batch(self: Rc<Self>, ctx: Ctx, ask: Batch) -> Result<BatchAnswer, Refusal> {
        if !(1..=OPERATIONS_MAX).contains(&ask.operations.len()) {
            let why =
                format!("has {} operations, and must have from 1 to {OPERATIONS_MAX}", ask.operations.len());
            return Err(invalid("operations", &why));
        }
        let now_ms = self.now_ms();
        let mut steps = Vec::with_capacity(ask.operations.len());
        for (index, operation) in ask.operations.into_iter().enumerate() {
            let step = match operation {
                Operation::Set(set) => Step::set(ctx.tenant(), set, now_ms),
                Operation::Delete(delete) => Step::delete(ctx.tenant(), &delete),
                Operation::Check(check) => Step::check(ctx.tenant(), &check),
            };
            steps.push(step.map_err(|refusal| refusal.at(&format!("operations[{index}]")))?);
        }
        check_distinct(&steps)?;
        let bytes: u64 = steps.iter().map(Step::size).sum();
        if bytes > BATCH_BYTES_MAX {
            let message =
                format!("the operations have {bytes} bytes, and at most {BATCH_BYTES_MAX} are allowed");
            return Err(Refusal::new(Code::TooLarge, message)
                .details(json!({ "path": "operations", "bytes": bytes, "bytes_max": BATCH_BYTES_MAX })));
        }
        let done = self.change(&ctx, steps).await?;
        Ok(BatchAnswer { version: done.version, deleted: done.deleted })
    }

    pub(crate) async fn list(self: Rc<Self>, ctx: Ctx, ask: List) -> Result<ListAnswer, Refusal> {
        let limit = in_range("limit", ask.limit, 1, PAGE_KEYS_MAX)?.unwrap_or(PAGE_KEYS);
        let (places, mut answer) =
            self.page(ctx.tenant(), &ask, usize::try_from(limit).unwrap_or(usize::MAX))?;
        if !ask.values {
            return Ok(answer);
        }
        let read = |place| self.state.get::<Stored>(value_key(place));
        let mut reads = pin!(stream::iter(&places).map(read).buffered(READS));
        let mut items = Vec::with_capacity(places.len());
        for mut item in answer.items {
            let Some(found) = reads.next().await.transpose()?.flatten() else { continue };
            if expired(found.value.expires_at_ms, self.now_ms()) {
                continue;
            }
            item.version = found.version;
            item.expires_at_ms = moment(found.value.expires_at_ms);
            item.value = Some(found.value.value);
            item.metadata = Some(found.value.metadata);
            items.push(item);
        }
        answer.items = items;
        Ok(answer)
    }

    /// A page of keys, from what is known of them.
    fn page(
        &self,
        tenant: Option<&str>,
        ask: &List,
        limit: usize,
    ) -> Result<(Vec<Place>, ListAnswer), Refusal> {
        let glob = ask.pattern.as_deref().map(Glob::new);
        let literal = glob.as_ref().map_or_else(String::new, Glob::prefix);
        let longer = if literal.starts_with(&ask.prefix) { &literal } else { &ask.prefix };
        let prefix = Place::prefix(tenant, &ask.namespace, longer)?;
        let after =
            ask.after.as_deref().map(|after| Place::prefix(tenant, &ask.namespace, after)).transpose()?;
        let matches = |name: &str| glob.as_ref().is_none_or(|glob| glob.matches(name));
        let (now_ms, index) = (self.now_ms(), self.index.borrow());
        let (mut places, mut answer, mut bytes) = (Vec::new(), ListAnswer::default(), 0);
        let mut last = None;
        for (seen, (place, entry)) in index.range(&prefix, after.as_ref()).enumerate() {
            bytes += if ask.values { entry.size } else { 0 };
            let full = places.len() == limit || (bytes > PAGE_BYTES_MAX && !places.is_empty());
            if full || seen == KEYS_SEEN_MAX {
                answer.next = last;
                break;
            }
            last = Some(place.name().to_owned());
            if !entry.expired(now_ms) && matches(place.name()) {
                places.push(place.clone());
                answer.items.push(ListItem {
                    key: place.name().to_owned(),
                    version: entry.version,
                    size: entry.size,
                    expires_at_ms: moment(entry.expires_at_ms),
                    value: None,
                    metadata: None,
                });
            }
        }
        Ok((places, answer))
    }
}

/// `null` as MessagePack.
const NIL: u8 = 0xc0;

/// A moment as it is told, where it is one.
pub(crate) fn moment(at_ms: u64) -> Option<u64> {
    (at_ms != 0).then_some(at_ms)
}

/// A number that has to be in a range.
///
/// # Errors
///
/// `invalid_payload` with the range.
pub(crate) fn in_range(path: &str, value: Option<i64>, min: i64, max: i64) -> Result<Option<i64>, Refusal> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(invalid(path, &format!("is {value}, and must be from {min} to {max}")))
        }
        value => Ok(value),
    }
}
