//! The ring of live events of one client: bounded, the oldest goes first, and
//! what went is counted for each subscription.

use std::collections::HashMap;

use ksi_protocol::{
    frame::{Class, Id},
    limits,
};

use super::{
    super::body::{Body, put_event},
    State,
};

#[derive(Debug)]
pub(super) struct Live {
    pub(super) ticket: u64,
    pub(super) sub: Id,
    pub(super) opened: u64,
    /// Older values that this one has taken the place of.
    pub(super) replaced: u64,
    pub(super) body: Body,
}

#[derive(Debug, Default)]
pub(super) struct Sub {
    pub(super) opened: u64,
    pub(super) seq: u64,
    pub(super) missed: u64,
    /// For `latest`: where the newest event of each name waits. May know
    /// events that have left since.
    pub(super) newest: HashMap<Box<str>, u64>,
}

impl State {
    /// Returns how many older events had to go.
    pub(super) fn event(&mut self, id: Id, class: Class, name: &str, body: &Body) -> u64 {
        if self.wire.is_dead() {
            return 0;
        }
        let room = self.room();
        let Some(sub) = self.subs.get_mut(&id) else { return 0 };
        if room {
            sub.seq += 1;
            put_event(&mut self.face, &mut self.wire.buffer, id, sub.seq, body);
            return 0;
        }
        let opened = sub.opened;
        if class != Class::Latest || !self.replace_latest(id, name, body) {
            let ticket = self.next_ticket();
            self.live_bytes += body.bytes();
            if class == Class::Latest {
                self.remember_latest(id, name);
            }
            self.live.push_back(Live { ticket, sub: id, opened, replaced: 0, body: body.clone() });
        }
        let mut dropped = 0;
        while self.live.len() > limits::LIVE_EVENTS_MAX
            || (self.live.len() > 1 && (self.live_bytes > limits::LIVE_BYTES_MAX || self.is_over_share()))
        {
            dropped += u64::from(self.drop_oldest());
        }
        dropped
    }

    /// The next entry is the newest of its name.
    fn remember_latest(&mut self, id: Id, name: &str) {
        let (front, next) = (self.live_front, self.live_front + self.live.len() as u64);
        let Some(sub) = self.subs.get_mut(&id) else { return };
        if sub.newest.len() >= limits::LIVE_EVENTS_MAX {
            // Names are the client's to choose, so the list of them is bounded.
            sub.newest.retain(|_, at| *at >= front);
        }
        sub.newest.insert(name.into(), next);
    }

    /// Puts a newer value where an older one of the same name waits.
    fn replace_latest(&mut self, id: Id, name: &str, body: &Body) -> bool {
        let Some(at) = self.subs.get(&id).and_then(|sub| sub.newest.get(name)) else { return false };
        let Some(index) = at.checked_sub(self.live_front) else { return false };
        let Some(entry) = usize::try_from(index).ok().and_then(|index| self.live.get_mut(index)) else {
            return false;
        };
        self.live_bytes = self.live_bytes + body.bytes() - entry.body.bytes();
        entry.body = body.clone();
        entry.replaced += 1;
        true
    }

    pub(super) fn pop_live(&mut self) -> Option<Live> {
        let entry = self.live.pop_front()?;
        self.live_front += 1;
        self.live_bytes -= entry.body.bytes();
        Some(entry)
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(entry) = self.pop_live() else { return false };
        let Some(sub) = self.subs.get_mut(&entry.sub).filter(|sub| sub.opened == entry.opened) else {
            return false;
        };
        if sub.missed == 0 {
            self.gapped.push(entry.sub);
        }
        sub.missed += 1 + entry.replaced;
        true
    }

    pub(super) fn put_event(&mut self, live: &Live) {
        let id = live.sub;
        let Some(sub) = self.subs.get_mut(&id).filter(|sub| sub.opened == live.opened) else { return };
        sub.seq += 1 + live.replaced;
        put_event(&mut self.face, &mut self.wire.buffer, id, sub.seq, &live.body);
    }

    /// Whether this queue has to give way to others of its user.
    pub(super) fn is_over_share(&self) -> bool {
        self.account.is_over(self.charged, self.waiting_bytes())
    }
}
