//! The daemon's log: lines of text or JSON in a file that never outgrows its
//! limit, and on standard error where the daemon runs in the foreground.
//!
//! Whoever logs only copies a line into a bounded queue; one thread writes.
//! The log refuses to be a reason for anything to wait or to stop: what the
//! queue cannot hold is dropped and counted, a full disk or a directory that
//! cannot be written is a reason in [`health`], and both are written down as
//! soon as there is room again.
//!
//! # Invariants
//!
//! * No call of `tracing` waits for a disk or for a terminal.
//! * Every line that is lost is counted, and the count is logged later.
//! * No line reaches a file or a terminal past [`redaction`].
//!
//! # Failure
//!
//! Only [`init`] fails, and only where a second log is asked for or no thread
//! can be had. A terminal that is stopped (`^S`) stops the writing thread, so
//! in the foreground lines may be dropped there.

mod file;

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use file::LogFile;
use ksi_protocol::nearest;
use serde::Serialize;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{self, MakeWriter, format::Writer, time::FormatTime as _},
    layer::SubscriberExt as _,
    registry::Registry,
    reload,
    util::SubscriberInitExt as _,
};

use crate::redaction;

/// Bytes of lines that may wait for the writing thread. A burst of some ten
/// thousand lines fits; more is dropped and counted.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Capacity that the queue keeps after a burst.
const QUEUE_BYTES_KEPT: usize = 64 * 1024;

/// How long the end of the daemon waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two attempts to write to a log that cannot be written, while
/// nobody logs.
const RETRY_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Names of levels, from nothing to everything.
pub const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people: `2026-01-01T00:00:00.000000Z  INFO ksid::hub: listening`.
    Text,
    /// One JSON object a line, fields of the event at its top level.
    Json,
}

/// What the log shall be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file; older ones lie beside it as `FILE.1`, `FILE.2`, and so on.
    pub file: PathBuf,
    /// Level, or level by target: `info,ksid::session=debug`.
    pub level: String,
    /// How a line looks.
    pub format: Format,
    /// Size in bytes at which the file is moved aside.
    pub bytes_max: u64,
    /// How many older files are kept.
    pub files: usize,
    /// Whether every line also goes to standard error (`--foreground`).
    pub stderr: bool,
}

/// Why there is no log, or no other level.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is none.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// Something in this process logs already.
    #[error("the log is set up already")]
    AlreadySet,
    /// The thread that writes cannot be had.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// The log has ended.
    #[error("the log has ended")]
    Ended,
}

/// Why a text is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` is no log level")]
pub struct LevelError {
    /// The part of the text that is wrong.
    pub part: String,
    /// What to write instead.
    pub hint: String,
}

/// Parses `info` or `warn,ksid::session=debug`. A misspelt level is refused
/// here, where the parser beneath would take it for the name of a target.
///
/// # Errors
///
/// Names the part that is wrong, and the nearest level.
pub fn parse_level(text: &str) -> Result<Targets, LevelError> {
    let mut targets = Targets::new();
    for part in text.split(',').map(str::trim) {
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, part),
        };
        let filter = match level.to_ascii_lowercase().as_str() {
            "off" => LevelFilter::OFF,
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return Err(level_error(part, level)),
        };
        match target {
            None => targets = targets.with_default(filter),
            Some(target) if is_target(target) => targets = targets.with_target(target, filter),
            Some(_) => return Err(level_error(part, level)),
        }
    }
    Ok(targets)
}

fn is_target(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
    !text.is_empty() && text.bytes().all(allowed)
}

fn level_error(part: &str, level: &str) -> LevelError {
    let hint = match nearest::best(level, LEVELS) {
        Some(known) if known != level => format!("did you mean `{known}`?"),
        _ => format!("one of {}, or `TARGET=LEVEL`, joined by commas", LEVELS.join(", ")),
    };
    LevelError { part: part.to_owned(), hint }
}

