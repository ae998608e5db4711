//! `plugin …`: what runs, and how to run more of it.

mod project;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ksi_protocol::{
    sandbox::Probe,
    system::{Death, PluginInspection, PluginList, PluginLoad, PluginName, PluginStatus, Quarantine},
};
use ksi_trust::Kind;
use serde_json::json;

use super::sign::{self, Candidate};
use crate::{
    args::{self, Plugin},
    error::{Failure, Result},
    invocation::{Invocation, program, short},
    output::{Report, Table, bytes, millis},
};

/// `ksi plugin …`.
///
/// # Errors
///
/// Fails as the daemon refuses, or where files cannot be written.
pub(super) async fn run(at: &Invocation, plugin: Plugin) -> Result<()> {
    match plugin {
        Plugin::List => {
            let client = at.connect().await?;
            let list: PluginList = at.ask(&client, "plugin:list", &json!({})).await?;
            at.out.print(&list_report(&list)?)
        }
        Plugin::Inspect(args::Named { name }) => inspect(at, name).await,
        Plugin::Probe(args::Named { name }) => probe(at, name).await,
        Plugin::Load { library, placement } => {
            let library = absolute(&library)?;
            let payload = PluginLoad { library, placement: placement.map(Into::into) };
            changed(at, "plugin:load", &payload, "loaded").await
        }
        Plugin::Unload(named) => change(at, "plugin:unload", named, "unloaded").await,
        Plugin::Reload(named) => change(at, "plugin:reload", named, "reloaded").await,
        Plugin::Restart(named) => change(at, "plugin:restart", named, "restarted").await,
        Plugin::Sign(args::SignPlugins { plugins, all, key }) => {
            let candidates = if all { libraries() } else { named(&plugins)? };
            // Where a library lies that was signed by its path, the lock does not say.
            sign::sign(at, Kind::Plugins, &at.paths.plugins_lock(), key.as_deref(), &candidates, |_| false)
        }
        Plugin::Verify { plugins } => {
            let find = |file: &str| found(file).unwrap_or_else(|| file.into());
            sign::verify(at, Kind::Plugins, &at.paths.plugins_lock(), &named(&plugins)?, find)
        }
        Plugin::Quarantine { plugin: args::Named { name }, reason } => {
            changed(at, "plugin:quarantine", &Quarantine { name, reason }, "quarantined").await
        }
        Plugin::Release(named) => change(at, "plugin:release", named, "released").await,
        Plugin::New { name, dir, sdk } => new(at, &name, dir.as_deref(), sdk.as_deref()),
    }
}

/// Where the daemon looks for libraries, in order.
fn library_dirs() -> Vec<PathBuf> {
    let named = std::env::var_os("KSI_PLUGIN_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let daemon = program("ksid", Some("KSI_DAEMON"))
        .and_then(|ksid| Some(ksid.canonicalize().ok()?.parent()?.to_owned()));
    let beside = daemon.into_iter().flat_map(|dir| [dir.clone(), dir.join("../lib/ksi/plugins")]);
    named.into_iter().chain(beside).collect()
}

/// The library of this file name that the daemon would take.
fn found(file: &str) -> Option<PathBuf> {
    library_dirs().into_iter().map(|dir| dir.join(file)).find(|path| path.exists())
}

/// The name of a plugin, by that of its library.
fn plugin_of(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    Some(stem.strip_prefix("libplugin_").or_else(|| stem.strip_prefix("lib")).unwrap_or(stem).to_owned())
}

/// All libraries of plugins that the daemon would find by their names.
fn libraries() -> Vec<Candidate> {
    let is_library = |file: &str| file.starts_with("libplugin_") && file.ends_with(".so");
    let files: BTreeSet<String> = library_dirs()
        .iter()
        .filter_map(|dir| dir.read_dir().ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|file| is_library(file))
        .collect();
    files.iter().filter_map(|file| found(file)).filter_map(candidate).collect()
}

/// A library that is to be signed or verified.
fn candidate(path: PathBuf) -> Option<Candidate> {
    Some(Candidate { name: plugin_of(&path)?, file: path.file_name()?.to_str()?.to_owned(), path })
}

/// Libraries by the names of plugins, or by path.
fn named(plugins: &[String]) -> Result<Vec<Candidate>> {
    let named = |text: &String| {
        let path = match text.contains('/') {
            true => PathBuf::from(absolute(text)?),
            false => found(&format!("libplugin_{text}.so")).ok_or_else(|| {
                Failure::not_found("plugin", text)
                    .hint("give the path of its library, or see: ksi plugin list")
            })?,
        };
        candidate(path).ok_or_else(|| Failure::usage(format!("{text} is no library")))
    };
    plugins.iter().map(named).collect()
}

/// A path as the daemon needs it; a name of the manifest stays a name.
fn absolute(library: &str) -> Result<String> {
    let path = Path::new(library);
    if !library.contains('/') && !path.exists() {
        return Ok(library.to_owned());
    }
    let path = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found("library", library)
            .hint("build it first: cargo build --release; it then lies in target/release"),
        _ => Failure::to_file("read", path, &error),
    })?;
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{} is not UTF-8; move it elsewhere", path.display())))
}

