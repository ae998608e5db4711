//! Durable subscriptions: streams of the plugin that keeps work, told to the
//! client as events.
//!
//! A durable subscription is a request to that plugin, under the subscription's
//! own id. Its chunks become events and gaps whose numbers are positions in the
//! journal; the first says where the subscription stands, and only that confirms
//! it, since what a consumer's name stands for is kept by then. Where the plugin goes away and the next position is known, the
//! subscription lapses, and is asked for anew once somebody keeps work again.
//!
//! # Invariants
//!
//! - No more events come than there is credit: what the client allows or, where
//!   it says nothing, `WINDOW` more than were written to it. What is no event
//!   costs the client nothing: its credit is given back. So a client that
//!   does not read costs no more than its credit, and nothing is dropped.
//! - A subscription is answered once: confirmed by the plugin's first chunk, or
//!   refused by whatever comes before that.
//! - Each is charged for as a request and as a subscription until it ends.
//! - What the client may not hear of is passed over when it comes, so what is
//!   taken from it is gone with the next fact.
//! - Each time it is asked for says what it takes, so one that is asked for anew
//!   takes no less than a fresh one.
//! - What waits for a subscription that was ended is never sent, also where
//!   another one has begun under its id.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use ksi_identity::{Caller, Principal};
use ksi_kernel::{Answer, Ask, Delivery, Envelope, Takes};
use ksi_protocol::{
    Code, EventName, Frame, Refusal, decode, encode, fanout,
    frame::{Gap, Id, Subscribe},
    limits,
    work::{Follow, Followed, Kept, Missed},
};

use super::{Outbox, State};
use crate::session::{
    body::{Body, put_event},
    credit::weight,
    face::Face,
};

/// Events that may be on their way to a client that leaves its credit to the
/// daemon: enough that plugin and client work at the same time, few enough that
/// a client that does not read is cheap.
const WINDOW: u32 = 64;

/// Whom durable subscriptions are asked of.
const FOLLOW: &str = "checkpoint:follow";

/// What moves a consumer on.
const ACK: &str = "checkpoint:ack";

/// What waits to be written.
#[derive(Debug)]
pub(super) enum Said {
    Answer(Delivery),
    Event { sub: Id, opened: u64, seq: u64, body: Body },
    Gap { opened: u64, gap: Gap },
    Refusal { id: Id, refusal: Refusal },
}

impl Said {
    /// Bytes that it is charged for.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Answer(delivery) => weight(delivery),
            Self::Event { body, .. } => 128 + body.bytes(),
            Self::Gap { .. } | Self::Refusal { .. } => 128,
        }
    }
}

/// Says what a client may hear of.
pub trait Ear: std::fmt::Debug + Send + Sync {
    /// Whether that is so of an event of a tenant, now.
    fn hears(&self, event: &EventName, tenant: Option<&str>) -> bool;
}

/// The durable subscriptions of one client.
#[derive(Debug, Default)]
pub(super) struct Follows {
    /// Without one nothing is heard.
    ear: Option<Box<dyn Ear>>,
    open: HashMap<Id, Following>,
    /// Whether there is credit to give, or something to be asked for anew.
    due: bool,
    /// How often it was asked anew since something was last heard.
    tries: u32,
}

#[derive(Debug)]
struct Following {
    /// As the client asked for it.
    asked: Subscribe,
    /// Tells it from another one under its id.
    opened: u64,
    /// Whether the client knows that it has it. Then `next` is known, too.
    confirmed: bool,
    stage: Stage,
    /// The first position that was not told yet, where it is known.
    next: Option<u64>,
    /// Events that may still come.
    left: u32,
    /// Credit that is to be given: of events that were written, unless the
    /// client gives it, of gaps that were, and of what was nothing to the client.
    owed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The plugin has it.
    Running,
    /// The plugin is gone.
    Lapsed,
    /// The client wants no more; what comes is dropped until its last answer.
    Ending,
}

