//! A running KSI daemon, driven as [`crate::nats`] drives its server: frames
//! are written and taken apart by hand, many in one write.
//!
//! Two things are measured: 256 requests in flight on one connection, and one
//! emitter with 64 subscribers, each on a connection of its own.

pub(crate) mod durable;

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use bytes::{Buf as _, BytesMut};
use ksi_protocol::{
    EventName, Frame, PROTOCOL_VERSION, Pattern,
    frame::{Class, Emit, Hello, Request, Subscribe},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{IN_FLIGHT, PIPELINED, echo::request, fanout, figures::Figures};

struct Wire {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// What is told in the fan-out.
    fact: Frame,
}

impl Wire {
    async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let fact = Frame::Emit(Emit {
            id: None,
            event: EventName::parse("bench:fan")?,
            data: ksi_protocol::encode(&json!({"text": "0123456789abcdef"}))?,
            correlation_id: None,
            chain: None,
        });
        let incoming = BytesMut::with_capacity(64 * 1024);
        let mut wire = Self { stream, incoming, outgoing: BytesMut::new(), fact };
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
    fanout::measure::<Wire>("ksi-fanout", socket.to_owned()).await
}

async fn pipelined(wire: &mut Wire) -> anyhow::Result<()> {
    let Frame::Request(request) = request(0)? else { bail!("not a request") };
    let ask = |id: usize| Frame::Request(Request { id: id as u64, ..request.clone() });
    let figures = Figures::start("ksi-pipelined");
    for id in 0..IN_FLIGHT {
        wire.put(&ask(id))?;
    }
    for answered in 1..=PIPELINED {
        let body = wire.body().await?;
        ensure!(body.starts_with(b"\x81\xa5reply"), "not a reply: {:?}", Frame::decode(&body.freeze()));
        if answered + IN_FLIGHT <= PIPELINED {
            wire.put(&ask(answered + IN_FLIGHT))?;
        }
    }
    figures.print(PIPELINED);
    Ok(())
}

impl fanout::Wire for Wire {
    type Address = PathBuf;

    async fn connect(socket: PathBuf) -> anyhow::Result<Self> {
        Self::connect(&socket).await
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let subscribe = Subscribe::new(1, Pattern::parse("bench:fan")?, Class::Live);
        self.put(&Frame::Subscribe(subscribe))?;
        self.flush().await?;
        let Frame::Reply { .. } = self.frame().await? else { bail!("not subscribed") };
        Ok(())
    }

    async fn hear(&mut self) -> anyhow::Result<()> {
        let body = self.body().await?;
        ensure!(body.starts_with(b"\x81\xa5event"), "lost: {:?}", Frame::decode(&body.freeze()));
        Ok(())
    }

    fn tell(&mut self) -> anyhow::Result<()> {
        Ok(self.fact.encode(&mut self.outgoing)?)
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.flush().await
    }
}
