//! `llama:selftest`: a small generation whose answer is known.
//!
//! It goes the way of every request: through the model file, llama.cpp, the
//! scheduler and the stream.

use std::time::Instant;

use ksi_provider::{Delta, Generate, Generated, Message, Role};
use ksi_sdk::prelude::{Chunks, Ctx, Deserialize, JsonSchema, Rc, Refusal, Serialize};
use ksi_sdk::protocol::decode;

use crate::Llama;
use crate::models::BUILTIN_NAME;
use crate::workers::encoded;

/// What the built-in model is asked ...
const QUESTION: &str = "What is KSI?";
/// ... and what it answers, taking the likeliest token each time.
const ANSWER: &str = "KSI is an event daemon for AI agents. It runs in the background, listens on one Unix \
    socket, and its plugins handle events.";

/// Let the built-in model answer a question whose answer is known.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskSelftest {}

/// What came of it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Selftest {
    /// Whether the answer is the known one.
    pub passed: bool,
    /// The model that was asked.
    pub model: String,
    /// What it answered.
    pub answer: String,
    /// What it should have answered.
    pub expected: String,
    /// Time that all took, the loading too where that was needed.
    pub took_ms: u64,
    /// Answer tokens per second.
    pub generate_per_second: f64,
}

impl Llama {
    pub(crate) async fn selftest(
        self: Rc<Self>,
        ctx: Ctx,
        _ask: AskSelftest,
        out: Chunks<Delta>,
    ) -> Result<Selftest, Refusal> {
        let began = Instant::now();
        let ask = Generate {
            model: Some(BUILTIN_NAME.to_owned()),
            messages: Some(vec![Message::new(Role::User, QUESTION)]),
            temperature: Some(0.0),
            ..Generate::default()
        };
        let generated: Generated = decode(&self.asked_to_generate(ctx, encoded(&ask)?, out).await?)?;
        Ok(Selftest {
            passed: generated.text == ANSWER,
            model: generated.model,
            answer: generated.text,
            expected: ANSWER.to_owned(),
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            generate_per_second: generated.timings.generate_per_second,
        })
    }
}
