//! Writes a grammar for the grammar engine, which knows two kinds of rules:
//! *terminals*, which are regular expressions, and rules that may refer to
//! themselves. What is regular becomes a terminal, and so does every part of a
//! rule that is, as long as possible: between terminals the engine takes the
//! longest, within one it looks at all ways.

use std::collections::HashSet;
use std::fmt::Write;

use super::{Expression, Grammar};

/// The whole grammar.
pub(super) fn written(grammar: &Grammar) -> String {
    let regular = regular(grammar);
    let empty = empty(grammar);
    let mut writer =
        Writer { regular: &regular, empty: &empty, terminals: Vec::new(), fixed: grammar.rules.len() };
    let mut rules = String::new();
    for (at, rule) in grammar.rules.iter().enumerate() {
        if regular[at] {
            let terminal = writer.terminal(rule);
            writeln!(rules, "T{at}: {terminal}").unwrap_or_default();
        } else {
            let body = writer.rule(rule);
            writeln!(rules, "r{at}: {body}").unwrap_or_default();
        }
    }
    let start = match regular[0] {
        true => writer.rule(&Expression::Rule(0)),
        false => "r0".to_owned(),
    };
    let mut text = format!("start: {start}\n{rules}");
    for (offset, terminal) in writer.terminals.iter().enumerate() {
        writeln!(text, "T{}: {terminal}", grammar.rules.len() + offset).unwrap_or_default();
    }
    text
}

/// Which rules are regular: those that reach no rule that reaches itself.
fn regular(grammar: &Grammar) -> Vec<bool> {
    let count = grammar.rules.len();
    let mut direct = vec![HashSet::new(); count];
    for (at, rule) in grammar.rules.iter().enumerate() {
        references(rule, &mut direct[at]);
    }
    // Rules whose references are all regular, found from the leaves up.
    let mut regular = vec![false; count];
    let mut users = vec![Vec::new(); count];
    let mut missing: Vec<usize> = direct.iter().map(HashSet::len).collect();
    for (at, used) in direct.iter().enumerate() {
        used.iter().for_each(|used: &usize| users[*used].push(at));
    }
    let mut ready: Vec<usize> = (0..count).filter(|at| missing[*at] == 0).collect();
    while let Some(at) = ready.pop() {
        regular[at] = true;
        for user in &users[at] {
            missing[*user] -= 1;
            if missing[*user] == 0 {
                ready.push(*user);
            }
        }
    }
    regular
}

/// Which rules fit the empty text, found by adding them until no more are.
fn empty(grammar: &Grammar) -> Vec<bool> {
    let mut empty = vec![false; grammar.rules.len()];
    loop {
        let before = empty.clone();
        for (at, rule) in grammar.rules.iter().enumerate() {
            empty[at] = may_be_empty(rule, &before);
        }
        if empty == before {
            return empty;
        }
    }
}

/// Whether an expression fits the empty text, if these rules do.
fn may_be_empty(expression: &Expression, rules: &[bool]) -> bool {
    match expression {
        Expression::Literal(text) => text.is_empty(),
        Expression::Class { .. } => false,
        Expression::Rule(at) => rules[*at],
        Expression::Sequence(items) => items.iter().all(|item| may_be_empty(item, rules)),
        Expression::Choice(items) => items.iter().any(|item| may_be_empty(item, rules)),
        Expression::Repeat { of, least, .. } => *least == 0 || may_be_empty(of, rules),
    }
}

fn references(expression: &Expression, into: &mut HashSet<usize>) {
    match expression {
        Expression::Literal(_) | Expression::Class { .. } => {}
        Expression::Rule(at) => {
            into.insert(*at);
        }
        Expression::Sequence(items) | Expression::Choice(items) => {
            items.iter().for_each(|item| references(item, into));
        }
        Expression::Repeat { of, .. } => references(of, into),
    }
}

struct Writer<'a> {
    regular: &'a [bool],
    empty: &'a [bool],
    /// Terminals of parts of rules; their numbers follow those of the rules.
    terminals: Vec<String>,
    fixed: usize,
}

impl Writer<'_> {
    fn is_regular(&self, expression: &Expression) -> bool {
        let mut used = HashSet::new();
        references(expression, &mut used);
        used.iter().all(|at| self.regular[*at])
    }

    /// A part of a terminal.
    fn terminal(&self, expression: &Expression) -> String {
        match expression {
            Expression::Literal(text) => format!("/(?:{})/", escaped(text)),
            Expression::Class { ranges, negated } => class(ranges, *negated),
            Expression::Rule(at) => format!("T{at}"),
            Expression::Sequence(items) if items.is_empty() => "/(?:)/".to_owned(),
            Expression::Sequence(items) => self.joined(items, " "),
            Expression::Choice(items) => self.joined(items, " | "),
            Expression::Repeat { of, least, most } => {
                format!("({}){}", self.terminal(of), repetition(*least, *most))
            }
        }
    }

    fn joined(&self, items: &[Expression], between: &str) -> String {
        let items: Vec<String> = items.iter().map(|item| self.terminal(item)).collect();
        format!("({})", items.join(between))
    }

    /// A part of a rule.
    fn rule(&mut self, expression: &Expression) -> String {
        if self.is_regular(expression) {
            return self.named(std::slice::from_ref(expression));
        }
        match expression {
            Expression::Rule(at) => format!("r{at}"),
            Expression::Sequence(items) => {
                let mut parts = Vec::new();
                let mut rest = items.as_slice();
                while let Some(first) = rest.first() {
                    let run = rest.iter().take_while(|item| self.is_regular(item)).count();
                    if run == 0 {
                        parts.push(self.rule(first));
                    } else {
                        parts.push(self.named(&rest[..run]));
                    }
                    rest = &rest[run.max(1)..];
                }
                format!("({})", parts.join(" "))
            }
            Expression::Choice(items) => {
                let parts: Vec<String> = items.iter().map(|item| self.rule(item)).collect();
                format!("({})", parts.join(" | "))
            }
            Expression::Repeat { of, least, most } => {
                format!("({}){}", self.rule(of), repetition(*least, *most))
            }
            // These refer to nothing, so they are regular.
            Expression::Literal(_) | Expression::Class { .. } => String::new(),
        }
    }

    /// A terminal of its own for items that follow each other. One that may be
    /// empty is left out where it is, since a terminal takes at least a
    /// character.
    fn named(&mut self, items: &[Expression]) -> String {
        let text = match items {
            [one] => self.terminal(one),
            many => self.joined(many, " "),
        };
        let name = format!("T{}", self.fixed + self.terminals.len());
        if items.iter().all(|item| may_be_empty(item, self.empty)) {
            self.terminals.push(format!("({text}) & /[\\s\\S]+/"));
            return format!("({name})?");
        }
        self.terminals.push(text);
        name
    }
}

fn repetition(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (0, Some(1)) => "?".to_owned(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}

fn class(ranges: &[(char, char)], negated: bool) -> String {
    if ranges.is_empty() {
        return "/[\\s\\S]/".to_owned();
    }
    let inside: String = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => code(*first),
            false => format!("{}-{}", code(*first), code(*last)),
        })
        .collect();
    format!("/[{}{inside}]/", if negated { "^" } else { "" })
}

fn escaped(text: &str) -> String {
    text.chars().map(code).collect()
}

/// A character in a regular expression; whatever could mean something is
/// written as its number.
fn code(character: char) -> String {
    if character.is_ascii_alphanumeric() {
        character.to_string()
    } else {
        format!("\\x{{{:X}}}", u32::from(character))
    }
}
