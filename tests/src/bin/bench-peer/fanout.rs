//! The fan-out: one emitter and many subscribers, each on a connection of its
//! own. Every router is measured by the same loop; only what is said to it
//! differs.

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{FANOUT, SUBSCRIBERS, figures::Figures};

/// Events that the emitter may be ahead of the first subscriber: below it no
/// router drops any.
const AHEAD: usize = 4_000;

/// Events between two writes of the emitter, and two reports of the first
/// subscriber.
const BATCH: usize = 100;

/// A connection to a router.
pub(crate) trait Wire: Send + Sized + 'static {
    /// Where the router listens.
    type Address: Clone + Send + 'static;

    /// Connects, and waits until the router has taken the connection in.
    fn connect(to: Self::Address) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Listens to the fan; all that is told from then on is heard.
    fn listen(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Waits for the next event.
    fn hear(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Tells the fan, with the next flush.
    fn tell(&mut self) -> anyhow::Result<()>;

    /// Writes what was told.
    fn flush(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Measures the router at `address`.
pub(crate) async fn measure<W: Wire>(test: &'static str, address: W::Address) -> anyhow::Result<()> {
    let mut subscribers = JoinSet::new();
    let (ready, mut are_ready) = mpsc::channel::<()>(SUBSCRIBERS);
    let (progress, mut of_first) = watch::channel(0_usize);
    for number in 0..SUBSCRIBERS {
        let (ready, progress) = (ready.clone(), (number == 0).then(|| progress.clone()));
        let address = address.clone();
        subscribers.spawn(async move {
            let mut wire = W::connect(address).await?;
            wire.listen().await?;
            ready.send(()).await?;
            for count in 1..=FANOUT {
                wire.hear().await?;
                if let Some(progress) = progress.as_ref().filter(|_| count % BATCH == 0) {
                    progress.send_replace(count);
                }
            }
            anyhow::Ok(())
        });
    }
    drop(ready);
    for _ in 0..SUBSCRIBERS {
        are_ready.recv().await.context("a subscriber has failed")?;
    }
    let mut wire = W::connect(address).await?;
    let figures = Figures::start(test);
    for count in 1..=FANOUT {
        wire.tell()?;
        if count % BATCH == 0 {
            wire.flush().await?;
            of_first.wait_for(|received| received + AHEAD >= count).await?;
        }
    }
    wire.flush().await?;
    while let Some(subscriber) = subscribers.join_next().await {
        subscriber??;
    }
    figures.print(FANOUT * SUBSCRIBERS);
    Ok(())
}
