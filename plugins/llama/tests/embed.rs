//! Vectors of texts, with a model that is written on the spot.

#[path = "embed/bert.rs"]
mod bert;

use std::path::Path;

use ksi_sdk::prelude::Code;
use ksi_sdk::testing::{Answer, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};

type Host = FakeHost<Llama>;

/// A host with the three ways to make a vector.
fn host(dir: &Path) -> Host {
    for (name, pooling) in [("mean", 1), ("cls", 2), ("last", 3), ("rank", 4)] {
        std::fs::write(dir.join(format!("{name}.gguf")), bert::model(pooling)).expect("a file");
    }
    FakeHost::start(json!({"models_dir": dir, "max_loaded": 4})).expect("the plugin starts")
}

fn vectors(end: &Value) -> Vec<Vec<f64>> {
    let lists = end["embeddings"].as_array().expect("vectors");
    let number = |value: &Value| value.as_f64().expect("a number");
    let numbers = |list: &Value| list.as_array().expect("a list").iter().map(number).collect();
    lists.iter().map(numbers).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

const TEXTS: [&str; 6] = ["hello world", "cat", "dog dog cat", "a b c d e f g", "hello", "xyz äöü 😀"];

#[test]
fn a_text_has_the_same_vector_alone_and_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    for model in ["mean", "cls", "last"] {
        let many: Vec<&str> = TEXTS.iter().copied().cycle().take(50).collect();
        let end = host.request("llama:embed", json!({"model": model, "texts": many})).unwrap();
        assert_eq!(end["pooling"], model);
        assert_eq!(end["dimensions"], bert::WIDTH);
        let together = vectors(&end);
        assert_eq!(together.len(), 50);
        for (text, vector) in many.iter().zip(&together).take(12) {
            assert!((product(vector, vector) - 1.0).abs() < 1e-5, "its length is 1");
            let alone = host.request("llama:embed", json!({"model": model, "texts": [text]})).unwrap();
            let cosine = product(&vectors(&alone)[0], vector);
            assert!(cosine > 0.99999, "{model} {text:?}: {cosine}");
        }
        assert!(product(&together[0], &together[1]) < 0.9999, "others differ");
    }
}

#[test]
fn vectors_are_as_long_as_the_model_makes_them_where_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let ask = |normalize: bool| json!({"model": "mean", "texts": ["hello world"], "normalize": normalize});
    let raw = vectors(&host.request("llama:embed", ask(false)).unwrap()).remove(0);
    let unit = vectors(&host.request("llama:embed", ask(true)).unwrap()).remove(0);
    let length = product(&raw, &raw).sqrt();
    assert!((length - 1.0).abs() > 0.01, "{length}");
    assert!((product(&raw, &unit) - length).abs() < 1e-4);
}

#[test]
fn a_model_that_can_is_found_where_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let end = host(dir.path()).request("llama:embed", json!({"texts": ["cat"]})).unwrap();
    assert_eq!(end["model"], "cls", "the first by name");
    // One that ranks texts makes no vectors of them.
    std::fs::write(dir.path().join("a-ranker.gguf"), bert::model(4)).unwrap();
    let end = host(dir.path()).request("llama:embed", json!({"texts": ["cat"]})).unwrap();
    assert_eq!(end["model"], "cls");
    let nothing: Host = FakeHost::start(json!({})).unwrap();
    let refusal = nothing.request("llama:embed", json!({"texts": ["cat"]})).unwrap_err();
    assert_eq!(refusal.code, Code::NotFound, "{refusal}");
}

#[test]
fn a_model_is_asked_only_for_what_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let refusal = host.request("llama:embed", json!({"model": "ksi-tiny", "texts": ["cat"]})).unwrap_err();
    assert!(refusal.message.contains("no vectors"), "{refusal}");
    let refusal = host.request("llama:generate", json!({"model": "mean", "prompt": "cat"})).unwrap_err();
    assert!(refusal.message.contains("no text"), "{refusal}");
    let refusal = host.request("llama:embed", json!({"model": "rank", "texts": ["cat"]})).unwrap_err();
    assert_eq!(refusal.code, Code::Unavailable, "{refusal}");
    let list = host.request("llama:models", json!({})).unwrap();
    for (name, capabilities) in
        [("mean", json!(["embeddings"])), ("ksi-tiny", json!(["chat", "tools", "json_schema", "choices"]))]
    {
        let model = list["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap();
        assert_eq!(model["capabilities"], capabilities);
    }
}

