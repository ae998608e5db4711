//! What is answered: the whole and its pieces, at once and later, one after
//! another and side by side.

use ksi_tests::Lines;
use serde_json::{Value, json};

use super::{
    answer, collect, complete, endless, fresh, greedy, idle, model, open, open_and_hear, status, talk, text,
    with,
};

const STORY: &str = "Tell me a story about a walrus and a teapot.";

#[test]
fn nothing_is_loaded_or_generated_until_somebody_asks() {
    let daemon = fresh();
    assert_eq!(model(&daemon, "ksi-tiny")["loaded"], false);
    assert_eq!((&status(&daemon)["running"], &status(&daemon)["queued"]), (&json!(0), &json!(0)));
    let handled = daemon.plugin("llama").handled;
    assert_eq!(handled, 1, "only the list of models that this test asked for");
    answer(&daemon, &greedy("Hello"));
    assert_eq!(model(&daemon, "ksi-tiny")["loaded"], true);
}

#[test]
fn a_fresh_home_answers_from_the_toy_and_says_so() {
    let daemon = fresh();
    let (pieces, end) = complete(&daemon, &greedy(STORY));
    let end = end.unwrap();
    assert!(pieces.len() > 3, "{pieces:?}");
    assert_eq!(pieces.concat(), text(&end));
    assert!(text(&end).len() > 20, "{end}");
    assert_eq!(end["toy"], true);
    assert_eq!(end["requested"], json!({"provider": "llama", "model": "default"}));
    assert_eq!(end["answered"], json!({"provider": "llama", "model": "ksi-tiny"}));
    assert_eq!(end["why"], "default model");
    assert_eq!(end["stop_reason"], "stop");
    assert_eq!(end["attempts"], 1);
    assert!(end["timings"]["load_ms"].as_f64().unwrap() > 0.0, "{end}");
    let named = answer(&daemon, &with(greedy(STORY), json!({"model": "llama/ksi-tiny"})));
    assert_eq!((&named["why"], &named["text"]), (&json!("as requested"), &end["text"]));
    assert!(named["timings"]["load_ms"].is_null(), "loaded only once: {named}");
}

