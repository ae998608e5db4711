//! Set, get, delete, list and batch.

use super::*;

#[test]
fn a_value_comes_back_exactly_as_it_was() {
    let host = host();
    let deep = (0..48).fold(json!(0), |inner, _| json!([inner]));
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.0),
        json!(-0.0),
        json!(1e300),
        json!(""),
        json!("ä\0\u{10ffff}"),
        json!([]),
        json!({}),
        json!({"z": 1, "a": {"": [null, {"b": [1.5, 2]}]}}),
        deep,
    ];
    for value in &values {
        set(&host, "k", value.clone());
        let back = get(&host, "k").unwrap();
        assert_eq!(back.to_string(), value.to_string());
        assert_eq!(back.is_f64(), value.is_f64());
        let listed = ask(&host, "state:list", json!({"values": true}));
        assert_eq!(listed["items"][0]["value"].to_string(), value.to_string());
    }
    set(&host, "k", values[13].clone());
    let host = host.restart(json!({})).unwrap();
    assert_eq!(get(&host, "k").unwrap().to_string(), values[13].to_string());
}

#[test]
fn what_is_not_there_is_not_found_and_null_is_there() {
    let host = host();
    let nothing = json!({"found": false, "value": null, "version": 0, "metadata": {}});
    assert_eq!(ask(&host, "state:get", json!({"key": "k"})), nothing);
    let version = set(&host, "k", json!(null));
    let answer = ask(&host, "state:get", json!({"namespace": "global", "key": "k"}));
    assert_eq!(answer, json!({"found": true, "value": null, "version": version, "metadata": {}}));
    assert_eq!(refused(&host, "state:set", json!({"key": "k"})).code, Code::InvalidPayload);
    assert_eq!(
        refused(&host, "state:set", json!({"key": "k", "value": 1, "ttl": 2})).code,
        Code::InvalidPayload
    );
}

#[test]
fn metadata_is_kept_with_its_value_and_goes_with_it() {
    let host = host();
    let metadata = json!({"a": [1, {"b": null}], "by": "me"});
    ask(&host, "state:set", json!({"key": "k", "value": 1, "metadata": metadata}));
    assert_eq!(ask(&host, "state:get", json!({"key": "k"}))["metadata"], metadata);
    let host = host.restart(json!({})).unwrap();
    let listed = ask(&host, "state:list", json!({"values": true}));
    assert_eq!(listed["items"][0]["metadata"], metadata);
    set(&host, "k", json!(2));
    assert_eq!(ask(&host, "state:get", json!({"key": "k"}))["metadata"], json!({}));
}

#[test]
fn an_expected_version_guards_a_set() {
    let host = host();
    let guarded = |version: u64| json!({"key": "k", "value": version, "expected_version": version});
    let first = ask(&host, "state:set", guarded(0))["version"].as_u64().unwrap();
    let refusal = refused(&host, "state:set", guarded(0));
    assert_eq!(refusal.code, Code::Conflict);
    let details = refusal.details.unwrap();
    assert_eq!(details["version"], first);
    assert_eq!((&details["namespace"], &details["key"]), (&json!("global"), &json!("k")));
    let second = ask(&host, "state:set", guarded(first))["version"].as_u64().unwrap();
    assert!(second > first);
    assert_eq!(refused(&host, "state:set", guarded(first)).details.unwrap()["version"], second);
    assert_eq!(get(&host, "k"), Some(json!(first)));
    ask(&host, "state:delete", json!({"key": "k"}));
    assert_eq!(refused(&host, "state:set", guarded(second)).details.unwrap()["version"], 0);
    assert!(ask(&host, "state:set", guarded(0))["version"].as_u64().unwrap() > second, "versions only rise");
}

