//! Inference: what streams get that share one model.
//!
//! How many tokens several streams get together, how long a request waits for
//! its first token where it shares a long beginning with one before it, and how
//! much a long prompt holds up those that run. The same is asked of another
//! server where one is named, turn by turn, so that the mood of the machine
//! shows in both. Both are asked as users do: in a chat, over their sockets,
//! with every piece of text as it comes.

mod server;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use ksi_client::Client;
use ksi_provider::completion::Completed;
use tokio::sync::mpsc;

use self::server::Server;
use super::{Measured, over, rate};
use crate::{
    answer::{self, Question},
    error::{Failure, Result},
    invocation::Invocation,
};

/// Turns that both sides take: an even number, since they begin by turns.
const TURNS: u64 = 4;
/// Tokens of an answer where the rate of all streams is measured.
const TOKENS: u32 = 64;
/// Tokens of a prompt that is short.
const SHORT: u64 = 32;
/// Tokens of a beginning that requests share.
const SHARED: u64 = 1_000;
/// Requests of a turn that share it.
const SHARERS: u64 = 4;
/// Tokens of a prompt that is long.
const LONG: u64 = 2_000;
/// Streams that it holds up.
const RUNNING: u64 = 4;
/// Pieces after which such a stream runs.
const RUNS: usize = 4;
/// Tokens after which it would end by itself.
const RUNNING_TOKENS: u32 = 512;
/// Words by which the tokens of a word are counted.
const SAMPLE: u64 = 200;

/// How the next token is chosen, the same on both sides: as llama-server does by
/// itself. What is likeliest alone may be nothing that can be printed.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.95;
const MIN_P: f32 = 0.05;

/// What is asked.
#[derive(Debug, Clone, Default)]
struct Ask {
    system: Option<String>,
    prompt: String,
    max_tokens: u32,
    seed: u64,
}

/// What came.
#[derive(Debug)]
struct Heard {
    /// When each piece of the text came.
    arrivals: Vec<Instant>,
    tokens: Tokens,
}

/// How much was read and written.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    prompt: u64,
    answer: u64,
}

/// Who is asked.
enum Side<'a> {
    Ours { at: &'a Invocation, client: Client, model: Option<String> },
    Theirs(Server),
}

