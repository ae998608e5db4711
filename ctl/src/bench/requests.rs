//! Requests: one after the other, and many in flight.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ksi_client::{CallOptions, Client};
use ksi_protocol::system::{PluginList, PluginLoad, PluginName, PluginStatus};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Measured, TEXT, placement};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, encoded},
};

/// Requests before the clock starts: caches, buffers and the daemon's
/// allocator are then warm.
const WARM_UP: usize = 1000;

/// Asks once.
pub(super) async fn timed(client: &Client, event: &str, payload: &Bytes) -> Result<Duration> {
    let began = Instant::now();
    client.request_raw(event, payload.clone(), CallOptions::default()).await?;
    Ok(began.elapsed())
}

/// One request in flight.
///
/// # Errors
///
/// Fails where the event is not answered.
pub(super) async fn one_by_one(
    at: &Invocation,
    test: &'static str,
    event: &str,
    count: usize,
) -> Result<Measured> {
    let client = at.connect().await?;
    let placement = placement(at, &client, event).await?;
    let payload = encoded(&json!({ "text": TEXT }))?;
    for _ in 0..WARM_UP.min(count) {
        timed(&client, event, &payload).await?;
    }
    let mut times = Vec::with_capacity(count);
    let began = Instant::now();
    for _ in 0..count {
        times.push(timed(&client, event, &payload).await?);
    }
    Ok(Measured { placement, ..Measured::of(test, times, began.elapsed()) })
}

/// The same to a plugin in a process of its own. One that is switched off in
/// the manifest, as the shipped `echo_child` is, is loaded for the time of the
/// measurement.
///
/// # Errors
///
/// Fails where the plugin cannot be loaded, or the event is not answered.
pub(super) async fn in_a_child(at: &Invocation, event: &str, count: usize) -> Result<Measured> {
    let client = at.connect().await?;
    let namespace = event.split(':').next().unwrap_or_default();
    let list: PluginList = at.ask(&client, "plugin:list", &json!({})).await?;
    let is_off = list.plugins.iter().any(|plugin| plugin.name == namespace && !plugin.wanted);
    if is_off {
        let load = PluginLoad { library: namespace.to_owned(), placement: None };
        let _: PluginStatus = at.ask(&client, "plugin:load", &load).await?;
    }
    let measured = one_by_one(at, "rr-child", event, count).await;
    if is_off {
        let unload = PluginName { name: namespace.to_owned() };
        let _: PluginStatus = at.ask(&client, "plugin:unload", &unload).await?;
    }
    measured
}

/// `in_flight` requests on one connection, `count` in all.
///
/// # Errors
///
/// Fails where the event is not answered.
pub(super) async fn pipelined(
    at: &Invocation,
    event: &str,
    in_flight: usize,
    count: usize,
) -> Result<Measured> {
    let client = at.connect().await?;
    let placement = placement(at, &client, event).await?;
    let payload = encoded(&json!({ "text": TEXT }))?;
    let each = count.div_ceil(in_flight);
    run(&client, event, &payload, in_flight, (WARM_UP / in_flight).clamp(1, each)).await?;
    let began = Instant::now();
    let times = run(&client, event, &payload, in_flight, each).await?;
    Ok(Measured { placement, ..Measured::of("pipelined", times, began.elapsed()) })
}

/// `workers` tasks that each ask `each` times.
pub(super) async fn run(
    client: &Client,
    event: &str,
    payload: &Bytes,
    workers: usize,
    each: usize,
) -> Result<Vec<Duration>> {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (client, event, payload) = (client.clone(), event.to_owned(), payload.clone());
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(each);
            for _ in 0..each {
                times.push(timed(&client, &event, &payload).await?);
            }
            Ok::<_, Failure>(times)
        });
    }
    let mut times = Vec::with_capacity(workers * each);
    while let Some(done) = tasks.join_next().await {
        times.extend(done.map_err(|error| Failure::failed(format!("a worker ended: {error}")))??);
    }
    Ok(times)
}
