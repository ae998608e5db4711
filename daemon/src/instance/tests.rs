//! Starting where others have been: left-overs, strangers, and a daemon that
//! runs.

use std::io::{Read as _, Write as _};
use std::{
    os::unix::{
        fs::symlink,
        net::{UnixDatagram, UnixStream},
    },
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::*;

fn home() -> (TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::below(dir.path());
    (dir, paths)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// A runtime directory with something in the socket's place.
fn home_with_dir() -> (TempDir, Paths) {
    let (dir, paths) = home();
    private_dir(&paths.runtime_dir).unwrap();
    (dir, paths)
}

#[test]
fn a_fresh_start_makes_everything_for_the_owner_alone_and_leaves_nothing_behind() {
    let (_dir, paths) = home();
    let instance = Instance::acquire(&paths).unwrap();
    let listener = instance.listen().unwrap();
    assert_eq!(mode(&paths.runtime_dir), 0o700);
    assert_eq!(mode(&paths.socket), 0o600);
    assert_eq!(mode(&paths.lock_file()), 0o600);
    let holder = Holder { pid: std::process::id(), socket: Some(paths.socket.clone()) };
    assert_eq!(Holder::parse(&fs::read(paths.lock_file()).unwrap()), Some(holder));

    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let _client = UnixStream::connect(&paths.socket).unwrap();
    assert!(listener.accept().is_ok());

    drop(instance);
    assert!(!paths.socket.exists());
    assert_eq!(fs::read_to_string(paths.lock_file()).unwrap(), "");
}

#[test]
fn a_second_daemon_is_told_the_pid_and_the_socket_of_the_first() {
    let (_dir, paths) = home();
    let first = Instance::acquire(&paths).unwrap();
    let _listener = first.listen().unwrap();
    let message = Instance::acquire(&paths).unwrap_err().to_string();
    let pid = std::process::id();
    assert!(
        message.contains(&format!("running already, pid {pid}, socket {}", paths.socket.display())),
        "{message}"
    );
    let elsewhere = Paths { socket: paths.runtime_dir.join("other.sock"), ..paths.clone() };
    let other = Instance::acquire(&elsewhere).unwrap_err().to_string();
    assert_eq!(other, message, "where it listens, not where the second would");
    drop(first);
    assert!(Instance::acquire(&paths).is_ok());
}

/// A runtime directory whose daemon is dead, its pid, and a process that still
/// has lock and socket, as the child has that it was about to start.
fn left_behind() -> (TempDir, Paths, u32, std::process::Child) {
    let (dir, paths) = home_with_dir();
    let mut daemon = Command::new("/bin/true").spawn().unwrap();
    daemon.wait().unwrap();
    let mut lock = File::create(paths.lock_file()).unwrap();
    lock.try_lock().unwrap();
    writeln!(lock, "{}", daemon.id()).unwrap();
    let listener = std::os::fd::OwnedFd::from(UnixListener::bind(&paths.socket).unwrap());
    let child = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(lock).stderr(listener).spawn().unwrap();
    (dir, paths, daemon.id(), child)
}

#[test]
fn a_start_waits_for_what_a_child_of_a_killed_daemon_still_has() {
    let (_dir, paths, _, mut child) = left_behind();
    let mut looked = 0;
    // The child lets go once it was seen to have the lock.
    let instance = Instance::acquire_pausing(&paths, || {
        looked += 1;
        drop(child.stdin.take());
        child.wait().unwrap();
    });
    instance.unwrap().listen().unwrap();
    assert_eq!(looked, 1);
}

#[test]
fn a_lock_that_stays_taken_is_refused_with_the_daemon_that_it_names() {
    let (_dir, paths, pid, mut child) = left_behind();
    let message = Instance::acquire(&paths).unwrap_err().to_string();
    let lock = paths.lock_file();
    assert!(
        message.contains(&format!("the lock {} is held by another process", lock.display())),
        "{message}"
    );
    assert!(message.contains(&format!("its daemon, pid {pid}, does not run any more")), "{message}");
    fs::write(&lock, "").unwrap();
    let message = Instance::acquire(&paths).unwrap_err().to_string();
    assert!(message.contains("names no daemon"), "{message}");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_daemon_that_runs_is_not_waited_for() {
    let (_dir, paths) = home();
    let _first = Instance::acquire(&paths).unwrap();
    let began = Instant::now();
    assert!(matches!(Instance::acquire(&paths), Err(Error::Running { .. })));
    assert!(began.elapsed() < LEAVING / 2);
}

#[test]
fn the_pid_of_a_dead_or_foreign_process_is_not_in_the_way() {
    let (_dir, paths) = home_with_dir();
    for text in ["1\n", "4194999\n", "no pid at all", ""] {
        fs::write(paths.lock_file(), text).unwrap();
        Instance::acquire(&paths).unwrap();
    }
}

#[test]
fn a_socket_that_nobody_answers_is_replaced() {
    let (_dir, paths) = home_with_dir();
    drop(UnixListener::bind(&paths.socket).unwrap());
    assert!(paths.socket.exists());
    let instance = Instance::acquire(&paths).unwrap();
    let _listener = instance.listen().unwrap();
    assert!(UnixStream::connect(&paths.socket).is_ok());
}

#[test]
fn a_socket_that_somebody_answers_is_left_alone() {
    let (_dir, paths) = home_with_dir();
    let _other = UnixListener::bind(&paths.socket).unwrap();
    let instance = Instance::acquire(&paths).unwrap();
    let error = instance.listen().unwrap_err();
    assert!(matches!(error, Error::Answered { .. }), "{error}");
    drop(instance);
    assert!(UnixStream::connect(&paths.socket).is_ok());
}

#[test]
fn a_listener_whose_backlog_is_full_counts_as_answering() {
    let (_dir, paths) = home_with_dir();
    let flags = SockFlag::SOCK_CLOEXEC;
    let other = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    socket::bind(other.as_raw_fd(), &UnixAddr::new(&paths.socket).unwrap()).unwrap();
    socket::listen(&other, socket::Backlog::new(0).unwrap()).unwrap();
    let _waits = UnixStream::connect(&paths.socket).unwrap();
    assert_eq!(probe(&paths.socket), Err(Errno::EAGAIN));
    assert!(matches!(clear(&paths.socket), Err(Error::Answered { .. })));
}

#[test]
fn what_is_no_stream_socket_is_refused_and_never_removed() {
    let (dir, paths) = home_with_dir();
    let elsewhere = dir.path().join("elsewhere");
    drop(UnixListener::bind(&elsewhere).unwrap());
    let instance = Instance::acquire(&paths).unwrap();
    type Make = fn(&Path, &Path);
    let makers: [(&str, Make); 4] = [
        ("file", |path, _| fs::write(path, "precious").unwrap()),
        ("directory", |path, _| fs::create_dir(path).unwrap()),
        ("link", |path, elsewhere| symlink(elsewhere, path).unwrap()),
        ("datagram", |path, _| drop(UnixDatagram::bind(path).unwrap())),
    ];
    for (what, make) in makers {
        make(&paths.socket, &elsewhere);
        let outcome = instance.listen();
        if what == "datagram" {
            // Nobody answers it either, so it is a left-over like any other.
            drop(outcome.unwrap());
            continue;
        }
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("is no socket") && message.contains("hint:"), "{what}: {message}");
        assert!(fs::symlink_metadata(&paths.socket).is_ok(), "{what}");
        let moved = dir.path().join(what);
        fs::rename(&paths.socket, moved).unwrap();
    }
    assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
    assert!(fs::symlink_metadata(&elsewhere).is_ok());
}

#[test]
fn a_socket_that_is_no_longer_ours_outlives_us() {
    let (_dir, paths) = home();
    let instance = Instance::acquire(&paths).unwrap();
    let _listener = instance.listen().unwrap();
    let moved = paths.runtime_dir.join("moved");
    fs::rename(&paths.socket, moved).unwrap();
    let _other = UnixListener::bind(&paths.socket).unwrap();
    drop(instance);
    assert!(paths.socket.exists());
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_with_both_numbers() {
    let (dir, mut paths) = home();
    paths.socket = dir.path().join("x".repeat(120));
    let bytes = paths.socket.as_os_str().len();
    let message = Instance::acquire(&paths).unwrap().listen().unwrap_err().to_string();
    assert!(message.contains(&format!("has {bytes} bytes, and 107 are possible")), "{message}");
    assert!(message.contains("KSI_SOCKET"), "{message}");

    let room = SOCKET_PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
    paths.socket = dir.path().join("x".repeat(room));
    assert!(Instance::acquire(&paths).unwrap().listen().is_ok());
}

#[test]
fn a_runtime_directory_that_is_not_ours_alone_is_refused_with_the_cure() {
    let (dir, paths) = home();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    symlink(&target, &paths.runtime_dir).unwrap();
    let message = Instance::acquire(&paths).unwrap_err().to_string();
    assert!(message.contains("is a symbolic link\n  hint: remove the link"), "{message}");

    fs::remove_file(&paths.runtime_dir).unwrap();
    symlink(dir.path().join("nowhere"), &paths.runtime_dir).unwrap();
    assert!(matches!(Instance::acquire(&paths), Err(Error::Symlink { .. })));

    fs::remove_file(&paths.runtime_dir).unwrap();
    fs::write(&paths.runtime_dir, "").unwrap();
    assert!(matches!(Instance::acquire(&paths), Err(Error::NotDirectory { .. })));

    fs::remove_file(&paths.runtime_dir).unwrap();
    fs::create_dir(&paths.runtime_dir).unwrap();
    for open in [0o755, 0o710, 0o701, 0o777] {
        fs::set_permissions(&paths.runtime_dir, Permissions::from_mode(open)).unwrap();
        let message = Instance::acquire(&paths).unwrap_err().to_string();
        let expected = format!("(mode {open:04o})\n  hint: chmod 700 {}", paths.runtime_dir.display());
        assert!(message.contains(&expected), "{message}");
    }
    fs::set_permissions(&paths.runtime_dir, Permissions::from_mode(0o700)).unwrap();
    assert!(Instance::acquire(&paths).is_ok());
}

#[test]
fn a_runtime_directory_of_another_user_is_refused() {
    // Only root can give a directory away, and only a user who is not root
    // finds directories of others that are closed to it.
    let (_dir, paths) = home_with_dir();
    let stranger = 4_194_000;
    match std::os::unix::fs::chown(&paths.runtime_dir, Some(stranger), None) {
        Ok(()) => {
            let message = Instance::acquire(&paths).unwrap_err().to_string();
            assert!(message.contains("belongs to user 4194000, not to user 0"), "{message}");
        }
        Err(_) => {
            let error = private_dir(Path::new("/root")).unwrap_err();
            assert!(matches!(error, Error::Owner { .. } | Error::Dir { .. }), "{error}");
        }
    }
}

#[test]
fn a_socket_elsewhere_needs_a_directory_that_others_cannot_change() {
    let (dir, mut paths) = home();
    let other = dir.path().join("other");
    paths.socket = other.join("x.sock");
    let instance = Instance::acquire(&paths).unwrap();
    assert!(matches!(instance.listen(), Err(Error::Listen { .. })));
    fs::create_dir(&other).unwrap();
    for (open, allowed) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true)] {
        fs::set_permissions(&other, Permissions::from_mode(open)).unwrap();
        let outcome = instance.listen();
        assert_eq!(outcome.is_ok(), allowed, "{open:o}: {outcome:?}");
    }
}

#[test]
fn a_link_in_the_place_of_the_lock_is_refused() {
    let (dir, paths) = home_with_dir();
    symlink(dir.path().join("victim"), paths.lock_file()).unwrap();
    assert!(matches!(Instance::acquire(&paths), Err(Error::Lock { .. })));
    assert!(!dir.path().join("victim").exists());
}

/// Set in the process that plays the activated daemon.
const ROLE: &str = "KSI_TEST_ACTIVATED_HOME";

/// Runs this test once more as a service manager would: `setup` says what its
/// descriptor 3 is and how many there are.
fn activated(name: &str, home: &Path, stdin: Stdio, count: usize) -> std::process::Output {
    let program = std::env::current_exe().unwrap();
    Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("exec 3<&0 4<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" --exact \"$1\" --nocapture"))
        .arg(program)
        .arg(format!("instance::tests::{name}"))
        .env(ROLE, home)
        .stdin(stdin)
        .output()
        .unwrap()
}

