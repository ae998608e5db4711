//! What a plugin keeps: values by key that survive its restarts, the daemon's
//! and the machine's.
//!
//! Each plugin has a space of its own; nobody else sees it. A value is any type
//! that serde can write, a key any bytes of its own choice but for the first,
//! which may not be 0. What a call has written is on the disk when the call
//! returns.
//!
//! ```
//! use ksi_sdk::prelude::*;
//!
//! async fn count(ctx: &Ctx) -> Result<u64, Refusal> {
//!     let state = ctx.state();
//!     loop {
//!         let count = state.get::<u64>("count").await?.unwrap_or_default();
//!         // Refused where another handler was faster; then it is read again.
//!         match state.compare_and_set("count", count.version, &(count.value + 1)).await {
//!             Ok(_) => return Ok(count.value + 1),
//!             Err(refusal) if refusal.code == Code::Conflict => {}
//!             Err(refusal) => return Err(refusal),
//!         }
//!     }
//! }
//! ```
//!
//! # Tenants
//!
//! [`State::of_tenant`] is a part of the space in which everything belongs to one
//! tenant: the same key under two tenants is two keys, and no key or prefix leads
//! out of it, whatever tenant or key is called. [`Ctx::tenant_state`] is that of
//! whoever asks.
//!
//! # Limits
//!
//! A key has at most 1 KiB, a value 1 MiB, a batch 4 MiB and 4096 changes and
//! checks, a page of a scan 4 MiB and 1000 entries:
//! [`ksi_protocol::space`] has the numbers.
//!
//! # Failure
//!
//! While whoever keeps the state is away, calls are refused `unavailable`; only
//! while the plugin opens do they wait, with growing pauses, as long as its
//! start may take. A write whose answer is lost (`plugin_restarted`, `timeout`)
//! may have been made.

pub(crate) mod version;

use std::{rc::Rc, time::Duration};

use ksi_protocol::{
    Bytes, Code, Refusal,
    space::{self, Applied, Apply, Change, Check, Got, RESERVED, Scan, check_key},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{call::CallOptions, context::Ctx, link::encode};

/// Shortest pause while the plugin opens and its state cannot be had. Later ones
/// are a quarter of the time that was waited, so that an opening takes little
/// longer than it must.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Wait after which the log hears about it, once.
const LONG: Duration = Duration::from_secs(1);

/// A value, and the version that was read with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Its version. It only rises; 0 stands for "nothing is there".
    pub version: u64,
}

/// A value and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Where.
    pub key: Bytes,
    /// What.
    pub value: T,
    /// Its version.
    pub version: u64,
}

/// A part of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// In the order of their keys.
    pub entries: Vec<Entry<T>>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// Second byte of what belongs to tenants, after [`RESERVED`].
const OF_TENANTS: u8 = b't';

/// The state of the plugin, or a tenant's part of it. Cheap to clone.
#[derive(Clone)]
pub struct State {
    ctx: Ctx,
    /// What the keys of a tenant begin with; empty: the plugin's own.
    scope: Rc<[u8]>,
}

impl State {
    pub(crate) fn new(ctx: Ctx) -> Self {
        Self { ctx, scope: Rc::new([]) }
    }

    /// The part that belongs to a tenant; without one, what is the plugin's own.
    /// Its keys are as much shorter as the tenant's name is long.
    #[must_use]
    pub fn of_tenant(&self, tenant: Option<&str>) -> Self {
        let scope = tenant.map_or_else(Vec::new, |tenant| {
            // The length goes first, so that no name is the beginning of another's keys.
            let length = (tenant.len() as u64).to_be_bytes();
            [&[RESERVED, OF_TENANTS], &length[..], tenant.as_bytes()].concat()
        });
        Self { ctx: self.ctx.clone(), scope: scope.into() }
    }

    /// A key as the space knows it.
    fn own(&self, key: &[u8]) -> Result<Bytes, Refusal> {
        check_key(key)?;
        if self.scope.is_empty() && key.first() == Some(&RESERVED) {
            let message = "a key of a plugin's state must not begin with a zero byte";
            return Err(Refusal::new(Code::InvalidPayload, message));
        }
        let key = [&self.scope, key].concat();
        check_key(&key)?;
        Ok(key.into())
    }

