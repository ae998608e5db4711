//! Every event of the manifest for every role that it has, and every path on
//! which something is asked, told or heard.

use std::collections::BTreeMap;

use ksi_protocol::{
    Code, Frame, Pattern,
    frame::{Caller, Class, Subscribe},
    token::Token,
};
use ksi_tests::{
    Home,
    frames::{emit, payload, plain, request},
    library, wait_until,
};
use serde_json::json;

use super::{code, create, frames_as, lines_as, ready};

/// What the manifest says: the permission of each event, the capabilities of each
/// role.
fn manifest() -> (BTreeMap<String, String>, BTreeMap<String, Vec<String>>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../events.toml");
    let table: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let events = table["events"].as_table().unwrap();
    let permission = |(name, policy): (&String, &toml::Value)| (name.clone(), text(&policy["permission"]));
    let roles = table["identity"]["roles"].as_table().unwrap();
    let capabilities = |(name, role): (&String, &toml::Value)| {
        (name.clone(), role["capabilities"].as_array().unwrap().iter().map(text).collect())
    };
    (events.iter().map(permission).collect(), roles.iter().map(capabilities).collect())
}

/// By the definition: word for word, `*` for one of them.
fn gives(capability: &str, permission: &str) -> bool {
    let (ours, theirs): (Vec<_>, Vec<_>) = (capability.split('.').collect(), permission.split('.').collect());
    capability == "*"
        || ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| *a == "*" || a == b)
}

#[test]
fn each_role_may_ask_for_exactly_what_the_manifest_gives_it() {
    let daemon = ready();
    let (events, roles) = manifest();
    assert!(events.len() > 60 && roles.len() >= 3, "the manifest was read");
    for (role, capabilities) in roles.iter().filter(|(role, _)| *role != "admin") {
        let can: Vec<&str> = capabilities.iter().map(String::as_str).collect();
        let token = create(&daemon, &can, None).token;
        for (event, permission) in &events {
            let may = permission != "plugins.only"
                && capabilities.iter().any(|capability| gives(capability, permission));
            let mut lines = lines_as(&daemon, &token);
            // An unknown field keeps what may be asked from doing anything.
            let answer = lines.ask(event, json!({"no such field": 1}));
            assert_eq!(code(&answer) != "denied", may, "{role} asks {event}: {answer:?}");
            if !may {
                let refusal = answer.unwrap_err();
                assert_eq!(refusal["details"]["permission"], *permission, "{event}");
                assert!(refusal["details"]["principal"].as_str().unwrap().starts_with("token:"), "{refusal}");
            }
        }
    }
}

#[test]
fn no_role_but_admin_emits_what_others_own() {
    let daemon = ready();
    let (events, roles) = manifest();
    for (role, capabilities) in roles.iter().filter(|(role, _)| *role != "admin") {
        let can: Vec<&str> = capabilities.iter().map(String::as_str).collect();
        let mut frames = frames_as(&daemon, &create(&daemon, &can, None).token);
        for event in events.keys().map(String::as_str).chain(["my:own"]) {
            frames.send(&emit(Some(1), event, &json!({})));
            let (_, refusal) = frames.refused();
            assert_eq!(refusal.code, Code::Denied, "{role} emits {event}");
        }
    }
    let mut owner = daemon.frames();
    owner.send(&emit(Some(1), "my:own", &json!({})));
    assert!(matches!(owner.receive(), Frame::Reply { id: 1, .. }), "the owner emits as before");
}

