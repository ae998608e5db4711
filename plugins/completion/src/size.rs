//! About how many bytes an answer holds, in memory and on the wire.

use ksi_provider::{Alternative, Generated, TokenLogprobs, ToolCall};

use crate::payload::Completed;

/// What is around a token when it is told how likely it was.
const TOKEN_BYTES: usize = 48;

/// Those of a whole answer, its alternatives included.
pub(crate) fn of_answer(answer: &Generated) -> usize {
    let Generated { text, tool_calls, alternatives, logprobs, .. } = answer;
    of_parts(text, tool_calls, logprobs) + of_alternatives(alternatives)
}

/// Those of the answer to a request.
pub(crate) fn of_completed(completed: &Completed) -> usize {
    let Completed { text, tool_calls, alternatives, logprobs, .. } = completed;
    of_parts(text, tool_calls, logprobs) + of_alternatives(alternatives)
}

/// Those of what was made for it: all but what is told about tokens.
pub(crate) fn of_words(answer: &Generated) -> usize {
    let others = answer.alternatives.iter().map(|one| of_parts(&one.text, &one.tool_calls, &[]));
    of_parts(&answer.text, &answer.tool_calls, &[]) + others.sum::<usize>()
}

/// Those of what is told about tokens.
pub(crate) fn of_logprobs(logprobs: &[TokenLogprobs]) -> usize {
    let tokens = logprobs.iter().map(|one| {
        let top = one.top.iter().map(|other| other.token.len() + TOKEN_BYTES);
        one.token.len() + TOKEN_BYTES + top.sum::<usize>()
    });
    tokens.sum()
}

fn of_alternatives(alternatives: &[Alternative]) -> usize {
    let each = alternatives.iter();
    each.map(|one| of_parts(&one.text, &one.tool_calls, &one.logprobs)).sum()
}

fn of_parts(text: &str, calls: &[ToolCall], logprobs: &[TokenLogprobs]) -> usize {
    let calls = calls.iter().map(|call| call.name.len() + call.arguments.to_string().len());
    text.len() + calls.sum::<usize>() + of_logprobs(logprobs)
}
