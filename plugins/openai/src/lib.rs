//! Models behind an OpenAI-compatible API: OpenAI itself, and whatever speaks
//! its language, from vLLM and llama-server to Groq and OpenRouter.
//!
//! `openai:generate` becomes one `POST /chat/completions` that streams,
//! `openai:models` one `GET /models`. It keeps nothing between requests,
//! retries nothing, and reaches no other host than that of `base_url`.
//!
//! # Failure
//!
//! Refusals say of what kind a failure is; see `ksi_provider::failure`. Once text
//! was passed on none of them is retryable.

pub mod config;
pub mod request;
pub mod answer;

use ksi_provider::{Delta, Generate, Generated, ListModels, Model, Models, failure::Failure};
use ksi_provider_http::{Attempt, Client, Output, Worker};
use ksi_sdk::prelude::{Chunks, Ctx, Deserialize, Plugin, Rc, Refusal, Register};
use serde_json::Value;

use answer::Reading;
use config::Config;

/// The plugin's name, and the first half of its models' names.
const NAME: &str = "openai";

/// The plugin.
pub struct OpenAi {
    config: Config,
    client: Client,
    worker: Worker,
}

impl Plugin for OpenAi {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = "Models behind an OpenAI-compatible API";
    const CHILD_ONLY: bool = true;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        let client = Client::new(&config.server()?)?;
        Ok(Self { client, worker: Worker::start(NAME)?, config })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("openai:generate", Self::generate);
        on.request("openai:models", Self::models);
    }
}

impl OpenAi {
    async fn generate(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Generate,
        out: Chunks<Delta>,
    ) -> Result<Generated, Refusal> {
        ask.check()?;
        let request = request::of(&ask, &self.config)?;
        let total = self.config.timeouts.total(ask.timeout_ms, ctx.deadline());
        let exchange = Exchange { client: self.client.clone(), request, seed: ask.seed };
        self.worker.generate(exchange, Output::new(NAME, out, ctx.unique_id()), total).await
    }

    async fn models(self: Rc<Self>, _ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let client = self.client.clone();
        let listed = self.worker.run(async move { client.get("/models").await }).await?;
        let listed: Listed = serde_json::from_value(listed).map_err(|error| {
            Failure::InvalidAnswer
                .refusal(format!("provider `{NAME}` lists its models in another way: {error}"))
        })?;
        let mut models: Vec<Model> = listed.data.into_iter().map(|model| self.model(model)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        let first = models.iter().position(|model| Some(&model.name) == self.config.default_model.as_ref());
        if let Some(first) = first {
            models[..=first].rotate_right(1);
        }
        Ok(Models { models })
    }

    /// A model, with what the server and the configuration know of it.
    fn model(&self, listed: ListedModel) -> Model {
        let known = self.config.models.get(&listed.id).cloned().unwrap_or_default();
        let meta = listed.meta.and_then(|meta| meta.n_ctx_train);
        Model {
            context_length: known.context_length.or(listed.max_model_len).or(listed.context_length).or(meta),
            capabilities: known.capabilities.unwrap_or_else(|| config::CAPABILITIES.to_vec()),
            name: listed.id,
            toy: false,
        }
    }
}

/// The answer to `GET /models`.
#[derive(Deserialize)]
struct Listed {
    data: Vec<ListedModel>,
}

/// A model, with what some servers tell besides its name.
#[derive(Deserialize)]
struct ListedModel {
    id: String,
    /// vLLM.
    max_model_len: Option<u64>,
    /// OpenRouter.
    context_length: Option<u64>,
    /// llama-server.
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    n_ctx_train: Option<u64>,
}

/// One request and the reading of its answer.
struct Exchange {
    client: Client,
    request: request::Request,
    seed: Option<u32>,
}

impl Attempt for Exchange {
    async fn run(self, output: &mut Output) -> Result<Generated, Refusal> {
        let Self { client, request, seed } = self;
        let mut events = client.stream("/chat/completions", &Value::Object(request.body)).await?;
        let mut reading = Reading::new(request.model, request.choices);
        while let Some(event) = events.next().await? {
            if event.data == answer::DONE {
                break;
            }
            for delta in reading.read(&event.data, output).map_err(|flaw| flaw.refusal(&events))? {
                output.send(delta).await?;
            }
        }
        if !output.is_whole(reading.choices()) {
            return Err(events.cut());
        }
        output.finish(reading.end(seed, request.ignored))
    }
}

ksi_sdk::export!(OpenAi);
