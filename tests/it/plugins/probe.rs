//! What each level of the sandbox denies, tried from inside; what is required
//! and cannot be had; and who may use the control socket.

use std::{fs, path::PathBuf};

use ksi_protocol::sandbox::{Act, Layer, Probe};
use ksi_tests::{Daemon, Home, built, library, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Layers that are left out, by the name of the plugin that does without.
const WITHOUT: [(&str, &[&str]); 8] = [
    ("l1", &["seccomp", "landlock", "namespaces", "cgroup"]),
    ("l2", &["landlock", "namespaces", "cgroup"]),
    ("l3", &["namespaces", "cgroup"]),
    ("l4", &["cgroup"]),
    ("l5", &[]),
    ("no_seccomp", &["seccomp"]),
    ("no_landlock", &["landlock"]),
    ("no_both", &["seccomp", "landlock"]),
];

/// The layers that deny an act, each alone; for those below, only while it is in
/// force.
fn deniers(act: Act) -> &'static [Layer] {
    use Layer::{Landlock, Limits, Namespaces, Seccomp};
    match act {
        Act::ReadOutside | Act::WriteOutside => &[Landlock, Namespaces],
        // Landlock has no rule for it.
        Act::ModeOutside => &[Seccomp, Namespaces],
        Act::Exec | Act::Connect | Act::Bind | Act::Ptrace => &[Seccomp, Landlock, Namespaces],
        // Rules on ports are not asked there, and those on paths only since Linux 7.1.
        Act::ConnectBySending | Act::ListenUnbound | Act::DatagramPair => &[Seccomp, Namespaces],
        Act::Signal => &[Seccomp, Landlock],
        Act::SignalByFile | Act::IoUring | Act::AfAlg | Act::Processes => &[Seccomp],
        Act::Memory | Act::Files => &[Limits],
        // The daemon refuses what the layers let through.
        Act::ControlSocket => &[Layer::Process],
    }
}

/// What a child can do that is held by limits alone, on every machine.
const FREE: [Act; 8] = [
    Act::ReadOutside,
    Act::WriteOutside,
    Act::ModeOutside,
    Act::Exec,
    Act::Connect,
    Act::Bind,
    Act::Signal,
    Act::SignalByFile,
];

/// A daemon with one plugin for each of them, none of which runs.
fn daemon() -> Daemon {
    let mut config = "[plugins.llama]\nenabled = false\n".to_owned();
    for (name, without) in WITHOUT {
        config += &format!(
            "[plugins.{name}]\nlibrary = \"libplugin_echo.so\"\nenabled = false\nnamespace = \"{name}\"\n\
             limits = {{ memory_mb = 512, files = 64, processes = 32 }}\nsandbox = {{ disable = {without:?} }}\n"
        );
    }
    Home::with_config(&config).start()
}

fn probe(daemon: &Daemon, name: &str) -> Probe {
    let probe = daemon.ask("plugin:probe", json!({ "name": name })).expect("it answers");
    serde_json::from_value(probe).expect("a probe")
}

fn is_on(probe: &Probe, layer: Layer) -> bool {
    probe.layers.iter().any(|standing| standing.layer == layer && standing.on)
}

#[test]
fn each_level_denies_what_its_layers_deny_and_nothing_is_taken_on_trust() {
    let daemon = daemon();
    for (name, without) in WITHOUT {
        let probe = probe(&daemon, name);
        assert_eq!(probe.acts.len(), Act::ALL.len(), "{name}");
        for standing in &probe.layers {
            let left_out = without.contains(&standing.layer.as_str());
            assert!(!(left_out && standing.on), "{name}: {standing:?}");
            assert_eq!(left_out, standing.why == "disabled by the configuration", "{name}: {standing:?}");
            assert!(standing.on || !standing.why.is_empty(), "{name}: {standing:?} without a reason");
        }
        for finding in &probe.acts {
            if deniers(finding.act).iter().any(|layer| is_on(&probe, *layer)) {
                assert!(finding.denied, "{name} at {}: {finding:?}", probe.level);
            }
        }
        if name == "l1" {
            assert_eq!(probe.level, "L1");
            for act in FREE {
                let finding = probe.acts.iter().find(|finding| finding.act == act).expect("it was tried");
                assert!(!finding.denied, "nothing is there to deny it: {finding:?}");
            }
        }
    }
}

