//! What is generated is what llama.cpp itself generates, token for token: the
//! scheduler around it changes nothing, whoever else is in the batch.

use std::path::Path;

use ksi_sdk::testing::{Answer, Call, FakeHost};
use llama_cpp_2::{
    context::params::LlamaContextParams,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};
use plugin_llama::{Llama, engine::backend};
use serde_json::{Value, json};

/// Most tokens of an answer.
const TOKENS_MAX: usize = 48;

const PROMPTS: [&str; 5] = [
    "<|im_start|>user\nTell me a story about a walrus and a teapot.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is KSI?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHow do I start KSI?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTell me a story about a lamp and a river.<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time",
];

/// The tokens of the likeliest answer, by nothing but llama.cpp.
fn bare(prompt: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/ksi-tiny.gguf");
    let backend = backend::get().expect("one backend for all");
    let params = LlamaModelParams::default().with_n_gpu_layers(0);
    let model = LlamaModel::load_from_file(backend, path, &params).expect("it is in the project");
    let params = LlamaContextParams::default().with_n_threads(1).with_n_threads_batch(1);
    let mut context = model.new_context(backend, params).expect("there is memory");
    let prompt = model.vocab().tokenize(prompt.as_bytes(), true, true);
    let mut batch = LlamaBatch::new(512, 1);
    for (position, token) in (0..).zip(&prompt) {
        batch.add(*token, position, &[0], position as usize + 1 == prompt.len()).expect("there is room");
    }
    let mut said = Vec::new();
    for position in (i32::try_from(prompt.len()).expect("it is short")..).take(TOKENS_MAX) {
        context.decode(&mut batch).expect("it is decoded");
        let scores = context.get_logits_ith(batch.n_tokens() - 1);
        let best = (0..).zip(scores).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id);
        let token = LlamaToken(best);
        if model.vocab().is_eog(token) {
            break;
        }
        said.push(String::from_utf8_lossy(&model.vocab().token_to_piece(token, false, None)).into_owned());
        batch.clear();
        batch.add(token, position, &[0], true).expect("there is room");
    }
    said
}

fn ask(prompt: &str) -> Value {
    json!({"prompt": prompt, "temperature": 0.0, "max_tokens": TOKENS_MAX, "logprobs": 0})
}

fn tokens(host: &FakeHost<Llama>, call: &Call) -> Vec<String> {
    let end = loop {
        match host.next(call) {
            Answer::Chunk(_) => {}
            Answer::End(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    let tokens = end["logprobs"].as_array().expect("a list").iter();
    tokens.map(|token| token["token"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn greedy_answers_are_those_of_llama_cpp_alone_and_among_others() {
    let bare: Vec<Vec<String>> = PROMPTS.iter().map(|prompt| bare(prompt)).collect();
    assert!(bare.iter().all(|tokens| tokens.len() > 2), "{bare:?}");
    let host = FakeHost::<Llama>::start(json!({"threads": 1, "slots": 4})).unwrap();
    for (prompt, bare) in PROMPTS.iter().zip(&bare) {
        assert_eq!(&tokens(&host, &host.open("llama:generate", ask(prompt))), bare);
    }
    // More than there are slots, so that prompts are read beside those who speak, from memory and anew.
    let prompts = || PROMPTS.iter().zip(&bare).cycle().take(3 * PROMPTS.len());
    let calls: Vec<Call> = prompts().map(|(prompt, _)| host.open("llama:generate", ask(prompt))).collect();
    for (call, (prompt, bare)) in calls.iter().zip(prompts()) {
        assert_eq!(&tokens(&host, call), bare, "{prompt}");
    }
}
