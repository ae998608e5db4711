//! What is generated is what llama.cpp itself generates, token for token: the
//! scheduler around it changes nothing, whoever else is in the batch.

#[path = "greedy/adapter.rs"]
mod adapter;

use std::path::Path;

use adapter::adapter;
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
    bare_with(prompt, None)
}

/// The same, with an adapter and how much of it.
fn bare_with(prompt: &str, adapter: Option<(&Path, f32)>) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/ksi-tiny.gguf");
    let backend = backend::get().expect("one backend for all");
    let params = LlamaModelParams::default().with_n_gpu_layers(0);
    let mut model = LlamaModel::load_from_file(backend, path, &params).expect("it is in the project");
    let mut adapter = adapter.map(|(path, scale)| (model.lora_adapter_init(path).expect("it fits"), scale));
    let params = LlamaContextParams::default().with_n_threads(1).with_n_threads_batch(1);
    let mut context = model.new_context(backend, params).expect("there is memory");
    if let Some((adapter, scale)) = &mut adapter {
        context.lora_adapter_set(adapter, *scale).expect("it is taken");
    }
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
    // They end one after the other, and those that are left close ranks.
    let metrics = host.request("llama:metrics", json!({})).unwrap();
    assert!(metrics["models"][0]["moved"].as_u64().is_some_and(|moved| moved > 0), "{metrics}");
}

#[test]
fn an_adapter_changes_the_answers_as_llama_cpp_says_and_by_as_much_as_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("style.gguf");
    std::fs::write(&file, adapter("llama", 192, 0.05)).unwrap();
    let prompt = PROMPTS[0];
    let plain = bare(prompt);
    let mut changed = 0;
    for (lora, scale) in [("style", 1.0), ("style:0.5", 0.5), ("style:0", 0.0), ("style:-1", -1.0)] {
        let config = json!({"threads": 1, "models_dir": dir.path(), "models": {"ksi-*": {"lora": [lora]}}});
        let host = FakeHost::<Llama>::start(config).unwrap();
        let expected = bare_with(prompt, Some((&file, scale)));
        assert_eq!(tokens(&host, &host.open("llama:generate", ask(prompt))), expected, "{lora}");
        assert_eq!(host.request("llama:load", json!({})).unwrap()["lora"], json!([lora]));
        changed += usize::from(expected != plain);
    }
    assert!(changed >= 2, "it does something");
    assert_eq!(bare_with(prompt, Some((&file, 0.0))), plain);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_with_the_reason_and_costs_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("other.gguf", &adapter("qwen2", 192, 0.05));
    write("wide.gguf", &adapter("llama", 256, 0.05));
    write("cut.gguf", &adapter("llama", 192, 0.05)[..3000]);
    std::fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("model/ksi-tiny.gguf"),
        dir.path().join("model.gguf"),
    )
    .unwrap();
    for (lora, part) in [
        ("nowhere", "nowhere"),
        ("other", "kind `qwen2`"),
        ("wide", "incorrect shape"),
        ("cut", "truncated"),
        ("model", "is no adapter"),
    ] {
        let config = json!({"models_dir": dir.path(), "models": {"ksi-*": {"lora": [lora]}}});
        let host = FakeHost::<Llama>::start(config).unwrap();
        let refusal = host.request("llama:load", json!({})).unwrap_err();
        assert!(refusal.message.contains(part), "{lora}: {refusal}");
        host.request("llama:load", json!({"model": "model"})).expect("it has no adapter");
    }
    for (lora, part) in
        [("style:much", "is no number"), (":1", "has no name"), ("style:1000", "a hundred times")]
    {
        let Err(refusal) = FakeHost::<Llama>::start(json!({"lora": [lora]})) else { panic!("started") };
        assert!(refusal.message.contains(part), "{refusal}");
    }
    let host = FakeHost::<Llama>::start(json!({"models_dir": dir.path()})).unwrap();
    let list = host.request("llama:models", json!({})).unwrap();
    let of = |name: &str| list["models"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
    assert!(of("wide")["adapter"] == true && of("cut")["adapter"].is_null(), "{list}");
    assert!(of("wide")["error"].as_str().unwrap().contains("name it in `lora`"), "{list}");
}
