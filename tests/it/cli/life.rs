//! `up`, `start`, `stop`, `restart`, `status`, `health`, and `ksi` alone.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    process::Stdio,
    time::{Duration, Instant},
};

use ksi_tests::{
    Daemon, Home, WITHOUT_MODEL, command, stderr, stdout,
    terminal::{Terminal, shell},
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Started, data, ended, error, failed, fine, waited};

/// A plugin whose library is missing: the daemon runs, but not all of it.
const DEGRADED: &str =
    "[plugins.llama]\nenabled = false\n[plugins.lost]\nlibrary = \"/nowhere/liblost.so\"\n";

/// Whether a process is there and has not ended.
fn runs(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.split_whitespace().next(), Some("Z" | "X")))
}

#[test]
fn start_returns_when_the_daemon_is_ready_and_says_where_it_logs() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let began = Instant::now();
    let output = fine(started.0.ksi(&["start"]));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let said = stdout(&output);
    let log = started.0.paths().log_file();
    assert!(said.contains("4/4 plugins ready") && said.contains(&log.display().to_string()), "{said}");
    assert!(log.is_file());
    assert_eq!(
        stdout(&fine(started.0.ksi(&["send", "echo:say", "--text", "x", "-o", "jsonl"]))),
        "{\"text\":\"x\"}\n"
    );
}

#[test]
fn a_start_that_takes_too_long_says_why() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let dir = started.0.paths().plugin_dir("checkpoint");
    fs::create_dir_all(&dir).unwrap();
    // Where the directory of the journal is to be; so what needs it does not start.
    fs::write(dir.join("journal"), "").unwrap();
    let output = started.0.ksi(&["start", "--timeout", "2s"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("plugins are ready; plugin checkpoint is"), "{said}");
    // What waits for it has its own time to start, and then nobody waits any longer.
    let began = Instant::now();
    let output = fine(started.0.ksi(&["start"]));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(stderr(&output).contains("plugin checkpoint is"), "{}", stderr(&output));
}

#[test]
fn a_daemon_that_was_started_holds_no_stream_of_its_starter() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    // A pipe behind standard output, error, and a descriptor that nobody knows.
    for line in ["ksi start", "ksi start -o json 3>&1 9>&2", "ksi restart 7>&1", "ksi up 4>&1"] {
        let child = shell(started.0.path(), line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell runs");
        let output = waited(child);
        assert!(stdout(&output).contains("ksid"), "{line}: {}", stderr(&output));
        if !line.contains("restart") {
            fine(started.0.ksi(&["stop"]));
        }
    }
}

#[test]
fn a_daemon_outlives_the_terminal_that_it_was_started_in() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let terminal = Terminal::open(started.0.path(), 100, 20);
    terminal.enter("ksi start");
    terminal.shows("started: pid");
    let pid = data(started.0.ksi(&["health", "-o", "json"]))["pid"].as_u64().expect("a pid");
    drop(terminal);
    let health = data(started.0.ksi(&["health", "-o", "json"]));
    assert_eq!(health["pid"], pid);
}

#[test]
fn a_second_start_finds_the_first() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let first = data(started.0.ksi(&["start", "-o", "json"]));
    assert_eq!(first["status"], "started");
    let second = data(started.0.ksi(&["start", "-o", "json"]));
    assert_eq!((&second["status"], &second["pid"]), (&"already_running".into(), &first["pid"]));
    let said = stdout(&fine(started.0.ksi(&["start"])));
    assert!(said.contains("is already running"), "{said}");
}

#[test]
fn starts_at_the_same_time_start_one_daemon() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut ksi = command("ksi", started.0.path());
            ksi.args(["start", "-o", "json"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            ksi.spawn().expect("ksi runs")
        })
        .collect();
    let pids: Vec<_> = children.into_iter().map(|child| data(waited(child))["pid"].clone()).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
}