#[test]
fn a_deleted_value_is_gone_for_good() {
    let host = host();
    assert_eq!(ask(&host, "state:delete", json!({"key": "k"})), json!({"deleted": false}));
    let version = set(&host, "k", json!(1));
    let guarded = |expected: u64| json!({"key": "k", "expected_version": expected});
    assert_eq!(refused(&host, "state:delete", guarded(version + 1)).details.unwrap()["version"], version);
    assert_eq!(refused(&host, "state:delete", guarded(0)).code, Code::Conflict);
    assert_eq!(ask(&host, "state:delete", guarded(version)), json!({"deleted": true}));
    assert_eq!(refused(&host, "state:delete", guarded(version)).details.unwrap()["version"], 0);
    assert_eq!(ask(&host, "state:delete", guarded(0)), json!({"deleted": false}));
    assert!(host.space().keys().is_empty(), "{:?}", host.space().keys());
    let host = host.restart(json!({})).unwrap();
    assert_eq!(get(&host, "k"), None);
}

#[test]
fn names_that_look_alike_are_not_the_same() {
    let host = host();
    let names = ["a", "a/b", "/", "..", "a\0", "\0a", "\u{1}", "\u{1}\u{1}", "b", "b/c", "*", "ä", "a\nb"];
    let longest = "ä".repeat(64);
    let mut expected = Vec::new();
    for namespace in names.into_iter().chain([longest.as_str()]) {
        for key in names {
            let value = json!([namespace, key]);
            ask(&host, "state:set", json!({"namespace": namespace, "key": key, "value": value}));
            expected.push((namespace.to_owned(), key));
        }
    }
    let host = host.restart(json!({})).unwrap();
    for (namespace, key) in expected {
        let answer = ask(&host, "state:get", json!({"namespace": namespace, "key": key}));
        assert_eq!(answer["value"], json!([namespace, key]));
    }
    let listed = ask(&host, "state:list", json!({"namespace": "a"}));
    let mut sorted = names;
    sorted.sort_unstable();
    let keys: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, sorted, "all of one namespace, in the order of their bytes");
}

#[test]
fn a_list_comes_in_pages() {
    let host = host();
    let names: Vec<String> = (0..25).map(|n| format!("key-{n:02}")).collect();
    for name in &names {
        set(&host, name, json!(name));
    }
    set(&host, "other", json!(0));
    let mut seen = Vec::new();
    let mut after = Value::Null;
    let mut pages = 0;
    while pages == 0 || !after.is_null() {
        let ask_for = json!({"prefix": "key-", "limit": 10, "after": after, "values": pages == 1});
        let page = ask(&host, "state:list", ask_for);
        for item in page["items"].as_array().unwrap() {
            assert_eq!(item.get("value").is_some(), pages == 1);
            assert_eq!(item["size"], 7, "a text of 6 bytes");
            seen.push(item["key"].as_str().unwrap().to_owned());
        }
        after = page["next"].clone();
        pages += 1;
    }
    assert_eq!((seen, pages), (names, 3));
    let page = ask(&host, "state:list", json!({"prefix": "key-", "limit": 25}));
    assert_eq!(page.get("next"), None, "a full page is the last where nothing follows");
}

