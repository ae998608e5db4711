//! The daemon's process: finding, spawning, awaiting and ending it.
//!
//! The truth about "running" is the lock that the daemon holds and the socket
//! it answers on; a process id is only believed together with them, so that
//! a stale one never blocks a start and a stranger is never signalled.
//!
//! # Failure
//!
//! A daemon that exits before it answers is reported with its last words.
//! Nobody can be notified by a process that has not opened its socket yet, so
//! here, and only while starting or stopping, `ksi` looks again and again,
//! with growing pauses and a deadline.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::{
        fd::RawFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use ksi_client::{Client, Error};
use ksi_protocol::{Code, paths::Holder, system::Health};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, encoded, required_program, typed},
    time::whole_ms,
};

/// Time that a start may take when `--timeout` does not say.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest grace period that is expected of a daemon that was not told one.
pub(crate) const GRACE_UNKNOWN: Duration = Duration::from_secs(300);

/// Time that the daemon may need after its grace period, before `stop` says
/// that it hangs.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Time that the daemon of another start may take to answer, once ours has
/// found it there.
const RIVAL_TIME: Duration = Duration::from_secs(5);

/// What to do where a start fails for what lies on this machine.
const DOCTOR: &str = "see what is wrong: ksi doctor";

/// Lines of the log that a failed start shows.
const LAST_WORDS: usize = 12;

/// Pauses between looks: 2 ms, doubling to 50 ms.
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(2))
    }

    pub(crate) async fn next(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_millis(50));
    }
}

/// A daemon that is ready.
pub(crate) struct Started {
    /// The connection that it answered on.
    pub(crate) client: Client,
    /// What it said of itself.
    pub(crate) health: Health,
    /// From the first step until ready; `None` where it ran already.
    pub(crate) took: Option<Duration>,
}

/// Makes sure that the daemon runs and is ready.
///
/// # Errors
///
/// Says why it is not, with the daemon's last words.
pub(crate) async fn start(at: &Invocation) -> Result<Started> {
    let began = Instant::now();
    let deadline = began + at.timeout.unwrap_or(START_TIMEOUT);
    match running(at, deadline).await {
        // One that goes away while it is asked has just died.
        Err(failure) if failure.exit == Exit::NotRunning || failure.code == "disconnected" => {}
        found => return found,
    }
    let mut log = Log::open(&at.paths.log_file())?;
    let mut child = spawn(at, &log)?;
    let client = answering(at, &mut child, &mut log, deadline).await?;
    let health = tokio::select! {
        health = ready(at, &client, deadline) => health?,
        // Where another start has won the race for the lock, it is that one's
        // daemon that has answered, and goes on doing so.
        status = failed(&mut child) => {
            ready(at, &client, deadline).await.map_err(|_| died(status, &mut log))?
        }
    };
    Ok(Started { client, health, took: Some(began.elapsed()) })
}

/// The daemon that runs already.
async fn running(at: &Invocation, deadline: Instant) -> Result<Started> {
    let client = at.connect().await?;
    let health = ready(at, &client, deadline).await?;
    Ok(Started { client, health, took: None })
}

