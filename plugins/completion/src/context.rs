//! What a model reads: system text, named memories, the history of the
//! conversation, and the request, as far as there is room.
//!
//! What does not fit is left out in this order, and told in the result: the oldest
//! exchanges of the history, then memories, the last one first. System text and
//! request are never left out. Pure; whoever counts tokens is handed in.

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
