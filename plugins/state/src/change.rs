//! How values change: steps that are made together or not at all, against
//! what is known of their keys, and what follows once they are safe.
//!
//! What is known may be a moment old. So whatever a step takes for granted is
//! checked again where the state is kept; where that fails, the keys are read
//! and the steps tried anew, and only what was read is a reason to refuse.
//!
//! # Failure
//!
//! Where the answer to a write is lost, nobody knows whether it was made. The
//! asker is told so, its keys are read as soon as that is possible, and
//! watches begin anew.

use std::{collections::HashSet, rc::Rc, time::Duration};

use futures_util::{StreamExt, stream};
use ksi_sdk::prelude::{Code, Ctx, Refusal, json};

use crate::{
    StatePlugin,
    index::Entry,
    payload::{self, Changed, WatchKind},
    place::{Place, invalid},
    record::{Brief, Stored, brief_key, value_key},
    room::Charge,
    value,
    values::moment,
    watch::Change,
};

/// How often steps are tried anew before the asker has to.
const ATTEMPTS: usize = 16;
/// Longest time for which something may be kept, if for a time at all: ten
/// years.
const TTL_SECONDS_MAX: i64 = 315_360_000;
/// Pause before a key is read again that could not be.
const PAUSE: Duration = Duration::from_secs(1);
/// Reads that are under way at once for one request.
pub(crate) const READS: usize = 16;

/// One of the changes that are made together.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) place: Place,
    pub(crate) action: Action,
    /// The version that the key must have.
    pub(crate) expected: Option<u64>,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum Action {
    Set(Rc<Stored>, Brief),
    /// Removes a value; with this reason.
    Delete(WatchKind),
    Check,
}

impl Step {
    /// # Errors
    ///
    /// Says which field does not fit.
    pub(crate) fn set(tenant: Option<&str>, ask: payload::Set, now_ms: u64) -> Result<Self, Refusal> {
        let payload::Set { namespace, key, value, expected_version, ttl_seconds, metadata } = ask;
        let place = Place::new(tenant, &namespace, "key", &key)?;
        value::check("value", &value)?;
        let size = (value.0.len() + value::check_metadata(&metadata)?) as u64;
        let expires_at_ms = expiry(ttl_seconds, now_ms)?;
        let stored = Rc::new(Stored { value, metadata, expires_at_ms });
        let action = Action::Set(stored, Brief { size, expires_at_ms });
        Ok(Self { place, action, expected: expected_version })
    }

    /// # Errors
    ///
    /// Says which field does not fit.
    pub(crate) fn delete(tenant: Option<&str>, ask: &payload::Delete) -> Result<Self, Refusal> {
        let place = Place::new(tenant, &ask.namespace, "key", &ask.key)?;
        Ok(Self { place, action: Action::Delete(WatchKind::Deleted), expected: ask.expected_version })
    }

    /// # Errors
    ///
    /// Says which field does not fit.
    pub(crate) fn check(tenant: Option<&str>, ask: &payload::Check) -> Result<Self, Refusal> {
        let place = Place::new(tenant, &ask.namespace, "key", &ask.key)?;
        Ok(Self { place, action: Action::Check, expected: Some(ask.version) })
    }

    /// When what it sets expires.
    pub(crate) fn expires_at_ms(&self) -> Option<u64> {
        match &self.action {
            Action::Set(_, brief) => moment(brief.expires_at_ms),
            Action::Delete(_) | Action::Check => None,
        }
    }

    /// Bytes that it writes.
    pub(crate) fn size(&self) -> u64 {
        match &self.action {
            Action::Set(_, brief) => brief.size,
            Action::Delete(_) | Action::Check => 0,
        }
    }

    /// Whether it depends on what is there.
    fn looks(&self) -> bool {
        self.expected.is_some() || matches!(self.action, Action::Delete(_))
    }

    fn charge(&self) -> Charge {
        match &self.action {
            Action::Set(_, brief) => charge(&self.place, brief.size),
            Action::Delete(_) | Action::Check => Charge::default(),
        }
    }
}

