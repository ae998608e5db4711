//! `doctor`: is everything there that KSI needs, and if not, what to do?
//!
//! It looks and never changes anything.

use std::{
    fs::{self, OpenOptions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use ksi_protocol::{
    limits::SOCKET_PATH_BYTES_MAX,
    system::{Health, HealthStatus, PluginList, PluginState},
};
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, program, short},
    output::{Report, Table, bytes},
    start::locked,
};

/// Below this much free space a model no longer fits and checkpoints are in
/// danger: a warning.
const DISK_WARN: u64 = 2_000_000_000;

/// Below this much the log itself is in danger: a failure.
const DISK_FAIL: u64 = 50_000_000;

/// Instructions without which a model runs several times slower.
const CPU_FEATURES: [&str; 4] = ["avx2", "fma", "f16c", "bmi2"];

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warn,
    Fail,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    outcome: Outcome,
    text: String,
    /// What to do; empty where all is well.
    fix: String,
}

fn ok(name: &'static str, text: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Ok, text: text.into(), fix: String::new() }
}

fn warn(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Warn, text: text.into(), fix: fix.into() }
}

fn fail(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Fail, text: text.into(), fix: fix.into() }
}

/// `ksi doctor`.
///
/// # Errors
///
/// Ends with 8 where a check fails.
pub(super) async fn doctor(at: &Invocation) -> Result<()> {
    let mut checks = vec![
        binary("ksid", Some("KSI_DAEMON"), Outcome::Fail),
        binary("ksi-plugin-host", None, Outcome::Fail),
        binary("ksi-monitor", Some("KSI_MONITOR"), Outcome::Warn),
        configuration(at),
        runtime_dir(&at.paths.runtime_dir),
        socket_path(&at.paths.socket),
        lock(at),
        log_file(&at.paths.log_file()),
        disk(&at.paths.state_dir),
        cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    ];
    daemon(at, &mut checks).await;
    let failed = checks.iter().any(|check| check.outcome == Outcome::Fail);
    at.out.print(&report(&checks)?)?;
    for check in checks.iter().filter(|check| check.outcome != Outcome::Ok) {
        at.out.note(&format!("{}: {}: {}", check.outcome.as_str(), check.name, check.fix));
    }
    if failed { Err(Failure::quietly(Exit::Degraded)) } else { Ok(()) }
}

fn report(checks: &[Check]) -> Result<Report> {
    let mut table = Table::new(&["CHECK", "OUTCOME", "FOUND"]);
    for check in checks {
        table.row([check.name.into(), check.outcome.as_str().into(), check.text.clone()]);
    }
    let worst = checks.iter().map(|check| check.outcome).max_by_key(|outcome| *outcome as u8);
    let data = json!({"status": worst.map(Outcome::as_str), "checks": checks});
    Report::list(&data, "checks", checks.iter().map(|check| check.name.to_owned()).collect(), table)
}

fn binary(name: &'static str, variable: Option<&str>, missing: Outcome) -> Check {
    match program(name, variable).filter(|path| path.is_file()) {
        Some(path) => ok(name, short(&path)),
        None => Check {
            outcome: missing,
            ..fail(
                name,
                "not found beside ksi nor on the PATH",
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
        return warn("config", "cannot be checked without ksid", "install ksid beside ksi");
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
            fail("config", words.trim(), format!("correct {file}, then run: ksi config validate"))
        }
        Err(error) => fail("config", format!("cannot run ksid: {error}"), "install ksid beside ksi"),
    }
}

fn runtime_dir(dir: &Path) -> Check {
    const NAME: &str = "runtime dir";
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return ok(NAME, format!("{} will be made at the first start", short(dir)));
        }
        Err(error) => return fail(NAME, format!("{}: {error}", short(dir)), "make it readable for you"),
    };
    let mode = meta.mode() & 0o777;
    let text = format!("{} (owner {}, mode {mode:04o})", short(dir), meta.uid());
    if !meta.is_dir() {
        fail(NAME, format!("{text} is no directory"), format!("remove it: rm {}", dir.display()))
    } else if meta.uid() != nix::unistd::getuid().as_raw() {
        fail(
            NAME,
            format!("{text} belongs to somebody else"),
            "set KSI_HOME or XDG_RUNTIME_DIR to a place of yours",
        )
    } else if mode & 0o077 != 0 {
        fail(NAME, format!("{text} is open to others"), format!("chmod 700 {}", dir.display()))
    } else {
        ok(NAME, text)
    }
}

