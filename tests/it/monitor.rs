//! `ksi-monitor`, and `ksi top` that runs it: on a terminal, and once.

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, command, stderr, stdout, terminal::Terminal, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// A monitor on a screen, past its start.
fn watching(home: &Home, columns: u16, rows: u16, program: &str) -> Terminal {
    let terminal = Terminal::open(home.path(), columns, rows);
    terminal.enter(program);
    terminal.shows("1 Overview");
    terminal
}

fn tell(daemon: &Daemon, event: &str, data: &Value) {
    let mut lines = daemon.lines();
    lines.send(&json!({"emit": event, "data": data}));
    // An answer to what was sent behind it: the event has been delivered.
    lines.send(&json!({"event": "system:health"}));
    lines.receive();
}

/// Leaves the monitor and looks whether the terminal is as it was.
fn leaves(terminal: &Terminal) {
    terminal.back_at_shell();
    assert!(!terminal.alternate(), "the alternate screen is left");
    terminal.enter("stty -a; echo typed");
    let screen = terminal.until("the settings", |screen| screen.lines().any(|line| line == "typed"));
    assert!(
        !screen.contains("-icanon") && !screen.contains("-echo ") && screen.contains("icanon"),
        "{screen}"
    );
}

#[test]
fn the_views_show_plugins_and_events_as_they_happen() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = watching(&daemon.home, 120, 36, "ksi top");
    for part in ["● ok", "completion", "in-process", "events/s", "plugins 4/4", "q quit", "? help"] {
        terminal.shows(part);
    }
    // What is off because nobody wants it is no warning.
    assert!(!terminal.screen().contains("! "), "{}", terminal.screen());
    terminal.press(&["2"]);
    terminal.shows("live ");
    tell(&daemon, "my:event", &json!({"n": 41}));
    let screen = terminal.shows("my:event");
    assert!(screen.contains(r#"{"n":41}"#) && screen.contains("space pause"), "{screen}");
    terminal.press(&["Enter"]);
    terminal.shows("── event, line 1 of");
    terminal.press(&["Escape"]);
    terminal.until("the list", |screen| !screen.contains("── event, line"));
    terminal.press(&["3"]);
    terminal.shows("plugins by");
    terminal.press(&["Enter"]);
    terminal.until("a plugin", |screen| screen.contains("work:list"));
    terminal.press(&["Escape", "?"]);
    terminal.shows("Everywhere");
    terminal.press(&["?", "q"]);
    leaves(&terminal);
}

#[test]
fn a_filter_hides_and_a_pause_counts() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = watching(&daemon.home, 120, 36, "ksi-monitor");
    terminal.press(&["2"]);
    terminal.shows("live ");
    terminal.press(&["/"]);
    terminal.write("shown:*");
    terminal.press(&["Enter"]);
    terminal.shows("/shown:*");
    tell(&daemon, "hidden:event", &json!({}));
    tell(&daemon, "shown:event", &json!({"n": 1}));
    let screen = terminal.shows("shown:event");
    assert!(!screen.contains("hidden:event"), "{screen}");
    terminal.press(&["Escape"]);
    terminal.shows("hidden:event");
    terminal.press(&["Space"]);
    terminal.shows("PAUSED");
    tell(&daemon, "later:event", &json!({}));
    let screen = terminal.shows("PAUSED +1");
    assert!(!screen.contains("later:event"), "{screen}");
    terminal.press(&["Space"]);
    terminal.shows("later:event");
    terminal.press(&["q"]);
    leaves(&terminal);
}

#[test]
fn it_says_that_the_daemon_is_gone_and_goes_on_with_the_next() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = watching(&daemon.home, 120, 36, "ksi-monitor");
    let boot = |daemon: &Daemon| daemon.status().boot;
    let before = boot(&daemon);
    terminal.shows(&before);
    let home = daemon.kill();
    terminal.until("a banner", |screen| screen.lines().nth(1).is_some_and(|line| line.contains("connect")));
    // What was known last still stands.
    assert!(terminal.screen().contains("completion"));
    let daemon = home.start();
    daemon.ready();
    let after = boot(&daemon);
    assert_ne!(before, after);
    let screen = terminal.shows(&after);
    assert!(screen.contains("● "), "{screen}");
    terminal.press(&["2"]);
    tell(&daemon, "my:event", &json!({}));
    terminal.shows("my:event");
    terminal.press(&["q"]);
    leaves(&terminal);
}

