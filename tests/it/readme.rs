//! What `README.md` shows is what happens.
//!
//! Every block marked `console` is run in order, in one fresh home, in a
//! directory like a checkout. A line that begins with `$ ` is a command for
//! bash; the lines behind it, up to the next command or an empty line, must
//! appear in its output, in this order, though not necessarily next to each
//! other. Standard error counts, as on a screen. In such a line
//!
//! - a number stands for any number: times, speeds and counts are examples,
//! - `…` stands for any text,
//! - `/run/user/1000` and `~` stand for the runtime and the home directory.
//!
//! Each command must end with 0. [`SKIPPED`] are not run, because the test
//! itself is part of what they do; [`ENDLESS`] are run until they have shown
//! something and then interrupted. The block marked `python` is run, too, and
//! the plugin that is shown is compared with its file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use ksi_tests::{built, stderr, stdout, wait_until};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::os::unix::process::CommandExt;
use tempfile::TempDir;

/// Commands that build, test, or fetch what is under test.
const SKIPPED: [&str; 3] = ["scripts/up", "scripts/test", "git clone"];

/// Commands that go on until they are interrupted, and what makes them show
/// something.
const ENDLESS: [(&str, &str); 1] = [("ksi sub ", "ksi send completion:async --prompt hi")];

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

fn readme() -> String {
    fs::read_to_string(checkout().join("README.md")).expect("README.md can be read")
}

/// The texts of all blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
}

/// A command and the lines that it is shown to print.
#[derive(Debug)]
struct Shown {
    command: String,
    lines: Vec<String>,
}

fn shown(text: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    for line in blocks(text, "console").iter().flat_map(|block| block.lines()) {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(command), _) => all.push(Shown { command: command.to_owned(), lines: Vec::new() }),
            (None, Some(last)) if !line.trim().is_empty() => last.lines.push(line.to_owned()),
            (None, _) => assert!(line.trim().is_empty(), "no command comes before `{line}`"),
        }
    }
    all
}

/// A user who has just built a checkout.
struct User {
    dir: TempDir,
}

impl User {
    fn new() -> Self {
        let user = Self { dir: tempfile::Builder::new().prefix("ksi").tempdir().expect("a directory") };
        for dir in ["home", "run", "checkout", "empty"] {
            fs::create_dir(user.dir.path().join(dir)).expect("a directory");
        }
        std::os::unix::fs::symlink(checkout().join("kernel"), user.checkout().join("kernel"))
            .expect("a link");
        let history = "git init -q . && git -c user.name=x -c user.email=x@example.org commit -q --allow-empty -m 'First words'";
        let output = user.bash(history).output().expect("bash runs");
        assert!(output.status.success(), "{}", stderr(&output));
        user
    }

    fn checkout(&self) -> PathBuf {
        self.dir.path().join("checkout")
    }

    fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A command of the user; standard error goes where standard output does.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:{}", built().display(), std::env::var("PATH").unwrap_or_default()))
            .env("HOME", self.dir.path().join("home"))
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.checkout())
            .stdin(Stdio::null());
        command
    }

    fn bash(&self, line: &str) -> Command {
        let mut bash = self.command("bash");
        bash.args(["-o", "pipefail", "-c", &format!("exec 2>&1\n{line}")]);
        bash
    }

    fn run(&self, line: &str) -> Output {
        match ENDLESS.iter().find(|(start, _)| line.starts_with(start)) {
            Some((_, trigger)) => self.interrupted(line, trigger),
            None => self.bash(line).output().expect("bash runs"),
        }
    }

    /// Runs until there is something to see, then interrupts.
    fn interrupted(&self, line: &str, trigger: &str) -> Output {
        let seen = self.dir.path().join("seen");
        let file = fs::File::create(&seen).expect("a file");
        let child = self.bash(line).stdout(file).process_group(0).spawn().expect("bash runs");
        let lines = || fs::read_to_string(&seen).unwrap_or_default().lines().count();
        wait_until("it listens", || lines() > 0);
        let triggered = self.bash(trigger).output().expect("bash runs");
        assert!(triggered.status.success(), "{}", stdout(&triggered));
        wait_until("it shows something", || lines() > 1);
        killpg(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT)
            .expect("it is there");
        let mut output = child.wait_with_output().expect("it ends");
        assert_ne!(output.status.code(), Some(0), "it ends by the interrupt alone");
        output.stdout = fs::read(&seen).expect("what it has shown");
        output
    }

    /// The output with this user's directories as the page writes them.
    fn as_written(&self, output: &Output) -> String {
        let text = stdout(output).replace(&self.runtime().display().to_string(), "/run/user/1000");
        text.replace(&self.dir.path().join("home").display().to_string(), "~")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.bash("ksi stop --grace 1s --timeout 10s").output();
    }
}