/// When something expires; 0: never.
///
/// # Errors
///
/// `invalid_payload` where the time is out of range.
pub(crate) fn expiry(ttl_seconds: Option<i64>, now_ms: u64) -> Result<u64, Refusal> {
    match ttl_seconds {
        None => Ok(0),
        Some(seconds @ 1..=TTL_SECONDS_MAX) => Ok(now_ms + seconds.unsigned_abs() * 1000),
        Some(_) => Err(invalid("ttl_seconds", &format!("must be from 1 to {TTL_SECONDS_MAX}"))),
    }
}

/// What a value is charged: its bytes and those of its key.
pub(crate) fn charge(place: &Place, size: u64) -> Charge {
    Charge::one(place.as_str().len() as u64 + size)
}

/// What the steps came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Of what was written; 0 where nothing was.
    pub(crate) version: u64,
    /// Keys that had a value, and now have none.
    pub(crate) deleted: u64,
}

/// How a write ended that was not made, or of which that is not known.
pub(crate) enum Unmade {
    /// A check failed.
    Conflict,
    /// It was not made.
    Refused(Refusal),
    /// It may have been made.
    Unknown(Refusal),
}

impl From<Refusal> for Unmade {
    fn from(refusal: Refusal) -> Self {
        match refusal.code {
            Code::Conflict => Self::Conflict,
            Code::UnknownEvent
            | Code::InvalidPayload
            | Code::InvalidFrame
            | Code::Denied
            | Code::Busy
            | Code::TooLarge
            | Code::NoOwner
            | Code::ShuttingDown => Self::Refused(refusal),
            _ => Self::Unknown(refusal.hint("it may have been done all the same: look before you ask again")),
        }
    }
}

/// The steps that change something, with what stands under their keys.
struct Plan {
    checks: Vec<(Place, u64)>,
    /// Indexes of steps.
    changes: Vec<usize>,
    deleted: u64,
}

/// Compares steps with what stands under their keys.
fn plan(steps: &[Step], view: &[Option<Entry>], now_ms: u64) -> Result<Plan, Refusal> {
    let mut plan = Plan { checks: Vec::new(), changes: Vec::new(), deleted: 0 };
    for (index, (step, there)) in steps.iter().zip(view).enumerate() {
        let live = there.filter(|entry| !entry.expired(now_ms)).map_or(0, |entry| entry.version);
        if let Some(expected) = step.expected.filter(|expected| *expected != live) {
            return Err(conflict(&step.place, expected, live));
        }
        if step.looks() {
            plan.checks.push((step.place.clone(), there.map_or(0, |entry| entry.version)));
        }
        match step.action {
            Action::Set(..) => plan.changes.push(index),
            // The clock removes what has expired.
            Action::Delete(WatchKind::Deleted) if live == 0 => {}
            Action::Delete(_) => {
                plan.changes.push(index);
                plan.deleted += 1;
            }
            Action::Check => {}
        }
    }
    Ok(plan)
}

fn conflict(place: &Place, expected: u64, version: u64) -> Refusal {
    let (key, namespace) = (place.name(), place.namespace());
    let there = match version {
        0 => "does not exist".into(),
        version => format!("has version {version}"),
    };
    let wanted = match expected {
        0 => "was expected not to exist".into(),
        expected => format!("version {expected} was expected"),
    };
    let shown = key.escape_debug().take(80).collect::<String>();
    Refusal::new(Code::Conflict, format!("key `{shown}` {there}, and {wanted}"))
        .hint("somebody else changed it: read it, and decide anew")
        .details(
            json!({ "namespace": namespace, "key": key, "version": version, "expected_version": expected }),
        )
}

/// Refuses steps of which two change one key.
///
/// # Errors
///
/// `invalid_payload` with the index of the second.
pub(crate) fn check_distinct(steps: &[Step]) -> Result<(), Refusal> {
    let mut changed = HashSet::new();
    for (index, step) in steps.iter().enumerate() {
        if !matches!(step.action, Action::Check) && !changed.insert(&step.place) {
            return Err(invalid(&format!("operations[{index}]"), "changes a key that another changes too"));
        }
    }
    Ok(())
}

