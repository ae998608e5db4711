//! Generation through a fake host, on the toy model: that it answers, stops,
//! streams, repeats itself where it must, and survives what it is given.
//!
//! The toy is a toy: nothing here asserts what it knows.

use ksi_sdk::prelude::{Code, Refusal};
use ksi_sdk::testing::{Answer, Call, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn host(config: Value) -> FakeHost<Llama> {
    FakeHost::start(config).expect("the plugin starts")
}

/// A greedy question to the toy.
fn ask(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "temperature": 0.0})
}

/// The same with more fields.
fn ask_with(question: &str, more: Value) -> Value {
    let mut ask = ask(question);
    for (key, value) in more.as_object().expect("an object") {
        ask[key] = value.clone();
    }
    ask
}

fn generate(host: &FakeHost<Llama>, ask: Value) -> Result<Value, Refusal> {
    host.request("llama:generate", ask)
}

/// All pieces of an answer, and its end.
fn collect(host: &FakeHost<Llama>, call: &Call) -> (Vec<String>, Value) {
    let mut pieces = Vec::new();
    loop {
        match host.next(call) {
            Answer::Chunk(chunk) => pieces.push(chunk["text"].as_str().expect("a text").to_owned()),
            Answer::End(end) => return (pieces, end),
            other => panic!("{other:?}"),
        }
    }
}

const STORY: &str = "Tell me a story about a walrus and a teapot.";

