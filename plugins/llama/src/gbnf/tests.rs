//! Grammars as llama.cpp has them: what fits and what does not, and what is
//! wrong with one.

use super::*;
use crate::constraint::{Constraint, Grammars, Vocabulary};
use llama_cpp_2::token::LlamaToken;

/// A grammar over single bytes.
fn compiled(text: &str) -> Constraint {
    let mut pieces: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    pieces.push(Vec::new());
    let grammars = Grammars::new(&Vocabulary { pieces, ends: vec![256] }).unwrap();
    grammars.compile_grammar(text).unwrap_or_else(|refusal| panic!("{refusal}\n{:?}", to_lark(text)))
}

/// Whether a text fits as a whole.
fn fits(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    for byte in text.bytes() {
        let token = LlamaToken(i32::from(byte));
        if constraint.is_done() || !constraint.allowed().unwrap().has(token) {
            return false;
        }
        constraint.accept(token).unwrap();
    }
    constraint.is_done() || constraint.allowed().unwrap().has(LlamaToken(256))
}

fn check(grammar: &str, good: &[&str], bad: &[&str]) {
    let constraint = compiled(grammar);
    for text in good {
        assert!(fits(&constraint, text), "{text:?} should fit {grammar}\n{}", to_lark(grammar).unwrap());
    }
    for text in bad {
        assert!(!fits(&constraint, text), "{text:?} should not fit {grammar}");
    }
}

#[test]
fn regular_grammars_are_exact() {
    check("root ::= \"yes\" | \"no\"", &["yes", "no"], &["", "ye", "yesno", "maybe"]);
    check("root ::= [a-c]* \"cc\"", &["cc", "ccc", "abcc"], &["c", "ccd", "ab"]);
    check("root ::= [^\"\\n]{2,3} \"\\\"\"", &["ab\"", "äöü\""], &["a\"", "abcd\"", "a\n\""]);
    check(
        "root ::= a b?\na ::= \"x\"{3}\nb ::= [\\x41-\\x43\\]-]",
        &["xxx", "xxxB", "xxx]", "xxx-"],
        &["xx"],
    );
    check("root ::= . . # any two\n", &["ab", "é😀", "\n/"], &["a", "abc"]);
    check("root ::= (\"a\" | (\n  \"b\" # c\n  \"d\"))+\n", &["a", "bda"], &["b", ""]);
    check("root ::= ws \"x\" ws\nws ::= [ ]*\n", &["x", " x", "x  "], &["", " "]);
    check("root ::= \"/.*(){}|\\\\\" ", &["/.*(){}|\\"], &["/.*(){}|"]);
}

#[test]
fn recursive_grammars_nest() {
    let lists = "root ::= \"(\" (root (\",\" root)*)? \")\"";
    check(lists, &["()", "(())", "((),(()),())"], &["", "(", "(()", "(,)", "())"]);
    let sums = "root ::= term ([-+*/] term)*\nterm ::= [0-9]+ | \"(\" ws root ws \")\"\nws ::= [ \\t\\n]*";
    check(sums, &["1", "12+3", "(1+2)*( 3 )", "((7))"], &["", "1+", "(1", "1 + 2", "a"]);
}

/// The grammar of JSON that comes with llama.cpp, in its layout.
const JSON: &str = r#"root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn the_grammar_of_json_takes_json() {
    check(
        JSON,
        &["{}", r#"{"a": [1, -2.5e3, true, null, "x\"\u00e9"], "b": {"c": ""}}"#, "{\n  \"a\":1}"],
        &["", "[]", "{", r#"{"a"}"#, r#"{"a": 01}"#, r#"{"a": 1,}"#, r#"{"a": tru}"#],
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (grammar, part) in [
        ("", "no rule `root`"),
        ("rot ::= \"a\"", "no rule `root`"),
        ("root ::= other", "no rule `other`"),
        ("root = \"a\"", "`::=`"),
        ("root ::= \"a", "does not end"),
        ("root ::= [a", "does not end"),
        ("root ::= []", "empty"),
        ("root ::= [z-a]", "ends before"),
        ("root ::= (\"a\"", "`)`"),
        ("root ::= \"a\" )", "no place"),
        ("root ::= \"a\"\n\nx ::= \"\\q\"", "line 3"),
        ("root ::= \"\\u12\"", "no character"),
        ("root ::= \"\\ud800\"", "no character"),
        ("root ::= \"a\"{5,2}", "larger least"),
        ("root ::= \"a\"{99999999999}", "2000"),
        ("root ::= <think>", "tokens"),
    ] {
        let refusal = to_lark(grammar).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{grammar}");
        assert!(refusal.message.contains(part), "{grammar}: {refusal}");
    }
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(100_000 / 4), ")".repeat(100_000 / 4));
    assert!(to_lark(&deep).unwrap_err().message.contains("nested"));
    assert_eq!(to_lark(&"#".repeat(BYTES_MAX + 1)).unwrap_err().code, Code::TooLarge);
}
