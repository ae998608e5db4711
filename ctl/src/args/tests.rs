//! The command line as users see it.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::*;

/// The long help of a verb, `["plugin", "load"]` for example.
fn help(path: &[&str]) -> String {
    let mut command = Cli::command();
    command.build();
    let mut command = &mut command;
    for name in path {
        command = command.find_subcommand_mut(name).unwrap();
    }
    command.render_long_help().to_string()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_verbs_are_the_designed_ones_and_no_others() {
    let command = Cli::command();
    let verbs: BTreeSet<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    let expected = "up start stop restart status health freeze thaw reload doctor ask chat send sub wait cancel work \
                    checkpoint audit token discover describe key secret plugin model completion config logs top bench version \
                    completions man";
    assert_eq!(verbs, expected.split_whitespace().collect());
}

#[test]
fn the_help_of_each_verb_shows_its_key_words() {
    for (path, words) in [
        ("", "ask chat send plugin --socket --output --timeout --no-headers --color 130 KSI_SOCKET"),
        ("start", "--foreground"),
        ("stop", "--grace 30s"),
        ("restart", "--grace"),
        ("ask", "--model --system --max-tokens --temperature --seed --stop --verbose --top-k"),
        ("chat", "--model --system --resume --verbose"),
        ("send", "--json --stream --wait --idempotency-key @FILE --help"),
        ("sub", "--count --class live latest --durable --since --consumer"),
        ("wait", "ID"),
        ("work", "list get wait cancel retry dead drop"),
        ("work list", "--state --event --limit accepted leased waiting done failed expired dead unknown"),
        ("checkpoint", "create list restore verify export consumers forget"),
        ("checkpoint create", "--label"),
        ("checkpoint restore", "--yes ID|PATH"),
        ("discover", "--detail"),
        ("plugin", "list inspect load unload reload restart new"),
        ("plugin load", "--placement in-process child"),
        ("plugin new", "--dir --sdk"),
        ("model", "list add load unload show rm"),
        ("model add", "--link --name"),
        ("model load", "--context"),
        ("model rm", "--yes"),
        ("logs", "--follow --lines --level warn"),
        (
            "bench",
            "rr rr-child client-to-client pipelined fanout ask durable all --event --durable-event --disk",
        ),
        ("config", "path show get set validate"),
        ("config show", "--origin"),
        ("completions", "bash zsh fish"),
    ] {
        let path: Vec<_> = path.split_whitespace().collect();
        let text = help(&path);
        for word in words.split_whitespace() {
            assert!(text.contains(word), "`ksi {path:?} --help` lacks `{word}`:\n{text}");
        }
    }
}

#[test]
fn every_verb_and_option_explains_itself() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "`{}` has no help", command.get_name());
        for argument in command.get_arguments() {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "`{id}` of `{}` has no help", command.get_name());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn global_options_work_before_and_after_the_verb() {
    for line in ["ksi -o json --timeout 5s plugin list", "ksi plugin list -o json --timeout 5"] {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(5)));
    }
}

#[test]
fn a_negative_number_is_judged_as_a_number() {
    for option in ["-t", "--top-p", "--min-p", "--repetition-penalty"] {
        let cli = Cli::try_parse_from(["ksi", "ask", "hi", option, "-1"]);
        assert!(cli.is_ok(), "the plugin says what is accepted: {option}");
    }
    for option in ["--seed", "--max-tokens", "--top-k"] {
        let error = Cli::try_parse_from(["ksi", "ask", "hi", option, "-1"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ValueValidation, "{option}");
    }
}

#[test]
fn a_place_in_the_journal_goes_with_durable_alone() {
    for words in ["--since 5", "--consumer c"] {
        let sub = |more: &str| {
            Cli::try_parse_from(format!("ksi sub x:* {words}{more}").split_whitespace()).map(drop)
        };
        assert!(sub(" --durable").is_ok(), "{words}");
        for more in ["", " --class live", " --class latest", " --durable --class live"] {
            assert!(sub(more).is_err(), "{words}{more}");
        }
    }
}

#[test]
fn fields_of_an_event_are_left_for_its_schema() {
    let line = "ksi send -o json echo:say --json {} --text hi -o yaml";
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    let Some(Verb::Send(send)) = cli.verb else { panic!("not send") };
    assert_eq!(send.event.as_deref(), Some("echo:say"));
    assert_eq!(send.options.json.as_deref(), Some("{}"));
    assert_eq!(send.fields, ["--text", "hi", "-o", "yaml"]);
}

#[test]
fn durations_are_read_with_and_without_a_unit() {
    assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
    assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
    assert!(duration("soon").is_err());
    assert!(duration("-1").is_err());
    assert_eq!(lasting("1ms"), Ok(Duration::from_millis(1)));
    assert!(lasting("0s").is_err() && lasting("0").is_err() && lasting("10us").is_err());
}