impl Following {
    fn ask(&self) -> Result<Ask, Refusal> {
        let Subscribe { id, pattern, consumer, .. } = &self.asked;
        let follow = Follow { pattern: pattern.clone(), since_seq: self.next, consumer: consumer.clone() };
        let internal = |why: String| Refusal::new(Code::Internal, why);
        let event = EventName::parse(FOLLOW).map_err(|error| internal(error.to_string()))?;
        let data = encode(&follow).map_err(|error| internal(error.to_string()))?;
        let takes = match follow.consumer {
            // What comes of it is looked at fact by fact.
            None => Takes::Nothing,
            // To follow under a name is to have a position kept, and to take the name from whoever has it:
            // that takes what it takes to move the name on, for as long as it is followed.
            Some(_) => Takes::Like(EventName::parse(ACK).map_err(|error| internal(error.to_string()))?),
        };
        Ok(Ask {
            timeout: Some(limits::REQUEST_TIMEOUT_MAX),
            // Where it stands is said first, and is no event.
            credit: Some(self.left.saturating_add(1)),
            takes,
            ..Ask::new(*id, event, data)
        })
    }

    /// Whether it can go on where it was after this: what is confirmed stands
    /// somewhere.
    fn may_lapse(&self, why: &Refusal) -> bool {
        self.confirmed && why.retryable
    }
}

impl Outbox {
    /// Says what the client may hear of.
    pub fn listen_with(&self, ear: Box<dyn Ear>) {
        self.lock().follows.ear = Some(ear);
    }

    /// Begins a durable subscription; what to ask of the kernel for it. The
    /// client may have `most` subscriptions in all.
    ///
    /// # Errors
    ///
    /// `conflict` where its id is in use, `busy` where there are too many.
    pub fn follow(&self, asked: Subscribe, most: usize) -> Result<Ask, Refusal> {
        let mut state = self.lock();
        let id = asked.id;
        state.follows.is_free(id)?;
        if state.subs.contains_key(&id) {
            return Err(in_use(id));
        }
        state.has_room(most)?;
        state.opened += 1;
        let following = Following {
            opened: state.opened,
            confirmed: false,
            stage: Stage::Running,
            next: asked.since_seq,
            left: asked.credit.unwrap_or(WINDOW),
            owed: 0,
            asked,
        };
        let ask = following.ask()?;
        state.account.subscribe()?;
        let begun = state.credits.begin(id, ask.credit);
        begun.inspect_err(|_| state.account.unsubscribe(1))?;
        state.follows.open.insert(id, following);
        self.limited.store(true, Ordering::Relaxed);
        self.owe();
        Ok(ask)
    }

    /// Ends a durable subscription; `None` where there is none of that id, else
    /// whether the plugin is to be told.
    pub fn end_follow(&self, id: Id) -> Option<bool> {
        let mut state = self.lock();
        let follows = &mut state.follows.open;
        let following = follows.get_mut(&id).filter(|following| following.stage != Stage::Ending)?;
        let (runs, confirmed) = (following.stage == Stage::Running, following.confirmed);
        following.stage = Stage::Ending;
        if !runs {
            state.remove_follow(id);
        }
        if !confirmed {
            let refusal = Refusal::new(Code::Cancelled, "the subscription was ended before it had begun");
            let State { face, wire, .. } = &mut *state;
            face.frame(&Frame::Refusal { id: Some(id), refusal }, &mut wire.buffer);
        }
        Some(runs)
    }

    /// Whether a client that may have `most` subscriptions in all may have another
    /// one of this id.
    ///
    /// # Errors
    ///
    /// `conflict` where the id is that of a durable one, `busy` where there are too
    /// many.
    pub fn may_subscribe(&self, id: Id, most: usize) -> Result<(), Refusal> {
        let state = self.lock();
        state.follows.is_free(id)?;
        // One that is there already is refused for that.
        if state.subs.contains_key(&id) { Ok(()) } else { state.has_room(most) }
    }

    /// The credit that is to be given.
    pub fn grants(&self) -> Vec<(Id, u32)> {
        let mut state = self.lock();
        let open = state.follows.open.iter_mut();
        open.filter(|(_, following)| following.stage == Stage::Running && following.owed > 0)
            .map(|(id, following)| (*id, std::mem::take(&mut following.owed)))
            .collect()
    }

    /// Whether a durable subscription waits for somebody who keeps work.
    pub fn has_lapsed(&self) -> bool {
        self.lock().follows.open.values().any(|following| following.stage == Stage::Lapsed)
    }