fn list_report(list: &PluginList) -> Result<Report> {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "PLACEMENT",
        "SANDBOX",
        "RESTARTS",
        "HANDLED",
        "+IN-FLIGHT",
        "+PID",
        "+MEMORY",
        "+READY",
        "+VERSION",
        "+GENERATION",
        "+LIBRARY",
        "+SANDBOX LACKS",
        "ABOUT",
    ]);
    for plugin in &list.plugins {
        table.row([
            plugin.name.clone(),
            plugin.state.as_str().into(),
            plugin.placement.as_str().into(),
            known(&plugin.sandbox).to_owned(),
            plugin.restarts.to_string(),
            plugin.handled.to_string(),
            plugin.in_flight.to_string(),
            plugin.pid.map_or("-".into(), |pid| pid.to_string()),
            plugin.rss_bytes.map_or("-".into(), bytes),
            plugin.ready_ms.map_or("-".into(), millis),
            known(&plugin.version).to_owned(),
            plugin.generation.to_string(),
            short(plugin.library.as_ref()),
            lacks(plugin),
            remark(plugin).to_owned(),
        ]);
    }
    let names = list.plugins.iter().map(|plugin| plugin.name.clone()).collect();
    Report::list(list, "plugins", names, table)
}

/// What there is to say of a plugin: what is wrong with it now, how it died
/// last, or else what it is for.
fn remark(plugin: &PluginStatus) -> &str {
    let wrong = plugin.quarantined.as_ref().or(plugin.degraded.as_ref()).or(plugin.last_error.as_ref());
    wrong.unwrap_or(&plugin.about)
}

