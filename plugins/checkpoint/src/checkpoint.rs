//! `checkpoint:*`: copies of all that is kept, made, listed, checked and put
//! back.
//!
//! A checkpoint is a file in the format of an export, in a directory beside the
//! journal, with a small JSON file beside it that says what it is. The last few
//! are kept.
//!
//! # Failure
//!
//! A checkpoint without its small file is listed with what its name and size
//! say; a small file without its checkpoint is not listed.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_sdk::{
    prelude::{Code, Ctx, Refusal},
    protocol::checkpoint::{
        Checkpoint, Checkpoints, Create, Export, Exported, Journal, Problem, Restore, Restored, Store,
        Verified,
    },
};

use crate::{
    disk::{Directory, Disk, remove_parts},
    engine::{Engine, Flaw},
    outgoing::Outgoing,
};

/// Longest label, in characters: it is shown in a table.
const LABEL_CHARS_MAX: usize = 64;

const SUFFIX: &str = "ksi-checkpoint";

/// Where checkpoints lie, and how many are kept.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    kept: usize,
}

impl Shelf {
    /// The shelf in a directory that need not be there yet.
    #[must_use]
    pub fn new(dir: PathBuf, kept: usize) -> Self {
        Self { dir, kept }
    }

    /// Removes what a crash left half written. Only while nobody exports.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn tidy(&self) -> std::io::Result<()> {
        remove_parts(&self.dir)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.{SUFFIX}"))
    }

    fn note(&self, id: &str) -> PathBuf {
        self.dir.join(note_name(id))
    }

    /// The file that is to be restored.
    ///
    /// # Errors
    ///
    /// `not_found` for a name that no checkpoint has, `invalid_payload` unless
    /// exactly one of name and path is given.
    pub fn find(&self, ask: Restore) -> Result<PathBuf, Refusal> {
        match (ask.id, ask.path) {
            (Some(id), None) if parse(&id).is_some() => Ok(self.file(&id)),
            (Some(id), None) => Err(Refusal::not_found("checkpoint", &id.escape_debug().to_string())
                .hint("`ksi checkpoint list` shows them")),
            (None, Some(path)) if Path::new(&path).is_absolute() => Ok(path.into()),
            (None, Some(_)) => Err(Refusal::invalid_payload(
                "`path` must be absolute: the daemon has another directory than you",
            )),
            _ => Err(Refusal::invalid_payload("give exactly one of `id` and `path`")),
        }
    }

    /// All of them, the newest first: the clock may have been set back between two, positions are not.
    fn list(&self) -> std::io::Result<Vec<Checkpoint>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str());
            let Some(id) = id.filter(|_| path.extension().is_some_and(|suffix| suffix == SUFFIX)) else {
                continue;
            };
            let noted = fs::read(self.note(id)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let bytes = fs::metadata(&path)?.len();
            let (at_ms, seq) = parse(id).unwrap_or_default();
            let unnoted = || Checkpoint {
                id: id.to_owned(),
                path: path.display().to_string(),
                seq,
                bytes,
                keys: None,
                at_ms,
                label: None,
            };
            found.push(noted.unwrap_or_else(unnoted));
        }
        found.sort_by_key(|made| std::cmp::Reverse((made.seq, made.at_ms)));
        Ok(found)
    }

    /// Writes down what a checkpoint is, durably, and lets go of the oldest others.
    fn add(&self, checkpoint: &Checkpoint) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(checkpoint).map_err(std::io::Error::other)?;
        let disk = Directory::new(&self.dir)?;
        let note = disk.create(&note_name(&checkpoint.id))?;
        note.write_at(&text, 0)?;
        note.sync()?;
        disk.sync()?;
        let others = self.list()?.into_iter().filter(|other| other.id != checkpoint.id);
        for old in others.skip(self.kept.saturating_sub(1)) {
            fs::remove_file(self.file(&old.id))?;
            // One that has no note has nothing to lose.
            let _ = fs::remove_file(self.note(&old.id));
        }
        Ok(())
    }
}

fn note_name(id: &str) -> String {
    format!("{id}.json")
}

/// Name of a checkpoint: its time and position.
fn name(at_ms: u64, seq: u64) -> String {
    format!("{at_ms:013}-{seq}")
}

