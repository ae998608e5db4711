//! `ksi`: talks to ksid from a terminal or a script.
//!
//! It parses the command line, does one thing over the socket, prints data to
//! standard output and all else to standard error, and ends with a documented
//! exit code ([`exit::Exit`]). It keeps nothing in memory between two runs,
//! and on disk only the history of `chat`.

mod answer;
mod args;
mod bench;
mod complete;
mod error;
mod exit;
mod invocation;
mod output;
mod schema;
mod start;
mod verb;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{args::Cli, exit::Exit, invocation::Invocation};

fn main() -> ExitCode {
    // Answers the shell when it asks for completions, and ends there.
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let at = Invocation::new(&cli.global);
    match verb::run(&at, cli.verb) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            at.out.fail(&failure);
            failure.exit.into()
        }
    }
}

/// `--help`, `--version`, or a command line that makes no sense.
fn refused(error: &clap::Error) -> ExitCode {
    // Nobody is left to hear that the help could not be printed.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}
