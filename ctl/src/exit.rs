//! Exit codes: the one list of them, and the one place that says which
//! refusal ends with which.

use std::process::ExitCode;

use ksi_protocol::Code;

/// How `ksi` ends. Scripts may rely on these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It is done.
    Ok = 0,
    /// It failed, for a reason that has no number of its own.
    Failed = 1,
    /// The command line or the payload is wrong.
    Usage = 2,
    /// The daemon is not running.
    NotRunning = 3,
    /// The event, plugin, model or request named does not exist.
    NotFound = 4,
    /// The asker may not do this.
    Denied = 5,
    /// It exists already, or changed meanwhile.
    Conflict = 6,
    /// The time was over before the answer came.
    Timeout = 7,
    /// The daemon runs, but not all of it (`health`, `doctor`, `up`), or what
    /// it keeps is damaged (`checkpoint verify`, `audit verify`), or a file is
    /// not what was signed (`plugin verify`, `model verify`).
    Degraded = 8,
    /// Ctrl-C; what was asked has been cancelled in the daemon.
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, for `--help` and the manual page.
    pub(crate) const DOCUMENTED: &'static str = "\
Exit codes:
    0  ok
    1  failed
    2  usage: the command line or the payload is wrong
    3  the daemon is not running
    4  not found: no such event, plugin, model, work or checkpoint
    5  denied
    6  conflict
    7  timeout
    8  degraded: the daemon runs, but not all of it (health, doctor, up; start and restart warn);
       or something is not as it was written
  130  interrupted (Ctrl-C); the request has been cancelled in the daemon

Data goes to standard output, everything else to standard error. With -o json an error is
one line {\"error\":{code,message,hint,exit,…}} on standard error.";

    /// The code that a refusal ends with.
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::InvalidPayload | Code::InvalidFrame | Code::TooLarge => Self::Usage,
            Code::UnknownEvent | Code::NotFound => Self::NotFound,
            Code::Denied => Self::Denied,
            Code::Conflict => Self::Conflict,
            Code::Timeout => Self::Timeout,
            Code::ShuttingDown => Self::NotRunning,
            Code::Cancelled => Self::Interrupted,
            Code::Busy
            | Code::NoOwner
            | Code::PluginRestarted
            | Code::Unavailable
            | Code::Internal
            | Code::Unknown => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_end_with_the_documented_codes() {
        for (code, expected) in [
            (Code::UnknownEvent, 4),
            (Code::InvalidPayload, 2),
            (Code::InvalidFrame, 2),
            (Code::Denied, 5),
            (Code::Busy, 1),
            (Code::Timeout, 7),
            (Code::TooLarge, 2),
            (Code::NoOwner, 1),
            (Code::PluginRestarted, 1),
            (Code::Cancelled, 130),
            (Code::ShuttingDown, 3),
            (Code::NotFound, 4),
            (Code::Conflict, 6),
            (Code::Unavailable, 1),
            (Code::Internal, 1),
            (Code::Unknown, 1),
        ] {
            assert_eq!(Exit::of(code) as u8, expected, "{code}");
        }
        assert_eq!(Code::ALL.len(), 16);
    }

    #[test]
    fn the_documentation_names_every_code() {
        for exit in [0, 1, 2, 3, 4, 5, 6, 7, 8, 130] {
            let start = format!("{exit:>5}  ");
            assert!(Exit::DOCUMENTED.lines().any(|line| line.starts_with(&start)), "{exit}");
        }
    }
}