fn parse(id: &str) -> Option<(u64, u64)> {
    let (at_ms, seq) = id.split_once('-')?;
    Some((at_ms.parse().ok()?, seq.parse().ok()?))
}

/// `checkpoint:create`.
///
/// # Errors
///
/// `invalid_payload` for a label that cannot be shown, `unavailable` where
/// something cannot be written.
pub async fn create(
    ctx: &Ctx,
    engine: &Engine,
    shelf: &Shelf,
    ask: Create,
    now_ms: u64,
) -> Result<Checkpoint, Refusal> {
    if let Some(label) = &ask.label
        && (label.chars().count() > LABEL_CHARS_MAX || label.chars().any(char::is_control))
    {
        return Err(Refusal::invalid_payload(format!(
            "`label` must have at most {LABEL_CHARS_MAX} characters, and no control characters"
        )));
    }
    engine.checkpoint().await?;
    let id = name(now_ms, engine.synced_seq());
    let path = shelf.file(&id);
    let report = engine.export(&path).await?;
    let checkpoint = Checkpoint {
        id,
        path: path.display().to_string(),
        seq: report.seq,
        bytes: report.bytes,
        keys: Some(report.keys),
        at_ms: now_ms,
        label: ask.label,
    };
    let (at, made) = (shelf.clone(), checkpoint.clone());
    ctx.spawn_blocking(move || at.add(&made)).await?.map_err(|error| disk(&shelf.dir, &error))?;
    Ok(checkpoint)
}

/// `checkpoint:list`.
///
/// # Errors
///
/// `unavailable` where the directory cannot be read.
pub async fn list(ctx: &Ctx, engine: &Engine, shelf: &Shelf) -> Result<Checkpoints, Refusal> {
    let at = shelf.clone();
    let checkpoints =
        ctx.spawn_blocking(move || at.list()).await?.map_err(|error| disk(&shelf.dir, &error))?;
    let health = engine.health();
    Ok(Checkpoints {
        checkpoints,
        journal: Journal {
            segments: health.segments,
            bytes: health.journal_bytes,
            first_seq: health.first_seq,
            last_seq: health.last_seq,
        },
        store: Store { keys: health.store_keys, bytes: health.store_bytes },
    })
}

/// `checkpoint:verify`.
///
/// # Errors
///
/// `unavailable` where journal or store cannot be read at all.
pub async fn verify(engine: &Engine) -> Result<Verified, Refusal> {
    let report = engine.verify().await?;
    let problem = |Flaw { segment, seq, what }| Problem { segment, seq, what };
    Ok(Verified {
        records: report.records,
        segments: report.segments,
        bytes: report.bytes,
        first_seq: report.first_seq,
        last_seq: report.last_seq,
        ok: report.damage.is_empty(),
        problems: report.damage.into_iter().map(problem).collect(),
    })
}

/// `checkpoint:export`.
///
/// # Errors
///
/// `invalid_payload` for a name that is not plain, `conflict` where it is taken,
/// `unavailable` where the file cannot be written.
pub async fn export(
    engine: &Engine,
    outgoing: &Outgoing,
    ask: Export,
    now_ms: u64,
) -> Result<Exported, Refusal> {
    let path = outgoing.file(ask.name, || format!("checkpoint-{}.ksi", name(now_ms, engine.synced_seq())))?;
    let report = engine.export(&path).await?;
    Ok(Exported {
        path: report.path.display().to_string(),
        keys: report.keys,
        bytes: report.bytes,
        sha256: report.sha256,
    })
}

/// `checkpoint:restore`, of the file that [`Shelf::find`] found.
///
/// # Errors
///
/// `not_found` where it is gone, `invalid_payload` where it is damaged; nothing
/// has changed then.
pub async fn restore(engine: &Engine, path: &Path) -> Result<Restored, Refusal> {
    let replaced = engine.health().store_keys;
    let report = engine.restore(path).await?;
    Ok(Restored { seq: report.seq, keys: report.keys, replaced })
}

fn disk(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(Code::Unavailable, format!("{}: {error}", path.display()))
        .hint("look at the disk: its space, and the rights of the directory")
}
