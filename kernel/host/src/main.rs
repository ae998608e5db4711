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
use ksi_protocol::frame::Setup;
use nix::unistd::Pid;

const USAGE: &str = "usage: ksi-plugin-host DAEMON_PID\n\
    Started by ksid for each plugin that runs in a process of its own.";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).and_then(|text| text.parse::<i32>().ok());
    let Some(daemon) = argument.filter(|pid| *pid > 0).map(Pid::from_raw) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Err(why) = sandbox::begin(daemon) {
        eprintln!("cannot enter the sandbox: {why}");
        return ExitCode::from(1);
    }
    let enter = |setup: &Setup| sandbox::enter(daemon, setup);
    let ended = link().map_err(child::Error::from).and_then(|link| child::run(link, enter));
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
