//! Facts: from one client to another and back, and from one to many.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ksi_client::{Class, Client, Item, Subscription};
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet};

use super::{Measured, TEXT, rate, rounded};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, encoded},
};

/// Round trips before the clock starts.
const WARM_UP: usize = 500;

/// Events after which the emitter looks how far the subscribers are.
const LOOK_EVERY: u64 = 64;

/// Events that the slowest subscriber may be behind. Well below the daemon's
/// ring, so that throughput is measured and not loss.
const WINDOW: u64 = 4096;

/// Events after which a subscriber says how far it is: what is measured is
/// hearing, not saying so.
const REPORT_EVERY: u64 = 256;

/// Longest time without any progress of the slowest subscriber.
const STALL: Duration = Duration::from_secs(10);

/// A name of this run alone, so that two runs do not hear each other.
pub(super) fn name(what: &str) -> String {
    format!("bench:{what}-{}", std::process::id())
}

fn gone() -> Failure {
    Failure::failed("the daemon went away").hint("ksi logs")
}

pub(super) async fn next_event(subscription: &mut Subscription) -> Result<()> {
    loop {
        match subscription.next().await {
            Some(Item::Event(_)) => return Ok(()),
            Some(Item::Gap(_) | Item::Reconnected { .. }) => {}
            None => return Err(gone()),
        }
    }
}

/// One client tells, another hears it and tells back.
///
/// # Errors
///
/// Fails where the daemon goes away.
pub(super) async fn client_to_client(at: &Invocation, count: usize) -> Result<Measured> {
    let (asker, answerer) = (at.connect().await?, at.connect().await?);
    let (ping, pong) = (name("ping"), name("pong"));
    let mut pings = answerer.subscribe(&ping, Class::Live).await?;
    let mut pongs = asker.subscribe(&pong, Class::Live).await?;
    let payload = encoded(&json!({ "text": TEXT }))?;
    let back = payload.clone();
    let mut answering = JoinSet::new();
    answering.spawn(async move {
        while next_event(&mut pings).await.is_ok() {
            if answerer.emit_raw(&pong, back.clone()).await.is_err() {
                return;
            }
        }
    });
    let mut times = Vec::with_capacity(count);
    let mut began = Instant::now();
    for turn in 0..count + WARM_UP {
        if turn == WARM_UP {
            began = Instant::now();
        }
        let sent = Instant::now();
        asker.emit_raw(&ping, payload.clone()).await?;
        next_event(&mut pongs).await?;
        if turn >= WARM_UP {
            times.push(sent.elapsed());
        }
    }
    let measured = Measured::of("client-to-client", times, began.elapsed());
    Ok(Measured { one_way_us: measured.p50_us.map(|us| rounded(us / 2.0)), ..measured })
}

/// How far the subscribers are.
struct Progress {
    /// Events heard or lost, for each subscriber.
    heard: Vec<AtomicU64>,
    lost: AtomicU64,
    moved: Notify,
}

impl Progress {
    fn slowest(&self) -> u64 {
        self.heard.iter().map(|heard| heard.load(Ordering::Acquire)).min().unwrap_or_default()
    }

    /// Waits until the slowest subscriber has come as far as `mark`.
    async fn reaches(&self, mark: u64) -> Result<()> {
        let mut last = self.slowest();
        while last < mark {
            let moved = self.moved.notified();
            if self.slowest() >= mark {
                break;
            }
            let stalled = tokio::time::timeout(STALL, moved).await.is_err();
            let now = self.slowest();
            if stalled && now == last {
                return Err(Failure::failed(format!(
                    "a subscriber heard {now} of {mark} events, and no more"
                )));
            }
            last = now;
        }
        Ok(())
    }
}

/// One client tells, `subscribers` connections hear each of `count` events.
///
/// # Errors
///
/// Fails where the daemon goes away, or a subscriber hears nothing any more.
pub(super) async fn fanout(at: &Invocation, subscribers: usize, count: usize) -> Result<Measured> {
    let fan = name("fan");
    let progress = Arc::new(Progress {
        heard: (0..subscribers).map(|_| AtomicU64::new(0)).collect(),
        lost: AtomicU64::new(0),
        moved: Notify::new(),
    });
    let total = count as u64;
    let mut hearing = JoinSet::new();
    for index in 0..subscribers {
        let client = at.connect().await?;
        let subscription = client.subscribe(&fan, Class::Live).await?;
        hearing.spawn(hear(client, subscription, Arc::clone(&progress), index, total));
    }
    let emitter = at.connect().await?;
    let payload = encoded(&json!({ "text": TEXT }))?;
    let began = Instant::now();
    for turn in 1..=total {
        emitter.emit_raw(&fan, payload.clone()).await?;
        if turn % LOOK_EVERY == 0 {
            progress.reaches(turn.saturating_sub(WINDOW)).await?;
        }
    }
    progress.reaches(total).await?;
    let took = began.elapsed();
    while let Some(done) = hearing.join_next().await {
        done.map_err(|error| Failure::failed(format!("a subscriber ended: {error}")))??;
    }
    let lost = progress.lost.load(Ordering::Acquire);
    let delivered = (subscribers * count).saturating_sub(usize::try_from(lost).unwrap_or(usize::MAX));
    Ok(Measured {
        test: "fanout",
        per_s: Some(rate(delivered, took)),
        n: delivered,
        lost: Some(lost),
        ..Measured::default()
    })
}

/// Counts what one subscriber hears. The client is kept, for the connection
/// ends with it.
async fn hear(
    _client: Client,
    mut subscription: Subscription,
    progress: Arc<Progress>,
    index: usize,
    total: u64,
) -> Result<()> {
    let mut heard = 0;
    while heard < total {
        let before = heard;
        match subscription.next().await {
            Some(Item::Event(_)) => heard += 1,
            Some(Item::Gap(gap)) => {
                heard += gap.missed;
                progress.lost.fetch_add(gap.missed, Ordering::AcqRel);
            }
            Some(Item::Reconnected { .. }) => {}
            None => return Err(gone()),
        }
        if heard / REPORT_EVERY != before / REPORT_EVERY || heard >= total {
            progress.heard[index].store(heard, Ordering::Release);
            progress.moved.notify_one();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(heard: &[u64]) -> Progress {
        Progress {
            heard: heard.iter().copied().map(AtomicU64::new).collect(),
            lost: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_emitter_waits_for_the_slowest_subscriber() {
        let progress = Arc::new(progress(&[100, 10]));
        progress.reaches(10).await.unwrap();
        let waiting = tokio::spawn({
            let progress = Arc::clone(&progress);
            async move { progress.reaches(50).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        progress.heard[1].store(60, Ordering::Release);
        progress.moved.notify_one();
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_hears_nothing_ends_the_test() {
        let failure = progress(&[7]).reaches(9).await.unwrap_err();
        assert!(failure.message.contains("7 of 9"), "{}", failure.message);
    }
}
