//! Models behind an OpenAI-compatible API: OpenAI itself, and whatever speaks
//! its language, from vLLM and llama-server to Groq and OpenRouter.
//!
//! `openai:generate` becomes one `POST /chat/completions` that streams, or is
//! answered at once where the server does not; `openai:models` one `GET /models`. It keeps nothing between requests,
//! retries nothing, and reaches no other host than that of `base_url`.
//!
//! # Failure
//!
//! Refusals say of what kind a failure is; see `ksi_provider::failure`. Once text
//! was passed on none of them is retryable.

pub mod config;
pub mod request;
pub mod answer;

use ksi_provider::{Delta, Generate, Generated, ListModels, Models};
use ksi_provider_http::{Answered, Attempt, Client, Output, Worker, known, problem::invalid, worker};
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
        let total = worker::total(self.config.timeouts.total_ms, ask.timeout_ms, ctx.deadline());
        let exchange = Exchange { client: self.client.clone(), request, seed: ask.seed };
        self.worker.generate(exchange, Output::new(NAME, out, ctx.unique_id()), total).await
    }

    async fn models(self: Rc<Self>, _ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let client = self.client.clone();
        let listed = self.worker.run(async move { client.get("/models").await }).await?;
        let listed: Listed = serde_json::from_value(listed)
            .map_err(|error| invalid(NAME, format!("its list of models cannot be read: {error}")))?;
        let models = listed.data.into_iter().map(|model| {
            let meta = model.meta.and_then(|meta| meta.n_ctx_train);
            (model.id, model.max_model_len.or(model.context_length).or(meta))
        });
        let Config { models: known, default_model, .. } = &self.config;
        Ok(known::list(models, known, &config::CAPABILITIES, default_model.as_deref()))
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
        let answered = client.stream_or_document("/chat/completions", &Value::Object(request.body)).await?;
        let mut reading = Reading::new(request.model, request.choices);
        let mut events = match answered {
            Answered::Events(events) => events,
            Answered::Document(document) => {
                for delta in reading.read_document(document, output)? {
                    output.send(delta).await?;
                }
                return output.finish(reading.end(seed, request.ignored));
            }
        };
        while let Some(event) = events.next().await? {
            if event.data == answer::DONE {
                break;
            }
            for delta in reading.read(&event.data, output)? {
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