/// Closes what this process has inherited besides its three streams: the
/// daemon would hold it open for as long as it lives, and whoever reads from
/// the other end would wait for that long. Comes before anything is opened.
pub(crate) fn let_go_of_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    // The list is complete before the first is closed: reading it needs one, too.
    let inherited: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    for number in inherited {
        // One of them was the list itself, which is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Replaces `ksi` by the daemon, in this terminal.
///
/// # Errors
///
/// Returns only if that fails.
pub(crate) fn foreground(at: &Invocation) -> Failure {
    let ksid = match required_program("ksid", "KSI_DAEMON") {
        Ok(path) => path,
        Err(failure) => return failure,
    };
    let error = at.command(&ksid).arg("--foreground").exec();
    Failure::failed(format!("cannot run {}: {error}", ksid.display()))
}

/// The log, from where this start begins.
struct Log {
    file: File,
    from: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| Failure::to_file("create", dir, &error).hint(DOCTOR))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Failure::to_file("open", path, &error).hint(DOCTOR))?;
        let from = file.seek(SeekFrom::End(0)).map_err(|error| Failure::to_file("read", path, &error))?;
        Ok(Self { file, from })
    }

    /// What was written since, at most its last lines.
    fn last_words(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.file.seek(SeekFrom::Start(self.from)).and_then(|_| self.file.read_to_end(&mut bytes));
        if read.is_err() {
            return String::new();
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

fn spawn(at: &Invocation, log: &Log) -> Result<Child> {
    let ksid = required_program("ksid", "KSI_DAEMON")?;
    let stream = || {
        let file = log.file.try_clone();
        file.map_err(|error| Failure::to_file("open", &at.paths.log_file(), &error))
    };
    // Without `--foreground` the daemon writes its log itself; on its standard
    // error is only what comes before that, and panics.
    at.command(&ksid)
        .stdin(Stdio::null())
        .stdout(stream()?)
        .stderr(stream()?)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::failed(format!("cannot run {}: {error}", ksid.display())).hint(DOCTOR))
}

/// Waits until somebody answers on the socket.
async fn answering(at: &Invocation, child: &mut Child, log: &mut Log, deadline: Instant) -> Result<Client> {
    let mut pauses = Pauses::new();
    let mut rival = None;
    loop {
        match at.connect().await {
            Ok(client) => return Ok(client),
            Err(failure) if Instant::now() > deadline => {
                return Err(Failure::timeout(format!("ksid does not answer: {}", failure.message))
                    .hint("see what it does: ksi logs"));
            }
            Err(_) => {}
        }
        if let Some(status) = failed_status(child) {
            // Another start may have won the race for the lock; then its daemon
            // answers in a moment.
            let patience = *rival.get_or_insert_with(|| Instant::now() + RIVAL_TIME);
            if !locked(&at.paths.lock_file()) || Instant::now() > patience {
                return at.connect().await.map_err(|_| died(status, log));
            }
        }
        pauses.next().await;
    }
}

/// How the daemon has failed, if it has. A good end is none: `KSI_DAEMON` may
/// name a wrapper that goes to the background.
fn failed_status(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().ok().flatten().filter(|status| !status.success())
}

async fn failed(child: &mut Child) -> ExitStatus {
    let mut pauses = Pauses::new();
    loop {
        if let Some(status) = failed_status(child) {
            return status;
        }
        pauses.next().await;
    }
}

/// Waits until the daemon says that it is ready, or as far as it came.
///
/// # Errors
///
/// Fails where it does not say even that.
pub(crate) async fn ready(at: &Invocation, client: &Client, deadline: Instant) -> Result<Health> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let payload = json!({ "timeout_ms": whole_ms(left) });
    // The daemon answers at its own deadline with how far it came; the
    // request's comes a little later, so that this answer is heard.
    let mut options = at.call();
    options.timeout = Some(left + Duration::from_secs(1));
    let reply = client.request_raw("system:ready", encoded(&payload)?, options).await?;
    typed("system:ready", &reply)
}

fn died(status: ExitStatus, log: &mut Log) -> Failure {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let words = log.last_words();
    let mut failure = Failure::failed(format!("ksid {how} before it was ready"));
    failure.code = "start_failed".into();
    if !words.is_empty() {
        failure.message = format!("{}; its last words:\n{words}", failure.message);
        failure.details = Some(Box::new(json!({ "last_words": words.lines().collect::<Vec<_>>() })));
    }
    failure.hint("check the configuration and the installation: ksi doctor")
}

/// How a stop went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Nobody listens there.
    WasNotRunning,
    /// The process is gone.
    Gone {
        /// Its process id.
        pid: u32,
    },
}

/// Asks the daemon to finish and waits until its process is gone. One that
/// cannot be asked is signalled; one that says no is not.
///
/// # Errors
///
/// Fails where it refuses, or still runs after its grace period and some, or
/// after `--timeout`.
pub(crate) async fn stop(at: &Invocation, grace: Option<Duration>) -> Result<Stopped> {
    // How long the daemon's own grace is, only the daemon knows: then this waits
    // for longer than anyone configures it.
    let patience = at.timeout.unwrap_or_else(|| grace.unwrap_or(GRACE_UNKNOWN) + STOP_MARGIN);
    let deadline = Instant::now() + patience;
    let mut pauses = Pauses::new();
    let process = loop {
        match end(at, grace, patience).await? {
            End::Begun(process) => break process,
            End::NotRunning => return Ok(Stopped::WasNotRunning),
            End::Unclear(failure) if Instant::now() >= deadline => return Err(failure),
            End::Unclear(_) => pauses.next().await,
        }
    };
    process.gone(deadline).await?;
    Ok(Stopped::Gone { pid: process.pid })
}

