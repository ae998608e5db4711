//! The rules of the house that no compiler checks: how files begin and how
//! long they are, where `unsafe` may stand, who may depend on whom, and that
//! the manifest and the code name the same events.
//!
//! It reads the tree as text and judges no style that `rustfmt` or `clippy`
//! already does. `PROTOCOL.md` is compared with the code by the tests of
//! `kernel/protocol`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, NodeDep, PackageId};

/// Longest file, without its tests.
const FILE_LINES_MAX: usize = 500;
/// Longest kernel: lines of code of all files together, without comments and
/// tests.
const KERNEL_LINES_MAX: usize = 2_400;
/// Where `unsafe` may stand: the ABI, its two sides, the one module that calls
/// llama.cpp and a test that asks ggml for its own table, and the plugins that
/// misbehave on purpose.
const UNSAFE_ALLOWED: [&str; 6] = [
    "kernel/abi/",
    "kernel/sdk/",
    "kernel/host/",
    "plugins/llama/src/engine",
    "plugins/llama/src/gguf/tests.rs",
    "tests/fixtures/",
];
/// Where a thread may wait for a time, though it could sleep so: loops that look
/// again until what they wait for is there, and work that keeps a pace. All else
/// waits for a sign.
const PARKED: [&str; 14] = [
    "ctl/src/bench/frozen.rs",
    "daemon/src/instance.rs",
    "plugins/checkpoint/src/disk.rs",
    "plugins/checkpoint/src/testing.rs",
    "plugins/claude-cli/tests/claude_cli.rs",
    "tests/it/cli/logs.rs",
    "tests/it/faults.rs",
    "tests/src/bin/siege.rs",
    "tests/src/faults.rs",
    "tests/src/kills.rs",
    "tests/src/lib.rs",
    "tests/src/siege.rs",
    "tests/src/terminal.rs",
    "tui/src/conn/feed.rs",
];
/// Where a forbidden word is right: a macro that is expanded in other crates
/// cannot know whether their lints are on, and a plugin hangs on purpose.
const EXEMPT: [(&str, &str); 2] =
    [("kernel/sdk/src/lib.rs", concat!("#[", "allow(")), ("tests/fixtures/", concat!("thread::", "sleep("))];
/// Folders that hold no source of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "corpus", "artifacts"];

/// Who may depend on whom inside the workspace, tests aside.
const EDGES: [(&str, &[&str]); 14] = [
    ("ksi-abi", &[]),
    ("ksi-protocol", &[]),
    ("ksi-identity", &["ksi-protocol"]),
    ("ksi-trust", &[]),
    ("ksi-kernel", &["ksi-identity", "ksi-protocol"]),
    ("ksi-sdk", &["ksi-abi", "ksi-protocol", "ksi-trust"]),
    ("ksi-provider", &["ksi-protocol"]),
    ("ksi-provider-http", &["ksi-provider", "ksi-sdk"]),
    ("ksi-host", &["ksi-abi", "ksi-protocol", "ksi-trust"]),
    ("ksi-client", &["ksi-protocol"]),
    ("ksid", &["ksi-kernel", "ksi-host", "ksi-identity", "ksi-protocol", "ksi-trust"]),
    ("ksi", &["ksi-client", "ksi-protocol", "ksi-provider", "ksi-trust"]),
    ("ksi-monitor", &["ksi-client", "ksi-protocol"]),
    ("ksi-tests", &["ksi-client", "ksi-protocol"]),
];

/// The modules of the daemon from the bottom: each names only those above it in
/// this list. The hub names its clients and its plugins, since they are what a
/// `Handle` is, and they name it; they are one entry.
const DAEMON: [&[&str]; 21] = [
    &["complaints"],
    &["jitter"],
    &["lanes"],
    &["memory"],
    &["notify"],
    &["orders"],
    &["own"],
    &["redaction"],
    &["takeover"],
    &["woken"],
    &["instance"],
    &["log"],
    &["wire"],
    &["config"],
    &["identity"],
    &["secrets"],
    &["trust"],
    &["hub", "plugin", "session"],
    &["trail"],
    &["system"],
    &["server"],
];

/// What the pure crates must not reach, through whatever others and their
/// features.
const PURE: [(&str, &[&str]); 5] = [
    ("ksi-abi", &["serde", "tokio", "nix", "bytes"]),
    ("ksi-identity", &["tokio", "nix", "mio", "tracing"]),
    ("ksi-protocol", &["tokio", "nix", "mio", "tracing"]),
    ("ksi-kernel", &["tokio", "nix", "mio", "tracing"]),
    ("ksi-provider", &["tokio", "nix", "mio", "tracing", "reqwest"]),
];

/// What the kernel does not name itself, though the protocol does: who looks into
/// no payload has no use for it.
const UNREAD: &str = "rmp-serde";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

