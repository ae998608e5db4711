//! The health of the whole, out of that of its parts: the worst wins.

use std::time::Duration;

use ksi_protocol::system::{Component, Frozen, Health, HealthStatus, PluginState, PluginStatus};

/// The health of a daemon with these plugins. `parts` are those of its own that
/// can be in trouble, and what each has to complain about.
pub(super) fn of(
    plugins: &[PluginStatus],
    parts: [(&str, Option<String>); 3],
    frozen: Option<Frozen>,
    stopping: bool,
    uptime: Duration,
) -> Health {
    let wanted = || plugins.iter().filter(|plugin| plugin.wanted);
    let mut components: Vec<Component> = wanted().map(component).collect();
    components.extend(parts.map(|(name, trouble)| {
        let status = if trouble.is_some() { HealthStatus::Degraded } else { HealthStatus::Ok };
        Component { name: name.into(), status, reason: trouble.unwrap_or_default() }
    }));
    if let Some(Frozen { reason, .. }) = &frozen {
        let reason = format!("KSI is frozen: {reason}");
        components.push(Component { name: "freeze".into(), status: HealthStatus::Degraded, reason });
    }
    let worst = components.iter().map(|component| component.status).max().unwrap_or(HealthStatus::Ok);
    let starting = components.iter().any(|component| component.status == HealthStatus::Starting);
    Health {
        status: if stopping { HealthStatus::Stopping } else { worst },
        ready: !stopping && !starting,
        reasons: components
            .iter()
            .filter(|one| !one.reason.is_empty())
            .map(|one| one.reason.clone())
            .collect(),
        components,
        frozen,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        plugins_ready: wanted().filter(|plugin| plugin.state == PluginState::Ready).count(),
        plugins_total: wanted().count(),
    }
}

/// How a plugin does that should run.
fn component(plugin: &PluginStatus) -> Component {
    let PluginStatus { name, state, .. } = plugin;
    let (status, why) = match state {
        PluginState::Ready | PluginState::Draining => match &plugin.degraded {
            Some(why) => (HealthStatus::Degraded, Some(format!("plugin {name} is degraded: {why}"))),
            None => (HealthStatus::Ok, None),
        },
        // After a death it counts as down until it is ready: its health does not
        // flicker with each attempt.
        PluginState::Starting if let Some(why) = &plugin.last_error => {
            (HealthStatus::Unhealthy, Some(format!("plugin {name} is starting again: {why}")))
        }
        PluginState::Stopped | PluginState::Starting => (HealthStatus::Starting, None),
        PluginState::Backoff | PluginState::Held | PluginState::Quarantined => {
            let why = plugin.quarantined.as_ref().or(plugin.last_error.as_ref());
            let why = why.map_or("unknown", String::as_str);
            (HealthStatus::Unhealthy, Some(format!("plugin {name} is {}: {why}", state.as_str())))
        }
    };
    Component { name: name.clone(), status, reason: why.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::system::Placement;

    fn parts(log: Option<String>) -> [(&'static str, Option<String>); 3] {
        [("log", log), ("trail", None), ("tokens", None)]
    }

    fn plugin(name: &str, state: PluginState) -> PluginStatus {
        PluginStatus {
            name: name.into(),
            version: String::new(),
            about: String::new(),
            state,
            wanted: true,
            placement: Placement::Child,
            sandbox_lacks: Vec::new(),
            sandbox: String::new(),
            pid: None,
            generation: 1,
            restarts: 0,
            ready_ms: None,
            rss_bytes: None,
            in_flight: 0,
            handled: 0,
            library: String::new(),
            last_error: None,
            degraded: None,
            quarantined: None,
            not_granted: Vec::new(),
        }
    }

    fn health(plugins: &[PluginStatus]) -> Health {
        of(plugins, parts(None), None, false, Duration::ZERO)
    }

    #[test]
    fn the_worst_component_is_the_health_of_the_whole() {
        let ready = plugin("a", PluginState::Ready);
        let starting = plugin("b", PluginState::Starting);
        let degraded = PluginStatus { degraded: Some("no disk".into()), ..plugin("c", PluginState::Ready) };
        let held = PluginStatus { last_error: Some("SIGSEGV".into()), ..plugin("d", PluginState::Held) };
        let mut plugins = vec![ready];
        let mut worst = vec![health(&plugins).status];
        for next in [starting, degraded, held] {
            plugins.push(next);
            worst.push(health(&plugins).status);
        }
        use HealthStatus as H;
        assert_eq!(worst, [H::Ok, H::Starting, H::Degraded, H::Unhealthy]);
        let whole = health(&plugins);
        assert!(!whole.ready, "one is starting");
        assert_eq!(whole.reasons, ["plugin c is degraded: no disk", "plugin d is held: SIGSEGV"]);
        assert_eq!((whole.plugins_ready, whole.plugins_total), (2, 4));
        let names: Vec<_> = whole.components.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "log", "trail", "tokens"]);
        assert_eq!(of(&plugins, parts(None), None, true, Duration::ZERO).status, H::Stopping);
    }

    #[test]
    fn a_plugin_that_starts_again_after_a_death_stays_unhealthy_until_it_is_ready() {
        let again = PluginStatus { last_error: Some("SIGSEGV".into()), ..plugin("a", PluginState::Starting) };
        let whole = health(&[again]);
        assert_eq!((whole.status, whole.ready), (HealthStatus::Unhealthy, true));
        assert_eq!(whole.reasons, ["plugin a is starting again: SIGSEGV"]);
    }

    #[test]
    fn what_nobody_wants_to_run_counts_for_nothing() {
        let off = PluginStatus { wanted: false, ..plugin("a", PluginState::Stopped) };
        let whole = health(&[off]);
        assert_eq!((whole.status, whole.ready, whole.plugins_total), (HealthStatus::Ok, true, 0));
    }

    #[test]
    fn a_quarantined_plugin_is_missed_with_the_reason_of_the_operator() {
        let mut confined = plugin("a", PluginState::Quarantined);
        (confined.last_error, confined.quarantined) = (Some("SIGSEGV".into()), Some("it lies".into()));
        let whole = health(&[confined]);
        assert_eq!(whole.status, HealthStatus::Unhealthy);
        assert_eq!(whole.reasons, ["plugin a is quarantined: it lies"]);
    }

    #[test]
    fn a_log_that_cannot_be_written_degrades() {
        let whole = of(&[], parts(Some("the log cannot be written".into())), None, false, Duration::ZERO);
        assert_eq!((whole.status, whole.ready), (HealthStatus::Degraded, true));
        assert_eq!(whole.reasons, ["the log cannot be written"]);
    }
}
