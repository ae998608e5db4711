//! Conversations that are remembered, and what a model is given to read.

use ksi_sdk::prelude::Refusal;

use super::*;

fn remembered(prompt: &str) -> Value {
    json!({"prompt": prompt, "conversation_id": "c", "remember": true})
}

/// What the model is asked, as `role: text`.
fn read(asked: &Asked) -> Vec<String> {
    let messages = asked.data["messages"].as_array().unwrap();
    let line = |message: &Value| {
        format!("{}: {}", message["role"].as_str().unwrap(), message["content"].as_str().unwrap())
    };
    messages.iter().map(line).collect()
}

/// Asks, and lets the model answer; returns what it read and the result.
fn exchange(host: &Host, request: Value, answer: &str) -> (Vec<String>, Value) {
    let call = ask(host, request);
    if let Some(asked) = host.has_asked().then(|| host.expect("llama:generate")) {
        host.end(&asked, generated(answer));
        return (read(&asked), end(host, &call));
    }
    panic!("no model is asked");
}

fn knowing(context: u64) -> Host {
    host(json!({"providers": {"llama": {"models": {"*": {"context_length": context}}}}}))
}

#[test]
fn a_conversation_goes_on_where_it_was_left_over_restarts_too() {
    let host = knowing(4096);
    let (asked, first) = exchange(&host, remembered("my name is Ada"), "hello Ada");
    assert_eq!(asked, ["user: my name is Ada"]);
    assert_eq!((&first["remembered"], &first["context"]["history_messages"]), (&json!(true), &json!(0)));
    let host = unhooked(host.restart(json!({})).unwrap());
    host.script("llama:models", |_| Ok(json!({"models": [{"name": "m", "context_length": 4096}]})));
    let mut request = remembered("who am I?");
    request["system"] = json!("be kind");
    let (asked, second) = exchange(&host, request, "Ada");
    assert_eq!(asked, ["system: be kind", "user: my name is Ada", "assistant: hello Ada", "user: who am I?"]);
    assert_eq!(
        (&second["context"]["history_messages"], &second["context"]["dropped_messages"]),
        (&json!(2), &json!(0))
    );
    let (asked, _) = exchange(&host, json!({"prompt": "x", "conversation_id": "c"}), "y");
    assert_eq!(asked, ["user: x"], "without the wish nothing is remembered");
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 4);
    assert_eq!(
        host.request("completion:forget", json!({"conversation_id": "c"})).unwrap(),
        json!({"messages": 4})
    );
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history, json!({"messages": []}));
    assert!(!host.space().keys().iter().any(|key| key.contains("said/")), "{:?}", host.space().keys());
}

#[test]
fn no_tenant_reads_what_another_said() {
    let host = knowing(4096);
    let as_tenant = |tenant: &str| Meta {
        caller: Some(ksi_sdk::protocol::frame::Caller {
            principal: format!("user:{tenant}"),
            tenant: Some(tenant.into()),
            every_tenant: false,
        }),
        ..Meta::default()
    };
    for tenant in ["a", "b"] {
        let call = host.open_as("completion:request", remembered(tenant), &as_tenant(tenant));
        let asked = host.expect("llama:generate");
        assert_eq!(read(&asked), [format!("user: {tenant}")]);
        host.end(&asked, generated("x"));
        end(&host, &call);
    }
    let call = host.open_as("completion:history", json!({"conversation_id": "c"}), &as_tenant("b"));
    let Answer::Reply(history) = host.next(&call) else { panic!("no reply") };
    assert_eq!(history["messages"][0]["content"], "b");
}

