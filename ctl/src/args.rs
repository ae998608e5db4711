//! The command line: every verb, its options and its help.
//!
//! Only shapes and words live here; what a verb does is in `verb`. The global
//! options work before and after the verb.

mod nouns;
mod time;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use ksi_protocol::frame::Class;

use crate::{
    complete,
    exit::Exit,
    output::{ColorWhen, Format},
};

pub(crate) use time::{duration, lasting};

pub(crate) use nouns::{
    Audit, AuditQuery, Checkpoint, Completion, Config, CreateToken, Key, KeyKind, Model, ModelName, Named,
    Plugin, Secret, SignPlugins, Token, Work, WorkName, WorkPart,
};

/// Talk to ksid, the event daemon for AI agents.
///
/// Without a verb: how the daemon does, and what to do next (always exit code 0).
#[derive(Debug, Parser)]
#[command(
    name = "ksi",
    bin_name = "ksi",
    version,
    max_term_width = 100,
    after_help = Exit::DOCUMENTED,
    disable_help_subcommand = true,
    propagate_version = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Socket of the daemon; KSI_HOME moves all paths at once.
    #[arg(long, global = true, value_name = "PATH", env = "KSI_SOCKET", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,
    /// A file with a token, to speak in its name; KSI_TOKEN holds one itself.
    #[arg(long, global = true, value_name = "PATH", env = ksi_protocol::token::FILE_VARIABLE, hide_env_values = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// How to print data; what comes one after the other is a document each.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|wide|json|jsonl|yaml|name"
    )]
    pub(crate) output: Format,
    /// Longest time to wait for an answer, such as 500ms, 30s or 5m.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Leave out chatter on standard error.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Leave out column titles.
    #[arg(long, global = true)]
    pub(crate) no_headers: bool,
    /// When to colour; NO_COLOR and CLICOLOR_FORCE are obeyed too.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub(crate) color: ColorWhen,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start the daemon if need be, wait until it is ready, try it out, say what next; exit code 8 if
    /// not all of it works
    Up,
    /// Start the daemon and return when it is ready; of what does not work it only warns
    Start(Start),
    /// Stop the daemon and return when it is gone; one that is not running is fine too
    Stop(Stop),
    /// Put a new daemon in the place of the running one; accepted work goes on, and of what does not
    /// work it only warns
    Restart(Stop),
    /// Show how the daemon does: memory, plugins, model, last log lines
    Status,
    /// One line and an exit code: 0 ok, 3 not running, 8 anything else
    Health,
    /// Stop everything but reading and administration, until it is thawed
    Freeze {
        /// Why; whoever is stopped by it hears it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let everything go on that was frozen
    Thaw,
    /// Read the configuration again, without a restart
    Reload,
    /// Check the installation and say how to repair it; exit code 8 if something fails
    Doctor(Doctor),
    /// Ask a model once; the answer streams to standard output
    Ask(Ask),
    /// Talk with a model
    Chat(Chat),
    /// Show what was used of models, who could answer, and where a question would go
    #[command(subcommand)]
    Completion(Completion),
    /// Ask any event, with flags made from its schema
    Send(Send),
    /// Listen to events
    Sub(Sub),
    /// Wait for the result of durable work, and print it
    Wait(WorkName),
    /// Cancel durable work
    Cancel(WorkName),
    /// List, show, cancel and repeat durable work
    #[command(subcommand)]
    Work(Work),
    /// Save, list, restore and check all that is kept durably
    #[command(subcommand)]
    Checkpoint(Checkpoint),
    /// Read, verify and export the audit trail: who was let do what
    #[command(subcommand)]
    Audit(Audit),
    /// Make, list and take back tokens, which let others do part of what you may
    #[command(subcommand)]
    Token(Token),
    /// List what can be asked and heard
    Discover {
        /// Only this namespace
        #[arg(value_name = "NS")]
        namespace: Option<String>,
        /// With schemas (in json and yaml) and delivery (in the table)
        #[arg(long)]
        detail: bool,
    },
    /// Explain one event: what it does, its fields and their types
    Describe {
        /// Such as completion:request
        #[arg(add = ArgValueCompleter::new(complete::events))]
        event: String,
    },
    /// Make and show the keys that sign plugins and models
    #[command(subcommand)]
    Key(Key),
    /// Keep secrets for plugins, which get them by name
    #[command(subcommand)]
    Secret(Secret),
    /// List, inspect, load, unload, sign and write plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// List, add, load, sign and remove models
    #[command(subcommand)]
    Model(Model),
    /// Show, read and set the configuration
    #[command(subcommand)]
    Config(Config),
    /// Show the log of the daemon
    Logs(Logs),
    /// Watch the daemon in a terminal (runs ksi-monitor)
    Top {
        /// Passed on to ksi-monitor
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Measure a running daemon
    Bench(Bench),
    /// Print the versions of ksi and of the daemon
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "For example, in ~/.bashrc:  source <(ksi completions bash)")]
    Completions {
        /// The shell
        #[arg(value_parser = ["bash", "zsh", "fish", "elvish", "powershell"])]
        shell: String,
    },
    /// Write the manual pages
    Man {
        /// Where to; without it, ksi.1 goes to standard output
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Repair what can be repaired without harm: modes, missing directories, what was left behind
    #[arg(long)]
    pub(crate) fix: bool,
    /// The same as -o json
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Stay in the terminal and log to it; Ctrl-C stops the daemon
    #[arg(long)]
    pub(crate) foreground: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Time that requests in flight may take to finish; without it the configured one
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) grace: Option<Duration>,
}

