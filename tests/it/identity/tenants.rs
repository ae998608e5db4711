//! Tenants: none sees, hears or changes anything of another's.

use ksi_protocol::{Frame, frame::Class, token::Token};
use ksi_tests::{Daemon, Home, frames::Frames, library, wait_until};
use serde_json::{Value, json};

use super::{NO_MODEL, code, create, frames_as, lines_as, ready};

/// Names that are easily taken for each other; those that are no names are
/// refused before anything is kept under them.
const NAMES: [&str; 7] = ["a-b", "a_b", "a", "a.b", "租户", "local2", "x_a"];

const CAN: [&str; 9] = [
    "state.*",
    "work.*",
    "echo.use",
    "completion.*",
    "checkpoint.read",
    "checkpoint.use",
    "model.use",
    "token.use",
    "system.read",
];

fn tokens(daemon: &Daemon) -> Vec<(&'static str, Token)> {
    NAMES.iter().map(|name| (*name, create(daemon, &CAN, Some(name)).token)).collect()
}

#[test]
fn a_name_that_leads_anywhere_is_no_tenant() {
    let daemon = ready();
    let long = "t".repeat(65);
    for name in ["", "../x", "a/b", "..", ".hidden", "a b", "a\0b", "a\nb", &long] {
        let ask = json!({"name": "x", "can": ["echo.use"], "tenant": name});
        assert_eq!(code(&daemon.ask("token:create", ask)), "invalid_payload", "{name:?}");
    }
}

#[test]
fn the_same_key_under_each_tenant_is_another_value_and_another_queue() {
    let daemon = ready();
    let tokens = tokens(&daemon);
    let place = |key: &str| json!({"namespace": "n", "key": key});
    for (name, token) in &tokens {
        let mut lines = lines_as(&daemon, token);
        let set = json!({"namespace": "n", "key": "k", "value": name, "expected_version": 0});
        assert_eq!(code(&lines.ask("state:set", set)), "ok", "nobody has it yet: {name}");
        let push = json!({"namespace": "n", "queue": "q", "data": name});
        assert_eq!(lines.ask("state:push", push).unwrap()["length"], 1, "{name}");
    }
    for (name, token) in &tokens {
        let mut lines = lines_as(&daemon, token);
        assert_eq!(lines.ask("state:get", place("k")).unwrap()["value"], *name);
        let list = lines.ask("state:list", json!({"namespace": "n"})).unwrap();
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{name}: {list}");
        let popped = lines.ask("state:pop", json!({"namespace": "n", "queue": "q", "count": 9})).unwrap();
        let items = popped["items"].as_array().unwrap();
        assert!(items.len() == 1 && items[0]["data"] == *name, "{name}: {popped}");
    }
    // One deletes its own, and all others keep theirs.
    let mut first = lines_as(&daemon, &tokens[0].1);
    assert_eq!(first.ask("state:delete", place("k")).unwrap()["deleted"], true);
    let mut second = lines_as(&daemon, &tokens[1].1);
    assert_eq!(second.ask("state:get", place("k")).unwrap()["found"], true);
    // The owner's is his own, too, and all survive a restart.
    assert_eq!(daemon.ask("state:get", place("k")).unwrap()["found"], false);
    let daemon = daemon.kill().start();
    daemon.ready();
    for (name, token) in &tokens[1..] {
        let mut lines = lines_as(&daemon, token);
        assert_eq!(lines.ask("state:get", place("k")).unwrap()["value"], *name);
    }
}

