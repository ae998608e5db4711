//! `model bench`: how fast a model reads and writes, alone and with several
//! conversations at once.
//!
//! The figures are the plugin's own, but for the sum of all conversations,
//! which is taken with the clock here: it is what their askers get together.

use std::time::{Duration, Instant};

use ksi_client::{CallOptions, Client, Part};
use ksi_provider::{Generated, Timings};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::LOAD_TIMEOUT;
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, typed},
    output::{Report, Table},
};

/// Words of the input: some two hundred tokens.
const WORDS: usize = 150;
/// Most conversations at once: no model has more slots.
const AT_ONCE_MAX: u32 = 64;

/// What so many conversations at once have shown.
#[derive(Debug, PartialEq, Serialize)]
struct Measured {
    /// Conversations at once.
    at_once: u32,
    /// Input tokens per second, the mean of all.
    prompt_per_second: f64,
    /// Time to the first token, the mean of all.
    first_token_ms: f64,
    /// Answer tokens per second of one conversation, the mean of all.
    generate_per_second: f64,
    /// Answer tokens per second of all together, reading included.
    total_per_second: f64,
}

/// Measures a model that is loaded for it.
///
/// # Errors
///
/// Fails as the model refuses, and where it says nothing.
pub(super) async fn run(at: &Invocation, name: &str, tokens: u32, at_once: Vec<u32>) -> Result<()> {
    if let Some(wrong) = at_once.iter().find(|count| !(1..=AT_ONCE_MAX).contains(*count)) {
        return Err(Failure::usage(format!("`--at-once {wrong}`: 1 to {AT_ONCE_MAX} are accepted")));
    }
    let client = at.connect().await?;
    // The first answer loads the model, and is not counted.
    one(client.clone(), ask(name, 1, 0), at.call_within(LOAD_TIMEOUT)).await?;
    let mut all = Vec::new();
    for (round, count) in (1..).zip(at_once) {
        let began = Instant::now();
        let mut running = JoinSet::new();
        for number in 0..count {
            let ask = ask(name, tokens, round * 1000 + number);
            running.spawn(one(client.clone(), ask, at.call_within(LOAD_TIMEOUT)));
        }
        let mut answers = Vec::new();
        while let Some(answer) = running.join_next().await {
            let ended = |_| Failure::failed("a measurement ended with a panic");
            answers.push(answer.map_err(ended)??);
        }
        all.push(measured(count, &answers, began.elapsed())?);
    }
    let mut table = Table::new(&["AT ONCE", "READS/S", "FIRST TOKEN", "WRITES/S EACH", "WRITES/S ALL"]);
    for measured in &all {
        table.row([
            measured.at_once.to_string(),
            format!("{:.0}", measured.prompt_per_second),
            format!("{:.0} ms", measured.first_token_ms),
            format!("{:.1}", measured.generate_per_second),
            format!("{:.1}", measured.total_per_second),
        ]);
    }
    let model = format!("llama/{name}");
    let names = all.iter().map(|measured| measured.at_once.to_string()).collect();
    at.out.print(&Report::list(&json!({ "model": model, "measured": all }), "measured", names, table)?)
}

/// A question that begins like no other, so that nothing of it was read before,
/// and ends so that even a toy has something to say.
fn ask(name: &str, tokens: u32, number: u32) -> Value {
    let words = (0..WORDS).map(|word| ["tea", "river", "stone", "seven"][word * 7 % 4]);
    let words = words.collect::<Vec<_>>().join(" ");
    let text = format!("{number} {words}. Tell me a long story about a lamp and a river.");
    json!({"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": tokens,
        "temperature": 1.0, "seed": number})
}

async fn one(client: Client, ask: Value, call: CallOptions) -> Result<Generated> {
    let mut stream = client.stream("llama:generate", &ask, call).await?;
    while let Some(part) = stream.next().await {
        if let Part::End(data) | Part::Reply(data) = part? {
            return typed("llama:generate", &data);
        }
    }
    Err(Failure::failed("an answer did not end").hint("ksi logs"))
}

fn measured(at_once: u32, answers: &[Generated], took: Duration) -> Result<Measured> {
    let tokens: u64 = answers.iter().map(|answer| answer.usage.completion_tokens).sum();
    let spoke = answers.iter().any(|answer| answer.timings.generate_ms > 0.0);
    if tokens == 0 || !spoke {
        return Err(
            Failure::failed("the model says too little to be measured").hint("another model, or more: -n")
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (count, tokens) = (answers.len() as f64, tokens as f64);
    let mean = |figure: fn(&Timings) -> f64| {
        answers.iter().map(|answer| figure(&answer.timings)).sum::<f64>() / count
    };
    Ok(Measured {
        at_once,
        prompt_per_second: mean(|timings| timings.prompt_per_second),
        first_token_ms: mean(|timings| timings.first_token_ms),
        generate_per_second: mean(|timings| timings.generate_per_second),
        total_per_second: tokens / took.as_secs_f64().max(1e-9),
    })
}

#[cfg(test)]
mod tests {
    use ksi_provider::Usage;

    use super::*;
    use crate::invocation::shaped;

    #[test]
    fn figures_are_means_and_the_sum_is_by_the_clock() {
        let answer = |tokens: u64, speed: f64| -> Generated {
            let usage = Usage { completion_tokens: tokens, ..Usage::default() };
            let timings = Timings {
                prompt_per_second: speed,
                generate_per_second: speed,
                generate_ms: 5.0,
                first_token_ms: speed,
                ..Timings::default()
            };
            let said =
                json!({"model": "x", "text": "", "stop_reason": "stop", "usage": usage, "timings": timings});
            shaped("llama:generate", &said).unwrap()
        };
        let both = measured(2, &[answer(10, 10.0), answer(30, 20.0)], Duration::from_secs(2)).unwrap();
        assert_eq!((both.generate_per_second, both.total_per_second), (15.0, 20.0));
        assert!(measured(1, &[answer(0, 0.0)], Duration::from_secs(1)).is_err());
    }

    #[test]
    fn no_question_begins_like_another() {
        let text = |number| ask("x", 5, number)["messages"][0]["content"].clone();
        let texts: Vec<Value> = (0..3).map(text).collect();
        assert_ne!(texts[0].as_str().unwrap()[..1], texts[1].as_str().unwrap()[..1]);
    }
}
