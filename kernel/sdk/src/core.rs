//! What all contexts of one instance share: the link to the host, the
//! requests that the plugin has asked, its timers, and tasks to be spawned.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
    task::Waker,
};

use futures_util::future::LocalBoxFuture;
use ksi_abi::Kind;
use ksi_protocol::{Bytes, Refusal};

use crate::{flow::Flow, link::Link, signal::Signal};

/// One answer to a request of the plugin's own.
#[derive(Debug)]
pub(crate) enum Incoming {
    Reply(Bytes),
    Chunk(Bytes),
    End(Bytes),
    Accepted(String, u64),
    Refusal(Refusal),
}

/// A request of the plugin's own: answers that wait to be taken.
#[derive(Default)]
pub(crate) struct CallSlot {
    pub(crate) answers: VecDeque<Incoming>,
    pub(crate) waker: Option<Waker>,
}

/// What is still done after a panic. It has nothing of the instance but what
/// it was given.
pub(crate) type Will = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

#[derive(Default)]
pub(crate) struct TimerSlot {
    pub(crate) fired: bool,
    pub(crate) waker: Option<Waker>,
}

/// State shared by all contexts of one instance. Lives on the thread that
/// drives the instance; only `link` leaves it.
pub(crate) struct Core {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) config: Bytes,
    pub(crate) dir: PathBuf,
    pub(crate) nonce: u64,
    next: Cell<u64>,
    pub(crate) calls: RefCell<HashMap<u64, CallSlot>>,
    pub(crate) timers: RefCell<HashMap<u64, TimerSlot>>,
    pub(crate) spawned: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    /// Streamed answers whose askers count what they have room for, by token.
    flows: RefCell<HashMap<u64, Arc<Flow>>>,
    /// Whether the plugin is not ready yet.
    pub(crate) opening: Cell<bool>,
    pub(crate) will: Will,
    /// Whether the plugin is to finish, and what says so to those who wait for it.
    draining: Cell<bool>,
    finish: Signal,
}

impl Core {
    pub(crate) fn new(link: Arc<dyn Link>, config: Bytes, dir: PathBuf) -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self {
            link,
            config,
            dir,
            // The hasher's keys are random for each process, which is all that
            // a name unique over restarts needs.
            nonce: RandomState::new().hash_one(std::process::id()),
            next: Cell::new(1),
            calls: RefCell::default(),
            timers: RefCell::default(),
            spawned: RefCell::default(),
            flows: RefCell::default(),
            opening: Cell::new(true),
            will: Will::default(),
            draining: Cell::new(false),
            finish: Signal::default(),
        }
    }

    /// A number that this instance has not used yet.
    pub(crate) fn next_id(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        id
    }

    /// Puts an answer where its asker finds it. One for a call that was given
    /// up is dropped.
    pub(crate) fn answered(&self, id: u64, answer: Incoming) {
        if let Some(slot) = self.calls.borrow_mut().get_mut(&id) {
            slot.answers.push_back(answer);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// Counts the room of a streamed answer until the guard is dropped.
    pub(crate) fn open_flow(self: &Rc<Self>, token: u64, room: u32) -> FlowGuard {
        let flow = Flow::new(room);
        self.flows.borrow_mut().insert(token, flow.clone());
        FlowGuard { core: self.clone(), token, flow }
    }

    /// The asker of a streamed answer has room for more.
    pub(crate) fn allow(&self, token: u64, parts: u64) {
        if let Some(flow) = self.flows.borrow().get(&token) {
            flow.allow(parts);
        }
    }

    /// The plugin is to finish.
    pub(crate) fn begin_drain(&self) {
        self.draining.set(true);
        self.finish.notify();
    }

    /// Waits until the plugin is to finish.
    pub(crate) fn draining(&self) -> impl Future<Output = ()> {
        self.finish.until(|| self.draining.get())
    }

    /// A timer is due.
    pub(crate) fn fired(&self, id: u64) {
        if let Some(slot) = self.timers.borrow_mut().get_mut(&id) {
            slot.fired = true;
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// Forgets a call; one that had not ended is cancelled at the host.
    pub(crate) fn close_call(&self, id: u64, ended: bool) {
        self.calls.borrow_mut().remove(&id);
        if !ended {
            self.link.send(&crate::link::Outgoing::new(Kind::Cancel, id));
        }
    }
}

/// The flow of a streamed answer, for as long as its handler runs.
pub(crate) struct FlowGuard {
    core: Rc<Core>,
    token: u64,
    pub(crate) flow: Arc<Flow>,
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        self.core.flows.borrow_mut().remove(&self.token);
        self.flow.close();
    }
}
