//! What belongs to the shell: `version`, `completions`, `man`, `top`.

use std::{ffi::OsString, fs, io::Write, os::unix::process::CommandExt, path::Path};

use clap::CommandFactory;
use clap_complete::env::Shells;
use clap_mangen::Man;
use ksi_protocol::PROTOCOL_VERSION;
use serde_json::json;

use crate::{
    args::Cli,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, required_program},
    output::Report,
};

/// `ksi version`.
///
/// # Errors
///
/// Fails only where output does: a daemon that does not run has no version, and
/// of one that does not answer it is told why.
pub(super) async fn version(at: &Invocation) -> Result<()> {
    let ours = env!("CARGO_PKG_VERSION");
    let (welcome, why) = match at.connect().await {
        Ok(client) => (Some(client.welcome()), None),
        Err(failure) => (None, Some(failure)),
    };
    let server = welcome.as_ref().map(|welcome| welcome.server.clone());
    let text = format!(
        "ksi {ours}, protocol {PROTOCOL_VERSION}\n{}",
        match (&welcome, &why) {
            (Some(welcome), _) => format!("{}, protocol {}", welcome.server, welcome.version),
            (None, Some(why)) if why.exit != Exit::NotRunning => {
                format!("ksid cannot be asked: {}", why.message)
            }
            (None, _) => "ksid is not running".to_owned(),
        }
    );
    let data = json!({
        "ksi": ours,
        "protocol": PROTOCOL_VERSION,
        "daemon": server,
        "daemon_protocol": welcome.map(|welcome| welcome.version),
        "daemon_error": why.map(|why| why.code),
    });
    at.out.print(&Report::text(&data, text)?)
}

/// `ksi completions SHELL`: a script that asks `ksi` itself, so that it
/// knows events, plugins and models as they are at that moment.
///
/// # Errors
///
/// Fails where output does.
pub(super) fn completions(shell: &str) -> Result<()> {
    let shells = Shells::builtins();
    let completer = shells.completer(shell).ok_or_else(|| Failure::not_found("shell", shell))?;
    let mut out = std::io::stdout().lock();
    completer.write_registration("COMPLETE", "ksi", "ksi", "ksi", &mut out)?;
    if shell == "bash" {
        out.write_all(PAST_THE_COLON.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

/// Bash takes a colon for the end of a word, and names of events have one: the
/// words are joined again before they are completed, and what stands before
/// the last colon is taken off the offers, since bash replaces only the rest.
const PAST_THE_COLON: &str = r#"
_ksi_past_the_colon() {
    local -a joined=()
    local at=0 i last
    for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
        last=$((${#joined[@]} - 1))
        if ((last >= 0)) && [[ ${COMP_WORDS[i]} == :* || ${joined[last]} == *: ]]; then
            joined[last]+=${COMP_WORDS[i]}
        else
            joined+=("${COMP_WORDS[i]}")
        fi
        ((i == COMP_CWORD)) && at=$((${#joined[@]} - 1))
    done
    local -a COMP_WORDS=("${joined[@]}")
    local COMP_CWORD=$at word=${joined[at]}
    _clap_complete_ksi "$1" "$word" "$3"
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    fi
}
if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -o nospace -o bashdefault -o nosort -F _ksi_past_the_colon ksi
else
    complete -o nospace -o bashdefault -F _ksi_past_the_colon ksi
fi
"#;

/// `ksi man [DIR]`.
///
/// # Errors
///
/// Fails where the pages cannot be written.
pub(super) fn man(at: &Invocation, dir: Option<&Path>) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let Some(dir) = dir else {
        let mut out = std::io::stdout().lock();
        Man::new(command).render(&mut out)?;
        out.flush()?;
        return Ok(());
    };
    fs::create_dir_all(dir).map_err(|error| Failure::to_file("create", dir, &error))?;
    let pages = pages(command, dir).map_err(|error| Failure::to_file("write", dir, &error))?;
    at.out.note(&format!("{pages} pages in {}; read them: man -l {}/ksi.1", dir.display(), dir.display()));
    Ok(())
}

fn pages(command: clap::Command, dir: &Path) -> std::io::Result<usize> {
    clap_mangen::generate_to(command, dir)?;
    let pages = fs::read_dir(dir)?.filter_map(std::result::Result::ok);
    Ok(pages.filter(|page| page.path().extension().is_some_and(|extension| extension == "1")).count())
}

/// `ksi top`: becomes ksi-monitor.
///
/// # Errors
///
/// Returns only if that fails.
pub(super) fn top(at: &Invocation, arguments: &[OsString]) -> Failure {
    let monitor = match required_program("ksi-monitor", "KSI_MONITOR") {
        Ok(path) => path,
        Err(failure) => return failure,
    };
    let error = at.command(&monitor).args(arguments).exec();
    Failure::failed(format!("cannot run {}: {error}", monitor.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_that_is_offered_has_a_script() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let mut script = Vec::new();
            let shells = Shells::builtins();
            let completer = shells.completer(shell).unwrap();
            completer.write_registration("COMPLETE", "ksi", "ksi", "ksi", &mut script).unwrap();
            assert!(String::from_utf8(script).unwrap().contains("COMPLETE"), "{shell}");
        }
    }

    #[test]
    fn every_verb_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Cli::command();
        command.build();
        assert!(pages(command, dir.path()).unwrap() > 30);
        for page in ["ksi.1", "ksi-ask.1", "ksi-plugin-load.1"] {
            assert!(dir.path().join(page).is_file(), "{page}");
        }
    }
}
