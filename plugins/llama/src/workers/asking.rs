//! How a request reaches the process of its model, and how its answer comes back.
//!
//! Payloads are passed on as they are, parts as they come. Whoever gives up here
//! gives up there: the daemon cancels what is asked on behalf of a request with
//! it, and its deadline is theirs.

use std::time::{Duration, Instant};

use ksi_provider::{Delta, Generated};
use ksi_sdk::ForwardOptions;
use ksi_sdk::prelude::{Bytes, Chunks, Code, Ctx, Part, Refusal, Serialize, json};
use ksi_sdk::protocol::system::PluginStatus;
use ksi_sdk::protocol::{EventName, decode};

use super::trouble::Health;
use super::{Use, Workers, encoded, trouble};
use crate::payload::{LoadProgress, LoadReport};
use crate::progress::{Meter, told};
use crate::sending::patiently;
use crate::tuning::Tuning;

impl Workers {
    /// Has a model answer in one piece, loading it first where that is needed.
    ///
    /// # Errors
    ///
    /// As [`Workers::load`], or what the model's process refuses;
    /// `plugin_restarted` where that died over it.
    pub(crate) async fn ask(
        &self,
        ctx: &Ctx,
        name: &str,
        action: &str,
        data: &[u8],
    ) -> Result<Bytes, Refusal> {
        Ok(self.pass(ctx, name, action, data, None::<&Chunks<Delta>>).await?.0)
    }

    /// The same for text, in pieces.
    ///
    /// # Errors
    ///
    /// As [`Workers::ask`].
    pub(crate) async fn generate(
        &self,
        ctx: &Ctx,
        name: &str,
        data: &[u8],
        out: &Chunks<Delta>,
    ) -> Result<Bytes, Refusal> {
        let (end, load_time) = self.pass(ctx, name, "generate", data, Some(out)).await?;
        let Some(time) = load_time else { return Ok(end) };
        let mut generated: Generated = decode(&end)?;
        // Only here is it known that the model was loaded for this.
        generated.timings.load_ms = Some(time.as_secs_f64() * 1000.0);
        encoded(&generated)
    }

    /// The end of the answer, and how long the model took to load where it was
    /// loaded for this.
    async fn pass<C: Serialize>(
        &self,
        ctx: &Ctx,
        name: &str,
        action: &str,
        data: &[u8],
        out: Option<&Chunks<C>>,
    ) -> Result<(Bytes, Option<Duration>), Refusal> {
        let received = Instant::now();
        let (using, load_time) = match self.find(name)? {
            Some(using) => (using, None),
            None => {
                let loaded = self.load(ctx, name, &Tuning::default(), None).await?;
                (loaded.using, loaded.fresh.then(|| received.elapsed()))
            }
        };
        let plugin = &using.process.plugin;
        let mut answer = forward(ctx, plugin, action, data, passed_on(ctx, out)).await;
        let mut knew = true;
        // As often as it dies in between, its supervisor gives up on it at last; one that is there and does
        // not know what it is asked will not either.
        while let Err(refusal) = &answer
            && (is_absent(refusal) || (is_unseen(refusal) && std::mem::take(&mut knew)))
        {
            self.await_return(ctx, name, &using).await?;
            answer = forward(ctx, plugin, action, data, passed_on(ctx, out)).await;
        }
        match answer {
            Ok(end) => {
                self.set_health(plugin, Health::Up);
                Ok((end, load_time))
            }
            Err(refusal) if refusal.code == Code::PluginRestarted => Err(trouble::lost(name, &refusal)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Waits until a process is there again that has died, or was taken away.
    async fn await_return(&self, ctx: &Ctx, name: &str, using: &Use) -> Result<(), Refusal> {
        let process = &using.process;
        let back = ctx.request::<_, PluginStatus>("plugin:instance:start", &process.start).await;
        match back {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.code == Code::Unavailable && !refusal.retryable => {
                self.set_health(&process.plugin, Health::Held(refusal.message.clone()));
                Err(trouble::held(name, &process.plugin, &refusal.message))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Has a process that has come back load its model again.
    pub(super) async fn reload(&self, ctx: &Ctx, plugin: &str) {
        let name = {
            let wards = self.wards.borrow();
            let theirs = wards.iter().find(|(_, ward)| ward.process.plugin == plugin);
            theirs.map(|(name, _)| name.clone())
        };
        let Some(name) = name else { return };
        let meter = Meter::default();
        meter.set(0.0);
        match told(ctx, &name, &meter, load(ctx, plugin, &meter, None)).await {
            Ok(_) => {
                self.moves.loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.set_health(plugin, Health::Up);
                ctx.info(&format!("{plugin} has its model again"));
            }
            // What becomes of it, its runner tells.
            Err(refusal) if refusal.code == Code::PluginRestarted || is_unseen(&refusal) => {}
            Err(refusal) => ctx.warn(&format!("{plugin} did not load its model again: {refusal}")),
        }
    }
}

/// Has a process load its model, and shows how far that is.
pub(super) async fn load(
    ctx: &Ctx,
    plugin: &str,
    meter: &Meter,
    out: Option<&Chunks<LoadProgress>>,
) -> Result<LoadReport, Refusal> {
    let mut pass_on = passed_on(ctx, out);
    let nothing = encoded(&json!({}))?;
    let end = forward(ctx, plugin, "load", &nothing, async |part| {
        meter.set(decode::<LoadProgress>(part)?.progress);
        pass_on(part).await
    });
    decode(&end.await?)
}

/// What sends parts of an answer on.
fn passed_on<C: Serialize>(
    ctx: &Ctx,
    out: Option<&Chunks<C>>,
) -> impl AsyncFnMut(&Bytes) -> Result<(), Refusal> {
    async move |part: &Bytes| match out {
        Some(out) => patiently(ctx, || out.send_raw(part)).await,
        None => Ok(()),
    }
}

/// Asks a process, on behalf of whoever the context is about; the end of the
/// answer, whose parts go to `pass_on` as they come.
pub(super) async fn forward(
    ctx: &Ctx,
    plugin: &str,
    action: &str,
    data: &[u8],
    mut pass_on: impl AsyncFnMut(&Bytes) -> Result<(), Refusal>,
) -> Result<Bytes, Refusal> {
    let event = EventName::parse(&format!("{plugin}:{action}"))
        .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    let options = ForwardOptions { timeout: ctx.deadline(), ..ForwardOptions::default() };
    let mut answers = ctx.forward(&event, data, options)?;
    loop {
        match answers.next_raw().await {
            Some(Ok(Part::Chunk(part))) => pass_on(&part).await?,
            Some(Ok(Part::End(end))) => return Ok(end),
            Some(Err(refusal)) => return Err(refusal),
            None => return Err(Refusal::new(Code::Internal, "the answer had no end")),
        }
    }
}

/// Whether a request has certainly not reached the process that it was for.
fn is_unseen(refusal: &Refusal) -> bool {
    refusal.code == Code::UnknownEvent || is_absent(refusal)
}

/// Whether the process that it was for is away.
fn is_absent(refusal: &Refusal) -> bool {
    refusal.details.as_ref().is_some_and(|details| details["absent"].is_string())
}