/// Every file below `folder`, with its path from the root.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree can be read") {
            let path = entry.expect("its entries too").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
                folders.push(path);
            } else if path.is_file() {
                let from_root = path.strip_prefix(root()).expect("it lies in the root");
                found.push((from_root.to_string_lossy().into_owned(), path));
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file with its text.
fn sources() -> Vec<(String, String)> {
    let rust = |(name, _): &(String, PathBuf)| name.ends_with(".rs");
    files(root()).into_iter().filter(rust).map(|(name, path)| (name, read(&path))).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines before the module of tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let tests =
            line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod tests {"));
        (!tests).then_some(line)
    })
}

/// Files that only a build of the tests has: `#[cfg(test)] mod name;`.
fn test_modules(sources: &[(String, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, text) in sources {
        let stem = name.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((folder, "lib" | "main")) => folder,
            _ => stem,
        };
        for rest in text.split("#[cfg(test)]\nmod ").skip(1) {
            if let Some((module, _)) = rest.split_once(';').filter(|(module, _)| !module.contains([' ', '{']))
            {
                found.insert(format!("{folder}/{module}.rs"));
            }
        }
    }
    found
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/it/") || name == "tests/tidy.rs" || name.ends_with("/tests.rs") || {
        let mut folders = name.split('/').skip(1);
        folders.any(|folder| folder == "tests")
    }
}

fn no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    no_complaints(&silent.map(|(name, _)| format!("{name} does not begin with `//! `")).collect::<Vec<_>>());
}

