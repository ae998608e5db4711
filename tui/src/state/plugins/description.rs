//! A plugin in words: its figures as they are now, and what `plugin:inspect`
//! said of it when it was opened.

use ksi_protocol::system::{Death, PluginInspection, PluginStatus};

use super::Described;
use crate::figures;

/// Most lines of standard error that are shown of one death.
const LAST_WORDS_MAX: usize = 20;

impl Described {
    /// The description, line by line. A line without indentation that ends in
    /// a colon is a heading.
    pub(crate) fn lines(&self, plugins: &[PluginStatus]) -> Vec<String> {
        let mut lines = Vec::new();
        let listed = plugins.iter().find(|plugin| plugin.name == self.name);
        let inspection = self.answer.as_ref().and_then(|answer| answer.as_ref().ok());
        match listed.or(inspection.map(|inspection| &inspection.status)) {
            Some(status) => state(&mut lines, status),
            None => lines.push(format!("{} is no longer there", self.name)),
        }
        match &self.answer {
            None => lines.push("asking plugin:inspect…".into()),
            Some(Err(error)) => lines.push(format!("plugin:inspect failed: {error}")),
            Some(Ok(inspection)) => contract(&mut lines, inspection),
        }
        lines
    }
}

/// The figures of this moment.
fn state(lines: &mut Vec<String>, plugin: &PluginStatus) {
    let version = if plugin.version.is_empty() { "version unknown" } else { &plugin.version };
    lines.push(format!("{} {version}", plugin.name));
    if !plugin.about.is_empty() {
        lines.push(plugin.about.clone());
    }
    let since = match plugin.ready_ms {
        Some(ms) => format!("{} for {}", plugin.state.as_str(), figures::span(ms)),
        None => plugin.state.as_str().to_owned(),
    };
    for (label, value) in [
        ("state", since),
        ("placement", plugin.placement.as_str().to_owned()),
        ("sandbox", sandbox(plugin)),
        ("generation", plugin.generation.to_string()),
        ("restarts", plugin.restarts.to_string()),
        ("pid", plugin.pid.map_or_else(|| "-".into(), |pid| pid.to_string())),
        ("memory", plugin.rss_bytes.map_or_else(|| "-".into(), figures::bytes)),
        ("in flight", figures::count(plugin.in_flight as u64)),
        ("handled", figures::count(plugin.handled)),
        ("library", plugin.library.clone()),
        ("quarantined", plugin.quarantined.clone().unwrap_or_else(|| "no".into())),
        ("degraded", plugin.degraded.clone().unwrap_or_else(|| "no".into())),
        ("last error", plugin.last_error.clone().unwrap_or_else(|| "none".into())),
    ] {
        lines.push(format!("  {label:<11} {value}"));
    }
}

/// The level in force, and what it lacks.
fn sandbox(plugin: &PluginStatus) -> String {
    let level = figures::or_dash(&plugin.sandbox);
    if plugin.sandbox_lacks.is_empty() {
        level
    } else {
        format!("{level} ({})", plugin.sandbox_lacks.join("; "))
    }
}

/// What it answers, emits, hears and may call, and how it died.
fn contract(lines: &mut Vec<String>, inspection: &PluginInspection) {
    lines.push(format!("deaths, newest first ({}):", inspection.deaths.len()));
    for death in inspection.deaths.iter().rev() {
        self::death(lines, death);
    }
    lines.push(format!("answers ({}):", inspection.requests.len()));
    for request in &inspection.requests {
        lines.push(format!("  {:<28} {}", request.event, first_line(&request.about)));
    }
    lines.push(format!("emits ({}):", inspection.emits.len()));
    for fact in &inspection.emits {
        lines.push(format!("  {:<28} {}", fact.event, first_line(&fact.about)));
    }
    for (label, patterns) in [("listens to", &inspection.listens), ("may call", &inspection.may_call)] {
        lines.push(format!("{label} ({}):", patterns.len()));
        lines.extend(patterns.iter().map(|pattern| format!("  {pattern}")));
    }
}

fn death(lines: &mut Vec<String>, death: &Death) {
    lines.push(format!("  {} {}", figures::moment(death.at_ms), death.reason));
    let peak = death.peak_bytes.map(|peak| format!(", at most {} of memory", figures::bytes(peak)));
    let memory = if death.out_of_memory { ", out of memory" } else { "" };
    lines.push(format!("    generation {}{memory}{}", death.generation, peak.unwrap_or_default()));
    let skipped = death.last_words.len().saturating_sub(LAST_WORDS_MAX);
    lines.extend(death.last_words.iter().skip(skipped).map(|word| format!("    | {word}")));
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
