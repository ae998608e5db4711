//! Starting: what is in the way, and what only seems to be.

use std::{
    fs,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt, symlink},
        net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
};

use ksi_protocol::{limits::SOCKET_PATH_BYTES_MAX, system::HealthStatus};
use ksi_tests::{DEADLINE, Daemon, Home, WITHOUT_MODEL, built, command, stderr, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn make_private(dir: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).unwrap();
}

/// A start that fails, and what it says.
fn refused(home: &Home, change: impl FnOnce(&mut Command)) -> String {
    let mut command = command("ksid", home.path());
    command.stdin(Stdio::null());
    change(&mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn a_daemon_becomes_ready_and_nobody_else_can_reach_it() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let health = daemon.health();
    assert_eq!((health.status, health.reasons.len()), (HealthStatus::Ok, 0));
    assert_eq!(health.plugins_ready, health.plugins_total);
    let paths = daemon.home.paths();
    assert_eq!(mode(&paths.socket), 0o600);
    assert_eq!(mode(&paths.runtime_dir), 0o700);
    assert_eq!(daemon.home.holder().map(|holder| holder.pid), Some(daemon.pid()));
}

#[test]
fn a_start_with_what_is_shipped_warns_of_nothing() {
    let daemon = Home::new().start();
    daemon.ready();
    let log = daemon.log();
    assert!(log.contains(" INFO "), "{log}");
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

#[test]
fn after_a_crash_the_next_start_works() {
    let daemon = Daemon::without_model();
    let home = daemon.kill();
    let paths = home.paths();
    assert!(paths.socket.exists(), "a crash leaves its socket");
    fs::write(paths.lock_file(), "gibberish\n\n").unwrap();
    let daemon = home.start();
    daemon.ready();
    assert_eq!(daemon.ask("echo:say", json!({"text": "hi"})).unwrap()["text"], "hi");
}

#[test]
fn the_pid_of_another_process_in_the_lock_file_is_no_daemon() {
    let home = Home::with_config(WITHOUT_MODEL);
    make_private(&home.paths().runtime_dir);
    fs::write(home.paths().lock_file(), format!("{}\n", std::process::id())).unwrap();
    home.start().ready();
}

#[test]
fn a_second_daemon_says_which_one_runs() {
    let daemon = Daemon::without_model();
    let words = refused(&daemon.home, |_| {});
    assert!(words.contains(&format!("pid {}", daemon.pid())), "{words}");
    assert!(words.contains("ksid.sock"), "{words}");
    assert_eq!(daemon.health().pid, daemon.pid());
}

#[test]
fn of_many_daemons_started_at_once_one_runs() {
    let home = Home::with_config(WITHOUT_MODEL);
    let spawn = || command("ksid", home.path()).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut children: Vec<_> = (0..6).map(|_| spawn()).collect();
    wait_until("all but one have given up", || {
        children.iter_mut().filter_map(|child| child.try_wait().unwrap()).count() == 5
    });
    let left: Vec<u32> = children
        .iter_mut()
        .filter_map(|child| child.try_wait().unwrap().is_none().then(|| child.id()))
        .collect();
    assert_eq!(left.len(), 1);
    let holder = home.holder();
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(holder.map(|holder| holder.pid), Some(left[0]));
}

#[test]
fn what_is_no_socket_is_not_deleted() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    make_private(&paths.runtime_dir);
    fs::write(&paths.socket, "precious").unwrap();
    let words = refused(&home, |_| {});
    assert!(words.contains("no socket") && words.contains("ksid.sock"), "{words}");
    assert_eq!(fs::read_to_string(&paths.socket).unwrap(), "precious");
    fs::remove_file(&paths.socket).unwrap();
    fs::create_dir(&paths.socket).unwrap();
    let words = refused(&home, |_| {});
    assert!(words.contains("no socket"), "{words}");
    assert!(paths.socket.is_dir());
}

#[test]
fn a_socket_that_somebody_answers_is_not_taken() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    make_private(&paths.runtime_dir);
    let _other = UnixListener::bind(&paths.socket).unwrap();
    let words = refused(&home, |_| {});
    assert!(words.contains("another program listens"), "{words}");
    assert!(paths.socket.exists());
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_both_lengths() {
    let home = Home::with_config(WITHOUT_MODEL);
    let long = home.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
    let words = refused(&home, |command| {
        command.env("KSI_SOCKET", &long);
    });
    assert!(words.contains(&SOCKET_PATH_BYTES_MAX.to_string()), "{words}");
    assert!(words.contains(&long.as_os_str().len().to_string()), "{words}");
}

#[test]
fn a_runtime_directory_that_others_can_enter_is_refused() {
    let home = Home::with_config(WITHOUT_MODEL);
    let dir = home.paths().runtime_dir;
    make_private(&dir);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let words = refused(&home, |_| {});
    assert!(words.contains("0777") && words.contains("chmod 700"), "{words}");
    assert_eq!(mode(&dir), 0o777, "whose it is may know why");
}

#[test]
fn a_runtime_directory_that_is_a_link_is_refused() {
    let home = Home::with_config(WITHOUT_MODEL);
    let elsewhere = home.path().join("elsewhere");
    make_private(&elsewhere);
    symlink(&elsewhere, home.paths().runtime_dir).unwrap();
    let words = refused(&home, |_| {});
    assert!(words.contains("symbolic link"), "{words}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn the_service_manager_is_told_of_ready_and_of_stopping() {
    let home = Home::with_config(WITHOUT_MODEL);
    let path = home.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut daemon = home.start_with(|command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    let hear = |what: &str| {
        let mut bytes = [0; 512];
        loop {
            let length = manager.recv(&mut bytes).unwrap();
            if String::from_utf8_lossy(&bytes[..length]).lines().any(|line| line == what) {
                return;
            }
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    daemon.signal(Signal::SIGTERM);
    hear("STOPPING=1");
    assert!(daemon.ended().success());
}

#[test]
fn a_socket_of_the_service_manager_is_used_and_left() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    make_private(&paths.runtime_dir);
    let listener = UnixListener::bind(&paths.socket).unwrap();
    // A shell puts the socket where a service manager would.
    let script = format!("exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec {}/ksid", built().display());
    let mut daemon = home.start_with(|command| {
        let mut shell = Command::new("sh");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.arg("-c").arg(&script).stdin(std::os::fd::OwnedFd::from(listener)).stdout(Stdio::null());
        *command = shell;
    });
    daemon.ready();
    assert_eq!(daemon.health().pid, daemon.pid());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    assert!(paths.socket.exists(), "it is not the daemon's to remove");
}

#[test]
fn who_connects_before_plugins_are_ready_is_answered() {
    let daemon = Daemon::without_model();
    let health = daemon.health();
    assert!(matches!(health.status, HealthStatus::Starting | HealthStatus::Ok), "{health:?}");
}
