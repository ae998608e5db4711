//! How the next token is chosen from the model's scores.
//!
//! Settings are checked when the request comes in. A constraint drops what may
//! not come before anything else looks at the scores. A chain always ends with a
//! sampler that selects, since llama.cpp aborts on one that does not.

use std::hash::{BuildHasher, RandomState};

use ksi_provider::Generate;
use ksi_provider::request::invalid;
use ksi_sdk::prelude::Refusal;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use crate::constraint::Allowed;

/// Tokens that a repetition penalty looks back on.
const PENALTY_TOKENS: u16 = 64;
/// Longest list of the likeliest tokens that is made here. To hand llama.cpp
/// the whole vocabulary, and have it sorted there, takes several times as long,
/// and all other generations of the batch wait meanwhile.
const SHORTLIST_MAX: usize = 1024;
/// Scores that are looked at together.
const BLOCK: usize = 64;

/// Checked settings of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    temperature: f32,
    top_p: f32,
    top_k: i32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u32,
}

impl Settings {
    /// The settings of a request that was checked, with the rest filled in.
    ///
    /// # Errors
    ///
    /// Refuses the few values that llama.cpp takes for something else.
    #[expect(clippy::cast_possible_truncation, reason = "of these only the size matters")]
    pub fn of(request: &Generate) -> Result<Self, Refusal> {
        if request.min_p.is_some_and(|min_p| min_p >= 1.0) {
            let message = "`min_p` is 1; accepted is 0 to below 1";
            return Err(invalid("min_p", message, "leave it out for the default"));
        }
        let seed = match request.seed {
            // The last number means "random" to llama.cpp.
            Some(u32::MAX) => {
                let message = format!("`seed` is {}; accepted is 0 to {}", u32::MAX, u32::MAX - 1);
                return Err(invalid("seed", message, "leave it out for a random one"));
            }
            Some(seed) => seed,
            None => random_seed(),
        };
        Ok(Self {
            temperature: request.temperature.unwrap_or(0.8) as f32,
            // 0 would keep no token at all.
            top_p: (request.top_p.unwrap_or(0.95) as f32).max(1e-6),
            top_k: i32::try_from(request.top_k.unwrap_or(40)).unwrap_or(i32::MAX),
            min_p: (request.min_p.unwrap_or(0.05) as f32).min(0.999_999),
            repetition_penalty: request.repetition_penalty.unwrap_or(1.0) as f32,
            seed,
        })
    }

    /// The same with another seed, for another answer to the same request.
    #[must_use]
    pub fn with_seed_after(&self, others: u32) -> Self {
        let seed = self.seed.wrapping_add(others);
        Self { seed: if seed == u32::MAX { 0 } else { seed }, ..self.clone() }
    }

    /// The seed: the request's, or the random one that was drawn.
    #[must_use]
    pub fn seed(&self) -> u32 {
        self.seed
    }
}

fn random_seed() -> u32 {
    // The hasher's keys are random for each instance.
    let [a, b, c, d, ..] = RandomState::new().hash_one(0).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).min(u32::MAX - 1)
}

/// The scores are not numbers: the weights are damaged.
#[derive(Debug, PartialEq, Eq)]
pub struct NotANumber;

/// Chooses tokens for one generation.
pub struct Sampler {
    /// `None` where the likeliest token is taken as it is.
    chain: Option<LlamaSampler>,
    /// Reused for every token: it may be as long as the vocabulary.
    candidates: LlamaTokenDataArray,
    penalizes: bool,
    /// How many of the likeliest tokens are enough to choose from; `None` where
    /// all are needed.
    enough: Option<usize>,
}

impl Sampler {
    /// A sampler that has seen the prompt.
    #[must_use]
    pub fn new(settings: &Settings, vocabulary: i32, prompt: &[LlamaToken]) -> Self {
        let penalizes = (settings.repetition_penalty - 1.0).abs() > f32::EPSILON;
        let mut chain = Vec::new();
        if penalizes {
            let penalty = settings.repetition_penalty;
            chain.push(LlamaSampler::penalties(vocabulary, i32::from(PENALTY_TOKENS), penalty, 0.0, 0.0));
        }
        if settings.temperature > 0.0 {
            chain.extend([
                LlamaSampler::top_k(settings.top_k),
                LlamaSampler::top_p(settings.top_p, 1),
                LlamaSampler::min_p(settings.min_p, 1),
                LlamaSampler::temp(settings.temperature),
                LlamaSampler::dist(settings.seed),
            ]);
        } else if penalizes {
            chain.push(LlamaSampler::greedy());
        }
        let chain = (!chain.is_empty()).then(|| LlamaSampler::chain(chain, true));
        let enough = match usize::try_from(settings.top_k) {
            _ if penalizes => None,
            _ if chain.is_none() => Some(1),
            Ok(top_k) => Some(top_k).filter(|top_k| (1..=SHORTLIST_MAX).contains(top_k)),
            Err(_) => None,
        };
        let candidates = LlamaTokenDataArray::new(Vec::new(), false);
        let mut sampler = Self { chain, candidates, penalizes, enough };
        let recent = prompt.len().saturating_sub(usize::from(PENALTY_TOKENS));
        for token in &prompt[recent..] {
            sampler.accept(*token);
        }
        sampler
    }

