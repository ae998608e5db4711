//! One request at a time: text, results, models, and what is refused.

use ksi_sdk::prelude::Refusal;

use super::*;

#[test]
fn the_text_is_streamed_and_the_end_says_who_answered_and_why() {
    let host = default_host();
    let call = ask(
        &host,
        json!({"prompt": "hi", "system": "be kind", "conversation_id": "c",
        "max_tokens": 9, "temperature": 0.5, "seed": 1, "stop": ["."]}),
    );
    let asked = host.expect("llama:generate");
    assert_eq!(
        asked.data,
        json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
               "max_tokens": 9, "temperature": 0.5, "seed": 1, "stop": ["."],
               "timeout_ms": 600_000, "conversation_id": "-:c"})
    );
    host.chunk(&asked, json!({"text": "Hello"}));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "Hello"})));
    host.chunk(&asked, json!({"text": "!"}));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "!"})));
    host.end(&asked, generated("Hello!"));
    let end = end(&host, &call);
    assert!(end["request_id"].as_str().unwrap().starts_with("cmp-"), "{end}");
    assert_eq!(end["text"], "Hello!");
    assert_eq!(end["requested"], json!({"provider": "llama", "model": "default"}));
    assert_eq!(end["answered"], json!({"provider": "llama", "model": "ksi-tiny"}));
    assert_eq!(
        (&end["why"], &end["toy"], &end["attempts"]),
        (&json!("default model"), &json!(true), &json!(1))
    );
    assert_eq!((&end["usage"]["prompt_tokens"], &end["usage"]["total_tokens"]), (&json!(3), &json!(5)));
    assert_eq!(end["tried"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&end["tried"][0]["model"], &end["tried"][0]["outcome"]),
        (&json!({"provider": "llama", "model": "default"}), &json!("answered"))
    );
    assert_eq!((&end["timings"]["load_ms"], &end["conversation_id"]), (&json!(7.0), &json!("c")));
    assert_eq!(end["seed"], 11);
    assert!(end["queued_ms"].is_u64());
    assert!(!host.has_cancelled(&asked));
    assert!(host.emitted().is_empty(), "whoever waits for the answer needs no facts");
}

#[test]
fn a_model_by_name_is_asked_for_by_that_name() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "hi", "model": "llama/ksi-tiny"}));
    let asked = host.expect("llama:generate");
    assert_eq!(asked.data["model"], "ksi-tiny");
    generate(&host, &asked, "x");
    assert_eq!(end(&host, &call)["why"], "as requested");
}

#[test]
fn the_default_model_is_the_configured_one() {
    let host = host(json!({"default_model": "mock/fixed:yes it is"}));
    let end = host.request("completion:request", json!({"prompt": "hi"})).unwrap();
    assert_eq!((&end["text"], &end["why"]), (&json!("yes it is"), &json!("default model")));
}

#[test]
fn async_work_tells_its_start_its_text_and_its_result() {
    let host = default_host();
    let (id, position) = accept(&host, json!({"prompt": "one two", "model": "mock/echo"}));
    assert_eq!(position, 0);
    let facts = host.emitted();
    let names: Vec<_> = facts.iter().map(|(event, _)| event.as_str()).collect();
    assert_eq!(names, ["completion:started", "completion:delta", "completion:delta", "completion:result"]);
    assert!(facts.iter().all(|(_, data)| data["request_id"] == id.as_str()));
    assert_eq!(facts[1].1["text"], "one ");
    assert_eq!(facts[3].1["text"], "one two");
    assert_eq!(outcome(&host, &id), json!({"state": "done", "result": facts[3].1}));
}

