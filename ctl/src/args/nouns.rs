//! The verbs that begin with what they are about: plugins, models, the
//! configuration, durable work, checkpoints.

use std::path::PathBuf;

use clap::{
    Args, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use clap_complete::engine::ArgValueCompleter;
use ksi_protocol::work::WorkState;

use crate::complete;

#[derive(Debug, Subcommand)]
pub(crate) enum Plugin {
    /// List all plugins and where they stand
    #[command(visible_alias = "ls")]
    List,
    /// Show one plugin: events, permissions, last deaths
    Inspect(Named),
    /// Try from inside of a plugin's sandbox what is denied there
    Probe(Named),
    /// Load a library, or a plugin of the manifest that was unloaded
    Load {
        /// Path of a library, or name of a plugin
        library: String,
        /// Where it shall run; a library that is not in the manifest runs as a child
        #[arg(long, value_enum)]
        placement: Option<PlacementChoice>,
    },
    /// Stop a plugin and forget its events
    Unload(Named),
    /// Load the plugin's library anew from its file
    Reload(Named),
    /// Stop and start a plugin
    Restart(Named),
    /// Sign libraries, so that they are loaded where signatures are required
    Sign(SignPlugins),
    /// Compare libraries with what was signed; exit code 8 if one differs
    Verify {
        /// Names or paths; all that are signed if left out
        #[arg(value_name = "NAME|PATH", add = ArgValueCompleter::new(complete::plugins))]
        plugins: Vec<String>,
    },
    /// Stop a plugin at once and keep it from running, over restarts of the daemon too
    Quarantine {
        #[command(flatten)]
        plugin: Named,
        /// Why; whoever asks the plugin for something hears it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let a plugin run again that is quarantined, or held after too many failures
    #[command(visible_alias = "resume")]
    Release(Named),
    /// Write the project of a new plugin
    New {
        /// Its name: lower-case letters, digits and _
        name: String,
        /// Where to write it; a directory of that name by default
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Where ksi-sdk lies; found by itself inside a KSI checkout
        #[arg(long, value_name = "PATH")]
        sdk: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SignPlugins {
    /// Names, as in libplugin_NAME.so, or paths of libraries
    #[arg(value_name = "NAME|PATH", add = ArgValueCompleter::new(complete::plugins))]
    pub(crate) plugins: Vec<String>,
    /// All libraries where the daemon looks for them
    #[arg(long, conflicts_with = "plugins")]
    pub(crate) all: bool,
    /// Another secret key than plugins.key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}

/// Keys: what they sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyKind {
    /// models.lock
    Models,
    /// plugins.lock
    Plugins,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a minisign key; with a password, asked for or in KSI_KEY_PASSWORD
    Create {
        /// What it shall sign
        #[arg(value_enum)]
        kind: KeyKind,
        /// Protect the secret key by its file mode alone
        #[arg(long)]
        no_password: bool,
    },
    /// Print the public key, for minisign -P or the configuration
    Show {
        /// What it signs
        #[arg(value_enum)]
        kind: KeyKind,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Keep a secret: the value is read from standard input, or typed without echo
    Set {
        /// Its name; a plugin's configuration says secret:NAME
        name: String,
    },
    /// List the names of all secrets
    #[command(visible_alias = "ls")]
    List,
    /// Forget a secret
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the plugin
    #[arg(add = ArgValueCompleter::new(complete::plugins))]
    pub(crate) name: String,
}

/// Where a plugin may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlacementChoice {
    /// Inside the daemon: trusted
    InProcess,
    /// In a supervised process of its own
    Child,
}

impl From<PlacementChoice> for ksi_protocol::system::Placement {
    fn from(choice: PlacementChoice) -> Self {
        match choice {
            PlacementChoice::InProcess => Self::InProcess,
            PlacementChoice::Child => Self::Child,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// List all models
    #[command(visible_alias = "ls")]
    List,
    /// Show one model
    Show(ModelName),
    /// Copy a GGUF file into the models directory
    Add {
        /// The file
        path: PathBuf,
        /// Its name in KSI; the file's own by default
        #[arg(long)]
        name: Option<String>,
        /// Link to the file instead of copying it
        #[arg(long)]
        link: bool,
    },
    /// Get a model from a server; a pull that was cut goes on where it was
    Pull {
        /// https://HOST/PATH.gguf, or hf:OWNER/REPO/FILE.gguf for Hugging Face
        source: String,
        /// Its name in KSI; the file's own by default
        #[arg(long)]
        name: Option<String>,
        /// The digest that it must have
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
    },
    /// Measure how fast a model reads and writes
    Bench {
        #[command(flatten)]
        model: ModelName,
        /// Tokens to write in each conversation
        #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
        tokens: u32,
        /// Conversations at once; may be given several times
        #[arg(long, value_name = "N", default_values_t = [1, 4])]
        at_once: Vec<u32>,
    },
    /// Load a model into memory before somebody asks for it
    Load {
        #[command(flatten)]
        model: ModelName,
        /// Tokens that a conversation may have
        #[arg(long, value_name = "TOKENS")]
        context: Option<u32>,
        /// How it is to run until it is unloaded, over what is configured, with the names of llama.cpp: threads=2,
        /// flash_attn=on, cache_type_k=q8_0, lora='["style:0.5"]'; may be given several times
        #[arg(long = "set", value_name = "NAME=VALUE")]
        settings: Vec<String>,
    },
    /// Free the memory of a model
    Unload(ModelName),
    /// Sign models, so that they are loaded where signatures are required
    Sign {
        /// Names; with or without `llama/`
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::local_models))]
        models: Vec<String>,
        /// All of the models directory; what is gone from there is taken out of the lock
        #[arg(long, conflicts_with = "models")]
        all: bool,
        /// Another secret key than models.key
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Compare models with what was signed; exit code 8 if one differs
    Verify {
        /// Names; all that are signed if left out
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::local_models))]
        models: Vec<String>,
    },
    /// Remove a model from the models directory
    Rm {
        #[command(flatten)]
        model: ModelName,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ModelName {
    /// Name of the model, with or without `llama/`
    #[arg(add = ArgValueCompleter::new(complete::local_models))]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print where everything lies
    Path,
    /// Show the configuration in force
    Show {
        /// With the place that each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Print one value
    Get {
        /// Such as daemon.log_level
        key: String,
    },
    /// Set one value in ksi.toml; a value that the daemon would refuse is not written
    Set {
        /// Such as daemon.log_level
        key: String,
        /// TOML, or a plain text
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Check the configuration; says file, line and key of all that is wrong
    Validate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Work {
    /// List durable work and where it stands, oldest first
    #[command(visible_alias = "ls")]
    List(WorkList),
    /// Show all that is known of one piece of work
    Get(WorkName),
    /// Wait for its result and print it: 7 when --timeout is over, 1 when it has failed
    Wait(WorkName),
    /// Cancel it, whether it waits or runs; exit code 6 if it has ended otherwise
    Cancel(WorkName),
    /// Do it again: failed, expired, dead, or with an outcome that nobody knows
    Retry(WorkName),
    /// List the work that somebody should look at: dead, or with an outcome that nobody knows
    Dead(WorkPart),
    /// Forget work that has ended, with its result and its idempotency key
    Drop(WorkName),
}

#[derive(Debug, Args)]
pub(crate) struct WorkList {
    /// Only in this state; may be given several times
    #[arg(long, value_name = "STATE", value_parser = states())]
    pub(crate) state: Vec<WorkState>,
    #[command(flatten)]
    pub(crate) part: WorkPart,
}

/// Which part of a list.
#[derive(Debug, Args)]
pub(crate) struct WorkPart {
    /// Only of events that match
    #[arg(long, value_name = "PATTERN", add = ArgValueCompleter::new(complete::patterns))]
    pub(crate) event: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct WorkName {
    /// The request_id that was accepted
    #[arg(value_name = "ID", add = ArgValueCompleter::new(complete::work))]
    pub(crate) request_id: String,
}

fn states() -> impl TypedValueParser<Value = WorkState> {
    PossibleValuesParser::new(WorkState::ALL.map(WorkState::as_str)).map(|word| {
        let named = WorkState::ALL.into_iter().find(|state| state.as_str() == word);
        named.expect("the parser takes only these words")
    })
}

#[derive(Debug, Subcommand)]
pub(crate) enum Completion {
    /// Add up attempts, tokens and money, and show where your budgets stand
    Usage {
        /// Today and so many days before, less one
        #[arg(long, value_name = "N", default_value_t = 30)]
        days: u32,
        /// By what it is added up
        #[arg(long, value_name = "WHAT", value_delimiter = ',', default_values_t = ["day".to_owned(), "model".to_owned()],
              value_parser = PossibleValuesParser::new(["day", "tenant", "principal", "agent", "model"]))]
        by: Vec<String>,
        /// Also show the budgets of this agent
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
        /// Also show the budgets of this conversation
        #[arg(long, value_name = "NAME")]
        conversation: Option<String>,
    },
    /// List the providers of models, and why one cannot answer
    Providers,
    /// Show which models a question could be answered by, the best one first, and why; nobody is asked
    Route {
        /// The question
        prompt: String,
        /// The model or alias that would be asked
        #[arg(short, long, value_name = "NAME", add = ArgValueCompleter::new(complete::models))]
        model: Option<String>,
        /// Models that would answer where that one cannot
        #[arg(long, value_name = "PROVIDER/NAME", add = ArgValueCompleter::new(complete::models))]
        fallback: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoint {
    /// Write all that is kept durably to a file of its own
    Create {
        /// A word to know it by
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
    },
    /// List checkpoints, with the journal and the store
    #[command(visible_alias = "ls")]
    List,
    /// Put a checkpoint in the place of all that is kept
    Restore {
        /// Its id, or the path of an exported file
        #[arg(value_name = "ID|PATH", add = ArgValueCompleter::new(complete::checkpoints))]
        checkpoint: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Walk along the chain of the whole journal; exit code 8 if something is damaged
    Verify,
    /// Write all that is kept durably to a file that any release can read
    Export {
        /// Where to; a directory of the daemon by default
        path: Option<PathBuf>,
    },
    /// List those whose position among durable events is kept
    Consumers,
    /// Forget such a consumer; if it comes again, it begins anew
    Forget {
        /// Its name
        #[arg(value_name = "NAME")]
        consumer: String,
        /// Whose it is; your own tenant's by default
        #[arg(long)]
        tenant: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// List who was let do what, and who was not, oldest first
    #[command(visible_alias = "ls")]
    Query(AuditQuery),
    /// Walk along the chain and its signed heads; exit code 8 names the first record that was changed
    Verify {
        /// An export, checked without the daemon; the daemon's own trail if left out
        file: Option<PathBuf>,
        /// The key that must have signed, or its file
        #[arg(long, value_name = "KEY|FILE")]
        key: Option<String>,
    },
    /// Write the trail to a file that can be checked without the daemon
    Export {
        /// Where to; a directory of the daemon by default
        path: Option<PathBuf>,
    },
    /// Print the public key that heads are signed with; keep it elsewhere
    Key,
}

/// Which decisions.
#[derive(Debug, Args)]
pub(crate) struct AuditQuery {
    /// Nothing older: so long ago, or a time
    #[arg(long, value_name = "2h|TIME")]
    pub(crate) since: Option<String>,
    /// Nothing newer
    #[arg(long, value_name = "2h|TIME")]
    pub(crate) until: Option<String>,
    /// Only of this principal
    #[arg(long, value_name = "NAME")]
    pub(crate) principal: Option<String>,
    /// Only of events that match
    #[arg(long, value_name = "PATTERN", add = ArgValueCompleter::new(complete::patterns))]
    pub(crate) event: Option<String>,
    /// Only what was allowed
    #[arg(long, conflicts_with = "denied")]
    pub(crate) allowed: bool,
    /// Only what was denied
    #[arg(long)]
    pub(crate) denied: bool,
    /// The newest so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it, this once
    Create(CreateToken),
    /// List the tokens that you have made, and those made with them
    #[command(visible_alias = "ls")]
    List,
    /// Take a token back, with all that were made with it; takes effect at once
    Revoke {
        /// Its id, as `ksi token list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ksi token create ci --can 'completion.*' --expires 1d > ci.token
  KSI_TOKEN_FILE=ci.token ksi ask hello
  ksi token create guest --can '*.read' --tenant acme")]
pub(crate) struct CreateToken {
    /// What it is for
    pub(crate) name: String,
    /// A capability, such as completion.* or *.read; may be given several times
    #[arg(long, value_name = "CAPABILITY", required = true)]
    pub(crate) can: Vec<String>,
    /// Whose data it sees; yours, if left out
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Option<String>,
    /// How long it is valid, such as 12h or 30d; until it is revoked, if left out
    #[arg(long, value_name = "TIME", value_parser = super::lasting)]
    pub(crate) expires: Option<std::time::Duration>,
}
