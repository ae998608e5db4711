//! NATS JetStream: what is published is kept in a file before it is
//! acknowledged.
//!
//! The storage is the default: written to the file, and not synced with the
//! disk (the server does so every two minutes), so a power cut loses what was
//! acknowledged since. Messages of one publisher, one after the other and 256
//! in flight.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use tokio::{
    process::{Child, Command},
    time,
};

use super::{PAYLOAD, START_TIMEOUT, Wire, connected};
use crate::{IN_FLIGHT, KEPT, KEPT_ONE_BY_ONE, figures::Figures};

/// Starts a server with an empty store and measures it.
pub(crate) async fn measure() -> anyhow::Result<()> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let store = tempfile::tempdir()?;
    let _server = server(port, store.path())?;
    let mut wire =
        time::timeout(START_TIMEOUT, connected(port)).await.context("nats-server does not answer")?;
    wire.write(b"SUB inbox.* 1\r\n");
    create_stream(&mut wire).await?;
    for _ in 0..KEPT_ONE_BY_ONE / 10 {
        publish_one(&mut wire).await?;
    }
    let mut figures = Figures::start("jetstream-single");
    for _ in 0..KEPT_ONE_BY_ONE {
        let start = Instant::now();
        publish_one(&mut wire).await?;
        figures.note(start.elapsed());
    }
    figures.print(KEPT_ONE_BY_ONE);
    pipelined(&mut wire).await
}

fn server(port: u16, store: &Path) -> anyhow::Result<Child> {
    Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
        .arg(store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("nats-server cannot be started; is it installed?")
}

/// Makes the stream that keeps what is published to `keep`.
async fn create_stream(wire: &mut Wire) -> anyhow::Result<()> {
    let stream = br#"{"name":"kept","subjects":["keep"],"storage":"file"}"#;
    wire.publish("$JS.API.STREAM.CREATE.kept", "inbox.0", stream);
    wire.flush().await?;
    let (_, answer) = time::timeout(START_TIMEOUT, wire.message()).await??;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    ensure!(answer["config"]["storage"] == "file", "no stream: {answer}");
    Ok(())
}

async fn publish_one(wire: &mut Wire) -> anyhow::Result<()> {
    wire.publish("keep", "inbox.1", PAYLOAD);
    wire.flush().await?;
    acknowledged(wire).await
}

/// Waits for one acknowledgement: `{"stream":"kept", "seq":1}`.
async fn acknowledged(wire: &mut Wire) -> anyhow::Result<()> {
    let (_, answer) = wire.message().await?;
    let kept = answer.starts_with(br#"{"stream":"kept""#);
    ensure!(kept, "not kept: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn pipelined(wire: &mut Wire) -> anyhow::Result<()> {
    let figures = Figures::start("jetstream-pipelined");
    for _ in 0..IN_FLIGHT {
        wire.publish("keep", "inbox.2", PAYLOAD);
    }
    wire.flush().await?;
    for answered in 1..=KEPT {
        acknowledged(wire).await?;
        if answered + IN_FLIGHT <= KEPT {
            // Leaves with the others that this batch of answers allows.
            wire.publish("keep", "inbox.2", PAYLOAD);
        }
    }
    figures.print(KEPT);
    Ok(())
}
