//! The bare echo: a Unix socket, length-delimited MessagePack frames, and
//! nothing between them.
//!
//! The server decodes each request and writes its reply at once; it has no
//! names, no routing, no limits and no second connection.

use std::{path::Path, process::Stdio, time::Instant};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use ksi_protocol::{EventName, Frame, frame::Request};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    process::Command,
};

use crate::{IN_FLIGHT, ONE_BY_ONE, PIPELINED, Threads, figures::Figures};

/// One side of the connection.
struct Wire {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: BytesMut::with_capacity(64 * 1024), outgoing: BytesMut::new() }
    }

    /// The next frame; `None` at the end of the stream.
    async fn receive(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::split(&mut self.incoming)? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn send(&mut self, frame: &Frame) -> anyhow::Result<()> {
        frame.encode(&mut self.outgoing)?;
        self.stream.write_all_buf(&mut self.outgoing).await?;
        Ok(())
    }
}

/// Answers one connection until it ends. Says `ready` on standard output once
/// it listens.
pub(crate) async fn serve(socket: &Path) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    println!("ready");
    let mut wire = Wire::new(listener.accept().await?.0);
    while let Some(frame) = wire.receive().await? {
        let Frame::Request(Request { id, data, .. }) = frame else { bail!("not a request: {frame:?}") };
        wire.send(&Frame::Reply { id, data }).await?;
    }
    Ok(())
}

/// The request that is asked over and over, of a bare echo and of KSI.
pub(crate) fn request(id: u64) -> anyhow::Result<Frame> {
    let data = ksi_protocol::encode(&json!({"text": "0123456789abcdef"}))?;
    Ok(Frame::Request(Request::new(id, EventName::parse("echo:say")?, data)))
}

/// Starts a server and measures it.
pub(crate) async fn measure(threads: Threads) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("echo.sock");
    let (one_by_one, many) = match threads {
        Threads::Many => ("echo-rr", "echo-pipelined"),
        Threads::One => ("echo-one-thread-rr", "echo-one-thread-pipelined"),
    };
    let mut server = Command::new(std::env::current_exe()?)
        .args((threads == Threads::One).then_some("--one-thread"))
        .args(["echo", "serve"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut said = String::new();
    let stdout = server.stdout.take().context("its output is piped")?;
    BufReader::new(stdout).read_line(&mut said).await?;
    let mut wire = Wire::new(UnixStream::connect(&socket).await?);

    for _ in 0..ONE_BY_ONE / 10 {
        ask(&mut wire).await?;
    }
    let mut figures = Figures::start(one_by_one);
    for _ in 0..ONE_BY_ONE {
        let start = Instant::now();
        ask(&mut wire).await?;
        figures.note(start.elapsed());
    }
    figures.print(ONE_BY_ONE);
    pipelined(many, &mut wire).await
}

async fn ask(wire: &mut Wire) -> anyhow::Result<()> {
    wire.send(&request(1)?).await?;
    wire.receive().await?.context("the server has gone")?;
    Ok(())
}

async fn pipelined(test: &'static str, wire: &mut Wire) -> anyhow::Result<()> {
    let mut figures = Figures::start(test);
    let mut sent = vec![Instant::now(); IN_FLIGHT];
    for (slot, sent) in sent.iter_mut().enumerate() {
        *sent = Instant::now();
        wire.send(&request(slot as u64)?).await?;
    }
    for answered in 1..=PIPELINED {
        let Some(Frame::Reply { id, .. }) = wire.receive().await? else { bail!("no reply") };
        let slot = usize::try_from(id)?;
        figures.note(sent[slot].elapsed());
        if answered + IN_FLIGHT <= PIPELINED {
            sent[slot] = Instant::now();
            wire.send(&request(id)?).await?;
        }
    }
    figures.print(PIPELINED);
    Ok(())
}