/// How a model shall answer; left out, the model's own defaults hold.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Model options")]
pub(crate) struct Sampling {
    /// Which model answers, such as llama/ksi-tiny
    #[arg(short, long, value_name = "PROVIDER/NAME", add = ArgValueCompleter::new(complete::models))]
    pub(crate) model: Option<String>,
    /// What the model shall be
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Longest answer
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<u32>,
    /// 0 for always the likeliest word, 1 and above for more surprise
    #[arg(short, long, value_name = "0..5", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Only the likeliest words that together have this share, which is above 0
    #[arg(long, value_name = "0..1", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Only this many of the likeliest words
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) top_k: Option<u32>,
    /// Only words at least this share as likely as the likeliest
    #[arg(long, value_name = "0..1", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Above 1, words already used become less likely
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// After each answer, say on standard error which model gave it and how fast
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ksi ask \"Name three unix signals\"
  git log -5 | ksi ask --system \"Summarise\"
  ksi ask --schema person.json \"Who was Ada Lovelace?\"
  ksi ask -o json \"hello\" | jq -r .text")]
pub(crate) struct Ask {
    /// The question; without it, or with -, standard input is read
    pub(crate) prompt: Option<String>,
    /// Answer in JSON that fits this JSON schema, and print it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) schema: Option<std::path::PathBuf>,
    /// A model that answers where the one before cannot; may be given several times
    #[arg(long, value_name = "PROVIDER/NAME", add = ArgValueCompleter::new(complete::models))]
    pub(crate) fallback: Vec<String>,
    /// More urgent requests go first
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ksi chat --system \"You are terse\"
  ksi chat --resume chat-19a2b3c4d5e-1f2
  ksi chat -o jsonl < questions | jq -r 'select(.end).data.text'

With -o json, jsonl or yaml each answer is printed as ksi ask prints it.")]
pub(crate) struct Chat {
    /// Go on with an earlier conversation; its id was printed when it ended
    #[arg(long, value_name = "ID")]
    pub(crate) resume: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// `ksi send`; the fields of the event become flags once its schema is known.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:
  ksi send echo:say --text hello
  ksi send echo:say --json '{\"text\":\"hello\"}'
  ksi send echo:say --help              the fields of this event as flags
  ksi send completion:request --prompt hi
  ksi send completion:async --prompt hi --wait
  ksi send completion:async --prompt hi --expires-in 10m
  ksi send my:event --emit --text hello"
)]
pub(crate) struct Send {
    /// What to ask, such as echo:say
    #[arg(add = ArgValueCompleter::new(complete::events))]
    pub(crate) event: Option<String>,
    /// Show help, for the event where one is given
    #[arg(short, long)]
    pub(crate) help: bool,
    #[command(flatten)]
    pub(crate) options: SendOptions,
    /// Fields of the payload: --key value
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--KEY VALUE")]
    pub(crate) fields: Vec<String>,
}

/// Options of `ksi send` that are no fields of the payload. A field with one
/// of these names is given as `--data-NAME`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SendOptions {
    /// The payload, or a part of it: JSON, @FILE, or - for standard input; flags go on top
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub(crate) json: Option<String>,
    /// Print the parts of a streamed answer as they come, in json too
    #[arg(long)]
    pub(crate) stream: bool,
    /// Tell whoever listens instead of asking; needed for events that nobody declares
    #[arg(long)]
    pub(crate) emit: bool,
    /// Of a durable event: wait for the result and print it, as ksi wait does
    #[arg(long)]
    pub(crate) wait: bool,
    /// Of a durable event: two requests with one key are one request
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Of a durable event: do not begin it any more after this time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) expires_in: Option<Duration>,
    /// Ties together all that follows from one cause
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Patterns: * is one segment, ** any number of them, a lone * is everything.

