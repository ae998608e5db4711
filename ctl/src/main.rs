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
mod http;
mod input;
mod invocation;
mod llama;
mod output;
mod restart;
mod schema;
mod start;
mod time;
mod verb;

use std::{io::Write, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::{args::Cli, error::Failure, exit::Exit, invocation::Invocation, output::Format};

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
            let mut out = at.out;
            if for_programs(&words()) {
                // Behind the fields of an event, `-o` is read only once its schema is known.
                out.format = Format::Json;
            }
            out.fail(&failure);
            failure.exit.into()
        }
    }
}

/// The words of the command line.
fn words() -> Vec<String> {
    std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// `--help`, `--version`, or a command line that makes no sense.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to hear that the help could not be printed.
        let _ = error.print();
        return Exit::Ok.into();
    }
    if for_programs(&words()) {
        let mistake = match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Failure::usage("a verb is missing").hint("all verbs: --help")
            }
            _ => mistake(&error.render().to_string()),
        };
        let _ = writeln!(std::io::stderr(), "{}", mistake.to_json());
    } else {
        let _ = error.print();
    }
    Exit::Usage.into()
}

/// Whether a command line asks for what a program reads, as far as can be seen
/// without parsing it.
fn for_programs(words: &[String]) -> bool {
    let machine = |format: &str| matches!(format, "json" | "jsonl" | "yaml");
    let next = words.iter().skip(1).map(String::as_str).chain([""]);
    words.iter().take_while(|word| *word != "--").zip(next).any(|(word, next)| match word.as_str() {
        "-o" | "--output" => machine(next),
        word => {
            ["--output=", "-o=", "-o"].iter().find_map(|flag| word.strip_prefix(flag)).is_some_and(machine)
        }
    })
}

/// A mistake as the parser words it: what is wrong, then tips, then the usage.
fn mistake(text: &str) -> Failure {
    let mut paragraphs = text.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let what = paragraphs.next().unwrap_or_default();
    let hints: Vec<_> = paragraphs
        .filter_map(|text| {
            Some(text.strip_prefix("tip: ").or(text.starts_with("Usage: ").then_some(&*text))?.to_owned())
        })
        .collect();
    Failure::usage(what.strip_prefix("error: ").unwrap_or(&what)).hint(hints.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_command_line_is_told_in_the_format_that_it_asks_for() {
        let asks = |line: &str| for_programs(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for line in ["x -o json", "-ojsonl x", "--output=yaml x", "--output json", "-o=json"] {
            assert!(asks(line), "{line}");
        }
        for line in ["x", "-o table x", "-o", "x -- -o json", "json"] {
            assert!(!asks(line), "{line}");
        }
    }

    #[test]
    fn a_mistake_keeps_its_tips() {
        let failure =
            mistake("error: no such thing\n\n  tip: try\n  that\n\nUsage: ksi [VERB]\n\nFor more, x\n");
        assert_eq!(failure.message, "no such thing");
        assert_eq!(failure.hint, "try that; Usage: ksi [VERB]");
    }
}