    /// Chooses a token by the scores of the whole vocabulary, of those that are
    /// `allowed` if that is given.
    ///
    /// # Errors
    ///
    /// [`NotANumber`] where the scores are useless.
    pub fn choose(&mut self, scores: &[f32], allowed: Option<&Allowed>) -> Result<LlamaToken, NotANumber> {
        let Self { chain, candidates, enough, .. } = self;
        shortlist(scores, allowed, enough.unwrap_or(1), &mut candidates.data)?;
        // One finite score is needed: llama.cpp aborts on an empty list.
        let likeliest = candidates.data.first().ok_or(NotANumber)?.id();
        let token = match chain {
            None => likeliest,
            Some(chain) => {
                candidates.sorted = enough.is_some();
                if enough.is_none() {
                    candidates.data.clear();
                    candidates.data.extend(open(scores, allowed));
                }
                candidates.selected = None;
                chain.apply(candidates);
                candidates.selected_token().ok_or(NotANumber)?
            }
        };
        self.accept(token);
        Ok(token)
    }

    fn accept(&mut self, token: LlamaToken) {
        if let Some(chain) = &mut self.chain
            && self.penalizes
        {
            chain.accept(token);
        }
    }
}

/// The tokens that may come, with their scores.
fn open<'a>(scores: &'a [f32], allowed: Option<&'a Allowed>) -> impl Iterator<Item = LlamaTokenData> {
    let tokens = (0..).map(LlamaToken).zip(scores);
    tokens
        .filter(move |(token, _)| allowed.is_none_or(|allowed| allowed.has(*token)))
        .map(|(token, score)| LlamaTokenData::new(token, *score, 0.0))
}

/// Puts the `count` likeliest tokens that may come into `list`, the likeliest
/// first and of equal ones the first; fewer where fewer have finite scores.
///
/// # Errors
///
/// Where a score is not a number, or infinite: llama.cpp would compute with it.
fn shortlist(
    scores: &[f32],
    allowed: Option<&Allowed>,
    count: usize,
    list: &mut Vec<LlamaTokenData>,
) -> Result<(), NotANumber> {
    let better = |a: &LlamaTokenData, b: &LlamaTokenData| {
        b.logit().total_cmp(&a.logit()).then(a.id().0.cmp(&b.id().0))
    };
    list.clear();
    // What is not above this is not among the likeliest.
    let mut least = f32::NEG_INFINITY;
    for (block, first) in scores.chunks(BLOCK).zip((0_i32..).step_by(BLOCK)) {
        let (highest, sound) = survey(block);
        if !sound {
            return Err(NotANumber);
        }
        if highest <= least {
            continue;
        }
        for (score, token) in block.iter().zip((first..).map(LlamaToken)) {
            if *score > least && allowed.is_none_or(|allowed| allowed.has(token)) {
                list.push(LlamaTokenData::new(token, *score, 0.0));
            }
        }
        if list.len() >= count + BLOCK {
            list.select_nth_unstable_by(count - 1, better);
            list.truncate(count);
            least = list[count - 1].logit();
        }
    }
    list.sort_unstable_by(better);
    list.truncate(count);
    Ok(())
}