/// The log of this process, for [`health`].
static LOG: OnceLock<Arc<Shared>> = OnceLock::new();

/// Why the log is not whole: one sentence, `None` where all is well.
#[must_use]
pub fn health() -> Option<String> {
    LOG.get().and_then(|shared| shared.lock().trouble.clone())
}

/// Sets up the log of this process.
///
/// A file that cannot be written is no error: the log says so on standard
/// error and in [`health`], and tries again.
///
/// # Errors
///
/// Fails where the level is none, where there is a log already, and where no
/// thread can be had.
pub fn init(options: &Options) -> Result<Log, Error> {
    let (subscriber, log) = build(options, Box::new(io::stderr()))?;
    subscriber.try_init().map_err(|_| Error::AlreadySet)?;
    // A second log never comes this far, so the cell is empty.
    LOG.get_or_init(|| Arc::clone(&log.shared));
    Ok(log)
}

/// Holds the log; its end writes what waits and stops the thread.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    level: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Logs from now on at another level.
    ///
    /// # Errors
    ///
    /// Refuses what is no level; the old one then stays.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        let targets = parse_level(level)?;
        self.level.reload(targets).map_err(|_| Error::Ended)
    }

    /// Opens the file anew, after something else has moved or removed it.
    pub fn reopen(&self) {
        self.shared.lock().reopen = true;
        self.shared.wake.notify_one();
    }

    /// Waits until all that was logged before is written or lost; `false`
    /// where that took longer than two seconds.
    #[must_use]
    pub fn flush(&self) -> bool {
        let state = self.shared.lock();
        let wanted = state.pushed;
        let settled = self
            .shared
            .settled
            .wait_timeout_while(state, FLUSH_TIMEOUT, |state| state.settled < wanted && !state.ended);
        !settled.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Why the log is not whole; see [`health`].
    #[must_use]
    pub fn health(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.wake.notify_one();
        // The thread is not joined: a disk that hangs must not hang the end.
        let ended = self.shared.settled.wait_timeout_while(state, FLUSH_TIMEOUT, |state| !state.ended);
        drop(ended);
    }
}

/// What those who log and the thread that writes have in common.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the thread.
    wake: Condvar,
    /// The thread has done something.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines that wait to be written.
    text: Vec<u8>,
    /// Lines that found no room since the thread last looked.
    dropped: u64,
    /// Bytes ever queued, and how many of them are written or lost.
    pushed: u64,
    settled: u64,
    reopen: bool,
    stopping: bool,
    ended: bool,
    /// Why the log is not whole.
    trouble: Option<String>,
}

impl Shared {
    /// The state holds plain data that is whole between any two statements,
    /// so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.stopping || state.text.len() + line.len() > QUEUE_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        if state.text.is_empty() {
            self.wake.notify_one();
        }
        state.text.extend_from_slice(line);
        state.pushed += line.len() as u64;
    }
}

/// What `tracing` writes into: each write is one whole line.
#[derive(Debug, Clone)]
struct Queue(Arc<Shared>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Makes the log without making it that of the process. `notes` is where a
/// log that cannot be written says so, and where lines go in the foreground.
fn build(
    options: &Options,
    notes: Box<dyn Write + Send>,
) -> Result<(impl Subscriber + Send + Sync + 'static, Log), Error> {
    let targets = parse_level(&options.level)?;
    let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), settled: Condvar::new() });
    let writer = Thread {
        shared: Arc::clone(&shared),
        file: LogFile::new(options.file.clone(), options.bytes_max, options.files),
        format: options.format,
        notes,
        echo: options.stderr,
        lost: 0,
        troubled: false,
    };
    std::thread::Builder::new()
        .name("ksid-log".to_owned())
        .spawn(move || writer.run())
        .map_err(Error::Thread)?;

    let (filter, level) = reload::Layer::new(targets);
    let lines = fmt::layer().with_ansi(false).with_writer(Queue(Arc::clone(&shared)));
    let lines = match options.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Ok((Registry::default().with(filter).with(lines), Log { shared, level }))
}