#[test]
fn the_toy_answers_and_stops_by_itself() {
    let host = host(json!({}));
    let end = generate(&host, ask("What is KSI?")).unwrap();
    assert!(end["text"].as_str().unwrap().contains("KSI"), "{end}");
    assert_eq!(end["stop_reason"], "stop");
    assert_eq!(end["model"], "ksi-tiny");
    assert_eq!(end["toy"], true);
    let usage = &end["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 4);
    assert!(usage["completion_tokens"].as_u64().unwrap() > 4);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    let timings = &end["timings"];
    assert!(timings["load_ms"].as_f64().unwrap() > 0.0, "{timings}");
    assert!(timings["generate_per_second"].as_f64().unwrap() > 1.0, "{timings}");
    let again = generate(&host, ask("What is KSI?")).unwrap();
    assert!(again["timings"].get("load_ms").is_none(), "loaded only once: {again}");
    assert_eq!(again["text"], end["text"]);
}

#[test]
fn an_answer_comes_in_pieces_that_join_to_the_text() {
    let host = host(json!({}));
    let (pieces, end) = collect(&host, &host.open("llama:generate", ask(STORY)));
    assert!(pieces.len() > 3, "{pieces:?}");
    assert_eq!(pieces.concat(), end["text"].as_str().unwrap());
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let host = host(json!({}));
    let with_seed = |seed: u32| {
        let ask = ask_with(STORY, json!({"temperature": 1.2, "seed": seed}));
        generate(&host, ask).unwrap()["text"].as_str().unwrap().to_owned()
    };
    let first = with_seed(7);
    assert_eq!(first, with_seed(7));
    assert!((8..12).any(|seed| with_seed(seed) != first));
    let drawn = generate(&host, ask_with(STORY, json!({"temperature": 1.2}))).unwrap();
    let seed = u32::try_from(drawn["seed"].as_u64().unwrap()).unwrap();
    assert_eq!(drawn["text"], with_seed(seed), "a drawn seed is reported");
}

#[test]
fn conversations_in_parallel_say_what_they_say_alone() {
    let host = host(json!({"slots": 4}));
    let questions = [
        STORY,
        "Who are you?",
        "How do I start KSI?",
        "Give me three ideas about bicycles.",
        "What is KSI?",
        "Name five colours.",
    ];
    let alone: Vec<Value> =
        questions.iter().map(|question| generate(&host, ask(question)).unwrap()["text"].clone()).collect();
    let calls: Vec<Call> =
        questions.iter().map(|question| host.open("llama:generate", ask(question))).collect();
    for (call, alone) in calls.iter().zip(alone) {
        let (pieces, end) = collect(&host, call);
        assert_eq!(end["text"], alone);
        assert_eq!(pieces.concat(), end["text"].as_str().unwrap());
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let host = host(json!({}));
    let whole = generate(&host, ask(STORY)).unwrap()["text"].as_str().unwrap().to_owned();
    let stop = "walrus found";
    let cut = whole.find(stop).or_else(|| whole.find("the")).unwrap();
    let stop = if whole.contains(stop) { stop } else { "the" };
    let call = host.open("llama:generate", ask_with(STORY, json!({"stop": ["never said", stop]})));
    let (pieces, end) = collect(&host, &call);
    assert_eq!(end["stop_reason"], "stop_string");
    assert_eq!(end["text"], whole[..cut]);
    assert_eq!(pieces.concat(), whole[..cut], "nothing of the stop string was streamed");
}

#[test]
fn the_limit_of_tokens_is_kept_exactly() {
    let host = host(json!({}));
    for limit in [1, 2, 7] {
        let end = generate(&host, ask_with(STORY, json!({"max_tokens": limit}))).unwrap();
        assert_eq!(end["stop_reason"], "length");
        assert_eq!(end["usage"]["completion_tokens"], limit);
        let end = generate(&host, ask_with(STORY, json!({"max_tokens": 9, "tokens_left": limit}))).unwrap();
        assert_eq!(end["usage"]["completion_tokens"], limit);
    }
}

#[test]
fn the_toy_never_says_more_than_two_hundred_tokens() {
    let host = host(json!({}));
    // Very hot and without its end token in sight, it would go on for ever.
    let ask = json!({"prompt": "1, 2, 3, 4,", "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "seed": 3, "max_tokens": 100_000});
    let end = generate(&host, ask).unwrap();
    assert!(end["usage"]["completion_tokens"].as_u64().unwrap() <= 200, "{end}");
}

#[test]
fn the_end_of_the_context_ends_the_text() {
    let host = host(json!({"context": 48}));
    let end = generate(&host, ask(STORY)).unwrap();
    assert_eq!(end["stop_reason"], "length");
    assert_eq!(end["usage"]["total_tokens"], 48);
}

#[test]
fn an_input_beyond_the_context_is_refused_with_both_numbers() {
    let host = host(json!({}));
    let refusal = generate(&host, ask(&"word ".repeat(3000))).unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge);
    let details = refusal.details.unwrap();
    let tokens = details["prompt_tokens"].as_u64().unwrap();
    assert!(tokens >= 3000, "{details}");
    assert_eq!(details["context"], 1024);
    assert!(refusal.message.contains(&tokens.to_string()) && refusal.message.contains("1024"));
    assert!(generate(&host, ask("Hello")).is_ok());
}

#[test]
fn invalid_requests_are_refused_before_anything_is_loaded() {
    let host = host(json!({"input_bytes_max": 10_000}));
    let message = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (json!({}), Code::InvalidPayload, "neither"),
        (json!({"messages": message, "prompt": "x"}), Code::InvalidPayload, "both"),
        (json!({"messages": []}), Code::InvalidPayload, "empty"),
        (json!({"prompt": ""}), Code::InvalidPayload, "empty"),
        (json!({"prompt": "x", "max_tokens": 0}), Code::InvalidPayload, "max_tokens"),
        (json!({"prompt": "x", "max_tokens": -1}), Code::InvalidPayload, ""),
        (json!({"prompt": "x", "temperature": -1.0}), Code::InvalidPayload, "temperature"),
        (json!({"prompt": "x", "temperature": 99.0}), Code::InvalidPayload, "temperature"),
        (json!({"prompt": "x", "top_p": 0.0}), Code::InvalidPayload, "top_p"),
        (json!({"prompt": "x", "top_k": -1}), Code::InvalidPayload, ""),
        (json!({"prompt": "x", "min_p": 1.0}), Code::InvalidPayload, "min_p"),
        (json!({"prompt": "x", "repetition_penalty": 0.0}), Code::InvalidPayload, "repetition_penalty"),
        (json!({"prompt": "x", "seed": 4_294_967_295_u64}), Code::InvalidPayload, "seed"),
        (json!({"prompt": "x", "stop": [""]}), Code::InvalidPayload, "stop string"),
        (json!({"prompt": "x", "stop": ["a".repeat(300)]}), Code::InvalidPayload, "stop string"),
        (json!({"prompt": "x", "stop": vec!["a"; 17]}), Code::InvalidPayload, "17"),
        (json!({"prompt": "x", "priority": 11}), Code::InvalidPayload, "priority"),
        (json!({"prompt": "x", "temprature": 1.0}), Code::InvalidPayload, "temprature"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), Code::InvalidPayload, "robot"),
        (json!({"messages": vec![message[0].clone(); 1025]}), Code::TooLarge, "1025"),
        (json!({"prompt": "x".repeat(10_001)}), Code::TooLarge, "10001"),
        (json!({"prompt": "x", "model": "nope"}), Code::NotFound, "nope"),
        (json!({"prompt": "x", "model": "../../etc/passwd"}), Code::NotFound, "passwd"),
    ];
    for (ask, code, part) in cases {
        let refusal = generate(&host, ask.clone()).unwrap_err();
        assert_eq!(refusal.code, code, "{ask}: {refusal}");
        assert!(refusal.message.contains(part), "{ask}: {refusal}");
    }
    let models = host.request("llama:models", json!({})).unwrap();
    assert_eq!(models["models"][0]["loaded"], false);
    let refusal = generate(&host, json!({"prompt": "x", "model": "nope"})).unwrap_err();
    assert!(refusal.hint.contains("ksi-tiny"), "{}", refusal.hint);
}

#[test]
fn long_runs_of_one_character_are_tokenized_and_never_kill_the_process() {
    let host = host(json!({}));
    for character in ["a", "!", " ", "\n", "1", "ä", "😀", "\u{0}"] {
        let text = character.repeat(100_000 / character.len());
        let tokenized = host.request("llama:tokenize", json!({"text": text})).unwrap();
        assert!(tokenized["count"].as_u64().unwrap() > 10, "{character:?}");
        let refusal = generate(&host, json!({"prompt": text})).unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge, "{character:?}: {refusal}");
    }
    assert!(generate(&host, ask("Hello")).is_ok());
}

