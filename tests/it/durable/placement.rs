//! State that outlives the place of its plugin.

use ksi_tests::{Home, WITHOUT_MODEL};
use serde_json::json;

use super::lives::started_anew;

fn placed(placement: &str) -> String {
    format!("{WITHOUT_MODEL}[plugins.state]\nplacement = \"{placement}\"\n")
}

#[test]
fn a_plugin_finds_its_state_in_another_placement_and_back() {
    let daemon = Home::with_config(&placed("in-process")).start();
    daemon.ready();
    for (from, to) in [("in-process", "child"), ("child", "in-process")] {
        assert_eq!(daemon.plugin("state").placement.as_str(), from);
        let set = daemon.ask("state:set", json!({"key": "k", "value": {"set": from}})).unwrap();
        daemon.ask("state:push", json!({"queue": "q", "data": from})).unwrap();
        std::fs::write(daemon.home.paths().config_file, placed(to)).unwrap();
        let boot = daemon.status().boot;
        daemon.ask("system:restart", json!({"grace_ms": 100})).unwrap();
        started_anew(&daemon, &boot);
        assert_eq!(daemon.plugin("state").placement.as_str(), to);
        let got = daemon.ask("state:get", json!({"key": "k"})).unwrap();
        assert_eq!((&got["value"], &got["version"]), (&json!({"set": from}), &set["version"]));
        let popped = daemon.ask("state:pop", json!({"queue": "q", "count": 9})).unwrap();
        let items: Vec<_> = popped["items"].as_array().unwrap().iter().map(|item| &item["data"]).collect();
        assert_eq!(items, [from]);
    }
}
