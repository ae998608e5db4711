//! A new program in the place of the running one, in the same process.
//!
//! The daemon that is restarted stops in good order, keeps its socket and its
//! lock, and executes the file it was started from, which may be a newer one by
//! now. The process id stays, so whoever supervises the daemon notices nothing,
//! and clients that connect meanwhile wait in the socket's backlog.
//!
//! # Failure
//!
//! What can be known beforehand is checked before anything is stopped: the file
//! runs, its configuration loads, its plugins are there. Where it cannot be
//! executed all the same, the process ends.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ksi_host::descriptor::copy_of;
use ksi_protocol::{Code, Refusal, token};
use rustix::io::{FdFlags, fcntl_setfd};

/// Says which descriptors are handed over, and to whom:
/// `PID:SOCKET:LOCK:own|given`.
const VARIABLE: &str = "KSI_TAKEOVER";

/// Time that the new program has to check itself.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The program of this process, as it was started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    name: OsString,
    args: Vec<OsString>,
}

impl Program {
    /// The file that this process was started from. A link stays one, so that
    /// it may lead to another release later.
    ///
    /// # Errors
    ///
    /// Where that cannot be found out.
    pub fn of_process() -> io::Result<Self> {
        let mut args = env::args_os();
        let name = args.next().unwrap_or_default();
        let path = if Path::new(&name).components().count() > 1 {
            std::path::absolute(&name)?
        } else {
            env::current_exe()?
        };
        Ok(Self { path, name, args: args.collect() })
    }

    /// Executes it anew where whoever starts it has left a token in the
    /// environment: that is for a client, and would be kept here, and handed on,
    /// for as long as the daemon runs.
    ///
    /// # Errors
    ///
    /// Where that is not possible. Otherwise it returns only where there was none.
    pub fn without_token(&self) -> io::Result<()> {
        let tokens = [token::VARIABLE, token::FILE_VARIABLE];
        if tokens.iter().all(|name| env::var_os(name).is_none()) {
            return Ok(());
        }
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.args);
        for name in tokens {
            command.env_remove(name);
        }
        Err(command.exec())
    }

    /// Runs the file as it is now, only to check whether it could start.
    ///
    /// # Errors
    ///
    /// Why it could not, in its own words.
    pub async fn check(&self) -> Result<(), Refusal> {
        let path = self.path.display();
        let no = |why: String| {
            Refusal::new(Code::Conflict, format!("{path} would not start, so nothing was stopped: {why}"))
                .hint(format!("mend it, and see with `{path} --check`"))
        };
        let mut command = tokio::process::Command::new(&self.path);
        command.args(&self.args).arg("--check").stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(CHECK_TIMEOUT, command.output()).await {
            Err(_) => Err(no(format!("it did not check itself within {} s", CHECK_TIMEOUT.as_secs()))),
            Ok(Err(error)) => Err(no(error.to_string())),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let words = String::from_utf8_lossy(&output.stderr);
                Err(no(format!("{}: {}", output.status, words.trim())))
            }
        }
    }
}

/// What the next program gets.
#[derive(Debug)]
pub struct Takeover {
    /// Accepts clients.
    pub listener: UnixListener,
    /// Locked.
    pub lock: File,
    /// Whether the daemon has made the socket, and so removes it.
    pub own: bool,
}

impl Takeover {
    /// What this process was handed by the program before it.
    ///
    /// # Errors
    ///
    /// Where it was promised what is not there.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(text) = env::var_os(VARIABLE).and_then(|text| text.into_string().ok()) else {
            return Ok(None);
        };
        let parts: Vec<&str> = text.split(':').collect();
        let [pid, socket, lock, own] = parts[..] else { return Ok(None) };
        // A child of a daemon may see the variable, which is not meant for it.
        if pid.parse() != Ok(std::process::id()) {
            return Ok(None);
        }
        let number = |text: &str| text.parse::<RawFd>().map_err(io::Error::other);
        let listener = UnixListener::from(owned(number(socket)?)?);
        listener.set_nonblocking(true)?;
        Ok(Some(Self { listener, lock: File::from(owned(number(lock)?)?), own: own == "own" }))
    }

    /// Executes the program. Returns only where that is not possible.
    #[must_use]
    pub fn execute(self, program: &Program) -> io::Error {
        let Self { listener, lock, own } = &self;
        for fd in [listener.as_fd(), lock.as_fd()] {
            if let Err(error) = fcntl_setfd(fd, FdFlags::empty()) {
                return error.into();
            }
        }
        let own = if *own { "own" } else { "given" };
        let handed = format!("{}:{}:{}:{own}", std::process::id(), listener.as_raw_fd(), lock.as_raw_fd());
        Command::new(&program.path)
            .arg0(&program.name)
            .args(&program.args)
            .env(VARIABLE, handed)
            // The socket of a service manager goes this way now.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .exec()
    }
}

/// Takes a descriptor that nobody else in this process knows of.
fn owned(number: RawFd) -> io::Result<OwnedFd> {
    let copy = copy_of(number)?;
    nix::unistd::close(number)?;
    Ok(copy)
}
