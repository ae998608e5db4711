//! `system:health`: what plugins say of themselves, and what is absent.

use ksi_protocol::system::{Health, HealthStatus};
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, stdout, wait_until};
use serde_json::{Value, json};

fn faulty(placement: &str) -> Daemon {
    let library = library("fixture_faulty");
    let faulty = format!("[plugins.faulty]\nlibrary = \"{}\"\n", library.display());
    let daemon = Home::with_config(&format!("{WITHOUT_MODEL}{faulty}placement = \"{placement}\"\n")).start();
    daemon.ready();
    daemon
}

/// How one part does.
fn component(health: &Health, name: &str) -> (HealthStatus, String) {
    let found = health.components.iter().find(|component| component.name == name);
    let found = found.unwrap_or_else(|| panic!("no component {name} in {health:?}"));
    (found.status, found.reason.clone())
}

#[test]
fn a_plugin_that_says_it_cannot_do_all_degrades_the_whole_until_it_can_again() {
    for placement in ["child", "in-process"] {
        let daemon = faulty(placement);
        assert_eq!(component(&daemon.health(), "faulty"), (HealthStatus::Ok, String::new()));
        let mut facts = daemon.lines();
        facts.send(&json!({"subscribe": "plugin:*"}));
        facts.receive();
        for why in ["no disk", "no disk at all"] {
            daemon.ask("faulty:complain", json!({"why": why})).unwrap();
            wait_until("the health says so", || {
                let health = daemon.health();
                let reason = format!("plugin faulty is degraded: {why}");
                component(&health, "faulty") == (HealthStatus::Degraded, reason.clone())
                    && health.reasons == [reason]
            });
        }
        let health = daemon.health();
        assert_eq!((health.status, health.ready), (HealthStatus::Degraded, true));
        assert_eq!(daemon.plugin("faulty").degraded.as_deref(), Some("no disk at all"));
        assert_eq!(daemon.ksi(&["health"]).status.code(), Some(8));
        daemon.ask("faulty:ok", json!({})).expect("it is asked all the same");
        daemon.ask("faulty:complain", json!({})).unwrap();
        wait_until("all is well", || daemon.health().status == HealthStatus::Ok);
        assert_eq!(daemon.ksi(&["health"]).status.code(), Some(0));
        // Another plugin may still be telling that it is ready.
        let of_faulty = |fact: &Value| fact["data"]["name"] == "faulty" && fact["event"] != "plugin:ready";
        let told: Vec<Value> = std::iter::repeat_with(|| facts.receive()).filter(of_faulty).take(2).collect();
        assert_eq!(told[0]["data"], json!({"name": "faulty", "reason": "no disk"}));
        assert_eq!(
            (&told[0]["event"], &told[1]["event"]),
            (&json!("plugin:degraded"), &json!("plugin:recovered"))
        );
    }
}

#[test]
fn what_a_plugin_said_of_itself_ends_with_it() {
    let daemon = faulty("child");
    daemon.ask("faulty:complain", json!({"why": "x".repeat(5000)})).unwrap();
    wait_until("it is told, cut to a length", || {
        daemon.plugin("faulty").degraded.is_some_and(|why| why.len() == 1024)
    });
    daemon.ask("plugin:restart", json!({"name": "faulty"})).expect("it starts anew");
    assert_eq!(daemon.health().status, HealthStatus::Ok);
}

#[test]
fn the_health_is_unhealthy_when_the_backend_is_absent() {
    let home = Home::with_config("[plugins.llama]\nlibrary = \"/nowhere/libplugin_llama.so\"\n");
    let daemon = home.start();
    daemon.ready();
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Unhealthy);
    let (status, reason) = component(&health, "llama");
    assert_eq!(status, HealthStatus::Unhealthy);
    assert!(reason.contains("/nowhere/libplugin_llama.so"), "{reason}");
    assert_eq!(component(&health, "completion").0, HealthStatus::Ok, "the rest serves");
    let output = daemon.ksi(&["health"]);
    assert_eq!(output.status.code(), Some(8));
    assert!(stdout(&output).starts_with("unhealthy: "), "{}", stdout(&output));
}
