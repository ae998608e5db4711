//! What a child is deprived of before it loads anything, seen from outside.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use ksi_tests::{Daemon, Home, wait_until};
use nix::unistd::{Pid, getpgid};
use serde_json::json;

const SECRET: &str = "KSI_TESTS_SECRET_TOKEN";

/// A daemon that has a secret in its environment and echo in a child.
fn with_child() -> (Daemon, u32) {
    let config = "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
        [plugins.echo_child]\nenabled = true\nlimits = { memory_mb = 300, files = 99, file_mb = 7 }\n";
    let daemon = Home::with_config(config).start_with(|command| {
        command.env("A_TOKEN", SECRET).env("OMP_WAIT_POLICY", "active").env("GOMP_SPINCOUNT", "7");
        command.env("CUDA_VISIBLE_DEVICES", "1").env("GGML_VK_VISIBLE_DEVICES", "0");
    });
    daemon.ready();
    let pid = daemon.plugin("echo_child").pid.expect("a child has one");
    (daemon, pid)
}

fn of_process(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(of_process(pid, file)).expect("a process can be looked at")
}

#[test]
fn a_child_can_gain_no_privileges_and_leaves_no_core() {
    let (_daemon, pid) = with_child();
    assert!(read(pid, "status").lines().any(|line| line == "NoNewPrivs:\t1"));
    let limits = read(pid, "limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max address space"), [(300_u64 << 20).to_string(), (300_u64 << 20).to_string()]);
    assert_eq!(limit("Max open files"), ["99", "99"]);
    assert_eq!(limit("Max file size"), [(7_u64 << 20).to_string(), (7_u64 << 20).to_string()]);
    // What cannot be dumped belongs to root, whoever runs it.
    assert_eq!(fs::metadata(of_process(pid, "mem")).expect("a process can be looked at").uid(), 0);
}

#[test]
fn a_child_inherits_no_secret() {
    let (daemon, pid) = with_child();
    assert!(read(daemon.pid(), "environ").contains(SECRET));
    // Without the right to look there is nothing to be seen, which is as good.
    let environment = fs::read(of_process(pid, "environ")).unwrap_or_default();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(!environment.contains(SECRET), "{environment}");
    let known = [
        "PATH",
        "LANG",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "GGML_VK_VISIBLE_DEVICES",
        "RUST_BACKTRACE",
        "GGML_NO_BACKTRACE",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
    ];
    for variable in environment.split('\0').filter(|variable| !variable.is_empty()) {
        let (name, value) = variable.split_once('=').expect("a variable");
        assert!(known.contains(&name), "{name} has no business in a child");
        assert!(name != "GOMP_SPINCOUNT" || value == "300000");
        assert!(name != "OMP_WAIT_POLICY" || value == "active");
    }
    // Which cards it is to use is for whoever starts the daemon to say.
    for chosen in ["CUDA_VISIBLE_DEVICES=1", "GGML_VK_VISIBLE_DEVICES=0"] {
        assert!(environment.is_empty() || environment.split('\0').any(|variable| variable == chosen));
    }
}

#[test]
fn a_child_has_only_its_link_open_and_works_in_its_own_directory() {
    let (daemon, pid) = with_child();
    let Ok(open) = fs::read_dir(of_process(pid, "fd")) else { return };
    let mut found: Vec<(u32, String)> = open
        .map(|entry| {
            let entry = entry.expect("a descriptor");
            let number = entry.file_name().to_string_lossy().parse().expect("a number");
            let target = fs::read_link(entry.path()).unwrap_or_default();
            (number, target.to_string_lossy().into_owned())
        })
        .collect();
    found.sort();
    let is = |target: &str, kind: &str| target.starts_with(kind);
    assert!(is(&found[0].1, "/dev/null") && is(&found[1].1, "/dev/null"), "{found:?}");
    assert!(is(&found[2].1, "pipe:"), "{found:?}");
    let rest: Vec<&str> = found[3..].iter().map(|(_, target)| target.as_str()).collect();
    let expected = ["socket:", "anon_inode:[eventfd", "/"];
    for target in &rest {
        assert!(expected.iter().any(|kind| is(target, kind)), "{found:?}");
    }
    // The link twice, for its two directions, the wake-up, the library.
    assert_eq!(rest.iter().filter(|target| is(target, "socket:")).count(), 2, "{found:?}");
    let files: Vec<&&str> = rest.iter().filter(|target| is(target, "/")).collect();
    assert!(files.iter().all(|file| file.ends_with("libplugin_echo.so")) && files.len() <= 1, "{found:?}");
    assert!(rest.len() <= 4, "{found:?}");

    let own = daemon.home.paths().state_dir.join("plugins/echo_child");
    assert_eq!(
        fs::read_link(of_process(pid, "cwd")).expect("it works somewhere"),
        own.canonicalize().expect("its directory is there")
    );
    let umask = read(pid, "status").lines().find_map(|line| line.strip_prefix("Umask:\t").map(str::to_owned));
    assert_eq!(umask.as_deref(), Some("0077"));
}

#[test]
fn a_child_is_the_head_of_its_own_process_group_and_dies_with_the_daemon() {
    let (daemon, pid) = with_child();
    let child = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    assert_eq!(getpgid(Some(child)).expect("it is there"), child);
    assert_eq!(daemon.ask("echo_child:say", json!({"text": "a"})).expect("it answers")["text"], "a");
    let _home = daemon.kill();
    wait_until("the child is gone", || {
        let stat = fs::read_to_string(of_process(pid, "stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}