#[test]
fn async_work_without_a_keeper_has_a_name_of_its_own() {
    let host = default_host();
    let done = host.request("completion:async", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    assert_eq!(done["text"], "x");
    assert!(done["request_id"].as_str().unwrap().starts_with("cmp-"));
}

#[test]
fn a_failure_is_told_and_kept_with_its_request() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x", "model": "mock/fail:conflict"}));
    let failed = host.expect_emitted("completion:error");
    assert_eq!((&failed["request_id"], &failed["refusal"]["code"]), (&json!(id), &json!("conflict")));
    let details = &failed["refusal"]["details"];
    assert_eq!((&details["request_id"], &details["attempts"]), (&json!(id), &json!(1)));
    assert_eq!(details["tried"][0]["outcome"], "conflict");
    let kept = outcome(&host, &id);
    assert_eq!((&kept["state"], &kept["refusal"]["code"]), (&json!("failed"), &json!("conflict")));
}

#[test]
fn what_is_under_way_is_not_begun_a_second_time() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x", "model": "mock/hang"}));
    let meta = Meta { idempotency_key: Some(id.clone()), ..Meta::default() };
    let again = host.open_as("completion:async", json!({"prompt": "x", "model": "mock/echo"}), &meta);
    assert_eq!(refusal(&host, &again).code, Code::Conflict);
    assert_eq!(outcome(&host, &id)["state"], "open");
}

#[test]
fn what_became_of_durable_work_is_asked_of_its_keeper() {
    let host = default_host();
    let info = |state: &str| {
        json!({"request_id": "w", "seq": 1, "event": "completion:async", "state": state,
        "origin": "session:1", "accepted_ms": 1})
    };
    let done = host.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    for (state, part, said) in [
        ("waiting", json!({}), json!({"state": "queued"})),
        ("leased", json!({}), json!({"state": "running"})),
        ("done", json!({"result": done}), json!({"state": "done", "result": done})),
        ("cancelled", json!({}), json!({"state": "cancelled"})),
    ] {
        let call = host.open("completion:get", json!({"request_id": "w", "wait_ms": 30}));
        let asked = host.expect("work:wait");
        assert_eq!(asked.data, json!({"request_id": "w", "timeout_ms": 30}));
        let mut answer = info(state);
        answer.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        host.reply(&asked, answer);
        let mut expected = json!({"request_id": "w"});
        expected.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        assert_eq!(host.next(&call), Answer::Reply(expected), "{state}");
    }
    let call = host.open("completion:get", json!({"request_id": "w"}));
    host.refuse(&host.expect("work:wait"), Refusal::not_found("work", "w"));
    assert_eq!(refusal(&host, &call).code, Code::NotFound);
    for (state, status) in
        [("cancelled", "cancelled"), ("leased", "cancelled"), ("done", "done"), ("dead", "failed")]
    {
        let call = host.open("completion:cancel", json!({"request_id": "w"}));
        host.reply(&host.expect("work:cancel"), info(state));
        assert_eq!(host.next(&call), Answer::Reply(json!({"request_id": "w", "status": status})));
    }
}

#[test]
fn whoever_waits_is_answered_when_the_request_ends_or_the_time_is_over() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    let open = host.request("completion:status", json!({})).unwrap();
    let id = &open["requests"][0]["request_id"];
    let patient = host.open("completion:wait", json!({ "request_id": id }));
    let brief = host.open("completion:wait", json!({"request_id": id, "timeout_ms": 30}));
    host.advance(std::time::Duration::from_millis(29));
    assert_eq!((host.try_next(&brief), host.try_next(&patient)), (None, None));
    host.advance(std::time::Duration::from_millis(1));
    assert_eq!(host.next(&brief), Answer::Reply(json!({"request_id": id, "state": "running"})));
    generate(&host, &asked, "hello");
    let done = json!({"request_id": id, "state": "done", "result": end(&host, &call)});
    assert_eq!(host.next(&patient), Answer::Reply(done.clone()));
    assert_eq!(host.request("completion:wait", json!({ "request_id": id })).unwrap(), done, "at once");
    let refused = host.request("completion:wait", json!({"request_id": id, "timeout_ms": -1})).unwrap_err();
    assert_eq!(refused.details.unwrap()["path"], "timeout_ms");
    // Durable work is waited for at its keeper.
    let call = host.open("completion:wait", json!({"request_id": "w", "timeout_ms": 30}));
    let asked = host.expect("work:wait");
    assert_eq!(asked.data, json!({"request_id": "w", "timeout_ms": 30}));
    host.refuse(&asked, Refusal::not_found("work", "w"));
    assert_eq!(refusal(&host, &call).code, Code::NotFound);
}

