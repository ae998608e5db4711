//! `logs`: the daemon's log, text or JSON lines.
//!
//! The log must be readable when the daemon is dead or mute, so it is read
//! from its file and not asked for. Following a file means looking at it
//! again and again: this is the one place where `ksi` looks instead of being
//! told, four times a second, and it costs the daemon nothing.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    args::{self, Level},
    error::{Failure, Result},
    invocation::Invocation,
    output::{Report, short_lines},
};

/// Pause between two looks at a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `ksi logs`.
///
/// # Errors
///
/// Ends with 4 where there is no log.
pub(super) async fn logs(at: &Invocation, options: &args::Logs) -> Result<()> {
    let path = at.paths.log_file();
    let mut filter = Filter::new(options.level);
    let mut follower = Follower::open(&path)?;
    let mut last = VecDeque::with_capacity(options.lines.min(10_000));
    follower.read(|line| {
        if filter.passes(&line) {
            if last.len() >= options.lines {
                last.pop_front();
            }
            last.push_back(line);
        }
        Ok(())
    })?;
    for line in last.iter().filter(|_| options.lines > 0) {
        print(at, line)?;
    }
    if !options.follow {
        return Ok(());
    }
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        follower.advance(|line| if filter.passes(&line) { print(at, &line) } else { Ok(()) })?;
    }
}

/// The last lines of a log.
///
/// # Errors
///
/// Fails where there is none.
pub(super) fn tail(path: &Path, count: usize) -> Result<Vec<String>> {
    let mut last = VecDeque::new();
    Follower::open_near_end(path)?.read(|line| {
        if last.len() >= count {
            last.pop_front();
        }
        last.push_back(line);
        Ok(())
    })?;
    Ok(short_lines(last))
}