#[test]
fn a_policy_may_let_clients_emit() {
    let config = format!(
        "{}[events.\"chat:said\"]\npermission = \"chat.read\"\nemit = \"chat.say\"\n",
        super::NO_MODEL
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let both = create(&daemon, &["chat.*"], None).token;
    let mut reader = frames_as(&daemon, &create(&daemon, &["chat.read"], None).token);
    reader.subscribe(1, "chat:*", Class::Live);
    let mut speaker = frames_as(&daemon, &both);
    speaker.send(&emit(Some(7), "chat:said", &json!({"text": "hi"})));
    assert!(matches!(speaker.receive(), Frame::Reply { id: 7, .. }));
    assert_eq!(reader.event().event.as_str(), "chat:said");
    reader.send(&emit(Some(7), "chat:said", &json!({})));
    assert_eq!(reader.refused().1.code, Code::Denied);
}

#[test]
fn what_may_not_be_read_is_not_heard() {
    let daemon = ready();
    let mut frames = frames_as(&daemon, &create(&daemon, &["echo.use", "state.read"], None).token);
    frames.subscribe(1, "**", Class::Live);
    frames.send(&Frame::Subscribe(Subscribe::new(2, Pattern::parse("plugin:stopped").unwrap(), Class::Live)));
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(2), Code::Denied));
    assert_eq!(refusal.details.unwrap()["permission"], "plugin.read");
    daemon.ask("plugin:unload", json!({"name": "echo"})).unwrap();
    daemon.ask("state:set", json!({"namespace": "n", "key": "k", "value": 1})).unwrap();
    // Of all that happened it hears the one thing that it may.
    assert_eq!(frames.event().event.as_str(), "state:changed");
}

#[test]
fn a_revocation_ends_what_is_open_with_the_next_event() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use", "state.*"], None);
    let mut frames = frames_as(&daemon, &made.token);
    frames.subscribe(1, "state:*", Class::Live);
    frames.send(&request(2, "state:watch", &json!({"namespace": "n", "prefix": "k"})));
    let set = |key: &str| daemon.ask("state:set", json!({"namespace": "n", "key": key, "value": 1})).unwrap();
    set("k1");
    let mut heard = Vec::new();
    while heard.len() < 3 {
        match frames.receive() {
            Frame::Event(event) => heard.push(event.event.to_string()),
            Frame::Chunk { id: 2, .. } => heard.push("chunk".into()),
            other => panic!("{other:?}"),
        }
    }
    assert!(heard.iter().any(|heard| heard == "state:changed"), "{heard:?}");
    daemon.ask("token:revoke", json!({"id": made.info.id})).unwrap();
    set("k2");
    // The stream ends, nothing more is heard, and nothing can be asked.
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(2), Code::Denied));
    let refusal = frames.ask(3, "echo:say", &json!({"text": "hi"})).unwrap_err();
    assert_eq!(refusal.code, Code::Denied);
    assert!(refusal.hint.contains("revoked"), "{refusal}");
}

#[test]
fn what_waits_for_an_item_when_its_token_is_revoked_takes_none() {
    let daemon = ready();
    let made = create(&daemon, &["state.*"], None);
    let mut frames = frames_as(&daemon, &made.token);
    frames.send(&request(2, "state:pop", &json!({"queue": "q", "wait_ms": 60_000})));
    // What was sent before this has come before it, too.
    frames.ask(3, "state:queue", &json!({"queue": "q"})).unwrap();
    daemon.ask("token:revoke", json!({"id": made.info.id})).unwrap();
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(2), Code::Denied));
    daemon.ask("state:push", json!({"queue": "q", "data": "secret"})).unwrap();
    let popped = daemon.ask("state:pop", json!({"queue": "q"})).unwrap();
    assert!(popped.to_string().contains("secret"), "{popped}");
}

#[test]
fn what_waits_ends_when_its_token_expires() {
    let daemon = ready();
    let ask = json!({"name": "test", "can": ["state.*"], "expires_in_ms": 3_000});
    let made = daemon.ask("token:create", ask).unwrap();
    let mut lines = lines_as(&daemon, &Token::new(made["token"].as_str().unwrap()));
    // Nothing else comes to pass that would show it.
    let refusal = lines.ask("state:pop", json!({"queue": "q", "wait_ms": 60_000})).unwrap_err();
    assert_eq!(refusal["code"], "denied", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("has expired"), "{refusal}");
    daemon.ask("state:push", json!({"queue": "q", "data": "secret"})).unwrap();
    let popped = daemon.ask("state:pop", json!({"queue": "q"})).unwrap();
    assert!(popped.to_string().contains("secret"), "{popped}");
}

