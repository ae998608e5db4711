//! Secrets and prompts are planted, everything goes wrong that can, and then
//! all that has left the daemon is searched for them, in every form.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home, command, library, stderr, stdout, wait_until};
use serde_json::json;

/// Odd on purpose: what must be escaped, percent-encoded, and differs between
/// the two alphabets of base64.
const OF_KEYRING: &str = "canary~keyring/+?\"one\\two";
const OF_ENVIRONMENT: &str = "canary-environment-\u{fffd}\u{e9}>>>???";
const OF_CONFIGURATION: &str = "canary_configuration 1 2 3 ;&=";
const OF_NOBODY: &str = "canary-that-no-plugin-asks-for";
const SECRETS: [&str; 4] = [OF_KEYRING, OF_ENVIRONMENT, OF_CONFIGURATION, OF_NOBODY];
const PROMPTS: [&str; 2] = ["canary prompt of a live request", "canary prompt of durable work"];

/// Every form in which a secret may be written, by hand and not by the code
/// under test.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |shift: usize, url: bool| {
        let bits: Vec<bool> = std::iter::repeat_n(false, shift * 8)
            .chain(secret.bytes().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)))
            .collect();
        let whole = bits.chunks_exact(6).skip((shift * 8).div_ceil(6));
        let letter = |six: &[bool]| six.iter().fold(0, |sum, bit| sum * 2 + usize::from(*bit));
        let letters = whole.map(|six| match (ALPHABET[letter(six)], url) {
            (b'+', true) => b'-',
            (b'/', true) => b'_',
            (letter, _) => letter,
        });
        letters.collect::<Vec<u8>>()
    };
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut forms = vec![
        secret.as_bytes().to_vec(),
        json!(secret).to_string().trim_matches('"').as_bytes().to_vec(),
        format!("{secret:?}").trim_matches('"').as_bytes().to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        percent.to_lowercase().into_bytes(),
        percent.into_bytes(),
    ];
    for shift in 0..3 {
        forms.extend([base64(shift, false), base64(shift, true)]);
    }
    forms
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// All that a stranger to the secrets may get to see, with where.
fn all_that_left(daemon: &Daemon, printed: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let own = ["ksi.toml", "secrets.toml"].map(|file| daemon.home.path().join(file));
    let files = files(daemon.home.path()).into_iter().filter(|path| !own.contains(path));
    let mut all: Vec<_> = files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    all.extend(printed);
    let pids = [Some(daemon.pid()), daemon.plugin("leaky").pid, daemon.plugin("llama").pid];
    for pid in pids.into_iter().flatten() {
        for file in ["cmdline", "environ"] {
            // The daemon's own environment is where one of them was planted.
            if pid != daemon.pid() || file == "cmdline" {
                let path = format!("/proc/{pid}/{file}");
                all.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    all
}

fn planted() -> Daemon {
    let home = Home::with_config(&format!(
        "[daemon]\nlog_level = \"trace\"\n\
         [plugins.leaky]\nlibrary = {library:?}\nrestart = {{ failures_max = 100, backoff_max = \"100ms\" }}\n\
         [plugins.leaky.config]\napi_key = \"secret:planted\"\ntoken_env = \"KSI_TESTS_CANARY\"\n\
         password = {OF_CONFIGURATION:?}\n\
         [plugins.refusing]\nlibrary = {library:?}\nnamespace = \"refusing\"\nrestart = {{ failures_max = 2 }}\n\
         [plugins.refusing.config]\napi_key = \"secret:planted\"\ntoken_env = \"KSI_TESTS_CANARY\"\n\
         password = {OF_CONFIGURATION:?}\nrefuse = true\n",
        library = library("fixture_leaky")
    ));
    for (name, value) in [("planted", OF_KEYRING), ("unused", OF_NOBODY)] {
        let set = home.ksi_with_input(&["secret", "set", name], &format!("{value}\n"));
        assert!(set.status.success(), "{}", stderr(&set));
        assert!(!stdout(&set).contains(value) && !stderr(&set).contains(value));
    }
    let daemon = home.start_with(|command| {
        command.env("KSI_TESTS_CANARY", OF_ENVIRONMENT);
    });
    daemon.ready();
    daemon
}

/// Everything that makes somebody speak.
fn provoke(daemon: &Daemon) -> Vec<(String, Vec<u8>)> {
    let mut said = Vec::new();
    let mut ask = |event: &str, data: serde_json::Value| {
        let answer = daemon.ask(event, data);
        let text = match &answer {
            Ok(data) => data.to_string(),
            Err(refusal) => refusal.to_string(),
        };
        said.push((event.to_owned(), text.into_bytes()));
        answer
    };
    let knows = json!({"values": [OF_KEYRING, OF_ENVIRONMENT, OF_CONFIGURATION]});
    assert_eq!(ask("leaky:knows", knows).unwrap()["same"], true, "the plugin itself has them all");
    for event in ["leaky:log", "leaky:words", "leaky:ail"] {
        ask(event, json!({})).unwrap();
    }
    wait_until("it says what it lacks", || daemon.plugin("leaky").degraded.is_some());
    for event in ["plugin:list", "system:health"] {
        let told = ask(event, json!({})).unwrap().to_string();
        assert!(told.contains("does not get in with plain *** debug"), "{told}");
    }
    let refusal = ask("leaky:refuse", json!({})).unwrap_err();
    assert!(refusal["message"].as_str().unwrap().contains("401 for plain *** debug"), "{refusal}");
    for (deaths, event) in [(1, "leaky:panic"), (2, "leaky:abort")] {
        ask(event, json!({})).unwrap_err();
        wait_until("the plugin is back", || {
            let plugin = daemon.plugin("leaky");
            plugin.state == PluginState::Ready && plugin.restarts == deaths
        });
    }
    wait_until("the other one is held", || daemon.plugin("refusing").state == PluginState::Held);
    // Nobody answers it, and it says why.
    ask("refusing:knows", json!({"values": ["", "", ""]})).unwrap_err();
    ask("completion:request", json!({"prompt": PROMPTS[0], "max_tokens": 2})).unwrap();
    let accepted = ask("completion:async", json!({"prompt": PROMPTS[1], "max_tokens": 2})).unwrap();
    ask("work:wait", json!({"request_id": accepted["request_id"]})).unwrap();
    for wrong in [
        json!({"prompt": PROMPTS[0], "model": "llama/nobody"}),
        json!({"prompt": [PROMPTS[0]]}),
        json!({"prompt": PROMPTS[0], "more": 1}),
    ] {
        daemon.ask("completion:request", wrong).unwrap_err();
    }
    for (event, data) in [
        ("plugin:inspect", json!({"name": "leaky"})),
        ("plugin:inspect", json!({"name": "refusing"})),
        ("plugin:list", json!({})),
        ("config:show", json!({})),
        ("system:health", json!({})),
        ("system:status", json!({})),
        ("system:discover", json!({"detail": true})),
        ("checkpoint:create", json!({})),
        ("checkpoint:export", json!({})),
    ] {
        ask(event, data).unwrap();
    }
    said
}

#[test]
fn no_secret_leaves_the_daemon_in_any_form_and_no_prompt_reaches_a_log() {
    let daemon = planted();
    let mut printed = provoke(&daemon);
    for arguments in [
        &["config", "show", "--origin"][..],
        &["secret", "list", "-o", "json"],
        &["plugin", "inspect", "leaky"],
        &["logs", "-n", "10000"],
        &["status"],
        &["doctor"],
    ] {
        let output = daemon.ksi(arguments);
        printed.push((format!("ksi {arguments:?}"), [output.stdout, output.stderr].concat()));
    }
    let monitor = command("ksi-monitor", daemon.home.path()).arg("--once").output().unwrap();
    printed.push(("ksi-monitor --once".into(), [monitor.stdout, monitor.stderr].concat()));
    wait_until("the log is written", || daemon.log().contains("giving up on plain ***"));

    let all = all_that_left(&daemon, printed);
    let mut found = Vec::new();
    for secret in SECRETS {
        for form in forms(secret) {
            let places = all.iter().filter(|(_, text)| holds(text, &form));
            found.extend(places.map(|(place, _)| format!("{place}: {}", String::from_utf8_lossy(&form))));
        }
    }
    assert!(found.is_empty(), "secrets have left:\n{}", found.join("\n"));

    // What must be there: the search finds what is to be found, and what is
    // no secret stays readable.
    let with = |part: &str| all.iter().filter(|(_, text)| holds(text, part.as_bytes())).collect::<Vec<_>>();
    let places = |part: &str| with(part).into_iter().map(|(place, _)| place.as_str()).collect::<Vec<_>>();
    assert!(places("max_tokens=128").iter().any(|place| place.ends_with("ksid.log")));
    assert!(places("secret:planted").contains(&"config:show"));
    assert!(places("KSI_TESTS_CANARY").contains(&"config:show"));
    assert!(places("plain *** debug").contains(&"plugin:inspect"));
    // Durable work is kept with what was asked, which is what it is for.
    let kept = places(PROMPTS[1]);
    assert!(kept.iter().any(|place| place.contains("checkpoint")), "{kept:?}");
    for prompt in PROMPTS {
        let heard = places(prompt);
        let loose =
            |place: &&str| !place.contains("/state/plugins/checkpoint/") && !place.starts_with("work:");
        let loose: Vec<_> = heard.into_iter().filter(loose).collect();
        assert!(loose.is_empty(), "a prompt is in {loose:?}");
    }
}

#[test]
fn nothing_of_the_daemon_or_a_child_can_be_dumped() {
    let daemon = planted();
    for pid in [daemon.pid(), daemon.plugin("leaky").pid.unwrap()] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        // What cannot be dumped belongs to root, whoever runs it.
        let memory = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&memory), 0);
    }
}

