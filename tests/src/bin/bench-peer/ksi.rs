//! A running KSI daemon, driven as [`crate::nats`] drives its server: frames
//! are written and taken apart by hand, many in one write.
//!
//! Two things are measured: 256 requests in flight on one connection, and one
//! emitter with 64 subscribers, each on a connection of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use ksi_protocol::{
    EventName, Frame, PROTOCOL_VERSION, Pattern,
    frame::{Class, Emit, Hello, Subscribe},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
};

use crate::{FANOUT, IN_FLIGHT, PIPELINED, SUBSCRIBERS, echo::request, figures::Figures};

/// Events the emitter may be ahead of its first subscriber: far below the
/// daemon's ring, so that nothing is dropped.
const FANOUT_AHEAD: usize = 4_000;

struct Wire {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Wire {
    async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let mut wire =
            Self { stream, incoming: BytesMut::with_capacity(64 * 1024), outgoing: BytesMut::new() };
        let hello = Hello { version: PROTOCOL_VERSION, client: "bench-peer".into(), features: Vec::new() };
        wire.put(&Frame::Hello(hello))?;
        wire.flush().await?;
        match wire.frame().await? {
            Frame::Welcome(_) => Ok(wire),
            other => bail!("no welcome: {other:?}"),
        }
    }

    fn put(&mut self, frame: &Frame) -> anyhow::Result<()> {
        Ok(frame.encode(&mut self.outgoing)?)
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.write_all_buf(&mut self.outgoing).await?)
    }

    async fn frame(&mut self) -> anyhow::Result<Frame> {
        let body = self.body().await?;
        Ok(Frame::decode(&body.freeze())?)
    }

    /// The next frame, not decoded; what waits to be sent leaves before this
    /// waits, with all that the last batch of answers allowed.
    async fn body(&mut self) -> anyhow::Result<BytesMut> {
        loop {
            if let Some(prefix) = self.incoming.first_chunk::<4>() {
                let length = u32::from_be_bytes(*prefix) as usize;
                if self.incoming.len() >= 4 + length {
                    self.incoming.advance(4);
                    return Ok(self.incoming.split_to(length));
                }
            }
            if !self.outgoing.is_empty() {
                self.flush().await?;
            }
            ensure!(self.stream.read_buf(&mut self.incoming).await? > 0, "the daemon has gone");
        }
    }
}

/// Measures the daemon behind `socket`.
pub(crate) async fn measure(socket: &Path) -> anyhow::Result<()> {
    let mut wire = Wire::connect(socket).await?;
    pipelined(&mut wire).await?;
    fanout(socket).await
}

async fn pipelined(wire: &mut Wire) -> anyhow::Result<()> {
    let figures = Figures::start("ksi-pipelined");
    for id in 0..IN_FLIGHT {
        wire.put(&request(id as u64)?)?;
    }
    for answered in 1..=PIPELINED {
        let body = wire.body().await?;
        ensure!(body.starts_with(b"\x81\xa5reply"), "not a reply: {:?}", Frame::decode(&body.freeze()));
        if answered + IN_FLIGHT <= PIPELINED {
            wire.put(&request((answered + IN_FLIGHT) as u64)?)?;
        }
    }
    figures.print(PIPELINED);
    Ok(())
}

/// One emitter, many subscribers, each on a connection of its own.
async fn fanout(socket: &Path) -> anyhow::Result<()> {
    let mut subscribers = JoinSet::new();
    let (ready, mut are_ready) = tokio::sync::mpsc::channel::<()>(SUBSCRIBERS);
    let (progress, mut of_first) = tokio::sync::watch::channel(0_usize);
    for number in 0..SUBSCRIBERS {
        let (ready, progress) = (ready.clone(), (number == 0).then(|| progress.clone()));
        let socket: PathBuf = socket.to_owned();
        subscribers.spawn(async move {
            let mut wire = Wire::connect(&socket).await?;
            let subscribe = Subscribe { id: 1, pattern: Pattern::parse("bench:fan")?, class: Class::Live };
            wire.put(&Frame::Subscribe(subscribe))?;
            wire.flush().await?;
            let Frame::Reply { .. } = wire.frame().await? else { bail!("not subscribed") };
            ready.send(()).await?;
            for count in 1..=FANOUT {
                let body = wire.body().await?;
                ensure!(body.starts_with(b"\x81\xa5event"), "lost: {:?}", Frame::decode(&body.freeze()));
                if let Some(progress) = progress.as_ref().filter(|_| count % 100 == 0) {
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
    let mut wire = Wire::connect(socket).await?;
    let emit = Frame::Emit(Emit {
        id: None,
        event: EventName::parse("bench:fan")?,
        data: ksi_protocol::encode(&json!({"text": "0123456789abcdef"}))?,
        correlation_id: None,
    });
    let figures = Figures::start("ksi-fanout");
    for count in 1..=FANOUT {
        wire.put(&emit)?;
        if count % 100 == 0 {
            wire.flush().await?;
            of_first.wait_for(|received| received + FANOUT_AHEAD >= count).await?;
        }
    }
    while let Some(subscriber) = subscribers.join_next().await {
        subscriber??;
    }
    figures.print(FANOUT * SUBSCRIBERS);
    Ok(())
}
