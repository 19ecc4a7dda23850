//! Texts as `srepr` writes them.

/// Longest expression, in bytes, and deepest nesting.
const MAX_TEXT: usize = 64 << 10;
const MAX_DEPTH: usize = 64;

/// A parsed `srepr` text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Call { name: String, args: Vec<Expr>, keywords: Vec<(String, Expr)> },
    Name(String),
    Number(String),
    Text(String),
}

impl Expr {
    /// The name of a bare symbol, and whether it is said not to be negative.
    pub(super) fn as_symbol(&self) -> Option<(&str, bool)> {
        match self {
            Expr::Call { name, args, keywords } if name == "Symbol" => match args.as_slice() {
                [Expr::Text(symbol)] => {
                    let says =
                        |key: &str| keywords.iter().any(|(k, v)| k == key && *v == Expr::Name("True".to_owned()));
                    Some((symbol, says("positive") || says("nonnegative")))
                }
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn for_each_symbol(&self, f: &mut impl FnMut(&str, bool)) {
        if let Some((name, nonnegative)) = self.as_symbol() {
            f(name, nonnegative);
        } else if let Expr::Call { args, .. } = self {
            for arg in args {
                arg.for_each_symbol(f);
            }
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Expr, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("is too long: {} bytes, at most {MAX_TEXT} are read", text.len()));
    }
    let mut parser = Parser { rest: text };
    let expr = parser.expr(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(c) => Err(format!("cannot be read: `{c}` after its end")),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, token: char) -> bool {
        let found = self.peek() == Some(token);
        if found {
            self.rest = &self.rest[token.len_utf8()..];
        }
        found
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !f(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn expr(&mut self, depth: usize) -> Result<Expr, String> {
        if depth > MAX_DEPTH {
            return Err(format!("is nested deeper than {MAX_DEPTH}"));
        }
        match self.peek() {
            Some(quote @ ('\'' | '"')) => {
                self.eat(quote);
                let text = self.take_while(|c| c != quote && c != '\\');
                if !self.eat(quote) {
                    return Err("cannot be read: a text has no end".to_owned());
                }
                Ok(Expr::Text(text.to_owned()))
            }
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let sign = if self.eat('-') { "-" } else { "" };
                let word = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
                match word.chars().next() {
                    Some(c) if c.is_ascii_digit() => Ok(Expr::Number(format!("{sign}{word}"))),
                    Some(_) => Ok(Expr::Name(format!("{sign}{word}"))),
                    None => Err("cannot be read: a lone `-`".to_owned()),
                }
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_')).to_owned();
                if !self.eat('(') {
                    return Ok(Expr::Name(name));
                }
                let (mut args, mut keywords) = (Vec::new(), Vec::new());
                while !self.eat(')') {
                    match self.expr(depth + 1)? {
                        Expr::Name(key) if self.eat('=') => keywords.push((key, self.expr(depth + 1)?)),
                        arg => args.push(arg),
                    }
                    if !self.eat(',') && self.peek() != Some(')') {
                        return Err(format!("cannot be read: expected `,` or `)` in `{name}(`"));
                    }
                }
                Ok(Expr::Call { name, args, keywords })
            }
            Some(c) => Err(format!("cannot be read: unexpected `{c}`")),
            None => Err("cannot be read: it ends too early".to_owned()),
        }
    }
}
