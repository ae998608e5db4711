//! The connection that asks: figures once a second, inspections on demand.
//!
//! This is a monitor's refresh: figures that change with every request are
//! read at the pace of a person's eye, and only while connected. Everything
//! that *happens* is heard by the [`feed`] instead, on a connection of its
//! own, so that the round trips measured here wait behind no events.
//!
//! # Failure
//!
//! A connection that cannot be made or breaks is reported and made again,
//! first after [`RETRY_MIN`], then up to [`RETRY_MAX`] apart. A refusal of one
//! request is shown, and the connection goes on.

pub(crate) mod feed;
#[cfg(test)]
pub(crate) mod tests;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ksi_client::{CallOptions, Client, Error, Options};
use ksi_protocol::system::{PluginInspection, PluginName, Status};
use tokio::sync::mpsc::{Receiver, Sender};

use crate::state::{Ask, Input, Link};

/// Time between two refreshes.
const REFRESH: Duration = Duration::from_secs(1);

/// Time after which an answer is no longer waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time before the first new attempt to connect: a restart of the daemon
/// takes less.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(100);

/// Longest time between two attempts.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(1);

/// Name under which the monitor is known to the daemon.
pub(crate) const CLIENT_NAME: &str = concat!("ksi-monitor ", env!("CARGO_PKG_VERSION"));

/// The monitor is leaving: nobody takes inputs any more.
#[derive(Debug)]
pub(crate) struct Leaving;

/// Connects, asks, and connects again, until the monitor leaves.
pub(crate) async fn watch(options: Options, inputs: Sender<Input>, mut asks: Receiver<Ask>) {
    let started = Instant::now();
    let mut retry = RETRY_MIN;
    loop {
        let reason = match Client::connect(options.clone().reconnect(false)).await {
            Ok(client) => {
                retry = RETRY_MIN;
                let welcome = client.welcome();
                let up = Input::Up {
                    link: Link::Requests,
                    server: welcome.server.clone(),
                    boot: welcome.boot.clone(),
                    at_ms: now_ms(),
                };
                if inputs.send(up).await.is_err() {
                    return;
                }
                match serve(&client, &inputs, &mut asks, started).await {
                    Ok(Leaving) => return,
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        let down = Input::Down { link: Link::Requests, reason, at_ms: now_ms() };
        if inputs.send(down).await.is_err() {
            return;
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// Serves one connection until it breaks.
async fn serve(
    client: &Client,
    inputs: &Sender<Input>,
    asks: &mut Receiver<Ask>,
    started: Instant,
) -> Result<Leaving, Error> {
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let found = tokio::select! {
            _ = refresh.tick() => figures(client, started).await?,
            ask = asks.recv() => match ask {
                Some(Ask::Inspect(name)) => vec![inspect(client, name).await?],
                None => return Ok(Leaving),
            },
        };
        for input in found {
            if inputs.send(input).await.is_err() {
                return Ok(Leaving);
            }
        }
    }
}

/// One refresh: a timed round trip, then the figures.
async fn figures(client: &Client, started: Instant) -> Result<Vec<Input>, Error> {
    let sent = Instant::now();
    let health = client.request_raw("system:health", ksi_protocol::empty(), call()).await;
    let taken = sent.elapsed();
    let mut inputs = vec![Input::Latency(said_no(health)?.is_ok().then_some(taken))];
    let status = client.request_raw("system:status", ksi_protocol::empty(), call()).await;
    let at_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let decoded = said_no(status)?
        .and_then(|data| ksi_protocol::decode::<Status>(&data).map_err(|refusal| refusal.to_string()));
    inputs.push(match decoded {
        Ok(status) => Input::Status { status: Box::new(status), at_ms },
        Err(why) => Input::Notice(format!("no figures: {why}")),
    });
    Ok(inputs)
}

async fn inspect(client: &Client, name: String) -> Result<Input, Error> {
    let answer = match ksi_protocol::encode(&PluginName { name: name.clone() }) {
        Ok(request) => said_no(client.request_raw("plugin:inspect", request, call()).await)?,
        Err(error) => Err(error.to_string()),
    };
    let answer = answer.and_then(|data| {
        ksi_protocol::decode::<PluginInspection>(&data).map(Box::new).map_err(|refusal| refusal.to_string())
    });
    Ok(Input::Inspected { name, answer })
}

fn call() -> CallOptions {
    CallOptions::timeout(TIMEOUT)
}

/// Keeps apart a request that failed and a connection that did: only the
/// second ends what is served.
fn said_no<T>(answer: Result<T, Error>) -> Result<Result<T, String>, Error> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(error @ (Error::Refused(_) | Error::TimedOut { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
