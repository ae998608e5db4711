//! What a plugin is granted: a reload takes it away with the next event, a
//! restart does not bring it back, and it is bounded in number.

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, wait_until};
use serde_json::{Value, json};

const GRANTED: &str = "may_call = [\"echo:*\", \"plugin:instance:*\"]";

fn config(faulty: &str) -> String {
    let library = library("fixture_faulty");
    format!("{WITHOUT_MODEL}\n[plugins.faulty]\nlibrary = \"{}\"\n{faulty}\n", library.display())
}

fn with(faulty: &str) -> Daemon {
    let daemon = Home::with_config(&config(faulty)).start();
    daemon.ready();
    daemon
}

fn call(daemon: &Daemon, event: &str, data: &Value) -> Result<Value, Value> {
    daemon.ask("faulty:call", json!({"event": event, "data": data}))
}

#[test]
fn what_a_reload_takes_from_a_plugin_is_gone_with_its_next_event_and_stays_gone() {
    for placement in ["child", "in-process"] {
        let faulty = format!("placement = \"{placement}\"\n{GRANTED}");
        let daemon = with(&faulty);
        let say = || call(&daemon, "echo:say", &json!({"text": "hi"}));
        assert_eq!(say().unwrap()["text"], "hi");
        daemon.reconfigure(&config(&faulty.replace("echo:*", "state:*"))).unwrap();
        assert_eq!(say().unwrap_err()["code"], "denied");
        assert!(call(&daemon, "state:list", &json!({})).is_ok(), "what it gives is there at once, too");
        let inspection = daemon.ask("plugin:inspect", json!({"name": "faulty"})).unwrap();
        assert_eq!(inspection["may_call"][0], "state:*", "{inspection}");
        if placement == "child" {
            let generation = daemon.plugin("faulty").generation;
            daemon.ask("faulty:abort", json!({})).unwrap_err();
            wait_until("it is back", || {
                let status = daemon.plugin("faulty");
                status.generation > generation && daemon.ask("faulty:ok", json!({})).is_ok()
            });
            assert_eq!(say().unwrap_err()["code"], "denied");
        }
    }
}

#[test]
fn what_a_reload_takes_from_a_plugin_it_hears_no_more() {
    let config = |listens: &str| {
        let library = library("fixture_listener");
        format!(
            "{WITHOUT_MODEL}\n[plugins.listener]\nlibrary = \"{}\"\nlistens = [\"{listens}\"]\n",
            library.display()
        )
    };
    let daemon = Home::with_config(&config("test:*")).start();
    daemon.ready();
    let tell = |n: u64| {
        let mut lines = daemon.lines();
        lines.send(&json!({"emit": "test:told", "data": {"n": n}}));
        // What one connection says arrives in order.
        let heard = lines.ask("listener:heard", json!({})).unwrap();
        let heard = heard["events"].as_array().unwrap().iter();
        heard.map(|event| event["data"]["n"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(tell(1), [1]);
    for (listens, n, expected) in [("other:*", 2, &[1][..]), ("test:*", 3, &[1, 3])] {
        daemon.reconfigure(&config(listens)).unwrap();
        assert_eq!(tell(n), expected);
    }
}

#[test]
fn a_plugin_has_no_more_instances_than_it_may() {
    let daemon = with(&format!("instances = true\nlimits = {{ instances = 2 }}\n{GRANTED}"));
    let start = |key: &str| call(&daemon, "plugin:instance:start", &json!({"key": key, "config": {}}));
    for key in ["a", "b", "a"] {
        start(key).unwrap_or_else(|refusal| panic!("{key}: {refusal}"));
    }
    let refusal = start("c").unwrap_err();
    assert_eq!(refusal["code"], "busy");
    assert!(refusal["hint"].as_str().unwrap().contains("plugins.faulty.limits.instances"), "{refusal}");
    call(&daemon, "plugin:instance:stop", &json!({"key": "a"})).unwrap();
    start("c").expect("there is room again");
}

#[test]
fn a_plugin_asks_no_faster_than_it_may_and_others_do_not_notice() {
    let daemon = with(&format!("limits = {{ per_second = 5 }}\n{GRANTED}"));
    let answers: Vec<_> = (0..20).map(|_| call(&daemon, "echo:say", &json!({"text": "hi"}))).collect();
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    for refusal in refused {
        assert_eq!(refusal["code"], "busy");
        assert!(refusal["retry_after_ms"].as_u64().is_some_and(|ms| ms <= 1000), "{refusal}");
    }
    daemon.ask("faulty:ok", json!({})).expect("it answers as fast as it is asked");
    daemon.ask("echo:say", json!({"text": "hi"})).expect("others are not meant");
}