#[test]
fn what_a_killed_daemon_leaves_behind_blocks_no_start() {
    let home = Home::with_config(WITHOUT_MODEL).start().kill();
    assert!(home.paths().socket.exists() && home.paths().lock_file().exists());
    // The pid in the lock now is that of somebody who lives.
    fs::write(home.paths().lock_file(), std::process::id().to_string()).expect("the lock can be written");
    failed(home.ksi(&["plugin", "list"]), 3);
    let started = Started(home);
    fine(started.0.ksi(&["start"]));
    fine(started.0.ksi(&["health"]));
}

#[test]
fn a_broken_configuration_stops_the_start_and_is_quoted() {
    let home = Home::with_config("[daemon]\nlog_levl = \"debug\"\nshutdown_grace = 5\n");
    for verb in ["start", "up", "restart"] {
        let words = failed(home.ksi(&[verb]), 1);
        for part in ["ksi.toml:2:1", "log_levl", "did you mean `log_level`", "ksi.toml:3:", "ksi doctor"] {
            assert!(words.contains(part), "{verb}: no `{part}` in: {words}");
        }
    }
    let error = error(home.ksi(&["start", "-o", "json"]), 1);
    assert_eq!(error["code"], "start_failed");
    assert!(error["details"]["last_words"].to_string().contains("log_levl"), "{error}");
    failed(home.ksi(&["start", "-q", "--timeout", "5s"]), 1);
}

#[test]
fn stop_returns_when_the_process_is_gone_and_once_more_is_fine() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let pid = data(started.0.ksi(&["start", "-o", "json"]))["pid"].as_u64().expect("a pid");
    let stopped = data(started.0.ksi(&["stop", "-o", "json"]));
    assert_eq!((&stopped["status"], &stopped["pid"]), (&"stopped".into(), &pid.into()));
    assert!(!runs(pid), "{pid} runs");
    assert!(!started.0.paths().socket.exists());
    let said = stdout(&fine(started.0.ksi(&["stop"])));
    assert!(said.contains("not running"), "{said}");
    assert_eq!(data(started.0.ksi(&["stop", "-o", "json"]))["status"], "not_running");
}

#[test]
fn stop_signals_no_daemon_that_says_no_or_listens_elsewhere() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    let refused = command("ksi", daemon.home.path())
        .arg("stop")
        .env("KSI_TOKEN", "ksi_0a1b2c3d")
        .stdin(Stdio::null())
        .output()
        .expect("ksi runs");
    let words = failed(refused, 5);
    assert!(!words.contains("SIGTERM"), "{words}");
    let other = daemon.home.path().join("other.sock").display().to_string();
    let output = fine(daemon.ksi(&["--socket", &other, "stop"]));
    assert!(stdout(&output).contains(&format!("not running at {other}")), "{}", stdout(&output));
    let socket = daemon.home.paths().socket;
    let words = stderr(&output);
    assert!(words.contains(&format!("pid {}, listens on {}", daemon.pid(), socket.display())), "{words}");
    assert!(daemon.is_alive());
    assert_eq!(daemon.health().pid, daemon.pid());
}

#[test]
fn stop_ends_a_daemon_that_nobody_can_reach_any_more() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    fs::remove_file(daemon.home.paths().socket).expect("it is there");
    let output = fine(daemon.ksi(&["stop"]));
    assert!(stderr(&output).contains("SIGTERM"), "{}", stderr(&output));
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn whoever_may_only_stop_and_restart_can() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    let token = data(daemon.ksi(&["token", "create", "ops", "--can", "system.admin", "-o", "json"]));
    let token = token["token"].as_str().expect("a token").to_owned();
    let ksi = |verb: &str| {
        let mut ksi = command("ksi", daemon.home.path());
        ksi.args([verb, "-o", "json"]).env("KSI_TOKEN", &token).stdin(Stdio::null());
        data(ksi.output().expect("ksi runs"))
    };
    let restarted = ksi("restart");
    assert_eq!((&restarted["status"], &restarted["before"]), (&"restarted".into(), &daemon.pid().into()));
    assert_eq!(ksi("stop")["pid"], daemon.pid());
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn a_relative_home_is_the_same_place_for_the_daemon() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let ksi = |arguments: &[&str]| {
        let mut ksi = command("ksi", started.0.path());
        ksi.args(arguments).env("KSI_HOME", ".").stdin(Stdio::null()).output().expect("ksi runs")
    };
    fine(ksi(&["start"]));
    fine(started.0.ksi(&["health"]));
    assert!(started.0.paths().state_dir.is_dir());
    fine(ksi(&["stop"]));
}

