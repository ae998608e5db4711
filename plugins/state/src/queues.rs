//! All queues, and how what happens in them is written. What a queue does is
//! decided in [`Line`]; here it is made safe first, and then true.
//!
//! # Failure
//!
//! Where the answer to a write is lost, its items stay held until they could
//! be read, so that nobody is handed what may be gone already.

mod asks;
mod schedule;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use ksi_sdk::{
    Signal,
    prelude::{Code, Refusal},
    protocol::Payload,
};

use crate::{
    StatePlugin,
    change::Unmade,
    line::{Item, Line},
    place::Place,
    record::{COUNTER, data_key, item_key},
    room::Charge,
};
use schedule::Schedule;

/// Numbers that are set aside with one write.
const NUMBERS: u64 = 4096;
/// Pause before an item is read again that could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) place: Place,
    pub(crate) line: RefCell<Line>,
    /// Says that something can be taken.
    pub(crate) news: Signal,
}

/// All queues that have something in them, or somebody at them.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    queues: RefCell<HashMap<Place, Rc<Queue>>>,
    schedule: RefCell<Schedule>,
    /// Requests that wait for an item.
    waiting: Cell<usize>,
    numbers: Numbers,
}

/// Numbers of items and leases; none is given twice, not over a restart
/// either.
#[derive(Debug, Default)]
struct Numbers {
    last: Cell<u64>,
    /// What the state says has been given already.
    covered: Cell<u64>,
}

impl Numbers {
    fn next(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    /// What has to be written so that the numbers given by now are covered.
    fn to_cover(&self) -> Option<u64> {
        (self.last.get() > self.covered.get()).then(|| self.last.get() + NUMBERS)
    }
}

/// A queue that somebody works with. With the last one goes a queue that has
/// nothing in it.
pub(crate) struct Open {
    plugin: Rc<StatePlugin>,
    queue: Rc<Queue>,
}

impl Clone for Open {
    fn clone(&self) -> Self {
        Self { plugin: self.plugin.clone(), queue: self.queue.clone() }
    }
}

impl std::ops::Deref for Open {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // This one and the one of the table.
        if Rc::strong_count(&self.queue) == 2 && self.queue.line.borrow().is_empty() {
            self.plugin.queues.queues.borrow_mut().remove(&self.queue.place);
        }
    }
}

/// A request that waits for an item; until it is dropped.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a Cell<usize>, max: usize) -> Result<Self, Refusal> {
        if waiting.get() >= max {
            return Err(Refusal::new(Code::Busy, format!("{max} requests wait for items already"))
                .hint("wait at fewer queues, or raise plugins.state.config.waiters_max")
                .retry_after_ms(1000));
        }
        waiting.set(waiting.get() + 1);
        Ok(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Queues {
    /// When something happens by itself in a queue.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.schedule.borrow().next()
    }

    /// Takes in what a start has read: an item of a queue. The item, where it was
    /// hidden for longer than any may be, by a clock that was ahead, and now is not.
    pub(crate) fn load(&self, place: Place, id: u64, mut item: Item, now_ms: u64) -> Option<Item> {
        let longest_ms = now_ms + asks::HIDDEN_MS_MAX;
        let ahead = item.hidden_until_ms > longest_ms;
        item.hidden_until_ms = item.hidden_until_ms.min(longest_ms);
        let nearer = ahead.then(|| item.clone());
        let mut queues = self.queues.borrow_mut();
        let queue = queues.entry(place).or_insert_with_key(|place| Rc::new(Queue::new(place)));
        queue.line.borrow_mut().settle(id, Some(item), now_ms);
        self.schedule.borrow_mut().set(&queue.place, queue.line.borrow().next_due());
        self.numbers.last.set(self.numbers.last.get().max(id));
        nearer
    }

    /// Takes in up to where numbers have been given.
    pub(crate) fn load_numbers(&self, covered: u64) {
        self.numbers.covered.set(covered);
        self.numbers.last.set(self.numbers.last.get().max(covered));
    }

    /// Lets every request that waits look again.
    pub(crate) fn wake(&self) {
        self.queues.borrow().values().for_each(|queue| queue.news.notify());
    }
}

impl Queue {
    fn new(place: &Place) -> Self {
        Self { place: place.clone(), line: RefCell::default(), news: Signal::default() }
    }

    fn restore(&self, ids: impl IntoIterator<Item = u64>, now_ms: u64) {
        let mut line = self.line.borrow_mut();
        ids.into_iter().for_each(|id| line.restore(id, now_ms));
    }
}

/// What an item is charged: its data and the names in its keys.
fn charge(place: &Place, item: &Item) -> Charge {
    Charge::one(place.as_str().len() as u64 + item.size)
}

impl StatePlugin {
    fn open_queue(self: &Rc<Self>, place: Place) -> Open {
        let mut queues = self.queues.queues.borrow_mut();
        let queue = queues.entry(place).or_insert_with_key(|place| Rc::new(Queue::new(place))).clone();
        Open { plugin: self.clone(), queue }
    }