#[test]
fn a_keyring_is_private_and_its_values_come_in_by_the_back_door_alone() {
    let home = Home::new();
    let keyring = home.paths().keyring();
    assert_eq!(home.ksi(&["secret", "set", "a", "value-on-the-command-line"]).status.code(), Some(2));
    assert_eq!(home.ksi_with_input(&["secret", "set", "a"], "short\n").status.code(), Some(2));
    assert_eq!(home.ksi_with_input(&["secret", "set", "A b"], "long enough\n").status.code(), Some(2));
    assert!(home.ksi_with_input(&["secret", "set", "a"], "long enough\n").status.success());
    assert!(home.ksi_with_input(&["secret", "set", "b"], "another one").status.success());
    assert_eq!(fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(stdout(&home.ksi(&["secret", "list", "-o", "name"])), "a\nb\n");
    assert!(home.ksi(&["secret", "rm", "a"]).status.success());
    assert_eq!(home.ksi(&["secret", "rm", "a"]).status.code(), Some(4));
    let text = fs::read_to_string(&keyring).unwrap();
    assert!(text.contains("another one") && !text.contains("long enough"), "{text}");
    fs::set_permissions(&keyring, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = home.ksi_with_input(&["secret", "set", "c"], "long enough");
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("chmod 600"), "{}", stderr(&refused));
}

#[test]
fn a_plugin_whose_secret_is_missing_says_which_and_starts_once_it_is_there() {
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.leaky]\nlibrary = {:?}\n\
         [plugins.leaky.config]\napi_key = \"secret:later\"\ntoken = \"a token itself\"\npassword = \"a password\"\n",
        library("fixture_leaky")
    );
    let daemon = Home::with_config(&config).start();
    wait_until("it says why", || daemon.plugin("leaky").last_error.is_some());
    let why = daemon.plugin("leaky").last_error.unwrap();
    assert!(why.contains("plugins.leaky.config.api_key") && why.contains("no secret `later`"), "{why}");
    assert!(daemon.home.ksi_with_input(&["secret", "set", "later"], "it is here now").status.success());
    daemon.ask("plugin:restart", json!({"name": "leaky"})).unwrap();
    let knows = json!({"values": ["it is here now", "a token itself", "a password"]});
    assert_eq!(daemon.ask("leaky:knows", knows).unwrap()["same"], true);
}