#[test]
fn a_home_that_is_no_text_is_refused_and_no_other_is_taken() {
    let home = Home::new();
    let other = home.path().join(OsStr::from_bytes(b"x\xff"));
    for (program, verb) in [("ksi", "start"), ("ksi", "stop"), ("ksid", "--check-config")] {
        let output = command(program, home.path())
            .arg(verb)
            .env("KSI_HOME", &other)
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        let words = failed(output, 2);
        assert!(words.contains("UTF-8"), "{program} {verb}: {words}");
    }
    assert_eq!(fs::read_dir(home.path()).expect("it is there").count(), 0, "nothing was made");
}

#[test]
fn stop_gives_requests_their_grace_and_then_goes() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    fine(started.0.ksi(&["start"]));
    let mut ask = command("ksi", started.0.path());
    let ask = ask
        .args(["ask", "-m", "mock/hang", "x"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = ask.spawn().expect("ksi runs");
    wait_until("the request runs", || {
        data(started.0.ksi(&["send", "completion:status", "-o", "json"]))["running"] == 1
    });
    fine(started.0.ksi(&["stop", "--grace", "100ms"]));
    let output = waited(child);
    assert!(!output.status.success() && stderr(&output).contains("stop"), "{}", stderr(&output));
}

#[test]
fn stop_waits_no_longer_than_it_is_told() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    fine(started.0.ksi(&["start"]));
    let mut ask = command("ksi", started.0.path());
    let ask = ask.args(["ask", "-m", "mock/hang", "x"]).stdin(Stdio::null());
    let mut child = ask.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ksi runs");
    wait_until("the request runs", || {
        data(started.0.ksi(&["send", "completion:status", "-o", "json"]))["running"] == 1
    });
    let began = Instant::now();
    let words = failed(started.0.ksi(&["stop", "--grace", "60s", "--timeout", "500ms"]), 7);
    assert!(words.contains("still runs"), "{words}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Whoever it waits for goes, and then it goes, too.
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    fine(started.0.ksi(&["stop"]));
}

#[test]
fn restart_gives_a_new_daemon_in_the_same_process() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let first = data(started.0.ksi(&["start", "-o", "json"]));
    let boot = || data(started.0.ksi(&["send", "system:status", "-o", "json"]))["boot"].clone();
    let before = boot();
    let second = data(started.0.ksi(&["restart", "-o", "json"]));
    assert_eq!(second["status"], "restarted");
    assert_eq!(second["pid"], first["pid"]);
    assert_ne!(before, boot());
    fine(started.0.ksi(&["stop"]));
    assert_eq!(data(started.0.ksi(&["restart", "-o", "json"]))["status"], "started");
}