#[test]
fn vectors_are_counted_and_who_finds_no_place_hears_when_one_is_likely_to_be_free() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mean.gguf"), bert::model(1)).unwrap();
    let host: Host = FakeHost::start(json!({"models_dir": dir.path(), "slots": 1, "queue": 0})).unwrap();
    let ask = |count: usize| json!({"model": "mean", "texts": vec!["hello world"; count]});
    let tokens: u64 = (1..=3)
        .map(|count| host.request("llama:embed", ask(count)).unwrap()["prompt_tokens"].as_u64().unwrap())
        .sum();
    let metrics = host.request("llama:metrics", json!({})).unwrap()["models"][0].clone();
    assert_eq!((&metrics["answered"], &metrics["prompt_tokens"]), (&json!(3), &json!(tokens)));
    assert!(metrics["prompt_per_second"].as_f64().unwrap() > 1.0, "{metrics}");
    assert!(metrics["first_token_ms"].as_f64().unwrap() > 0.0, "{metrics}");
    let calls: Vec<_> = (0..50).map(|_| host.open("llama:embed", ask(2048))).collect();
    let busy = calls.iter().find_map(|call| match host.next(call) {
        Answer::Refusal(refusal) => Some(refusal),
        _ => None,
    });
    let busy = busy.expect("there is one place");
    assert_eq!(busy.code, Code::Busy);
    // 500 is what is said where nothing is known.
    assert!(busy.retry_after_ms.is_some_and(|time| time != 500), "{busy}");
}

#[test]
fn a_long_text_is_refused_or_cut_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let long = "cat ".repeat(1000);
    let ask = json!({"model": "mean", "texts": ["dog", long]});
    let refusal = host.request("llama:embed", ask).unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge, "{refusal}");
    assert_eq!(refusal.details.unwrap()["max"], bert::CONTEXT);
    let ask = json!({"model": "mean", "texts": ["dog", long], "truncate": true});
    let end = host.request("llama:embed", ask).unwrap();
    assert_eq!(end["prompt_tokens"], 3 + bert::CONTEXT);
    for texts in [json!([]), json!(vec!["x"; 2049])] {
        let refusal = host.request("llama:embed", json!({"model": "mean", "texts": texts})).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{refusal}");
    }
}

#[test]
fn many_askers_get_their_own_and_cancelled_ones_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let ask = |texts: Vec<&str>| json!({"model": "mean", "texts": texts});
    let expected: Vec<Vec<f64>> = TEXTS
        .iter()
        .map(|text| vectors(&host.request("llama:embed", ask(vec![text])).unwrap()).remove(0))
        .collect();
    for round in 0..5 {
        let calls: Vec<_> = (0..24)
            .map(|number| (number, host.open("llama:embed", ask(vec![TEXTS[number % 6]; 1 + number]))))
            .collect();
        for (number, call) in &calls {
            if number % 4 == round % 4 {
                host.cancel(call);
                continue;
            }
            let Answer::Reply(end) = host.next(call) else { panic!("no answer") };
            let vectors = vectors(&end);
            assert_eq!(vectors.len(), 1 + number);
            assert!(vectors.iter().all(|vector| product(vector, &expected[number % 6]) > 0.99999));
        }
    }
}

#[test]
fn the_first_model_that_can_stays_the_one_while_it_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let answers = || host.request("llama:embed", json!({"texts": ["hello"]})).unwrap()["model"].clone();
    assert_eq!(answers(), "cls");
    // One that comes before it by name.
    std::fs::write(dir.path().join("a.gguf"), bert::model(1)).unwrap();
    assert_eq!(answers(), "cls", "the vectors of one service can be compared");
    // Nothing is looked for while it is there.
    let aside = dir.path().with_extension("aside");
    std::fs::rename(dir.path(), &aside).unwrap();
    assert_eq!(answers(), "cls");
    std::fs::rename(&aside, dir.path()).unwrap();
    host.request("llama:unload", json!({"model": "cls"})).unwrap();
    assert_eq!(answers(), "a");
}
