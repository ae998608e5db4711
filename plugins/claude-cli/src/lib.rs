//! Claude through the command `claude` on this machine, with whatever account
//! it is logged in to.
//!
//! Each request is one run of the command, which ends with it: a request that is
//! cancelled takes all processes of its run along. The command keeps sessions of
//! its own; see [`session`] for the rule by which they are continued.
//!
//! # Failure
//!
//! Refusals say of what kind a failure is; see `ksi_provider::failure`. Once text
//! was passed on none of them is retryable.

pub mod config;
pub mod prompt;
pub mod session;
pub mod answer;
mod run;
mod kin;

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    sync::Arc,
};

use ksi_provider::{Delta, Generate, Generated, ListModels, Models};
use ksi_provider_http::{Output, Worker, known};
use ksi_sdk::prelude::{Chunks, Code, Ctx, Plugin, Rc, Refusal, Register};

use config::Config;
use prompt::Prompt;
use run::{Command, Run};
use session::Sessions;

/// The plugin's name, and the first half of its models' names.
const NAME: &str = "claude-cli";

/// The plugin.
pub struct ClaudeCli {
    config: Config,
    command: Arc<Command>,
    sessions: RefCell<Sessions>,
    running: Cell<usize>,
    worker: Worker,
}

impl Plugin for ClaudeCli {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = "Claude through the command on this machine";
    const CHILD_ONLY: bool = true;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        let own: PathBuf = std::path::absolute(ctx.dir()).unwrap_or_else(|_| ctx.dir().to_owned());
        let command = Arc::new(Command::new(&config, &own)?);
        let sessions = RefCell::new(Sessions::new(config.sessions_max));
        Ok(Self { command, sessions, running: Cell::new(0), worker: Worker::start(NAME)?, config })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("claude-cli:generate", Self::generate);
        on.request("claude-cli:models", Self::models);
    }
}

impl ClaudeCli {
    async fn generate(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Generate,
        out: Chunks<Delta>,
    ) -> Result<Generated, Refusal> {
        ask.check()?;
        let prompt = Prompt::of(&ask, &self.config)?;
        let _place = self.place()?;
        let key = ask.conversation_id.as_ref().map(|id| session::Key::new(ctx.tenant(), id));
        let resumed = key.as_ref().and_then(|key| self.sessions.borrow_mut().take(key, &prompt));
        let name = ctx.unique_id();
        let run = Run::new(self.command.clone(), &prompt, resumed, name.clone());
        let total = self.config.timeouts.total(ask.timeout_ms, ctx.deadline());
        let generated = self.worker.generate(run, Output::new(NAME, out, name), total).await?;
        if let Some(key) = key {
            self.sessions.borrow_mut().remember(key, &prompt, &generated);
        }
        Ok(generated)
    }

    async fn models(self: Rc<Self>, _ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let Config { models: known, default_model, .. } = &self.config;
        // The command cannot list them; these are its names for the newest.
        let names = config::ALIASES.iter().map(|name| (*name).to_owned()).chain(known.keys().cloned());
        let mut names: Vec<String> = names.chain(default_model.clone()).collect();
        names.sort();
        names.dedup();
        let told = names.into_iter().map(|name| (name, None));
        Ok(known::list(told, known, &config::CAPABILITIES, default_model.as_deref()))
    }

    /// A place among those that run.
    fn place(self: &Rc<Self>) -> Result<Place, Refusal> {
        let most = self.config.running_max;
        if self.running.get() >= most {
            return Err(Refusal::new(Code::Busy, format!("{most} runs of `claude` are under way already"))
                .retry_after_ms(1000)
                .hint("`running_max` under [plugins.claude-cli.config] says how many there may be"));
        }
        self.running.set(self.running.get() + 1);
        Ok(Place(self.clone()))
    }
}

/// Counted while it is held.
struct Place(Rc<ClaudeCli>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

ksi_sdk::export!(ClaudeCli);
