//! What the keys mean: `[daemon]`, `[plugins.NAME]`, `[events."NAME"]`, and
//! what must hold between them.
//!
//! Bounds lie here, each wide enough for any sensible wish and narrow enough
//! to catch a slip of the unit.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use ksi_identity::is_permission;
use ksi_kernel::Chains;
use ksi_protocol::{EventName, limits as wire, nearest, sandbox::Layer, system::Placement, work::Policy};

use super::{
    Audit, Config, Daemon, Delivery, EventPolicy, Frozen, Grants, Limits, Plugin, Restart, RestartPolicy,
    Security, Share, identity,
    section::{Report, Section},
    tree::Table,
    value::{
        choice, duration, key, layers, log_level, network, paths, patterns, ports, switch, text_where, uids,
        whole,
    },
};
use crate::{log, own};

const PLACEMENTS: [(&str, Placement); 2] =
    [("in-process", Placement::InProcess), ("child", Placement::Child)];

const FORMATS: [(&str, log::Format); 2] = [("text", log::Format::Text), ("json", log::Format::Json)];

const DELIVERIES: [(&str, Delivery); 2] = [("live", Delivery::Live), ("durable", Delivery::Durable)];

const AUDITS: [(&str, Audit); 2] = [("all", Audit::All), ("denied", Audit::Denied)];
const FROZEN: [(&str, Frozen); 2] = [("goes_on", Frozen::GoesOn), ("refused", Frozen::Refused)];

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn between(low_ms: u64, high: Duration) -> RangeInclusive<Duration> {
    Duration::from_millis(low_ms)..=high
}

/// Reads a layer, or the whole.
pub(super) fn read(report: &Report, table: &Table) -> Config {
    let mut root = Section::root(report, table);
    let daemon = daemon(root.section("daemon"));
    let security = security(root.section("security"));
    let identity = identity::read(report, root.section("identity"));
    let limits = share(root.section("limits"));
    let sections = root.section("plugins").each();
    let names: Vec<_> = sections.iter().map(|(name, _)| name.clone()).collect();
    let mut plugins = BTreeMap::new();
    let mut places = BTreeMap::new();
    for (name, section) in sections {
        places.insert(name.clone(), section.at.clone());
        if let Some(plugin) = plugin(&name, section, &names) {
            plugins.insert(name, plugin);
        }
    }
    let mut events = BTreeMap::new();
    let mut durable = Vec::new();
    for (name, section) in root.section("events").each() {
        let at = section.place("delivery");
        if let Some(policy) = event(&name, section) {
            if policy.work.is_some() {
                durable.push((name.clone(), at));
            }
            events.insert(name, policy);
        }
    }
    root.finish();
    if report.is_whole() {
        one_owner_each(report, &plugins, &places);
        one_keeper(report, &plugins, &places, &durable);
    }
    Config { daemon, security, identity, limits, plugins, events, effective: BTreeMap::new() }
}

fn daemon(mut section: Section<'_>) -> Daemon {
    let unset = Daemon::default();
    let daemon = Daemon {
        shutdown_grace: section.get("shutdown_grace", unset.shutdown_grace, duration(between(0, HOUR))),
        log_level: section.get("log_level", unset.log_level, log_level),
        log_format: section.get("log_format", unset.log_format, choice(&FORMATS)),
        log_bytes_max: section.get("log_bytes_max", unset.log_bytes_max, whole(4096..=1 << 40)),
        log_files: section.get("log_files", unset.log_files, whole(0..=100)),
        allow_uids: section.get("allow_uids", unset.allow_uids, uids),
        threads: section.get_optional("threads", unset.threads, whole(1..=1024)),
        connections_max: section.get("connections_max", unset.connections_max, whole(1..=1_000_000)),
        in_flight_max: section.get("in_flight_max", unset.in_flight_max, whole(1..=1_000_000)),
        subscriptions_max: section.get("subscriptions_max", unset.subscriptions_max, whole(1..=1_000_000)),
        handshake_timeout: section.get(
            "handshake_timeout",
            unset.handshake_timeout,
            duration(between(10, HOUR)),
        ),
        write_deadline: section.get("write_deadline", unset.write_deadline, duration(between(10, HOUR))),
        chains: Chains {
            steps_max: section.get("chain_steps_max", unset.chains.steps_max, whole(1..=1000)),
            repeats_max: section.get("chain_repeats_max", unset.chains.repeats_max, whole(1..=1000)),
        },
    };
    section.finish();
    daemon
}