/// A line with every number replaced by one sign.
fn without_numbers(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_ascii_digit() {
            out.push(c);
            continue;
        }
        out.push('#');
        while chars.peek().is_some_and(|next| next.is_ascii_digit() || *next == '.') {
            chars.next();
        }
    }
    out
}

/// Whether a line is as the page shows it.
fn is_like(line: &str, pattern: &str) -> bool {
    let (line, pattern) = (without_numbers(line), without_numbers(pattern));
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    // What stands behind the last `…` is the end of the line.
    rest.is_empty() || last.is_some_and(|last| last.is_empty() || line.ends_with(last))
}

#[test]
fn every_command_does_what_the_page_shows() {
    let user = User::new();
    let commands = shown(&readme());
    assert!(commands.len() > 10, "{commands:?}");
    for Shown { command, lines } in commands {
        if SKIPPED.iter().any(|skipped| command.starts_with(skipped)) {
            continue;
        }
        let endless = ENDLESS.iter().any(|(start, _)| command.starts_with(start));
        let output = user.run(&command);
        let text = user.as_written(&output);
        assert!(endless || output.status.success(), "`{command}` ended with {}:\n{text}", output.status);
        let mut printed = text.lines();
        for line in lines {
            assert!(
                printed.any(|printed| is_like(printed, &line)),
                "`{command}` does not print (any more, or not in this order)\n  {line}\nbut\n{text}"
            );
        }
    }
}

#[test]
fn the_python_program_prints_what_a_model_says() {
    let programs = blocks(&readme(), "python");
    assert!(!programs.is_empty());
    let user = User::new();
    let up = user.bash("ksi up").output().expect("bash runs");
    assert!(up.status.success(), "{}", stdout(&up));
    for program in programs {
        let mut python = user.command("python3");
        // The socket alone, and the standard library alone.
        let output = python.args(["-I", "-c", &program]).output().expect("python3 is installed");
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!stdout(&output).trim().is_empty(), "it prints nothing: {}", stderr(&output));
    }
}

#[test]
fn the_plugin_that_is_shown_is_the_one_that_is_built() {
    let file = fs::read_to_string(checkout().join("plugins/echo/src/lib.rs")).expect("the template");
    let code = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//!"));
        lines.map(str::to_owned).collect()
    };
    let file = code(file.split("#[cfg(test)]").next().unwrap_or_default());
    let readme = readme();
    let shown = blocks(&readme, "rust").into_iter().find(|block| block.contains("ksi_sdk::export!"));
    assert_eq!(code(&shown.expect("the page shows a plugin")), file);
}

#[test]
fn patterns_stand_for_numbers_and_texts() {
    for (line, pattern, like) in [
        ("3/3 ready in 21 ms", "4/4 ready in 7.5 ms", true),
        ("3 ready", "ready", false),
        ("ready 3 times", "ready", false),
        ("model llama/x, a toy", "model …, a toy", true),
        ("model llama/x, a joy", "model …, a toy", false),
        ("anything", "…", true),
        (r#"{"id":"ka7","at":"2026-01-01"}"#, r#"{"id":"…","at":"…"}"#, true),
    ] {
        assert_eq!(is_like(line, pattern), like, "{line} / {pattern}");
    }
}
