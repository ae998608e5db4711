//! One run of the command: started, given its text, read line by line, and gone
//! with everything it started when it is over, however that comes.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ksi_provider::{Delta, Generated, failure::Failure};
use ksi_provider_http::{Attempt, Output, problem::invalid, server::unusable};
use ksi_sdk::{
    Secret,
    prelude::{Code, Refusal},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdout},
    task::JoinSet,
    time::timeout,
};

use crate::{
    NAME,
    answer::{Ending, Reading, Said, failed, is_about_the_session},
    config::{Config, Limits},
    kin::{Kin, MARK},
    prompt::Prompt,
    session::Resumed,
};

/// Time to end by itself after the last line, in which it writes its session.
const ENDING: Duration = Duration::from_secs(5);
/// How much of its complaints is kept.
const COMPLAINT_BYTES_MAX: u64 = 64 * 1024;
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 * 1024;
/// What makes it print an answer while it is made, and end.
const PRINT: [&str; 5] = ["-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"];

/// How the command is started.
#[derive(Debug)]
pub(crate) struct Command {
    program: PathBuf,
    args: Vec<String>,
    path: OsString,
    home: PathBuf,
    /// Where it works: its sessions belong to a directory.
    dir: PathBuf,
    /// Where texts lie that it is to read.
    texts: PathBuf,
    key: Option<Secret>,
    silence: Duration,
    limits: Limits,
}

impl Command {
    /// Finds the program; `own` is the plugin's own directory.
    pub(crate) fn new(config: &Config, own: &Path) -> Result<Self, Refusal> {
        let path =
            config.path.clone().map(OsString::from).or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let program = find(&config.command, &path).ok_or_else(|| {
            let why = format!("is `{}`, and there is no such program that may be started", config.command);
            let hint = "name where it is; and under [plugins.claude-cli]: sandbox.exec = true, and what it lies in \
                        in sandbox.read";
            unusable(NAME, "command", why, hint)
        })?;
        let (dir, texts) = (own.join("work"), own.join("texts"));
        for dir in [&dir, &texts] {
            std::fs::create_dir_all(dir).map_err(|error| {
                Refusal::new(Code::Unavailable, format!("{NAME}: {}: {error}", dir.display()))
            })?;
        }
        Ok(Self {
            program,
            args: config.args.clone(),
            path,
            home: config.home.clone().unwrap_or_else(|| own.to_owned()),
            dir,
            texts,
            key: config.api_key.clone(),
            silence: Duration::from_millis(config.timeouts.silence_ms),
            limits: config.limits,
        })
    }
}

/// Where a program is that may be started.
fn find(name: &str, path: &OsString) -> Option<PathBuf> {
    let runs = |file: &PathBuf| {
        file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(runs);
    }
    std::env::split_paths(path).map(|dir| dir.join(name)).find(runs)
}

/// A request on its way through the command.
pub(crate) struct Run {
    command: Arc<Command>,
    /// What names the run.
    name: String,
    system: String,
    model: Option<String>,
    ignored: Vec<String>,
    whole: String,
    resumed: Option<Resumed>,
}

impl Run {
    pub(crate) fn new(
        command: Arc<Command>,
        prompt: &Prompt,
        resumed: Option<Resumed>,
        name: String,
    ) -> Self {
        Self {
            command,
            name,
            system: prompt.system.clone(),
            model: prompt.model.clone(),
            ignored: prompt.ignored.clone(),
            whole: prompt.whole(),
            resumed,
        }
    }

    /// Starts the command and reads what it says.
    async fn once(&self, resumed: Option<&Resumed>, output: &mut Output) -> Result<Generated, Refusal> {
        let system = Text::of(&self.command.texts, &self.name, &self.system)?;
        let mut child = self.start(resumed, system.as_ref())?;
        // Dropped before the child's own handle, so that none of its children has
        // become somebody else's.
        let mut _kin = Kin::new(&self.name, child.id());
        let text = resumed.map_or(&self.whole, |resumed| &resumed.text).clone();
        let mut beside = JoinSet::new();
        if let Some(mut stdin) = child.stdin.take() {
            // A command that ends early does not read it all; what it says then
            // is told.
            beside.spawn(async move {
                let _ = stdin.write_all(text.as_bytes()).await;
                String::new()
            });
        }
        let mut complaints = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            complaints.spawn(complaint(stderr));
        }
        let mut reading = Reading::default();
        let Some(ending) = self.read(&mut child, &mut reading, output).await? else {
            return Err(ended(&mut child, &mut complaints).await);
        };
        let stop_reason = ending.stop_reason(since_1970())?;
        if output.is_silent() {
            output.send(Delta::text(ending.text())).await?;
        }
        output.stop(0, stop_reason)?;
        // One that does not end is ended.
        let _ = timeout(ENDING, child.wait()).await;
        output.finish(reading.end(&ending, self.model.clone(), self.ignored.clone()))
    }

    fn start(&self, resumed: Option<&Resumed>, system: Option<&Text>) -> Result<Child, Refusal> {
        let command = &self.command;
        let mut start = tokio::process::Command::new(&command.program);
        start.args(PRINT).args(&command.args);
        if let Some(model) = &self.model {
            // In one word, so that no name can be taken for an argument.
            start.arg(format!("--model={model}"));
        }
        if let Some(resumed) = resumed {
            start.arg(format!("--resume={}", resumed.session));
        }
        if let Some(system) = system {
            start.arg("--system-prompt-file").arg(&system.0);
        }
        start.current_dir(&command.dir).env_clear();
        start.env("PATH", &command.path).env("HOME", &command.home).env(MARK, &self.name);
        if let Some(key) = &command.key {
            start.env("ANTHROPIC_API_KEY", key.expose().trim());
        }
        start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        start.spawn().map_err(|error| {
            let refusal = Failure::Unreachable.refusal(format!("`claude` cannot be started: {error}"));
            let hint = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "in ksi.toml, under [plugins.claude-cli]: sandbox.exec = true, and where it lies in sandbox.read"
                }
                _ => "is `command` under [plugins.claude-cli.config] right?",
            };
            Refusal { retryable: false, ..refusal }.hint(hint)
        })
    }

    /// Passes the text on until the last line; `None` where there was none.
    async fn read(
        &self,
        child: &mut Child,
        reading: &mut Reading,
        output: &mut Output,
    ) -> Result<Option<Box<Ending>>, Refusal> {
        let Some(stdout) = child.stdout.take() else { return Ok(None) };
        let mut lines = Lines::new(stdout, self.command.limits);
        loop {
            let Ok(line) = timeout(self.command.silence, lines.next()).await else {
                let ms = self.command.silence.as_millis();
                return Err(Failure::Timeout.refusal(format!("`claude` said nothing for {ms} ms")).hint(
                    "`timeouts.silence_ms` under [plugins.claude-cli.config] says how long is waited",
                ));
            };
            let Some(line) = line? else { return Ok(None) };
            match reading.read(line)? {
                Said::Text(text) => output.send(Delta::text(text)).await?,
                Said::End(ending) => return Ok(Some(ending)),
                Said::Nothing => {}
            }
        }
    }
}

