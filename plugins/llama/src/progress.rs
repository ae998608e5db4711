//! `llama:progress`: how far a load is, for whoever listens.
//!
//! Loads run on other threads or in other processes, which only move a
//! `Meter`; it is read, and told of, now and then.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, select};
use ksi_sdk::prelude::{Ctx, Deserialize, JsonSchema, Refusal, Serialize};

/// Time between two words about one load.
const PAUSE: Duration = Duration::from_millis(100);

/// A model is being loaded, whoever wanted it. The last word about a load has
/// the progress 1, or an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Its name.
    pub model: String,
    /// How far that is, from 0 to 1.
    pub progress: f32,
    /// Why it was not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a load is. Clones are the same meter, which any thread may move.
#[derive(Clone)]
pub(crate) struct Meter(Arc<AtomicU32>);

impl Default for Meter {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(f32::NAN.to_bits())))
    }
}

impl Meter {
    pub(crate) fn set(&self, part: f32) {
        self.0.store(part.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
    }

    /// `None` where nothing was begun, since the model was there or was refused.
    fn get(&self) -> Option<f32> {
        Some(f32::from_bits(self.0.load(Ordering::Relaxed))).filter(|part| !part.is_nan())
    }
}

/// Tells of a load until it is over.
pub(crate) async fn told<T>(
    ctx: &Ctx,
    model: &str,
    meter: &Meter,
    load: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let telling = Telling { ctx, model, meter, over: false };
    let mut load = pin!(load);
    let mut shown = None;
    loop {
        if let Either::Left((loaded, _)) = select(load.as_mut(), pin!(ctx.sleep(PAUSE))).await {
            telling.end(loaded.as_ref().err());
            return loaded;
        }
        // What is read to its end is not ready yet.
        let part = meter.get().filter(|part| *part < 1.0);
        if let Some(progress) = part.filter(|_| part != shown) {
            shown = part;
            telling.tell(progress, None);
        }
    }
}

/// A load that is told of. Whoever waits for it may go at any time.
struct Telling<'a> {
    ctx: &'a Ctx,
    model: &'a str,
    meter: &'a Meter,
    over: bool,
}

impl Telling<'_> {
    fn tell(&self, progress: f32, error: Option<String>) {
        // Nobody depends on it: the next word says more.
        let _ = self.ctx.emit("llama:progress", &Progress { model: self.model.to_owned(), progress, error });
    }

    fn end(mut self, refusal: Option<&Refusal>) {
        self.over = true;
        if let Some(part) = self.meter.get() {
            let progress = if refusal.is_some() { part } else { 1.0 };
            self.tell(progress, refusal.map(|refusal| refusal.message.clone()));
        }
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(part) = self.meter.get().filter(|_| !self.over) {
            self.tell(part, Some("nobody waits for it any more".to_owned()));
        }
    }
}