#[test]
fn the_level_in_force_is_shown_wherever_a_plugin_is() {
    let config = "[plugins.llama]\nenabled = false\n[plugins.echo_child]\nenabled = true\n\
        sandbox = { disable = [\"landlock\"] }\n";
    let daemon = Home::with_config(config).start();
    let mut facts = daemon.lines();
    facts.send(&json!({"id": 1, "subscribe": "plugin:*"}));
    daemon.ready();
    daemon.ask("plugin:restart", json!({"name": "echo_child"})).expect("it starts again");
    let status = daemon.plugin("echo_child");
    assert!(status.sandbox == "L1" || status.sandbox == "L2", "{}", status.sandbox);
    let why = "landlock: disabled by the configuration";
    assert!(status.sandbox_lacks.iter().any(|lack| lack == why), "{:?}", status.sandbox_lacks);
    for event in ["plugin:started", "plugin:ready"] {
        let fact = loop {
            let line = facts.receive();
            if line["event"] == event && line["data"]["name"] == "echo_child" {
                break line["data"].clone();
            }
        };
        assert_eq!(fact["sandbox"], json!(status.sandbox), "{event}: {fact}");
        assert!(fact["sandbox_lacks"].as_array().expect("a list").contains(&json!(why)), "{event}: {fact}");
    }
}

