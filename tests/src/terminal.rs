//! A terminal that nobody sits at: a shell in a `tmux` of its own, for what
//! only shows on a terminal.
//!
//! Each has a server with a socket in a private directory, and ends with it.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{DEADLINE, built, command};

/// What the shell in the terminal says when it waits for a command.
pub const PROMPT: &str = "shell$";

/// Pause between two looks at the screen.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// A shell on a screen.
#[derive(Debug)]
pub struct Terminal {
    dir: TempDir,
}

impl Terminal {
    /// A shell that has the programs under test on its `PATH`, in a home.
    ///
    /// # Panics
    ///
    /// Where there is no `tmux`; `scripts/test` installs it.
    #[must_use]
    pub fn open(home: &Path, columns: u16, rows: u16) -> Self {
        let terminal = Self { dir: tempfile::Builder::new().prefix("tmux").tempdir().expect("a directory") };
        let path = std::env::var("PATH").unwrap_or_default();
        let mut tmux = terminal.tmux();
        // The server, and so the shell, has the environment of whoever starts it.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("KSI_") || name.starts_with("TMUX") || name == "NO_COLOR" {
                tmux.env_remove(name);
            }
        }
        tmux.env("KSI_HOME", home)
            .env("PATH", format!("{}:{path}", built().display()))
            .current_dir(home)
            .args(["-f", "/dev/null", "new-session", "-d"])
            .args(["-x", &columns.to_string(), "-y", &rows.to_string()])
            .arg(format!("exec env PS1='{PROMPT} ' bash --norc --noprofile -i"));
        let opened = tmux.output().expect("tmux is installed: scripts/test does that");
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        terminal.shows(PROMPT);
        terminal
    }

    fn tmux(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.dir.path().join("socket")).arg("-u").env("LC_ALL", "C.UTF-8");
        tmux
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.tmux().args(arguments).output().expect("tmux runs")
    }

    /// What is on the screen now.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.run(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// What is on the screen now, with the sequences that colour it.
    #[must_use]
    pub fn painted(&self) -> String {
        String::from_utf8_lossy(&self.run(&["capture-pane", "-p", "-e"]).stdout).into_owned()
    }

    /// Presses keys by their names: `Enter`, `C-c`, `Escape`, `q`.
    pub fn press(&self, keys: &[&str]) {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        let _ = self.run(&arguments);
    }

    /// Types a text.
    pub fn write(&self, text: &str) {
        let _ = self.run(&["send-keys", "-l", text]);
    }

    /// Types a text and enters it.
    pub fn enter(&self, line: &str) {
        self.write(line);
        self.press(&["Enter"]);
    }

    /// Waits until the screen is as wanted, and gives it.
    ///
    /// # Panics
    ///
    /// Where that does not happen before the deadline.
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what} on:\n{screen}");
            std::thread::park_timeout(LOOK_EVERY);
        }
    }

    /// Waits until the screen shows a text, and gives it.
    pub fn shows(&self, text: &str) -> String {
        self.until(&format!("`{text}`"), |screen| screen.contains(text))
    }

    /// Waits until the shell waits for a command, below all else.
    pub fn back_at_shell(&self) -> String {
        self.until("the shell", |screen| {
            screen.trim_end().lines().last().is_some_and(|line| line.trim() == PROMPT)
        })
    }

    /// Whether a program has the alternate screen, as full-screen programs do.
    #[must_use]
    pub fn alternate(&self) -> bool {
        self.run(&["display-message", "-p", "#{alternate_on}"]).stdout.starts_with(b"1")
    }

    /// Changes the size of the screen.
    pub fn resize(&self, columns: u16, rows: u16) {
        let _ = self.run(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.run(&["kill-server"]);
    }
}

/// Runs a line of shell in a home, with the programs under test on the `PATH`.
///
/// # Panics
///
/// Where there is no shell.
#[must_use]
pub fn shell(home: &Path, line: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    // `command` knows what a fresh user's environment is.
    let fresh = command("ksi", home);
    let mut shell = Command::new("bash");
    for (name, value) in fresh.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("PATH", format!("{}:{path}", built().display())).current_dir(home).arg("-c").arg(line);
    shell
}
