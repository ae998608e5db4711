//! How likely a token was, and what else could have come: by the model alone,
//! before any setting or constraint.

use ksi_provider::{TokenLogprob, TokenLogprobs};
use llama_cpp_2::token::LlamaToken;

/// The figures of `token` and of the likeliest `count`. `text` says what a
/// token reads.
pub(super) fn of(
    scores: &[f32],
    token: LlamaToken,
    count: u32,
    text: impl Fn(LlamaToken) -> String,
) -> TokenLogprobs {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|score| f64::from(score - highest).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm is small")]
    let whole = highest + sum.ln() as f32;
    let score = usize::try_from(token.0).ok().and_then(|at| scores.get(at));
    let logprob = finite(score.map_or(f32::MIN, |score| score - whole));
    let mut order: Vec<(i32, f32)> = (0..).zip(scores.iter().copied()).collect();
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(order.len());
    let by_score = |a: &(i32, f32), b: &(i32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < order.len() {
        order.select_nth_unstable_by(count, by_score);
    }
    order.truncate(count);
    order.sort_unstable_by(by_score);
    let top = order
        .into_iter()
        .map(|(id, score)| TokenLogprob { token: text(LlamaToken(id)), logprob: finite(score - whole) });
    TokenLogprobs { token: text(token), logprob, top: top.collect() }
}

/// JSON has no infinities; this number is as good as one.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one_and_the_likeliest_come_first() {
        let scores = [1.0, f32::NEG_INFINITY, 3.0, 3.0, -2.0];
        let all = of(&scores, LlamaToken(0), 20, |token| token.0.to_string());
        let sum: f32 = all.top.iter().map(|token| token.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let names: Vec<&str> = all.top.iter().map(|token| token.token.as_str()).collect();
        assert_eq!(names, ["2", "3", "0", "4", "1"]);
        assert_eq!(all.logprob, all.top[2].logprob);
        assert!(all.top[4].logprob.is_finite());
        assert_eq!(of(&scores, LlamaToken(4), 2, |token| token.0.to_string()).top, all.top[..2]);
        assert!(of(&scores, LlamaToken(4), 0, |_| String::new()).top.is_empty());
    }
}
