//! The connection that hears: every event, in batches.
//!
//! It lives on a thread and runtime of its own, which rests for [`PACE`] after
//! every batch. Without the rest each event of a flood would cost a wake-up of
//! its own, several times what its decoding costs; with it the events of that
//! time come in one read. A single event after a quiet time is passed on at
//! once.
//!
//! # Invariants
//!
//! - At most [`BATCH_MAX`] events are taken in one [`PACE`]. Beyond that the
//!   oldest are dropped, by the daemon or the client library, for this
//!   subscription alone, and it is said how many: the monitor can be late, but
//!   slows nobody and never loses count.

use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

use ksi_client::{Client, Item, Options, Subscription};
use ksi_protocol::{
    Bytes,
    frame::{Class, Event},
};
use tokio::sync::mpsc::Sender;

use super::{Leaving, RETRY_MAX, RETRY_MIN, now_ms};
use crate::state::{Arrival, Input, Link, events::EVENTS_MAX};

/// Rest after a batch. Ten make one frame on the screen, so nobody sees it; and
/// it is short enough for the socket's buffer to hold what 10,000 events a
/// second bring meanwhile, so that the daemon's writes do not wait either.
const PACE: Duration = Duration::from_millis(10);

/// Events of one batch: 40,000 a second, four times what the monitor is built
/// to show at little cost.
const BATCH_MAX: usize = 400;

/// How often the runtime is given a turn without an event coming of it before
/// a batch is taken as whole.
const IDLE_TURNS: u8 = 2;

/// Starts the thread. It ends when nobody takes its inputs any more.
///
/// # Errors
///
/// The system gives no thread or no event queue.
pub(crate) fn start(options: Options, inputs: Sender<Input>) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("feed".into()).spawn(move || runtime.block_on(hear(options, inputs)))
}

async fn hear(options: Options, inputs: Sender<Input>) {
    let options = options.event_queue(EVENTS_MAX);
    let mut retry = RETRY_MIN;
    loop {
        let reason = match listen(&options, &inputs, &mut retry).await {
            Ok(Leaving) => return,
            Err(reason) => reason,
        };
        let down = Input::Down { link: Link::Feed, reason, at_ms: now_ms() };
        if inputs.send(down).await.is_err() {
            return;
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// Hears over one connection until it breaks.
async fn listen(options: &Options, inputs: &Sender<Input>, retry: &mut Duration) -> Result<Leaving, String> {
    let client =
        Client::connect(options.clone().reconnect(false)).await.map_err(|error| error.to_string())?;
    let mut subscription = client.subscribe("*", Class::Live).await.map_err(|error| error.to_string())?;
    *retry = RETRY_MIN;
    let welcome = client.welcome();
    let up = Input::Up {
        link: Link::Feed,
        server: welcome.server.clone(),
        boot: welcome.boot.clone(),
        at_ms: now_ms(),
    };
    if inputs.send(up).await.is_err() {
        return Ok(Leaving);
    }
    loop {
        let item = tokio::select! {
            item = subscription.next() => item,
            () = inputs.closed() => return Ok(Leaving),
        };
        let Some(first) = item else {
            let error = subscription.error();
            return Err(error.map_or_else(|| "the subscription has ended".into(), |error| error.to_string()));
        };
        let batch = batch(first, &mut subscription).await;
        if inputs.send(Input::Heard(batch)).await.is_err() {
            return Ok(Leaving);
        }
        // Rests the whole thread on purpose: the task that reads the socket
        // lives on it, and shall not wake for every event either.
        thread::park_timeout(PACE);
    }
}

/// The first item and all that is there already.
async fn batch(first: Item, subscription: &mut Subscription) -> Vec<Arrival> {
    let mut batch = Vec::new();
    batch.extend(arrival(first));
    let mut idle_turns = 0;
    while batch.len() < BATCH_MAX && idle_turns < IDLE_TURNS {
        match subscription.try_next() {
            Some(item) => {
                batch.extend(arrival(item));
                idle_turns = 0;
            }
            None => {
                idle_turns += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    batch
}

fn arrival(item: Item) -> Option<Arrival> {
    match item {
        Item::Event(event) => Some(Arrival::Event(Event {
            // A copy, so that an event that is kept for long does not keep the
            // whole buffer alive that it arrived in.
            data: Bytes::copy_from_slice(&event.data),
            ..event
        })),
        Item::Gap(gap) => Some(Arrival::Gap(gap)),
        // Connections are made again here, not by the client library.
        Item::Reconnected { .. } => None,
    }
}