    /// How often those that lapsed were asked for in vain.
    pub fn tries(&self) -> u32 {
        self.lock().follows.tries
    }

    /// Those that had lapsed, to be asked of the kernel anew.
    pub fn resumed(&self) -> Vec<Ask> {
        let mut state = self.lock();
        let State { follows, credits, .. } = &mut *state;
        let mut asks = Vec::new();
        follows.tries = follows.tries.saturating_add(1);
        for (id, following) in &mut follows.open {
            if following.stage != Stage::Lapsed {
                continue;
            }
            following.left = following.left.saturating_add(std::mem::take(&mut following.owed));
            // It was asked before, so it can be asked.
            let Ok(ask) = following.ask() else { continue };
            if credits.begin(*id, ask.credit).is_ok() {
                following.stage = Stage::Running;
                self.owe();
                asks.push(ask);
            }
        }
        asks
    }
}

impl Follows {
    /// Refuses an id that is in use here.
    pub(super) fn is_free(&self, id: Id) -> Result<(), Refusal> {
        if self.open.contains_key(&id) { Err(in_use(id)) } else { Ok(()) }
    }

    /// More events of a subscription may come. Of an unknown one none do.
    pub(super) fn count_credit(&mut self, id: Id, n: u32) {
        if let Some(following) = self.open.get_mut(&id) {
            following.left = following.left.saturating_add(n);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Drops all of them; how many those were.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(self).open.len()
    }

    /// Whether there is something to be done about it, once.
    pub(super) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }
}

impl State {
    fn has_room(&self, most: usize) -> Result<(), Refusal> {
        if self.subs.len() + self.follows.open.len() < most {
            return Ok(());
        }
        let message = format!("{most} subscriptions exist, and that is the limit");
        Err(Refusal::new(Code::Busy, message).hint("unsubscribe first, or use a pattern that covers more"))
    }

    /// Tells the client that it has the durable subscription, unless it knows, or
    /// wants it no more.
    fn confirm(&mut self, id: Id) {
        let news = |one: &&mut Following| !one.confirmed && one.stage != Stage::Ending;
        let Some(following) = self.follows.open.get_mut(&id).filter(news) else { return };
        following.confirmed = true;
        let data = ksi_protocol::json::from_json(&serde_json::json!({ "subscribed": true }));
        let data = data.unwrap_or_else(|_| ksi_protocol::empty());
        self.face.frame(&Frame::Reply { id, data }, &mut self.wire.buffer);
    }

    /// What an answer means where it is for a durable subscription: `Err` where
    /// it is for something else, `Ok(None)` where the client hears nothing.
    pub(super) fn followed(&mut self, delivery: Delivery) -> Result<Option<Said>, Delivery> {
        let Delivery::Answer { id, .. } = delivery else { return Err(delivery) };
        if !self.follows.open.contains_key(&id) {
            return Err(delivery);
        }
        let Delivery::Answer { answer, .. } = delivery else { return Ok(None) };
        Ok(match answer {
            Answer::Chunk(data) => match decode::<Followed>(&data) {
                Ok(part) => {
                    self.confirm(id);
                    self.part(id, part)
                }
                Err(refusal) => self.end_of_follow(id, refusal),
            },
            Answer::Refusal(refusal) => self.end_of_follow(id, *refusal),
            Answer::Reply(_) | Answer::End(_) | Answer::Accepted { .. } => {
                let message = "the plugin that keeps work has ended the subscription";
                self.end_of_follow(id, Refusal::new(Code::Unavailable, message))
            }
        })
    }

