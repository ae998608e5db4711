//! Claude through the Anthropic API.
//!
//! `anthropic:generate` becomes one `POST /v1/messages` that streams,
//! `anthropic:models` one `GET /v1/models`. It keeps nothing between requests,
//! retries nothing, and reaches no other host than that of `base_url`.
//!
//! The API has no answers in JSON by a schema. Where one is asked for, the model
//! is made to call a tool of that schema, and what it writes as arguments is the
//! text of the answer.
//!
//! # Failure
//!
//! Refusals say of what kind a failure is; see `ksi_provider::failure`. Once text
//! was passed on none of them is retryable.

pub mod config;
pub mod request;
pub mod answer;

use ksi_provider::{Delta, Generate, Generated, ListModels, Models};
use ksi_provider_http::{Attempt, Client, Output, Worker, known, problem::invalid};
use ksi_sdk::prelude::{Chunks, Ctx, Deserialize, Plugin, Rc, Refusal, Register};
use serde_json::Value;

use answer::Reading;
use config::Config;

/// The plugin's name, and the first half of its models' names.
const NAME: &str = "anthropic";

/// The plugin.
pub struct Anthropic {
    config: Config,
    client: Client,
    worker: Worker,
}

impl Plugin for Anthropic {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = "Claude through the Anthropic API";
    const CHILD_ONLY: bool = true;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        let client = Client::new(&config.server()?)?;
        Ok(Self { client, worker: Worker::start(NAME)?, config })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("anthropic:generate", Self::generate);
        on.request("anthropic:models", Self::models);
    }
}

impl Anthropic {
    async fn generate(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Generate,
        out: Chunks<Delta>,
    ) -> Result<Generated, Refusal> {
        ask.check()?;
        let request = request::of(&ask, &self.config)?;
        let total = self.config.timeouts.total(ask.timeout_ms, ctx.deadline());
        let exchange = Exchange { client: self.client.clone(), request };
        self.worker.generate(exchange, Output::new(NAME, out, ctx.unique_id()), total).await
    }

    async fn models(self: Rc<Self>, _ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let client = self.client.clone();
        let listed = self.worker.run(async move { client.get("/v1/models?limit=1000").await }).await?;
        let listed: Listed = serde_json::from_value(listed)
            .map_err(|error| invalid(NAME, format!("its list of models cannot be read: {error}")))?;
        let models = listed.data.into_iter().map(|model| (model.id, model.max_input_tokens));
        let Config { models: known, default_model, .. } = &self.config;
        Ok(known::list(models, known, &config::CAPABILITIES, default_model.as_deref()))
    }
}

/// The answer to `GET /v1/models`.
#[derive(Deserialize)]
struct Listed {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
    max_input_tokens: Option<u64>,
}

/// One request and the reading of its answer.
struct Exchange {
    client: Client,
    request: request::Request,
}

impl Attempt for Exchange {
    async fn run(self, output: &mut Output) -> Result<Generated, Refusal> {
        let Self { client, request } = self;
        let mut events = client.stream("/v1/messages", &Value::Object(request.body)).await?;
        let mut reading = Reading::new(request.model, request.by_schema);
        while let Some(event) = events.next().await? {
            if let Some(delta) = reading.read(&event.data, output)? {
                output.send(delta).await?;
            }
            if reading.is_over() {
                return output.finish(reading.end(request.ignored));
            }
        }
        Err(events.cut())
    }
}

ksi_sdk::export!(Anthropic);
