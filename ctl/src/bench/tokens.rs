//! Tokens: what the way from the model to the terminal costs for each.
//!
//! The plugin says how long it generated; the clock here says how long the
//! tokens took to arrive. The difference is the share of everything between:
//! host, daemon, socket and client.

use std::time::{Duration, Instant};

use super::{Measured, rate};
use crate::{
    answer::{self, Question},
    error::{Failure, Result},
    invocation::Invocation,
};

/// Tokens of one answer; several answers are asked for until enough have come.
const TOKENS: u32 = 128;

/// Answers after which a model that says too little is given up.
const ANSWERS_MAX: u64 = 64;

/// What all answers together have shown.
#[derive(Debug, Default)]
struct Seen {
    /// Times between two pieces.
    gaps: Vec<Duration>,
    /// From the first piece to the last, of all answers.
    arriving: Duration,
    /// What the plugin says it generated, of all answers.
    generating: Duration,
    tokens: u64,
}

/// Streams answers until `count` tokens have come.
///
/// # Errors
///
/// Fails where no model answers, or it says next to nothing.
pub(super) async fn ask(at: &Invocation, model: Option<String>, count: usize) -> Result<Measured> {
    let client = at.connect().await?;
    let mut seen = Seen::default();
    // The first answer may load the model; it is not counted.
    one(at, &client, question(model.clone(), 0), &mut Seen::default()).await?;
    for seed in 1..=ANSWERS_MAX {
        one(at, &client, question(model.clone(), seed), &mut seen).await?;
        if seen.tokens >= count as u64 {
            break;
        }
    }
    measured(seen)
}

fn question(model: Option<String>, seed: u64) -> Question {
    Question {
        prompt: Some("Once upon a time".to_owned()),
        model,
        seed: Some(seed),
        temperature: Some(1.0),
        max_tokens: Some(TOKENS),
        ..Question::default()
    }
}

async fn one(
    at: &Invocation,
    client: &ksi_client::Client,
    question: Question,
    seen: &mut Seen,
) -> Result<()> {
    let mut first = None;
    let mut last = Instant::now();
    let gaps = &mut seen.gaps;
    let (_, completed) = answer::stream(client, &question, at.call(), |_| {
        let now = Instant::now();
        if first.is_some() {
            gaps.push(now - last);
        }
        first.get_or_insert(now);
        last = now;
        Ok(())
    })
    .await?;
    let Some(first) = first else { return Ok(()) };
    seen.arriving += last - first;
    // The plugin's clock covers every token, the first included; here the
    // first one starts the clock, so its part is taken off there too.
    let tokens = completed.usage.completion_tokens;
    let generating = Duration::try_from_secs_f64(completed.timings.generate_ms / 1000.0).unwrap_or_default();
    if tokens > 1 {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred tokens")]
        let part = (tokens - 1) as f64 / tokens as f64;
        seen.generating += generating.mul_f64(part);
    }
    seen.tokens += tokens;
    Ok(())
}

fn measured(seen: Seen) -> Result<Measured> {
    if seen.gaps.is_empty() || seen.generating.is_zero() {
        return Err(
            Failure::failed("the model says too little to be measured").hint("another one: --model NAME")
        );
    }
    let (arriving, generating) = (seen.arriving.as_secs_f64(), seen.generating.as_secs_f64());
    let share = ((arriving - generating) / arriving.max(1e-9) * 100.0).max(0.0);
    let tokens = usize::try_from(seen.tokens).unwrap_or(usize::MAX);
    Ok(Measured {
        n: tokens,
        per_s: Some(rate(tokens, seen.arriving)),
        share_percent: Some((share * 100.0).round() / 100.0),
        ..Measured::of("ask", seen.gaps, seen.arriving)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_the_plugin_does_not_account_for() {
        let seen = Seen {
            gaps: vec![Duration::from_micros(1000); 99],
            arriving: Duration::from_micros(100_000),
            generating: Duration::from_micros(99_000),
            tokens: 100,
        };
        let measured = measured(seen).unwrap();
        assert_eq!((measured.share_percent, measured.p50_us, measured.n), (Some(1.0), Some(1000.0), 100));
    }

    #[test]
    fn a_silent_model_is_no_measurement() {
        assert!(measured(Seen::default()).is_err());
    }
}
