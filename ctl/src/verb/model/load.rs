//! `model load`: into memory, with settings of its own where they are given.

use ksi_client::Part;
use serde_json::{Map, Value, json};

use super::{LOAD_TIMEOUT, bar};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, readable, shaped, typed},
    llama::{LoadProgress, Loaded},
    output::{Report, millis},
};

/// What loads a model.
const EVENT: &str = "llama:load";

/// Loads a model, and shows how far that is.
///
/// # Errors
///
/// Fails as the daemon refuses, and for settings of which something is no pair.
pub(super) async fn run(
    at: &Invocation,
    name: &str,
    context: Option<u32>,
    settings: &[String],
) -> Result<()> {
    let payload = payload(name, context, settings)?;
    let client = at.connect().await?;
    let bar = bar(at, 1000).with_message(format!("loading {name}"));
    let mut stream = client.stream(EVENT, &payload, at.call_within(LOAD_TIMEOUT)).await?;
    let reply = loop {
        match stream.next().await {
            Some(Ok(Part::Chunk(chunk))) => {
                let LoadProgress { progress } = typed(EVENT, &chunk)?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to 0..=1000"
                )]
                bar.set_position((progress * 1000.0).clamp(0.0, 1000.0) as u64);
            }
            Some(Ok(Part::End(data) | Part::Reply(data))) => break readable(&data)?,
            Some(Ok(Part::Accepted { .. })) => {}
            Some(Err(error)) => {
                bar.finish_and_clear();
                return Err(error.into());
            }
            None => return Err(Failure::failed("loading ended without an answer").hint("ksi logs")),
        }
    };
    bar.finish_and_clear();
    let Loaded { load_ms, context, notes } = shaped(EVENT, &reply)?;
    notes.iter().for_each(|note| at.out.note(note));
    let text = format!("llama/{name} loaded in {}, context {context}", millis(load_ms));
    at.out.print(&Report::text(&reply, text)?.named(vec![format!("llama/{name}")]))
}

/// What is asked of the plugin, which knows the settings and checks them.
fn payload(name: &str, context: Option<u32>, settings: &[String]) -> Result<Value> {
    let mut payload = json!({"model": name});
    if let Some(context) = context {
        payload["context"] = context.into();
    }
    if !settings.is_empty() {
        payload["settings"] =
            settings.iter().map(|pair| setting(pair)).collect::<Result<Map<_, _>>>()?.into();
    }
    Ok(payload)
}

/// A setting and its value: JSON, or else a text.
fn setting(pair: &str) -> Result<(String, Value)> {
    let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(Failure::usage(format!("`--set {pair}` sets nothing"))
            .hint("--set NAME=VALUE, as --set threads=2"));
    };
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_json_or_else_texts_and_nothing_is_sent_that_was_not_said() {
        let pairs = ["threads=1", "flash_attn=on", "mmap=false", r#"lora=["style"]"#, "threads=2", "x="]
            .map(str::to_owned);
        let expected = json!({"model": "m", "context": 64, "settings": {"threads": 2, "flash_attn": "on",
            "mmap": false, "lora": ["style"], "x": ""}});
        assert_eq!(payload("m", Some(64), &pairs).unwrap(), expected);
        assert_eq!(payload("m", None, &[]).unwrap(), json!({"model": "m"}));
        for pair in ["threads", "=1", ""] {
            assert!(
                payload("m", None, &[pair.to_owned()]).unwrap_err().hint.contains("NAME=VALUE"),
                "{pair}"
            );
        }
    }
}
