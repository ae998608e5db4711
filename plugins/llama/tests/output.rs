//! What the answer may look like, how likely it was, and several of them, on
//! the toy model.

use ksi_sdk::prelude::{Code, Refusal};
use ksi_sdk::testing::{Answer, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};

type Host = FakeHost<Llama>;

fn host() -> Host {
    FakeHost::start(json!({})).expect("the plugin starts")
}

/// A greedy question with more fields.
fn ask_with(question: &str, more: Value) -> Value {
    let mut ask = json!({"messages": [{"role": "user", "content": question}], "temperature": 0.0});
    for (key, value) in more.as_object().expect("an object") {
        ask[key] = value.clone();
    }
    ask
}

/// All pieces of an answer, and its end.
fn collect(host: &Host, ask: Value) -> Result<(Vec<Value>, Value), Refusal> {
    let call = host.open("llama:generate", ask);
    let mut pieces = Vec::new();
    loop {
        match host.next(&call) {
            Answer::Chunk(chunk) => pieces.push(chunk),
            Answer::End(end) => return Ok((pieces, end)),
            Answer::Refusal(refusal) => return Err(refusal),
            other => panic!("{other:?}"),
        }
    }
}

fn text(end: &Value) -> &str {
    end["text"].as_str().expect("a text")
}

const STORY: &str = "Tell me a story about a walrus and a teapot.";

fn person() -> Value {
    json!({"json_schema": {"schema": {
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "mood"],
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "mood": {"enum": ["good", "bad"]},
        },
    }}})
}

#[test]
fn an_answer_by_a_schema_is_json_that_fits_wherever_it_is_cut() {
    let host = host();
    let mut cut = 0;
    for (seed, limit) in (0..60).zip([1, 2, 3, 5, 8, 13, 21, 34, 55, 200].into_iter().cycle()) {
        for temperature in [0.0, 2.0] {
            let more = json!({"response_format": person(), "seed": seed, "max_tokens": limit,
                "temperature": temperature});
            let (pieces, end) = collect(&host, ask_with(STORY, more)).unwrap();
            let value: Value =
                serde_json::from_str(text(&end)).unwrap_or_else(|error| panic!("{error}: {}", text(&end)));
            assert!(value["name"].is_string() && value["tags"].is_array(), "{value}");
            assert!(value["age"].as_f64().is_some_and(|age| (0.0..=120.0).contains(&age)), "{value}");
            assert!(["good", "bad"].contains(&value["mood"].as_str().unwrap()), "{value}");
            let joined: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
            assert_eq!(joined, text(&end));
            assert!(end["usage"]["completion_tokens"].as_u64().unwrap() <= limit, "{end}");
            match end["stop_reason"].as_str().unwrap() {
                "length" => cut += 1,
                reason => assert_eq!(reason, "stop"),
            }
        }
    }
    assert!(cut > 20, "{cut} were cut");
}

#[test]
fn any_json_object_will_do_where_no_schema_is_given() {
    let (_, end) = collect(&host(), ask_with(STORY, json!({"response_format": "json"}))).unwrap();
    assert!(serde_json::from_str::<Value>(text(&end)).unwrap().is_object(), "{end}");
}

#[test]
fn an_answer_by_a_grammar_fits_it() {
    let host = host();
    let ask = |grammar: &str, seed: u32| {
        ask_with(STORY, json!({"grammar": grammar, "seed": seed, "temperature": 2.0, "max_tokens": 60}))
    };
    for seed in 0..10 {
        let (_, end) = collect(&host, ask("root ::= \"yes\" | \"no\"", seed)).unwrap();
        assert!(["yes", "no"].contains(&text(&end)), "{end}");
        assert_eq!(end["stop_reason"], "stop");
        let lists = "root ::= \"(\" [a-c]{1,2} (\",\" root)? \")\"";
        let (_, end) = collect(&host, ask(lists, seed)).unwrap();
        let said = text(&end);
        assert!(said.starts_with('(') && said.chars().all(|c| "(),abc".contains(c)), "{said}");
        if end["stop_reason"] == "stop" {
            assert_eq!(said.matches('(').count(), said.matches(')').count(), "{said}");
        }
    }
}

