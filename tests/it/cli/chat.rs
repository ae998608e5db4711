//! `chat`: through a pipe, and at a terminal.

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stderr, stdout, terminal::Terminal, wait_until};
use serde_json::json;

use super::{documents, failed, fine};

#[test]
fn piped_lines_are_questions_and_the_conversation_can_be_resumed() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let output =
        fine(daemon.home.ksi_with_input(&["chat", "-m", "mock/echo"], "first words\n/help\n\n//slash\n"));
    assert_eq!(stdout(&output), "first words\n/slash\n");
    let words = stderr(&output);
    assert!(words.contains("/model [PROVIDER/NAME]") && words.contains("stand-in"), "{words}");
    let id = words.rsplit_once("--resume ").map(|(_, id)| id.trim().to_owned()).expect("an id to resume");
    let output = fine(daemon.home.ksi_with_input(&["chat", "--resume", &id], "again\n/exit\nnever said\n"));
    assert_eq!(stdout(&output), "again\n", "the model is kept: {}", stderr(&output));
    let file = daemon.home.paths().state_dir.join(format!("chats/{id}.json"));
    let kept: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).expect("it is kept")).expect("JSON");
    assert_eq!(kept["messages"].as_array().map(Vec::len), Some(6), "{kept}");
    failed(daemon.ksi(&["chat", "--resume", "nobody"]), 4);
    failed(daemon.ksi(&["chat", "--resume", "../nobody"]), 2);
}

#[test]
fn a_program_gets_each_answer_as_ask_gives_it() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let chat = |format: &str| {
        let line = ["chat", "-m", "mock/echo", "-o", format];
        stdout(&fine(daemon.home.ksi_with_input(&line, "one\n/help\ntwo\n")))
    };
    for format in ["json", "yaml"] {
        let answers = documents(format, &chat(format));
        let texts: Vec<_> = answers.iter().map(|answer| answer["text"].as_str()).collect();
        assert_eq!(texts, [Some("one"), Some("two")], "{format}");
        assert!(answers.iter().all(|answer| answer["answered"]["provider"] == "mock"), "{answers:?}");
    }
    let lines = documents("jsonl", &chat("jsonl"));
    let pieces: String = lines.iter().filter_map(|line| line["chunk"]["text"].as_str()).collect();
    assert_eq!(pieces, "onetwo");
    let ends: Vec<_> = lines.iter().filter(|line| line["end"] == true).collect();
    assert_eq!(ends.len(), 2, "{lines:?}");
    assert_eq!(ends[1]["data"]["text"], "two");
    assert_eq!(chat("name"), "mock/echo\nmock/echo\n");
}

#[test]
fn a_turn_says_how_fast_it_was_and_what_was_cut_or_left_out() {
    let daemon = Home::with_config(&format!(
        "{WITHOUT_MODEL}[plugins.completion.config.providers.mock.models]\n\"echo\" = {{ context_length = 100 }}\n"
    ))
    .start();
    daemon.ready();
    let long = "word ".repeat(40);
    let lines = format!("{long}\n{long}\nand now\n");
    let options = ["chat", "--verbose", "-m", "mock/echo", "--max-tokens", "30"];
    let output = fine(daemon.home.ksi_with_input(&options, &lines));
    assert!(stdout(&output).ends_with("and now\n"), "{}", stdout(&output));
    let words = stderr(&output);
    assert_eq!(words.matches("mock/echo · ").count(), 3, "each turn: {words}");
    assert_eq!(words.matches("cut after 30 tokens").count(), 2, "{words}");
    assert!(words.contains("(2 earlier messages were left out"), "{words}");
    let id = words.rsplit_once("--resume ").map(|(_, id)| id.trim().to_owned()).expect("an id to resume");
    let output = fine(daemon.home.ksi_with_input(&["chat", "--resume", &id], "more\n"));
    assert_eq!(stdout(&output), "more\n", "it goes on: {}", stderr(&output));
}

#[test]
fn a_turn_that_fails_is_told_and_the_conversation_goes_on() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let lines = "/model mock/fail:busy\nlost\n/model mock/echo\nheard\n/nonsense\n";
    let output = fine(daemon.home.ksi_with_input(&["chat"], lines));
    assert_eq!(stdout(&output), "heard\n");
    assert!(stderr(&output).contains("error: ") && stderr(&output).contains("no command /nonsense"));
}

#[test]
fn at_a_terminal_it_prompts_answers_and_stops_an_answer_at_ctrl_c() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let terminal = Terminal::open(daemon.home.path(), 100, 40);
    terminal.enter("ksi chat -m mock/echo");
    terminal.until("the prompt", |screen| screen.trim_end().ends_with('>'));
    terminal.enter("say these words");
    terminal.until("the answer", |screen| screen.lines().any(|line| line.trim() == "say these words"));
    terminal.enter("/help");
    terminal.shows("/system [TEXT]");
    terminal.enter("/model mock/slow:400");
    terminal.shows("model: mock/slow:400");
    terminal.enter(&"slowly ".repeat(40));
    terminal.until("the answer begins", |screen| screen.lines().any(|line| line.starts_with("slowly")));
    terminal.press(&["C-c"]);
    terminal.shows("(cancelled)");
    wait_until("nothing runs", || {
        daemon.ask("completion:status", json!({})).expect("a status")["running"] == 0
    });
    // At the prompt, Ctrl-C only says how to leave.
    terminal.press(&["C-c"]);
    terminal.shows("Ctrl-D leaves");
    // The history is that of a shell.
    terminal.press(&["Up", "Up"]);
    terminal
        .until("the line before the last", |screen| screen.trim_end().ends_with("> /model mock/slow:400"));
    terminal.press(&["C-u"]);
    terminal.press(&["C-d"]);
    terminal.shows("ksi chat --resume chat-");
    terminal.back_at_shell();
}
