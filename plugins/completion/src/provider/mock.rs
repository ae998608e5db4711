//! The provider `mock`: scripted answers, so that everything around a model
//! can be tested without one.
//!
//! | model | what it does |
//! |---|---|
//! | `mock/echo` | repeats the last message of the user, word by word |
//! | `mock/fixed:TEXT` | says TEXT |
//! | `mock/each:A\|B\|…` | says A, and B where a second answer is wished, and so on; after the last, A |
//! | `mock/slow:MS` | as `echo`, and waits MS milliseconds before each word |
//! | `mock/long:N` | says N words: `w1 w2 …` |
//! | `mock/fail:CODE` | refuses with this code |
//! | `mock/fail-then-ok:N` | refuses the first N attempts with `unavailable`, then as `echo` |
//! | `mock/break:N` | says the first N words of `echo`, then refuses with `unavailable` |
//! | `mock/hang` | never says anything |
//!
//! Of the settings only these have an effect: `max_tokens` counts words;
//! `choices` answers come one after the other, all alike but for `each`; with
//! `logprobs` every word is certain. Tokens are words, timings are zero, and every
//! answer is marked as a toy.

use std::{fmt, future::pending, str::FromStr};

use ksi_sdk::{
    prelude::{Code, Ctx, Duration, Refusal, json},
    yield_now,
};

use ksi_provider::{
    Alternative, Delta, Generated, Message, Model, Role, StopReason, Timings, TokenLogprob, TokenLogprobs,
    Usage,
};

use super::{Attempt, Piece};
use crate::order::{Order, invalid};

/// The scripts, as they are listed to users.
const SCRIPTS: [&str; 9] =
    ["echo", "fixed:TEXT", "each:A|B", "slow:MS", "long:N", "fail:CODE", "fail-then-ok:N", "break:N", "hang"];

/// Longest wait between two words, and most words: a mock runs inside the
/// daemon.
const SLOW_MS_MAX: u64 = 60_000;
const WORDS_MAX: u32 = 1_000_000;

/// The scripts as models. None is known to be unable to do anything, since a
/// script may say what a test wishes.
pub(super) fn models() -> Vec<Model> {
    let model =
        |name: &str| Model { name: name.into(), context_length: None, capabilities: Vec::new(), toy: true };
    SCRIPTS.map(model).to_vec()
}

/// What a mock does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Script {
    Echo,
    Fixed(String),
    Each(String),
    Slow(u64),
    Long(u32),
    Fail(Code),
    FailThenOk(u32),
    Break(u32),
    Hang,
}

