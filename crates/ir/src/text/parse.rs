use std::{collections::HashMap, str::FromStr, sync::Arc};

use regraft_tensor::{DType, Dim, Range};

use crate::{Graph, IrError, IrErrorKind, Op, Role, SourceKind, TensorType, ValueId, attr::AttrValue};

/// Reads the text of a program and verifies it.
///
/// # Errors
/// [`IrErrorKind::Syntax`] with the line, or what [`Graph::verify`] finds.
pub fn parse(text: &str) -> Result<Graph, IrError> {
    let mut builder = Builder::default();
    for (i, line) in text.lines().enumerate() {
        let at = |why| IrErrorKind::Syntax { line: i + 1, why };
        builder.line(line.trim()).map_err(at)?;
    }
    if builder.stage != Stage::After {
        return Err(IrErrorKind::Syntax { line: text.lines().count(), why: "expected `}`".into() }.into());
    }
    builder.graph.verify()?;
    Ok(builder.graph)
}

#[derive(Default, PartialEq)]
enum Stage {
    #[default]
    Before,
    Inside,
    After,
}

#[derive(Default)]
struct Builder {
    graph: Graph,
    values: HashMap<u32, ValueId>,
    stage: Stage,
}

impl Builder {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with("//") {
            return Ok(());
        }
        let mut lexer = Lexer { rest: line };
        if self.stage != Stage::Inside {
            if self.stage == Stage::After || !lexer.eat("program") {
                return Err(format!("unexpected `{line}`"));
            }
            self.graph.name = lexer.string()?;
            lexer.expect("{")?;
            self.stage = Stage::Inside;
            return lexer.end();
        }
        if lexer.eat("}") {
            self.stage = Stage::After;
            return lexer.end();
        }
        match lexer.rest.split_whitespace().next().unwrap_or_default() {
            "dims" => self.dims(&mut lexer),
            "input" => self.input(&mut lexer),
            "source" => self.source(&mut lexer),
            "state" => self.state(&mut lexer),
            "output" | "next" => self.end(&mut lexer),
            _ => self.node(&mut lexer),
        }
    }

    fn define(&mut self, number: u32, value: ValueId) -> Result<(), String> {
        match self.values.insert(number, value) {
            None => Ok(()),
            Some(_) => Err(format!("%{number} is defined twice")),
        }
    }

    fn value(&self, number: u32) -> Result<ValueId, String> {
        self.values.get(&number).copied().ok_or_else(|| format!("%{number} is not defined"))
    }

    fn dims(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        lexer.expect("dims")?;
        lexer.expect(&format!("s{}", self.graph.symbols.len()))?;
        lexer.expect("in")?;
        let min = lexer.integer()?;
        lexer.expect("..=")?;
        let max = lexer.integer()?;
        lexer.expect("(opt")?;
        let opt = lexer.integer()?;
        lexer.expect(")")?;
        self.graph.add_symbol(Range { min, max }, opt);
        lexer.end()
    }

    fn input(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        lexer.expect("input")?;
        let (number, ty, name) = lexer.declaration()?;
        let value = self.graph.add_input(name, ty);
        self.define(number, value)?;
        lexer.end()
    }

    fn source(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        lexer.expect("source")?;
        let (number, ty, name) = lexer.declaration()?;
        lexer.expect("(")?;
        let word = lexer.word()?;
        let kind = SourceKind::ALL.into_iter().find(|k| k.name() == word);
        let kind = kind.ok_or_else(|| format!("`{word}` is not a kind of source"))?;
        let value = self.graph.add_source(name, kind, ty);
        self.define(number, value)?;
        while lexer.eat(",") {
            let alias = lexer.string()?;
            self.graph.sources.last_mut().expect("just added").aliases.push(alias);
        }
        lexer.expect(")")?;
        if lexer.eat("as") {
            let word = lexer.word()?;
            let role = Role::ALL.into_iter().find(|role| role.name() == word);
            self.graph.sources.last_mut().expect("just added").role =
                role.ok_or_else(|| format!("`{word}` is not a role of a source"))?;
        }
        if lexer.eat("twin") {
            lexer.expect("of")?;
            let twin = self.value(lexer.number()?)?;
            let twin = self.graph.source_of(twin).ok_or("a twin is one of a source")?;
            self.graph.sources.last_mut().expect("just added").twin_of = Some(twin);
        }
        if lexer.eat("folded") {
            let folded = lexer.string()?;
            self.graph.sources.last_mut().expect("just added").folded = Some(folded);
        }
        lexer.end()
    }

    fn state(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        lexer.expect("state")?;
        let (number, _, name) = lexer.declaration()?;
        lexer.expect("from")?;
        let init = self.value(lexer.number()?)?;
        let init = self.graph.source_of(init).ok_or("a state starts from a source")?;
        let value = self.graph.add_state(name, init);
        self.define(number, value)?;
        lexer.end()
    }

    fn end(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        let is_output = lexer.eat("output");
        if !is_output {
            lexer.expect("next")?;
        }
        let value = self.value(lexer.number()?)?;
        lexer.expect("=")?;
        let name = lexer.string()?;
        if is_output {
            self.graph.add_output(name, value);
        } else {
            let state = self.graph.states.iter_mut().find(|s| s.name == name);
            state.ok_or_else(|| format!("there is no state {name:?}"))?.next = value;
        }
        lexer.end()
    }

    fn node(&mut self, lexer: &mut Lexer<'_>) -> Result<(), String> {
        let mut results = vec![lexer.number()?];
        while lexer.eat(",") {
            results.push(lexer.number()?);
        }
        lexer.expect("=")?;
        let name = lexer.word()?;
        let mut operands = Vec::new();
        while !lexer.at("{") && !lexer.at(":") {
            if !operands.is_empty() {
                lexer.expect(",")?;
            }
            operands.push(if lexer.eat("none") { None } else { Some(self.value(lexer.number()?)?) });
        }
        let attrs = if lexer.at("{") { lexer.attrs()? } else { Vec::new() };
        let op = match Op::from_text(name, attrs) {
            None => return Err(format!("there is no op `{name}`")),
            Some(Err(attr)) => return Err(format!("attribute `{attr}` of {name} is missing, unknown or ill-typed")),
            Some(Ok(op)) => op,
        };
        lexer.expect(":")?;
        let mut types = vec![lexer.ty()?];
        while lexer.eat(",") {
            types.push(lexer.ty()?);
        }
        if types.len() != results.len() {
            return Err("results and types differ in number".into());
        }
        let scope: Arc<str> = lexer.rest.trim().strip_prefix("//").unwrap_or_default().trim().into();
        let values = self.graph.add_typed(op, operands, types, &scope);
        results.into_iter().zip(values).try_for_each(|(n, v)| self.define(n, v))
    }
}

struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn at(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.starts_with(token)
    }

    fn eat(&mut self, token: &str) -> bool {
        let there = self.at(token);
        if there {
            self.rest = &self.rest[token.len()..];
        }
        there
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected `{token}` before `{}`", self.rest)) }
    }

    fn end(&mut self) -> Result<(), String> {
        if self.rest.trim().is_empty() || self.at("//") { Ok(()) } else { Err(format!("unexpected `{}`", self.rest)) }
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !fits(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn word(&mut self) -> Result<&'a str, String> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if word.is_empty() { Err(format!("expected a word before `{}`", self.rest)) } else { Ok(word) }
    }

    fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("`{text}` is not a number in range"))
    }

    fn integer(&mut self) -> Result<i64, String> {
        let digits = self.take_while(|c| c.is_ascii_digit() || c == '-');
        Self::parsed(digits)
    }

    fn number(&mut self) -> Result<u32, String> {
        self.expect("%")?;
        let digits = self.take_while(|c| c.is_ascii_digit());
        Self::parsed(digits)
    }

    /// A string as `{:?}` writes it.
    fn string(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[i + 1..];
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, 'r')) => out.push('\r'),
                    Some((_, '0')) => out.push('\0'),
                    Some((_, 'u')) => {
                        let hex: String = chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}').skip(1).collect();
                        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                        out.push(code.ok_or_else(|| format!("`\\u{{{hex}}}` is not a character"))?);
                    }
                    Some((_, c)) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err("the string does not end".into())
    }

    /// `%n : type = "name"`
    fn declaration(&mut self) -> Result<(u32, TensorType, String), String> {
        let number = self.number()?;
        self.expect(":")?;
        let ty = self.ty()?;
        self.expect("=")?;
        Ok((number, ty, self.string()?))
    }

    fn ty(&mut self) -> Result<TensorType, String> {
        let word = self.word()?;
        let dtype = DType::from_name(word).ok_or_else(|| format!("`{word}` is not a dtype"))?;
        self.expect("[")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            if !shape.is_empty() {
                self.expect(",")?;
            }
            shape.push(self.dim()?);
        }
        Ok(TensorType::new(dtype, shape))
    }

    /// A dimension: up to the next `,`, `]` or `}` outside of round brackets.
    fn dim(&mut self) -> Result<Dim, String> {
        let mut depth = 0;
        let end = self.rest.find(|c| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, ',' | ']' | '}')
        });
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        text.trim().parse().map_err(|e: regraft_tensor::TensorError| e.to_string())
    }

    fn attrs(&mut self) -> Result<Vec<(String, AttrValue)>, String> {
        self.expect("{")?;
        let mut attrs = Vec::new();
        while !self.eat("}") {
            if !attrs.is_empty() {
                self.expect(",")?;
            }
            let name = self.word()?.to_owned();
            self.expect("=")?;
            attrs.push((name, self.attr_value(0)?));
        }
        Ok(attrs)
    }

    fn attr_value(&mut self, depth: usize) -> Result<AttrValue, String> {
        if depth > 8 {
            return Err("lists are nested too deeply".into());
        }
        if self.at("\"") {
            return self.string().map(AttrValue::Str);
        }
        if self.eat("[") {
            let mut items = Vec::new();
            while !self.eat("]") {
                if !items.is_empty() {
                    self.expect(",")?;
                }
                items.push(self.attr_value(depth + 1)?);
            }
            return Ok(AttrValue::List(items));
        }
        let before = self.rest;
        if let Ok(dim) = self.dim() {
            return Ok(AttrValue::Dim(dim));
        }
        self.rest = before;
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+'));
        match text.parse() {
            Ok(v) if text != "none" => Ok(AttrValue::Float(v)),
            _ if text.is_empty() => Err(format!("expected a value before `{}`", self.rest)),
            _ => Ok(AttrValue::Word(text.to_owned())),
        }
    }
}