#[test]
fn no_file_is_longer_than_the_limit_unless_it_says_why() {
    let mut complaints = Vec::new();
    let sources = sources();
    let tests = test_modules(&sources);
    for (name, text) in sources.iter().filter(|(name, _)| !is_test(name) && !tests.contains(name)) {
        let lines = code(text).count();
        if lines > FILE_LINES_MAX && !text.contains("// tidy: long because ") {
            complaints
                .push(format!("{name} has {lines} lines without its tests; {FILE_LINES_MAX} is the limit"));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn the_kernel_stays_small() {
    let sources = sources();
    let tests = test_modules(&sources);
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let lines: usize = sources
        .iter()
        .filter(|(name, _)| name.starts_with("kernel/src/") && !is_test(name) && !tests.contains(name))
        .map(|(_, text)| code(text).filter(is_code).count())
        .sum();
    assert!(lines < KERNEL_LINES_MAX, "kernel/src has {lines} lines of code");
}

#[test]
fn nothing_is_ignored_expected_to_panic_or_left_for_later() {
    let forbidden = [
        concat!("#[", "ignore"),
        concat!("should_", "panic"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "allow("),
        concat!("thread::", "sleep("),
        concat!("unbounded_", "channel("),
    ];
    let mut complaints = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let exempt =
                |word: &str| EXEMPT.iter().any(|(place, right)| name.starts_with(place) && word == *right);
            for word in forbidden.iter().filter(|word| line.contains(**word) && !exempt(word)) {
                complaints.push(format!("{name}:{}: `{word}`", number + 1));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn a_thread_waits_for_a_time_only_where_it_looks_again() {
    let waits = |(_, text): &(String, String)| text.contains(concat!("park_", "timeout("));
    let found: BTreeSet<String> = sources().into_iter().filter(waits).map(|(name, _)| name).collect();
    let listed = PARKED.map(str::to_owned).into();
    let unlisted = found.difference(&listed).map(|name| format!("{name} waits for a time, not for a sign"));
    let idle = listed.difference(&found).map(|name| format!("{name} is listed and does not wait"));
    no_complaints(&unlisted.chain(idle).collect::<Vec<_>>());
}

/// Whether a line of code, comments and texts aside, has the keyword.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let unquoted: String = code.split('"').step_by(2).collect();
    unquoted.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[test]
fn unsafe_code_stands_only_at_the_boundaries() {
    let mut complaints = Vec::new();
    for (name, text) in sources() {
        if UNSAFE_ALLOWED.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        for (number, _) in text.lines().enumerate().filter(|(_, line)| has_unsafe(line)) {
            complaints.push(format!("{name}:{}: unsafe code", number + 1));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn no_path_of_the_machine_it_was_written_on_is_left() {
    let foreign =
        [concat!("/wo", "rk/"), concat!("/tmp/", "ksi/"), concat!("bash_", "jobs"), concat!("/ro", "ot/")];
    let mut complaints = Vec::new();
    for (name, path) in files(root()) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        for path in foreign.iter().filter(|path| text.contains(**path)) {
            complaints.push(format!("{name}: `{path}`"));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn modules_are_named_after_what_they_are() {
    let vague = ["mod", "util", "utils", "helper", "helpers", "common", "manager", "misc"];
    let stem =
        |name: &str| name.rsplit('/').next().and_then(|file| file.strip_suffix(".rs")).map(str::to_owned);
    let complaints: Vec<String> = sources()
        .into_iter()
        .filter(|(name, _)| stem(name).is_some_and(|stem| vague.contains(&stem.as_str())))
        .map(|(name, _)| name)
        .collect();
    no_complaints(&complaints);
}

#[test]
fn dependencies_inside_the_workspace_point_only_where_they_may() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--locked".to_owned(), "--offline".to_owned()])
        .exec()
        .expect("cargo describes the workspace");
    let allowed: BTreeMap<&str, &[&str]> = EDGES.into_iter().collect();
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let allowed = match name.split_once('-') {
            Some(("plugin", _)) => Some(&["ksi-provider", "ksi-provider-http", "ksi-sdk"][..]),
            // A fixture may speak the ABI by hand, and get it wrong.
            Some(("fixture", _)) => Some(&["ksi-abi", "ksi-sdk"][..]),
            _ => allowed.get(name).copied(),
        };
        let Some(allowed) = allowed else {
            complaints.push(format!("{name} has no row in the table of edges"));
            continue;
        };
        let normal =
            package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for dependency in normal.filter(|dependency| dependency.path.is_some()) {
            if !allowed.contains(&dependency.name.as_str()) {
                complaints.push(format!("{name} depends on {}", dependency.name));
            }
        }
    }
    no_complaints(&complaints);
}

/// The modules that a text names in its own crate: `crate::one`, and each of
/// `crate::{one, two::{…}}`.
fn named_modules(text: &str) -> BTreeSet<String> {
    let lines = code(text).filter(|line| !line.trim_start().starts_with("//"));
    let flat: String = lines.flat_map(str::split_whitespace).collect();
    let first = |path: &str| path.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
    let mut named = BTreeSet::new();
    for rest in flat.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            named.extend(first(rest));
            continue;
        };
        let mut depth = 1;
        let paths = group.split_inclusive(['{', '}', ',']).map_while(|path| {
            let (outer, end) = (depth, path.chars().next_back());
            depth += i32::from(end == Some('{')) - i32::from(end == Some('}'));
            (outer > 0).then_some((outer, path))
        });
        named.extend(paths.filter(|(outer, _)| *outer == 1).filter_map(|(_, path)| first(path)));
    }
    named.remove("");
    named
}

#[test]
fn modules_are_found_alone_and_in_braces() {
    let text =
        "use crate::{\n    config::{self, Config},\n    own,\n};\n// crate::hub\nfn a(x: crate::log::X) {}\n";
    assert!(named_modules(text).iter().eq(["config", "log", "own"]), "{:?}", named_modules(text));
}

#[test]
fn the_modules_of_the_daemon_name_only_those_below_them() {
    let sources = sources();
    let tests = test_modules(&sources);
    let is_ours = |name: &str| !is_test(name) && !tests.contains(name);
    let mut complaints = Vec::new();
    for (name, text) in sources.iter().filter(|(name, _)| is_ours(name)) {
        let Some(place) = name.strip_prefix("daemon/src/") else { continue };
        let module = place.split(['/', '.']).next().unwrap_or_default();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some(at) = DAEMON.iter().position(|entry| entry.contains(&module)) else {
            complaints.push(format!("{name}: `{module}` has no place in the list of modules"));
            continue;
        };
        let below = || DAEMON[..=at].iter().flat_map(|entry| entry.iter());
        for other in named_modules(text).iter().filter(|other| !below().any(|module| module == other)) {
            complaints.push(format!("{name} names `{other}`, which is not below `{module}`"));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn scripts_name_packages_that_there_are() {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().expect("cargo metadata");
    let is_there = |wanted: &str| match wanted.strip_suffix('*') {
        Some(start) => metadata.packages.iter().any(|package| package.name.starts_with(start)),
        None => metadata.packages.iter().any(|package| package.name.as_str() == wanted),
    };
    let (mut named, mut complaints) = (0, Vec::new());
    for (name, path) in files(&root().join("scripts")) {
        let text = fs::read_to_string(path).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("scripts/cargo ")) {
            let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('\'')).collect();
            let packages =
                words.windows(2).filter(|pair| ["-p", "--exclude"].contains(&pair[0])).map(|pair| pair[1]);
            for package in packages {
                named += 1;
                if !is_there(package) {
                    complaints.push(format!("{name}: there is no package `{package}`"));
                }
            }
        }
    }
    assert!(named > 10, "{named}");
    no_complaints(&complaints);
}

/// All packages that one reaches by what it is built with, itself first.
fn reached<'a>(metadata: &'a Metadata, from: &'a PackageId) -> Vec<&'a PackageId> {
    let resolve = metadata.resolve.as_ref().expect("all dependencies are resolved");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut reached = vec![from];
    let mut at = 0;
    while let Some(node) = reached.get(at).map(|id| nodes[id]) {
        let normal = |dep: &&NodeDep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
        for dependency in node.deps.iter().filter(normal) {
            if !reached.contains(&&dependency.pkg) {
                reached.push(&dependency.pkg);
            }
        }
        at += 1;
    }
    reached
}

#[test]
fn pure_crates_stay_away_from_io() {
    // What only other systems need may not be on this machine.
    let platform = ["--filter-platform".to_owned(), "host-tuple".to_owned()];
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked".to_owned(), "--offline".to_owned()])
        .other_options(platform)
        .exec()
        .expect("cargo describes the workspace and all that it is built with");
    let package = |name: &str| {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name);
        package.unwrap_or_else(|| panic!("there is no package {name}"))
    };
    let name = |id: &PackageId| metadata[id].name.to_string();
    for (pure, forbidden) in PURE {
        let reached: Vec<_> = reached(&metadata, &package(pure).id).into_iter().map(name).collect();
        assert!(!reached.iter().any(|name| forbidden.contains(&name.as_str())), "{pure} reaches {reached:?}");
    }
    let daemon: Vec<_> = reached(&metadata, &package("ksid").id).into_iter().map(name).collect();
    assert!(daemon.iter().any(|name| name == "mio"), "what others depend on is looked at: {daemon:?}");
    let kernel = &package("ksi-kernel").dependencies;
    assert!(!kernel.iter().any(|dependency| dependency.name == UNREAD));
}

/// The names that a text registers: `on.request("…"`, `on.stream("…"`, the same
/// with `_raw::<…>`, and `on.emits::<…>("…"`, however they are broken over lines.
fn registered(text: &str) -> BTreeSet<String> {
    let flat: String = code(text)
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split_whitespace())
        .collect();
    let mut names = BTreeSet::new();
    for call in ["on.request(\"", "on.stream(\""] {
        names.extend(flat.split(call).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    for call in ["on.emits::<", "on.request_raw::<", "on.stream_raw::<"] {
        for rest in flat.split(call).skip(1) {
            let name = rest.split_once(">(\"").and_then(|(_, rest)| rest.split('"').next());
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

/// Texts in quotes that are events of the daemon itself.
fn of_the_daemon(text: &str) -> BTreeSet<String> {
    let lines = code(text).filter(|line| !line.trim_start().starts_with("//"));
    let quoted = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    let is_event = |text: &&str| {
        let mut segments = text.split(':');
        let is_action = |action: &str| {
            !action.is_empty() && action.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        matches!(segments.next(), Some("system" | "plugin" | "config" | "token"))
            && segments.clone().next().is_some()
            && segments.all(is_action)
    };
    quoted.filter(is_event).map(str::to_owned).collect()
}

#[test]
fn the_manifest_and_the_code_name_the_same_events() {
    let manifest: toml::Table = read(&root().join("events.toml")).parse().expect("events.toml is TOML");
    let events = manifest.get("events").and_then(toml::Value::as_table).expect("it has [events]");
    let listed: BTreeSet<String> = events.keys().cloned().collect();
    let mut named = BTreeSet::new();
    for (name, text) in sources() {
        if name.starts_with("plugins/") && !is_test(&name) {
            named.extend(registered(&text));
        } else if name.starts_with("daemon/src/") && !is_test(&name) {
            named.extend(of_the_daemon(&text));
        }
    }
    let only_code: Vec<_> = named.difference(&listed).collect();
    let only_manifest: Vec<_> = listed.difference(&named).collect();
    assert!(only_code.is_empty(), "events.toml lacks {only_code:?}");
    assert!(only_manifest.is_empty(), "no code has {only_manifest:?}");
}

#[test]
fn every_link_of_a_page_leads_to_a_file() {
    let mut complaints = Vec::new();
    for (name, path) in files(root()).into_iter().filter(|(name, _)| name.ends_with(".md")) {
        let folder = path.parent().expect("a file lies in a folder").to_owned();
        for rest in read(&path).split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            let outside = target.contains("://") || target.is_empty() || target.starts_with("mailto:");
            if !outside && !folder.join(target).exists() {
                complaints.push(format!("{name}: `{target}` does not exist"));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn every_package_takes_the_lints_of_the_workspace() {
    let manifests = files(root()).into_iter().filter(|(name, _)| name.ends_with("/Cargo.toml"));
    // Workspaces of their own, which have no other's lints to take.
    let apart = |name: &str| ["fuzz/", "tests/async-nats/"].iter().any(|folder| name.starts_with(folder));
    for (name, path) in manifests.filter(|(name, _)| !apart(name)) {
        let manifest: toml::Table = read(&path).parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(lints.and_then(toml::Value::as_bool), Some(true), "{name}");
    }
}
