//! Starting a daemon that does not run.
//!
//! Preferred is `ksi start`, which returns when the daemon is ready and says
//! why when it is not. A bare `ksid` is started in a process group of its own,
//! so that it outlives the program and its terminal's signals. Either way the
//! daemon counts as started only when it answers on the socket.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    time::{sleep, timeout},
};

use crate::{
    Error, Options,
    connection::{self, Link},
};

/// Pause between two attempts to reach a daemon that is being started; it
/// doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(2);

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Bytes of a starter's standard error that are kept for an error.
const SAID_BYTES_MAX: usize = 16 * 1024;

/// Time to read what a starter that failed said last.
const LAST_WORDS_TIME: Duration = Duration::from_millis(100);

/// Why a daemon could not be started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// There is no program that could start it.
    #[error("neither `ksi` nor `ksid` is beside this program or in PATH")]
    NoProgram,
    /// The program cannot be run.
    #[error("{} cannot be run: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The program failed.
    #[error("{} ended with {status}{}{said}", program.display(), if said.is_empty() { "" } else { ": " })]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote on standard error.
        said: String,
    },
    /// The program ran, but no daemon answered in time.
    #[error("{} was run, but no daemon answered within {after:?}", program.display())]
    Silent {
        /// The program.
        program: PathBuf,
        /// The limit that passed.
        after: Duration,
    },
}

/// A program that starts a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Starter {
    program: PathBuf,
    /// `ksi start` returns; `ksid` is the daemon itself and stays.
    returns: bool,
}

/// Starts a daemon for the socket of `options`, and returns the first
/// connection that it answers.
pub(crate) async fn start(options: &Options) -> Result<Link, Error> {
    let starter = match &options.starter {
        Some(program) => Starter { program: program.clone(), returns: true },
        None => find(std::env::current_exe().ok().as_deref(), std::env::var_os("PATH").as_deref())
            .ok_or(StartFailure::NoProgram)?,
    };
    let program = starter.program.clone();
    let child = spawn(&starter, options)
        .map_err(|error| StartFailure::Spawn { program: program.clone(), source: Arc::new(error) })?;
    let after = options.start_timeout;
    let started = async {
        if starter.returns {
            finish(child, &program, options).await
        } else {
            watch(child, &program, options).await
        }
    };
    timeout(after, started).await.unwrap_or_else(|_| Err(StartFailure::Silent { program, after }.into()))
}

/// Searches a starter: beside `executable` first, then in `path`; in each place
/// `ksi` before `ksid`.
fn find(executable: Option<&Path>, path: Option<&std::ffi::OsStr>) -> Option<Starter> {
    let beside = executable.and_then(Path::parent).map(Path::to_path_buf);
    let in_path = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let search = |directories: &[PathBuf]| {
        [("ksi", true), ("ksid", false)].into_iter().find_map(|(name, returns)| {
            let program = directories.iter().map(|dir| dir.join(name)).find(|file| is_executable(file))?;
            Some(Starter { program, returns })
        })
    };
    beside.and_then(|beside| search(&[beside])).or_else(|| search(&in_path))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn spawn(starter: &Starter, options: &Options) -> io::Result<Child> {
    let mut command = Command::new(&starter.program);
    command.env("KSI_SOCKET", &options.socket).stdin(Stdio::null()).stdout(Stdio::null());
    if starter.returns {
        command.arg("start").stderr(Stdio::piped());
    } else {
        command.process_group(0).stderr(Stdio::null());
    }
    command.spawn()
}

/// Waits for a program that returns, then for the daemon. Its standard error is
/// read only until it ends: a daemon that inherited it may hold it open.
async fn finish(mut child: Child, program: &Path, options: &Options) -> Result<Link, Error> {
    let mut said = BytesMut::new();
    let mut stderr = child.stderr.take();
    let status = tokio::select! {
        status = child.wait() => status,
        () = listen(&mut stderr, &mut said) => child.wait().await,
    };
    let program = program.to_path_buf();
    match status {
        Ok(status) if status.success() => answered(options).await,
        Ok(status) => {
            // What it said last may still be in the pipe.
            let _ = timeout(LAST_WORDS_TIME, listen(&mut stderr, &mut said)).await;
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            Err(StartFailure::Ended { program, status, said }.into())
        }
        Err(error) => Err(StartFailure::Spawn { program, source: Arc::new(error) }.into()),
    }
}

/// Reads until the end, or until it is more than anybody would read.
async fn listen(stderr: &mut Option<ChildStderr>, said: &mut BytesMut) {
    let Some(stderr) = stderr else { return };
    while said.len() < SAID_BYTES_MAX && stderr.read_buf(said).await.is_ok_and(|count| count > 0) {}
}

/// Waits for the daemon, unless it ends first.
async fn watch(mut child: Child, program: &Path, options: &Options) -> Result<Link, Error> {
    let program = program.to_path_buf();
    tokio::select! {
        answered = answered(options) => answered,
        ended = child.wait() => Err(match ended {
            Ok(status) => StartFailure::Ended { program, status, said: String::new() },
            Err(error) => StartFailure::Spawn { program, source: Arc::new(error) },
        }
        .into()),
    }
}

/// Waits until a daemon answers on the socket.
async fn answered(options: &Options) -> Result<Link, Error> {
    let mut pause = PAUSE;
    loop {
        match connection::establish(options).await {
            Err(Error::NotRunning { .. } | Error::Lost(_)) => sleep(pause).await,
            result => return result,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn install(directory: &Path, name: &str, mode: u32) {
        let file = directory.join(name);
        fs::write(&file, "").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_starter_beside_the_program_comes_before_one_in_the_path() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let executable = here.path().join("program");
        let path = there.path().as_os_str();
        let found = |expected: Option<(&Path, bool)>| {
            let expected = expected.map(|(program, returns)| Starter { program: program.into(), returns });
            assert_eq!(find(Some(&executable), Some(path)), expected);
        };
        found(None);
        install(there.path(), "ksid", 0o755);
        found(Some((&there.path().join("ksid"), false)));
        install(there.path(), "ksi", 0o755);
        found(Some((&there.path().join("ksi"), true)));
        install(here.path(), "ksi", 0o644);
        found(Some((&there.path().join("ksi"), true)));
        install(here.path(), "ksid", 0o755);
        found(Some((&here.path().join("ksid"), false)));
    }
}
