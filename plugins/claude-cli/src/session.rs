//! Which session of the command a conversation goes on with.
//!
//! The command names a session with every answer, **a new one each time**, even
//! where it was told to resume one. So the rule is: no name is ever made up; a
//! conversation goes on with the last one that was answered, from the same
//! directory; and without one the command is told everything from the start.
//!
//! A session is resumed only where what it has heard is, word for word, what
//! the request begins with. Somebody who edits the past gets a fresh one. While
//! it is being gone on with it is nobody else's; it comes back under its new
//! name with the answer, and not at all from a run that failed, since nobody
//! knows how much of that the command has written down.
//!
//! # Invariants
//!
//! - The same request is answered from the same words with a session or without:
//!   it only saves reading them again.
//! - No session is known by another tenant.

use std::collections::HashMap;

use ksi_provider::{Generated, Message, Role};
use sha2::{Digest, Sha256};

use crate::prompt::Prompt;

/// Whose conversation it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    tenant: Option<String>,
    conversation: String,
}

impl Key {
    /// A conversation of a tenant.
    #[must_use]
    pub fn new(tenant: Option<&str>, conversation: &str) -> Self {
        Self { tenant: tenant.map(str::to_owned), conversation: conversation.to_owned() }
    }
}

/// A session that is gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Its name, as the command gave it last.
    pub(crate) session: String,
    /// What it has not heard yet.
    pub(crate) text: String,
}

/// A session, and what it has heard and said.
#[derive(Debug)]
struct Session {
    name: String,
    /// How many messages that is, and what they are.
    messages: usize,
    digest: [u8; 32],
    /// When that was, among all answers.
    answer: u64,
}

/// The sessions of all conversations, the most recent ones.
#[derive(Debug)]
pub struct Sessions {
    most: usize,
    answers: u64,
    known: HashMap<Key, Session>,
}

impl Sessions {
    /// Room for so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, answers: 0, known: HashMap::new() }
    }

    /// Takes the session that has heard all of the prompt but its end.
    pub fn take(&mut self, key: &Key, prompt: &Prompt) -> Option<Resumed> {
        let session = self.known.get(key)?;
        let (heard, new) = prompt.messages.split_at_checked(session.messages)?;
        let said_by_user = !new.is_empty() && new.iter().all(|message| message.role == Role::User);
        if !said_by_user || digest(&prompt.system, heard, None) != session.digest {
            return None;
        }
        let text = new.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n");
        let session = self.known.remove(key)?.name;
        Some(Resumed { session, text })
    }

    /// Keeps the session of an answer for what may come after it.
    pub fn remember(&mut self, key: Key, prompt: &Prompt, generated: &Generated) {
        let Some(name) = generated.response_id.clone() else { return };
        self.answers += 1;
        if !self.known.contains_key(&key) && self.known.len() >= self.most {
            let oldest =
                self.known.iter().min_by_key(|(_, session)| session.answer).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        let session = Session {
            name,
            messages: prompt.messages.len() + 1,
            digest: digest(&prompt.system, &prompt.messages, Some(&generated.text)),
            answer: self.answers,
        };
        self.known.insert(key, session);
    }
}

/// What was said, in a few bytes. Lengths go before texts, so that no two
/// conversations look alike.
fn digest(system: &str, messages: &[Message], answer: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut take = |who: &str, text: &str| {
        hash.update(who.as_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    take(Role::System.as_str(), system);
    for message in messages {
        take(message.role.as_str(), &message.content);
    }
    if let Some(answer) = answer {
        take(Role::Assistant.as_str(), answer);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::json;
    use serde_json::Value;

    use super::*;

    fn prompt(system: &str, said: &[&str]) -> Prompt {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        let messages = said.iter().zip(roles).map(|(text, role)| Message::new(role, *text)).collect();
        Prompt { system: system.into(), messages, model: None, ignored: Vec::new() }
    }

    fn answered(text: &str, session: &str) -> Generated {
        let answer: Value =
            json!({ "model": "m", "text": text, "stop_reason": "stop", "response_id": session });
        serde_json::from_value(answer).unwrap()
    }

    fn key(name: &str) -> Key {
        Key::new(Some("local"), name)
    }

    #[test]
    fn a_conversation_goes_on_with_the_last_session_and_says_only_what_is_new() {
        let mut sessions = Sessions::new(10);
        assert_eq!(sessions.take(&key("c"), &prompt("s", &["a"])), None, "no name is made up");
        sessions.remember(key("c"), &prompt("s", &["a"]), &answered("b", "one"));
        let next = prompt("s", &["a", "b", "c"]);
        let resumed =
            |session: &str, text: &str| Some(Resumed { session: session.into(), text: text.into() });
        assert_eq!(sessions.take(&key("c"), &next), resumed("one", "c"));
        sessions.remember(key("c"), &next, &answered("d", "two"));
        assert_eq!(sessions.take(&key("c"), &prompt("s", &["a", "b", "c", "d", "e"])), resumed("two", "e"));
        assert_eq!(sessions.take(&Key::new(Some("other"), "c"), &next), None, "another tenant's");
        let later = prompt("s", &["a", "b", "c", "d", "e"]);
        assert_eq!(sessions.take(&key("c"), &later), None, "it is somebody's already");
    }

    #[test]
    fn another_past_is_another_session() {
        let mut sessions = Sessions::new(10);
        sessions.remember(key("c"), &prompt("s", &["a"]), &answered("b", "one"));
        for other in [
            prompt("t", &["a", "b", "c"]),
            prompt("s", &["A", "b", "c"]),
            prompt("s", &["a", "B", "c"]),
            prompt("s", &["a", "b"]),
            prompt("s", &["a"]),
            prompt("s", &[]),
        ] {
            assert_eq!(sessions.take(&key("c"), &other), None, "{other:?}");
        }
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut sessions = Sessions::new(2);
        for name in ["a", "b"] {
            sessions.remember(key(name), &prompt("", &["x"]), &answered("y", name));
        }
        let next = prompt("", &["x", "y", "z"]);
        sessions.remember(key("a"), &prompt("", &["x"]), &answered("y", "again"));
        sessions.remember(key("c"), &prompt("", &["x"]), &answered("y", "c"));
        assert!(sessions.take(&key("b"), &next).is_none(), "it was answered least recently");
        assert_eq!(sessions.take(&key("a"), &next).unwrap().session, "again");
        assert_eq!(sessions.take(&key("c"), &next).unwrap().session, "c");
    }
}