fn socket_path(socket: &Path) -> Check {
    const NAME: &str = "socket path";
    let length = socket.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return fail(
            NAME,
            format!("{length} bytes, and Linux allows {SOCKET_PATH_BYTES_MAX}"),
            "choose a shorter one: KSI_SOCKET or KSI_HOME",
        );
    }
    match fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => fail(
            NAME,
            format!("{} is no socket", short(socket)),
            format!("move it away: mv {0} {0}.old", socket.display()),
        ),
        _ => ok(NAME, format!("{} ({length} of {SOCKET_PATH_BYTES_MAX} bytes)", short(socket))),
    }
}

fn lock(at: &Invocation) -> Check {
    const NAME: &str = "lock";
    let path = at.paths.lock_file();
    match (locked(&path), at.paths.socket.exists()) {
        (true, true) => ok(NAME, "held by the running daemon"),
        (true, false) => {
            fail(NAME, "held, but there is no socket: the daemon cannot be reached", "ksi restart")
        }
        (false, true) => ok(NAME, "free; a socket was left behind, and the next start replaces it"),
        (false, false) => ok(NAME, "free"),
    }
}

fn log_file(path: &Path) -> Check {
    const NAME: &str = "log";
    if !path.exists() {
        return ok(NAME, format!("{} will be made at the first start", short(path)));
    }
    match OpenOptions::new().append(true).open(path) {
        Ok(_) => ok(NAME, short(path)),
        Err(error) => fail(NAME, format!("{}: {error}", short(path)), "make it writable for you"),
    }
}

/// Free space where the state lies, or will lie.
fn disk(dir: &Path) -> Check {
    const NAME: &str = "disk";
    let Some(existing) = dir.ancestors().find(|dir| dir.exists()) else {
        return warn(NAME, format!("{} has no parent", dir.display()), "check KSI_HOME and HOME");
    };
    let free = match statvfs(existing) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => return warn(NAME, format!("{}: {error}", short(existing)), "check that disk"),
    };
    let text = format!("{} free for {}", bytes(free), short(dir));
    match free {
        0..DISK_FAIL => fail(NAME, text, "free some space, or move the state: KSI_HOME, XDG_STATE_HOME"),
        DISK_FAIL..DISK_WARN => warn(NAME, text, "free some space: models and checkpoints need it"),
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
        "models run slowly here, or need a build without these instructions",
    )
}

/// What only the running daemon knows.
async fn daemon(at: &Invocation, checks: &mut Vec<Check>) {
    let client = match at.connect().await {
        Ok(client) => client,
        Err(failure) if failure.exit == Exit::NotRunning => {
            checks.push(warn("daemon", "not running", "ksi up"));
            return;
        }
        Err(failure) => {
            checks.push(fail("daemon", failure.message, failure.hint));
            return;
        }
    };
    match at.ask::<Health>(&client, "system:health", &json!({})).await {
        Ok(health) => checks.push(health_check(&health)),
        Err(failure) => checks.push(fail("daemon", failure.message, "ksi restart")),
    }
    match at.ask::<PluginList>(&client, "plugin:list", &json!({})).await {
        Ok(list) => checks.push(plugins(&list)),
        Err(failure) => checks.push(fail("plugins", failure.message, "ksi logs")),
    }
    match at.value(&client, "checkpoint:status", &json!({})).await {
        Ok(status) => checks.push(journal(&status)),
        Err(failure) => checks.push(fail("journal", failure.message, "ksi plugin inspect checkpoint")),
    }
    match at.value(&client, "llama:models", &json!({})).await {
        Ok(reply) => checks.push(models(&reply)),
        Err(failure) => checks.push(fail("models", failure.message, "ksi plugin inspect llama")),
    }
}