#[test]
fn a_control_token_in_a_message_does_not_end_the_turn_of_its_author() {
    let host = host(json!({}));
    let tokens = |content: &str| {
        let end = generate(&host, ask_with(content, json!({"max_tokens": 1}))).unwrap();
        end["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // As a control token it would be one token; as text it is several.
    assert!(tokens("a<|im_end|>b") > tokens("ab") + 2);
}

/// The built-in model without the tokens by which llama.cpp knows that a turn
/// has ended, as the toy or as another model.
fn endless(toy: bool) -> Vec<u8> {
    let mut bytes = include_bytes!("../model/ksi-tiny.gguf").to_vec();
    let find = |bytes: &[u8], part: &[u8]| {
        bytes.windows(part.len()).position(|window| window == part).expect("a part of the file")
    };
    // A key is followed by its type and its value.
    let at = find(&bytes, b"tokenizer.ggml.eos_token_id") + b"tokenizer.ggml.eos_token_id".len() + 4;
    bytes[at..at + 4].copy_from_slice(&2047_u32.to_le_bytes());
    for (token, renamed) in
        [("<|im_end|>", "<|im_eno|>"), ("<|im_end|>", "<|im_eno|>"), ("<|endoftext|>", "<|endoftexx|>")]
    {
        let at = find(&bytes, token.as_bytes());
        bytes[at..at + token.len()].copy_from_slice(renamed.as_bytes());
    }
    if !toy {
        let at = find(&bytes, b"general.name") + b"general.name".len() + 12;
        bytes[at..at + 8].copy_from_slice(b"ksi-talk");
    }
    bytes
}

#[test]
fn an_answer_that_nobody_limits_goes_on_to_the_end_of_the_context_but_for_the_toy() {
    let dir = tempfile::tempdir().unwrap();
    for (name, toy) in [("talk", false), ("toy", true)] {
        std::fs::write(dir.path().join(format!("{name}.gguf")), endless(toy)).unwrap();
    }
    let host = host(json!({"models_dir": dir.path(), "context": 512}));
    for (name, expected) in [("talk", 400..=512), ("toy", 200..=200)] {
        let ask = json!({"model": name, "prompt": "1, 2, 3, 4, 5,", "temperature": 0.0});
        let end = generate(&host, ask).unwrap();
        let tokens = end["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(end["stop_reason"], "length", "{name}");
        assert!(expected.contains(&tokens), "{name}: {tokens}");
    }
}

#[test]
fn a_conversation_of_many_turns_and_roles_is_answered() {
    let host = host(json!({}));
    let end = generate(
        &host,
        json!({"messages": [
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello, Ada!"},
            {"role": "user", "content": ""},
        ], "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 1}),
    )
    .unwrap();
    assert!(end["text"].is_string());
}

#[test]
fn a_cancelled_generation_frees_its_slot() {
    let host = host(json!({"slots": 1, "max_tokens_default": 200}));
    generate(&host, ask("Hello")).unwrap();
    let long = json!({"prompt": "1, 2, 3, 4, 5,", "temperature": 0.0});
    let call = host.open("llama:generate", long.clone());
    assert!(matches!(host.next(&call), Answer::Chunk(_)));
    let waiting = host.open("llama:generate", ask("Who are you?"));
    let given_up = host.open("llama:generate", long);
    host.cancel(&call);
    host.cancel(&given_up);
    let (_, end) = collect(&host, &waiting);
    assert_eq!(end["stop_reason"], "stop");
    wait_until_idle(&host);
}

/// Waits until nothing uses the toy any more, by unloading it.
fn wait_until_idle(host: &FakeHost<Llama>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match host.request("llama:unload", json!({"model": "ksi-tiny"})) {
            Ok(answer) => return assert_eq!(answer["unloaded"], true),
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Busy);
                assert!(Instant::now() < deadline, "the model is still in use");
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn a_long_prompt_that_is_cancelled_disturbs_nobody() {
    let host = host(json!({"slots": 4}));
    let alone = generate(&host, ask(STORY)).unwrap()["text"].clone();
    for _ in 0..5 {
        let story = host.open("llama:generate", ask(STORY));
        let long: Vec<Call> =
            (0..3).map(|_| host.open("llama:generate", ask(&"word and ".repeat(400)))).collect();
        for call in &long {
            host.cancel(call);
        }
        let (pieces, end) = collect(&host, &story);
        assert_eq!(end["text"], alone);
        assert_eq!(pieces.concat(), alone.as_str().unwrap());
    }
    wait_until_idle(&host);
}

#[test]
fn more_requests_than_places_are_refused_as_busy() {
    let host = host(json!({"slots": 1}));
    generate(&host, ask("Hello")).unwrap();
    let calls: Vec<Call> = (0..100).map(|_| host.open("llama:generate", ask(STORY))).collect();
    let mut answered = 0;
    let mut busy = 0;
    for call in &calls {
        loop {
            match host.next(call) {
                Answer::Chunk(_) => {}
                Answer::End(_) => {
                    answered += 1;
                    break;
                }
                Answer::Refusal(refusal) => {
                    assert_eq!(refusal.code, Code::Busy, "{refusal}");
                    assert!(refusal.retry_after_ms.is_some());
                    busy += 1;
                    break;
                }
                Answer::Reply(_) | Answer::Accepted(_) => panic!("not a stream"),
            }
        }
    }
    assert!(answered >= 65, "{answered} answered");
    assert!(busy > 0 && answered + busy == 100);
}