fn security(mut section: Section<'_>) -> Security {
    let unset = Security::default();
    let security = Security {
        require_signed: section.get("require_signed", unset.require_signed, switch),
        models_key: section.get_optional("models_key", unset.models_key, key),
        plugins_key: section.get_optional("plugins_key", unset.plugins_key, key),
    };
    section.finish();
    security
}

/// What one user may have.
fn share(mut section: Section<'_>) -> Share {
    let unset = Share::default();
    let share = Share {
        connections: section.get("connections_max", unset.connections, whole(1..=1_000_000)),
        in_flight: section.get("in_flight_max", unset.in_flight, whole(1..=1_000_000)),
        subscriptions: section.get_optional("subscriptions_max", unset.subscriptions, whole(1..=1_000_000)),
        bytes: section.get("queued_bytes_max", unset.bytes, whole(65_536..=1 << 40)),
        per_second: section.get_optional("per_second_max", unset.per_second, whole(1..=1_000_000)),
        connects_per_second: section.get(
            "connects_per_second_max",
            unset.connects_per_second,
            whole(1..=1_000_000),
        ),
    };
    section.finish();
    share
}

fn plugin(name: &str, mut section: Section<'_>, names: &[String]) -> Option<Plugin> {
    if !is_plugin_name(name) {
        let message = format!("`{}` is no name for a plugin", section.own_name());
        section.report.problem(&section.at, message, "lower-case letters, digits, `_` and `-`, at most 64");
    }
    let hint = || {
        let others = names.iter().map(String::as_str).filter(|other| *other != name);
        match nearest::best(name, others) {
            Some(other) => format!("did you mean `plugins.{other}`? A new plugin needs a library"),
            None => "a new plugin needs one, for example library = \"libplugin_echo.so\"".to_owned(),
        }
    };
    let library = section.get_required(
        "library",
        hint,
        text_where(
            is_library,
            "the name of a file, or an absolute path",
            "files are searched beside the daemon and in KSI_PLUGIN_DIR",
        ),
    );
    let placement = section.get("placement", Placement::Child, choice(&PLACEMENTS));
    let levels = Layer::ALL.map(|layer| (layer.level(), layer));
    let require = section.get_optional("require", None, choice(&levels));
    if require.is_some() && placement == Placement::InProcess && section.report.is_whole() {
        let message =
            format!("`{}` cannot hold in-process, where there is no sandbox", section.name("require"));
        section.report.problem(
            &section.place("require"),
            message,
            "set placement = \"child\", or leave `require` out",
        );
    }
    let sandbox = if placement == Placement::Child || !section.report.is_whole() {
        grants(section.section("sandbox"))
    } else {
        let why = "cannot hold in-process, where there is no sandbox";
        section.useless("sandbox", why, "set placement = \"child\", or leave `sandbox` out");
        Grants::default()
    };
    let plugin = Plugin {
        name: name.to_owned(),
        library: library.clone().unwrap_or_default(),
        enabled: section.get("enabled", true, switch),
        placement,
        namespace: section.get_optional(
            "namespace",
            None,
            text_where(
                is_namespace,
                "one segment of an event name that the daemon does not own",
                "lower-case letters, digits, `_`, `-` and `.`; not system, plugin, config or token",
            ),
        ),
        may_call: section.get("may_call", Vec::new(), patterns),
        emits: section.get("emits", Vec::new(), patterns),
        listens: section.get("listens", Vec::new(), patterns),
        intercepts: section.get("intercepts", Vec::new(), patterns),
        fail_open: section.get("fail_open", false, switch),
        every_tenant: section.get("every_tenant", false, switch),
        limits: limits(section.section("limits")),
        restart: restart(section.section("restart"), placement),
        sandbox,
        require,
        keeps_work: section.get("keeps_work", false, switch),
        instances: section.get("instances", false, switch),
        config: section.free("config"),
    };
    section.finish();
    library.map(|_| plugin)
}