#[test]
fn it_waits_for_a_daemon_that_is_not_there_yet() {
    let home = Home::with_config(WITHOUT_MODEL);
    let terminal = watching(&home, 100, 30, "ksi top");
    terminal.until("a word on it", |screen| screen.contains("not running") || screen.contains("no data yet"));
    let daemon = home.start();
    daemon.ready();
    terminal.shows("● ok");
    terminal.press(&["q"]);
    leaves(&terminal);
}

#[test]
fn a_small_screen_and_one_that_changes_are_enough() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = watching(&daemon.home, 40, 12, "ksi-monitor");
    terminal.shows("events/s");
    for key in ["2", "3", "1"] {
        terminal.press(&[key]);
        terminal.shows("q quit");
    }
    terminal.press(&["2"]);
    for (columns, rows) in [(20, 5), (5, 2), (120, 40)] {
        terminal.resize(columns, rows);
        tell(&daemon, "my:event", &json!({"columns": columns}));
    }
    terminal.shows(r#"{"columns":120}"#);
    terminal.press(&["q"]);
    leaves(&terminal);
}

#[test]
fn ctrl_c_and_signals_restore_the_terminal() {
    let daemon = Daemon::without_model();
    let terminal = watching(&daemon.home, 100, 30, "ksi-monitor");
    terminal.press(&["C-c"]);
    leaves(&terminal);
    terminal.enter("clear; sh -c 'echo $$ > pid; exec ksi-monitor'");
    terminal.shows("1 Overview");
    let pid = std::fs::read_to_string(daemon.home.path().join("pid")).expect("it told its pid");
    kill(Pid::from_raw(pid.trim().parse().expect("a pid")), Signal::SIGTERM).expect("it is there");
    leaves(&terminal);
}

#[test]
fn without_colours_there_are_none() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = Terminal::open(daemon.home.path(), 100, 30);
    terminal.enter("NO_COLOR=1 ksi-monitor");
    terminal.shows("● ok");
    // 39 and 49 take a colour off again.
    let colours = |text: &str| {
        let sequences = text.split('\u{1b}').filter_map(|rest| rest.strip_prefix('[')?.split_once('m'));
        let numbers = sequences.flat_map(|(numbers, _)| numbers.split(';'));
        numbers
            .filter_map(|number| number.parse::<u8>().ok())
            .any(|n| matches!(n, 30..=38 | 40..=48 | 90..=107))
    };
    assert!(!colours(&terminal.painted()), "{}", terminal.painted());
    terminal.press(&["q"]);
    terminal.back_at_shell();
    terminal.enter("clear; ksi-monitor");
    terminal.shows("● ok");
    assert!(colours(&terminal.painted()), "{}", terminal.painted());
}

#[test]
fn once_prints_a_snapshot_and_ends_with_the_state() {
    let home = Home::with_config(WITHOUT_MODEL);
    let once = |home: &Home, more: &[&str]| {
        command("ksi-monitor", home.path()).arg("--once").args(more).output().expect("ksi-monitor runs")
    };
    let output = once(&home, &["--json"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(3), String::new()));
    assert!(stderr(&output).contains("no daemon"), "{}", stderr(&output));
    let daemon = home.start();
    daemon.ready();
    for output in [once(&daemon.home, &["--json"]), daemon.ksi(&["top", "--once", "--json"])] {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let snapshot: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(snapshot["status"]["health"]["status"], "ok", "{snapshot}");
        assert_eq!(
            snapshot["status"]["plugins"].as_array().map(Vec::len),
            Some(daemon.status().plugins.len())
        );
        assert!(snapshot["latency_us"].as_u64().is_some_and(|micros| micros > 0), "{snapshot}");
    }
    let text = stdout(&once(&daemon.home, &[]));
    assert!(text.contains("PLUGIN") && text.contains("completion") && !text.contains('\u{1b}'), "{text}");
    let degraded = Home::with_config("[plugins.lost]\nlibrary = \"/nowhere/liblost.so\"\n").start();
    wait_until("the plugin has failed", || !degraded.health().reasons.is_empty());
    assert_eq!(once(&degraded.home, &[]).status.code(), Some(8));
}

#[test]
fn without_a_terminal_it_says_so() {
    let home = Home::new();
    for output in [command("ksi-monitor", home.path()).output().expect("it runs"), home.ksi(&["top"])] {
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("--once"), "{}", stderr(&output));
    }
    let wrong = command("ksi-monitor", home.path()).arg("--nonsense").output().expect("it runs");
    assert_eq!(wrong.status.code(), Some(2));
}
