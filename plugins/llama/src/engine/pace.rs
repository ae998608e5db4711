//! How many tokens of prompts a round may read while others speak: as many as
//! the machine reads in a moment that nobody minds. Learnt from the rounds
//! before; pure, since times are arguments.

use std::time::Duration;

/// How much later than alone a speaker's next token may come for one prompt.
const PAUSE: Duration = Duration::from_millis(150);
/// Least tokens of a chunk: fewer leave the processor waiting for memory.
const CHUNK_MIN: usize = 16;
/// The first chunk, when nothing is known.
const CHUNK_FIRST: usize = 64;
/// Part of the time that prompts take by which they may begin later, and at most
/// so much.
const PATIENCE: f64 = 0.01;
const PATIENCE_MAX: Duration = Duration::from_millis(5);
/// Weight of the last round against all before.
const WEIGHT: f64 = 0.25;

/// Knows how fast prompts are read.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds_per_token: Option<f64>,
}

impl Pace {
    /// Tokens of prompts to put beside those who speak; a multiple of
    /// `CHUNK_MIN`. A moment of each reader weighs as much as one of each
    /// speaker: where many wait for their first token and few speak, as when all
    /// have come together, the few wait longer, and soon all speak together.
    pub(super) fn chunk(&self, speakers: usize, readers: usize) -> usize {
        let Some(seconds) = self.seconds_per_token else { return CHUNK_FIRST };
        let pause = PAUSE.as_secs_f64() * readers.div_ceil(speakers.max(1)) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
        let tokens = (pause / seconds.max(1e-9)).clamp(0.0, 65_536.0) as usize;
        (tokens / CHUNK_MIN * CHUNK_MIN).max(CHUNK_MIN)
    }

    /// How long prompts of so many tokens wait for others that may come with them;
    /// not at all while nothing is known.
    pub(super) fn patience(&self, tokens: usize) -> Duration {
        let Some(seconds) = self.seconds_per_token else { return Duration::ZERO };
        Duration::from_secs_f64((seconds * tokens as f64 * PATIENCE).min(PATIENCE_MAX.as_secs_f64()))
    }

    /// A round has read this many tokens of prompts. Rounds that read few say
    /// nothing, because they are mostly about the speakers.
    pub(super) fn observe(&mut self, tokens: usize, took: Duration) {
        if tokens < CHUNK_MIN {
            return;
        }
        let seconds = took.as_secs_f64() / tokens as f64;
        let before = self.seconds_per_token.unwrap_or(seconds);
        self.seconds_per_token = Some(before + (seconds - before) * WEIGHT);
    }
}

/// Shares `room` among prompts that want this much each, the smallest first, so
/// that a short one is never held up by a long one. In the order of `wants`.
pub(super) fn share(room: usize, wants: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|at| wants[*at]);
    let mut shares = vec![0; wants.len()];
    let mut left = room;
    for (done, at) in order.iter().enumerate() {
        let fair = left / (wants.len() - done);
        shares[*at] = wants[*at].min(fair);
        left -= shares[*at];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slow_machine_reads_in_small_chunks_and_a_fast_one_in_large_ones() {
        let pace_at = |tokens_per_second: u64| {
            let mut pace = Pace::default();
            for _ in 0..20 {
                pace.observe(100, Duration::from_millis(100_000 / tokens_per_second));
            }
            pace
        };
        assert_eq!(Pace::default().chunk(1, 1), CHUNK_FIRST);
        let chunk_at = |tokens_per_second| pace_at(tokens_per_second).chunk(4, 1);
        assert_eq!([15, 250, 3000].map(chunk_at), [16, 32, 448]);
        let mut pace = Pace::default();
        pace.observe(1, Duration::from_secs(1));
        assert_eq!(pace.chunk(1, 1), CHUNK_FIRST, "a speaker's round");
        pace.observe(100, Duration::ZERO);
        assert_eq!(pace.chunk(1, 1) % CHUNK_MIN, 0);
    }

    #[test]
    fn prompts_wait_for_others_a_hundredth_of_their_own_time() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(1000), Duration::ZERO);
        pace.observe(100, Duration::from_millis(500));
        assert_eq!([0, 40, 1000].map(|tokens| pace.patience(tokens).as_millis()), [0, 2, 5]);
    }

    #[test]
    fn few_speakers_wait_for_many_readers_and_many_for_few_as_for_one() {
        let mut pace = Pace::default();
        pace.observe(100, Duration::from_millis(400));
        let chunks = [(15, 1), (4, 4), (4, 5), (1, 3), (1, 15)]
            .map(|(speakers, readers)| pace.chunk(speakers, readers));
        assert_eq!(chunks, [32, 32, 64, 112, 560]);
    }

    #[test]
    fn a_short_prompt_is_read_whole_beside_a_long_one() {
        assert_eq!(share(100, &[1000, 20, 1000]), [40, 20, 40]);
        assert_eq!(share(100, &[10, 20]), [10, 20]);
        assert_eq!(share(1, &[5, 5]), [0, 1]);
        assert!(share(10, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_share_is_never_more_than_wanted_nor_all_more_than_the_room(
            room in 0usize..600, wants in proptest::collection::vec(0usize..700, 0..16),
        ) {
            let shares = share(room, &wants);
            prop_assert!(shares.iter().zip(&wants).all(|(share, want)| share <= want));
            prop_assert_eq!(shares.iter().sum::<usize>(), room.min(wants.iter().sum()));
        }
    }
}
