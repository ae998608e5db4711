//! `model …`: what models there are, in memory and on disk.

mod bench;
mod load;
mod pull;
mod shelf;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use ksi_client::Client;
use ksi_protocol::{
    nearest,
    system::{PluginName, PluginStatus},
};
use ksi_trust::{Kind, Lock};
use serde_json::{Value, json};

use super::sign::{self, Candidate};
use crate::{
    args::{Model, ModelName},
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    llama::{ModelInfo, Models, Setting, Unloaded},
    output::{Report, Table, bytes},
};

/// Time that loading may take: a large file from a slow disk.
const LOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// A setting as `--set` takes it: `threads=1`.
fn pair(Setting { name, value, .. }: &Setting) -> String {
    format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// Asks for all models: the reply, and what of it is shown.
async fn models(at: &Invocation, client: &Client) -> Result<(Value, Models)> {
    at.ask_whole(client, "llama:models", &json!({})).await
}

/// `ksi model …`.
///
/// # Errors
///
/// Fails as the daemon refuses, or where files cannot be written.
pub(super) async fn run(at: &Invocation, model: Model) -> Result<()> {
    match model {
        Model::List => {
            let client = at.connect().await?;
            let (reply, models) = models(at, &client).await?;
            models.notes.iter().for_each(|note| at.out.warn(note));
            at.out.print(&list(&reply, &models)?)
        }
        Model::Show(name) => show(at, bare(at, &name)?).await,
        Model::Add { path, name, link } => add(at, &path, name.as_deref(), link).await,
        Model::Pull { source, name, sha256 } => pull(at, &source, name.as_deref(), sha256.as_deref()).await,
        Model::Bench { model, tokens, at_once } => bench::run(at, bare(at, &model)?, tokens, at_once).await,
        Model::Load { model, context, settings } => {
            load::run(at, bare(at, &model)?, context, &settings).await
        }
        Model::Unload(name) => unload(at, bare(at, &name)?).await,
        Model::Sign { models, all, key } => {
            let dir = at.paths.models_dir();
            let entries =
                if all { shelf::all(&dir, |text| at.out.warn(text))? } else { named(&dir, &models)? };
            let candidates = entries.into_iter().map(candidate).collect::<Vec<_>>();
            // Gone is only what was removed: a link may lead to a disk that comes back.
            let gone = |file: &str| all && dir.join(file).symlink_metadata().is_err();
            sign::sign(at, Kind::Models, &at.paths.models_lock(), key.as_deref(), &candidates, gone)
        }
        Model::Verify { models } => {
            let (dir, lock_path) = (at.paths.models_dir(), at.paths.models_lock());
            let named = named(&dir, &models)?;
            let lock = sign::trusted(at, Kind::Models, &lock_path)?;
            let candidates = match named.is_empty() {
                true => signed(&dir, &lock),
                false => named.into_iter().map(candidate).collect(),
            };
            sign::compare(at, &lock_path, &lock, candidates)
        }
        Model::Rm { model, yes } => remove(at, bare(at, &model)?, yes).await,
    }
}

/// The name without its provider.
fn bare<'a>(at: &Invocation, name: &'a ModelName) -> Result<&'a str> {
    without_provider(&at.paths.models_dir(), &name.name)
}

/// The name without its provider, which may as well be a directory in `dir`.
fn without_provider<'a>(dir: &Path, name: &'a str) -> Result<&'a str> {
    let Some(bare) = name.strip_prefix("llama/") else { return Ok(name) };
    let lies = |name: &str| shelf::find(dir, name).is_ok();
    match (lies(name), lies(bare)) {
        (true, true) => {
            let message = format!("`{name}` may be {name}.gguf or {bare}.gguf in {}", dir.display());
            Err(Failure::usage(message).hint(format!("name the first `llama/{name}`, the second `{bare}`")))
        }
        (true, false) => Ok(name),
        (false, _) => Ok(bare),
    }
}

/// Models to sign or to verify.
fn named(dir: &Path, names: &[String]) -> Result<Vec<shelf::Entry>> {
    let found = |name: &String| {
        shelf::find(dir, without_provider(dir, name)?).map_err(|failure| match failure.exit {
            Exit::NotFound => failure.hint("one that is built in needs no signature; all: ksi model list"),
            _ => failure,
        })
    };
    names.iter().map(found).collect()
}