/// What a plugin that never ran has not told.
fn known(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// What of the sandbox is off or incomplete.
fn lacks(plugin: &PluginStatus) -> String {
    if plugin.sandbox_lacks.is_empty() { "-".into() } else { plugin.sandbox_lacks.join("; ") }
}

/// The level in force, of how many, and why not more.
fn sandbox(plugin: &PluginStatus) -> String {
    match plugin.sandbox.starts_with('L') {
        true if plugin.sandbox_lacks.is_empty() => plugin.sandbox.clone(),
        true => format!("{}/5 ({})", plugin.sandbox, lacks(plugin)),
        false => known(&plugin.sandbox).to_owned(),
    }
}

async fn probe(at: &Invocation, name: String) -> Result<()> {
    let client = at.connect().await?;
    let probe: Probe = at.ask(&client, "plugin:probe", &PluginName { name }).await?;
    let mut table = Table::new(&["ACT", "RESULT", "BY", "ABOUT"]);
    for finding in &probe.acts {
        let act = serde_json::to_value(finding.act).ok();
        table.row([
            act.as_ref().and_then(|act| act.as_str()).unwrap_or_default().to_owned(),
            if finding.denied { "denied" } else { "allowed" }.to_owned(),
            finding.detail.clone(),
            finding.act.about().to_owned(),
        ]);
    }
    let names = vec![probe.name.clone()];
    at.out.print(&Report::list(&probe, "acts", names, table)?)?;
    let off = probe.layers.iter().filter(|standing| !standing.why.is_empty());
    let off: Vec<String> =
        off.map(|standing| format!("{}: {}", standing.layer.as_str(), standing.why)).collect();
    at.out.note(&format!("{} runs at {}/5. {}", probe.name, probe.level, off.join("; ")));
    Ok(())
}

async fn inspect(at: &Invocation, name: String) -> Result<()> {
    let client = at.connect().await?;
    let inspection: PluginInspection = at.ask(&client, "plugin:inspect", &PluginName { name }).await?;
    let names = vec![inspection.status.name.clone()];
    at.out.print(&Report::text(&inspection, inspection_text(&inspection))?.named(names))
}

fn inspection_text(inspection: &PluginInspection) -> String {
    let PluginInspection { status, .. } = inspection;
    let mut lines = vec![
        [status.name.as_str(), &status.version, &status.about].join(" ").trim_end().to_owned(),
        format!("  state      {}, generation {}", status.state.as_str(), status.generation),
        format!("  placement  {}, sandbox {}", status.placement.as_str(), sandbox(status)),
        format!("  library    {}", short(status.library.as_ref())),
        format!("  requests   {} answered, {} in flight", status.handled, status.in_flight),
        format!("  restarts   {}", status.restarts),
    ];
    if let Some(pid) = status.pid {
        let memory = status.rss_bytes.map_or(String::new(), |rss| format!(", {}", bytes(rss)));
        lines.push(format!("  process    {pid}{memory}"));
    }
    for (title, text) in [
        ("quarantined", &status.quarantined),
        ("degraded  ", &status.degraded),
        ("last error", &status.last_error),
    ] {
        lines.extend(text.iter().map(|text| format!("  {title} {text}")));
    }
    let requests = inspection.requests.iter().map(|spec| (spec.event.as_str(), spec.about.as_str()));
    block(&mut lines, "answers", requests);
    block(
        &mut lines,
        "emits",
        inspection.emits.iter().map(|spec| (spec.event.as_str(), spec.about.as_str())),
    );
    block(&mut lines, "listens to", inspection.listens.iter().map(|pattern| (pattern.as_str(), "")));
    block(&mut lines, "may call", inspection.may_call.iter().map(|pattern| (pattern.as_str(), "")));
    if !inspection.deaths.is_empty() {
        lines.push("  deaths".into());
    }
    for death in &inspection.deaths {
        lines.push(format!("    {} {}", ksi_protocol::json::timestamp(death.at_ms), death.reason));
        lines.push(format!("      {}", circumstances(death)));
        lines.extend(death.last_words.iter().map(|line| format!("      {line}")));
    }
    lines.join("\n")
}

/// What is known of a death besides its reason.
fn circumstances(death: &Death) -> String {
    let mut known = vec![format!("generation {}", death.generation)];
    known.extend(death.signal.clone());
    known.extend(death.code.map(|code| format!("exit code {code}")));
    known.extend(death.out_of_memory.then(|| "out of memory".to_owned()));
    known.extend(death.peak_bytes.map(|peak| format!("at most {} of memory", bytes(peak))));
    known.join(", ")
}

fn block<'a>(lines: &mut Vec<String>, title: &str, items: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut items = items.peekable();
    if items.peek().is_some() {
        lines.push(format!("  {title}"));
    }
    for (name, about) in items {
        let about = about.lines().next().unwrap_or_default();
        lines.push(format!("    {name:<28} {about}").trim_end().to_owned());
    }
}

async fn change(at: &Invocation, event: &str, named: args::Named, done: &str) -> Result<()> {
    changed(at, event, &PluginName { name: named.name }, done).await
}

