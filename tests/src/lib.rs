//! The harness: a real daemon in a temporary directory, and ways to reach it.
//!
//! Every test has a daemon and a home of its own, so that all run at once. A
//! daemon that a test leaves running is killed with it. Waiting is always for a
//! condition, with a deadline.

pub mod faults;
pub mod frames;
pub mod kills;
mod lines;
pub mod siege;
pub mod terminal;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use ksi_client::{Client, Options};
use ksi_protocol::{
    paths::{Holder, Paths},
    system::{Health, PluginStatus, Status},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use lines::Lines;

/// How long a condition may take to come true. Generous: the machine may be
/// busy, and a test that passes does not wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The directory of the programs and plugins under test.
///
/// # Panics
///
/// Where the test program lies in no build directory.
#[must_use]
pub fn built() -> PathBuf {
    let ours = std::env::current_exe().expect("a test program has a path");
    ours.ancestors()
        .find(|dir| dir.join("ksid").is_file())
        .expect("ksid is built: run `cargo build --release --workspace` first")
        .to_owned()
}

/// The library of a plugin or fixture: `echo`, `fixture_faulty`.
#[must_use]
pub fn library(name: &str) -> PathBuf {
    let file =
        if name.starts_with("fixture_") { format!("lib{name}.so") } else { format!("libplugin_{name}.so") };
    built().join(file)
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// Where it does not before the deadline; `what` says what was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A command with the environment of a fresh user: nothing of KSI's own.
#[must_use]
pub fn command(program: &str, home: &Path) -> Command {
    let mut command = Command::new(built().join(program));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KSI_") {
            command.env_remove(name);
        }
    }
    command.env("KSI_HOME", home).current_dir(home);
    command
}

/// A home directory in which a daemon may be started.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// Where no temporary directory can be made.
    #[must_use]
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("ksi").tempdir().expect("a temporary directory") }
    }

    /// One with this `ksi.toml`.
    ///
    /// # Panics
    ///
    /// Where the file cannot be written.
    #[must_use]
    pub fn with_config(config: &str) -> Self {
        let home = Self::new();
        std::fs::write(home.paths().config_file, config).expect("ksi.toml can be written");
        home
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What lies where in it.
    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths::below(self.path())
    }

    /// The daemon that its lock names.
    ///
    /// # Panics
    ///
    /// Where there is no lock that can be read.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        Holder::parse(&std::fs::read(self.paths().lock_file()).expect("the lock can be read"))
    }

    /// Runs `ksi` in it.
    ///
    /// # Panics
    ///
    /// Where `ksi` cannot be started.
    #[must_use]
    pub fn ksi(&self, arguments: &[&str]) -> Output {
        command("ksi", self.path()).args(arguments).stdin(Stdio::null()).output().expect("ksi runs")
    }

    /// Runs `ksi` with something on its standard input.
    ///
    /// # Panics
    ///
    /// Where `ksi` cannot be started.
    #[must_use]
    pub fn ksi_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = command("ksi", self.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ksi runs");
        // A program that does not read its input is judged by what it answers.
        let _ = child.stdin.take().expect("its input is a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("ksi ends")
    }

    /// Starts the daemon, and waits until it accepts clients.
    #[must_use]
    pub fn start(self) -> Daemon {
        self.start_with(|_| {})
    }

    /// Starts the daemon by a command that the test has changed.
    ///
    /// # Panics
    ///
    /// Where the daemon does not accept clients before the deadline.
    #[must_use]
    pub fn start_with(self, change: impl FnOnce(&mut Command)) -> Daemon {
        let mut command = command("ksid", self.path());
        let stderr = std::fs::File::create(self.path().join("stderr")).expect("a file for its words");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        change(&mut command);
        let child = command.spawn().expect("ksid runs");
        let mut daemon = Daemon { home: self, child };
        let socket = daemon.home.paths().socket;
        wait_until("the daemon accepts clients", || {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("ksid ended with {status}: {}", daemon.words());
            }
            UnixStream::connect(&socket).is_ok_and(|stream| daemon.listens(&stream))
        });
        daemon
    }
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    /// Where it runs.
    pub home: Home,
    child: Child,
}

impl Daemon {
    /// With the shipped manifest but without the local model, which most
    /// tests do not need.
    #[must_use]
    pub fn without_model() -> Self {
        Home::with_config(WITHOUT_MODEL).start()
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is this one that listens at the other end, on a socket of its own or of
    /// the test's. A child that the one before was about to start when it was killed may
    /// still hold that one's, for a moment.
    fn listens(&self, stream: &UnixStream) -> bool {
        let who = getsockopt(stream, PeerCredentials).expect("a socket has two ends").pid();
        u32::try_from(who).is_ok_and(|who| who == self.pid() || who == std::process::id())
    }

    /// What it has written to its standard error.
    #[must_use]
    pub fn words(&self) -> String {
        std::fs::read_to_string(self.home.path().join("stderr")).unwrap_or_default()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.paths().log_file()).unwrap_or_default()
    }