#[test]
fn constrained_and_free_answers_side_by_side_say_what_they_say_alone() {
    let host = host();
    let asks = [
        ask_with(STORY, json!({})),
        ask_with(STORY, json!({"response_format": person(), "max_tokens": 60})),
        ask_with("What is KSI?", json!({})),
        ask_with("What is KSI?", json!({"response_format": person(), "max_tokens": 60})),
    ];
    let alone: Vec<Value> =
        asks.iter().map(|ask| host.request("llama:generate", ask.clone()).unwrap()["text"].clone()).collect();
    let calls: Vec<_> = asks.iter().map(|ask| host.open("llama:generate", ask.clone())).collect();
    for (call, alone) in calls.iter().zip(alone) {
        let end = loop {
            match host.next(call) {
                Answer::Chunk(_) => {}
                Answer::End(end) => break end,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(end["text"], alone);
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_with_the_field() {
    let host = host();
    let cases = [
        (json!({"response_format": {"json_schema": {"schema": {"type": "strin"}}}}), "response_format"),
        (json!({"response_format": "json", "stop": ["}"]}), "stop"),
        (json!({"grammar": "root ::= nothing"}), "grammar"),
        (json!({"tools": [{"name": "x"}], "response_format": "json"}), "tools"),
    ];
    for (more, path) in cases {
        let refusal = collect(&host, ask_with("Hi", more)).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{refusal}");
        assert_eq!(refusal.details.unwrap()["path"], path);
    }
    collect(&host, ask_with("Hi", json!({}))).unwrap();
}

#[test]
fn logprobs_are_those_of_the_tokens_of_the_text() {
    let host = host();
    let (pieces, end) = collect(&host, ask_with(STORY, json!({"logprobs": 3, "max_tokens": 12}))).unwrap();
    let all = end["logprobs"].as_array().unwrap();
    assert_eq!(all.len(), 12);
    let joined: String = all.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(joined, text(&end));
    for token in all {
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], token["token"], "greedy takes the likeliest");
        assert!(top[0]["logprob"].as_f64().unwrap() <= 0.0, "{token}");
    }
    let streamed: Vec<Value> =
        pieces.iter().flat_map(|piece| piece["logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(&streamed, all);
    let (_, without) = collect(&host, ask_with(STORY, json!({"max_tokens": 12}))).unwrap();
    assert!(without.get("logprobs").is_none());
    assert_eq!(without["text"], end["text"]);
}

#[test]
fn several_answers_are_those_of_their_seeds_and_share_what_they_read() {
    let host = host();
    let more = json!({"choices": 3, "temperature": 1.2, "seed": 7});
    let (pieces, end) = collect(&host, ask_with(STORY, more)).unwrap();
    let others = end["alternatives"].as_array().unwrap();
    assert_eq!(others.len(), 2);
    let texts = [&end["text"], &others[0]["text"], &others[1]["text"]];
    for (choice, expected) in texts.into_iter().enumerate() {
        let joined: String = pieces
            .iter()
            .filter(|piece| piece.get("choice").map_or(0, |choice| choice.as_u64().unwrap()) == choice as u64)
            .map(|piece| piece["text"].as_str().unwrap())
            .collect();
        assert_eq!(&joined, expected.as_str().unwrap());
        let alone = ask_with(STORY, json!({"temperature": 1.2, "seed": 7 + choice}));
        assert_eq!(&host.request("llama:generate", alone).unwrap()["text"], expected);
    }
}

#[test]
fn a_required_call_is_one_of_a_tool_with_arguments_that_fit() {
    let host = host();
    let city = json!({"type": "object", "required": ["city"], "additionalProperties": false,
        "properties": {"city": {"enum": ["Oslo", "Rome"]}}});
    let tools = json!([{"name": "weather", "description": "Tells the weather.", "parameters": city},
        {"name": "time", "parameters": city}]);
    for (choice, names) in
        [(json!("required"), &["weather", "time"][..]), (json!({"tool": "weather"}), &["weather"][..])]
    {
        for seed in 0..5 {
            let more = json!({"tools": tools, "tool_choice": choice, "seed": seed, "temperature": 2.0});
            let (pieces, end) = collect(&host, ask_with("How is the weather?", more)).unwrap();
            assert_eq!(end["stop_reason"], "tool_calls", "{end}");
            assert_eq!(end["text"], "");
            let call = &end["tool_calls"][0];
            assert!(names.contains(&call["name"].as_str().unwrap()), "{call}");
            assert!(["Oslo", "Rome"].contains(&call["arguments"]["city"].as_str().unwrap()), "{call}");
            let piece = &pieces[0]["tool_calls"][0];
            assert_eq!((&piece["id"], &piece["name"]), (&call["id"], &call["name"]));
            let arguments: Value = serde_json::from_str(piece["arguments"].as_str().unwrap()).unwrap();
            assert_eq!(arguments, call["arguments"]);
        }
    }
    let more = json!({"tools": tools, "tool_choice": "none", "max_tokens": 5});
    let (_, free) = collect(&host, ask_with(STORY, more)).unwrap();
    let (_, plain) = collect(&host, ask_with(STORY, json!({"max_tokens": 5}))).unwrap();
    assert_eq!(free["text"], plain["text"], "a model that may call none hears of none");
}
