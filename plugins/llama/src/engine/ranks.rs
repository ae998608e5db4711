//! Keeping the slots that run side by side.
//!
//! llama.cpp computes sequences in one pass over the weights only where their
//! numbers follow one another: slots 0, 1 and 3 cost nearly twice what 0, 1 and
//! 2 do (`split_equal` in its `llama-batch.cpp`, for a memory that is divided
//! among the sequences). So a generation beside a gap is moved into it. What the
//! gap remembers is worth as much as before: it goes where nothing is, or else
//! where what is there has been unused for longest. Pure: it only plans.

use std::cmp::Reverse;

/// What is known of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// A generation runs in it.
    Runs,
    /// It remembers a conversation, used last at this turn.
    Keeps(u64),
    /// Nothing is in it.
    Empty,
}

/// What to do with one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    /// Where it runs. Empty afterwards.
    pub(super) from: usize,
    /// The free slot where it goes on.
    pub(super) to: usize,
    /// Where that one's memory goes before; what was there is lost. None where
    /// it remembers nothing or is itself what was unused for longest.
    pub(super) aside: Option<usize>,
}

/// The next move; none where all that run are neighbours. Each move makes the
/// longest row longer, so they come to an end.
pub(super) fn close(slots: &[Rank]) -> Option<Move> {
    let rows = rows(slots);
    let longest = *rows.iter().max_by_key(|(start, length)| (*length, Reverse(*start)))?;
    let (from, _) = *rows.iter().filter(|row| **row != longest).min_by_key(|row| row.1)?;
    let (start, length) = longest;
    // Both neighbours of a whole row are free, and with another row there is at least one.
    let neighbours = [start.checked_sub(1), Some(start + length).filter(|next| *next < slots.len())];
    let worth = |slot: usize| match slots[slot] {
        Rank::Keeps(used) => used + 1,
        Rank::Empty | Rank::Runs => 0,
    };
    let to = neighbours.into_iter().flatten().min_by_key(|slot| worth(*slot))?;
    let free = (0..slots.len()).filter(|slot| slots[*slot] != Rank::Runs);
    let aside = free.min_by_key(|slot| worth(*slot)).filter(|least| worth(*least) < worth(to));
    Some(Move { from, to, aside })
}

/// Where each row of neighbours that run begins, and how long it is.
fn rows(slots: &[Rank]) -> Vec<(usize, usize)> {
    let mut rows: Vec<(usize, usize)> = Vec::new();
    for slot in (0..slots.len()).filter(|slot| slots[*slot] == Rank::Runs) {
        match rows.last_mut() {
            Some((start, length)) if *start + *length == slot => *length += 1,
            _ => rows.push((slot, 1)),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rank::{Empty, Keeps, Runs};
    use super::*;

    #[test]
    fn neighbours_stay_where_they_are() {
        assert_eq!(close(&[]), None);
        assert_eq!(close(&[Keeps(1), Runs, Runs, Empty]), None);
        assert_eq!(close(&[Keeps(1), Empty]), None);
    }

    #[test]
    fn one_beside_a_gap_moves_into_it_and_what_that_remembers_goes_where_nothing_is() {
        let moved = |to, aside| Some(Move { from: 3, to, aside });
        assert_eq!(close(&[Runs, Runs, Empty, Runs]), moved(2, None));
        assert_eq!(close(&[Runs, Runs, Keeps(7), Runs, Empty]), moved(2, Some(4)));
        assert_eq!(close(&[Runs, Runs, Keeps(7), Runs, Keeps(3)]), moved(2, Some(4)), "unused for longest");
        assert_eq!(close(&[Runs, Runs, Keeps(2), Runs, Keeps(3)]), moved(2, None), "it is the oldest");
        assert_eq!(close(&[Keeps(1), Runs, Keeps(9), Runs]), moved(0, None), "the side that loses less");
    }

    fn rank() -> impl Strategy<Value = Rank> {
        prop_oneof![Just(Runs), (0u64..50).prop_map(Keeps), Just(Empty)]
    }

    proptest! {
        #[test]
        fn all_that_run_end_up_side_by_side_and_at_most_one_memory_is_lost(
            slots in proptest::collection::vec(rank(), 0..20),
        ) {
            let count = |slots: &[Rank], is: fn(&Rank) -> bool| slots.iter().filter(|rank| is(rank)).count();
            let mut ranks = slots.clone();
            while let Some(Move { from, to, aside }) = close(&ranks) {
                prop_assert_eq!(ranks[from], Runs);
                prop_assert!(ranks[to] != Runs && aside != Some(to));
                if let Some(aside) = aside {
                    prop_assert!(ranks[aside] != Runs);
                    ranks[aside] = ranks[to];
                }
                ranks[to] = Runs;
                ranks[from] = Empty;
            }
            prop_assert!(rows(&ranks).len() <= 1);
            prop_assert_eq!(count(&ranks, |rank| *rank == Runs), count(&slots, |rank| *rank == Runs));
            let keeps = |slots: &[Rank]| count(slots, |rank| matches!(rank, Keeps(_)));
            prop_assert!(keeps(&ranks) + 1 >= keeps(&slots));
        }
    }
}