/// The next event; `None` once the answer to a request that is asked now is there.
fn heard(frames: &mut Frames) -> Vec<Value> {
    frames.send(&ksi_tests::frames::request(99, "echo:say", &json!({"text": "that was all"})));
    let mut events = Vec::new();
    loop {
        match frames.receive() {
            Frame::Event(event) => events.push(ksi_tests::frames::value(&event.data)),
            Frame::Reply { id: 99, .. } => return events,
            Frame::Gap(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn facts_are_heard_by_their_tenant_and_by_whoever_sees_all() {
    let daemon = ready();
    let [a, b] = ["a-b", "a_b"].map(|tenant| create(&daemon, &CAN, Some(tenant)).token);
    let mut ears = [frames_as(&daemon, &a), frames_as(&daemon, &b), daemon.frames()];
    for ear in &mut ears {
        ear.subscribe(1, "state:**", Class::Live);
    }
    for (token, key) in [(&a, "of a"), (&b, "of b")] {
        let set = json!({"namespace": "n", "key": key, "value": 1});
        lines_as(&daemon, token).ask("state:set", set).unwrap();
    }
    let keys = |events: Vec<Value>| -> Vec<String> {
        events.iter().map(|event| event["key"].as_str().unwrap().to_owned()).collect()
    };
    let [a, b, owner] = ears.map(|mut ear| keys(heard(&mut ear)));
    assert_eq!((a, b), (vec!["of a".to_owned()], vec!["of b".to_owned()]));
    assert_eq!(owner, ["of a", "of b"]);
}

/// A daemon with a plugin that does as it is told, in a child.
fn with_gossip(more: &str) -> Daemon {
    let library = library("fixture_faulty");
    let events = ["ok", "gossip", "call", "flooded"]
        .map(|action| format!("[events.\"faulty:{action}\"]\npermission = \"faulty.use\"\n"));
    let daemon = Home::with_config(&format!(
        "{NO_MODEL}[plugins.faulty]\nlibrary = \"{}\"\nmay_call = [\"echo:*\"]\nemits = [\"faulty:*\"]\n{more}\n{}",
        library.display(),
        events.concat()
    ));
    let daemon = daemon.start();
    daemon.ready();
    daemon
}

#[test]
fn a_plugin_tells_facts_of_those_who_have_to_do_with_it_and_of_nobody_else() {
    let can = ["faulty.use", "echo.use"];
    let daemon = with_gossip("");
    let [a, b] = ["a", "b"].map(|tenant| create(&daemon, &can, Some(tenant)).token);
    let mut ear = frames_as(&daemon, &b);
    ear.subscribe(1, "faulty:flooded", Class::Live);
    let gossip = |n: u64| {
        let told = lines_as(&daemon, &a).ask("faulty:gossip", json!({"of": "b", "n": n}));
        assert_eq!(code(&told), "ok", "it is asked, and what comes of it is another matter");
    };
    let mut heard_by_b = || heard(&mut ear).iter().map(|fact| fact["n"].clone()).collect::<Vec<_>>();
    gossip(1);
    assert!(heard_by_b().is_empty(), "it knows nothing of b");
    wait_until("the log says so", || daemon.log().contains("may not tell `faulty:flooded` of a tenant"));
    lines_as(&daemon, &b).ask("faulty:ok", json!({})).unwrap();
    gossip(2);
    assert_eq!(heard_by_b(), [2], "b has asked it something");
    daemon.ask("plugin:restart", json!({"name": "faulty"})).unwrap();
    gossip(3);
    assert!(heard_by_b().is_empty(), "what is started anew knows nobody");

    let daemon = with_gossip("every_tenant = true");
    let [a, b] = ["a", "b"].map(|tenant| create(&daemon, &can, Some(tenant)).token);
    let mut ear = frames_as(&daemon, &b);
    ear.subscribe(1, "faulty:flooded", Class::Live);
    lines_as(&daemon, &a).ask("faulty:gossip", json!({"of": "b", "n": 4})).unwrap();
    assert_eq!(heard(&mut ear).len(), 1, "the manifest lets it");
    let config = std::fs::read_to_string(daemon.home.paths().config_file).unwrap();
    daemon.reconfigure(&config.replace("every_tenant = true", "")).unwrap();
    lines_as(&daemon, &a).ask("faulty:gossip", json!({"of": "b", "n": 5})).unwrap();
    assert!(heard(&mut ear).is_empty(), "and does no more");
}

#[test]
fn a_plugin_that_asks_on_behalf_of_somebody_asks_what_that_one_may() {
    let daemon = with_gossip("");
    let ask = |can: &[&str], on_behalf: bool| {
        let token = create(&daemon, can, None).token;
        let call = json!({"event": "echo:say", "data": {"text": "hi"}, "on_behalf": on_behalf});
        lines_as(&daemon, &token).ask("faulty:call", call)
    };
    assert_eq!(code(&ask(&["faulty.use"], false)), "ok", "with a right of its own");
    let refused = ask(&["faulty.use"], true);
    assert_eq!(code(&refused), "denied");
    assert_eq!(refused.unwrap_err()["details"]["permission"], "echo.use");
    assert_eq!(code(&ask(&["faulty.use", "echo.use"], true)), "ok");
}

#[test]
fn work_is_seen_and_touched_by_its_tenant_alone() {
    let daemon = ready();
    let [a, b] = ["a-b", "a_b"].map(|tenant| create(&daemon, &CAN, Some(tenant)).token);
    let (mut a, mut b) = (lines_as(&daemon, &a), lines_as(&daemon, &b));
    // The same idempotency key under two tenants is two requests.
    let keep = |lines: &mut ksi_tests::Lines, text: &str| {
        lines.send(&json!({"event": "echo:keep", "data": {"text": text}, "idempotency_key": "once"}));
        let line = lines.receive();
        line["accepted"]["request_id"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    let (of_a, of_b) = (keep(&mut a, "a"), keep(&mut b, "b"));
    assert_ne!(of_a, of_b);
    assert_eq!(keep(&mut a, "a"), of_a);
    let done = a.ask("work:wait", json!({"request_id": of_a})).unwrap();
    assert_eq!((&done["state"], &done["tenant"]), (&json!("done"), &json!("a-b")));
    for event in ["work:get", "work:wait", "work:cancel", "work:retry", "work:drop"] {
        let answer = b.ask(event, json!({"request_id": of_a}));
        assert_eq!(code(&answer), "not_found", "{event}: {answer:?}");
    }
    for (lines, own) in [(&mut a, &of_a), (&mut b, &of_b)] {
        let list = lines.ask("work:list", json!({})).unwrap();
        let ids: Vec<_> =
            list["work"].as_array().unwrap().iter().map(|work| work["request_id"].clone()).collect();
        assert_eq!(ids, [json!(own)]);
    }
    let all = daemon.ask("work:list", json!({})).unwrap();
    assert_eq!(all["work"].as_array().map(Vec::len), Some(2), "the owner sees all");
}

#[test]
fn work_of_one_tenant_that_never_ends_holds_up_no_other() {
    let daemon = ready();
    let [a, b] = ["a-b", "a_b"].map(|tenant| create(&daemon, &CAN, Some(tenant)).token);
    let (mut a, mut b) = (lines_as(&daemon, &a), lines_as(&daemon, &b));
    // More than is carried out at once of one event.
    for _ in 0..300 {
        let hang = json!({"prompt": "x", "model": "mock/hang"});
        assert_eq!(code(&a.ask("completion:async", hang)), "ok");
    }
    let echo = json!({"prompt": "x", "model": "mock/echo"});
    let accepted = b.ask("completion:async", echo.clone()).unwrap();
    let wait = json!({"request_id": accepted["request_id"]});
    assert_eq!(b.ask("work:wait", wait).unwrap()["state"], "done");
    assert_eq!(code(&b.ask("completion:request", echo)), "ok");
}

#[test]
fn a_consumers_name_takes_more_than_to_listen() {
    let daemon = ready();
    let reader = create(&daemon, &["completion.read", "checkpoint.read"], None).token;
    let mut lines = lines_as(&daemon, &reader);
    let wish = json!({"subscribe": "completion:result", "class": "durable", "id": "s"});
    let mut named = wish.clone();
    named["consumer"] = "audit".into();
    lines.send(&named);
    let line = lines.receive();
    assert_eq!((&line["refusal"]["code"], &line["id"]), (&json!("denied"), &json!("s")), "{line}");
    for (event, ask) in [
        ("checkpoint:ack", json!({"consumer": "audit", "seq": 0})),
        ("checkpoint:forget", json!({"consumer": "audit"})),
    ] {
        assert_eq!(code(&lines.ask(event, ask)), "denied", "{event}");
    }
    assert_eq!(lines.ask("checkpoint:consumers", json!({})).unwrap()["consumers"], json!([]));
    lines.send(&wish);
    let line = lines.receive();
    assert!(line.get("refusal").is_none(), "without a name it may: {line}");
}

#[test]
fn a_consumers_name_is_lost_with_the_right_to_it_also_while_nobody_keeps_it() {
    let daemon = ready();
    for is_away in [false, true] {
        let made = create(&daemon, &["completion.read", "checkpoint.use"], None);
        let mut lines = lines_as(&daemon, &made.token);
        let named = json!({"subscribe": "completion:result", "class": "durable", "consumer": "c", "id": "s"});
        lines.send(&named);
        assert_eq!(lines.receive()["data"]["subscribed"], true);
        if is_away {
            daemon.ask("plugin:unload", json!({"name": "checkpoint"})).unwrap();
        }
        daemon.ask("token:revoke", json!({"id": made.info.id})).unwrap();
        if is_away {
            daemon.ask("plugin:load", json!({"library": "checkpoint"})).unwrap();
        }
        let line = lines.receive();
        assert_eq!((&line["refusal"]["code"], &line["id"]), (&json!("denied"), &json!("s")), "{line}");
        assert!(line["refusal"]["hint"].as_str().unwrap().contains("revoked"), "{line}");
    }
}

#[test]
fn durable_facts_are_followed_by_their_tenant_alone_also_those_of_before() {
    let daemon = ready();
    let [a, b] = ["a-b", "a_b"].map(|tenant| create(&daemon, &CAN, Some(tenant)).token);
    for (token, prompt) in [(&a, "of a"), (&b, "of b"), (&a, "of a again")] {
        let mut lines = lines_as(&daemon, token);
        let prompt = json!({"prompt": prompt, "model": "mock/echo", "conversation_id": "c"});
        let accepted = lines.ask("completion:async", prompt).unwrap();
        let wait = json!({"request_id": accepted["request_id"]});
        assert_eq!(lines.ask("work:wait", wait).unwrap()["state"], "done");
    }
    for (token, count) in [(&a, 2), (&b, 1)] {
        let mut lines = lines_as(&daemon, token);
        // A consumer's name is the tenant's own, too.
        lines.send(&json!({"subscribe": "completion:result", "class": "durable", "since_seq": 0, "consumer": "c", "id": "s"}));
        let mut texts = Vec::new();
        while texts.len() < count {
            let line = lines.receive();
            assert!(line.get("refusal").is_none(), "{line}");
            if line.get("sub").is_some() {
                texts.push(line["data"]["text"].as_str().unwrap().to_owned());
            }
        }
        let own = if count == 2 { "of a" } else { "of b" };
        assert!(texts.iter().all(|text| text.contains(own)), "{texts:?}");
        lines.send(&json!({"event": "echo:say", "data": {"text": "that was all"}}));
        assert_eq!(lines.receive()["event"], "echo:say", "and nothing else");
    }
    // Asked without a subscription it would tell everything, so it is not for them.
    let answer = lines_as(&daemon, &a).ask("checkpoint:follow", json!({"pattern": "*", "since_seq": 0}));
    assert_eq!(code(&answer), "denied");
}

#[test]
fn conversations_of_two_tenants_do_not_wait_for_each_other_and_are_not_seen() {
    let daemon = ready();
    let [a, b] = ["a-b", "a_b"].map(|tenant| create(&daemon, &CAN, Some(tenant)).token);
    let mut holder = lines_as(&daemon, &a);
    holder.send(&json!({"event": "completion:request", "id": "h",
        "data": {"prompt": "x", "model": "mock/hang", "conversation_id": "c"}}));
    let mut own = lines_as(&daemon, &a);
    let mut id = json!(null);
    wait_until("it runs", || {
        let status = own.ask("completion:status", json!({})).unwrap();
        id = status["requests"][0]["request_id"].clone();
        id.is_string()
    });
    let mut other = lines_as(&daemon, &b);
    let prompt = json!({"prompt": "x", "model": "mock/echo", "conversation_id": "c"});
    assert_eq!(code(&other.ask("completion:request", prompt)), "ok", "it has nothing to wait for");
    let status = other.ask("completion:status", json!({})).unwrap();
    assert_eq!(status["requests"], json!([]));
    for event in ["completion:status", "completion:get", "completion:cancel"] {
        assert_eq!(code(&other.ask(event, json!({"request_id": id}))), "not_found", "{event}");
    }
    assert_eq!(code(&own.ask("completion:cancel", json!({"request_id": id}))), "ok");
}
