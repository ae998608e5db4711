//! Calls in every way that models write them, whole and in pieces.

use super::*;
use proptest::prelude::*;

fn tool(name: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"},
        "days": {"type": "integer"}, "hourly": {"type": "boolean"}, "where": {"type": "object"}}});
    serde_json::from_value(json!({"name": name, "description": "d", "parameters": parameters})).unwrap()
}

/// Text and calls of an answer that comes in pieces of this size.
fn parsed(text: &str, size: usize) -> (String, Vec<(String, Value)>) {
    parsed_with(&[tool("weather"), tool("time")], text, size)
}

/// The same, with these tools.
fn parsed_with(tools: &[Tool], text: &str, size: usize) -> (String, Vec<(String, Value)>) {
    let mut calls = Calls::new(tools);
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
fn calls_are_read_as_each_family_of_models_writes_them() {
    let one = vec![("weather".to_owned(), json!({"city": "Oslo"}))];
    let two = vec![one[0].clone(), ("time".to_owned(), json!({}))];
    let rich = vec![(
        "weather".to_owned(),
        json!({"city": "12", "days": 3, "hourly": true, "where": {"x": [1]}, "other": 5}),
    )];
    let cases = [
        // Qwen3-Coder.
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n\
             </parameter>\n<parameter=hourly>\nTrue\n</parameter>\n<parameter=where>\n{\"x\": [1]}\n\
             </parameter>\n<parameter=other>\n5\n</parameter>\n</function>\n</tool_call>",
            &rich,
        ),
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n\
             <function=time>\n</function>\n</tool_call>",
            &two,
        ),
        ("<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>", &one),
        // GLM.
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n\
             <arg_value>3</arg_value>\n<arg_key>hourly</arg_key>\n<arg_value>true</arg_value>\n\
             <arg_key>where</arg_key>\n<arg_value>{\"x\": [1]}</arg_value>\n<arg_key>other</arg_key>\n\
             <arg_value>5</arg_value>\n</tool_call>",
            &rich,
        ),
        (
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>\
             <tool_call>time</tool_call>",
            &two,
        ),
        // Mistral, with a number of the call.
        ("[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{\"city\": \"Oslo\"}", &one),
        // Llama 3.2 and 4.
        ("[weather(city='12', days=3, hourly=True, where={\"x\": [1]}, other=5)]", &rich),
        ("<|python_start|>[weather(city=\"Oslo\"), time()]<|python_end|>", &two),
        // DeepSeek V3 and R1, then V3.1.
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\
             {\"city\": \"Oslo\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n\
             ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            &two,
        ),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Oslo\"}\
             <｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            &two,
        ),
        // gpt-oss, whose answer begins behind `<|start|>assistant`.
        (
            "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>",
            &one,
        ),
        (" to=functions.weather<|channel|>commentary json<|message|>{\"city\":\"Oslo\"}", &one),
    ];
    for (text, calls) in cases {
        for size in [1, 2, 7, 1000] {
            assert_eq!(parsed(text, size), (String::new(), calls.clone()), "{text} in pieces of {size}");
        }
    }
    let thought = "<|channel|>analysis<|message|>Hm.<|end|>";
    let text = format!(
        "{thought}<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>\
         {{\"city\":\"Oslo\"}}"
    );
    assert_eq!(parsed(&text, 3), (thought.to_owned(), one));
}