    fn part(&mut self, id: Id, part: Followed) -> Option<Said> {
        let following = self.follows.open.get_mut(&id)?;
        if following.stage == Stage::Ending {
            return None;
        }
        self.follows.tries = 0;
        let opened = following.opened;
        match part {
            Followed::Fact(fact) => {
                following.left = following.left.saturating_sub(1);
                following.next = Some(fact.seq + 1);
                let ear = self.follows.ear.as_ref();
                if !ear.is_some_and(|ear| ear.hears(&fact.event, fact.tenant.as_deref())) {
                    following.owed += 1;
                    self.follows.due = true;
                    return None;
                }
                let seq = fact.seq;
                Some(Said::Event { sub: id, opened, seq, body: body(&self.face, fact) })
            }
            Followed::Gap(Missed { from_seq, to_seq }) => {
                following.next = Some(to_seq.max(from_seq.saturating_sub(1)) + 1);
                let missed = (to_seq + 1).saturating_sub(from_seq);
                if missed == 0 {
                    // It says where the subscription stands, for which there was credit.
                    return None;
                }
                following.left = following.left.saturating_sub(1);
                Some(Said::Gap { opened, gap: Gap { sub: id, missed, from_seq, to_seq } })
            }
        }
    }

    fn end_of_follow(&mut self, id: Id, refusal: Refusal) -> Option<Said> {
        let following = self.follows.open.get_mut(&id)?;
        if following.stage == Stage::Running && following.may_lapse(&refusal) {
            following.stage = Stage::Lapsed;
            self.follows.due = true;
            return None;
        }
        let wanted = following.stage != Stage::Ending;
        let is_named = following.asked.consumer.is_some();
        self.remove_follow(id);
        let refusal = match refusal.code {
            Code::Denied if is_named => {
                let hint =
                    format!("{}; without `consumer` it takes no more than to hear the events", refusal.hint);
                refusal.hint(hint)
            }
            _ => refusal,
        };
        wanted.then_some(Said::Refusal { id, refusal })
    }

    fn remove_follow(&mut self, id: Id) {
        if self.follows.open.remove(&id).is_some() {
            self.account.unsubscribe(1);
        }
    }

    /// Writes what was said into the socket's buffer.
    pub(super) fn put(&mut self, said: Said) {
        let State { face, wire, .. } = &mut *self;
        match said {
            Said::Answer(delivery) => face.answer(delivery, &mut wire.buffer),
            Said::Refusal { id, refusal } => {
                face.frame(&Frame::Refusal { id: Some(id), refusal }, &mut wire.buffer);
            }
            Said::Event { sub, opened, seq, body } if self.is_open(sub, opened) => {
                put_event(&mut self.face, &mut self.wire.buffer, sub, seq, &body);
                self.wrote(sub, true);
            }
            Said::Gap { opened, gap } if self.is_open(gap.sub, opened) => {
                let sub = gap.sub;
                self.face.frame(&Frame::Gap(gap), &mut self.wire.buffer);
                self.wrote(sub, false);
            }
            Said::Event { .. } | Said::Gap { .. } => {}
        }
    }

    fn is_open(&self, id: Id, opened: u64) -> bool {
        let following = self.follows.open.get(&id);
        following.is_some_and(|following| following.opened == opened && following.stage != Stage::Ending)
    }

    /// A part of a subscription is on its way to the client, so that another
    /// one may come. Where the client gives credit, it gives that for events.
    fn wrote(&mut self, id: Id, is_event: bool) {
        let Some(following) = self.follows.open.get_mut(&id) else { return };
        let by_client = following.asked.credit.is_some();
        if by_client && is_event {
            return;
        }
        following.owed += 1;
        self.follows.due |= by_client || following.owed >= WINDOW / 2;
    }
}

fn in_use(id: Id) -> Refusal {
    Refusal::new(Code::Conflict, format!("a subscription with the id {id} exists already"))
        .hint("use another id for every subscription")
}

/// A fact in the form that the client's face needs.
fn body(face: &Face, fact: Kept) -> Body {
    let Kept { event, data, origin, at_ms, correlation_id, .. } = fact;
    if matches!(face, Face::Frames) {
        let tail = fanout::tail(event.as_str(), &data, &origin, at_ms, correlation_id.as_deref());
        return Body::Tail(tail);
    }
    Body::Envelope(Arc::new(Envelope {
        chain: None,
        event,
        data,
        caller: Arc::new(Caller { origin: origin.as_str().into(), principal: Principal::new("", None, 0) }),
        origin: origin.into(),
        correlation_id: correlation_id.map(Into::into),
        idempotency_key: None,
        expires_in: None,
        parent: None,
        at_ms,
        deadline_ms: None,
        credit: None,
        work: None,
    }))
}

#[cfg(test)]
mod tests;