/// What has become of an attempt to end the daemon.
enum End {
    /// The process has been asked to finish, now or before, or was signalled.
    Begun(Process),
    /// Nobody listens there.
    NotRunning,
    /// It has gone in this moment, or has not said anything yet. What is there is to
    /// be looked at anew.
    Unclear(Failure),
}

/// Asks the daemon to finish, or signals it where it cannot be asked.
async fn end(at: &Invocation, grace: Option<Duration>, patience: Duration) -> Result<End> {
    let error = match Client::connect(at.client_options()).await {
        Ok(client) => {
            return match pid(at, &client).await {
                Ok(pid) => asked(at, &client, Process::of(pid), grace, patience).await.map(End::Begun),
                Err(failure) if !client.is_connected() => Ok(End::Unclear(failure)),
                Err(failure) => Err(failure),
            };
        }
        Err(error) => error,
    };
    match (holder(at), error) {
        (Some(Held::Here(process)), error) if stops_already(&error) => Ok(End::Begun(process)),
        (Some(Held::Here(process)), error) if unanswered(&error) => {
            at.out.note("the daemon does not answer; ending it by SIGTERM");
            process.terminate()?;
            Ok(End::Begun(process))
        }
        (held, Error::NotRunning { .. }) => {
            if let Some(Held::Elsewhere { pid, socket }) = held {
                let socket = socket.display();
                at.out.note(&format!("the daemon of this place, pid {pid}, listens on {socket}"));
            }
            Ok(End::NotRunning)
        }
        (None, error) if unanswered(&error) => Ok(End::Unclear(error.into())),
        (_, error) => Err(error.into()),
    }
}

/// Asks the daemon that runs in this process to finish.
async fn asked(
    at: &Invocation,
    client: &Client,
    process: Process,
    grace: Option<Duration>,
    patience: Duration,
) -> Result<Process> {
    let grace_ms = grace.map(whole_ms);
    let payload = encoded(&json!({ "grace_ms": grace_ms }))?;
    match client.request_raw("system:shutdown", payload, at.call_within(patience)).await {
        Ok(_) | Err(Error::Lost(_)) => Ok(process),
        Err(error) if stops_already(&error) => Ok(process),
        Err(error) => Err(error.into()),
    }
}

/// The process of the daemon that `client` is connected to: as its lock names it,
/// or else as it says itself, to those who may read that.
///
/// # Errors
///
/// Fails where the daemon does not say it.
pub(crate) async fn pid(at: &Invocation, client: &Client) -> Result<u32> {
    match holder(at) {
        Some(Held::Here(process)) => Ok(process.pid),
        _ => Ok(at.ask::<Health>(client, "system:health", &json!({})).await?.pid),
    }
}

/// Somebody else has asked it to stop: waiting is all that is left.
fn stops_already(error: &Error) -> bool {
    error.refusal().is_some_and(|refusal| refusal.code == Code::ShuttingDown)
}

/// Whether nobody has said anything at all. A daemon that refuses is well.
fn unanswered(error: &Error) -> bool {
    match error {
        Error::NotRunning { .. } | Error::TimedOut { .. } | Error::Lost(_) => true,
        // Its backlog is full.
        Error::Connect { source, .. } => source.kind() == ErrorKind::WouldBlock,
        _ => false,
    }
}

/// The daemon that holds the lock.
#[derive(Debug)]
enum Held {
    /// It listens on the socket that this run asks.
    Here(Process),
    /// It listens on another one.
    Elsewhere {
        /// Its process id.
        pid: u32,
        /// Its socket.
        socket: PathBuf,
    },
}