impl Script {
    /// Reads the part of the model's name after `mock/`.
    pub(super) fn parse(text: &str, path: &str) -> Result<Self, Refusal> {
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        let known = SCRIPTS.iter().find(|script| script.split(':').next() == Some(name));
        let Some(script) = known else {
            return Err(Refusal::not_found("mock script", &name.escape_debug().to_string())
                .hint(format!("scripts: {}", SCRIPTS.join(", ")))
                .details(json!({ "path": path, "known": SCRIPTS })));
        };
        let wrong = || invalid(path, &format!("does not fit the script mock/{script}"));
        match (name, parameter) {
            ("echo", None) => Ok(Self::Echo),
            ("hang", None) => Ok(Self::Hang),
            ("fixed", Some(text)) if !text.is_empty() => Ok(Self::Fixed(text.into())),
            ("each", Some(texts)) if texts.split('|').all(|text| !text.is_empty()) => {
                Ok(Self::Each(texts.into()))
            }
            ("slow", Some(ms)) => number(ms, SLOW_MS_MAX).map(Self::Slow).ok_or_else(wrong),
            ("long", Some(n)) => number(n, WORDS_MAX).map(Self::Long).ok_or_else(wrong),
            ("fail-then-ok", Some(n)) => number(n, WORDS_MAX).map(Self::FailThenOk).ok_or_else(wrong),
            ("break", Some(n)) => number(n, WORDS_MAX).map(Self::Break).ok_or_else(wrong),
            ("fail", Some(name)) => {
                let code = Code::ALL.into_iter().find(|code| code.as_str() == name);
                code.map(Self::Fail).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

fn number<T: FromStr + PartialOrd>(text: &str, max: T) -> Option<T> {
    text.parse().ok().filter(|number| *number <= max)
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => write!(f, "echo"),
            Self::Fixed(text) => write!(f, "fixed:{text}"),
            Self::Each(texts) => write!(f, "each:{texts}"),
            Self::Slow(ms) => write!(f, "slow:{ms}"),
            Self::Long(n) => write!(f, "long:{n}"),
            Self::Fail(code) => write!(f, "fail:{code}"),
            Self::FailThenOk(n) => write!(f, "fail-then-ok:{n}"),
            Self::Break(n) => write!(f, "break:{n}"),
            Self::Hang => write!(f, "hang"),
        }
    }
}

/// What follows the last word.
enum Ending {
    Answer,
    Refusal(Refusal),
    Silence,
}

/// One answer on its way from a script.
struct Speaker {
    words: Box<dyn Iterator<Item = String>>,
    /// How many words may be said.
    left: u32,
    said: Alternative,
}

/// Words on their way from a script.
pub(crate) struct Stream {
    ctx: Ctx,
    /// The answers; they are made one after the other.
    speakers: Vec<Speaker>,
    /// Which of them speaks.
    speaking: usize,
    wait: Duration,
    ending: Ending,
    /// How many words are told that could have come.
    logprobs: Option<u32>,
    said: u64,
    model: String,
    prompt_words: u64,
}

impl Stream {
    pub(super) fn open(ctx: &Ctx, script: &Script, order: &Order, attempt: Attempt<'_>) -> Self {
        let spoken = order.messages.iter().rev().find(|message| message.role == Role::User);
        let echo = || words(spoken.map_or("", |message| &message.content));
        let none = || -> Box<dyn Iterator<Item = String>> { Box::new(std::iter::empty()) };
        let refuses = matches!(script, Script::FailThenOk(n) if attempt.number <= *n);
        let says = |choice: usize| match script {
            Script::Fixed(text) => words(text),
            Script::Each(texts) => words(texts.split('|').cycle().nth(choice).unwrap_or_default()),
            Script::Long(n) => count(*n),
            Script::Break(n) => Box::new(echo().take(usize::try_from(*n).unwrap_or(usize::MAX))),
            Script::Fail(_) | Script::Hang => none(),
            Script::FailThenOk(_) if refuses => none(),
            Script::Echo | Script::Slow(_) | Script::FailThenOk(_) => echo(),
        };
        let refusal = |code| Ending::Refusal(Refusal::new(code, "the script says so"));
        let settings = &order.settings;
        let speaker = |choice| Speaker {
            words: says(choice),
            left: settings.max_tokens.or(attempt.tokens_left).unwrap_or(u32::MAX),
            said: Alternative {
                text: String::new(),
                tool_calls: Vec::new(),
                stop_reason: StopReason::Stop,
                logprobs: Vec::new(),
            },
        };
        let count = |message: &Message| message.content.split_whitespace().count() as u64;
        Self {
            ctx: ctx.clone(),
            speakers: (0..settings.choices.unwrap_or(1) as usize).map(speaker).collect(),
            speaking: 0,
            wait: if let Script::Slow(ms) = script { Duration::from_millis(*ms) } else { Duration::ZERO },
            ending: match script {
                Script::Fail(code) => refusal(*code),
                Script::FailThenOk(_) if refuses => refusal(Code::Unavailable),
                Script::Break(_) => refusal(Code::Unavailable),
                Script::Hang => Ending::Silence,
                _ => Ending::Answer,
            },
            logprobs: settings.logprobs,
            said: 0,
            model: script.to_string(),
            prompt_words: order.messages.iter().map(count).sum(),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Piece, Refusal> {
        // Without a break a long text would hold up every other request.
        yield_now().await;
        while let Some(speaker) = self.speakers.get_mut(self.speaking) {
            match speaker.words.next() {
                Some(word) if speaker.left > 0 => {
                    if !self.wait.is_zero() {
                        self.ctx.sleep(self.wait).await;
                    }
                    self.said += 1;
                    return Ok(Piece::Delta(speaker.say(word, self.speaking, self.logprobs)));
                }
                Some(_) => speaker.said.stop_reason = StopReason::Length,
                None => match &self.ending {
                    Ending::Answer => {}
                    Ending::Refusal(refusal) => return Err(refusal.clone()),
                    Ending::Silence => return pending().await,
                },
            }
            self.speaking += 1;
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Piece, Refusal> {
        let (prompt_tokens, completion_tokens) = (self.prompt_words, self.said);
        let mut answers = std::mem::take(&mut self.speakers).into_iter().map(|speaker| speaker.said);
        let Some(Alternative { text, tool_calls, stop_reason, logprobs }) = answers.next() else {
            return Err(Refusal::new(Code::Internal, "the mock was asked after its end"));
        };
        Ok(Piece::Last(Box::new(Generated {
            model: std::mem::take(&mut self.model),
            text,
            tool_calls,
            stop_reason,
            alternatives: answers.collect(),
            logprobs,
            toy: true,
            seed: None,
            usage: Usage {
                prompt_tokens,
                completion_tokens,
                total_tokens: prompt_tokens + completion_tokens,
                ..Usage::default()
            },
            timings: Timings::default(),
            ignored: Vec::new(),
            response_id: None,
        })))
    }
}

impl Speaker {
    fn say(&mut self, word: String, choice: usize, logprobs: Option<u32>) -> Delta {
        self.left -= 1;
        self.said.text.push_str(&word);
        let mut told = Vec::new();
        if let Some(most) = logprobs {
            let top = TokenLogprob { token: word.clone(), logprob: 0.0 };
            let top = if most > 0 { vec![top] } else { Vec::new() };
            told.push(TokenLogprobs { token: word.clone(), logprob: 0.0, top });
        }
        self.said.logprobs.extend(told.iter().cloned());
        Delta { choice: u32::try_from(choice).unwrap_or(u32::MAX), logprobs: told, ..Delta::text(word) }
    }
}

/// The words of a text, each with the space after it, so that together they
/// are the text.
fn words(text: &str) -> Box<dyn Iterator<Item = String>> {
    let words: Vec<String> = text.split_inclusive(char::is_whitespace).map(str::to_owned).collect();
    Box::new(words.into_iter())
}

fn count(n: u32) -> Box<dyn Iterator<Item = String>> {
    Box::new((1..=n).map(|i| if i == 1 { "w1".into() } else { format!(" w{i}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_written_as_they_are_read() {
        for text in [
            "echo",
            "fixed:a:b",
            "each:a|b",
            "slow:0",
            "long:3",
            "fail:busy",
            "fail-then-ok:2",
            "break:1",
            "hang",
        ] {
            assert_eq!(Script::parse(text, "model").unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_script_is_refused() {
        assert_eq!(Script::parse("gpt", "model").unwrap_err().code, Code::NotFound);
        for text in [
            "echo:1",
            "fixed",
            "fixed:",
            "each:",
            "each:a|",
            "slow",
            "slow:-1",
            "slow:60001",
            "long:1000001",
            "fail:no",
            "hang:",
        ] {
            assert_eq!(Script::parse(text, "model").unwrap_err().code, Code::InvalidPayload, "{text}");
        }
    }

    #[test]
    fn words_together_are_the_text() {
        let text = " two  spaces\nand a line ";
        assert_eq!(words(text).collect::<String>(), text);
        assert_eq!(count(3).collect::<String>(), "w1 w2 w3");
    }
}
