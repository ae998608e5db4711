//! A model's answer as it streams: the question, the pieces, the end.
//!
//! `ask`, `chat`, `up` and `bench` share it. It decides nothing about models;
//! `completion` does, and says at the end who answered and why.

use std::time::Duration;

use ksi_client::{CallOptions, Client, Part};
use ksi_provider::{
    Message,
    completion::{Chunk, Completed, ContextReport, LimitedBy},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    args::Sampling,
    error::{Failure, Result},
    invocation::{readable, shaped, typed},
    output::{Format, Output, Report, elapsed},
    time::whole_ms,
};

/// What makes text.
const EVENT: &str = "completion:request";

/// Payload of `completion:request`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Question {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) messages: Option<Vec<Message>>,
    /// Whether the oldest of them may be left out where there is no room.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) trim: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) fallbacks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
}

impl Question {
    /// A question with the options of the command line.
    pub(crate) fn new(sampling: &Sampling, timeout: Option<Duration>) -> Self {
        let sampling = sampling.clone();
        Self {
            system: sampling.system,
            model: sampling.model,
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: sampling.seed,
            stop: sampling.stop,
            timeout_ms: timeout.map(whole_ms),
            ..Self::default()
        }
    }
}

/// Reads what a completion ended with.
fn completed(end: &Value) -> Result<Completed> {
    shaped(EVENT, end)
}

/// Who answered and how fast, in one line.
fn footer(completed: &Completed) -> String {
    let Completed { answered, usage, timings, why, .. } = completed;
    let mut line = format!("{answered} · {} tokens", usage.completion_tokens);
    if timings.generate_per_second > 0.0 {
        line.push_str(&format!(" · {:.1} tokens/s", timings.generate_per_second));
    }
    if timings.first_token_ms > 0.0 {
        let first = Duration::try_from_secs_f64(timings.first_token_ms / 1000.0).unwrap_or_default();
        line.push_str(&format!(" · first after {}", elapsed(first)));
    }
    if !why.is_empty() {
        line.push_str(&format!(" · {why}"));
    }
    line
}

/// Says on standard error what a person has to know of the answer, and, where
/// that was asked for, who gave it and how fast.
pub(crate) fn tell(completed: &Completed, out: Output, verbose: bool) {
    for note in [trim_note(completed), cut_note(completed)].into_iter().flatten() {
        out.warn(&note);
    }
    if verbose {
        out.note(&footer(completed));
    }
}

/// The warning that the answer is not whole, where that is so.
fn cut_note(completed: &Completed) -> Option<String> {
    if completed.stop_reason != "length" {
        return None;
    }
    let tokens = completed.usage.completion_tokens;
    let more = match &completed.limited_by {
        Some(LimitedBy { budget, .. }) => {
            format!("the budget `{budget}` paid for no more; --max-tokens NUMBER asks it for more")
        }
        None => "--max-tokens NUMBER allows more, as far as the model's context goes".into(),
    };
    Some(format!("(the answer was cut after {tokens} tokens; {more})"))
}

/// The warning that the model has not read all that was said, where that is so.
fn trim_note(completed: &Completed) -> Option<String> {
    let ContextReport { room, dropped_messages, .. } = completed.context.as_ref()?;
    let messages = match dropped_messages {
        0 => return None,
        1 => "1 earlier message was".into(),
        n => format!("{n} earlier messages were"),
    };
    Some(format!("({messages} left out: there is room for {room} tokens before the answer)"))
}

/// The warning that no real model has answered, where that is so.
pub(crate) fn toy_note(completed: &Completed) -> Option<String> {
    let Completed { answered, toy, .. } = completed;
    let add = "add a real one: ksi model add PATH.gguf";
    match (toy, answered.provider.as_str()) {
        (false, _) => None,
        (true, "llama") => Some(format!("({}, KSI's built-in toy model; {add})", answered.model)),
        (true, _) => Some(format!("({answered} is a stand-in and no model; {add})")),
    }
}

/// Asks, hands each piece of text to `on_text` as it comes, and gives what the
/// answer ends with: as it came, and what of it is known here. Dropping the future
/// cancels the request in the daemon.
///
/// # Errors
///
/// Fails as the daemon refuses, as `on_text` does, or where the answer has another
/// shape.
pub(crate) async fn stream(
    client: &Client,
    question: &Question,
    options: CallOptions,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<(Value, Completed)> {
    let mut stream = client.stream(EVENT, question, options).await?;
    while let Some(part) = stream.next().await {
        match part? {
            Part::Chunk(data) => on_text(&typed::<Chunk>(EVENT, &data)?.text)?,
            Part::End(data) | Part::Reply(data) => {
                let end = readable(&data)?;
                let completed = completed(&end)?;
                return Ok((end, completed));
            }
            Part::Accepted { .. } => {}
        }
    }
    Err(Failure::failed("the answer did not end").hint("see why: ksi logs"))
}

/// Prints the pieces of one answer and remembers whether its last line is
/// finished.
#[derive(Debug)]
pub(crate) struct Printer {
    out: Output,
    open: bool,
}

impl Printer {
    pub(crate) fn new(out: Output) -> Self {
        Self { out, open: false }
    }

    /// Prints one piece as `-o` says: a person reads the text as it comes, a program
    /// only where it takes lines.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn chunk(&mut self, text: &str) -> Result<()> {
        match self.out.format {
            Format::Jsonl => self.out.item(&Report::data(json!({"chunk": {"text": text}}))),
            _ if self.out.people() => self.piece(text),
            _ => Ok(()),
        }
    }

    /// Prints one piece of text.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn piece(&mut self, text: &str) -> Result<()> {
        if !text.is_empty() {
            self.open = !text.ends_with('\n');
        }
        self.out.piece(text)
    }

    /// Ends the last line.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) { self.out.piece("\n") } else { Ok(()) }
    }
}

