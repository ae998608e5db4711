//! The one thread that starts children.
//!
//! A child asks the kernel to be killed when its parent ends, and "parent"
//! means the thread that started it. The threads of a runtime come and go; this
//! one stays until the daemon ends.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
};

use super::offspring::{Host, Offspring};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot},
};

/// What a child inherits of the daemon's environment, which graphics cards it is to
/// use among it. Everything else is cleared: secrets have no business there.
const INHERITED: [&str; 6] =
    ["PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "RUST_BACKTRACE"];

/// What every child is given: no debugger is started by a failing assertion of
/// ggml, and a thread of OpenMP that waits for the others turns 300,000 times, some
/// milliseconds, before it sleeps: in the computations of a model they meet
/// hundreds of times for each token, and in those of a prompt they wait long for
/// the last one. Who sleeps there looks like one whose processor somebody else
/// has, and llama's engine takes that for a crowd. Where there are more threads than processors
/// it turns a thousand times, which is what is meant by `active` then; with what
/// OpenMP does by itself two models that share the processors would keep each
/// other from working.
const GIVEN: [(&str, &str); 3] =
    [("GGML_NO_BACKTRACE", "1"), ("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "300000")];

type Job = (Command, oneshot::Sender<io::Result<(Child, Host)>>);

/// A handle of the thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
    program: PathBuf,
}

/// A child that was started, and the daemon's end of its link.
#[derive(Debug)]
pub struct Spawned {
    /// The process; killed when dropped.
    pub child: Child,
    /// That it is known.
    pub host: Host,
    /// The daemon's end.
    pub link: UnixStream,
}

impl Spawner {
    /// Starts the thread. `program` is `ksi-plugin-host`.
    ///
    /// # Errors
    ///
    /// Where the system has no thread left.
    pub fn start(
        program: PathBuf,
        offspring: Offspring,
        runtime: tokio::runtime::Handle,
    ) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(16);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _entered = runtime.enter();
            while let Some((mut command, started)) = queue.blocking_recv() {
                // Whoever asked may have given up; then the child is killed.
                let _ = started.send(offspring.host(|| command.spawn(), Child::id));
            }
        })?;
        Ok(Self { jobs, program })
    }

    /// Starts a plugin host in `dir`.
    ///
    /// # Errors
    ///
    /// Where the program is missing or the system refuses.
    pub async fn spawn(&self, dir: &Path) -> io::Result<Spawned> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.program);
        command
            .arg(std::process::id().to_string())
            .current_dir(dir)
            .env_clear()
            .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs(GIVEN)
            .env("TMPDIR", dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let (started, child) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread is gone");
        self.jobs.send((command, started)).await.map_err(|_| gone())?;
        let (child, host) = child.await.map_err(|_| gone())?.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", self.program.display()))
        })?;
        Ok(Spawned { child, host, link: ours })
    }
}
