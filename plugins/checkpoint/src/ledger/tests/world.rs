//! A ledger with the keyspace that its steps make, and somebody who keeps the
//! books: what runs, what was begun, what has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ksi_sdk::protocol::{Bytes, Code, EventName, Refusal, work::Policy};

use crate::{
    ledger::{
        Admission, Begun, Effect, Ended, Ending, Entry, Id, Key, Ledger, Limits, Order, Remembered, State,
        Step,
    },
    record::{Change, keys},
    testing::policy,
};

/// When every test begins.
pub(super) const START: u64 = 1_000_000_000;

/// A world in which so many run of one event, where only one asks.
pub(super) fn limited(of_one: usize) -> World {
    World::new(Limits { in_flight: 2 * of_one, ..Limits::default() })
}

#[derive(Clone)]
pub(super) struct Books {
    pub(super) table: BTreeMap<Bytes, Bytes>,
    pub(super) running: HashMap<Id, u32>,
    /// How often each has ended, and may have: once, and once for each retry.
    pub(super) ends: BTreeMap<Id, (u32, u32)>,
    /// Those that were begun at least once.
    begun: BTreeSet<Id>,
    /// The first start of the daemon that lives.
    pub(super) born: u64,
    pub(super) last_ended: Option<Ended>,
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) ledger: Ledger,
    pub(super) books: Books,
    pub(super) limits: Limits,
    pub(super) epoch: u64,
    /// In whose name work is accepted.
    pub(super) asker: &'static str,
    next: u64,
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        let books = Books {
            table: BTreeMap::new(),
            running: HashMap::new(),
            ends: BTreeMap::new(),
            begun: BTreeSet::new(),
            born: 1,
            last_ended: None,
        };
        let ledger = Ledger::new(limits.clone(), 1, 7);
        Self { now: START, ledger, books, limits, epoch: 1, asker: "user:a", next: 0 }
    }

    pub(super) fn order(&mut self, event: &str, policy: Policy, key: Option<Key>) -> Order {
        self.next += 1;
        Order {
            id: Id::from_u128(self.next.into()),
            seq: self.next,
            event: EventName::parse(event).unwrap(),
            origin: "session:1".into(),
            principal: Some(self.asker.into()),
            tenant: None,
            correlation_id: Some("c-1".into()),
            policy,
            key,
        }
    }

    /// Accepts work whose payload is its number.
    pub(super) fn accept(&mut self, event: &str, policy: Policy) -> Id {
        let order = self.order(event, policy, None);
        let payload = Bytes::from(order.seq.to_be_bytes().to_vec());
        let admission = self.ledger.accept(self.now, order, payload, None).unwrap();
        let Admission::New { id, step } = admission else { panic!("{admission:?}") };
        self.books.ends.insert(id, (0, 1));
        self.carry(step);
        id
    }

    /// Accepts work under a key, or finds whose it is.
    pub(super) fn accept_keyed(&mut self, key: &str, payload: &'static [u8]) -> Result<(Id, bool), Refusal> {
        let key = Key::new(key, payload);
        let order = self.order("a:keyed", policy(), Some(key.clone()));
        let stored = self.books.table.get(&key.hash(&order.event, None).table_key());
        let remembered = stored.map(|bytes| Remembered::decode(bytes).unwrap());
        match self.ledger.accept(self.now, order, Bytes::from_static(payload), remembered.as_ref())? {
            Admission::Same { id, .. } => Ok((id, false)),
            Admission::New { id, step } => {
                self.books.ends.insert(id, (0, 1));
                self.carry(step);
                Ok((id, true))
            }
        }
    }

    pub(super) fn answer(&mut self, id: Id, answer: Result<Bytes, Refusal>) {
        let lease = self.books.running.remove(&id).expect("it runs");
        let step = self.ledger.outcome(self.now, id, lease, answer);
        self.carry(step);
    }

    pub(super) fn refuse(&mut self, id: Id, code: Code) {
        self.answer(id, Err(Refusal::new(code, "no")));
    }

    pub(super) fn done(&mut self, id: Id) {
        self.answer(id, Ok(Bytes::from_static(b"\x01")));
    }

    pub(super) fn cancel(&mut self, id: Id) {
        let step = self.ledger.cancel(self.now, id);
        self.carry(step);
    }

    pub(super) fn retry(&mut self, id: Id) -> Result<(), Refusal> {
        let entry = self.entry(id).ok_or_else(|| crate::ledger::not_found("gone"))?;
        let step = self.ledger.retry(self.now, id, entry)?;
        self.books.ends.get_mut(&id).unwrap().1 += 1;
        self.carry(step);
        Ok(())
    }

    /// Lets time pass, with a tick wherever one is due.
    pub(super) fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(due_ms) = self.ledger.due_ms().filter(|due_ms| *due_ms <= until) {
            self.now = self.now.max(due_ms);
            let step = self.ledger.tick(self.now);
            self.carry(step);
        }
        self.now = until;
    }

    /// Ends the daemon without a word, and starts the next one.
    pub(super) fn crash(&mut self) {
        self.books.running.clear();
        self.restart();
    }

    /// Ends the daemon as somebody wished, and starts the next one.
    pub(super) fn plan_restart(&mut self) {
        let step = self.ledger.close();
        self.carry(step);
        assert!(self.books.running.is_empty(), "something runs after the end");
        self.restart();
    }

    fn restart(&mut self) {
        self.books.born = self.epoch + 1;
        self.open(&Begun::default());
    }

    /// Opens the journal again in the same daemon, after a step that was not
    /// written: what was known `before` it is what is left. Attempts go on, but
    /// for one that was leased and not begun.
    pub(super) fn reopen(&mut self, before: Option<Books>, unbegun: Option<Id>) {
        let running = self.books.running.clone();
        if let Some(before) = before.filter(|before| before.born == self.books.born) {
            self.books = before;
        }
        if let Some(id) = unbegun {
            self.books.running.remove(&id);
        }
        let leases = self.books.running.clone();
        self.open(&Begun { since: Some(self.books.born), leases: leases.clone() });
        // What came of an attempt, and was not written, is heard again.
        for (id, lease) in leases {
            if running.get(&id) != Some(&lease) && Some(id) != unbegun {
                self.refuse(id, Code::Unknown);
            }
        }
    }

    fn open(&mut self, begun: &Begun) {
        self.epoch += 1;
        let mut ledger = Ledger::new(self.limits.clone(), self.epoch, self.epoch);
        for (id, entry) in self.entries() {
            match self.is_small(id) {
                true => ledger.load_small(id, &entry),
                false => ledger.load(id, entry),
            }
        }
        self.ledger = ledger;
        let step = self.ledger.recover(self.now, begun);
        self.carry(step);
    }

    pub(super) fn entries(&self) -> Vec<(Id, Entry)> {
        let of_work = self.books.table.iter().filter(|(key, _)| key[0] == keys::WORK);
        of_work.map(|(key, value)| (Id::of_work_key(key).unwrap(), Entry::decode(value).unwrap())).collect()
    }

    pub(super) fn entry(&self, id: Id) -> Option<Entry> {
        self.books.table.get(&id.work_key()).map(|bytes| Entry::decode(bytes).unwrap())
    }

    /// Whether only its end is kept.
    pub(super) fn is_small(&self, id: Id) -> bool {
        self.books.table.contains_key(&id.mark_key())
    }

    pub(super) fn forget(&mut self, id: Id) -> Result<(), Refusal> {
        let entry = self.entry(id).ok_or_else(|| crate::ledger::not_found("gone"))?;
        let step = self.ledger.forget(self.now, id, &entry)?;
        self.carry(step);
        Ok(())
    }

    pub(super) fn state(&self, id: Id) -> State {
        self.entry(id).expect("it is kept").state
    }

    pub(super) fn how(&self, id: Id) -> Option<Ending> {
        match self.entry(id)?.state {
            State::Ended { how, .. } => Some(how),
            _ => None,
        }
    }

    /// Writes a step and does what it says, looking whether it may.
    pub(super) fn carry(&mut self, step: Step) {
        for Change { key, value } in step.batch {
            match value {
                Some(value) => self.books.table.insert(key, value),
                None => self.books.table.remove(&key),
            };
        }
        for effect in step.effects {
            match effect {
                Effect::Run(run) => {
                    let entry = self.entry(run.id).expect("what runs is written");
                    assert!(matches!(entry.state, State::Leased { .. }), "{entry:?} runs and is not leased");
                    assert_eq!(entry.leases, run.lease);
                    assert!(entry.attempts <= entry.attempts_max, "{entry:?} has too many attempts");
                    assert!(self.now < entry.expires_ms, "{entry:?} is begun too late");
                    assert!(self.books.table.contains_key(&run.id.payload_key()), "nothing to run");
                    assert_eq!(self.books.running.insert(run.id, run.lease), None, "two attempts at a time");
                    self.begun_in_order(run.id, &run.event);
                    self.ledger.begun(self.now, run.id, run.lease);
                }
                Effect::Abandon { id, lease } => {
                    assert_eq!(self.books.running.remove(&id), Some(lease));
                }
                Effect::Ended(ended) => {
                    assert!(!self.books.running.contains_key(&ended.id), "it ended while it runs");
                    let (ends, most) = self.books.ends.get_mut(&ended.id).expect("it was accepted");
                    *ends += 1;
                    assert!(*ends <= *most, "{} ended twice", ended.id);
                    self.books.last_ended = Some(ended);
                }
            }
        }
        self.agree();
    }

    /// The first attempts of what one asks of an event come in the order of acceptance.
    fn begun_in_order(&mut self, id: Id, event: &EventName) {
        if self.books.begun.insert(id) {
            let asker = self.entry(id).and_then(|entry| entry.principal);
            let same = |entry: Entry| entry.event == *event && entry.principal == asker;
            let alike = |id: &Id| self.entry(*id).is_some_and(same);
            let waiting = self.ledger.live.keys().filter(|older| **older < id && alike(older));
            for older in waiting {
                assert!(self.books.begun.contains(older), "{id} was begun before {older}");
            }
        }
    }

    /// What is in memory is what is written.
    fn agree(&self) {
        let mut living = 0;
        for (id, stored) in self.entries() {
            let (payload, result) = (
                self.books.table.get(&id.payload_key()).map_or(0, |bytes| bytes.len()),
                self.books.table.get(&id.result_key()).map_or(0, |bytes| bytes.len()),
            );
            let sizes = (stored.payload_bytes as usize, stored.result_bytes as usize);
            let small = self.is_small(id);
            assert_eq!((payload, result), if small { (0, 0) } else { sizes }, "{stored:?}");
            assert!(!small || !self.ledger.is_live(id));
            if let State::Ended { .. } = stored.state {
                assert!(!self.ledger.is_live(id));
                continue;
            }
            living += 1;
            let mut live = self.ledger.live.get(&id).expect("what has not ended lives").clone();
            (live.due_ms, live.lane) = (0, 0);
            assert_eq!(*live, stored);
        }
        assert_eq!(living, self.ledger.live.len());
        let bytes = self.ledger.live.values().map(|entry| entry.payload_bytes as usize).sum::<usize>();
        assert_eq!(self.ledger.figures().pending_bytes, bytes);
        for (key, value) in &self.books.table {
            let named = match key[0] {
                keys::KEY => Some(Remembered::decode(value).unwrap())
                    .filter(|remembered| remembered.until_ms > self.now)
                    .map(|remembered| remembered.id),
                _ => Id::of_mark_key(key),
            };
            assert!(named.is_none_or(|id| self.entry(id).is_some()), "{named:?} is named, and not there");
        }
        assert_eq!(self.ledger.due.len(), living, "what lives is due once");
        assert_eq!(self.ledger.figures().running, self.books.running.len());
    }
}
