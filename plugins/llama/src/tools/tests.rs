//! Calls in every way that models write them, whole and in pieces.

use super::*;
use proptest::prelude::*;

fn tool(name: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    serde_json::from_value(json!({"name": name, "description": "d", "parameters": parameters})).unwrap()
}

/// Text and calls of an answer that comes in pieces of this size.
fn parsed(text: &str, size: usize) -> (String, Vec<(String, Value)>) {
    let mut calls = Calls::new(&[tool("weather"), tool("time")]);
    let characters: Vec<char> = text.chars().collect();
    let mut said = String::new();
    for piece in characters.chunks(size) {
        said.push_str(&calls.push(&piece.iter().collect::<String>()));
    }
    let (rest, found) = calls.finish();
    said.push_str(&rest);
    (said, found.into_iter().map(|call| (call.name, call.arguments)).collect())
}

#[test]
fn calls_are_read_in_every_common_way() {
    let one = vec![("weather".to_owned(), json!({"city": "Oslo"}))];
    let two = vec![one[0].clone(), ("time".to_owned(), json!({}))];
    let cases = [
        ("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>", "", &one),
        (
            "Let me see.\n<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Oslo\"}}</tool_call>\n\
             <tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>",
            "Let me see.\n",
            &two,
        ),
        (
            "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}, {\"name\": \"time\"}]",
            "",
            &two,
        ),
        ("[TOOL_CALLS]weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]time{}", "", &two),
        (
            "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}; \
             {\"name\": \"time\", \"parameters\": {}}",
            "",
            &two,
        ),
        ("<function=weather>{\"city\": \"Oslo\"}</function>\n<function=time></function>", "", &two),
        ("\n{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}", "", &one),
        (
            "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"arguments\": \"{\\\"city\\\": \\\"Oslo\\\"}\"}}",
            "",
            &one,
        ),
    ];
    for (text, said, calls) in cases {
        for size in [1, 2, 7, 1000] {
            assert_eq!(parsed(text, size), (said.to_owned(), calls.clone()), "{text} in pieces of {size}");
        }
    }
}

#[test]
fn what_is_no_call_of_an_offered_tool_is_text() {
    for text in [
        "Hello <b>world</b> [1] {2}",
        "{\"name\": \"Ada\", \"age\": 36}",
        "{\"name\": \"rm\", \"arguments\": {}}",
        "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
        "<tool_call>not JSON</tool_call>",
        "<tool_call>{\"name\": \"weather\", ",
        "ends with <tool_ca",
        "[1, 2, 3]",
    ] {
        for size in [1, 3, 1000] {
            assert_eq!(parsed(text, size), (text.to_owned(), Vec::new()), "{text}");
        }
    }
}

#[test]
fn a_model_without_tools_in_its_template_is_told_in_words() {
    let mut asked = Message::new(Role::Assistant, "");
    asked.tool_calls = vec![ToolCall { id: "1".into(), name: "time".into(), arguments: json!({"a": 1}) }];
    let mut answer = Message::new(Role::Tool, "noon");
    answer.tool_call_id = Some("1".into());
    let messages = [Message::new(Role::System, "Be kind."), asked, answer];
    let spelled = spelled_out(&messages, &[tool("time")]);
    assert!(spelled[0].content.starts_with("Be kind.\n\n") && spelled[0].content.contains("\"time\""));
    assert_eq!(spelled[1].content, "<tool_call>\n{\"name\":\"time\",\"arguments\":{\"a\":1}}\n</tool_call>");
    assert_eq!(
        (spelled[2].role, spelled[2].content.as_str()),
        (Role::User, "<tool_response>\nnoon\n</tool_response>")
    );
    assert_eq!(spelled_out(&messages[1..], &[tool("time")])[0].role, Role::System);
}

#[test]
fn a_call_is_required_of_those_tools_only_that_are_meant() {
    let tools = [tool("time"), tool("weather")];
    assert_eq!(required(&ToolChoice::Auto, &tools), None);
    assert!(required(&ToolChoice::Required, &tools).unwrap().contains("weather"));
    assert!(!required(&ToolChoice::Tool("time".into()), &tools).unwrap().contains("weather"));
}

proptest! {
    #[test]
    fn no_text_is_lost_whatever_it_is(text in "[<>a-z\\[\\]{}\":=/|_TOL ]{0,60}", size in 1usize..9) {
        let (said, calls) = parsed(&text, size);
        prop_assert!(calls.is_empty());
        prop_assert_eq!(said, text);
    }
}