/// What a program reads of an answer: all that was said of it. A line after those
/// of its pieces says that it is the end.
pub(crate) fn report(out: Output, end: Value, completed: &Completed) -> Report {
    let end = if out.format == Format::Jsonl { json!({"data": end, "end": true}) } else { end };
    Report::data(end).named(vec![completed.answered.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::printed;

    #[test]
    fn a_question_says_only_what_was_given() {
        let question = Question { prompt: Some("hi".into()), ..Question::new(&Sampling::default(), None) };
        assert_eq!(serde_json::to_value(question).unwrap(), json!({"prompt": "hi"}));
    }

    #[test]
    fn a_question_has_the_options_of_the_command_line() {
        let sampling = Sampling {
            model: Some("llama/x".into()),
            temperature: Some(0.5),
            stop: vec!["END".into()],
            ..Sampling::default()
        };
        let question = Question::new(&sampling, Some(Duration::from_secs(2)));
        assert_eq!(
            serde_json::to_value(question).unwrap(),
            json!({"model": "llama/x", "temperature": 0.5, "stop": ["END"], "timeout_ms": 2000})
        );
    }

    /// What an answer ends with, but for some of it.
    fn end(more: Value) -> Value {
        let name = json!({"provider": "llama", "model": "ksi-tiny"});
        let mut end = json!({
            "request_id": "r-1", "text": "hi", "requested": name, "answered": name, "why": "", "toy": true,
            "usage": {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13, "cached_tokens": 0},
            "timings": {"prompt_ms": 1.0, "generate_ms": 141.0, "first_token_ms": 8.4,
                        "prompt_per_second": 9.0, "generate_per_second": 85.04},
            "stop_reason": "stop", "queued_ms": 0, "attempts": 1, "tried": [], "something_newer": true,
        });
        let more = more.as_object().unwrap().clone();
        end.as_object_mut().unwrap().extend(more);
        end
    }

    fn read(more: Value) -> Completed {
        completed(&end(more)).unwrap()
    }

    #[test]
    fn the_footer_names_model_and_speed_and_the_note_the_toy() {
        let answer = read(json!({}));
        assert_eq!(footer(&answer), "llama/ksi-tiny · 12 tokens · 85.0 tokens/s · first after 8 ms");
        assert!(toy_note(&answer).unwrap().starts_with("(ksi-tiny, KSI's built-in toy model"));
        let note = toy_note(&read(json!({"answered": {"provider": "mock", "model": "echo"}}))).unwrap();
        assert!(note.starts_with("(mock/echo is a stand-in and no model"), "{note}");
        assert_eq!(toy_note(&read(json!({"toy": false}))), None);
    }

    #[test]
    fn an_answer_that_is_not_whole_says_so_and_how_to_get_more() {
        let note = |more: Value| cut_note(&read(more));
        assert_eq!(
            note(json!({"stop_reason": "length"})).unwrap(),
            "(the answer was cut after 12 tokens; --max-tokens NUMBER allows more, as far as the model's \
             context goes)"
        );
        let limited = json!({"stop_reason": "length", "limited_by": {"budget": "few", "max_tokens": 12}});
        assert!(note(limited).unwrap().contains("the budget `few`"));
        assert_eq!(note(json!({"limited_by": {"budget": "few", "max_tokens": 12}})), None);
    }

    #[test]
    fn what_the_model_has_not_read_is_told() {
        let note = |dropped: u64| {
            let context = json!({"tokens": 90, "room": 100, "counted_by": "estimate", "history_messages": 1,
                                 "dropped_messages": dropped, "dropped_memories": []});
            trim_note(&read(json!({"context": context})))
        };
        assert_eq!(note(0), None);
        assert!(note(1).unwrap().starts_with("(1 earlier message was left out"));
        assert_eq!(
            note(4).unwrap(),
            "(4 earlier messages were left out: there is room for 100 tokens before the answer)"
        );
        assert_eq!(trim_note(&read(json!({}))), None, "nothing was put together");
    }

    #[test]
    fn an_answer_of_another_form_is_a_failure_that_names_the_field_and_no_zero() {
        for path in
            ["text", "answered", "toy", "stop_reason", "usage.completion_tokens", "timings.first_token_ms"]
        {
            let mut end = end(json!({}));
            let pointer = format!("/{}", path.replace('.', "/"));
            let (above, name) = pointer.rsplit_once('/').unwrap();
            let fields = end.pointer_mut(above).unwrap().as_object_mut().unwrap();
            let value = fields.remove(name).unwrap();
            fields.insert("by_another_name".into(), value);
            let failure = completed(&end).unwrap_err();
            assert!(failure.message.contains(EVENT) && failure.message.contains(name), "{}", failure.message);
            assert!(failure.hint.contains("ksi restart"), "{}", failure.hint);
        }
        assert!(completed(&json!("text")).is_err());
    }

    #[test]
    fn a_program_is_told_all_of_an_answer_and_where_it_ends() {
        let answer = read(json!({}));
        let whole = |format| {
            let out = Output { format, headers: true, quiet: true, color: false };
            printed(&report(out, end(json!({})), &answer), format)
        };
        let json: Value = serde_json::from_str(&whole(Format::Json)).unwrap();
        assert_eq!(json["something_newer"], true);
        let line: Value = serde_json::from_str(&whole(Format::Jsonl)).unwrap();
        assert_eq!((&line["end"], &line["data"]["text"]), (&Value::Bool(true), &Value::from("hi")));
        assert_eq!(whole(Format::Name), "llama/ksi-tiny\n");
    }
}
