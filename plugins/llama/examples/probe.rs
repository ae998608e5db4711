//! A program around the plugin, without a daemon: continues one prompt for the
//! scripts that judge a model, or measures how fast the plugin generates
//! compared with a bare loop over llama.cpp.
//!
//! ```text
//! probe gen MODEL.gguf PROMPT TOKENS         # greedy; prints a Rust string
//! probe bench MODEL.gguf THREADS AT_ONCE     # prints tokens per second
//! probe bare MODEL.gguf THREADS TOKENS [AT_ONCE]   # the same of the bare loop alone
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use ksi_sdk::testing::{Answer, Call, FakeHost};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use plugin_llama::Llama;
use plugin_llama::engine::backend;
use serde_json::{Value, json};

/// What is generated from: the toy answers it with some seventy tokens.
const PROMPT: &str =
    "<|im_start|>user\nTell me a story about a walrus and a teapot.<|im_end|>\n<|im_start|>assistant\n";
/// Most tokens of one measured generation.
const TOKENS_MAX: u32 = 190;
/// Measurements of each kind; the best one counts.
const ROUNDS: usize = 5;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["gen", model, prompt, tokens] => {
            let (host, name) = start(model, json!({}))?;
            let ask = json!({"model": name, "prompt": prompt, "max_tokens": tokens.parse::<u32>()?, "temperature": 0.0});
            let end = host.request("llama:generate", ask)?;
            println!("{:?}", end["text"].as_str().unwrap_or_default());
        }
        ["bench", model, threads, at_once] => bench(model, threads.parse()?, at_once.parse()?)?,
        ["bare", model, threads, tokens, at_once @ ..] if at_once.len() < 2 => {
            let at_once = at_once.first().map_or(Ok(1), |at_once| at_once.parse())?;
            let speed = bare(model, threads.parse()?, tokens.parse()?, at_once)?;
            println!("{:.2} tokens/s end to end, {:.2} after the first", speed.end_to_end, speed.after_first);
        }
        _ => return Ok(ExitCode::from(2)),
    }
    Ok(ExitCode::SUCCESS)
}

type Host = FakeHost<Llama>;

/// A plugin that sees the folder of this model, and the model's name there.
fn start(model: &str, mut config: Value) -> Result<(Host, String), Box<dyn std::error::Error>> {
    let path = Path::new(model).canonicalize()?;
    config["models_dir"] = json!(path.parent());
    let name = path.file_stem().ok_or("not a file")?.to_string_lossy().into_owned();
    Ok((FakeHost::start(config)?, name))
}

fn bench(model: &str, threads: u32, at_once: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (host, name) = start(model, json!({"threads": threads, "slots": at_once.max(1)}))?;
    let ask = json!({"model": name, "prompt": PROMPT, "max_tokens": TOKENS_MAX, "temperature": 0.0});
    let first = host.request("llama:generate", ask.clone())?;
    let tokens = first["usage"]["completion_tokens"].as_u64().unwrap_or(1);
    let mut best = 0.0_f64;
    let mut inside_best = 0.0_f64;
    let mut bare_best = 0.0_f64;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let calls: Vec<Call> = (0..at_once).map(|_| host.open("llama:generate", ask.clone())).collect();
        let ends: Vec<Value> = calls.iter().map(|call| finish(&host, call)).collect();
        best = best.max((tokens * at_once as u64) as f64 / began.elapsed().as_secs_f64());
        let speeds = ends.iter().filter_map(|end| end["timings"]["generate_per_second"].as_f64());
        inside_best = inside_best.max(speeds.sum());
        bare_best = bare_best.max(bare(model, threads, tokens, at_once)?.end_to_end);
    }
    println!("plugin, {at_once} at once: {best:.0} tokens/s end to end, {inside_best:.0} by its own count");
    println!("bare loop, {at_once} at once: {bare_best:.0} tokens/s end to end");
    Ok(())
}

fn finish(host: &Host, call: &Call) -> Value {
    loop {
        match host.next(call) {
            Answer::Chunk(_) => {}
            Answer::End(end) => return end,
            _ => return Value::Null,
        }
    }
}

/// Tokens per second of all sequences together.
struct Speed {
    /// The reading of the prompts included.
    end_to_end: f64,
    after_first: f64,
}

/// The same generations with nothing around llama.cpp: all prompts in one batch,
/// then one token of each in every batch.
fn bare(path: &str, threads: u32, tokens: u64, at_once: usize) -> Result<Speed, Box<dyn std::error::Error>> {
    let backend = backend::get()?;
    let model = LlamaModel::load_from_file(backend, path, &LlamaModelParams::default().with_n_gpu_layers(0))?;
    let threads = i32::try_from(threads)?;
    let prompt = model.vocab().tokenize(PROMPT.as_bytes(), true, true);
    let room = u32::try_from((prompt.len() + usize::try_from(tokens)?) * at_once)?.max(512);
    let params = LlamaContextParams::default()
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_n_ctx(NonZero::new(room))
        .with_n_seq_max(u32::try_from(at_once)?)
        .with_n_batch(room)
        .with_kv_unified(true);
    let mut context = model.new_context(backend, params)?;
    let mut batch = LlamaBatch::new(usize::try_from(room)?, 1);
    let length = i32::try_from(prompt.len())?;
    let mut outputs = Vec::new();
    for (sequence, _) in (0..).zip(0..at_once) {
        for (position, token) in (0..).zip(&prompt) {
            batch.add(*token, position, &[sequence], position + 1 == length)?;
        }
        outputs.push(batch.n_tokens() - 1);
    }
    let began = Instant::now();
    let mut first = began;
    for (position, number) in (length..).zip(0..tokens) {
        context.decode(&mut batch)?;
        if number == 0 {
            first = Instant::now();
        }
        batch.clear();
        for (sequence, output) in (0..).zip(&mut outputs) {
            let scores = context.get_logits_ith(*output);
            let best = (0..).zip(scores).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id);
            batch.add(llama_cpp_2::token::LlamaToken(best), position, &[sequence], true)?;
            *output = sequence;
        }
    }
    let all = at_once as f64;
    Ok(Speed {
        end_to_end: all * tokens as f64 / began.elapsed().as_secs_f64(),
        after_first: all * tokens.saturating_sub(1) as f64 / first.elapsed().as_secs_f64(),
    })
}
