//! What can be seen without the daemon: programs, the configuration, and the
//! places of its files.

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ksi_protocol::limits::SOCKET_PATH_BYTES_MAX;
use ksi_trust::Kind;
use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use super::{
    Check, Outcome, fail, ok,
    repair::{Repair, is_deserted},
    warn,
};
use crate::{
    invocation::{Invocation, program, short},
    output::bytes,
    start::locked,
};

/// Below this much free space a model no longer fits and checkpoints are in
/// danger: a warning.
const DISK_WARN: u64 = 2_000_000_000;

/// Below this much the log itself is in danger: a failure.
const DISK_FAIL: u64 = 50_000_000;

/// Instructions without which a model runs several times slower.
const CPU_FEATURES: [&str; 4] = ["avx2", "fma", "f16c", "bmi2"];

/// All checks of this kind.
pub(super) fn checks(at: &Invocation) -> Vec<Check> {
    let held = locked(&at.paths.lock_file());
    let mut checks = vec![
        binary("ksid", Some("KSI_DAEMON"), Outcome::Fail),
        binary("ksi-plugin-host", None, Outcome::Fail),
        binary("ksi-monitor", Some("KSI_MONITOR"), Outcome::Warn),
        configuration(at),
        directory("runtime dir", &at.paths.runtime_dir, 0o077, held),
        directory("state dir", &at.paths.state_dir, 0o022, held),
        socket_path(&at.paths.socket),
        lock(&at.paths.socket, held),
        log_file(&at.paths.log_file()),
        left_overs(at, held),
        disk(&at.paths.state_dir),
        cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    ];
    let keys = [Kind::Models, Kind::Plugins].map(|kind| at.paths.secret_key(kind.as_str()));
    checks.extend(secrets(keys.into_iter().chain([at.paths.keyring()])));
    checks
}

fn binary(name: &'static str, variable: Option<&str>, missing: Outcome) -> Check {
    match program(name, variable).filter(|path| path.is_file()) {
        Some(path) => ok(name, short(&path)),
        None => Check {
            outcome: missing,
            ..fail(
                name,
                "not found beside ksi nor on the PATH",
                "without it that part of KSI cannot run",
                match variable {
                    Some(variable) => format!("install it beside ksi, or set {variable}"),
                    None => "install it beside ksi and ksid".to_owned(),
                },
            )
        },
    }
}

/// What `ksid --check-config` says.
fn configuration(at: &Invocation) -> Check {
    let Some(ksid) = program("ksid", Some("KSI_DAEMON")) else {
        return warn(
            "config",
            "cannot be checked without ksid",
            "mistakes in it would stop the start",
            "install ksid beside ksi",
        );
    };
    let file = short(&at.paths.config_file);
    let checked = Command::new(ksid).arg("--check-config").stdin(Stdio::null()).output();
    match checked {
        Ok(output) if output.status.success() => {
            let text = if at.paths.config_file.exists() { file } else { format!("defaults; no {file}") };
            ok("config", text)
        }
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let fix = format!("correct {file}, then run: ksi config validate");
            fail("config", words.trim(), "the daemon does not start with it", fix)
        }
        Err(error) => fail(
            "config",
            format!("cannot run ksid: {error}"),
            "without ksid nothing runs",
            "install ksid beside ksi",
        ),
    }
}

