//! GBNF, the grammars of llama.cpp: read here, and written anew as what the
//! grammar engine knows.
//!
//! llama.cpp's own reader prints a grammar that it refuses, recurses as deep as
//! the grammar says, and its matcher looks at the whole vocabulary for every
//! token. Here a grammar is bounded in size and depth, and what is wrong with it
//! is a refusal.

mod lark;

use ksi_provider::request::invalid;
use ksi_sdk::prelude::{Code, Refusal};

/// Largest grammar, in bytes.
const BYTES_MAX: usize = 64 * 1024;
/// How deep parentheses may be nested.
const DEPTH_MAX: usize = 64;
/// Most repetitions that may be written as a number, as in llama.cpp.
const TIMES_MAX: u32 = 2000;
/// The rule that a text must fit.
const ROOT: &str = "root";

/// Turns a grammar into one in the Lark syntax of the grammar engine.
///
/// # Errors
///
/// `invalid_payload` with the line that is wrong, `too_large`.
pub(crate) fn to_lark(text: &str) -> Result<String, Refusal> {
    if text.len() > BYTES_MAX {
        let message = format!("the grammar has {} bytes; at most {BYTES_MAX} are accepted", text.len());
        return Err(Refusal::new(Code::TooLarge, message).hint("use a smaller grammar"));
    }
    Grammar::read(text).map(|grammar| lark::written(&grammar)).map_err(|wrong| {
        let message = format!("line {} of the grammar: {}", wrong.line, wrong.what);
        invalid("grammar", message, "grammars are written as for llama.cpp: `root ::= \"yes\" | \"no\"`")
    })
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Literal(String),
    /// Ranges of characters, of which one must come, or must not.
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    /// The number of a rule.
    Rule(usize),
    Sequence(Vec<Expression>),
    Choice(Vec<Expression>),
    Repeat {
        of: Box<Expression>,
        least: u32,
        most: Option<u32>,
    },
}

/// A whole grammar; the root is rule 0.
struct Grammar {
    rules: Vec<Expression>,
}

/// What is wrong, and where.
#[derive(Debug)]
struct Wrong {
    line: usize,
    what: String,
}

impl Grammar {
    fn read(text: &str) -> Result<Self, Wrong> {
        let mut reader = Reader { characters: text.chars().collect(), at: 0, names: vec![ROOT.to_owned()] };
        let mut rules: Vec<Option<Expression>> = Vec::new();
        reader.skip(true);
        while reader.peek().is_some() {
            let rule = reader.name()?;
            reader.skip(false);
            reader.expect("::=")?;
            reader.skip(true);
            let expression = reader.choice(0)?;
            reader.end_of_line()?;
            rules.resize(reader.names.len(), None);
            // As in llama.cpp, the last of two rules of one name counts.
            rules[rule] = Some(expression);
        }
        rules.resize(reader.names.len(), None);
        let undefined = |at: usize| Wrong {
            line: reader.line(),
            what: format!("there is no rule `{}`", reader.names[at]),
        };
        let whole = rules.into_iter().enumerate();
        let rules = whole.map(|(at, rule)| rule.ok_or_else(|| undefined(at))).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }
}