#[test]
fn tokens_are_counted_exactly() {
    let daemon = fresh();
    for max_tokens in [1, 7] {
        let end = answer(&daemon, &with(greedy(STORY), json!({"max_tokens": max_tokens})));
        assert_eq!(end["stop_reason"], "length");
        let usage = &end["usage"];
        assert_eq!(usage["completion_tokens"], max_tokens);
        let prompt = usage["prompt_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], prompt + max_tokens);
        // The chat template adds a frame around what was asked.
        let asked = daemon.ask("llama:tokenize", json!({"text": STORY})).unwrap()["count"].as_u64().unwrap();
        assert!(asked < prompt && prompt < asked + 16, "{asked} {usage}");
        let said = daemon.ask("llama:tokenize", json!({"text": end["text"]})).unwrap();
        assert_eq!(said["count"], max_tokens, "{end}");
    }
}

#[test]
fn an_async_request_is_accepted_then_told_and_its_result_kept() {
    let daemon = fresh();
    let mut heard = listen(&daemon);
    let accepted = daemon.ask("completion:async", greedy(STORY)).unwrap();
    let id = accepted["request_id"].as_str().unwrap();
    let mut deltas = String::new();
    let mut order = Vec::new();
    let result = loop {
        let mut fact = heard.receive();
        assert_eq!(fact["data"]["request_id"], id, "{fact}");
        let event = fact["event"].as_str().unwrap().to_owned();
        match event.as_str() {
            "completion:delta" => deltas.push_str(text(&fact["data"])),
            "completion:result" => break fact["data"].take(),
            _ => order.push(event),
        }
    };
    assert_eq!(order, ["completion:started"]);
    assert_eq!(deltas, text(&result));
    assert_eq!((&result["toy"], &result["answered"]["model"]), (&json!(true), &json!("ksi-tiny")));
    let kept = daemon.ask("completion:get", json!({"request_id": id, "wait_ms": 60_000})).unwrap();
    assert_eq!((&kept["state"], &kept["result"]), (&json!("done"), &result));
}

#[test]
fn an_async_request_goes_on_when_its_asker_is_gone() {
    let daemon = fresh();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:async", "data": greedy(STORY)}));
    let id = lines.receive()["accepted"]["request_id"].clone();
    drop(lines);
    let kept = daemon.ask("completion:get", json!({"request_id": id, "wait_ms": 60_000})).unwrap();
    assert_eq!(kept["state"], "done", "{kept}");
    assert!(!text(&kept["result"]).is_empty());
}

fn listen(daemon: &ksi_tests::Daemon) -> Lines {
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "completion:*"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines
}

#[test]
fn conversations_run_side_by_side_and_each_one_in_order() {
    let daemon = endless("");
    let of = |name: &str, more: Value| with(with(talk(), json!({"conversation_id": name})), more);
    let mut first = open_and_hear(&daemon, &of("a", json!({})));
    let mut other = open_and_hear(&daemon, &of("b", json!({})));
    let mut second = open(&daemon, &of("a", json!({"max_tokens": 5})));
    ksi_tests::wait_until("the second of its conversation waits", || status(&daemon)["queued"] == 1);
    let now = status(&daemon);
    assert_eq!(now["running"], 2, "{now}");
    let waiting = now["requests"].as_array().unwrap().iter().find(|open| open["state"] == "queued").unwrap();
    assert_eq!((&waiting["conversation_id"], &waiting["model"]), (&json!("a"), &json!("llama/endless")));
    // Both speak while both run.
    assert!(first.receive().get("chunk").is_some() && other.receive().get("chunk").is_some());
    drop(first);
    let (_, end) = collect(&mut second);
    assert_eq!(end.unwrap()["usage"]["completion_tokens"], 5);
    drop(other);
    idle(&daemon);
}

#[test]
fn answers_side_by_side_are_those_that_each_would_have_alone() {
    let daemon = fresh();
    let questions =
        [STORY, "Who are you?", "How do I start KSI?", "What is KSI?", "Name five colours.", "Hello"];
    let alone: Vec<Value> = questions.iter().map(|question| answer(&daemon, &greedy(question))).collect();
    let mut calls: Vec<Lines> = questions.iter().map(|question| open(&daemon, &greedy(question))).collect();
    for (lines, alone) in calls.iter_mut().zip(alone) {
        let (pieces, end) = collect(lines);
        assert_eq!((&end.unwrap()["text"], pieces.concat()), (&alone["text"], text(&alone).to_owned()));
    }
}

#[test]
fn earlier_messages_and_the_system_text_are_read_too() {
    let daemon = fresh();
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = json!({"temperature": 0, "messages": [
        say("user", "Hello, my name is Mira."),
        say("assistant", "Hello Mira!"),
        say("user", "What is my name?"),
    ]});
    let alone = answer(&daemon, &greedy("What is my name?"));
    let long = answer(&daemon, &chat);
    let system = answer(&daemon, &with(chat, json!({"system": "You are a pirate."})));
    let tokens = |end: &Value| end["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&alone) + 10 < tokens(&long), "{alone} {long}");
    assert!(tokens(&long) + 5 < tokens(&system), "{long} {system}");
    assert!(text(&long).contains("Mira"), "it recalls a name of the same chat: {long}");
    assert!(!text(&alone).contains("Mira"), "{alone}");
}

#[test]
fn a_seed_makes_an_answer_repeatable_and_a_drawn_one_is_told() {
    let daemon = fresh();
    let ask = |more: Value| with(json!({"prompt": STORY, "temperature": 1.2}), more);
    let first = answer(&daemon, &ask(json!({"seed": 7})));
    assert_eq!(first["seed"], 7);
    assert_eq!(answer(&daemon, &ask(json!({"seed": 7})))["text"], first["text"]);
    assert!((8..14).any(|seed| answer(&daemon, &ask(json!({"seed": seed})))["text"] != first["text"]));
    let drawn = answer(&daemon, &ask(json!({})));
    assert_eq!(answer(&daemon, &ask(json!({"seed": drawn["seed"]})))["text"], drawn["text"]);
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let daemon = fresh();
    let whole = answer(&daemon, &greedy(STORY));
    let stop: Vec<&str> = text(&whole).split(' ').skip(4).take(2).collect();
    let stop = stop.join(" ");
    let (pieces, end) = complete(&daemon, &with(greedy(STORY), json!({"stop": ["never said", stop]})));
    let end = end.unwrap();
    assert_eq!(end["stop_reason"], "stop_string", "{end}");
    assert_eq!(text(&end), &text(&whole)[..text(&whole).find(&stop).unwrap()]);
    assert_eq!(pieces.concat(), text(&end), "no piece goes past the stop");
}