    /// After a line has changed: plans what happens next by itself, and says
    /// what can be taken now.
    fn touched(&self, queue: &Queue) {
        let line = queue.line.borrow();
        self.queues.schedule.borrow_mut().set(&queue.place, line.next_due());
        if line.has_ready() {
            queue.news.notify();
        }
        self.timing.notify();
    }

    /// Adds an item at the end. Answers with its number and the length of the
    /// queue.
    async fn add(self: Rc<Self>, open: Open, item: Item, data: Payload) -> Result<(u64, u64), Refusal> {
        self.room.take(&open.place, charge(&open.place, &item), Charge::default())?;
        let id = self.queues.numbers.next();
        open.line.borrow_mut().announce(id);
        let mut batch = self.state.batch();
        let covers = self.queues.numbers.to_cover();
        if let Some(covers) = covers {
            batch = batch.put(COUNTER, &covers);
        }
        let batch = batch.put(item_key(&open.place, id), &item).put(data_key(&open.place, id), &data);
        let made = batch.commit().await;
        let landed = match made {
            Ok(_) => {
                self.cover(covers);
                open.line.borrow_mut().land(id, Some(item), self.now_ms());
                Ok((id, open.line.borrow().counts().length))
            }
            Err(refusal) => {
                self.room.free(&open.place, charge(&open.place, &item));
                Err(match Unmade::from(refusal) {
                    Unmade::Unknown(refusal) => {
                        self.ctx.spawn(self.clone().look_for(open.clone(), id));
                        return Err(refusal);
                    }
                    Unmade::Refused(refusal) => refusal,
                    Unmade::Conflict => out_of_step(),
                })
            }
        };
        if landed.is_err() {
            open.line.borrow_mut().land(id, None, self.now_ms());
        }
        self.touched(&open);
        landed
    }

    fn cover(&self, covers: Option<u64>) {
        let covered = &self.queues.numbers.covered;
        covered.set(covered.get().max(covers.unwrap_or(0)));
    }

    /// Writes what becomes of items that are held, and then lets them go.
    async fn write_items(self: &Rc<Self>, open: &Open, items: &[(u64, Option<Item>)]) -> Result<(), Refusal> {
        let mut batch = self.state.batch();
        let covers = self.queues.numbers.to_cover();
        if let Some(covers) = covers {
            batch = batch.put(COUNTER, &covers);
        }
        for (id, item) in items {
            let key = item_key(&open.place, *id);
            batch = match item {
                Some(item) => batch.put(key, item),
                None => batch.delete(key).delete(data_key(&open.place, *id)),
            };
        }
        let ids = || items.iter().map(|(id, _)| *id);
        let refusal = match batch.commit().await {
            Ok(_) => {
                self.cover(covers);
                for (id, item) in items {
                    self.let_go(open, *id, item.clone());
                }
                self.touched(open);
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        match Unmade::from(refusal) {
            Unmade::Unknown(refusal) => {
                for id in ids() {
                    self.ctx.spawn(self.clone().look_for(open.clone(), id));
                }
                Err(refusal)
            }
            Unmade::Refused(refusal) => {
                open.restore(ids(), self.now_ms());
                self.touched(open);
                Err(refusal)
            }
            Unmade::Conflict => {
                open.restore(ids(), self.now_ms());
                self.touched(open);
                Err(out_of_step())
            }
        }
    }

    fn let_go(&self, open: &Open, id: u64, item: Option<Item>) {
        let gone = item.is_none();
        let before = open.line.borrow_mut().settle(id, item, self.now_ms());
        if let Some(before) = before.filter(|_| gone) {
            self.room.free(&open.place, charge(&open.place, &before));
        }
    }

    /// Finds out what became of an item whose write may have been made.
    async fn look_for(self: Rc<Self>, open: Open, id: u64) {
        let key = item_key(&open.place, id);
        let item = loop {
            match self.state.get::<Item>(&key).await {
                Ok(item) => break item.map(|found| found.value),
                Err(_) => self.ctx.sleep(PAUSE).await,
            }
        };
        let charged = item.as_ref().map(|item| charge(&open.place, item));
        let before = open.line.borrow_mut().land(id, item, self.now_ms());
        if let Some(charged) = charged {
            self.room.charge(&open.place, charged);
        }
        if let Some(before) = before {
            self.room.free(&open.place, charge(&open.place, &before));
        }
        self.touched(&open);
    }

    /// Lets happen what is due in the queues by now: items come back, and those
    /// whose time is over are removed, a few of each. Answers whether nothing
    /// is in the way of more.
    pub(crate) async fn turn_queues(self: &Rc<Self>, now_ms: u64, max: usize) -> bool {
        let due = self.queues.schedule.borrow().due(now_ms, max);
        let mut all = true;
        for place in due {
            let open = self.open_queue(place);
            let gone = open.line.borrow_mut().take_gone(now_ms, max);
            self.touched(&open);
            let gone: Vec<_> = gone.into_iter().map(|(id, _)| (id, None)).collect();
            if !gone.is_empty() {
                all &= self.write_items(&open, &gone).await.is_ok();
            }
        }
        all
    }
}

/// Nobody else writes these keys, and none of them is checked.
fn out_of_step() -> Refusal {
    Refusal::new(Code::Internal, "the state refused a write of a queue as out of step")
}