struct Reader {
    characters: Vec<char>,
    at: usize,
    /// Names of rules, by their numbers.
    names: Vec<String>,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek();
        self.at += usize::from(character.is_some());
        character
    }

    fn line(&self) -> usize {
        1 + self.characters[..self.at].iter().filter(|character| **character == '\n').count()
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { line: self.line(), what: what.into() })
    }

    /// Skips blanks and comments, and ends of lines where they say nothing.
    fn skip(&mut self, lines: bool) {
        while let Some(character) = self.peek() {
            match character {
                ' ' | '\t' => {}
                '\n' | '\r' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|character| character != '\n') {
                        self.at += 1;
                    }
                    continue;
                }
                _ => return,
            }
            self.at += 1;
        }
    }

    fn expect(&mut self, text: &str) -> Result<(), Wrong> {
        for expected in text.chars() {
            if self.peek() != Some(expected) {
                return self.wrong(format!("`{text}` is missing"));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn end_of_line(&mut self) -> Result<(), Wrong> {
        match self.peek() {
            None | Some('\n' | '\r') => {
                self.skip(true);
                Ok(())
            }
            Some(character) => self.wrong(format!("`{}` has no place here", character.escape_debug())),
        }
    }

    /// The number of the rule that is named here.
    fn name(&mut self) -> Result<usize, Wrong> {
        let mut name = String::new();
        while let Some(character) =
            self.peek().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        {
            name.push(character);
            self.at += 1;
        }
        if name.is_empty() {
            return self.wrong("the name of a rule is missing");
        }
        match self.names.iter().position(|known| *known == name) {
            Some(at) => Ok(at),
            None => {
                self.names.push(name);
                Ok(self.names.len() - 1)
            }
        }
    }

    fn choice(&mut self, depth: usize) -> Result<Expression, Wrong> {
        if depth > DEPTH_MAX {
            return self.wrong(format!("parentheses are nested deeper than {DEPTH_MAX}"));
        }
        let mut options = vec![self.sequence(depth)?];
        while self.peek() == Some('|') {
            self.at += 1;
            self.skip(true);
            options.push(self.sequence(depth)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Expression::Choice(options) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Expression, Wrong> {
        let mut items = Vec::new();
        loop {
            let item = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Expression::Class { ranges: Vec::new(), negated: true }
                }
                Some('(') => {
                    self.at += 1;
                    self.skip(true);
                    let inner = self.choice(depth + 1)?;
                    self.expect(")")?;
                    inner
                }
                Some('<' | '!') => return self.wrong("tokens by their numbers or names are not known here"),
                Some(c) if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') => {
                    Expression::Rule(self.name()?)
                }
                _ => break,
            };
            self.skip(depth > 0);
            items.push(self.repeated(item, depth)?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expression::Sequence(items) })
    }

    /// An item with the marks of repetition that follow it.
    fn repeated(&mut self, item: Expression, depth: usize) -> Result<Expression, Wrong> {
        let mut item = item;
        loop {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let least = self.number()?;
                    match self.peek() {
                        Some(',') => {
                            self.at += 1;
                            self.skip(false);
                            let most = if self.peek() == Some('}') { None } else { Some(self.number()?) };
                            (least, most)
                        }
                        _ => (least, Some(least)),
                    }
                }
                _ => return Ok(item),
            };
            if self.peek().is_some_and(|mark| matches!(mark, '*' | '+' | '?')) {
                self.at += 1;
            } else {
                self.expect("}")?;
            }
            if most.is_some_and(|most| most < least) {
                return self.wrong("a repetition has a larger least than most");
            }
            self.skip(depth > 0);
            item = Expression::Repeat { of: Box::new(item), least, most };
        }
    }

    fn number(&mut self) -> Result<u32, Wrong> {
        self.skip(false);
        let mut digits = String::new();
        while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
            digits.push(digit);
            self.at += 1;
        }
        self.skip(false);
        match digits.parse() {
            Ok(number) if number <= TIMES_MAX => Ok(number),
            _ => self.wrong(format!("a repetition takes a number from 0 to {TIMES_MAX}")),
        }
    }

    fn literal(&mut self) -> Result<Expression, Wrong> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return self.wrong("a text does not end"),
                Some('"') => {
                    self.at += 1;
                    return Ok(Expression::Literal(text));
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Expression, Wrong> {
        self.at += 1;
        let negated = self.peek() == Some('^');
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None => return self.wrong("a set of characters does not end"),
                Some(']') => {
                    self.at += 1;
                    break;
                }
                Some(_) => {}
            }
            let first = self.character()?;
            let ranged = self.peek() == Some('-') && self.characters.get(self.at + 1) != Some(&']');
            let last = if ranged {
                self.at += 1;
                self.character()?
            } else {
                first
            };
            if last < first {
                return self.wrong("a range of characters ends before it begins");
            }
            ranges.push((first, last));
        }
        if ranges.is_empty() && !negated {
            return self.wrong("a set of characters is empty");
        }
        Ok(Expression::Class { ranges, negated })
    }

    /// A character, which may be written as an escape.
    fn character(&mut self) -> Result<char, Wrong> {
        let Some(character) = self.next() else { return self.wrong("the grammar ends in the middle") };
        if character != '\\' {
            return Ok(character);
        }
        match self.next() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some(same @ ('\\' | '"' | '[' | ']')) => Ok(same),
            Some('x') => self.code(2),
            Some('u') => self.code(4),
            Some('U') => self.code(8),
            _ => self.wrong("an escape is not known"),
        }
    }

    fn code(&mut self, digits: usize) -> Result<char, Wrong> {
        let end = (self.at + digits).min(self.characters.len());
        let text: String = self.characters[self.at..end].iter().collect();
        self.at = end;
        let code = (text.len() == digits).then(|| u32::from_str_radix(&text, 16).ok()).flatten();
        match code.and_then(char::from_u32) {
            Some(character) => Ok(character),
            None => self.wrong("an escape stands for no character"),
        }
    }
}

#[cfg(test)]
mod tests;
