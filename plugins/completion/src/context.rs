//! What a model reads: system text, named memories, the history of the
//! conversation, and the request, as far as there is room. A request that lets itself
//! be trimmed has a history of its own: all before the last turn of its user.
//!
//! What does not fit is left out in this order, and told in the result: the oldest
//! exchanges of the history, then memories, the last one first. System text and
//! request are never left out. Pure; whoever counts tokens is handed in.

use std::ops::Range;

use ksi_provider::{Message, Role};

use crate::payload::{ContextReport, Memory};

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) memories: Vec<Memory>,
    /// Oldest first.
    pub(crate) history: Vec<Message>,
    /// System text first, where there is one.
    pub(crate) request: Vec<Message>,
}

/// Tokens of each part, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    pub(crate) memories: Vec<u64>,
    pub(crate) history: Vec<u64>,
    pub(crate) request: u64,
}

impl Sizes {
    /// Those of the parts from their tokens: memories, history, request.
    pub(crate) fn of(parts: &Parts, mut tokens: Vec<u64>) -> Self {
        let request = tokens.split_off(parts.memories.len() + parts.history.len()).into_iter().sum();
        let history = tokens.split_off(parts.memories.len());
        Self { memories: tokens, history, request }
    }
}

/// Which messages of a request lie between its system text and the last turn of its
/// user, which ends it: those that may be left out where it lets itself be trimmed.
pub(crate) fn earlier(messages: &[Message]) -> Range<usize> {
    let system = messages.first().is_some_and(|message| message.role == Role::System);
    let first = usize::from(system);
    let last = messages.iter().rposition(|message| message.role == Role::User).unwrap_or(first);
    first..last.max(first)
}

/// Puts together what fits into `room` tokens.
pub(crate) fn assemble(
    parts: Parts,
    sizes: &Sizes,
    room: u64,
    counted_by: &str,
) -> (Vec<Message>, ContextReport) {
    let Parts { mut memories, mut history, request } = parts;
    let mut total: u64 =
        sizes.request + sizes.history.iter().sum::<u64>() + sizes.memories.iter().sum::<u64>();
    let mut dropped_messages = 0;
    while total > room && dropped_messages < history.len() {
        // An exchange begins with a message of the user: an answer alone, or the
        // result of a tool without its call, would be read wrongly.
        let rest = &history[dropped_messages + 1..];
        let exchange = 1 + rest.iter().take_while(|message| message.role != Role::User).count();
        total -= sizes.history[dropped_messages..dropped_messages + exchange].iter().sum::<u64>();
        dropped_messages += exchange;
    }
    history.drain(..dropped_messages);
    let mut dropped_memories = Vec::new();
    while total > room
        && let Some(memory) = memories.pop()
    {
        total -= sizes.memories[memories.len()];
        dropped_memories.push(memory.name);
    }
    let report = ContextReport {
        tokens: total,
        room,
        counted_by: counted_by.into(),
        history_messages: history.len(),
        dropped_messages,
        dropped_memories,
    };
    (joined(&memories, history, request), report)
}

/// Memories are a part of the system text, since many models know one alone.
fn joined(memories: &[Memory], history: Vec<Message>, mut request: Vec<Message>) -> Vec<Message> {
    let has_system = request.first().is_some_and(|message| message.role == Role::System);
    let mut system = if has_system { request.remove(0).content } else { String::new() };
    for memory in memories {
        if !system.is_empty() {
            system.push_str("\n\n");
        }
        system.push_str(&text(memory));
    }
    let system = (!system.is_empty()).then(|| Message::new(Role::System, system));
    system.into_iter().chain(history).chain(request).collect()
}

/// A memory as the model reads it.
pub(crate) fn text(memory: &Memory) -> String {
    format!("# {}\n{}", memory.name, memory.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (Parts, Sizes) {
        let memory = |name: &str| Memory { name: name.into(), text: "t".into() };
        let say = |role, text: &str| Message::new(role, text);
        let parts = Parts {
            memories: vec![memory("one"), memory("two")],
            history: vec![
                say(Role::User, "q1"),
                say(Role::Assistant, "a1"),
                say(Role::User, "q2"),
                say(Role::Assistant, "a2"),
            ],
            request: vec![say(Role::System, "s"), say(Role::User, "q3")],
        };
        (parts, Sizes { memories: vec![5, 7], history: vec![10, 20, 30, 40], request: 50 })
    }

    fn assembled(room: u64) -> (Vec<String>, ContextReport) {
        let (parts, sizes) = parts();
        let (messages, report) = assemble(parts, &sizes, room, "test");
        (messages.into_iter().map(|message| message.content).collect(), report)
    }

    #[test]
    fn system_text_and_last_turn_are_not_earlier() {
        use Role::{Assistant, System, Tool, User};
        for (roles, range) in [
            (&[User][..], 0..0),
            (&[System, User], 1..1),
            (&[User, Assistant, User], 0..2),
            (&[System, User, Assistant, User, Assistant, Tool], 1..3),
            (&[System, Assistant, User], 1..2),
        ] {
            let messages: Vec<_> = roles.iter().map(|role| Message::new(*role, "x")).collect();
            assert_eq!(earlier(&messages), range, "{roles:?}");
        }
    }

    #[test]
    fn tokens_are_told_to_their_parts() {
        let (parts, _) = parts();
        let sizes = Sizes::of(&parts, vec![1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((sizes.memories, sizes.history, sizes.request), (vec![1, 2], vec![3, 4, 5, 6], 15));
    }

    #[test]
    fn what_fits_is_all_there_in_its_order() {
        let (texts, report) = assembled(162);
        assert_eq!(texts, ["s\n\n# one\nt\n\n# two\nt", "q1", "a1", "q2", "a2", "q3"]);
        assert_eq!((report.tokens, report.dropped_messages, report.history_messages), (162, 0, 4));
        assert!(report.dropped_memories.is_empty());
    }

    #[test]
    fn the_oldest_exchanges_go_first_and_whole_then_the_last_memories() {
        let (texts, report) = assembled(161);
        assert_eq!(&texts[1..], ["q2", "a2", "q3"]);
        assert_eq!((report.tokens, report.dropped_messages, report.history_messages), (132, 2, 2));
        let (texts, report) = assembled(62);
        assert_eq!(texts, ["s\n\n# one\nt\n\n# two\nt", "q3"]);
        assert_eq!((report.tokens, report.dropped_messages), (62, 4));
        let (texts, report) = assembled(55);
        assert_eq!(texts, ["s\n\n# one\nt", "q3"]);
        assert_eq!((report.tokens, &report.dropped_memories[..]), (55, &["two".to_owned()][..]));
        let (texts, report) = assembled(0);
        assert_eq!(texts, ["s", "q3"], "what was asked is never left out");
        assert_eq!(report.tokens, 50);
    }
}
