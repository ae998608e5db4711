//! `ksi-plugin-host`: the child process of one plugin.
//!
//! Started by the daemon with its end of a socket pair as standard input. It
//! sandboxes itself, then loads what the first frame names. Not meant to be
//! started by hand.
#![expect(clippy::print_stderr, reason = "standard error is how a host reports to its daemon")]

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    process::ExitCode,
};

use ksi_host::{child, sandbox};
use nix::unistd::Pid;

const USAGE: &str = "usage: ksi-plugin-host DAEMON_PID [MEMORY_BYTES [FILES [FILE_BYTES]]]\n\
    Started by ksid for each plugin that runs in a process of its own; a limit of 0 is none.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok()).filter(|&n| n > 0);
    let Some(daemon) = number(0).and_then(|pid| i32::try_from(pid).ok()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let limits = sandbox::Limits { memory_bytes: number(1), files: number(2), file_bytes: number(3) };
    if let Err(why) = sandbox::enter(Pid::from_raw(daemon), &limits) {
        eprintln!("cannot enter the sandbox: {why}");
        return ExitCode::from(1);
    }
    let ended = link().map_err(child::Error::from).and_then(child::run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(1)
        }
    }
}

/// Takes the link off standard input, where a plugin could read it by
/// mistake, and leaves nothing there.
fn link() -> std::io::Result<UnixStream> {
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(nothing)?;
    Ok(UnixStream::from(link))
}