#[test]
fn text_around_a_call_is_kept_and_so_is_a_call_of_what_was_not_offered() {
    let call = "<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>";
    let time = ("time".to_owned(), json!({}));
    let cases = [
        (format!("{call} Done."), " Done.", 1),
        (format!("{call}\n{call}\n"), "", 2),
        (format!("A{call}B{call}C"), "ABC", 2),
        (format!("<tool_call>oh</tool_call>{call}"), "<tool_call>oh</tool_call>", 1),
        ("[1] then [TOOL_CALLS]time{} and [TOOL_CALLS]".to_owned(), "[1] then  and [TOOL_CALLS]", 1),
        ("[{\"name\": \"time\"}, {\"name\": \"rm\"}]".to_owned(), "{\"name\": \"rm\"}", 1),
        ("{\"name\": \"time\"} {\"not\": \"a call\"}".to_owned(), " {\"not\": \"a call\"}", 1),
        (
            "<function=time></function><function=rm>{\"a\":1}</function>".to_owned(),
            "<function=rm>{\"a\":1}</function>",
            1,
        ),
        ("<function=rm>{}</function><function=time></function>".to_owned(), "<function=rm>{}</function>", 1),
        ("<function=time>{\"a\": <function=time></function>".to_owned(), "<function=time>{\"a\": ", 1),
        (
            "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}".to_owned(),
            "<｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}",
            1,
        ),
        (
            "<｜tool▁call▁begin｜>oh <｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n{}".to_owned(),
            "<｜tool▁call▁begin｜>oh ",
            1,
        ),
    ];
    for (text, said, count) in cases {
        for size in [1, 3, 1000] {
            assert_eq!(parsed(&text, size), (said.to_owned(), vec![time.clone(); count]), "{text}");
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
        "[time(3)]",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Os",
        "<function=weather><parameter=city>Oslo</parameter>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": ",
        "It is sent to=functions.weather of <|message|>{}",
        "ends with <｜tool",
    ] {
        for size in [1, 3, 1000] {
            assert_eq!(parsed(text, size), (text.to_owned(), Vec::new()), "{text}");
        }
    }
}

#[test]
fn arguments_that_are_no_object_are_kept_as_they_were_written() {
    for written in ["\"Oslo\"", "3", "[1]", "Oslo", "{\"city\""] {
        let calls = vec![("weather".to_owned(), json!(written))];
        let text = format!("<function=weather>{written}</function>");
        assert_eq!(parsed(&text, 3), (String::new(), calls), "{text}");
    }
}

#[test]
fn a_text_stays_a_text_wherever_the_tool_takes_one() {
    let optional = json!({"anyOf": [{"type": "string"}, {"type": "null"}]});
    let cases = [
        (optional.clone(), "12345", json!("12345")),
        (optional, "null", Value::Null),
        (json!({"type": "string"}), "null", json!("null")),
        (json!({"type": ["string", "null"]}), "true", json!("true")),
        (json!({"oneOf": [{"type": "integer"}, {"type": "string"}]}), "1", json!("1")),
        (json!({"enum": ["1", "2"]}), "1", json!("1")),
        (json!({"enum": [1, 2]}), "1", json!(1)),
        (json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), "1", json!(1)),
        (json!({"type": ["integer", "null"]}), "null", Value::Null),
    ];
    for (schema, written, expected) in cases {
        let parameters = json!({"type": "object", "properties": {"a": schema}});
        let tool = json!({"name": "time", "description": "d", "parameters": parameters});
        let text = format!("<function=time><parameter=a>{written}</parameter></function>");
        let calls = vec![("time".to_owned(), json!({"a": expected}))];
        let tools = [serde_json::from_value(tool).unwrap()];
        assert_eq!(parsed_with(&tools, &text, 7), (String::new(), calls), "{written} as {schema}");
    }
}

#[test]
fn behind_many_marks_that_begin_no_call_all_is_text() {
    let (miss, call) = ("<function=time>", "<function=time></function>");
    let few = miss.repeat(MISSES_MAX - 1);
    let time = vec![("time".to_owned(), json!({}))];
    assert_eq!(parsed(&format!("{few}{call}"), 7), (few.clone(), time));
    let many = format!("{few}{miss}{call}");
    assert_eq!(parsed(&many, 7), (many.clone(), Vec::new()));
    for hostile in [miss, "<tool_call>", "<function=", "<function=x>", "[TOOL_CALLS]time[CALL_ID]", "\n"] {
        let text = hostile.repeat(32_768);
        assert!(parsed(&text, 16) == (text.clone(), Vec::new()), "{hostile}");
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

    #[test]
    fn no_text_is_lost_whatever_marks_are_in_it(
        parts in proptest::collection::vec(0usize..24, 0..12),
        size in 1usize..9,
    ) {
        let marks = [
            "<tool_call>", "</tool_call>", "<function=rm>", "</function>", "<parameter=a>", "</parameter>",
            "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>", "<|python_start|>", "rm(a='\\u00", ")]",
            "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "{}", "{\"name\": \"rm\"}", "ä",
            "<|channel|>commentary to=functions.rm", "<|message|>", "<arg_key>", "rm\n", "```json\n",
        ];
        let text: String = parts.iter().map(|part| marks[*part]).collect();
        let (said, calls) = parsed(&text, size);
        prop_assert!(calls.is_empty());
        prop_assert_eq!(said, text);
    }

    #[test]
    fn no_text_beside_a_call_is_lost(
        texts in proptest::collection::vec("[a-z .,;!\n]{0,12}|<function=rm>([{]\"a\":1[}]</function>)?", 3),
        kinds in proptest::collection::vec(0usize..8, 2),
        size in 1usize..9,
    ) {
        let call = [
            "<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>",
            "<tool_call>\n<function=time>\n</function>\n</tool_call>",
            "<tool_call>time\n</tool_call>",
            "<function=time>{}</function>",
            "[TOOL_CALLS]time[ARGS]{}",
            "<|python_tag|>{\"name\": \"time\"}",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}<|call|>",
        ];
        let text = [&texts[0], call[kinds[0]], &texts[1], call[kinds[1]], &texts[2]].concat();
        let (said, calls) = parsed(&text, size);
        let expected: String = texts.iter().filter(|text| !text.trim().is_empty()).cloned().collect();
        prop_assert_eq!(said, expected);
        prop_assert_eq!(calls.len(), 2);
    }
}
