//! KSI's durable requests, driven as [`crate::nats::jetstream`] drives its
//! server: accepts of one client, one after the other and 256 in flight.
//! Accepted means synced with the disk.

use std::{path::Path, time::Instant};

use anyhow::ensure;
use ksi_protocol::{EventName, Frame, frame::Request};
use serde_json::json;

use super::Wire;
use crate::{IN_FLIGHT, KEPT, KEPT_ONE_BY_ONE, figures::Figures};

/// Measures the daemon behind `socket` with a durable event that takes
/// `{"text"}`.
pub(crate) async fn measure(socket: &Path, event: &str) -> anyhow::Result<()> {
    let mut wire = Wire::connect(socket).await?;
    let event = EventName::parse(event)?;
    let data = ksi_protocol::encode(&json!({"text": "0123456789abcdef"}))?;
    let request = |id: usize| Frame::Request(Request::new(id as u64, event.clone(), data.clone()));
    for id in 0..KEPT_ONE_BY_ONE / 10 {
        wire.put(&request(id))?;
        accepted(&mut wire).await?;
    }
    let mut figures = Figures::start("ksi-durable-single");
    for id in 0..KEPT_ONE_BY_ONE {
        let start = Instant::now();
        wire.put(&request(id))?;
        accepted(&mut wire).await?;
        figures.note(start.elapsed());
    }
    figures.print(KEPT_ONE_BY_ONE);

    let figures = Figures::start("ksi-durable-pipelined");
    for id in 0..IN_FLIGHT {
        wire.put(&request(id))?;
    }
    for answered in 1..=KEPT {
        accepted(&mut wire).await?;
        if answered + IN_FLIGHT <= KEPT {
            wire.put(&request(answered + IN_FLIGHT))?;
        }
    }
    figures.print(KEPT);
    Ok(())
}

async fn accepted(wire: &mut Wire) -> anyhow::Result<()> {
    let body = wire.body().await?;
    ensure!(body.starts_with(b"\x81\xa8accepted"), "not accepted: {:?}", Frame::decode(&body.freeze()));
    Ok(())
}
