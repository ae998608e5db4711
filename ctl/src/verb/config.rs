//! `config …` and `reload`: what is configured, where it comes from, and how
//! to change it.
//!
//! The daemon is the one who reads and judges the configuration. `set` edits
//! `ksi.toml`, keeping comments and order, and takes the edit back where
//! `ksid --check-config` refuses it.

mod edit;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use ksi_protocol::{
    nearest,
    system::{ConfigChanges, ConfigShown, Nothing},
};
use serde_json::{Map, Value, json};
use toml_edit::Key;

use crate::{
    args::Config,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, required_program, short},
    output::{Report, Table},
};

/// `ksi config …`.
///
/// # Errors
///
/// Fails as the daemon refuses, or where the file cannot be written.
pub(super) async fn run(at: &Invocation, config: Config) -> Result<()> {
    match config {
        Config::Path => path(at),
        Config::Show { origin } => show(at, origin).await,
        Config::Get { key } => get(at, &key).await,
        Config::Set { key, value } => set(at, &key, &value).await,
        Config::Validate => {
            check(at)?;
            let file = short(&at.paths.config_file);
            let text = match at.paths.config_file.exists() {
                true => format!("{file} is fine"),
                false => format!("there is no {file}, and the defaults are fine"),
            };
            at.out.print(&Report::text(&json!({"valid": true, "file": at.paths.config_file}), text)?)
        }
    }
}

fn path(at: &Invocation) -> Result<()> {
    let paths = &at.paths;
    let places = [
        ("config", paths.config_file.clone()),
        ("state", paths.state_dir.clone()),
        ("runtime", paths.runtime_dir.clone()),
        ("socket", paths.socket.clone()),
        ("log", paths.log_file()),
        ("models", paths.models_dir()),
    ];
    let mut table = Table::new(&["WHAT", "PATH", "+EXISTS"]);
    let mut data = Map::new();
    let mut names = Vec::new();
    for (what, path) in places {
        let exists = if path.exists() { "yes" } else { "no" };
        table.row([what.into(), path.display().to_string(), exists.into()]);
        names.push(path.display().to_string());
        data.insert(what.into(), names.last().cloned().into());
    }
    at.out.print(&Report::list(&data, "", names, table)?)
}

/// Every value of a tree by its dotted key.
fn flat(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                // A name with a colon for example stands in quotes, as in the file.
                let key = Key::new(key).display_repr().into_owned();
                let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flat(&key, value, into);
            }
        }
        value => into.push((prefix.to_owned(), value.clone())),
    }
}

/// A value as people write it: texts without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn show(at: &Invocation, origin: bool) -> Result<()> {
    let client = at.connect().await?;
    let reply: ConfigShown = at.ask(&client, "config:show", &Nothing {}).await?;
    at.out.print(&shown(&reply, origin)?)
}

fn shown(reply: &ConfigShown, origin: bool) -> Result<Report> {
    let mut values = Vec::new();
    flat("", &reply.config, &mut values);
    let mut table = Table::new(&["KEY", "VALUE", if origin { "ORIGIN" } else { "+ORIGIN" }]);
    let mut names = Vec::new();
    for (key, value) in values {
        let source = reply.sources.get(&key).map_or("default", String::as_str);
        table.row([key.clone(), plain(&value), source.to_owned()]);
        names.push(key);
    }
    match origin {
        true => Report::list(reply, "", names, table),
        false => Report::list(&reply.config, "", names, table),
    }
}

async fn get(at: &Invocation, key: &str) -> Result<()> {
    let client = at.connect().await?;
    let ConfigShown { config, .. } = at.ask(&client, "config:show", &Nothing {}).await?;
    let parts = edit::parts(key)?;
    let Some(value) = parts.iter().try_fold(&config, |value, part| value.get(part.get())) else {
        return Err(unknown_key(key, &config));
    };
    at.out.print(&Report::text(value, plain(value))?.named(vec![key.to_owned()]))
}

fn unknown_key(key: &str, config: &Value) -> Failure {
    let mut values = Vec::new();
    flat("", config, &mut values);
    let near = nearest::best(key, values.iter().map(|(key, _)| key.as_str()));
    let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
    Failure::not_found("key", key).hint(format!("{near}all keys: ksi config show"))
}

