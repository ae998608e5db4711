//! Which slot a prompt gets, and what of it need not be read again.
//!
//! A slot keeps the memory of its last conversation. The next turn of that
//! conversation begins with the same tokens, and so do others that share its
//! system prompt: what is the same is reused in place, or copied from another
//! slot where taking it over would lose more than it saves. Pure: it only looks
//! at tokens.

use llama_cpp_2::token::LlamaToken;

/// Tokens from which on it is worth waiting for another slot that is about to
/// read the same.
const WAIT_TOKENS_MIN: usize = 64;
/// Tokens from which on a copy is worth its time in any case.
const COPY_TOKENS_MIN: usize = 16;
/// A copy takes all of a slot's memory, and the time in which one token is read
/// for each so many that it has room for. Reckoned at 4 GB/s: 4,096 tokens of a
/// model of half a billion parameters, 50 MB, take as long as reading three, 8,192
/// of one of eight, 1 GB, as three as well; more than twice of that is asked for.
const COPIED_PER_TOKEN: usize = 512;

/// What is known of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// Whether nothing runs in it.
    pub(super) free: bool,
    /// The tokens that are, or are about to be, in its memory.
    pub(super) tokens: &'a [LlamaToken],
    /// How many of them are there already.
    pub(super) decoded: usize,
    /// When it was used last; larger is later.
    pub(super) used: u64,
}

impl View<'_> {
    /// Tokens at the start of a prompt that are in its memory.
    fn knows(&self, prompt: &[LlamaToken]) -> usize {
        common(prompt, self.tokens).min(self.decoded)
    }
}

/// Where a prompt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The slot.
    pub(super) slot: usize,
    /// Tokens at the start of the prompt that its memory then has.
    pub(super) reused: usize,
    /// The slot to copy them from, where they are not in this one.
    pub(super) copied_from: Option<usize>,
}

/// Tokens from which on a copy of the memory of a slot with room for so many is
/// worth its time.
pub(super) fn worth_a_copy(context: usize) -> usize {
    COPY_TOKENS_MIN + context / COPIED_PER_TOKEN
}