/// A directory that must be ours, and in which others may do no more than `others`
/// allows: 0o077 nothing at all, 0o022 all but write.
fn directory(name: &'static str, dir: &Path, others: u32, running: bool) -> Check {
    let shown = short(dir);
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound && running => {
            let why = "the running daemon has lost it, and cannot write there";
            return fail(name, format!("{shown} is missing"), why, "")
                .repaired_by(Repair::MakeDir(dir.to_owned()));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return to_be_made(name, dir);
        }
        Err(error) => {
            return fail(name, format!("{shown}: {error}"), UNUSABLE, "make it readable for you");
        }
    };
    let mode = meta.mode() & 0o777;
    let text = format!("{shown} (owner {}, mode {mode:04o})", meta.uid());
    if !meta.is_dir() {
        fail(name, format!("{text} is no directory"), UNUSABLE, "")
            .repaired_by(Repair::MoveAway(dir.to_owned()))
    } else if meta.uid() != nix::unistd::getuid().as_raw() {
        fail(name, format!("{text} belongs to somebody else"), UNUSABLE, ELSEWHERE)
    } else if mode & others != 0 {
        fail(name, format!("{text} is open to others"), "they could reach or replace what lies there", "")
            .repaired_by(Repair::Chmod(dir.to_owned(), mode & !others | 0o700))
    } else if mode & 0o700 != 0o700 {
        fail(name, format!("{text} is closed to yourself"), UNUSABLE, "")
            .repaired_by(Repair::Chmod(dir.to_owned(), mode | 0o700))
    } else if let Err(errno) = access(dir, WRITABLE) {
        fail(name, format!("{text}: {}", errno.desc()), UNUSABLE, ELSEWHERE)
    } else {
        ok(name, text)
    }
}

/// A directory that is not there yet: whether it could be made.
fn to_be_made(name: &'static str, dir: &Path) -> Check {
    let shown = short(dir);
    let Some(above) = dir.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()) else {
        return fail(name, format!("{shown} has no parent"), UNUSABLE, ELSEWHERE);
    };
    match access(above, WRITABLE) {
        Ok(()) if above.is_dir() => ok(name, format!("{shown} will be made at the first start")),
        Ok(()) => {
            let text = format!("{shown} cannot be made: {} is no directory", short(above));
            fail(name, text, UNUSABLE, ELSEWHERE)
        }
        Err(errno) => {
            let text = format!("{shown} cannot be made in {}: {}", short(above), errno.desc());
            fail(name, text, UNUSABLE, format!("make {} writable for you, or {ELSEWHERE}", short(above)))
        }
    }
}

/// What it takes to make something in a directory.
const WRITABLE: AccessFlags = AccessFlags::W_OK.union(AccessFlags::X_OK);

/// What to do about a place that is not ours to use.
const ELSEWHERE: &str = "set KSI_HOME, or the XDG variable, to a place of yours";

/// Files with a secret in them, which is refused for as long as others may read
/// it: each that is open to others, or one word for all.
fn secrets(files: impl Iterator<Item = PathBuf>) -> Vec<Check> {
    const NAME: &str = "secrets";
    let (mut open, mut there) = (Vec::new(), 0);
    for file in files {
        let Ok(meta) = fs::metadata(&file) else { continue };
        there += 1;
        let mode = meta.mode() & 0o777;
        if mode & 0o077 != 0 {
            let text = format!("{} is open to others (mode {mode:04o})", short(&file));
            let why = "it is refused like this; if somebody has read it, replace what is in it";
            open.push(fail(NAME, text, why, "").repaired_by(Repair::Chmod(file, mode & !0o077)));
        }
    }
    match there {
        0 => vec![ok(NAME, "none")],
        n if open.is_empty() => vec![ok(NAME, format!("{n}, yours alone"))],
        _ => open,
    }
}

/// Why most of this matters.
const UNUSABLE: &str = "the daemon cannot use it, and does not start";

fn socket_path(socket: &Path) -> Check {
    const NAME: &str = "socket path";
    let length = socket.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return fail(
            NAME,
            format!("{length} bytes, and Linux allows {SOCKET_PATH_BYTES_MAX}"),
            "no socket can have that name",
            "choose a shorter one: KSI_SOCKET or KSI_HOME",
        );
    }
    match fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => {
            fail(NAME, format!("{} is no socket", short(socket)), UNUSABLE, "")
                .repaired_by(Repair::MoveAway(socket.to_owned()))
        }
        _ => ok(NAME, format!("{} ({length} of {SOCKET_PATH_BYTES_MAX} bytes)", short(socket))),
    }
}

