//! The prompt plugin: texts for models, written once as templates, in versions.
//!
//! A template is a file `NAME@VERSION.j2` of the directory of prompts; its language
//! is that of Jinja, its words are variables. Which ones it needs is read off the
//! template: a variable that is missing, or that it does not know, is refused by
//! name. Its first lines may say more, each as a comment:
//!
//! ```text
//! {# about: Asks for a summary #}
//! {# optional: tone, language #}
//! ```
//!
//! The directory is read anew for each request, so a template that was changed is
//! in force at once.
//!
//! # Limits
//!
//! Templates come from whoever runs the daemon, variables from whoever asks.
//! Neither can run long or grow without bound: a rendering has fuel, a longest
//! output, and no way to files, network or other templates; the plugin runs in a
//! child with a limit of memory.

use std::path::PathBuf;

use ksi_sdk::prelude::{Code, Ctx, Deserialize, Plugin, Rc, Refusal, Register};

pub mod payload;
mod shelf;
mod template;

use payload::{ListPrompts, PromptInfo, Prompts, Render, Rendered};
use shelf::Shelf;

/// The `config` table of the plugin.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Where the templates lie; empty: `prompts` in the plugin's own directory.
    dir: String,
}

/// The plugin.
pub struct Prompt {
    shelf: Shelf,
}

impl Plugin for Prompt {
    const NAME: &'static str = "prompt";
    const ABOUT: &'static str = "Prompts: versioned templates, rendered with checked variables";

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        let dir = match config.dir.as_str() {
            "" => ctx.dir().join("prompts"),
            dir => PathBuf::from(dir),
        };
        if !dir.is_absolute() {
            let message = format!("configuration `dir` is no absolute path: {}", dir.display());
            return Err(Refusal::new(Code::InvalidPayload, message));
        }
        Ok(Self { shelf: Shelf::new(dir) })
    }

    fn register(on: &mut Register<Self>) {
        on.request("prompt:render", Self::render);
        on.request("prompt:list", Self::list);
    }
}

impl Prompt {
    async fn render(self: Rc<Self>, ctx: Ctx, ask: Render) -> Result<Rendered, Refusal> {
        let shelf = self.shelf.clone();
        ctx.spawn_blocking(move || {
            let found = shelf.find(&ask.name, ask.version)?;
            let text = template::render(&found.text, &ask.variables)?;
            Ok(Rendered { name: found.name, version: found.version, text })
        })
        .await?
    }

    async fn list(self: Rc<Self>, ctx: Ctx, _ask: ListPrompts) -> Result<Prompts, Refusal> {
        let shelf = self.shelf.clone();
        let dir = shelf.dir().display().to_string();
        let prompts = ctx.spawn_blocking(move || shelf.all()).await??;
        let told = prompts.into_iter().map(|prompt| {
            let read = template::describe(&prompt.text);
            let (about, required, optional, error) = match read {
                Ok(words) => (words.about, words.required, words.optional, None),
                Err(refusal) => (None, Vec::new(), Vec::new(), Some(refusal.message)),
            };
            PromptInfo { name: prompt.name, version: prompt.version, about, required, optional, error }
        });
        Ok(Prompts { dir, prompts: told.collect() })
    }
}

ksi_sdk::export!(Prompt);