#[test]
fn what_is_unknown_is_not_found() {
    let host = default_host();
    for (event, data) in [
        ("completion:get", json!({"request_id": "cmp-0"})),
        ("completion:wait", json!({"request_id": "cmp-0"})),
        ("completion:cancel", json!({"request_id": "cmp-0"})),
        ("completion:status", json!({"request_id": "cmp-0"})),
        ("completion:request", json!({"prompt": "x", "model": "other/gpt"})),
        ("completion:async", json!({"prompt": "x", "model": "mock/gpt"})),
    ] {
        let refusal = host.request(event, data).unwrap_err();
        assert_eq!(refusal.code, Code::NotFound, "{event}");
        assert!(!refusal.hint.is_empty(), "{event} does not say what to do");
    }
}

#[test]
fn a_wrong_field_is_refused_with_its_path_before_anything_is_queued() {
    let host = default_host();
    for event in ["completion:request", "completion:async"] {
        let data = json!({"messages": [{"role": "boss", "content": "do it"}]});
        let refusal = host.request(event, data).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert!(refusal.message.contains("messages[0].role"), "{refusal}");
        let refusal = host.request(event, json!({"prompt": "x", "propmt": "y"})).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert!(refusal.message.contains("propmt"), "{refusal}");
    }
    assert!(!host.has_asked());
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn providers_are_listed_with_their_models_or_why_not() {
    let host = host(json!({"providers": {"openai": {"models": {"mine": {}}}}}));
    let call = host.open("completion:providers", json!({}));
    host.reply(&host.expect("llama:models"), json!({"models": [{"name": "ksi-tiny", "toy": true}]}));
    host.reply(&host.expect("openai:models"), json!({"models": [{"name": "gpt"}]}));
    let gone = || Refusal::new(Code::NoOwner, "nobody answers");
    host.refuse(&host.expect("anthropic:models"), gone());
    host.refuse(&host.expect("claude-cli:models"), gone());
    let Answer::Reply(listed) = host.next(&call) else { panic!("no reply") };
    let of = |name: &str| {
        let providers = listed["providers"].as_array().unwrap();
        providers.iter().find(|provider| provider["name"] == name).unwrap().clone()
    };
    assert_eq!((&of("llama")["models"], &of("llama")["concurrency"]), (&json!(["ksi-tiny"]), &json!(4)));
    assert_eq!(of("openai")["models"], json!(["gpt", "mine"]));
    assert_eq!((&of("mock")["concurrency"], &of("mock")["local"]), (&json!(16), &json!(true)));
    let claude = of("claude-cli");
    assert!(claude["unavailable"].as_str().unwrap().contains("not loaded"), "{claude}");
    assert!(claude["hint"].as_str().unwrap().contains("ksi plugin load claude-cli"), "{claude}");
    assert!(claude["models"].is_null());
}

#[test]
fn a_missing_provider_is_unavailable_and_not_an_unknown_event() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.refuse(&asked, ksi_sdk::prelude::Refusal::new(Code::UnknownEvent, "no llama:generate"));
    let refusal = refusal(&host, &call);
    assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, false));
    assert!(!host.has_asked());
}

#[test]
fn an_answer_that_cannot_be_read_is_not_blamed_on_the_asker() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    host.end(&host.expect("llama:generate"), json!({"model": 5}));
    assert_eq!(refusal(&host, &call).code, Code::Internal);
}