fn holder(at: &Invocation) -> Option<Held> {
    let path = at.paths.lock_file();
    if !locked(&path) {
        return None;
    }
    let Holder { pid, socket } = Holder::parse(&fs::read(path).ok()?)?;
    let process = Process::of(pid);
    if !process.alive() || !process.is_ksid() {
        return None;
    }
    let socket = socket?;
    match same_file(&socket, &at.paths.socket) {
        true => Some(Held::Here(process)),
        false => Some(Held::Elsewhere { pid, socket }),
    }
}

/// Whether two paths are one, or lead to one file.
fn same_file(one: &Path, other: &Path) -> bool {
    let file = |path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    one == other || file(one).is_some_and(|one| file(other) == Some(one))
}

/// Whether somebody holds the lock.
pub(crate) fn locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// A process, told apart from a later one with the same id by its start time.
#[derive(Debug)]
struct Process {
    pid: u32,
    born: Option<String>,
}

impl Process {
    fn of(pid: u32) -> Self {
        Self { pid, born: born(pid) }
    }

    fn alive(&self) -> bool {
        self.born.is_some() && born(self.pid) == self.born
    }

    fn is_ksid(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/comm", self.pid)).is_ok_and(|comm| comm.starts_with("ksid"))
    }

    fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.pid).map_err(|_| Failure::failed("the lock names no process"))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .map_err(|error| Failure::failed(format!("cannot signal process {pid}: {error}")))
    }

    async fn gone(&self, deadline: Instant) -> Result<()> {
        let mut pauses = Pauses::new();
        while self.alive() {
            if Instant::now() > deadline {
                return Err(Failure::timeout(format!("process {} still runs", self.pid))
                    .hint(format!("end it by force: kill -KILL {}", self.pid)));
            }
            pauses.next().await;
        }
        Ok(())
    }
}

/// When a process was born, in ticks; `None` for one that is gone or only
/// waits for its parent to notice.
fn born(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // After the state, the start time is the 19th field (proc_pid_stat(5)).
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18).map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, sync::Arc};

    use ksi_client::Loss;
    use ksi_protocol::Refusal;

    use super::*;

    #[test]
    fn only_silence_is_a_reason_to_signal() {
        let connect = |kind: ErrorKind| Error::Connect { socket: "/s".into(), source: Arc::new(kind.into()) };
        for (error, expected) in [
            (Error::NotRunning { socket: "/s".into() }, true),
            (Error::TimedOut { after: Duration::from_secs(1) }, true),
            (Error::Lost(Loss::Ended), true),
            (connect(ErrorKind::WouldBlock), true),
            (connect(ErrorKind::PermissionDenied), false),
            (Error::NotASocket { socket: "/s".into() }, false),
            (Error::Refused(Refusal::new(Code::Denied, "no")), false),
            (Error::Refused(Refusal::new(Code::Busy, "no room")), false),
        ] {
            assert_eq!(unanswered(&error), expected, "{error}");
        }
        assert!(stops_already(&Error::Refused(Refusal::new(Code::ShuttingDown, "bye"))));
    }

    #[test]
    fn two_names_of_one_socket_are_the_same_place() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("s"), dir.path().join("l"));
        assert!(same_file(&socket, &socket), "also where nothing is there any more");
        assert!(!same_file(&socket, &link));
        fs::write(&socket, "").unwrap();
        assert!(!same_file(&socket, &link));
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        assert!(same_file(&socket, &link));
    }

    #[test]
    fn a_running_process_is_alive_and_one_that_never_was_is_not() {
        assert!(Process::of(std::process::id()).alive());
        assert!(!Process::of(u32::MAX).alive());
    }

    #[test]
    fn a_process_that_only_waits_to_be_noticed_counts_as_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let process = Process::of(child.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        while process.alive() {
            assert!(Instant::now() < deadline, "still alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_lock_is_seen_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.lock");
        assert!(!locked(&path));
        let holder = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(locked(&path));
        drop(holder);
        assert!(!locked(&path));
    }

    #[test]
    fn last_words_are_those_since_the_start() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/ksid.log");
        Log::open(&path).unwrap().file.write_all(b"old\n").unwrap();
        let mut log = Log::open(&path).unwrap();
        for n in 0..20 {
            writeln!(log.file, "line {n}").unwrap();
        }
        let words = log.last_words();
        assert!(words.starts_with("line 8\n") && words.ends_with("line 19"), "{words}");
    }
}