#[test]
fn a_list_can_be_narrowed_by_a_pattern() {
    let host = host();
    for key in ["user:1:name", "user:1:mail", "user:2:name", "user:*", "team:1:name"] {
        set(&host, key, json!(1));
    }
    let like = |pattern: &str, prefix: &str| {
        let page = ask(&host, "state:list", json!({"pattern": pattern, "prefix": prefix}));
        page["items"].as_array().unwrap().iter().map(|item| item["key"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(like("user:*:name", ""), ["user:1:name", "user:2:name"]);
    assert_eq!(like("*:1:*", "user:"), ["user:1:mail", "user:1:name"]);
    assert_eq!(like(r"user:\*", ""), ["user:*"]);
    assert_eq!(like("user:?:name", "user:2"), ["user:2:name"]);
    assert_eq!(like("team:*", "user:"), [""; 0]);
}

#[test]
fn a_page_of_large_values_is_shorter() {
    let host = host();
    let large = "x".repeat(900_000);
    for n in 0..6 {
        set(&host, &n.to_string(), json!(large));
    }
    let page = ask(&host, "state:list", json!({"values": true}));
    assert_eq!(page["items"].as_array().unwrap().len(), 4);
    assert_eq!(page["next"], "3");
    let page = ask(&host, "state:list", json!({"values": true, "after": "3"}));
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(ask(&host, "state:list", json!({}))["items"].as_array().unwrap().len(), 6);
}

#[test]
fn a_batch_is_done_as_a_whole() {
    let host = host();
    let (a, b) = (set(&host, "a", json!(1)), set(&host, "b", json!(1)));
    let answer = ask(
        &host,
        "state:batch",
        json!({"operations": [
            {"set": {"key": "a", "value": 2, "expected_version": a}},
            {"delete": {"key": "b"}},
            {"delete": {"key": "nothing"}},
            {"set": {"namespace": "n", "key": "a", "value": 3, "metadata": {"m": 1}}},
            {"check": {"key": "c", "version": 0}},
        ]}),
    );
    assert_eq!(answer["deleted"], 1);
    assert!(answer["version"].as_u64().unwrap() > b);
    for (namespace, key, value) in
        [("global", "a", json!(2)), ("global", "b", json!(null)), ("n", "a", json!(3))]
    {
        let answer = ask(&host, "state:get", json!({"namespace": namespace, "key": key}));
        assert_eq!(answer["value"], value);
    }
    assert_eq!(ask(&host, "state:get", json!({"key": "a"}))["version"], answer["version"]);
}

#[test]
fn a_batch_with_a_condition_that_fails_does_nothing() {
    let host = host();
    let a = set(&host, "a", json!(1));
    let before = host.space().keys();
    for condition in [
        json!({"check": {"key": "a", "version": a + 1}}),
        json!({"check": {"key": "b", "version": 1}}),
        json!({"set": {"key": "a", "value": 2, "expected_version": 0}}),
        json!({"delete": {"key": "a", "expected_version": a + 1}}),
    ] {
        let operations = json!([{"set": {"key": "c", "value": 1}}, condition]);
        let refusal = refused(&host, "state:batch", json!({"operations": operations}));
        assert_eq!(refusal.code, Code::Conflict, "{operations}");
        assert!(refusal.details.unwrap()["version"].is_u64());
    }
    assert_eq!(host.space().keys(), before);
    let only = json!({"operations": [{"check": {"key": "a", "version": a}}]});
    assert_eq!(ask(&host, "state:batch", only), json!({"version": 0, "deleted": 0}));
}

#[test]
fn changes_are_told_as_facts_without_their_values() {
    let host = host();
    let version = set(&host, "k", json!("secret"));
    let fact = host.expect_emitted("state:changed");
    assert_eq!(
        fact,
        json!({"namespace": "global", "key": "k", "version": version, "deleted": false, "size": 7})
    );
    ask(&host, "state:delete", json!({"key": "k"}));
    let fact = host.expect_emitted("state:changed");
    assert_eq!((&fact["deleted"], &fact["size"]), (&json!(true), &json!(0)));
    ask(&host, "state:delete", json!({"key": "k"}));
    assert!(host.emitted().is_empty(), "nothing changed");
}

#[test]
fn what_an_asker_leaves_behind_is_done_all_the_same() {
    let host = host();
    let call = host.open("state:set", json!({"key": "k", "value": 1}));
    host.cancel(&call);
    assert_eq!(get(&host, "k"), Some(json!(1)));
}

#[test]
fn a_hundred_thousand_keys_are_known_again_after_a_start() {
    let host = host();
    for page in 0..400 {
        let operation = |n| json!({"set": {"key": format!("{page:03}-{n:03}"), "value": n}});
        let operations: Vec<_> = (0..250).map(operation).collect();
        ask(&host, "state:batch", json!({"operations": operations}));
    }
    let host = host.restart(json!({})).unwrap();
    let page = ask(&host, "state:list", json!({"after": "398-249", "limit": 1000}));
    assert_eq!(page["items"].as_array().unwrap().len(), 250);
    assert_eq!(get(&host, "399-249"), Some(json!(249)));
}