Examples:
  ksi sub 'completion:*'
  ksi sub -n 1 -o json plugin:ready
  ksi sub -o jsonl '*' | jq .event
  ksi sub 'order:*' --durable --since 0           all that is kept, then what comes
  ksi sub 'order:*' --durable --consumer billing  go on where `billing` has left off")]
pub(crate) struct Sub {
    /// Which events
    #[arg(add = ArgValueCompleter::new(complete::patterns))]
    pub(crate) pattern: String,
    /// End after this many events
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(crate) count: Option<u64>,
    /// What happens when ksi reads too slowly: drop the oldest, or keep the newest of each name
    #[arg(long, value_enum, default_value_t)]
    pub(crate) class: ClassChoice,
    /// Durable events, from the journal: none is lost, over restarts of the daemon too
    #[arg(long, conflicts_with = "class")]
    pub(crate) durable: bool,
    /// Begin at this position in the journal; 0 is all that is kept
    #[arg(long, value_name = "SEQ", requires = "durable", conflicts_with = "class")]
    pub(crate) since: Option<u64>,
    /// Name under which the daemon keeps how far this one is
    #[arg(long, value_name = "NAME", requires = "durable", conflicts_with = "class")]
    pub(crate) consumer: Option<String>,
}

/// Classes that a person may choose from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClassChoice {
    /// A bounded ring
    #[default]
    Live,
    /// The newest of each name
    Latest,
}

impl From<ClassChoice> for Class {
    fn from(choice: ClassChoice) -> Self {
        match choice {
            ClassChoice::Live => Self::Live,
            ClassChoice::Latest => Self::Latest,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ksi logs -f
  ksi logs -n 1000 --level warn
  ksi logs -f -o jsonl | jq -r .line")]
pub(crate) struct Logs {
    /// Go on as the log grows
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with this many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    pub(crate) lines: usize,
    /// Only lines of this level and worse
    #[arg(long, value_enum)]
    pub(crate) level: Option<Level>,
}

/// Levels of the log, from rare to frequent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Args)]
#[command(after_help = "Tests:
  rr                one echo request after the other, to a plugin inside the daemon
  rr-child          the same to a plugin in a child process
  client-to-client  a fact from one client answered by a fact of another, there and back
  pipelined         256 echo requests in flight on one connection
  fanout            one emitter, 64 subscribers, deliveries per second
  frozen            2,000 facts a second from one client to another, and the same while 100 frozen
                    readers listen too
  ask               time per streamed token, and the daemon's share of it
  durable           accepts of durable requests, one by one and 256 in flight, beside a bare
                    append with fdatasync; and live requests with and without that traffic
  infer             tokens per second of 1, 4 and 16 streams that share a model, the time to the
                    first token after a shared beginning, and how long running streams wait
                    while a long prompt is read; takes minutes, and is not part of all")]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t)]
    pub(crate) test: BenchTest,
    /// Requests, events or tokens; each test has a default that takes seconds
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<usize>,
    /// Event of rr and pipelined; takes {"text"}
    #[arg(long, value_name = "NS:EVENT", default_value = "echo:say")]
    pub(crate) event: String,
    /// Event of rr-child; takes {"text"}
    #[arg(long, value_name = "NS:EVENT", default_value = "echo_child:say")]
    pub(crate) child_event: String,
    /// Event of durable; takes {"text"}
    #[arg(long, value_name = "NS:EVENT", default_value = "echo:keep")]
    pub(crate) durable_event: String,
    /// Requests in flight of pipelined and durable
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) in_flight: usize,
    /// Where durable writes its bare appends: on the disk of the journal
    #[arg(long, value_name = "DIR")]
    pub(crate) disk: Option<PathBuf>,
    /// Subscribers of fanout
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) subscribers: usize,
    /// Readers of frozen that never read
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) readers: usize,
    /// Another server that infer asks the same, with the API of OpenAI, such as llama-server
    #[arg(long, value_name = "URL")]
    pub(crate) against: Option<String>,
    /// Model of ask and infer
    #[arg(short, long, value_name = "PROVIDER/NAME", add = ArgValueCompleter::new(complete::models))]
    pub(crate) model: Option<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum BenchTest {
    Rr,
    RrChild,
    ClientToClient,
    Pipelined,
    Fanout,
    Frozen,
    Ask,
    Durable,
    Infer,
    #[default]
    All,
}

#[cfg(test)]
mod tests;