async fn changed(
    at: &Invocation,
    event: &str,
    payload: &(impl serde::Serialize + Sync),
    done: &str,
) -> Result<()> {
    let client = at.connect().await?;
    let status: PluginStatus = at.ask(&client, event, payload).await?;
    let text = format!("{} {done}: {}, {}", status.name, status.state.as_str(), status.placement.as_str());
    if !status.not_granted.is_empty() {
        let (name, lacks) = (&status.name, status.not_granted.join(", "));
        at.out.note(&format!("not granted: {lacks}; [plugins.{name}] in ksi.toml can grant it"));
    }
    let names = vec![status.name.clone()];
    at.out.print(&Report::text(&status, text)?.named(names))
}

fn new(at: &Invocation, name: &str, dir: Option<&Path>, sdk: Option<&Path>) -> Result<()> {
    let dir = dir.map_or_else(|| Path::new(name).to_owned(), Path::to_owned);
    let project = project::write(name, &dir, sdk)?;
    let data = json!({"name": name, "dir": project.dir, "files": project.files, "library": project.library});
    let text = format!("wrote {}", project.files.join(", "));
    at.out.print(&Report::text(&data, text)?)?;
    at.out.note(&format!(
        "Next: cd {} && cargo build --release && ksi plugin load {}\n      ksi send {name}:say --text hello",
        dir.display(),
        project.library
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, printed};
    use ksi_protocol::system::{Placement, PluginState};

    fn status() -> PluginStatus {
        PluginStatus {
            wanted: true,
            name: "echo".into(),
            version: "0.1.0".into(),
            about: "Answers".into(),
            state: PluginState::Ready,
            placement: Placement::Child,
            sandbox: "L3".into(),
            sandbox_lacks: vec!["namespaces: not allowed on this machine".into()],
            pid: Some(42),
            generation: 1,
            restarts: 0,
            ready_ms: Some(10),
            rss_bytes: Some(2_000_000),
            in_flight: 0,
            handled: 7,
            library: "/lib/libplugin_echo.so".into(),
            last_error: None,
            degraded: None,
            quarantined: None,
            not_granted: Vec::new(),
        }
    }

    #[test]
    fn the_list_is_a_table_for_people_and_the_reply_for_programs() {
        let list = PluginList { plugins: vec![status()] };
        let report = list_report(&list).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "NAME  STATE  PLACEMENT  SANDBOX  RESTARTS  HANDLED  ABOUT\n\
             echo  ready  child      L3       0         7        Answers\n"
        );
        assert!(printed(&report, Format::Wide).contains("/lib/libplugin_echo.so"));
        assert_eq!(serde_json::from_str::<PluginList>(&printed(&report, Format::Json)).unwrap(), list);
    }

    #[test]
    fn an_inspection_shows_deaths_with_their_last_words() {
        let death = ksi_protocol::system::Death {
            at_ms: 0,
            reason: "it was killed by SIGABRT".into(),
            generation: 3,
            signal: Some("SIGABRT".into()),
            peak_bytes: Some(50_000_000),
            last_words: vec!["assertion failed".into()],
            ..Default::default()
        };
        let inspection = PluginInspection {
            status: status(),
            requests: vec![],
            emits: vec![],
            listens: vec!["agent:*".into()],
            may_call: vec![],
            deaths: vec![death],
        };
        let text = inspection_text(&inspection);
        for part in [
            "sandbox L3/5 (namespaces: not allowed on this machine)",
            "process    42, 2.0 MB",
            "listens to\n    agent:*",
            "1970-01-01T00:00:00.000Z it was killed by SIGABRT",
            "generation 3, SIGABRT, at most 50.0 MB of memory",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }

    #[test]
    fn a_name_stays_a_name_and_a_path_becomes_absolute() {
        assert_eq!(absolute("echo").unwrap(), "echo");
        assert_eq!(absolute("/nowhere/libx.so").unwrap_err().exit as u8, 4);
        assert!(absolute("./Cargo.toml").unwrap().starts_with('/'));
    }
}