/// All files of a lock, each where its name says.
fn signed(dir: &Path, lock: &Lock) -> Vec<Candidate> {
    let candidate = |(file, entry): (&String, &ksi_trust::Entry)| Candidate {
        name: entry.name.clone(),
        file: file.clone(),
        path: dir.join(file),
    };
    lock.files.iter().map(candidate).collect()
}

fn candidate(entry: shelf::Entry) -> Candidate {
    Candidate { file: format!("{}.gguf", entry.name), name: entry.name, path: entry.path }
}

fn list(reply: &Value, models: &Models) -> Result<Report> {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "SIZE",
        "PARAMETERS",
        "CONTEXT",
        "KIND",
        "+ARCHITECTURE",
        "+QUANTIZATION",
        "+SETTINGS",
        "+PATH",
    ]);
    for model in &models.models {
        table.row([
            model.name.clone(),
            state(model),
            bytes(model.size_bytes),
            parameters(model),
            model.context_length.map_or("-".into(), |n| n.to_string()),
            kind(model).into(),
            model.architecture.clone().unwrap_or("-".into()),
            model.quantization.clone().unwrap_or("-".into()),
            settings(model),
            short(model.path.as_ref()),
        ]);
    }
    let names = models.models.iter().map(|model| format!("llama/{}", model.name)).collect();
    Report::list(reply, "models", names, table)
}

fn state(model: &ModelInfo) -> String {
    match (&model.error, model.loaded) {
        _ if model.adapter => "on disk".into(),
        (Some(error), _) => format!("broken: {error}"),
        (None, true) => "loaded".into(),
        (None, false) => "on disk".into(),
    }
}

/// What it runs with.
fn settings(model: &ModelInfo) -> String {
    let shown: Vec<_> = model.settings.iter().map(pair).collect();
    if shown.is_empty() { "-".into() } else { shown.join(" ") }
}

fn kind(model: &ModelInfo) -> &'static str {
    if model.adapter {
        return "adapter";
    }
    match (model.builtin, model.toy) {
        (true, true) => "built-in toy",
        (true, false) => "built-in",
        (false, true) => "toy",
        (false, false) => "yours",
    }
}

/// `7.2B` from a number.
fn parameters(model: &ModelInfo) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    match model.parameters {
        Some(n @ 1_000_000_000..) => format!("{:.1}B", n as f64 / 1e9),
        Some(n @ 1_000_000..) => format!("{:.1}M", n as f64 / 1e6),
        Some(n) => format!("{:.1}k", n as f64 / 1e3),
        None => "-".into(),
    }
}

async fn show(at: &Invocation, name: &str) -> Result<()> {
    let client = at.connect().await?;
    let (reply, models) = models(at, &client).await?;
    let Some(index) = models.models.iter().position(|model| model.name == name) else {
        let known = models.models.iter().map(|model| model.name.as_str());
        let near = nearest::best(name, known);
        let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        return Err(Failure::not_found("model", name).hint(format!("{near}all models: ksi model list")));
    };
    let model = &models.models[index];
    let lines = [
        ("state", state(model)),
        ("kind", kind(model).to_owned()),
        ("size", bytes(model.size_bytes)),
        ("parameters", parameters(model)),
        ("context", model.context_length.map_or("-".into(), |n| format!("{n} tokens"))),
        ("architecture", model.architecture.clone().unwrap_or("-".into())),
        ("quantization", model.quantization.clone().unwrap_or("-".into())),
        ("path", model.path.clone()),
    ];
    let mut text = format!("llama/{}", model.name);
    for (key, value) in lines {
        text.push_str(&format!("\n  {key:<13} {value}"));
    }
    for (place, setting) in model.settings.iter().enumerate() {
        let key = if place == 0 { "settings" } else { "" };
        text.push_str(&format!("\n  {key:<13} {} ({})", pair(setting), setting.from));
    }
    at.out.print(&Report::text(&reply["models"][index], text)?.named(vec![format!("llama/{name}")]))
}

/// The models of the daemon, with this one where it finds it. Where a link
/// leads, the plugin is granted when it starts; so it is started anew where it
/// cannot see there.
async fn models_with(at: &Invocation, client: &Client, added: &shelf::Entry) -> Result<Models> {
    let (_, seen) = models(at, client).await?;
    if !may_be_shut_out(&seen, added) {
        return Ok(seen);
    }
    let llama = PluginName { name: "llama".into() };
    let _: PluginStatus = at.ask(client, "plugin:restart", &llama).await?;
    at.out.note("The plugin llama was restarted, so that it may read where the link leads.");
    Ok(models(at, client).await?.1)
}