fn lock(socket: &Path, held: bool) -> Check {
    const NAME: &str = "lock";
    match (held, socket.exists()) {
        (true, true) => ok(NAME, "held by the running daemon"),
        (true, false) => fail(
            NAME,
            "held, but there is no socket",
            "the daemon that runs cannot be reached",
            "ksi restart",
        ),
        (false, true) if is_deserted(socket) => {
            let why = "clients find it and nobody behind it; the next start replaces it";
            warn(NAME, "free, and a socket was left behind", why, "")
                .repaired_by(Repair::RemoveSocket(socket.to_owned()))
        }
        (false, _) => ok(NAME, "free"),
    }
}

fn log_file(path: &Path) -> Check {
    const NAME: &str = "log";
    if !path.exists() {
        return ok(NAME, format!("{} will be made at the first start", short(path)));
    }
    let Err(error) = OpenOptions::new().append(true).open(path) else { return ok(NAME, short(path)) };
    let check = fail(
        NAME,
        format!("{}: {error}", short(path)),
        "what happens is not written down",
        "make it writable for you",
    );
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.uid() == nix::unistd::getuid().as_raw() => {
            check.repaired_by(Repair::Chmod(path.to_owned(), meta.mode() & 0o777 | 0o600))
        }
        _ => check,
    }
}

/// Files that are written beside another and put in its place: after a crash
/// one may be left, and nobody will read it.
fn left_overs(at: &Invocation, held: bool) -> Check {
    const NAME: &str = "left-overs";
    let orders = at.paths.state_dir.join("orders.new");
    let part = at.paths.config_file.with_extension("toml.part");
    // A running daemon may be writing its own this very moment.
    let mut candidates = [(orders, !held), (part, true)].into_iter();
    match candidates.find(|(path, stale)| *stale && path.is_file()) {
        Some((path, _)) => warn(
            NAME,
            format!("{} was left half written", short(&path)),
            "a write was broken off; what it should have replaced is whole",
            "",
        )
        .repaired_by(Repair::RemovePart(path)),
        None => ok(NAME, "none"),
    }
}

/// Free space where the state lies, or will lie.
fn disk(dir: &Path) -> Check {
    const NAME: &str = "disk";
    let Some(existing) = dir.ancestors().find(|dir| dir.exists()) else {
        let text = format!("{} has no parent", dir.display());
        return warn(NAME, text, UNUSABLE, "check KSI_HOME and HOME");
    };
    let free = match statvfs(existing) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => {
            let text = format!("{}: {error}", short(existing));
            return warn(NAME, text, "how much is free is not known", "check that disk");
        }
    };
    let text = format!("{} free for {}", bytes(free), short(dir));
    match free {
        0..DISK_FAIL => fail(
            NAME,
            text,
            "neither work nor the log can be written",
            "free some space, or move the state: KSI_HOME, XDG_STATE_HOME",
        ),
        DISK_FAIL..DISK_WARN => warn(NAME, text, "models and checkpoints may not fit", "free some space"),
        _ => ok(NAME, text),
    }
}