fn limits(mut section: Section<'_>) -> Limits {
    let unset = Limits::default();
    let limits = Limits {
        holding: section.get("holding", unset.holding, whole(1..=1_000_000)),
        per_second: section.get_optional("per_second", unset.per_second, whole(1..=1_000_000)),
        instances: section.get("instances", unset.instances, whole(1..=1024)),
        memory_mb: section.get_optional("memory_mb", unset.memory_mb, whole(16..=1 << 24)),
        files: section.get("files", unset.files, whole(16..=1 << 20)),
        file_mb: section.get_optional("file_mb", unset.file_mb, whole(1..=1 << 24)),
        processes: section.get("processes", unset.processes, whole(4..=1 << 20)),
        cpu_percent: section.get_optional("cpu_percent", unset.cpu_percent, whole(1..=100_000)),
    };
    section.finish();
    limits
}

fn grants(mut section: Section<'_>) -> Grants {
    let unset = Grants::default();
    let grants = Grants {
        read: section.get("read", unset.read, paths),
        write: section.get("write", unset.write, paths),
        network: section.get("network", unset.network, network),
        listen: section.get("listen", unset.listen, ports),
        unix: section.get("unix", unset.unix, switch),
        exec: section.get("exec", unset.exec, switch),
        gpu: section.get("gpu", unset.gpu, switch),
        disable: section.get("disable", unset.disable, layers),
    };
    section.finish();
    grants
}

fn restart(mut section: Section<'_>, placement: Placement) -> Restart {
    let unset = Restart::of(placement);
    let RestartPolicy { backoff_min, backoff_max, reset_after, failures_max, window } = unset.policy;
    let policy = RestartPolicy {
        backoff_min: section.get("backoff_min", backoff_min, duration(between(1, HOUR))),
        backoff_max: section.get("backoff_max", backoff_max, duration(between(1, HOUR))),
        reset_after: section.get("reset_after", reset_after, duration(between(1, 24 * HOUR))),
        failures_max: section.get("failures_max", failures_max, whole(1..=1000)),
        window: section.get("window", window, duration(between(1, 24 * HOUR))),
    };
    let restart = Restart {
        policy,
        hang: section.get("hang", unset.hang, duration(between(10, HOUR))),
        start_timeout: section.get("start_timeout", unset.start_timeout, duration(between(10, HOUR))),
        stop_timeout: section.get("stop_timeout", unset.stop_timeout, duration(between(0, HOUR))),
    };
    if policy.backoff_min > policy.backoff_max && section.report.is_whole() {
        let [low, high] = [policy.backoff_min, policy.backoff_max].map(humantime::format_duration);
        let message = format!("`{}` is {low}, more than backoff_max, {high}", section.name("backoff_min"));
        section.report.problem(&section.place("backoff_min"), message, "set both");
    }
    section.finish();
    restart
}

fn event(name: &str, mut section: Section<'_>) -> Option<EventPolicy> {
    if let Err(error) = EventName::parse(name) {
        let message = format!("`{}` names no event: {error}", section.own_name());
        section.report.problem(&section.at, message, "write [events.\"namespace:action\"]");
    }
    let delivery = section.get("delivery", Delivery::Live, choice(&DELIVERIES));
    if delivery == Delivery::Durable && own::Request::of(name).is_some() {
        let message =
            format!("`{}` is `durable`, and the daemon answers it at once", section.name("delivery"));
        section.report.problem(&section.place("delivery"), message, "`live` is what it can be");
    }
    let a_permission = || {
        text_where(
            is_permission,
            "a permission such as `system.read`",
            "two or more words of lower-case letters, digits and `_`, joined by dots",
        )
    };
    let permission = section.get_required(
        "permission",
        || "for example permission = \"completion.use\"".to_owned(),
        a_permission(),
    );
    let emit = section.get_optional("emit", None, a_permission());
    let usual = Audit::of_permission(permission.as_deref().unwrap_or_default());
    let audit = section.get("audit", usual, choice(&AUDITS));
    let usual = Frozen::of_permission(permission.as_deref().unwrap_or_default());
    let frozen = section.get("frozen", usual, choice(&FROZEN));
    let timeout = section.get_optional("timeout", None, duration(between(1, wire::REQUEST_TIMEOUT_MAX)));
    let work = if delivery == Delivery::Durable || !section.report.is_whole() {
        Some(Arc::new(work(&mut section, timeout)))
    } else {
        for key in ["retry", "expires", "keep", "repeat"] {
            section.useless(
                key,
                "is for durable events alone",
                "set delivery = \"durable\", or leave it out",
            );
        }
        None
    };
    section.finish();
    Some(EventPolicy { delivery, permission: permission?, emit, audit, frozen, timeout, work })
}