/// The highest of these scores, and whether all are finite or minus infinity.
/// In lanes, so that the compiler looks at several at once.
fn survey(block: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let (mut highest, mut sound) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
    let (whole, rest) = block.as_chunks::<LANES>();
    let mut look = |lane: usize, score: f32| {
        highest[lane] = if score > highest[lane] { score } else { highest[lane] };
        sound[lane] &= score < f32::INFINITY;
    };
    for lanes in whole {
        for (lane, score) in lanes.iter().enumerate() {
            look(lane, *score);
        }
    }
    for (lane, score) in rest.iter().enumerate() {
        look(lane, *score);
    }
    (highest.into_iter().fold(f32::NEG_INFINITY, f32::max), sound == [true; LANES])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(change: impl FnOnce(&mut Generate)) -> Generate {
        let mut request = Generate::default();
        change(&mut request);
        request
    }

    #[test]
    fn what_means_something_else_to_llama_cpp_is_refused() {
        type Change = fn(&mut Generate);
        let cases: [(Change, &str); 2] =
            [(|r| r.min_p = Some(1.0), "min_p"), (|r| r.seed = Some(u32::MAX), "seed")];
        for (change, field) in cases {
            let refusal = Settings::of(&request(change)).unwrap_err();
            assert!(refusal.message.contains(&format!("`{field}`")), "{refusal}");
        }
        let last = Settings::of(&request(|r| r.seed = Some(u32::MAX - 1))).unwrap();
        assert_eq!(last.with_seed_after(1).seed(), 0);
    }

    #[test]
    fn every_chain_selects_a_token_at_the_edges_of_the_ranges() {
        let scores = [0.1, f32::NEG_INFINITY, 3.0, 2.9];
        for temperature in [0.0, 1e-60, 1e-6, 5.0] {
            for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (1, 1e-60, 0.999_999_999_9), (u32::MAX, 0.5, 0.5)] {
                for repetition_penalty in [0.1, 1.0, 10.0] {
                    let request = request(|r| {
                        r.temperature = Some(temperature);
                        r.top_k = Some(top_k);
                        r.top_p = Some(top_p);
                        r.min_p = Some(min_p);
                        r.repetition_penalty = Some(repetition_penalty);
                        r.seed = Some(7);
                    });
                    let settings = Settings::of(&request).unwrap();
                    let mut sampler = Sampler::new(&settings, 4, &[LlamaToken(0), LlamaToken(3)]);
                    for _ in 0..4 {
                        let token = sampler.choose(&scores, None).unwrap();
                        assert!((0..4).contains(&token.0));
                    }
                }
            }
        }
    }

    #[test]
    fn the_likeliest_token_is_taken_without_temperature() {
        let settings = Settings::of(&request(|r| r.temperature = Some(0.0))).unwrap();
        let mut sampler = Sampler::new(&settings, 4, &[]);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0], None), Ok(LlamaToken(1)));
    }

    #[test]
    fn scores_that_are_not_numbers_end_the_generation() {
        for temperature in [0.0, 0.8] {
            let settings = Settings::of(&request(|r| r.temperature = Some(temperature))).unwrap();
            let mut sampler = Sampler::new(&settings, 2, &[]);
            let infinite = [f32::NEG_INFINITY; 2];
            for scores in [&[0.0, f32::NAN][..], &[0.0, f32::INFINITY], &infinite, &[]] {
                assert_eq!(sampler.choose(scores, None), Err(NotANumber), "{scores:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_shortlist_has_the_likeliest_tokens_in_order(
            scores in prop::collection::vec(prop_oneof![(-4_i8..4).prop_map(f32::from), Just(f32::NEG_INFINITY), -9.0..9.0_f32], 0..400),
            count in 1..90_usize,
        ) {
            let mut expected: Vec<(i32, f32)> = (0..).zip(scores.iter().copied()).filter(|(_, score)| score.is_finite()).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));
            expected.truncate(count);
            let mut list = Vec::new();
            prop_assert_eq!(shortlist(&scores, None, count, &mut list), Ok(()));
            let found: Vec<_> = list.iter().map(|data| (data.id().0, data.logit())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_found_wherever_it_is() {
        for at in 0..150 {
            for score in [f32::NAN, f32::INFINITY] {
                let mut scores = [1.0; 150];
                scores[at] = score;
                assert_eq!(shortlist(&scores, None, 1, &mut Vec::new()), Err(NotANumber), "{at}");
            }
        }
    }

    #[test]
    fn a_shortlist_chooses_as_the_whole_vocabulary_does() {
        let scores: Vec<f32> =
            (0_u16..5_000).map(|token| f32::from(token.wrapping_mul(40_503) % 977) / 90.0).collect();
        let settings = Settings::of(&request(|r| r.seed = Some(3))).unwrap();
        let mut short = Sampler::new(&settings, 5_000, &[]);
        let mut whole = Sampler::new(&settings, 5_000, &[]);
        assert_eq!(short.enough, Some(40));
        whole.enough = None;
        for _ in 0..200 {
            let chosen = short.choose(&scores, None).unwrap();
            let (short, whole) = (scores[index(chosen)], scores[index(whole.choose(&scores, None).unwrap())]);
            assert_eq!(short, whole);
        }
    }

    fn index(token: LlamaToken) -> usize {
        usize::try_from(token.0).unwrap()
    }

    #[test]
    fn the_same_seed_chooses_the_same_tokens() {
        let settings = Settings::of(&request(|r| r.seed = Some(5))).unwrap();
        let choose = || {
            let mut sampler = Sampler::new(&settings, 8, &[]);
            (0..50).map(|_| sampler.choose(&[1.0; 8], None).unwrap().0).collect::<Vec<_>>()
        };
        let first = choose();
        assert_eq!(first, choose());
        assert!(first.iter().any(|token| *token != first[0]), "{first:?}");
    }
}