/// Whether the plugin does not find a model since it may not read where it leads.
fn may_be_shut_out(seen: &Models, added: &shelf::Entry) -> bool {
    added.link && !seen.models.iter().any(|model| model.name == added.name)
}

/// What to tell where the daemon does not find what was added.
fn unknown(seen: &Models, added: &shelf::Entry) -> String {
    let why = match seen.notes.is_empty() {
        true => "is its `models_dir` in plugins.llama.config another directory?".to_owned(),
        false => seen.notes.join("; "),
    };
    format!("the daemon does not find `{}` among its models: {why}", added.name)
}

async fn add(at: &Invocation, path: &Path, name: Option<&str>, link: bool) -> Result<()> {
    let dir = at.paths.models_dir();
    let bar = bar(at, fs::metadata(path).map_or(0, |meta| meta.len())).with_message("copying");
    let added = shelf::add(&dir, path, name, link, |done, _| bar.set_position(done));
    bar.finish_and_clear();
    let how = if link { "linked" } else { "copied" };
    arrived(at, added?, how, &path.display().to_string()).await
}

async fn pull(at: &Invocation, source: &str, name: Option<&str>, sha256: Option<&str>) -> Result<()> {
    let from = pull::Source::parse(source)?;
    let sha256 = sha256.map(str::parse).transpose().map_err(|_| {
        Failure::usage("`--sha256` is no digest").hint("it has 64 characters, each 0 to 9 or a to f")
    })?;
    let bar = bar(at, 0).with_message("pulling");
    let pulled = pull::pull(&at.paths.models_dir(), &from, name, sha256, |done, total| {
        bar.set_length(total.unwrap_or(done.max(1)));
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    arrived(at, pulled?, "pulled", source).await
}

/// Tells of a model that is new. A daemon that runs says at once whether it can
/// use it; if not, the model goes again.
async fn arrived(at: &Invocation, added: shelf::Entry, how: &str, from: &str) -> Result<()> {
    let model = format!("llama/{}", added.name);
    let data = json!({"name": added.name, "model": model, "path": added.path, "linked": added.link,
        "size_bytes": added.size});
    let text = format!("{model} {how}: {} ({})", short(&added.path), bytes(added.size));
    let mut next = format!("Next: ksi ask --model {model} \"hello\"");
    if let Ok(client) = at.connect().await
        && let Ok(models) = models_with(at, &client, &added).await
    {
        match models.models.iter().find(|info| info.name == added.name) {
            Some(info) if info.adapter => {
                next = format!("Next: name it for a model, config.models.\"NAME\".lora = [{:?}]", added.name);
            }
            Some(ModelInfo { error: Some(error), .. }) => {
                shelf::remove(&at.paths.models_dir(), &added)?;
                return Err(Failure::failed(format!("the daemon cannot use it: {error}"))
                    .hint(format!("{from} was not added; the file may be cut short or too new")));
            }
            Some(_) => {}
            None => {
                at.out.warn(&unknown(&models, &added));
                "Next: ksi model list".clone_into(&mut next);
            }
        }
    }
    at.out.print(&Report::text(&data, text)?.named(vec![model.clone()]))?;
    at.out.note(&next);
    Ok(())
}

/// A progress bar on standard error; hidden where that is no terminal.
fn bar(at: &Invocation, total: u64) -> ProgressBar {
    if at.out.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{bar:32}] {percent}%");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(total).with_style(style)
}

async fn unload(at: &Invocation, name: &str) -> Result<()> {
    let client = at.connect().await?;
    let (reply, done) = at.ask_whole::<Unloaded>(&client, "llama:unload", &json!({"model": name})).await?;
    let text = match done.unloaded {
        true => format!("llama/{name} unloaded"),
        false => format!("llama/{name} was not loaded"),
    };
    at.out.print(&Report::text(&reply, text)?.named(vec![format!("llama/{name}")]))
}

async fn remove(at: &Invocation, name: &str, yes: bool) -> Result<()> {
    let entry = shelf::find(&at.paths.models_dir(), name)?;
    shelf::check_inside(&at.paths.models_dir(), &entry)?;
    if !yes && !confirmed(&entry)? {
        return Err(Failure::failed(format!("{} stays", short(&entry.path))));
    }
    // A model in use is let go first; no daemon, no use.
    if let Ok(client) = at.connect().await {
        let unloaded = at.value(&client, "llama:unload", &json!({"model": name})).await;
        if let Err(failure) = unloaded.as_ref().map(|_| ()).map_err(Clone::clone)
            && failure.exit != Exit::NotFound
        {
            at.out.warn(&format!("it could not be unloaded: {}", failure.message));
        }
    }
    shelf::remove(&at.paths.models_dir(), &entry)?;
    let data = json!({"name": name, "path": entry.path, "removed": true});
    at.out.print(&Report::text(&data, format!("llama/{name} removed: {}", short(&entry.path)))?)?;
    if at.paths.models_lock().exists() {
        at.out.note("if it was signed, its line is taken out of the lock by: ksi model sign --all");
    }
    Ok(())
}

/// Asks a person, and never a pipe.
fn confirmed(entry: &shelf::Entry) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to confirm it").hint("add --yes"));
    }
    let what = if entry.link { "the link" } else { "the file" };
    // Without a prompt that can be seen, no answer is a yes.
    write!(anstream::stderr(), "remove {what} {} ({})? [y/N] ", entry.path.display(), bytes(entry.size))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        invocation::shaped,
        llama,
        output::{self, Format},
    };

    fn reply() -> Value {
        let settings = json!([{"name": "threads", "value": 1, "from": "request"},
            {"name": "flash_attn", "value": "on", "from": "configuration"}]);
        let tiny = json!({"builtin": true, "toy": true, "loaded": true, "settings": settings,
            "architecture": "llama", "parameters": 3_100_000, "quantization": "Q8_0",
            "context_length": 2048, "size_bytes": 3_400_000, "sha256": "ab"});
        let broken = json!({"error": "cut short"});
        json!({"models": [llama::model("ksi-tiny", tiny), llama::model("x", broken)]})
    }

    fn read(reply: &Value) -> Result<Models> {
        shaped("llama:models", reply)
    }

    fn printed(format: Format) -> String {
        output::printed(&list(&reply(), &read(&reply()).unwrap()).unwrap(), format)
    }

    #[test]
    fn toys_and_broken_files_are_told_apart() {
        let table = printed(Format::Table);
        assert!(
            table.contains("ksi-tiny  loaded             3.4 MB  3.1M        2048     built-in toy"),
            "{table}"
        );
        assert!(table.contains("broken: cut short"), "{table}");
        assert!(printed(Format::Wide).contains("threads=1 flash_attn=on"));
        assert_eq!(printed(Format::Name), "llama/ksi-tiny\nllama/x\n");
    }

    #[test]
    fn programs_get_all_that_the_plugin_said() {
        let data: Value = serde_json::from_str(&printed(Format::Json)).unwrap();
        assert_eq!(data["models"][0]["sha256"], "ab");
        assert_eq!(data["models"][1]["error"], "cut short");
    }

    #[test]
    fn the_provider_may_be_left_out_unless_a_directory_has_its_name() {
        let dir = shelf_of(&["x", "llama/x", "llama/y"]);
        let named = |name| without_provider(dir.path(), name);
        assert_eq!(named("llama/z").unwrap(), "z");
        assert_eq!(named("x").unwrap(), "x");
        assert_eq!(named("llama/y").unwrap(), "llama/y");
        let refused = named("llama/x").unwrap_err();
        assert_eq!(refused.hint, "name the first `llama/llama/x`, the second `x`");
        assert_eq!(named("llama/llama/x").unwrap(), "llama/x");
    }

    /// A directory with these models.
    fn shelf_of(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(format!("{name}.gguf"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        dir
    }

    #[test]
    fn only_a_link_is_a_reason_to_start_the_plugin_anew() {
        let added = |name: &str, link| shelf::Entry { name: name.into(), path: "/m".into(), link, size: 1 };
        let mut seen = read(&reply()).unwrap();
        assert!(may_be_shut_out(&seen, &added("new", true)));
        assert!(!may_be_shut_out(&seen, &added("new", false)) && !may_be_shut_out(&seen, &added("x", true)));
        assert!(unknown(&seen, &added("new", false)).contains("models_dir"));
        seen.notes = vec!["/m has 1001 models".into()];
        assert!(unknown(&seen, &added("new", false)).ends_with("`new` among its models: /m has 1001 models"));
    }
}