fn health_check(health: &Health) -> Check {
    let text = format!("ksid {} answers, pid {}", health.version, health.pid);
    let ours = env!("CARGO_PKG_VERSION");
    match health.status {
        HealthStatus::Degraded => {
            fail("daemon", format!("{text}; {}", health.reasons.join("; ")), "ksi plugin list; ksi logs")
        }
        _ if health.version != ours => warn(
            "daemon",
            format!("{text}, and ksi is {ours}"),
            "install both of one version, then: ksi restart",
        ),
        _ => ok("daemon", text),
    }
}

/// Whether durable work is accepted.
fn journal(status: &Value) -> Check {
    const NAME: &str = "journal";
    if status["accepting"] == true {
        return ok(NAME, format!("takes durable work, {} positions so far", status["last_seq"]));
    }
    let reason = status["reason"].as_str().unwrap_or("it takes nothing");
    fail(
        NAME,
        reason.to_owned(),
        "free some space and look at the disk; it goes on by itself then: ksi checkpoint list",
    )
}

fn plugins(list: &PluginList) -> Check {
    // One that was stopped without a failure is one that nobody wants to run.
    let wanted = list
        .plugins
        .iter()
        .filter(|plugin| plugin.state != PluginState::Stopped || plugin.last_error.is_some());
    let total = wanted.clone().count();
    let mut troubled = Vec::new();
    for plugin in wanted.filter(|plugin| plugin.state != PluginState::Ready) {
        let why = plugin.last_error.as_deref().unwrap_or("no reason given");
        troubled.push(format!("{} {}: {why}", plugin.name, plugin.state.as_str()));
    }
    if troubled.is_empty() {
        return ok("plugins", format!("{total} of {total} ready"));
    }
    let held = list.plugins.iter().find(|plugin| plugin.state == PluginState::Held);
    let fix = held.map_or("ksi plugin list".into(), |plugin| format!("ksi plugin restart {}", plugin.name));
    fail("plugins", troubled.join("; "), fix)
}

fn models(reply: &Value) -> Check {
    const ADD: &str = "ksi model add PATH.gguf";
    let models = reply["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let broken: Vec<_> = models
        .iter()
        .filter_map(|model| Some(format!("{}: {}", model["name"].as_str()?, model.get("error")?.as_str()?)))
        .collect();
    let real = models.iter().filter(|model| model["toy"] != true).count();
    match (models.len(), broken.is_empty(), real) {
        (0, ..) => fail("models", "none", ADD),
        (_, false, _) => warn("models", broken.join("; "), "remove or replace them: ksi model rm NAME"),
        (n, true, 0) => warn("models", format!("{n}, only toys"), format!("add a real one: {ADD}")),
        (n, true, _) => ok("models", format!("{n}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_runtime_dir_that_others_can_enter_fails_with_its_repair() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let check = runtime_dir(dir.path());
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.fix.starts_with("chmod 700"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(runtime_dir(dir.path()).outcome, Outcome::Ok);
        assert_eq!(runtime_dir(&dir.path().join("none")).outcome, Outcome::Ok);
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

    #[test]
    fn models_that_are_broken_or_only_toys_are_warnings_and_none_a_failure() {
        let outcome = |list: Value| models(&json!({"models": list}));
        assert_eq!(outcome(json!([])).outcome, Outcome::Fail);
        assert_eq!(outcome(json!([{"name": "t", "toy": true}])).outcome, Outcome::Warn);
        assert_eq!(outcome(json!([{"name": "a", "error": "cut short"}])).text, "a: cut short");
        assert_eq!(outcome(json!([{"name": "a", "toy": false}])).outcome, Outcome::Ok);
    }

    #[test]
    fn the_report_is_as_bad_as_its_worst_check() {
        let report = report(&[ok("a", "x"), warn("b", "y", "z")]).unwrap();
        let output = crate::output::Output {
            format: crate::output::Format::Json,
            headers: true,
            quiet: true,
            color: false,
        };
        let mut out = Vec::new();
        output.render(&report, &mut out).unwrap();
        let data: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(data["status"], "warn");
        assert_eq!(data["checks"][1], json!({"name": "b", "outcome": "warn", "text": "y", "fix": "z"}));
    }
}