impl Attempt for Run {
    async fn run(self, output: &mut Output) -> Result<Generated, Refusal> {
        match self.once(self.resumed.as_ref(), output).await {
            // The command has lost the session, and said nothing yet: it is told
            // everything from the start.
            Err(refusal)
                if self.resumed.is_some() && output.is_silent() && is_about_the_session(&refusal) =>
            {
                self.once(None, output).await
            }
            done => done,
        }
    }
}

/// A text in a file, which goes with it.
struct Text(PathBuf);

impl Text {
    fn of(dir: &Path, name: &str, text: &str) -> Result<Option<Self>, Refusal> {
        if text.is_empty() {
            return Ok(None);
        }
        let file = Self(dir.join(name));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&file.0)
            .and_then(|mut open| open.write_all(text.as_bytes()));
        written.map(|()| Some(file)).map_err(|error| {
            Refusal::new(Code::Unavailable, format!("{NAME}: the system's text cannot be written: {error}"))
        })
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // Nobody reads it any more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The lines of a run, within their limits.
struct Lines {
    stdout: ChildStdout,
    limits: Limits,
    buffer: Vec<u8>,
    /// The line that was taken last, and its end.
    taken: usize,
    read: usize,
}

impl Lines {
    fn new(stdout: ChildStdout, limits: Limits) -> Self {
        Self { stdout, limits, buffer: Vec::new(), taken: 0, read: 0 }
    }

    /// The next line that is not empty; `None` at the end.
    async fn next(&mut self) -> Result<Option<&[u8]>, Refusal> {
        let mut searched = 0;
        self.buffer.drain(..std::mem::take(&mut self.taken));
        let length = loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let length = searched + at;
                if !self.buffer[..length].trim_ascii().is_empty() {
                    break length;
                }
                self.buffer.drain(..=length);
                searched = 0;
                continue;
            }
            searched = self.buffer.len();
            if searched > self.limits.line_bytes {
                return Err(too_large("line_bytes", self.limits.line_bytes));
            }
            let mut piece = vec![0; READ_BYTES];
            let read = self.stdout.read(&mut piece).await;
            let read =
                read.map_err(|error| Failure::Cut.refusal(format!("`claude` was cut off: {error}")))?;
            self.read += read;
            if self.read > self.limits.answer_bytes {
                return Err(too_large("answer_bytes", self.limits.answer_bytes));
            }
            if read == 0 {
                // The last line may lack its end.
                if self.buffer.trim_ascii().is_empty() {
                    return Ok(None);
                }
                break self.buffer.len();
            }
            self.buffer.extend_from_slice(&piece[..read]);
        };
        self.taken = (length + 1).min(self.buffer.len());
        Ok(Some(self.buffer[..length].trim_ascii()))
    }
}

fn too_large(limit: &str, bytes: usize) -> Refusal {
    let message = format!("`claude` said more than the {bytes} bytes of `limits.{limit}`");
    Refusal { code: Code::TooLarge, ..Failure::InvalidAnswer.refusal(message) }
        .hint("raise it under [plugins.claude-cli.config] if that is no mistake")
}

/// What the command complains about, its beginning; the rest is read away, lest
/// it wait for a reader.
async fn complaint(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut said = Vec::new();
    let _ = (&mut stderr).take(COMPLAINT_BYTES_MAX).read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// Why a command ended that had not said its last line.
async fn ended(child: &mut Child, complaints: &mut JoinSet<String>) -> Refusal {
    let Ok(Ok(status)) = timeout(ENDING, child.wait()).await else {
        return Failure::Cut.refusal("`claude` closed its output and did not end");
    };
    let said = timeout(ENDING, complaints.join_next()).await;
    let said = said.ok().flatten().and_then(Result::ok).unwrap_or_default();
    match status.code() {
        None => Failure::Cut.refusal(format!("`claude` was ended: {status}")),
        Some(0) => invalid(NAME, "it has no last line"),
        Some(_) if said.trim().is_empty() => {
            failed(&status.to_string(), Failure::InvalidAnswer, since_1970())
        }
        Some(_) => failed(&said, Failure::InvalidAnswer, since_1970()),
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