#[test]
fn what_does_not_fit_is_left_out_and_told() {
    let host = knowing(4096);
    for n in 0..4 {
        exchange(&host, remembered(&format!("question {n} {}", "x".repeat(400))), &"y".repeat(400));
    }
    let mut request = remembered("and now?");
    request["context_tokens"] = json!(300);
    request["memories"] = json!([{"name": "rule", "text": "z".repeat(40)}]);
    // There is more than fits for sure, so the model's own tokenizer counts: here a
    // token is four bytes.
    host.script("llama:tokenize", |asked| {
        let count = asked.data["text"].as_str().unwrap().len() / 4;
        Ok(json!({"tokens": [], "count": count}))
    });
    let call = ask(&host, request);
    let asked = host.expect("llama:generate");
    let lines = read(&asked);
    assert!(lines[0].starts_with("system: # rule\nzzz"), "{lines:?}");
    assert!(lines[1].starts_with("user: question 3"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "user: and now?");
    host.end(&asked, generated("x"));
    let context = end(&host, &call)["context"].clone();
    assert_eq!(context["counted_by"], "llama:tokenize");
    assert_eq!((&context["dropped_messages"], &context["history_messages"]), (&json!(6), &json!(2)));
    assert_eq!((&context["dropped_memories"], &context["room"]), (&json!([]), &json!(300)));
}

#[test]
fn durable_work_that_is_handed_over_again_is_remembered_once() {
    let host = knowing(4096);
    let meta = Meta { idempotency_key: Some("work-1".into()), ..Meta::default() };
    for round in 0..2 {
        let call = host.open_as("completion:async", remembered("hi"), &meta);
        let asked = host.expect("llama:generate");
        assert_eq!(read(&asked), ["user: hi"], "round {round}");
        host.end(&asked, generated("hello"));
        assert!(matches!(host.next(&call), Answer::Reply(_)));
    }
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn a_failed_request_is_not_remembered() {
    let host = knowing(4096);
    let call = ask(&host, remembered("hi"));
    host.refuse(&host.expect("llama:generate"), ksi_sdk::prelude::Refusal::new(Code::Denied, "no"));
    refusal(&host, &call);
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history, json!({"messages": []}));
}

/// A conversation of so many messages before the last turn, each of about 100 tokens.
fn talk(earlier: usize) -> Vec<Value> {
    let roles = ["user", "assistant"].into_iter().cycle();
    let turn =
        |(n, role): (usize, &str)| json!({"role": role, "content": format!("{n} {}", "x".repeat(390))});
    let mut messages = vec![json!({"role": "system", "content": "be kind"})];
    messages.extend((0..earlier).zip(roles).map(turn));
    messages.push(json!({"role": "user", "content": "and now?"}));
    messages
}

/// Lets the model's tokenizer count: a token is four bytes.
fn four_bytes_each(asked: &Asked) -> Result<Value, ksi_sdk::prelude::Refusal> {
    Ok(json!({"tokens": [], "count": asked.data["text"].as_str().unwrap().len() / 4}))
}

#[test]
fn a_request_that_lets_itself_be_trimmed_loses_its_oldest_turns_and_says_so() {
    let host = knowing(900);
    host.script("llama:tokenize", four_bytes_each);
    let request = |more: Value| {
        let mut request = json!({"messages": talk(20), "max_tokens": 200});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    for (more, room, kept) in
        [(json!({"trim": true}), 700, 6), (json!({"trim": true, "context_tokens": 300}), 300, 2)]
    {
        let (asked, end) = exchange(&host, request(more), "x");
        assert_eq!((asked.len(), asked[0].as_str()), (kept + 2, "system: be kind"));
        assert!(asked[1].starts_with(&format!("user: {} ", 20 - kept)), "{asked:?}");
        assert_eq!(asked.last().unwrap(), "user: and now?");
        let context = &end["context"];
        assert_eq!(
            (&context["room"], &context["dropped_messages"], &context["history_messages"]),
            (&json!(room), &json!(20 - kept), &json!(kept))
        );
        assert_eq!(context["counted_by"], "llama:tokenize");
    }
    let refused = host.request("completion:request", request(json!({}))).unwrap_err();
    assert_eq!(refused.code, Code::TooLarge, "{refused}");
    assert!(refused.message.contains("context has 900") && refused.hint.contains("`trim`"), "{refused}");
    assert_eq!(refused.details.unwrap()["context"], 900);
}

#[test]
fn what_a_model_finds_too_large_says_how_it_could_be_trimmed() {
    let host = default_host();
    let full = || ksi_sdk::prelude::Refusal::new(Code::TooLarge, "it is full").hint("load it with more");
    for (trim, hint) in
        [(false, "`trim` leaves out the oldest messages; or load it with more"), (true, "load it with more")]
    {
        let call = ask(&host, json!({"messages": talk(2), "model": "openai/m", "trim": trim}));
        host.script("openai:models", |_| Ok(json!({"models": []})));
        host.refuse(&host.expect("openai:generate"), full());
        assert_eq!(refusal(&host, &call).hint, hint);
    }
}

#[test]
fn what_is_remembered_and_what_is_said_before_the_last_turn_are_one_history() {
    let host = knowing(4096);
    exchange(&host, remembered("first"), "one");
    let messages = json!([{"role": "user", "content": "second"}, {"role": "assistant", "content": "two"},
                          {"role": "user", "content": "third"}]);
    let (asked, end) = exchange(
        &host,
        json!({"messages": messages, "conversation_id": "c", "remember": true, "trim": true}),
        "three",
    );
    let said = ["user: first", "assistant: one", "user: second", "assistant: two", "user: third"];
    assert_eq!(asked, said);
    assert_eq!(end["context"]["history_messages"], 4);
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 6);
}

#[test]
fn a_tokenizer_is_never_asked_for_more_than_a_few_texts_at_once() {
    let host = knowing(4096);
    let call = ask(&host, json!({"messages": talk(400), "trim": true}));
    // It counts, and refuses what is beyond sixteen.
    let (mut counted, mut most) = (0, 0);
    while counted < 402 {
        let mut held = Vec::new();
        while host.has_asked() {
            held.push(host.expect("llama:tokenize"));
        }
        most = most.max(held.len());
        counted += held.len();
        for (place, asked) in held.iter().enumerate() {
            match place < 16 {
                true => host.reply(asked, four_bytes_each(asked).unwrap()),
                false => host.refuse(asked, ksi_sdk::prelude::Refusal::new(Code::Busy, "too many")),
            }
        }
    }
    assert!((2..=16).contains(&most), "{most} at once");
    let asked = host.expect("llama:generate");
    let lines = read(&asked);
    assert_eq!(lines.len(), 30);
    assert!(lines[1].starts_with("user: 372 "), "in their order: {}", lines[1]);
    host.end(&asked, generated("x"));
    let context = end(&host, &call)["context"].clone();
    assert_eq!(
        (&context["counted_by"], &context["dropped_messages"]),
        (&json!("llama:tokenize"), &json!(372))
    );
}

#[test]
fn where_the_tokenizer_is_away_tokens_are_estimated() {
    let host = knowing(1000);
    host.script("llama:tokenize", |_| Err(ksi_sdk::prelude::Refusal::new(Code::Busy, "not now")));
    let (asked, end) = exchange(&host, json!({"messages": talk(20), "trim": true}), "x");
    assert_eq!((asked.len(), &end["context"]["counted_by"]), (8, &json!("estimate")));
}

#[test]
fn a_fallback_reads_what_it_has_room_for_and_hooks_see_who_is_asked() {
    let host = host(json!({"retry": {"jitter": false}, "providers": {
        "openai": {"models": {"big": {"context_length": 100_000}}},
        "anthropic": {"models": {"small": {"context_length": 400}}}
    }}));
    let seen = std::rc::Rc::new(RefCell::new(Vec::new()));
    let told = seen.clone();
    host.script("completion:pre_llm_prompt", move |asked| {
        let mut prompt = asked.data.clone();
        let model = prompt["model"]["model"].as_str().unwrap().to_owned();
        let last = prompt["messages"].as_array().unwrap().len() - 1;
        assert_eq!(prompt["messages"][last]["content"], "and now?", "as it was before");
        prompt["messages"][last]["content"] = json!(format!("to {model}"));
        told.borrow_mut().push((model, last + 1));
        Ok(prompt)
    });
    let call = ask(
        &host,
        json!({"messages": talk(20), "trim": true, "model": "openai/big", "fallbacks": ["anthropic/small"]}),
    );
    for _ in 0..3 {
        let asked = host.expect("openai:generate");
        assert_eq!((read(&asked).len(), read(&asked).pop().unwrap()), (22, "user: to big".into()));
        host.refuse(&asked, ksi_sdk::prelude::Refusal::new(Code::Unavailable, "down"));
        host.advance(std::time::Duration::from_secs(1));
    }
    let asked = host.expect("anthropic:generate");
    assert_eq!((read(&asked).len(), read(&asked).pop().unwrap()), (4, "user: to small".into()));
    host.end(&asked, generated("x"));
    let end = end(&host, &call);
    assert_eq!((&end["attempts"], &end["context"]["dropped_messages"]), (&json!(4), &json!(18)));
    assert_eq!(end["context"]["room"], 300);
    let seen = seen.borrow();
    assert_eq!(*seen, [("big".to_owned(), 22), ("small".to_owned(), 4)], "once for each, retries or not");
}

#[test]
fn a_fallback_reserves_what_it_reads_itself() {
    let host = host(json!({"retry": {"attempts": 0}, "budgets": {"few": {"tokens": 3000}}, "providers": {
        "openai": {"models": {"big": {"context_length": 100_000}}},
        "anthropic": {"models": {"small": {"context_length": 400}}}
    }}));
    let request = json!({"messages": talk(20), "trim": true, "max_tokens": 50, "model": "openai/big",
                         "fallbacks": ["anthropic/small"]});
    let call = ask(&host, request);
    let reserved = || {
        let usage = host.request("completion:usage", json!({})).unwrap();
        usage["budgets"][0]["reserved"]["tokens"].as_u64().unwrap()
    };
    let asked = host.expect("openai:generate");
    assert!(reserved() > 2000, "{}", reserved());
    host.refuse(&asked, ksi_sdk::prelude::Refusal::new(Code::Unavailable, "down"));
    let asked = host.expect("anthropic:generate");
    assert!((250..400).contains(&reserved()), "{}", reserved());
    host.end(&asked, generated("x"));
    end(&host, &call);
    assert_eq!(reserved(), 0);
}

#[test]
fn an_exchange_that_was_cancelled_or_failed_is_no_part_of_the_conversation() {
    let host = default_host();
    host.script("llama:models", |_| Ok(json!({"models": []})));
    let say = |prompt: &str| ask(&host, json!({"prompt": prompt, "conversation_id": "c", "remember": true}));
    let kept =
        || host.request("completion:history", json!({"conversation_id": "c"})).unwrap()["messages"].clone();
    let first = say("one");
    generate(&host, &host.expect("llama:generate"), "1");
    end(&host, &first);
    let before = kept();
    assert_eq!(before.as_array().unwrap().len(), 2);
    let cancelled = say("two");
    host.chunk(&host.expect("llama:generate"), json!({"text": "half an"}));
    host.cancel(&cancelled);
    assert_eq!(kept(), before);
    let failed = say("three");
    let asked = host.expect("llama:generate");
    host.chunk(&asked, json!({"text": "half an"}));
    host.refuse(&asked, Refusal::new(Code::PluginRestarted, "the worker died"));
    host.next(&failed);
    assert_eq!(refusal(&host, &failed).code, Code::PluginRestarted);
    assert_eq!(kept(), before);
    let next = say("four");
    let asked = host.expect("llama:generate");
    let read: Vec<_> = asked.data["messages"].as_array().unwrap().iter().map(|one| &one["content"]).collect();
    assert_eq!(read, ["one", "1", "four"]);
    generate(&host, &asked, "4");
    end(&host, &next);
    assert_eq!(kept().as_array().unwrap().len(), 4);
}

#[test]
fn of_a_request_with_more_messages_than_are_kept_the_last_are() {
    let host = default_host();
    host.script("llama:models", |_| Ok(json!({"models": []})));
    let messages: Vec<_> = (0..500).map(|n| json!({"role": "user", "content": n.to_string()})).collect();
    let request = json!({"messages": messages, "conversation_id": "c", "remember": true});
    let work = |host: &Host| {
        let meta = Meta { idempotency_key: Some("work-x".into()), ..Meta::default() };
        let call = host.open_as("completion:async", request.clone(), &meta);
        generate(host, &host.expect("llama:generate"), "the end");
        assert!(matches!(host.next(&call), Answer::Reply(_)));
        let kept = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
        let kept = kept["messages"].as_array().unwrap().clone();
        assert_eq!((kept.len(), &kept[0]["content"]), (400, &json!("101")));
        assert_eq!(kept[399]["content"], "the end");
    };
    work(&host);
    work(&host);
}