impl StatePlugin {
    /// Makes steps; goes on to the end also where the asker does not wait for
    /// it, whose context `ctx` is.
    ///
    /// # Errors
    ///
    /// `conflict` where an expected version is not there; whatever keeps the
    /// state from being written.
    pub(crate) async fn change(self: &Rc<Self>, ctx: &Ctx, steps: Vec<Step>) -> Result<Done, Refusal> {
        let (this, writing) = (self.clone(), self.begin_writing(ctx)?);
        self.to_the_end(writing, async move { this.make(&Rc::new(steps)).await }).await?
    }

    async fn make(self: &Rc<Self>, steps: &Rc<Vec<Step>>) -> Result<Done, Refusal> {
        let mut view: Vec<_> = {
            let index = self.index.borrow();
            steps.iter().map(|step| index.entry(&step.place)).collect()
        };
        let mut fresh = false;
        for _ in 0..ATTEMPTS {
            let planned = match plan(steps, &view, self.now_ms()) {
                Ok(planned) => planned,
                Err(refusal) if fresh => return Err(refusal),
                Err(_) => {
                    view = self.view(steps).await?;
                    fresh = true;
                    continue;
                }
            };
            if planned.changes.is_empty() {
                return Ok(Done::default());
            }
            match self.write(steps, &planned).await {
                Ok(version) => return Ok(Done { version, deleted: planned.deleted }),
                Err(Unmade::Conflict) => {
                    view = self.view(steps).await?;
                    fresh = true;
                }
                Err(Unmade::Refused(refusal) | Unmade::Unknown(refusal)) => return Err(refusal),
            }
        }
        let message = format!("others changed the same keys {ATTEMPTS} times meanwhile");
        Err(Refusal::new(Code::Busy, message).retry_after_ms(50))
    }

    /// Reads what stands under the keys of steps.
    async fn view(&self, steps: &[Step]) -> Result<Vec<Option<Entry>>, Refusal> {
        let mut reads = stream::iter(steps).map(|step| self.read_entry(&step.place)).buffered(READS);
        let mut view = Vec::with_capacity(steps.len());
        while let Some(read) = reads.next().await {
            view.push(read?);
        }
        Ok(view)
    }

    async fn read_entry(&self, place: &Place) -> Result<Option<Entry>, Refusal> {
        let found = self.state.get::<Brief>(brief_key(place)).await?;
        Ok(found.map(|found| {
            let Brief { size, expires_at_ms } = found.value;
            Entry { version: found.version, size, expires_at_ms }
        }))
    }

    /// Writes what was planned, and lets everyone know once it is safe.
    async fn write(self: &Rc<Self>, steps: &Rc<Vec<Step>>, plan: &Plan) -> Result<u64, Unmade> {
        let changes = || plan.changes.iter().map(|index| &steps[*index]);
        self.take_room(changes()).map_err(Unmade::Refused)?;
        let mut batch = self.state.batch();
        for (place, version) in &plan.checks {
            batch = batch.check_version(brief_key(place), *version);
        }
        for Step { place, action, .. } in changes() {
            self.index.borrow_mut().depart(place);
            batch = match action {
                Action::Set(stored, brief) => {
                    batch.put(brief_key(place), brief).put(value_key(place), &**stored)
                }
                Action::Delete(_) | Action::Check => batch.delete(brief_key(place)).delete(value_key(place)),
            };
        }
        let unmade = match batch.commit().await {
            Ok(version) => {
                changes().for_each(|step| self.made(step, version));
                self.timing.notify();
                return Ok(version);
            }
            Err(refusal) => Unmade::from(refusal),
        };
        for step in changes() {
            self.room.free(&step.place, step.charge());
            match unmade {
                Unmade::Unknown(_) => self.ctx.spawn(self.clone().look_again(step.place.clone())),
                _ => drop(self.index.borrow_mut().arrive(&step.place, None)),
            }
        }
        Err(unmade)
    }

