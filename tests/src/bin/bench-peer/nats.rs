//! NATS core as a peer: the text protocol spoken directly, so that no client
//! library of ours or theirs stands between the figures.
//!
//! Three things are measured as `ksi bench` measures them: a request from one
//! client answered by another, 256 of those in flight, and one emitter with 64
//! subscribers. Without `nats-server` in the path it says so and fails.

pub(crate) mod jetstream;

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time,
};

use crate::{IN_FLIGHT, ONE_BY_ONE, PIPELINED, fanout, figures::Figures};

/// Time a server or responder may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const PAYLOAD: &[u8] = b"{\"text\":\"0123456789abcdef\"}";

/// What the server says to a client.
enum Said {
    /// A message, with the subject to answer to where one is wanted.
    Message { reply: Option<String>, payload: Vec<u8> },
    /// The answer to `PING`: all that was sent before it has been taken in.
    Pong,
}

/// One connection.
struct Wire {
    stream: TcpStream,
    incoming: BytesMut,
    outgoing: Vec<u8>,
}

impl Wire {
    /// Connects and waits until the server has taken the connection in.
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let mut wire = Self { stream, incoming: BytesMut::with_capacity(64 * 1024), outgoing: Vec::new() };
        wire.write(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
        wire.settle().await?;
        Ok(wire)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) {
        let head = format!("PUB {subject} {reply} {}\r\n", payload.len());
        self.write(head.as_bytes());
        self.write(payload);
        self.write(b"\r\n");
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        Ok(())
    }

    /// Waits until the server has taken in all that was sent.
    async fn settle(&mut self) -> anyhow::Result<()> {
        self.write(b"PING\r\n");
        self.flush().await?;
        while !matches!(self.receive().await?, Said::Pong) {}
        Ok(())
    }

    async fn receive(&mut self) -> anyhow::Result<Said> {
        loop {
            if let Some(said) = self.parse()? {
                return Ok(said);
            }
            if !self.outgoing.is_empty() {
                self.flush().await?;
            }
            ensure!(self.stream.read_buf(&mut self.incoming).await? > 0, "the server has gone");
        }
    }

    /// What is whole in the buffer; `INFO` is skipped and `PING` answered.
    fn parse(&mut self) -> anyhow::Result<Option<Said>> {
        loop {
            let Some(end) = self.incoming.windows(2).position(|pair| pair == b"\r\n") else {
                return Ok(None);
            };
            let line = std::str::from_utf8(&self.incoming[..end])?;
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["MSG", _, _, .., length] => {
                    let length: usize = length.parse()?;
                    let reply = (words.len() == 5).then(|| words[3].to_owned());
                    if self.incoming.len() < end + 2 + length + 2 {
                        return Ok(None);
                    }
                    self.incoming.advance(end + 2);
                    let payload = self.incoming.split_to(length).to_vec();
                    self.incoming.advance(2);
                    return Ok(Some(Said::Message { reply, payload }));
                }
                ["PING"] => self.outgoing.extend_from_slice(b"PONG\r\n"),
                ["INFO", ..] => {}
                ["PONG"] => {
                    self.incoming.advance(end + 2);
                    return Ok(Some(Said::Pong));
                }
                _ => bail!("the server said: {line}"),
            }
            self.incoming.advance(end + 2);
        }
    }

    async fn message(&mut self) -> anyhow::Result<(Option<String>, Vec<u8>)> {
        loop {
            if let Said::Message { reply, payload } = self.receive().await? {
                return Ok((reply, payload));
            }
        }
    }
}

/// Answers every request on `echo` until the server goes.
pub(crate) async fn respond(port: u16) -> anyhow::Result<()> {
    let mut wire = Wire::connect(port).await?;
    wire.write(b"SUB echo 1\r\n");
    wire.settle().await?;
    loop {
        let (reply, payload) = wire.message().await?;
        if let Some(reply) = reply {
            wire.publish(&reply, "", &payload);
        }
        // Answers to requests that arrived together leave together.
        if wire.incoming.is_empty() {
            wire.flush().await?;
        }
    }
}

/// Starts a server and a responder, and measures them.
pub(crate) async fn measure() -> anyhow::Result<()> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let _server = server(port)?;
    let mut wire =
        time::timeout(START_TIMEOUT, connected(port)).await.context("nats-server does not answer")?;
    let _responder = Command::new(std::env::current_exe()?)
        .args(["nats", "respond", &port.to_string()])
        .kill_on_drop(true)
        .spawn()?;
    wire.write(b"SUB inbox.* 1\r\n");
    time::timeout(START_TIMEOUT, answered(&mut wire)).await.context("the responder does not answer")??;
    one_by_one(&mut wire).await?;
    pipelined(&mut wire).await?;
    fanout::measure::<Wire>("nats-fanout", port).await
}

fn server(port: u16) -> anyhow::Result<Child> {
    Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("nats-server cannot be started; is it installed?")
}

async fn connected(port: u16) -> Wire {
    let mut again = time::interval(Duration::from_millis(20));
    loop {
        again.tick().await;
        if let Ok(wire) = Wire::connect(port).await {
            return wire;
        }
    }
}

/// Asks until the responder, which is still starting, has answered once, and
/// takes in what else is under way.
async fn answered(wire: &mut Wire) -> anyhow::Result<()> {
    let mut again = time::interval(Duration::from_millis(20));
    loop {
        again.tick().await;
        wire.publish("echo", "inbox.0", PAYLOAD);
        wire.flush().await?;
        if time::timeout(Duration::from_millis(200), wire.message()).await.is_ok() {
            return wire.settle().await;
        }
    }
}

async fn one_by_one(wire: &mut Wire) -> anyhow::Result<()> {
    let mut figures = Figures::start("nats-rr");
    for _ in 0..ONE_BY_ONE {
        let start = Instant::now();
        wire.publish("echo", "inbox.1", PAYLOAD);
        wire.flush().await?;
        wire.message().await?;
        figures.note(start.elapsed());
    }
    figures.print(ONE_BY_ONE);
    Ok(())
}

async fn pipelined(wire: &mut Wire) -> anyhow::Result<()> {
    let figures = Figures::start("nats-pipelined");
    for _ in 0..IN_FLIGHT {
        wire.publish("echo", "inbox.2", PAYLOAD);
    }
    wire.flush().await?;
    for answered in 1..=PIPELINED {
        wire.message().await?;
        if answered + IN_FLIGHT <= PIPELINED {
            // Leaves with the others that this batch of answers allows.
            wire.publish("echo", "inbox.2", PAYLOAD);
        }
    }
    figures.print(PIPELINED);
    Ok(())
}

impl fanout::Wire for Wire {
    type Address = u16;

    async fn connect(port: u16) -> anyhow::Result<Self> {
        Self::connect(port).await
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        self.write(b"SUB fan 1\r\n");
        self.settle().await
    }

    async fn hear(&mut self) -> anyhow::Result<()> {
        self.message().await.map(drop)
    }

    fn tell(&mut self) -> anyhow::Result<()> {
        self.publish("fan", "", PAYLOAD);
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.flush().await
    }
}
