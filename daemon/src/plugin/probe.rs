//! `plugin:probe`: a child with the sandbox of a plugin, which loads nothing but
//! tries what is denied.
//!
//! It is given something to try its strength on: a canary that nobody has
//! granted, a port on which the daemon listens, the control socket, the daemon
//! itself. Whatever it reaches there does no harm.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::BytesMut;
use ksi_protocol::{
    Code, Frame, PROTOCOL_VERSION, Refusal,
    frame::Setup,
    sandbox::{Finding, Probe, Report, Targets},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    process::ChildStderr,
    time::timeout,
};

use super::{fleet::Places, grants, runner::Means, spawner::Spawned, spec::Spec};

/// Longest time that all acts together may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time for what a probe that is gone has left in its pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Tells probes that run at once apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that no plugin is granted; removed when dropped.
struct Outside(PathBuf);

impl Outside {
    fn make(parent: &Path, number: u32) -> std::io::Result<Self> {
        let dir = parent.join(format!(".probe-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("canary"), "alive")?;
        Ok(Self(dir))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // What is left lies beside the plugins' own directories and harms
        // nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tries the sandbox of a plugin.
///
/// # Errors
///
/// Why there is no answer.
pub async fn run(means: &Means, spec: &Spec, places: &Places) -> Result<Probe, Refusal> {
    let failed = |error: std::io::Error| Refusal::new(Code::Unavailable, format!("cannot probe: {error}"));
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::fs::create_dir_all(&spec.dir).map_err(failed)?;
    let outside = Outside::make(&places.state, number).map_err(failed)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let targets = Targets {
        outside: outside.0.display().to_string(),
        port: listener.local_addr().map_err(failed)?.port(),
        socket: places.socket.display().to_string(),
        daemon: std::process::id(),
        network: std::fs::read_link("/proc/self/ns/net")
            .map(|link| link.display().to_string())
            .unwrap_or_default(),
    };
    let mut sandbox = grants::of(spec, &means.writable);
    let name = &spec.plugin.name;
    let Spawned { mut child, host, link } = means.spawner.spawn(&spec.dir).await.map_err(failed)?;
    let probes = format!("{name}-probe");
    let group = grants::put_into_group(&means.cgroups, &probes, number, child.id(), &mut sandbox).await;
    let setup = Frame::Setup(Setup {
        version: PROTOCOL_VERSION,
        name: name.clone(),
        library: spec.library.display().to_string(),
        sha256: None,
        dir: spec.dir.display().to_string(),
        sandbox: Box::new(sandbox),
        probe: Some(Box::new(targets)),
        config: ksi_protocol::empty(),
    });
    let asked = timeout(PATIENCE, ask(link, &setup)).await;
    // It has nothing more to say, whatever it did.
    let _ = child.start_kill();
    let _ = child.wait().await;
    drop((host, group));
    let (report, acts) = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(refusal)) => return Err(with_last_words(refusal, child.stderr.take()).await),
        Err(_) => return Err(Refusal::new(Code::Timeout, "the probe did not come to an end")),
    };
    Ok(Probe { name: name.clone(), level: report.level().into(), layers: report.layers, acts })
}

/// A refusal with what the probe wrote to its standard error.
async fn with_last_words(refusal: Refusal, stderr: Option<ChildStderr>) -> Refusal {
    let mut words = Vec::new();
    if let Some(stderr) = stderr {
        // The process is gone, so this ends; what it left behind may not hold it
        // open for long.
        let _ = timeout(LAST_WORDS, stderr.take(4096).read_to_end(&mut words)).await;
    }
    let words = String::from_utf8_lossy(&words);
    match words.trim() {
        "" => refusal,
        words if words.contains(&refusal.message) => refusal,
        words => Refusal { message: format!("{}: {words}", refusal.message), ..refusal },
    }
}

/// Says what to try, and hears what came of it.
async fn ask(link: std::os::unix::net::UnixStream, setup: &Frame) -> Result<(Report, Vec<Finding>), Refusal> {
    let failed =
        |error: std::io::Error| Refusal::new(Code::Unavailable, format!("the probe is gone: {error}"));
    link.set_nonblocking(true).map_err(failed)?;
    let mut link = UnixStream::from_std(link).map_err(failed)?;
    let mut bytes = BytesMut::new();
    setup.encode(&mut bytes)?;
    link.write_all(&bytes).await.map_err(failed)?;
    bytes.clear();
    let mut report = None;
    loop {
        while let Some(frame) = Frame::split(&mut bytes)? {
            match frame {
                Frame::Sandboxed { report: told } => report = Some(told),
                Frame::Probed { findings } => return Ok((report.unwrap_or_default(), findings)),
                Frame::Refusal { refusal, .. } => return Err(refusal),
                _ => {}
            }
        }
        if link.read_buf(&mut bytes).await.map_err(failed)? == 0 {
            return Err(Refusal::new(Code::Unavailable, "the probe ended without an answer"));
        }
    }
}