    /// Takes room for all that is set, counting what it replaces as gone. All of it
    /// is one tenant's; only what takes no room may be several's.
    fn take_room<'a>(&self, changes: impl Iterator<Item = &'a Step>) -> Result<(), Refusal> {
        let index = self.index.borrow();
        let (mut needed, mut replaced, mut place) = (Charge::default(), Charge::default(), None);
        for step in changes {
            place = place.or(Some(&step.place));
            needed += step.charge();
            if let Some(there) = index.entry(&step.place) {
                replaced += charge(&step.place, there.size);
            }
        }
        place.map_or(Ok(()), |place| self.room.take(place, needed, replaced))
    }

    /// A step is safe.
    fn made(&self, step: &Step, version: u64) {
        let Step { place, action, .. } = step;
        let mut index = self.index.borrow_mut();
        if !index.arrive(place, Some(version)) {
            // A later change was heard of first: this one is replaced already.
            self.room.free(place, step.charge());
            return;
        }
        let (entry, kind, stored) = match action {
            Action::Set(stored, Brief { size, expires_at_ms }) => {
                let entry = Entry { version, size: *size, expires_at_ms: *expires_at_ms };
                (Some(entry), WatchKind::Value, Some(stored.clone()))
            }
            Action::Delete(kind) => (None, *kind, None),
            Action::Check => return,
        };
        if let Some(before) = index.put(place, entry) {
            self.room.free(place, charge(place, before.size));
        }
        drop(index);
        let changed = Changed {
            namespace: place.namespace(),
            key: place.name().to_owned(),
            version,
            deleted: entry.is_none(),
            size: entry.map_or(0, |entry| entry.size),
        };
        self.watches.tell(&Rc::new(Change { place: place.clone(), version, kind, stored }));
        // A fact that cannot be told now is not worth a refusal of what is done.
        let _ = self.ctx.of_tenant(place.tenant().as_deref()).emit("state:changed", &changed);
    }

    /// Finds out what stands under a key whose write may have been made.
    async fn look_again(self: Rc<Self>, place: Place) {
        let entry = loop {
            match self.read_entry(&place).await {
                Ok(entry) => break entry,
                Err(_) => self.ctx.sleep(PAUSE).await,
            }
        };
        let mut index = self.index.borrow_mut();
        index.arrive(&place, None);
        let known = index.entry(&place).map_or(0, |entry| entry.version);
        if entry.is_some_and(|entry| entry.version < known) {
            return;
        }
        let before = index.put(&place, entry);
        drop(index);
        if before == entry {
            return;
        }
        if let Some(entry) = entry {
            self.room.charge(&place, charge(&place, entry.size));
        }
        if let Some(before) = before {
            self.room.free(&place, charge(&place, before.size));
        }
        self.watches.begin_anew(&place);
        self.timing.notify();
    }

    /// Removes values whose time is over; answers whether there is nothing in
    /// the way of removing more.
    pub(crate) async fn expire(self: &Rc<Self>, due: Vec<(Place, Entry)>) -> bool {
        let step = |(place, _): (Place, Entry)| Step {
            place,
            action: Action::Delete(WatchKind::Expired),
            expected: None,
        };
        let checks = due.iter().map(|(place, entry)| (place.clone(), entry.version)).collect();
        let steps: Vec<Step> = due.into_iter().map(step).collect();
        let plan = Plan { checks, changes: (0..steps.len()).collect(), deleted: 0 };
        let steps = Rc::new(steps);
        match self.write(&steps, &plan).await {
            Ok(_) => return true,
            Err(Unmade::Conflict) => {}
            Err(_) => return false,
        }
        // One of them was set anew meanwhile; the others go one by one.
        let mut all = true;
        for index in 0..steps.len() {
            let one = Plan { checks: vec![plan.checks[index].clone()], changes: vec![index], deleted: 0 };
            all &= self.write(&steps, &one).await.is_ok();
        }
        all
    }
}