#[test]
fn less_than_is_required_is_refused_with_what_is_missing() {
    let config = "[plugins.llama]\nenabled = false\n[plugins.echo_child]\nenabled = false\n\
        require = \"L3\"\nsandbox = { disable = [\"seccomp\"] }\n";
    let daemon = Home::with_config(config).start();
    let refusal = daemon.ask("plugin:load", json!({"library": "echo_child"})).expect_err("it is not safe");
    let message = refusal["message"].as_str().expect("a text");
    for part in ["requires sandbox L3", "L1 can be had", "L2 (seccomp: disabled by the configuration)"] {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    assert_eq!(daemon.ask("echo_child:say", json!({"text": "a"})).expect_err("it is off")["retryable"], true);
}

#[test]
fn only_what_has_a_sandbox_can_be_probed() {
    let daemon = daemon();
    let refusal = daemon.ask("plugin:probe", json!({"name": "echo"})).expect_err("it runs in the daemon");
    assert_eq!(refusal["code"], "conflict", "{refusal}");
    let refusal = daemon.ask("plugin:probe", json!({"name": "nobody"})).expect_err("there is none");
    assert_eq!(refusal["code"], "not_found", "{refusal}");
}

/// A daemon with the plugin that does what it is told, held by limits alone,
/// which is all that some machines have.
fn free() -> Daemon {
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
         emits = [\"faulty:*\"]\nrestart = {{ backoff_min = \"1ms\" }}\n\
         sandbox = {{ exec = true, disable = [\"seccomp\", \"landlock\", \"namespaces\", \"cgroup\"] }}\n",
        library("fixture_faulty").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    daemon
}

/// Has the plugin run a command of a shell.
fn run(daemon: &Daemon, command: &str) {
    let started = daemon.ask("faulty:run", json!({ "command": command })).expect("it starts it");
    assert_eq!(started["n"], 1);
}

/// What a file says once it is whole: its last line is `done`.
fn words(path: &std::path::Path) -> String {
    let mut text = String::new();
    wait_until("it has said what it has to say", || {
        text = fs::read_to_string(path).unwrap_or_default();
        text.ends_with("done\n")
    });
    text
}

#[test]
fn whatever_comes_of_a_plugin_is_refused_at_the_control_socket() {
    let daemon = free();
    let said = daemon.home.path().join("said");
    let ask = format!(
        "{} --socket {} send system:health",
        built().join("ksi").display(),
        daemon.home.paths().socket.display()
    );
    let out = said.display();
    // A child; one that leaves its group; one whose parents are gone.
    for command in [
        format!("({ask} 2>&1; echo done) > {out}"),
        format!("setsid sh -c '{ask} 2>&1; echo done' > {out}"),
        format!("(setsid sh -c '({ask} 2>&1; echo done) > {out}' &) &"),
    ] {
        let _ = fs::remove_file(&said);
        run(&daemon, &command);
        let text = words(&said);
        assert!(text.contains("comes of a plugin") && !text.contains("\"status\""), "{command}: {text}");
    }
    assert!(daemon.log().contains("comes of a plugin"), "whoever reads the log knows");
    let health = daemon.ask("system:health", json!({})).expect("everybody else is let in");
    assert_eq!(health["status"], "ok");
}

#[test]
fn what_a_plugin_leaves_behind_is_ended_however_it_has_detached_itself() {
    let mut daemon = free();
    let pids = daemon.home.path().join("pids");
    let out = pids.display();
    run(&daemon, &format!("(setsid sh -c 'echo $$ >> {out}; echo done >> {out}; exec sleep 1000' &) &"));
    let text = words(&pids);
    let left: i32 = text.lines().next().and_then(|line| line.parse().ok()).expect("a pid");
    let lives = || fs::read_to_string(format!("/proc/{left}/stat")).is_ok();
    assert!(lives());
    daemon.ask("faulty:abort", json!({})).expect_err("it dies");
    wait_until("what was left behind is gone, and collected", || !lives());
    wait_until("it answers again", || daemon.ask("faulty:ok", json!({})).is_ok());
    assert!(daemon.is_alive());
}

#[test]
fn a_stranger_below_the_daemon_is_let_in() {
    // A script that starts something and then becomes the daemon.
    let home = Home::new();
    let said = home.path().join("said");
    let ksi = built().join("ksi");
    let script = format!(
        "sh -c 'until {0} send system:health; do sleep 0.05; done > {1} 2>/dev/null; echo done >> {1}' & exec \"$0\"",
        ksi.display(),
        said.display()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).arg(built().join("ksid"));
    command.current_dir(home.path()).env("KSI_HOME", home.path());
    fs::write(home.paths().config_file, "[plugins.llama]\nenabled = false\n").expect("a file");
    let mut daemon = command.spawn().expect("it starts");
    let text = words(&said);
    assert!(text.contains("\"status\""), "{text}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it is there");
    daemon.wait().expect("it ends");
}

/// A daemon whose plugin may start programs, and write in one directory.
fn granting() -> (Daemon, PathBuf) {
    let home = Home::new();
    let granted = home.path().join("granted");
    fs::create_dir(&granted).expect("a directory");
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
         emits = [\"faulty:*\"]\nsandbox = {{ exec = true, write = [\"{}\"] }}\n",
        library("fixture_faulty").display(),
        granted.display()
    );
    fs::write(home.paths().config_file, config).expect("a file");
    let daemon = home.start();
    daemon.ready();
    (daemon, granted)
}

#[test]
fn a_grant_opens_what_it_names_and_nothing_else() {
    let (daemon, granted) = granting();
    let (inside, outside) = (granted.join("said"), daemon.home.path().join("outside"));
    run(
        &daemon,
        &format!(
            "echo x > {0}; cat {1} > {2}; echo done >> {2}",
            outside.display(),
            daemon.home.paths().config_file.display(),
            inside.display()
        ),
    );
    let text = words(&inside);
    let status = daemon.plugin("faulty");
    if ["L3", "L4", "L5"].contains(&&*status.sandbox) {
        assert_eq!(text, "done\n", "what is not granted cannot be read");
        assert!(!outside.exists(), "nor written");
    }
}

#[test]
fn no_mode_is_changed_that_is_everybodys_and_no_file_runs_as_its_owner() {
    let (daemon, granted) = granting();
    let (said, program) = (granted.join("said"), granted.join("program"));
    run(
        &daemon,
        &format!(
            "{{ chmod 666 /dev/null && echo mode; touch /dev/null && echo times; \
             echo x > /dev/null && echo device; echo x > {0} && echo file; chmod 4700 {0} && echo owner; chmod 2700 {0} && echo group; }} > {1} \
             2> /dev/null; echo done >> {1}",
            program.display(),
            said.display()
        ),
    );
    let text = words(&said);
    let level = daemon.plugin("faulty").sandbox;
    if ["L2", "L3", "L4", "L5"].contains(&&*level) {
        assert_eq!(text, "device\nfile\ndone\n", "at {level}");
    }
}

#[test]
fn a_link_in_the_place_of_a_grant_keeps_the_plugin_from_starting_until_it_is_gone() {
    let home = Home::new();
    let shared = home.path().join("shared");
    let out = shared.join("out");
    fs::create_dir_all(&out).expect("directories");
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
         emits = [\"faulty:*\"]\nsandbox = {{ exec = true, write = [\"{}\", \"{}\"] }}\n",
        library("fixture_faulty").display(),
        shared.display(),
        out.display()
    );
    fs::write(home.paths().config_file, config).expect("a file");
    let daemon = home.start();
    daemon.ready();
    let said = shared.join("said");
    run(
        &daemon,
        &format!(
            "cd {} && mv out old && ln -s {} out; echo done > {}",
            shared.display(),
            daemon.home.path().display(),
            said.display()
        ),
    );
    words(&said);
    assert!(out.is_symlink(), "it may write there");
    // It is not ready when this comes back, and says so or not.
    let _ = daemon.ask("plugin:restart", json!({ "name": "faulty" }));
    let why = format!("leads through the link {}", out.display());
    wait_until("it says why it does not start", || {
        daemon.plugin("faulty").last_error.is_some_and(|error| error.contains(&why))
    });
    daemon.ask("faulty:ok", json!({})).expect_err("it does not run");
    fs::remove_file(&out).expect("it is there");
    fs::create_dir(&out).expect("a directory");
    daemon.ask("plugin:restart", json!({ "name": "faulty" })).expect("it starts");
    daemon.ask("faulty:ok", json!({})).expect("it runs");
}

#[test]
fn with_graphics_cards_a_driver_can_start_and_no_more() {
    for (gpu, expected) in [(false, 0), (true, 3)] {
        let config = format!(
            "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
             emits = [\"faulty:*\"]\nsandbox = {{ gpu = {gpu} }}\n",
            library("fixture_faulty").display(),
        );
        let daemon = Home::with_config(&config).start();
        daemon.ready();
        let done = daemon.ask("faulty:driver", json!({})).expect("it answers")["n"].as_u64();
        let status = daemon.plugin("faulty");
        if ["L3", "L4", "L5"].contains(&&*status.sandbox) {
            assert_eq!(done, Some(expected), "gpu = {gpu} at {}", status.sandbox);
        }
    }
}

#[test]
fn what_is_hidden_stays_hidden_inside_of_what_is_granted() {
    let home = Home::new();
    let said = home.path().join("said");
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
         emits = [\"faulty:*\"]\nsandbox = {{ exec = true, write = [\"{}\"] }}\n",
        library("fixture_faulty").display(),
        home.path().display()
    );
    fs::write(home.paths().config_file, config).expect("a file");
    let daemon = home.start();
    daemon.ready();
    let runtime = daemon.home.paths().runtime_dir;
    run(&daemon, &format!("ls {} > {1}; echo done >> {1}", runtime.display(), said.display()));
    let text = words(&said);
    let hides = daemon.plugin("faulty").sandbox_lacks.iter().all(|lack| !lack.starts_with("namespaces"));
    assert_eq!(text.contains("ksid.sock"), !hides, "{text}");
}

#[test]
fn a_port_that_is_granted_can_be_reached_and_no_other() {
    let [granted, other] = [(); 2].map(|()| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket takes that");
        let port = listener.local_addr().expect("it has one").port();
        (listener, port)
    });
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.faulty]\nlibrary = \"{}\"\nmay_call = []\n\
         emits = [\"faulty:*\"]\nsandbox = {{ exec = true, network = [{}] }}\n",
        library("fixture_faulty").display(),
        granted.1
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let to = |port: u16| format!("bash -c ': < /dev/tcp/127.0.0.1/{port}'");
    run(&daemon, &format!("{}; {}", to(other.1), to(granted.1)));
    wait_until("it has reached the port that is granted", || granted.0.accept().is_ok());
    let lacks = daemon.plugin("faulty").sandbox_lacks;
    if lacks.iter().all(|lack| !lack.starts_with("landlock")) {
        assert!(other.0.accept().is_err(), "it has reached the other one, too");
    }
}

#[test]
fn a_probe_is_a_table_for_people_and_the_reply_for_programs() {
    let daemon = daemon();
    let table = daemon.ksi(&["plugin", "probe", "l5"]);
    assert!(table.status.success(), "{}", ksi_tests::stderr(&table));
    let table = ksi_tests::stdout(&table);
    for part in ["control_socket", "denied", "ask the daemon through its control socket"] {
        assert!(table.contains(part), "no `{part}` in:\n{table}");
    }
    let json = daemon.ksi(&["plugin", "probe", "l5", "-o", "json"]);
    let json: Value = serde_json::from_str(&ksi_tests::stdout(&json)).expect("JSON");
    assert_eq!(json["name"], "l5");
    assert_eq!(json["acts"].as_array().expect("a list").len(), Act::ALL.len());
}