fn print(at: &Invocation, line: &str) -> Result<()> {
    // A line of text becomes an object, so that a program always gets one.
    let value = || {
        let value = serde_json::from_str::<Value>(line).ok().filter(Value::is_object);
        value.unwrap_or_else(|| json!({"level": level(line).map(name), "line": line}))
    };
    let data = if at.out.machine() { value() } else { Value::Null };
    at.out.item(&Report::text(&data, line)?)
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// The level of a line, where it has one: the key of a JSON line, else one of
/// the first words of a text.
fn level(line: &str) -> Option<Level> {
    let parsed;
    let word = if line.starts_with('{') {
        parsed = serde_json::from_str::<Value>(line).ok()?;
        parsed.get("level")?.as_str()?
    } else {
        line.split_whitespace().nth(1)?
    };
    Some(match word.to_ascii_lowercase().as_str() {
        "error" => Level::Error,
        "warn" => Level::Warn,
        "info" => Level::Info,
        "debug" => Level::Debug,
        "trace" => Level::Trace,
        _ => return None,
    })
}

/// Lets lines of a level and worse pass. A line without a level belongs to
/// the one before it: a panic's backtrace for example.
struct Filter {
    least: Option<Level>,
    passing: bool,
}

impl Filter {
    fn new(least: Option<Level>) -> Self {
        Self { least, passing: true }
    }

    fn passes(&mut self, line: &str) -> bool {
        let Some(least) = self.least else { return true };
        if let Some(level) = level(line) {
            self.passing = level <= least;
        }
        self.passing
    }
}

/// Reads a file line by line as it grows, and goes on with its successor when
/// it has been moved aside.
struct Follower {
    path: PathBuf,
    reader: BufReader<File>,
    inode: u64,
    position: u64,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
}

/// Bytes at the end of a log in which the last few lines are sought.
const NEAR_END_BYTES: u64 = 64 * 1024;

impl Follower {
    fn open(path: &Path) -> Result<Self> {
        let opened = File::open(path).and_then(|file| {
            let inode = file.metadata()?.ino();
            Ok((file, inode))
        });
        let (file, inode) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::not_found("log", &path.display().to_string())
                .hint("there is one once the daemon has run: ksi up"),
            _ => Failure::to_file("read", path, &error),
        })?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            inode,
            position: 0,
            partial: Vec::new(),
        })
    }

    fn open_near_end(path: &Path) -> Result<Self> {
        let mut follower = Self::open(path)?;
        let wrong = |error: io::Error| Failure::to_file("read", path, &error);
        let length = follower.reader.get_ref().metadata().map_err(wrong)?.len();
        if length > NEAR_END_BYTES {
            follower.position = length - NEAR_END_BYTES;
            follower.reader.seek(SeekFrom::Start(follower.position)).map_err(wrong)?;
            // The first line is most likely cut.
            let mut cut = Vec::new();
            follower.position += follower.reader.read_until(b'\n', &mut cut).map_err(wrong)? as u64;
        }
        Ok(follower)
    }

    /// Reads to the end of what is there.
    fn read(&mut self, mut each: impl FnMut(String) -> Result<()>) -> Result<()> {
        loop {
            let read = self.reader.read_until(b'\n', &mut self.partial);
            let read = read.map_err(|error| Failure::to_file("read", &self.path, &error))?;
            self.position += read as u64;
            if self.partial.pop_if(|byte| *byte == b'\n').is_none() {
                return Ok(());
            }
            let line = std::mem::take(&mut self.partial);
            each(String::from_utf8_lossy(&line).into_owned())?;
        }
    }

    /// Reads what is new, in this file and in the one that took its place.
    fn advance(&mut self, mut each: impl FnMut(String) -> Result<()>) -> Result<()> {
        self.read(&mut each)?;
        // Between two files there may be none for a moment.
        let Ok(meta) = self.path.metadata() else { return Ok(()) };
        if meta.ino() != self.inode {
            // What came between the last read and the move is still in the old file.
            self.read(&mut each)?;
            *self = Self::open(&self.path)?;
            return self.read(each);
        }
        if meta.len() < self.position {
            // Somebody has emptied it.
            self.position = 0;
            self.partial.clear();
            self.reader
                .seek(SeekFrom::Start(0))
                .map_err(|error| Failure::to_file("read", &self.path, &error))?;
            return self.read(each);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write};

    const TEXT: &str = "2026-01-01T00:00:00.000000Z  INFO ksid::hub: listening";

    #[test]
    fn levels_are_found_in_text_and_in_json() {
        for (line, expected) in [
            (TEXT, Some(Level::Info)),
            ("2026-01-01T00:00:00Z ERROR x: y", Some(Level::Error)),
            (r#"{"timestamp":"t","level":"WARN","message":"m"}"#, Some(Level::Warn)),
            ("   3: std::panicking", None),
            ("", None),
        ] {
            assert_eq!(level(line), expected, "{line}");
        }
    }

    #[test]
    fn lines_without_a_level_follow_the_one_before() {
        let mut filter = Filter::new(Some(Level::Warn));
        let passed: Vec<_> = [TEXT, "  more info", "t ERROR bad", "  backtrace", "t DEBUG x"]
            .into_iter()
            .filter(|line| filter.passes(line))
            .collect();
        assert_eq!(passed, ["t ERROR bad", "  backtrace"]);
    }

    /// What a look at the log finds.
    fn look(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower
            .advance(|line| {
                lines.push(line);
                Ok(())
            })
            .unwrap();
        lines
    }

    #[test]
    fn following_survives_rotation_emptying_and_half_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        let append = |text: &str| {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("one\ntw");
        let mut follower = Follower::open(&path).unwrap();
        assert_eq!(look(&mut follower), ["one"]);
        append("o\nthree\n");
        assert_eq!(look(&mut follower), ["two", "three"]);
        append("last of old\n");
        fs::rename(&path, dir.path().join("ksid.log.1")).unwrap();
        assert_eq!(look(&mut follower), ["last of old"]);
        append("first of new\n");
        assert_eq!(look(&mut follower), ["first of new"]);
        fs::File::create(&path).unwrap();
        assert_eq!(look(&mut follower), Vec::<String>::new());
        append("again\n");
        assert_eq!(look(&mut follower), ["again"]);
    }

    #[test]
    fn the_tail_of_a_long_log_is_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        let lines: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        fs::write(&path, lines).unwrap();
        assert_eq!(tail(&path, 2).unwrap(), ["line 9998", "line 9999"]);
        assert!(tail(&dir.path().join("none"), 2).is_err());
    }
}