#[test]
fn a_revocation_is_answered_also_where_a_plugin_of_this_process_hangs_over_what_it_ends() {
    let config = format!(
        "{}[plugins.faulty]\nlibrary = \"{}\"\nplacement = \"in-process\"\n\
         [events.\"faulty:cling\"]\npermission = \"faulty.use\"\n",
        super::NO_MODEL,
        library("fixture_faulty").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let made = create(&daemon, &["faulty.use"], None);
    let mut lines = lines_as(&daemon, &made.token);
    lines.send(&json!({"event": "faulty:cling", "data": {}}));
    wait_until("it is asked", || daemon.plugin("faulty").in_flight > 0);
    daemon.ask("token:revoke", json!({"id": made.info.id})).expect("it is revoked");
    let answer = lines.receive();
    assert_eq!(answer["refusal"]["code"], "denied", "{answer}");
}

#[test]
fn work_of_a_token_that_was_revoked_meanwhile_ends_as_failed() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use", "work.*"], None);
    let mut lines = lines_as(&daemon, &made.token);
    daemon.ask("plugin:unload", json!({"name": "echo"})).unwrap();
    let accepted = lines.ask("echo:keep", json!({"text": "later"})).unwrap();
    let name = json!({"request_id": accepted["request_id"]});
    daemon.ask("token:revoke", json!({"id": made.info.id})).unwrap();
    daemon.ask("plugin:load", json!({"library": "echo"})).unwrap();
    let mut info = json!(null);
    wait_until("it has ended", || {
        info = daemon.ask("work:get", name.clone()).unwrap();
        info["state"] == "failed"
    });
    assert_eq!(info["refusal"]["code"], "denied", "{info}");
    assert!(info["refusal"]["message"].as_str().unwrap().contains(&made.info.id), "{info}");
    assert_eq!(info["principal"], format!("token:{}", made.info.id));
}

#[test]
fn what_a_client_says_of_itself_counts_for_nothing() {
    let daemon = ready();
    let token = create(&daemon, &["state.*", "work.read"], Some("a_b")).token;
    daemon.ask("state:set", json!({"namespace": "n", "key": "k", "value": "the owner's"})).unwrap();
    let mut frames = frames_as(&daemon, &token);
    let forged = |id, event: &str, data| {
        let mut request = plain(id, event, payload(&data));
        request.origin = Some("daemon".into());
        request.parent = Some(1);
        request.on_behalf = true;
        request.caller = Some(Box::new(Caller {
            principal: "user:owner".into(),
            tenant: Some("local".into()),
            every_tenant: true,
        }));
        Frame::Request(request)
    };
    frames.send(&forged(1, "state:get", json!({"namespace": "n", "key": "k"})));
    let Frame::Reply { id: 1, data } = frames.receive() else { panic!("no reply") };
    assert_eq!(ksi_tests::frames::value(&data)["found"], false);
    frames.send(&forged(2, "plugin:unload", json!({"name": "echo"})));
    assert_eq!(frames.refused().1.code, Code::Denied);
    // Nor what it writes into a payload.
    for key in ["tenant", "principal", "roles", "user_ctx"] {
        let data = json!({"namespace": "n", "key": "k", key: "local"});
        assert!(frames.ask(3, "state:get", &data).is_err_and(|refusal| refusal.code == Code::InvalidPayload));
    }
    // An emission has no owner but whoever emits it.
    let mut lines = lines_as(&daemon, &token);
    lines.send(&json!({"emit": "state:changed", "data": {}, "tenant": "local"}));
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
}

#[test]
fn what_plugins_keep_is_for_nobody_else() {
    let daemon = ready();
    for event in ["space:get", "space:scan", "space:apply"] {
        let refusal = daemon.ask(event, json!({})).unwrap_err();
        assert_eq!(refusal["code"], "denied", "{refusal}");
        assert!(refusal["hint"].as_str().unwrap().contains("only plugins"), "{refusal}");
    }
}
