//! The log as its users see it: a subscriber of its own for each test, no
//! state of the process.

use std::{fs, path::Path};

use super::*;

/// Standard error that can be read back.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<u8>>>);

impl Notes {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Notes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options(file: &Path) -> Options {
    Options {
        file: file.to_owned(),
        level: "info".to_owned(),
        format: Format::Text,
        bytes_max: 1 << 20,
        files: 2,
        stderr: false,
    }
}

/// Runs `work` with a log and gives what went to standard error.
fn with_log(options: &Options, work: impl FnOnce(&Log)) -> String {
    let notes = Notes::default();
    let (subscriber, log) = build(options, Box::new(notes.clone())).unwrap();
    tracing::subscriber::with_default(subscriber, || work(&log));
    drop(log);
    notes.text()
}

#[test]
fn lines_of_text_have_a_level_a_target_and_fields() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    let notes = with_log(&options(&file), |_| {
        tracing::info!(socket = "/run/x", "listening");
        tracing::debug!("not at this level");
    });
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("INFO ksid::log::tests: listening socket=\"/run/x\"\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
    assert_eq!(notes, "");
}

#[test]
fn lines_of_json_are_objects_with_the_fields_at_the_top() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    with_log(&Options { format: Format::Json, ..options(&file) }, |_| {
        tracing::warn!(plugin = "echo", restarts = 3, "restarted");
    });
    let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(line["message"], "restarted");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["plugin"], "echo");
    assert_eq!(line["restarts"], 3);
}

#[test]
fn the_level_changes_while_the_log_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    with_log(&options(&file), |log| {
        let say = |text: &str| tracing::debug!("{text}");
        say("before");
        log.set_level("warn,ksid=debug").unwrap();
        say("between");
        assert!(log.set_level("lous").is_err());
        log.set_level("warn").unwrap();
        say("after");
    });
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("between") && !text.contains("before") && !text.contains("after"), "{text}");
}

#[test]
fn in_the_foreground_every_line_is_on_standard_error_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    let notes = with_log(&Options { stderr: true, ..options(&file) }, |_| tracing::info!("here"));
    assert_eq!(notes, fs::read_to_string(&file).unwrap());
    assert!(notes.contains("here"));
}

#[test]
fn a_full_disk_is_noted_once_and_stops_nothing() {
    let full = Path::new("/dev/full");
    let notes = with_log(&options(full), |log| {
        for _ in 0..3 {
            tracing::info!("lost");
            assert!(log.flush());
        }
        let health = log.health().unwrap();
        assert!(health.contains("/dev/full") && health.contains("No space left"), "{health}");
    });
    assert_eq!(notes.matches("cannot be written").count(), 1, "{notes}");
}

#[test]
fn a_log_that_can_be_written_again_says_what_it_lost() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    with_log(&options(&file), |log| {
        tracing::info!("first");
        assert!(log.flush());
        tracing::info!("second");
        assert!(log.flush());
        assert!(log.health().is_some());
        fs::remove_file(&file).unwrap();
        log.reopen();
        tracing::info!("third");
        assert!(log.flush());
        assert_eq!(log.health(), None);
    });
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("2 log lines were lost") && text.contains("third"), "{text}");
    assert!(!text.contains("first"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_made_is_known_before_the_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let notes = with_log(&options(&blocked.join("ksid.log")), |log| {
        tracing::info!("lost");
        assert!(log.flush());
        assert!(log.health().is_some());
    });
    assert_eq!(notes.matches("cannot be written").count(), 1, "{notes}");
}

#[test]
fn a_log_that_can_be_written_again_is_whole_without_another_line() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("state");
    fs::write(&blocked, "").unwrap();
    let file = blocked.join("ksid.log");
    with_log(&options(&file), |log| {
        tracing::info!("lost");
        assert!(log.flush());
        fs::remove_file(&blocked).unwrap();
        let deadline = Duration::from_secs(20);
        let troubled = |state: &mut State| state.trouble.is_some();
        let waited = log.shared.settled.wait_timeout_while(log.shared.lock(), deadline, troubled);
        assert!(!waited.unwrap().1.timed_out());
    });
    assert!(fs::read_to_string(&file).unwrap().contains("1 log lines were lost"));
}

/// A terminal that takes nothing until it is told to.
struct Stopped(std::sync::mpsc::Receiver<()>);

impl Write for Stopped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An error means that the test let go, which is what this waits for.
        let _ = self.0.recv();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_hangs_drops_lines_and_counts_them_and_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ksid.log");
    let (go, stopped) = std::sync::mpsc::sync_channel(0);
    let wanted = Options { stderr: true, bytes_max: 1 << 24, ..options(&file) };
    let (subscriber, log) = build(&wanted, Box::new(Stopped(stopped))).unwrap();
    let lines = 40_000;
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..lines {
            tracing::info!("a line of which far more are written than the queue can hold");
        }
    });
    drop(go);
    drop(log);
    let text = fs::read_to_string(&file).unwrap();
    let (dropped, written): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("were dropped"));
    let count = |line: &&str| -> usize {
        let before = line.split(" log lines").next().unwrap();
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(!dropped.is_empty());
    assert_eq!(written.len() + dropped.iter().map(count).sum::<usize>(), lines);
    assert!(text.len() < 3 * QUEUE_BYTES_MAX);
}

#[test]
fn a_misspelt_level_is_refused_with_the_nearest_one() {
    for (text, part, hint) in [
        ("inof", "inof", "did you mean `info`?"),
        ("warn,ksid=debgu", "ksid=debgu", "did you mean `debug`?"),
        ("", "", "one of off"),
        ("loudest", "loudest", "one of off"),
        ("=info", "=info", "one of off"),
    ] {
        let error = parse_level(text).unwrap_err();
        assert_eq!(error.part, part);
        assert!(error.hint.contains(hint), "{text}: {}", error.hint);
    }
    for text in ["info", "INFO", "off", "warn,ksid::hub=trace", "debug, ksid=info"] {
        assert!(parse_level(text).is_ok(), "{text}");
    }
}