#[test]
fn a_socket_of_the_service_manager_is_used_and_never_removed() {
    if let Some(home) = std::env::var_os(ROLE) {
        let paths = Paths::below(Path::new(&home));
        let instance = Instance::acquire(&paths).unwrap();
        let listener = instance.listen().unwrap();
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(paths.socket.as_path()));
        // The test has connected before it started this process.
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        return;
    }
    let (dir, paths) = home_with_dir();
    let listener = UnixListener::bind(&paths.socket).unwrap();
    let mut client = UnixStream::connect(&paths.socket).unwrap();
    let listener: std::os::fd::OwnedFd = listener.into();
    let name = "a_socket_of_the_service_manager_is_used_and_never_removed";
    let output = activated(name, dir.path(), Stdio::from(listener), 1);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
    assert!(paths.socket.exists());
}

#[test]
fn what_is_no_listening_socket_is_refused_from_the_service_manager_too() {
    if let Some(home) = std::env::var_os(ROLE) {
        let error = Instance::acquire(&Paths::below(Path::new(&home))).unwrap().listen().unwrap_err();
        println!("{error}");
        return;
    }
    let name = "what_is_no_listening_socket_is_refused_from_the_service_manager_too";
    let (dir, paths) = home_with_dir();
    let listener = || UnixListener::bind(paths.runtime_dir.join("two.sock")).unwrap();
    let connected: std::os::fd::OwnedFd = UnixStream::pair().unwrap().0.into();
    for (stdin, count, expected) in [
        (Stdio::null(), 1, "is no listening stream socket"),
        (Stdio::from(connected), 1, "is no listening stream socket"),
        (Stdio::from(std::os::fd::OwnedFd::from(listener())), 2, "there are 2 of them"),
    ] {
        let output = activated(name, dir.path(), stdin, count);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(expected), "{text}");
    }
}