#[test]
fn in_the_foreground_the_log_goes_to_the_terminal_and_ctrl_c_ends_it() {
    let home = Home::with_config(WITHOUT_MODEL);
    let child = command("ksi", home.path())
        .args(["start", "--foreground"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ksi runs");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    wait_until("it is ready", || home.ksi(&["health"]).status.success());
    kill(pid, Signal::SIGINT).expect("it is there");
    let output = fine(waited(child));
    assert!(stderr(&output).contains("plugin is ready"), "{}", stderr(&output));
}

#[test]
fn health_and_status_end_with_a_code_for_each_state() {
    let down = Home::with_config(DEGRADED);
    for verb in ["health", "status"] {
        let output = ended(down.ksi(&[verb, "-o", "json"]), 3);
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["status"], "stopped", "{verb}");
    }
    assert_eq!(stdout(&ended(down.ksi(&["health"]), 3)), "stopped\n");
    let degraded = down.start();
    wait_until("the plugin has failed", || !degraded.health().reasons.is_empty());
    let output = ended(degraded.ksi(&["health"]), 8);
    assert!(stdout(&output).contains("unhealthy") && stdout(&output).contains("lost"), "{}", stdout(&output));
    let output = ended(degraded.ksi(&["health", "-o", "json"]), 8);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["status"], "unhealthy");
    // The status was told, and that is all it was asked for.
    let status = stdout(&fine(degraded.ksi(&["status"])));
    assert!(status.contains("Trouble:") && status.contains("lost"), "{status}");
    let output = ended(degraded.ksi(&["doctor", "-o", "json"]), 8);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["status"], "fail");
    let whole = Daemon::without_model();
    whole.ready();
    assert!(stdout(&fine(whole.ksi(&["health"]))).starts_with("ok: "));
}

#[test]
fn ksi_alone_says_how_it_stands_and_what_to_do_next() {
    let home = Home::with_config(WITHOUT_MODEL);
    let output = fine(home.ksi(&[]));
    assert!(stdout(&output).contains("not running"), "{}", stdout(&output));
    assert!(stderr(&output).contains("ksi up"), "{}", stderr(&output));
    let daemon = home.start();
    daemon.ready();
    let output = fine(daemon.ksi(&[]));
    for part in ["ksid", "Active:", "Socket:", "Plugins: 4/4 ready", "plugin is ready"] {
        assert!(stdout(&output).contains(part), "no `{part}` in: {}", stdout(&output));
    }
    assert!(stderr(&output).contains("Next: ksi ask"), "{}", stderr(&output));
    assert_eq!(stderr(&fine(daemon.ksi(&["-q"]))), "");
}

#[test]
fn up_starts_tests_and_says_what_next() {
    let started = Started(Home::new());
    let output = fine(started.0.ksi(&["up"]));
    for part in [
        "✓ config",
        "✓ socket",
        "(0600)",
        "✓ plugins   5/5 ready",
        "✓ model     llama/ksi-tiny, a toy",
        "✓ self-test",
    ] {
        assert!(stdout(&output).contains(part), "no `{part}` in: {}", stdout(&output));
    }
    assert!(stderr(&output).contains("Next: ksi ask"), "{}", stderr(&output));
    let again = data(started.0.ksi(&["up", "-o", "json"]));
    assert_eq!(again["status"], "already_running");
    assert!(
        again["checks"].as_array().is_some_and(|checks| checks.iter().all(|check| check["ok"] == true)),
        "{again}"
    );
}

#[test]
fn up_without_a_model_says_what_is_missing() {
    let started = Started(Home::with_config(WITHOUT_MODEL));
    let output = ended(started.0.ksi(&["up"]), 8);
    assert!(stdout(&output).contains("✗ model"), "{}", stdout(&output));
    assert!(stderr(&output).contains("ksi doctor"), "{}", stderr(&output));
}

#[test]
fn doctor_looks_without_a_daemon_too() {
    let home = Home::with_config(WITHOUT_MODEL);
    let output = fine(home.ksi(&["doctor"]));
    for part in ["ksid", "ksi-plugin-host", "socket path", "not running"] {
        assert!(stdout(&output).contains(part), "no `{part}` in: {}", stdout(&output));
    }
    assert!(stderr(&output).contains("ksi up"));
    assert!(!home.paths().state_dir.exists(), "it only looks");
    let broken = Home::with_config("nonsense");
    let output = ended(broken.ksi(&["doctor"]), 8);
    assert!(stdout(&output).contains("fail"), "{}", stdout(&output));
}