fn cpu(cpuinfo: &str) -> Check {
    const NAME: &str = "cpu";
    let Some(flags) = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")) else {
        return ok(NAME, format!("{}: no flags to check", std::env::consts::ARCH));
    };
    let flags: Vec<_> = flags.split_whitespace().collect();
    let missing: Vec<_> = CPU_FEATURES.into_iter().filter(|feature| !flags.contains(feature)).collect();
    if missing.is_empty() {
        return ok(NAME, CPU_FEATURES.join(" "));
    }
    warn(
        NAME,
        format!("lacks {}", missing.join(" ")),
        "models run slowly here",
        "use another machine for models, or a build without these instructions",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::{fs::PermissionsExt, net::UnixListener},
        time::{Duration, Instant},
    };

    #[test]
    fn a_directory_that_others_can_enter_fails_until_it_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let check = directory("runtime dir", dir.path(), 0o077, false);
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.fix.starts_with("chmod 700"), "{check:?}");
        check.repair.unwrap().make().unwrap();
        assert_eq!(directory("runtime dir", dir.path(), 0o077, false).outcome, Outcome::Ok);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(directory("state dir", dir.path(), 0o022, false).outcome, Outcome::Ok, "may be read");
    }

    #[test]
    fn a_missing_directory_is_missed_only_by_a_daemon_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        assert_eq!(directory("state dir", &none, 0o022, false).outcome, Outcome::Ok);
        let check = directory("state dir", &none, 0o022, true);
        assert_eq!(check.outcome, Outcome::Fail);
        check.repair.unwrap().make().unwrap();
        assert_eq!(directory("state dir", &none, 0o077, true).outcome, Outcome::Ok);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_no_promise() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        // Also for root, who may write everywhere else.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        let check = directory("state dir", &file.join("ksi/state"), 0o022, false);
        assert!(check.outcome == Outcome::Fail && check.text.contains("no directory"), "{check:?}");
        let fresh = dir.path().join("ksi/state");
        assert_eq!(directory("state dir", &fresh, 0o022, false).outcome, Outcome::Ok);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
        // Root may write all the same.
        let expected = if access(dir.path(), WRITABLE).is_ok() { Outcome::Ok } else { Outcome::Fail };
        assert_eq!(directory("state dir", &fresh, 0o022, false).outcome, expected);
    }

    #[test]
    fn a_secret_that_others_can_read_fails_until_it_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["models.key", "plugins.key", "secrets.toml"].map(|name| dir.path().join(name));
        let looked = || secrets(files.iter().cloned());
        assert_eq!(looked(), [ok("secrets", "none")]);
        for (file, mode) in files.iter().zip([0o600, 0o644, 0o440]) {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let found = looked();
        assert_eq!(found.len(), 2, "{found:?}");
        for check in found {
            assert_eq!(check.outcome, Outcome::Fail);
            check.repair.unwrap().make().unwrap();
        }
        assert_eq!(looked(), [ok("secrets", "3, yours alone")]);
    }

    #[test]
    fn a_socket_that_nobody_answers_on_is_a_warning_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(lock(&path, true).outcome, Outcome::Ok);
        assert_eq!(lock(&path, false).outcome, Outcome::Ok, "somebody answers");
        drop(listener);
        // A child that another test is just starting has a copy until it is its own
        // program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while lock(&path, false).outcome == Outcome::Ok && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let check = lock(&path, false);
        assert_eq!(check.outcome, Outcome::Warn);
        check.repair.unwrap().make().unwrap();
        assert_eq!(lock(&path, false), ok("lock", "free"));
        assert_eq!(lock(&path, true).outcome, Outcome::Fail, "a daemon that cannot be reached");
    }

    #[test]
    fn a_log_that_is_ours_and_read_only_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksid.log");
        fs::write(&path, "").unwrap();
        assert_eq!(log_file(&path).outcome, Outcome::Ok);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let check = log_file(&path);
        // Root may write all the same.
        if check.outcome != Outcome::Ok {
            check.repair.unwrap().make().unwrap();
            assert_eq!(log_file(&path).outcome, Outcome::Ok);
        }
    }

    #[test]
    fn a_socket_path_beyond_the_limit_of_linux_fails() {
        let long = format!("/tmp/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
        assert_eq!(socket_path(Path::new(&long)).outcome, Outcome::Fail);
        assert_eq!(socket_path(Path::new("/tmp/nothing-here.sock")).outcome, Outcome::Ok);
        assert_eq!(socket_path(Path::new("/")).outcome, Outcome::Fail);
    }

    #[test]
    fn missing_instructions_are_named() {
        assert_eq!(cpu("flags : avx2 fma f16c bmi2 sse").outcome, Outcome::Ok);
        assert_eq!(cpu("flags : avx2 sse").text, "lacks fma f16c bmi2");
        assert_eq!(cpu("").outcome, Outcome::Ok);
    }
}