async fn set(at: &Invocation, key: &str, value: &str) -> Result<()> {
    let file = &at.paths.config_file;
    let edit = edit::Edit::open(file)?;
    let change = edit.set(key, value)?;
    change.write()?;
    if let Err(failure) = check(at) {
        change.take_back()?;
        return Err(Failure { message: format!("`{key}` was not set: {}", failure.message), ..failure });
    }
    let text = match &change.was {
        Some(was) => format!("{key} = {} (was {was}) in {}", change.now, short(file)),
        None => format!("{key} = {} in {}", change.now, short(file)),
    };
    let data = json!({"key": key, "value": change.now, "was": change.was, "file": file});
    at.out.print(&Report::text(&data, text)?)?;
    if at.connect().await.is_ok() {
        let plugin = match &*edit::parts(key)? {
            [first, name, ..] if first.get() == "plugins" => format!(" && ksi plugin reload {}", name.get()),
            _ => String::new(),
        };
        at.out.note(&format!("the running daemon takes it over with: ksi reload{plugin}"));
    }
    Ok(())
}

/// Has the daemon's own parser read the configuration.
fn check(at: &Invocation) -> Result<()> {
    let ksid = required_program("ksid", "KSI_DAEMON")?;
    checked(&ksid).map_err(|failure| {
        let place = short(&at.paths.config_file);
        // The daemon's own words have a hint for each mistake.
        let hinted = failure.message.contains("hint:") || !failure.hint.is_empty();
        if hinted { failure } else { failure.hint(format!("the file is {place}")) }
    })
}

fn checked(ksid: &Path) -> Result<()> {
    let output = Command::new(ksid)
        .arg("--check-config")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::failed(format!("cannot run {}: {error}", ksid.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().trim_start_matches("error: ");
    let mut failure = Failure::new(Exit::Usage, "invalid_config", words);
    failure.details = Some(Box::new(json!({ "lines": words.lines().collect::<Vec<_>>() })));
    Err(failure)
}

/// `ksi reload`.
///
/// # Errors
///
/// Fails where the configuration is refused; the old one then stays in force.
pub(super) async fn reload(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let changes: ConfigChanges = at.ask(&client, "config:reload", &Nothing {}).await?;
    let ConfigChanges { changed, needs_restart: restart, plugins } = &changes;
    let mut lines = vec![match changed.is_empty() {
        true => "nothing has changed".to_owned(),
        false => format!("changed: {}", changed.join(", ")),
    }];
    for plugin in plugins {
        lines.push(format!(
            "what {plugin} is granted is in force, the rest of it after: ksi plugin reload {plugin}"
        ));
    }
    if !restart.is_empty() {
        lines.push(format!("in force after a restart (ksi restart): {}", restart.join(", ")));
    }
    at.out.print(&Report::text(&changes, lines.join("\n"))?.named(changed.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, printed};

    fn reply() -> ConfigShown {
        let reply = json!({"config": {"daemon": {"log_level": "info", "workers": 2},
                          "events": {"a:b": {"timeout": "5s"}}},
               "sources": {"daemon.log_level": "ksi.toml:3",
                           "events.\"a:b\".timeout": "flag"}});
        serde_json::from_value(reply).unwrap()
    }

    #[test]
    fn values_are_shown_by_key_with_their_origin() {
        assert_eq!(
            printed(&shown(&reply(), true).unwrap(), Format::Table),
            "KEY                   VALUE  ORIGIN\n\
             daemon.log_level      info   ksi.toml:3\n\
             daemon.workers        2      default\n\
             events.\"a:b\".timeout  5s     flag\n"
        );
        let data: Value =
            serde_json::from_str(&printed(&shown(&reply(), false).unwrap(), Format::Json)).unwrap();
        assert_eq!(data["daemon"]["workers"], 2);
    }

    #[test]
    fn an_unknown_key_offers_the_nearest() {
        let failure = unknown_key("daemon.loglevel", &reply().config);
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.hint.contains("did you mean `daemon.log_level`?"));
    }

    #[test]
    fn a_configuration_is_as_good_as_the_daemon_says() {
        assert!(checked("/bin/true".as_ref()).is_ok());
        assert_eq!(checked("/bin/false".as_ref()).unwrap_err().exit, Exit::Usage);
        assert_eq!(checked("/nowhere/ksid".as_ref()).unwrap_err().exit, Exit::Failed);
    }
}
