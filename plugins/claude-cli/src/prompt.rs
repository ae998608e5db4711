//! What the command is given to read: one text on its standard input, and the
//! system's text in a file. Neither is ever an argument, which every user of the
//! machine could read.

use ksi_provider::{Generate, Message, ResponseFormat, Role, request::invalid};
use ksi_sdk::prelude::Refusal;

use crate::config::Config;

/// Said before a conversation that the command has not seen yet.
const BEFORE: &str = "This is a conversation so far, each message between tags that name who says it. \
    Continue it: give the assistant's next message, without tags.\n";

/// A request in the words of the command.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The system's text; may be empty.
    pub(crate) system: String,
    /// What the user and the assistant said, oldest first; the last is the user's.
    pub(crate) messages: Vec<Message>,
    pub(crate) model: Option<String>,
    /// Settings that the command does not have.
    pub(crate) ignored: Vec<String>,
}

impl Prompt {
    /// Puts a request into the words of the command.
    ///
    /// # Errors
    ///
    /// Refuses what the command has no words for and would change what the
    /// answer is.
    pub fn of(ask: &Generate, config: &Config) -> Result<Self, Refusal> {
        let messages = ask.chat()?;
        let format = !matches!(ask.response_format, None | Some(ResponseFormat::Text));
        for (path, asked) in [
            ("tools", !ask.tools.is_empty()),
            ("response_format", format),
            ("grammar", ask.grammar.is_some()),
            ("stop", !ask.stop.is_empty()),
            ("choices", ask.choices.is_some_and(|choices| choices > 1)),
        ] {
            if asked {
                let message = format!("the command `claude` has no `{path}`");
                return Err(invalid(path, message, "leave it out, or ask another provider"));
            }
        }
        let mut system = Vec::new();
        let mut said = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            match message.role {
                Role::System if said.is_empty() => system.push(message.content.as_str()),
                Role::User | Role::Assistant if message.tool_calls.is_empty() => said.push(message.clone()),
                Role::System => {
                    return Err(invalid(
                        &format!("messages[{index}].role"),
                        "this provider takes the system's text only before everything else",
                        "put it first, or say it as the user",
                    ));
                }
                Role::Tool | Role::User | Role::Assistant => {
                    return Err(invalid(
                        &format!("messages[{index}]"),
                        "the command `claude` takes no calls of tools and no results",
                        "leave them out, or ask another provider",
                    ));
                }
            }
        }
        if said.last().is_none_or(|last| last.role != Role::User) {
            let hint = "end with what the user says";
            return Err(invalid("messages", "the last message is not the user's", hint));
        }
        let unknown = [
            ("max_tokens", ask.max_tokens.is_some()),
            ("tokens_left", ask.tokens_left.is_some()),
            ("temperature", ask.temperature.is_some()),
            ("top_p", ask.top_p.is_some()),
            ("top_k", ask.top_k.is_some()),
            ("min_p", ask.min_p.is_some()),
            ("repetition_penalty", ask.repetition_penalty.is_some()),
            ("seed", ask.seed.is_some()),
            ("logprobs", ask.logprobs.is_some()),
        ];
        Ok(Self {
            system: system.join("\n\n"),
            messages: said,
            model: ask.model.clone().or_else(|| config.default_model.clone()),
            ignored: unknown
                .into_iter()
                .filter(|(_, asked)| *asked)
                .map(|(name, _)| name.to_owned())
                .collect(),
        })
    }

    /// All of it, for a command that knows nothing yet.
    #[must_use]
    pub fn whole(&self) -> String {
        match &self.messages[..] {
            [only] => only.content.clone(),
            messages => {
                let mut text = BEFORE.to_owned();
                for message in messages {
                    let who = message.role.as_str();
                    text += &format!("\n<{who}>\n{}\n</{who}>\n", message.content);
                }
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::json;
    use serde_json::Value;

    use super::*;

    fn prompt(ask: Value) -> Result<Prompt, Refusal> {
        let ask: Generate = serde_json::from_value(ask).unwrap();
        ask.check().unwrap();
        Prompt::of(&ask, &Config::default())
    }

    #[test]
    fn one_message_is_said_as_it_is_and_more_as_a_conversation() {
        let prompt = |messages: Value| prompt(json!({ "messages": messages })).unwrap();
        let one = prompt(json!([{ "role": "system", "content": "s" }, { "role": "user", "content": "hi" }]));
        assert_eq!((one.whole().as_str(), one.system.as_str()), ("hi", "s"));
        let more =
            prompt(json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" },
            { "role": "user", "content": "c" }]));
        assert!(
            more.whole()
                .ends_with("<user>\na\n</user>\n\n<assistant>\nb\n</assistant>\n\n<user>\nc\n</user>\n")
        );
    }

    #[test]
    fn what_the_command_has_no_words_for_is_refused_or_told() {
        let user = json!([{ "role": "user", "content": "a" }]);
        let call = json!({ "id": "a", "name": "f", "arguments": {} });
        for (ask, path) in [
            (json!({ "prompt": "x" }), "prompt"),
            (json!({ "messages": user, "tools": [{ "name": "f" }] }), "tools"),
            (json!({ "messages": user, "response_format": "json" }), "response_format"),
            (json!({ "messages": user, "grammar": "root ::= \"a\"" }), "grammar"),
            (json!({ "messages": user, "stop": ["x"] }), "stop"),
            (json!({ "messages": user, "choices": 2 }), "choices"),
            (json!({ "messages": [user[0], { "role": "system", "content": "s" }] }), "messages[1].role"),
            (json!({ "messages": [{ "role": "assistant", "tool_calls": [call] }, user[0]] }), "messages[0]"),
            (json!({ "messages": [{ "role": "assistant", "content": "x" }] }), "messages"),
        ] {
            assert_eq!(prompt(ask).unwrap_err().details.unwrap()["path"], path);
        }
        let prompt = prompt(
            json!({ "messages": user, "temperature": 0, "seed": 1, "max_tokens": 5, "tokens_left": 9 }),
        )
        .unwrap();
        assert_eq!(prompt.ignored, ["max_tokens", "tokens_left", "temperature", "seed"]);
    }
}