/// Rows of one workload: ours, theirs, and by which figure they are compared.
struct Kind {
    names: [&'static str; 2],
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Streams(u64),
    Shared,
    Stalled,
}

const KINDS: [Kind; 5] = [
    Kind { names: ["infer-1", "server-1"], work: Work::Streams(1) },
    Kind { names: ["infer-4", "server-4"], work: Work::Streams(4) },
    Kind { names: ["infer-16", "server-16"], work: Work::Streams(16) },
    Kind { names: ["infer-shared", "server-shared"], work: Work::Shared },
    Kind { names: ["infer-stall", "server-stall"], work: Work::Stalled },
];

/// Times that one workload has shown, of all turns.
#[derive(Debug, Default)]
struct Seen {
    times: Vec<Duration>,
    tokens: u64,
    took: Duration,
}

/// Measures all workloads; `against` is the address of an OpenAI-compatible
/// server, such as llama-server, that has the same model.
///
/// # Errors
///
/// Fails where the model, or the server, does not answer.
pub(super) async fn infer(
    at: &Invocation,
    model: Option<String>,
    against: Option<&str>,
) -> Result<Vec<Measured>> {
    let name =
        model.as_deref().map_or("default", |model| model.split_once('/').map_or(model, |(_, name)| name));
    let theirs = against.map(|url| Server::new(url, name)).transpose()?;
    let mut sides = vec![Side::Ours { at, client: at.connect().await?, model: model.clone() }];
    sides.extend(theirs.map(Side::Theirs));
    let mut texts = Vec::new();
    for side in &sides {
        // The first answer may load the model, and tells what a word costs.
        let sample = Ask { prompt: words(0, SAMPLE), max_tokens: 1, ..Ask::default() };
        let heard = side.ask(&sample, || ()).await?;
        texts.push(Texts { words: SAMPLE, tokens: heard.tokens.prompt.max(1) });
    }
    let mut results = Vec::new();
    for kind in &KINDS {
        results.extend(measured(at, kind, &sides, &texts).await?);
    }
    Ok(results)
}

/// One workload on all sides. A model that cannot hold it leaves its row out.
async fn measured(
    at: &Invocation,
    kind: &Kind,
    sides: &[Side<'_>],
    texts: &[Texts],
) -> Result<Vec<Measured>> {
    let mut seen: Vec<Seen> = sides.iter().map(|_| Seen::default()).collect();
    for turn in 0..TURNS {
        let mut all: Vec<_> = sides.iter().zip(texts).zip(&mut seen).collect();
        // What a side leaves behind, such as threads that spin, meets the other one as often.
        if turn % 2 == 1 {
            all.reverse();
        }
        for ((side, texts), seen) in all {
            if let Err(failure) = kind.work.run(side, texts, turn, seen).await {
                return super::skipped(kind.names[0], failure);
            }
        }
    }
    let mut rows: Vec<Measured> =
        seen.into_iter().zip(kind.names).map(|(seen, name)| kind.work.row(name, seen)).collect();
    if let [ours, theirs] = &mut rows[..] {
        let figure = |row: &Measured| match kind.work {
            Work::Streams(_) => row.per_s,
            Work::Shared => row.p50_us,
            Work::Stalled => row.p99_us,
        };
        ours.ratio = over(figure(ours), figure(theirs));
        ours.against = Some("the other server");
    }
    for row in &rows {
        at.out.note(&format!("{}: {}", row.test, super::brief(row)));
    }
    Ok(rows)
}

impl Work {
    async fn run(self, side: &Side<'_>, texts: &Texts, turn: u64, seen: &mut Seen) -> Result<()> {
        match self {
            Self::Streams(count) => {
                // No prompt of another workload, which one of the sides may remember.
                let first = count * 10_000 + turn * count;
                let asks = (0..count).map(|stream| Ask {
                    prompt: texts.of(SHORT, first + stream),
                    max_tokens: TOKENS,
                    seed: stream,
                    system: None,
                });
                let asks: Vec<Ask> = asks.collect();
                let began = Instant::now();
                let heard = try_join_all(asks.iter().map(|ask| side.ask(ask, || ()))).await?;
                seen.took += began.elapsed();
                for one in heard {
                    seen.tokens += one.tokens.answer;
                    seen.times.extend(one.arrivals.windows(2).map(|pair| pair[1] - pair[0]));
                }
            }
            Self::Shared => {
                let system = Some(texts.of(SHARED, turn));
                for sharer in 0..=SHARERS {
                    let prompt = texts.of(SHORT, turn * SHARERS + sharer);
                    let ask = Ask { system: system.clone(), prompt, max_tokens: 8, seed: sharer };
                    let began = Instant::now();
                    let heard = side.ask(&ask, || ()).await?;
                    let first = heard.arrivals.first().ok_or_else(silent)?.duration_since(began);
                    // The first one has nobody to share with.
                    if sharer > 0 {
                        seen.times.push(first);
                        seen.took += began.elapsed();
                        seen.tokens += 1;
                    }
                }
            }
            Self::Stalled => stalled(side, texts, turn, seen).await?,
        }
        Ok(())
    }

    fn row(self, name: &'static str, seen: Seen) -> Measured {
        let tokens = usize::try_from(seen.tokens).unwrap_or(usize::MAX);
        let mut row = Measured::of(name, seen.times, seen.took);
        if let Self::Streams(_) = self {
            row.n = tokens;
            row.per_s = Some(rate(tokens, seen.took));
        } else {
            row.per_s = None;
        }
        row
    }
}

/// Times between the pieces of running streams while the first token of a long
/// prompt is waited for.
async fn stalled(side: &Side<'_>, texts: &Texts, turn: u64, seen: &mut Seen) -> Result<()> {
    let asks: Vec<Ask> = (0..RUNNING)
        .map(|stream| Ask {
            prompt: texts.of(SHORT, 1_000 + turn * RUNNING + stream),
            max_tokens: RUNNING_TOKENS,
            seed: stream,
            system: None,
        })
        .collect();
    let long = Ask { prompt: texts.of(LONG, 2_000 + turn), max_tokens: 1, ..Ask::default() };
    let arrivals: Vec<RefCell<Vec<Instant>>> = asks.iter().map(|_| RefCell::default()).collect();
    let (runs, mut running) = mpsc::channel(asks.len());
    let streams = asks.iter().zip(&arrivals).map(|(ask, arrivals)| {
        let runs = runs.clone();
        side.ask(ask, move || {
            arrivals.borrow_mut().push(Instant::now());
            if arrivals.borrow().len() == RUNS {
                // There is a place for each of them.
                let _ = runs.try_send(());
            }
        })
    });
    let held_up = async {
        for _ in 0..RUNNING {
            running.recv().await.ok_or_else(silent)?;
        }
        let began = Instant::now();
        side.ask(&long, || ()).await?;
        Ok::<_, Failure>((began, Instant::now()))
    };
    let (began, ended) = tokio::select! {
        biased;
        held_up = held_up => held_up?,
        // They go on for longer than the long one takes, or there is nothing to be held up.
        ended = join_all(streams) => {
            ended.into_iter().collect::<Result<Vec<_>>>()?;
            return Err(silent());
        }
    };
    for arrivals in &arrivals {
        let arrivals = arrivals.borrow();
        let before = arrivals.iter().rev().find(|at| **at <= began).copied();
        let within = arrivals.iter().copied().filter(|at| *at > began && *at < ended);
        let points: Vec<Instant> = before.into_iter().chain(within).chain([ended]).collect();
        seen.times.extend(points.windows(2).map(|pair| pair[1] - pair[0]));
    }
    seen.took += ended - began;
    Ok(())
}

fn silent() -> Failure {
    Failure::failed("the model says too little to be measured").hint("another one: --model NAME")
}

impl Side<'_> {
    /// Asks once; `on_piece` is called for every piece of text.
    async fn ask(&self, ask: &Ask, mut on_piece: impl FnMut()) -> Result<Heard> {
        let mut arrivals = Vec::new();
        let mut piece = || {
            arrivals.push(Instant::now());
            on_piece();
        };
        let tokens = match self {
            Self::Ours { at, client, model } => {
                let question = Question {
                    prompt: Some(ask.prompt.clone()),
                    system: ask.system.clone(),
                    model: model.clone(),
                    max_tokens: Some(ask.max_tokens),
                    temperature: Some(TEMPERATURE),
                    top_k: Some(TOP_K),
                    top_p: Some(TOP_P),
                    min_p: Some(MIN_P),
                    seed: Some(ask.seed),
                    ..Question::default()
                };
                let answered = answer::stream(client, &question, at.call(), |_| {
                    piece();
                    Ok(())
                });
                let (_, Completed { usage, .. }) = answered.await?;
                Tokens { prompt: usage.prompt_tokens, answer: usage.completion_tokens }
            }
            Self::Theirs(server) => server.ask(ask, piece).await?,
        };
        Ok(Heard { arrivals, tokens })
    }
}

/// How many tokens so many words are.
struct Texts {
    words: u64,
    tokens: u64,
}

impl Texts {
    /// A text of about so many tokens; another one for each number.
    fn of(&self, tokens: u64, number: u64) -> String {
        words(number + 1, (tokens * self.words / self.tokens).max(1))
    }
}

/// So many words in an order of their own for each number, so that no text
/// begins like another.
fn words(number: u64, count: u64) -> String {
    const WORDS: [&str; 32] = [
        "river", "stone", "lamp", "winter", "garden", "paper", "copper", "signal", "harbor", "engine",
        "forest", "letter", "mirror", "bridge", "cloud", "silver", "market", "window", "anchor", "thunder",
        "pocket", "island", "candle", "meadow", "ribbon", "shadow", "basket", "feather", "hammer", "orchard",
        "valley", "whistle",
    ];
    // The multiplier and increment of Knuth's MMIX generator.
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = format!("Text {number}:");
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS[(state >> 59) as usize]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_length_that_is_asked_for_and_differ() {
        let texts = Texts { words: 200, tokens: 300 };
        let text = texts.of(30, 1);
        assert_eq!(text.split_whitespace().count(), 2 + 20);
        assert_ne!(text, texts.of(30, 2));
        assert_eq!(text, texts.of(30, 1));
    }

    #[test]
    fn a_row_says_tokens_in_a_second_for_streams_and_times_for_the_rest() {
        let seen =
            || Seen { times: vec![Duration::from_millis(10); 4], tokens: 200, took: Duration::from_secs(2) };
        let streams = Work::Streams(4).row("infer-4", seen());
        assert_eq!((streams.per_s, streams.n, streams.p50_us), (Some(100.0), 200, Some(10_000.0)));
        let stalled = Work::Stalled.row("infer-stall", seen());
        assert_eq!((stalled.per_s, stalled.n, stalled.p99_us), (None, 4, Some(10_000.0)));
    }
}
