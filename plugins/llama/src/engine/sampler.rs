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
    /// Reused for every token: it is as long as the vocabulary.
    candidates: LlamaTokenDataArray,
    penalizes: bool,
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
        let mut sampler = Self { chain, candidates: LlamaTokenDataArray::new(Vec::new(), false), penalizes };
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
        // llama.cpp aborts on an empty list, and computes with infinities what
        // is not a number.
        if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
            return Err(NotANumber);
        }
        let open = || {
            let tokens = (0..).map(LlamaToken).zip(scores.iter().copied());
            tokens.filter(|(token, _)| allowed.is_none_or(|allowed| allowed.has(*token)))
        };
        // One finite score is needed.
        let token = match likeliest(open()) {
            Some((_, score)) if !score.is_finite() => None,
            Some((token, _)) if self.chain.is_none() => Some(token),
            None => None,
            Some(_) => self.draw(open()),
        };
        let token = token.ok_or(NotANumber)?;
        self.accept(token);
        Ok(token)
    }

    /// Lets the chain choose.
    fn draw(&mut self, tokens: impl Iterator<Item = (LlamaToken, f32)>) -> Option<LlamaToken> {
        let chain = self.chain.as_mut()?;
        let data = &mut self.candidates.data;
        data.clear();
        data.extend(tokens.map(|(token, score)| LlamaTokenData::new(token, score, 0.0)));
        self.candidates.sorted = false;
        self.candidates.selected = None;
        chain.apply(&mut self.candidates);
        self.candidates.selected_token()
    }

    fn accept(&mut self, token: LlamaToken) {
        if let Some(chain) = &mut self.chain
            && self.penalizes
        {
            chain.accept(token);
        }
    }
}

/// The first of the tokens with the highest score.
fn likeliest(tokens: impl Iterator<Item = (LlamaToken, f32)>) -> Option<(LlamaToken, f32)> {
    let mut best: Option<(LlamaToken, f32)> = None;
    for (token, score) in tokens {
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((token, score));
        }
    }
    best
}

#[cfg(test)]
mod tests {
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
