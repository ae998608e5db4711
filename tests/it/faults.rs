//! Plugins that fail: what their callers hear, what others notice, and how the
//! plugin comes back.
//!
//! Whatever a plugin does, whoever waits for it is refused explicitly within
//! its hang limit and a second, its neighbours go on, and it is started again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ksi_protocol::system::{Placement, PluginState, PluginStatus};
use ksi_tests::{Daemon, Home, Lines, library, wait_until};
use serde_json::{Value, json};

mod child;
mod files;
mod in_process;
mod requests;
mod rounds;

/// The hang limit in these tests.
const HANG: Duration = Duration::from_secs(1);

/// Time in which every caller must have heard something.
const HEARD: Duration = Duration::from_secs(2);

/// A configuration with the plugin that misbehaves, and echo as its neighbour.
fn config(placement: &str, more: &str) -> String {
    let library = library("fixture_faulty");
    format!(
        r#"
        [plugins.llama]
        enabled = false
        [plugins.completion]
        enabled = false
        [plugins.faulty]
        library = "{}"
        placement = "{placement}"
        may_call = ["faulty:*", "plugin:list"]
        emits = ["faulty:*"]
        listens = ["test:*"]
        {more}
        "#,
        library.display()
    )
}

/// A daemon with the plugin, ready.
pub(crate) fn daemon(placement: &str, more: &str) -> Daemon {
    let daemon = Home::with_config(&config(placement, more)).start();
    daemon.ready();
    assert_eq!(daemon.plugin("faulty").state, PluginState::Ready);
    daemon
}

/// One with the hang limit of these tests.
fn faulty(placement: &str) -> Daemon {
    daemon(placement, r#"restart = { hang = "1s" }"#)
}

/// The deaths of the plugin, newest last.
fn deaths(daemon: &Daemon) -> Vec<Value> {
    let inspection = daemon.ask("plugin:inspect", json!({"name": "faulty"})).expect("it is there");
    inspection["deaths"].as_array().expect("a list").clone()
}

/// Waits until the plugin answers again.
fn comes_back(daemon: &Daemon) -> PluginStatus {
    wait_until("the plugin answers again", || match daemon.ask("faulty:ok", json!({})) {
        Ok(_) => true,
        Err(refusal) => {
            let code = refusal["code"].as_str().expect("a code");
            assert!(matches!(code, "unavailable" | "plugin_restarted"), "{refusal}");
            assert!(refusal["retry_after_ms"].as_u64() > Some(0), "{refusal}");
            false
        }
    });
    daemon.plugin("faulty")
}

/// A client of the neighbour that asks all the time.
struct Neighbour {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<(u64, Duration)>,
}

impl Neighbour {
    fn of(daemon: &Daemon) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lines = daemon.lines();
        let stopped = stop.clone();
        let asking = std::thread::spawn(move || {
            let (mut asked, mut slowest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let since = Instant::now();
                lines.send(&json!({"event": "echo:say", "data": {"text": "still here"}}));
                assert_eq!(lines.receive()["data"]["text"], "still here");
                slowest = slowest.max(since.elapsed());
                asked += 1;
                std::thread::park_timeout(Duration::from_millis(2));
            }
            (asked, slowest)
        });
        Self { stop, asking }
    }

    /// Every one of its requests was answered within a second.
    fn noticed_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, slowest) = self.asking.join().expect("the neighbour was answered");
        assert!(asked > 0);
        assert!(slowest < Duration::from_secs(1), "a neighbour's request took {slowest:?}");
    }
}

/// A subscription to what happens to plugins.
struct Facts(Lines);

impl Facts {
    fn of(daemon: &Daemon) -> Self {
        let mut lines = daemon.lines();
        lines.send(&json!({"subscribe": "plugin:*"}));
        lines.send(&json!({"event": "system:health"}));
        // Once this is answered, the subscription is in force.
        while !lines.receive()["data"]["status"].is_string() {}
        Self(lines)
    }

    /// The next fact of this name about the plugin.
    fn expect(&mut self, event: &str) -> Value {
        loop {
            let line = self.0.receive();
            if line["event"] == event && line["data"]["name"] == "faulty" {
                return line["data"].clone();
            }
        }
    }
}

/// Asks for a fault and checks everything that must hold of it. `reason` is
/// part of what the operator is told.
fn fails(daemon: &Daemon, event: &str, data: Value, reason: &str) -> PluginStatus {
    let before = daemon.plugin("faulty");
    let known = deaths(daemon).len();
    let mut facts = Facts::of(daemon);
    let neighbour = Neighbour::of(daemon);
    let since = Instant::now();
    let refusal = daemon.ask(event, data).expect_err("it fails");
    let heard_after = since.elapsed();
    assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
    assert!(refusal["message"].as_str().expect("a text").contains("faulty"), "{refusal}");
    assert!(heard_after < HEARD, "{event} was refused after {heard_after:?}");
    let died = facts.expect("plugin:died");
    assert!(died["reason"].as_str().expect("a text").contains(reason), "{died}");
    let ready = facts.expect("plugin:ready");
    let after = comes_back(daemon);
    neighbour.noticed_nothing();
    assert!(after.generation > before.generation);
    assert_eq!(after.restarts, before.restarts + 1);
    assert_eq!(ready["generation"], after.generation);
    let deaths = deaths(daemon);
    assert_eq!(deaths.len(), known + 1);
    let death = deaths.last().expect("one at least");
    assert!(death["reason"].as_str().expect("a text").contains(reason), "{death}");
    assert_eq!(after.last_error.as_deref(), death["reason"].as_str());
    after
}

/// A fault in a child; what comes back is a child again.
fn fails_in_a_child(event: &str, data: Value, reason: &str) {
    let mut daemon = daemon("child", "restart = { hang = \"1s\" }\nlimits = { memory_mb = 512 }");
    let before = daemon.plugin("faulty");
    let after = fails(&daemon, event, data, reason);
    assert_eq!(after.placement, Placement::Child);
    assert_ne!(after.pid, before.pid);
    assert!(daemon.is_alive());
}

/// A fault in the daemon's own process; what comes back is a child, until the
/// operator reloads the plugin.
fn fails_in_process(event: &str, reason: &str) {
    let mut daemon = faulty("in-process");
    assert_eq!(daemon.plugin("faulty").placement, Placement::InProcess);
    let after = fails(&daemon, event, json!({}), reason);
    assert_eq!(after.placement, Placement::Child);
    assert!(after.pid.is_some());
    assert!(daemon.is_alive());
}

/// Kills a process as the kernel would when memory is short.
fn kill_dead(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the process is there");
}

/// Opens a request without waiting for its answer, and waits until the plugin
/// has it.
fn open(daemon: &Daemon, event: &str, data: &Value) -> Lines {
    let held = daemon.plugin("faulty").in_flight;
    let mut lines = daemon.lines();
    lines.send(&json!({"event": event, "data": data}));
    wait_until("the plugin has the request", || daemon.plugin("faulty").in_flight > held);
    lines
}