#[test]
fn mocks_do_what_their_names_say() {
    let host = default_host();
    let said = |model: &str, max_tokens: u32| {
        let data = json!({"prompt": "a b c", "model": model, "max_tokens": max_tokens});
        let end = host.request("completion:request", data).unwrap();
        (end["text"].as_str().unwrap().to_owned(), end["stop_reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(said("mock/echo", 9), ("a b c".into(), "stop".into()));
    assert_eq!(said("mock/echo", 2), ("a b ".into(), "length".into()));
    assert_eq!(said("mock/echo", 3), ("a b c".into(), "stop".into()));
    assert_eq!(said("mock/long:4", 9), ("w1 w2 w3 w4".into(), "stop".into()));
    assert_eq!(said("mock/fixed:x: y", 9), ("x: y".into(), "stop".into()));
    let call = ask(&host, json!({"prompt": "a b", "model": "mock/slow:10"}));
    assert_eq!(host.try_next(&call), None);
    host.advance(std::time::Duration::from_millis(10));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "a "})));
    assert_eq!(host.try_next(&call), None);
    host.advance(std::time::Duration::from_millis(10));
    assert_eq!(end(&host, &call)["text"], "a b");
}

#[test]
fn nothing_of_a_prompt_or_an_answer_is_logged() {
    let host = default_host();
    for model in ["mock/echo", "mock/fail:busy", "mock/fail-then-ok:1", "mock/nope", "mock/break:1"] {
        let call = ask(&host, json!({"prompt": "secret", "system": "secret", "model": model}));
        host.advance(std::time::Duration::from_secs(60));
        while !matches!(host.next(&call), Answer::End(_) | Answer::Refusal(_)) {}
    }
    assert!(!host.logged().iter().any(|(_, line)| line.contains("secret")));
}

#[test]
fn the_descriptor_has_help_for_every_event() {
    let descriptor = Host::descriptor();
    assert_eq!((descriptor.requests.len(), descriptor.emits.len()), (13, 5));
    for spec in &descriptor.requests {
        assert!(!spec.about.is_empty(), "{} has no help", spec.event.as_str());
    }
    for fact in &descriptor.emits {
        assert!(!fact.about.is_empty(), "{} has no help", fact.event.as_str());
    }
    let about = |name: &str| {
        let spec = descriptor.requests.iter().find(|spec| spec.event.as_str() == name).unwrap();
        (spec.about.clone(), spec.request["properties"]["prompt"].is_object(), spec.chunk.is_some())
    };
    let (request, work) = (about("completion:request"), about("completion:async"));
    assert!(request.1 && request.2 && !work.2);
    assert_ne!(request.0, work.0, "both would be described alike");
}

#[test]
fn a_configuration_that_makes_no_sense_stops_the_start() {
    for (config, key) in [
        (json!({"providers": {"llama": {"concurrency": 0}}}), "providers.llama.concurrency"),
        (json!({"providers": {"gpt": {"speed": 1}}}), "speed"),
        (json!({"providers": {"gpt": {"namespace": "G P T"}}}), "providers.gpt.namespace"),
        (json!({"aliases": {"fast": ["llama"]}}), "aliases.fast"),
        (json!({"aliases": {"a/b": "mock/echo"}}), "aliases.a/b"),
        (json!({"fallbacks": ["nobody/x"]}), "fallbacks"),
        (json!({"breaker": {"failures": 0}}), "breaker"),
        (json!({"default_model": "tiny"}), "default_model"),
        (json!({"queue_max": 0}), "queue_max"),
        (json!({"timeout_ms": 0}), "timeout_ms"),
        (json!({"usage_days": 0}), "usage_days"),
        (json!({"answer_tokens": 0}), "answer_tokens"),
        (json!({"retry": {"attempts": 11}}), "retry"),
        (json!({"retry": {"wait_max_ms": 0}}), "wait_max_ms"),
        (json!({"providers": {"gpt": {"models": {"m": {"cached_price": -1.0}}}}}), "providers.gpt.models.m"),
        (json!({"queue": 5}), "queue"),
    ] {
        let refusal = Host::start(config).err().unwrap();
        assert!(refusal.message.contains(key), "{key}: {refusal}");
    }
}
