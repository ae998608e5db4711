//! `doctor`: is everything there that KSI needs, and if not, what to do?
//!
//! It looks and changes nothing, unless it is told to (`--fix`): then it does
//! what cannot do harm, and looks again.

mod daemon;
mod place;
mod repair;

use serde::Serialize;
use serde_json::json;

use self::repair::Repair;
use crate::{
    args,
    error::{Failure, Result},
    exit::Exit,
    invocation::Invocation,
    output::{Format, Output, Report, Table},
};

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
    /// What was found.
    text: String,
    /// Why that matters; empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'static str,
    /// What to do; empty where all is well.
    fix: String,
    /// What `--fix` would do about it.
    #[serde(skip)]
    repair: Option<Repair>,
}

/// What `--fix` has done.
#[derive(Debug, Serialize)]
struct Repaired {
    /// Of the check.
    name: &'static str,
    /// The command that does the same.
    done: String,
}

fn ok(name: &'static str, text: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Ok, text: text.into(), why: "", fix: String::new(), repair: None }
}

fn warn(name: &'static str, text: impl Into<String>, why: &'static str, fix: impl Into<String>) -> Check {
    Check { outcome: Outcome::Warn, why, fix: fix.into(), ..ok(name, text) }
}

fn fail(name: &'static str, text: impl Into<String>, why: &'static str, fix: impl Into<String>) -> Check {
    Check { outcome: Outcome::Fail, ..warn(name, text, why, fix) }
}

impl Check {
    /// Something that `--fix` does away with; by hand it is the same.
    fn repaired_by(self, repair: Repair) -> Self {
        Self { fix: format!("{repair}, or: ksi doctor --fix"), repair: Some(repair), ..self }
    }
}

/// `ksi doctor`.
///
/// # Errors
///
/// Ends with 8 where a check fails, after the repairs if there were any.
pub(super) async fn doctor(at: &Invocation, options: args::Doctor) -> Result<()> {
    let mut checks = place::checks(at);
    let mut repaired = Vec::new();
    if options.fix {
        repaired = repair(at, &checks);
        checks = place::checks(at);
    }
    checks.extend(daemon::checks(at).await);
    let failed = checks.iter().any(|check| check.outcome == Outcome::Fail);
    let report = report(&checks, &repaired)?;
    let format = if options.json { Format::Json } else { at.out.format };
    Output { format, ..at.out }.print(&report)?;
    for Repaired { name, done } in &repaired {
        at.out.note(&format!("repaired: {name}: {done}"));
    }
    for check in checks.iter().filter(|check| check.outcome != Outcome::Ok) {
        at.out.note(&format!("{}: {}: {}; {}", check.outcome.as_str(), check.name, check.why, check.fix));
    }
    if failed { Err(Failure::quietly(Exit::Degraded)) } else { Ok(()) }
}

/// Does what can be done about these, and gives what was.
fn repair(at: &Invocation, checks: &[Check]) -> Vec<Repaired> {
    let mut repaired = Vec::new();
    for (name, repair) in checks.iter().filter_map(|check| Some((check.name, check.repair.as_ref()?))) {
        match repair.make() {
            Ok(()) => repaired.push(Repaired { name, done: repair.to_string() }),
            Err(error) => at.out.note(&format!("cannot repair {name}: {repair}: {error}")),
        }
    }
    repaired
}

fn report(checks: &[Check], repaired: &[Repaired]) -> Result<Report> {
    let mut table = Table::new(&["CHECK", "OUTCOME", "FOUND"]);
    for check in checks {
        table.row([check.name.into(), check.outcome.as_str().into(), check.text.clone()]);
    }
    let worst = checks.iter().map(|check| check.outcome).max_by_key(|outcome| *outcome as u8);
    let data = json!({"status": worst.map(Outcome::as_str), "checks": checks, "repaired": repaired});
    Report::list(&data, "checks", checks.iter().map(|check| check.name.to_owned()).collect(), table)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_report_is_as_bad_as_its_worst_check() {
        let report = report(&[ok("a", "x"), warn("b", "y", "w", "z")], &[]).unwrap();
        let output = crate::output::Output { format: Format::Json, headers: true, quiet: true, color: false };
        let mut out = Vec::new();
        output.render(&report, &mut out).unwrap();
        let data: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(data["status"], "warn");
        let second = json!({"name": "b", "outcome": "warn", "text": "y", "why": "w", "fix": "z"});
        assert_eq!(data["checks"][1], second);
        assert_eq!(data["checks"][0].get("why"), None);
    }
}