    /// Runs `ksi` against it.
    #[must_use]
    pub fn ksi(&self, arguments: &[&str]) -> Output {
        self.home.ksi(arguments)
    }

    /// Options for a client of it, which ends with its connection.
    #[must_use]
    pub fn options(&self) -> Options {
        Options::new(self.home.paths().socket).name("test").reconnect(false)
    }

    /// A client of it.
    ///
    /// # Panics
    ///
    /// Where it cannot connect.
    pub async fn client(&self) -> Client {
        Client::connect(self.options()).await.expect("the daemon accepts a client")
    }

    /// A plain connection for a test of the wire.
    ///
    /// # Panics
    ///
    /// Where it cannot connect.
    #[must_use]
    pub fn raw(&self) -> UnixStream {
        let socket = UnixStream::connect(self.home.paths().socket).expect("the daemon accepts");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket takes a time limit");
        socket
    }

    /// A connection that speaks JSON lines.
    #[must_use]
    pub fn lines(&self) -> Lines {
        Lines::new(self.raw())
    }

    /// A connection that speaks frames, past its `hello`.
    #[must_use]
    pub fn frames(&self) -> frames::Frames {
        let mut frames = frames::Frames::new(self.raw());
        frames.greet();
        frames
    }

    /// The daemon's figures.
    ///
    /// # Panics
    ///
    /// Where it does not tell them.
    #[must_use]
    pub fn status(&self) -> Status {
        let status = self.ask("system:status", json!({})).expect("the daemon knows its figures");
        serde_json::from_value(status).expect("figures")
    }

    /// The daemon's health.
    ///
    /// # Panics
    ///
    /// Where it does not tell it.
    #[must_use]
    pub fn health(&self) -> Health {
        let health = self.ask("system:health", json!({})).expect("the daemon knows how it is");
        serde_json::from_value(health).expect("health")
    }

    /// One request over JSON lines: its data, or what `accepted` says, or its
    /// refusal.
    ///
    /// # Errors
    ///
    /// The refusal, as JSON.
    pub fn ask(&self, event: &str, data: Value) -> Result<Value, Value> {
        self.lines().ask(event, data)
    }

    /// Waits until no plugin is starting.
    ///
    /// # Panics
    ///
    /// Where that takes longer than the deadline.
    pub fn ready(&self) {
        self.ask("system:ready", json!({})).expect("the daemon becomes ready");
    }

    /// Puts another configuration in force; what has changed with it.
    ///
    /// # Errors
    ///
    /// The refusal, as JSON.
    ///
    /// # Panics
    ///
    /// Where it cannot be written.
    pub fn reconfigure(&self, config: &str) -> Result<Value, Value> {
        std::fs::write(self.home.paths().config_file, config).expect("a configuration can be written");
        self.ask("config:reload", json!({}))
    }

    /// What the daemon says of one plugin.
    ///
    /// # Panics
    ///
    /// Where there is no such plugin.
    #[must_use]
    pub fn plugin(&self, name: &str) -> PluginStatus {
        let inspection = self.ask("plugin:inspect", json!({ "name": name })).expect("the plugin is there");
        serde_json::from_value(inspection["status"].clone()).expect("a status")
    }

    /// Loads a fixture plugin.
    ///
    /// # Errors
    ///
    /// The refusal, as JSON.
    pub fn load(&self, name: &str, placement: &str) -> Result<Value, Value> {
        self.ask("plugin:load", json!({"library": library(name), "placement": placement}))
    }

    /// Sends a signal to the daemon.
    ///
    /// # Panics
    ///
    /// Where the daemon is gone already.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("the daemon is there");
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the daemon has ended by itself.
    ///
    /// # Panics
    ///
    /// Where it does not before the deadline.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        status.expect("it was waited for")
    }

    /// Kills it as by a power cut, and gives its home back.
    #[must_use]
    pub fn kill(mut self) -> Home {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::take(&mut self.home)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln_log(self);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::print_stderr, reason = "a failed test shows what its daemon said")]
fn eprintln_log(daemon: &Daemon) {
    let log = daemon.log();
    let tail: Vec<&str> = log.lines().rev().take(40).collect();
    eprintln!("--- log of the daemon ---\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    eprintln!("--- its standard error ---\n{}", daemon.words());
}

/// Configuration of a daemon that needs no model.
pub const WITHOUT_MODEL: &str = "[plugins.llama]\nenabled = false\n";

/// The text of a program's standard output.
#[must_use]
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The text of a program's standard error.
#[must_use]
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