    /// Reads a value.
    ///
    /// # Errors
    ///
    /// `invalid_payload` where it is not a `T`; else as the module says.
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Versioned<T>>, Refusal> {
        let Got { value, version } = self.read(self.own(key.as_ref())?).await?;
        value.map(|value| Ok(Versioned { value: typed(key.as_ref(), &value)?, version })).transpose()
    }

    /// Writes a value, whatever was there. Returns its version.
    ///
    /// # Errors
    ///
    /// `too_large` beyond a limit; else as the module says.
    pub async fn put<T: Serialize + ?Sized>(&self, key: impl AsRef<[u8]>, value: &T) -> Result<u64, Refusal> {
        self.batch().put(key, value).commit().await
    }

    /// Removes a value; nothing need be there.
    ///
    /// # Errors
    ///
    /// As the module says.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<(), Refusal> {
        self.batch().delete(key).commit().await.map(drop)
    }

    /// Writes a value if the one that is there has the `expected` version, 0 for
    /// none. Returns the new version.
    ///
    /// # Errors
    ///
    /// `conflict` where another version is there, which
    /// [`space::Conflict::of`] finds in the refusal; else as [`State::put`].
    pub async fn compare_and_set<T: Serialize + ?Sized>(
        &self,
        key: impl AsRef<[u8]>,
        expected: u64,
        value: &T,
    ) -> Result<u64, Refusal> {
        self.batch().check_version(&key, expected).put(&key, value).commit().await
    }

    /// Reads what lies under keys that begin with `prefix`, in their order: at
    /// most `limit` entries, fewer where they are large. The next page is after
    /// the last key of this one.
    ///
    /// ```
    /// # use ksi_sdk::prelude::*;
    /// async fn total(state: &State) -> Result<u64, Refusal> {
    ///     let (mut total, mut after) = (0, None);
    ///     loop {
    ///         let page = state.scan::<u64>("score/", after.as_deref(), 100).await?;
    ///         total += page.entries.iter().map(|entry| entry.value).sum::<u64>();
    ///         match page.entries.last() {
    ///             Some(last) if page.more => after = Some(last.key.clone()),
    ///             _ => return Ok(total),
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// `invalid_payload` where one is not a `T`; else as the module says.
    pub async fn scan<T: DeserializeOwned>(
        &self,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page<T>, Refusal> {
        let scoped = |part: &[u8]| Bytes::from([&self.scope, part].concat());
        // Keys that are not the plugin's come first of all, and are passed over.
        let first: &[u8] = if self.scope.is_empty() { &[RESERVED, u8::MAX] } else { &[] };
        let ask = Scan {
            prefix: scoped(prefix.as_ref()),
            after: Some(scoped(after.map_or(first, |after| after.max(first)))),
            limit: u32::try_from(limit).unwrap_or(u32::MAX).clamp(1, space::SCAN_ENTRIES_MAX),
        };
        let page: space::Page = self.ask("space:scan", &ask).await?;
        let entry = |space::Entry { key, value, version }| {
            let key = key.slice(self.scope.len()..);
            typed(&key, &value).map(|value| Entry { key, value, version })
        };
        let entries = page.entries.into_iter().map(entry).collect::<Result<_, Refusal>>()?;
        Ok(Page { entries, more: page.more })
    }

    /// Changes that are to happen together; [`Batch::commit`] makes them.
    pub fn batch(&self) -> Batch {
        Batch { state: self.clone(), apply: Apply::default(), fault: None }
    }

    async fn read(&self, key: Bytes) -> Result<Got, Refusal> {
        self.ask("space:get", &space::Get { key }).await
    }

    /// Asks; while the plugin opens, again and again until somebody is there.
    /// The daemon ends a start that takes too long.
    async fn ask<Q: Serialize, A: DeserializeOwned>(&self, event: &str, ask: &Q) -> Result<A, Refusal> {
        let began_ms = self.ctx.now_ms();
        let mut told = false;
        loop {
            // State is also used by tasks that outlive the request that they
            // were spawned for.
            let options = CallOptions { detached: true, ..CallOptions::default() };
            let answer = self.ctx.request_with(event, ask, options).await;
            match answer {
                Err(refusal) if self.ctx.core().opening.get() && is_early(&refusal) => {
                    let waited = Duration::from_millis(self.ctx.now_ms().saturating_sub(began_ms));
                    if waited >= LONG && !std::mem::replace(&mut told, true) {
                        self.ctx.warn(&format!("waits for its state: {}", refusal.message));
                    }
                    self.ctx.sleep((waited / 4).clamp(PAUSE_MIN, PAUSE_MAX)).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Whether a refusal only says that nobody is there yet, so that nothing was
/// done and asking again helps.
fn is_early(refusal: &Refusal) -> bool {
    match refusal.code {
        Code::Unavailable | Code::Busy => refusal.retryable,
        // Said before the first start of the plugin that keeps the state.
        Code::NoOwner => true,
        _ => false,
    }
}

/// A value as a type. Keys may be shown, values never.
fn typed<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, Refusal> {
    ksi_protocol::decode(value).map_err(|refusal| {
        let message = format!("the value under `{}`: {}", key.escape_ascii(), refusal.message);
        let hint =
            "was it written by another version of the plugin? `STATE_VERSION` and `migrate` are for that";
        Refusal { message, ..refusal }.hint(hint)
    })
}

/// Changes that happen together or not at all.
///
/// ```
/// # use ksi_sdk::prelude::*;
/// async fn rename(state: &State, from: &str, to: &str) -> Result<(), Refusal> {
///     let Some(found) = state.get::<String>(from).await? else { return Ok(()) };
///     let batch = state.batch().check_version(from, found.version).check_version(to, 0);
///     batch.delete(from).put(to, &found.value).commit().await.map(drop)
/// }
/// ```
#[must_use = "nothing happens before `commit`"]
pub struct Batch {
    state: State,
    apply: Apply,
    /// The first thing that cannot be done; said by `commit`.
    fault: Option<Refusal>,
}

impl Batch {
    /// Writes a value.
    pub fn put<T: Serialize + ?Sized>(mut self, key: impl AsRef<[u8]>, value: &T) -> Self {
        let change =
            self.state.own(key.as_ref()).and_then(|key| Ok(Change { key, value: Some(encode(value)?) }));
        self.add(change, |apply| &mut apply.changes);
        self
    }

    /// Removes a value; nothing need be there.
    pub fn delete(mut self, key: impl AsRef<[u8]>) -> Self {
        let change = self.state.own(key.as_ref()).map(|key| Change { key, value: None });
        self.add(change, |apply| &mut apply.changes);
        self
    }

    /// Makes the changes only if this value still has this version, 0 for none.
    pub fn check_version(mut self, key: impl AsRef<[u8]>, version: u64) -> Self {
        let check = self.state.own(key.as_ref()).map(|key| Check { key, version });
        self.add(check, |apply| &mut apply.checks);
        self
    }

    fn add<T>(&mut self, item: Result<T, Refusal>, to: impl FnOnce(&mut Apply) -> &mut Vec<T>) {
        match item {
            Ok(item) => to(&mut self.apply).push(item),
            Err(refusal) => {
                self.fault.get_or_insert(refusal);
            }
        }
    }

    /// Makes all changes. Returns the version of all values that were written;
    /// 0 where there was nothing to do.
    ///
    /// # Errors
    ///
    /// `conflict` where a version is not as it was checked to be; else as
    /// [`State::put`]. Nothing has changed then, unless the answer was lost.
    pub async fn commit(self) -> Result<u64, Refusal> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.apply == Apply::default() {
            return Ok(0);
        }
        self.apply.check_limits()?;
        let applied: Applied = self.state.ask("space:apply", &self.apply).await?;
        Ok(applied.version)
    }
}