/// Finds the place for a prompt. `None` where no slot is free, or where waiting
/// saves more: a slot is about to read the same tokens, and they can be copied
/// once it has. `copies` says from how many tokens on a copy is worth its time,
/// where the model allows any.
pub(super) fn plan(prompt: &[LlamaToken], slots: &[View<'_>], copies: Option<usize>) -> Option<Plan> {
    // Of the last token the scores are needed, so it is always read.
    let limit = prompt.len().saturating_sub(1);
    let shared = |view: &View<'_>| common(prompt, view.tokens).min(limit);
    let there = |view: &View<'_>| view.knows(prompt).min(limit);
    let numbered = || slots.iter().enumerate();
    let free = || numbered().filter(|(_, view)| view.free);
    // An empty slot costs nobody anything; then the one unused for longest.
    let oldest = |without: Option<usize>| {
        let others = free().filter(move |(slot, _)| Some(*slot) != without);
        others.min_by_key(|(_, view)| (view.decoded > 0, view.used)).map(|(slot, _)| slot)
    };
    let own = free().max_by_key(|(_, view)| (there(view), view.decoded == there(view)))?.0;
    let own_reused = there(&slots[own]);
    // A few tokens in common, those of the chat format, are not worth the
    // conversation that would be lost.
    let continues = own_reused * 2 >= slots[own].decoded;
    if let Some(worth) = copies {
        let source = numbered().max_by_key(|(slot, view)| (there(view), *slot == own))?.0;
        let reused = there(&slots[source]);
        let soon = slots.iter().map(shared).max().unwrap_or(0);
        if soon >= reused + WAIT_TOKENS_MIN {
            return None;
        }
        let saves = reused >= own_reused + worth || (!continues && reused >= worth);
        if saves && let Some(slot) = oldest(Some(source)) {
            return Some(Plan { slot, reused, copied_from: Some(source) });
        }
    }
    let slot = if continues || own_reused >= WAIT_TOKENS_MIN { own } else { oldest(None)? };
    Some(Plan { slot, reused: there(&slots[slot]), copied_from: None })
}

/// Tokens of a prompt that no slot has in its memory.
pub(super) fn unread(prompt: &[LlamaToken], slots: &[View<'_>]) -> usize {
    let known = slots.iter().map(|view| view.knows(prompt)).max();
    prompt.len() - known.unwrap_or(0)
}

/// Number of tokens at the start that are the same.
fn common(a: &[LlamaToken], b: &[LlamaToken]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(parts: &[(i32, usize)]) -> Vec<LlamaToken> {
        parts.iter().flat_map(|(id, count)| std::iter::repeat_n(LlamaToken(*id), *count)).collect()
    }

    fn idle(tokens: &[LlamaToken], used: u64) -> View<'_> {
        View { free: true, tokens, decoded: tokens.len(), used }
    }

    const COPIES: Option<usize> = Some(64);
    const EMPTY: View<'static> = View { free: true, tokens: &[], decoded: 0, used: 0 };

    #[test]
    fn a_conversation_goes_on_in_its_slot() {
        let (one, other) = (tokens(&[(1, 100)]), tokens(&[(2, 100)]));
        let slots = [idle(&other, 9), idle(&one, 1), EMPTY];
        let plan = plan(&tokens(&[(1, 100), (5, 20)]), &slots, COPIES).unwrap();
        assert_eq!(plan, Plan { slot: 1, reused: 100, copied_from: None });
    }

    #[test]
    fn the_last_token_is_always_read() {
        let one = tokens(&[(1, 100)]);
        assert_eq!(plan(&one, &[idle(&one, 1)], COPIES).unwrap().reused, 99);
    }

    #[test]
    fn what_has_little_in_common_takes_the_slot_unused_for_longest() {
        let (new, old) = (tokens(&[(1, 3), (7, 90)]), tokens(&[(2, 90)]));
        let slots = [idle(&new, 9), idle(&old, 1)];
        let plan = plan(&tokens(&[(1, 3), (5, 90)]), &slots, COPIES).unwrap();
        assert_eq!(plan, Plan { slot: 1, reused: 0, copied_from: None });
    }

    #[test]
    fn a_common_system_prompt_is_copied_and_the_conversation_kept() {
        let system = (1, 200);
        let long = tokens(&[system, (7, 900)]);
        let other = tokens(&[system, (5, 10)]);
        let copy = Some(Plan { slot: 1, reused: 200, copied_from: Some(0) });
        assert_eq!(plan(&other, &[idle(&long, 9), EMPTY], COPIES), copy);
        let running = View { free: false, ..idle(&long, 9) };
        assert_eq!(plan(&other, &[running, EMPTY], COPIES), copy, "also from one that runs");
        let in_place = Some(Plan { slot: 0, reused: 200, copied_from: None });
        assert_eq!(plan(&other, &[idle(&long, 9)], COPIES), in_place, "nowhere else to go");
        assert_eq!(plan(&other, &[idle(&long, 9), EMPTY], None), in_place, "a model that cannot copy");
    }

    #[test]
    fn a_short_prompt_that_is_asked_again_is_copied_and_its_first_answer_kept() {
        let answered = tokens(&[(1, 40), (7, 64)]);
        let again = tokens(&[(1, 40)]);
        let copy = Plan { slot: 1, reused: 39, copied_from: Some(0) };
        assert_eq!(plan(&again, &[idle(&answered, 9), EMPTY], Some(worth_a_copy(4096))), Some(copy));
        let anew = Plan { slot: 1, reused: 0, copied_from: None };
        let huge = Some(worth_a_copy(131_072));
        assert_eq!(plan(&again, &[idle(&answered, 9), EMPTY], huge), Some(anew), "a copy takes longer");
        assert!(worth_a_copy(512) < worth_a_copy(65_536));
    }

    #[test]
    fn a_prompt_waits_for_one_that_reads_the_same() {
        let read = tokens(&[(1, 500), (2, 5)]);
        let next = tokens(&[(1, 500), (3, 5)]);
        let view = |decoded| View { free: false, tokens: &read, decoded, used: 1 };
        assert_eq!(plan(&next, &[view(100), EMPTY], COPIES), None);
        let copy = Plan { slot: 1, reused: 500, copied_from: Some(0) };
        assert_eq!(plan(&next, &[view(500), EMPTY], COPIES), Some(copy));
        let alone = Plan { slot: 1, reused: 0, copied_from: None };
        assert_eq!(plan(&next, &[view(100), EMPTY], None), Some(alone));
    }

    #[test]
    fn what_any_slot_has_read_is_not_unread() {
        let (one, other) = (tokens(&[(1, 100)]), tokens(&[(1, 50), (2, 50)]));
        let half_read = View { decoded: 70, ..idle(&one, 1) };
        assert_eq!(unread(&tokens(&[(1, 90)]), &[idle(&other, 1), half_read, EMPTY]), 20);
        assert_eq!(unread(&one, &[]), 100);
    }

    #[test]
    fn no_free_slot_is_no_plan() {
        let read = tokens(&[(1, 5)]);
        assert_eq!(plan(&read, &[View { free: false, ..idle(&read, 1) }], COPIES), None);
    }
}