/// The thread that writes.
struct Thread {
    shared: Arc<Shared>,
    file: LogFile,
    format: Format,
    notes: Box<dyn Write + Send>,
    echo: bool,
    /// Lines that the file did not take since it last took one.
    lost: u64,
    /// The last attempt to write failed.
    troubled: bool,
}

impl Thread {
    fn run(mut self) {
        let mut batch = Vec::new();
        // A directory that cannot be written shall be known at the start,
        // not with the first line.
        self.write(&[]);
        loop {
            let (dropped, reopen, stopping) = self.wait(&mut batch);
            if reopen {
                self.file.reopen();
            }
            if self.lost > 0 {
                self.report_lost();
            } else if self.troubled {
                self.write(&[]);
            }
            if !batch.is_empty() {
                self.write(&redaction::bytes(&batch));
            }
            if dropped > 0 {
                let notice =
                    self.notice(&format!("{dropped} log lines were dropped, the log could not keep up"));
                self.write(&notice);
            }
            self.settle(&mut batch, stopping);
            if stopping {
                return;
            }
        }
    }

    /// Waits for work and takes it; the emptied batch becomes the new queue.
    /// A log in trouble also ends the wait now and then, to try again.
    fn wait(&self, batch: &mut Vec<u8>) -> (u64, bool, bool) {
        let idle = |state: &mut State| {
            state.text.is_empty() && state.dropped == 0 && !state.reopen && !state.stopping
        };
        let (wake, state) = (&self.shared.wake, self.shared.lock());
        let mut state = if self.troubled {
            wake.wait_timeout_while(state, RETRY_PAUSE, idle).unwrap_or_else(PoisonError::into_inner).0
        } else {
            wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner)
        };
        std::mem::swap(&mut state.text, batch);
        (std::mem::take(&mut state.dropped), std::mem::take(&mut state.reopen), state.stopping)
    }

    fn settle(&self, batch: &mut Vec<u8>, stopping: bool) {
        let mut state = self.shared.lock();
        state.settled += batch.len() as u64;
        state.ended = stopping;
        self.shared.settled.notify_all();
        drop(state);
        batch.clear();
        batch.shrink_to(QUEUE_BYTES_KEPT);
    }

    fn write(&mut self, lines: &[u8]) {
        if self.echo {
            // A closed terminal is no reason for anything.
            let _ = self.notes.write_all(lines);
        }
        match self.file.write(lines) {
            Ok(()) => {
                self.troubled = false;
                if self.lost == 0 {
                    self.shared.lock().trouble = None;
                }
            }
            Err(failure) => {
                self.troubled = true;
                self.lost += failure.lines;
                let reason =
                    format!("the log {} cannot be written: {}", self.file.path().display(), failure.error);
                let first = self.shared.lock().trouble.replace(reason.clone()).is_none();
                if first {
                    let _ = writeln!(self.notes, "ksid: {reason}");
                }
            }
        }
    }

    /// Tries to write down how many lines are lost; that the attempt works
    /// means that the log is whole again.
    fn report_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        let notice = self.notice(&format!("{lost} log lines were lost while the log could not be written"));
        self.write(&notice);
        if self.lost > 0 {
            self.lost = lost;
        }
    }

    /// A line of the log's own, in the log's format.
    fn notice(&self, text: &str) -> Vec<u8> {
        let mut time = String::new();
        // A clock before 1970 leaves the time out; nothing else can fail.
        let _ = fmt::time::SystemTime.format_time(&mut Writer::new(&mut time));
        let target = module_path!();
        match self.format {
            Format::Text => format!("{time}  WARN {target}: {text}\n").into_bytes(),
            Format::Json => {
                let line = serde_json::json!({
                    "timestamp": time, "level": "WARN", "message": text, "target": target,
                });
                format!("{line}\n").into_bytes()
            }
        }
    }
}

#[cfg(test)]
mod tests;
