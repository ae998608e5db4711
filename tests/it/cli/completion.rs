//! What a shell and `man` get: scripts, live names, pages.

use std::fs;

use ksi_tests::{Daemon, Home, command, stderr, stdout, terminal::Terminal, terminal::shell};

use super::fine;

/// What bash is offered for the last of these words.
fn offered(home: &Home, words: &[&str]) -> Vec<String> {
    let output = command("ksi", home.path())
        .env("COMPLETE", "bash")
        .env("_CLAP_IFS", "\n")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .arg("--")
        .args(words)
        .output()
        .expect("ksi runs");
    assert_eq!(stderr(&output), "", "{words:?}");
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn every_shell_gets_a_script() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&fine(home.ksi(&["completions", shell])));
        assert!(script.contains("COMPLETE") && script.contains("ksi"), "{shell}: {script}");
    }
}

#[test]
fn live_names_are_offered_and_none_while_nothing_runs() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let home = &daemon.home;
    assert!(offered(home, &["ksi", "send", "completion:"]).contains(&"completion:request".to_owned()));
    assert_eq!(offered(home, &["ksi", "describe", "echo:"]), ["echo:keep", "echo:say"]);
    assert!(offered(home, &["ksi", "sub", "echo"]).contains(&"echo:*".to_owned()));
    assert!(offered(home, &["ksi", "plugin", "restart", "ec"]).contains(&"echo".to_owned()));
    let verbs = offered(home, &["ksi", ""]);
    assert!(
        ["ask", "chat", "plugin"].iter().all(|verb| verbs.iter().any(|offer| offer == verb)),
        "{verbs:?}"
    );
    let home = daemon.kill();
    for words in [&["ksi", "send", "ec"][..], &["ksi", "plugin", "restart", "ec"], &["ksi", "ask", "-m", ""]]
    {
        assert_eq!(offered(&home, words), Vec::<String>::new(), "{words:?}");
    }
}

#[test]
fn models_are_offered_by_name() {
    let daemon = Home::new().start();
    daemon.ready();
    assert_eq!(offered(&daemon.home, &["ksi", "ask", "--model", "ll"]), ["llama/ksi-tiny"]);
    assert_eq!(offered(&daemon.home, &["ksi", "model", "show", "ks"]), ["ksi-tiny"]);
}

#[test]
fn in_a_bash_the_tab_key_completes_past_the_colon() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = Terminal::open(daemon.home.path(), 100, 20);
    terminal.enter("source <(ksi completions bash); echo sourced");
    terminal.until("the script is read", |screen| screen.lines().any(|line| line == "sourced"));
    for (typed, completed) in [
        ("ksi send ec", "ksi send echo"),
        ("ksi send echo:s", "ksi send echo:say"),
        ("ksi describe completion:req", "ksi describe completion:request"),
        ("ksi plugin insp", "ksi plugin inspect"),
    ] {
        terminal.write(typed);
        terminal.press(&["Tab"]);
        terminal.until(completed, |screen| {
            screen.trim_end().lines().last().is_some_and(|line| line.contains(completed))
        });
        terminal.press(&["C-u"]);
    }
}

#[test]
fn the_scripts_are_read_by_the_shells_that_are_there() {
    let home = Home::new();
    for name in ["bash", "zsh", "fish"] {
        let there =
            shell(home.path(), &format!("command -v {name}")).output().expect("a shell").status.success();
        if there {
            let script = format!("ksi completions {name} > script && {name} -n script");
            fine(shell(home.path(), &script).output().expect("a shell"));
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_verb() {
    let home = Home::new();
    let output = fine(home.ksi(&["man", "pages"]));
    assert_eq!(stdout(&output), "");
    for page in ["ksi.1", "ksi-ask.1", "ksi-plugin-load.1", "ksi-config-set.1"] {
        let text = fs::read_to_string(home.path().join("pages").join(page)).expect("a page");
        assert!(text.contains(".TH"), "{page}");
    }
    let page = stdout(&fine(home.ksi(&["man"])));
    assert!(page.contains(".TH") && page.contains("Exit codes"), "{page}");
}