/// How the work of a durable event is carried out.
fn work(section: &mut Section<'_>, timeout: Option<Duration>) -> Policy {
    let unset = Policy::default();
    let time = Duration::from_millis;
    let mut retry = section.section("retry");
    let [least, most] = [
        retry.get("backoff_min", time(unset.backoff_min_ms), duration(between(1, HOUR))),
        retry.get("backoff_max", time(unset.backoff_max_ms), duration(between(1, 24 * HOUR))),
    ];
    if least > most && retry.report.is_whole() {
        let [low, high] = [least, most].map(humantime::format_duration);
        let message = format!("`{}` is {low}, more than backoff_max, {high}", retry.name("backoff_min"));
        retry.report.problem(&retry.place("backoff_min"), message, "set both");
    }
    let attempts = retry.get("attempts", unset.attempts, whole(1..=1000));
    retry.finish();
    Policy {
        attempts,
        backoff_min_ms: millis(least),
        backoff_max_ms: millis(most),
        timeout_ms: timeout.map_or(unset.timeout_ms, millis),
        expires_ms: millis(section.get("expires", time(unset.expires_ms), duration(between(1, YEAR)))),
        keep_ms: millis(section.get("keep", time(unset.keep_ms), duration(between(0, YEAR)))),
        repeat: section.get("repeat", unset.repeat, switch),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// At most one enabled plugin keeps work; where events are durable, some plugin
/// must. That it may be disabled is the user's to decide: then these events are
/// refused.
fn one_keeper(
    report: &Report,
    plugins: &BTreeMap<String, Plugin>,
    places: &BTreeMap<String, super::Origin>,
    durable: &[(String, super::Origin)],
) {
    let mut keepers = plugins.values().filter(|plugin| plugin.enabled && plugin.keeps_work);
    if let (Some(first), Some(second)) = (keepers.next(), keepers.next()) {
        let message = format!("`plugins.{}` and `plugins.{}` both keep work", second.name, first.name);
        let at = places.get(&second.name).unwrap_or(&super::Origin::Default);
        report.problem(at, message, "set enabled = false in one of them");
    }
    if plugins.values().any(|plugin| plugin.keeps_work) {
        return;
    }
    for (name, at) in durable {
        let message = format!("`events.\"{name}\".delivery` is `durable`, and no plugin keeps work");
        report.problem(at, message, "a plugin with keeps_work = true does; without one, `live` is possible");
    }
}

/// Two enabled instances of one library need two namespaces, and a namespace
/// has one owner. What a library calls its own is not known before it is
/// loaded; that clash is found then.
fn one_owner_each(
    report: &Report,
    plugins: &BTreeMap<String, Plugin>,
    places: &BTreeMap<String, super::Origin>,
) {
    let mut owners: BTreeMap<(&str, Option<&str>), &str> = BTreeMap::new();
    for plugin in plugins.values().filter(|plugin| plugin.enabled) {
        let what = match &plugin.namespace {
            Some(namespace) => ("", Some(namespace.as_str())),
            None => (plugin.library.as_str(), None),
        };
        let Some(other) = owners.insert(what, &plugin.name) else { continue };
        let both = format!("`plugins.{}` and `plugins.{other}`", plugin.name);
        let message = match &plugin.namespace {
            Some(namespace) => format!("{both} both own the namespace `{namespace}`"),
            None => format!("{both} are both `{}`, with one namespace between them", plugin.library),
        };
        let at = places.get(&plugin.name).unwrap_or(&super::Origin::Default);
        report.problem(at, message, "give one of them a `namespace`, or set enabled = false");
    }
}

fn is_plugin_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// A plain name cannot lead out of the directories that are searched.
fn is_library(text: &str) -> bool {
    text.starts_with('/') || !(text.is_empty() || text.contains(['/', '\0']) || matches!(text, "." | ".."))
}

fn is_namespace(text: &str) -> bool {
    !own::is_own(text) && !text.contains(':') && EventName::parse(&format!("{text}:x")).is_ok()
}
