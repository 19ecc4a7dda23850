//! Symbols and the expressions over them, as sympy's `srepr` writes them.

use std::collections::HashMap;

use regraft_tensor::{Atom, Dim, Range, Symbol};

use super::schema::{Argument, ExportedProgram, Graph, SymExprHint, SymInt};

/// The end of a range that the program leaves open; leaves room for arithmetic.
pub const UNBOUNDED: i64 = i64::MAX / 4;

/// Longest expression, in bytes, and deepest nesting.
const MAX_TEXT: usize = 64 << 10;
const MAX_DEPTH: usize = 64;
/// Greatest coefficient, and the number of parts an expression may have.
const MAX_NUMBER: i64 = 1 << 53;
const MAX_PARTS: usize = 1024;

/// A symbol of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolInfo {
    /// Its name in the program, such as `s77`, or `u0` when its value depends on data.
    pub name: String,
    /// The values it may have.
    pub range: Range,
    /// The value it had when the program was exported.
    pub opt: Option<i64>,
    /// Whether its value is known only while the program runs (`u0`), rather than from the sizes of the inputs.
    pub from_data: bool,
    nonnegative: bool,
}

/// The symbols of a program, indexed in the order in which the graph first mentions them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolTable {
    symbols: Vec<SymbolInfo>,
    index: HashMap<String, Symbol>,
}

/// Why an expression is no [`Dim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolProblem {
    /// The value or range constraint that has the expression; may be empty.
    pub at: String,
    /// The expression.
    pub expr: String,
    /// What is wrong.
    pub why: String,
}

impl SymbolTable {
    /// The symbols of all sizes and integers of `program`, with their ranges and the values they had in the example.
    ///
    /// # Errors
    /// An expression that cannot be read, or an empty range.
    pub fn collect(program: &ExportedProgram) -> Result<Self, SymbolProblem> {
        let mut table = SymbolTable::default();
        table.collect_graph(&program.graph_module.graph)?;
        for info in &mut table.symbols {
            let Some(constraint) = program.range_constraints.get(&info.name) else { continue };
            let clamp = |v: Option<i64>, open| v.map_or(open, |v| v.clamp(-UNBOUNDED, UNBOUNDED));
            info.range =
                Range { min: clamp(constraint.min_val, -UNBOUNDED), max: clamp(constraint.max_val, UNBOUNDED) };
            let Range { min, max } = info.range;
            if min > max {
                let why = format!("has no value: its range is {min} to {max}");
                return Err(SymbolProblem { at: "range_constraints".to_owned(), expr: info.name.clone(), why });
            }
            info.opt = info.opt.filter(|opt| (min..=max).contains(opt));
        }
        Ok(table)
    }

    fn collect_graph(&mut self, graph: &Graph) -> Result<(), SymbolProblem> {
        for arg in &graph.inputs {
            self.collect_value(graph, arg)?;
        }
        for node in &graph.nodes {
            for named in &node.inputs {
                // Depth is bounded by that of the JSON text.
                if let Argument::Graph(inner) = &named.arg {
                    self.collect_graph(&inner.graph)?;
                }
            }
            for arg in &node.outputs {
                self.collect_value(graph, arg)?;
            }
        }
        Ok(())
    }

    fn collect_value(&mut self, graph: &Graph, arg: &Argument) -> Result<(), SymbolProblem> {
        let mut result = Ok(());
        arg.for_each_name(&mut |name| {
            let sizes = graph.tensor_values.get(name).into_iter().flat_map(|meta| &meta.sizes);
            for size in sizes.chain(graph.sym_int_values.get(name)) {
                if result.is_ok() {
                    result = self.intern(name, size);
                }
            }
        });
        result
    }

    fn intern(&mut self, at: &str, size: &SymInt) -> Result<(), SymbolProblem> {
        let SymInt::Expr(sym) = size else { return Ok(()) };
        let expr =
            parse(&sym.expr_str).map_err(|why| SymbolProblem { at: at.to_owned(), expr: sym.expr_str.clone(), why })?;
        expr.for_each_symbol(&mut |name, nonnegative| {
            if !self.index.contains_key(name) {
                // Every symbol takes several bytes of a text of at most 512 MiB.
                self.index.insert(name.to_owned(), Symbol(self.symbols.len() as u32));
                let min = if nonnegative { 0 } else { -UNBOUNDED };
                self.symbols.push(SymbolInfo {
                    name: name.to_owned(),
                    range: Range { min, max: UNBOUNDED },
                    opt: None,
                    from_data: name.starts_with('u'),
                    nonnegative,
                });
            }
        });
        if let (Some((name, _)), Some(SymExprHint::Int(hint))) = (expr.as_symbol(), &sym.hint)
            && let Some(info) = self.index.get(name).and_then(|s| self.symbols.get_mut(s.0 as usize))
        {
            info.opt.get_or_insert(*hint);
        }
        Ok(())
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether the program has fixed shapes only.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// All symbols; the position of each is its index.
    pub fn iter(&self) -> std::slice::Iter<'_, SymbolInfo> {
        self.symbols.iter()
    }

    /// What is known of a symbol.
    pub fn info(&self, symbol: Symbol) -> Option<&SymbolInfo> {
        self.symbols.get(symbol.0 as usize)
    }

    /// The symbol with this name.
    pub fn get(&self, name: &str) -> Option<Symbol> {
        self.index.get(name).copied()
    }

    /// The ranges of all symbols, as [`Dim::eval`]'s relatives want them.
    pub fn ranges(&self) -> Vec<Range> {
        self.symbols.iter().map(|s| s.range).collect()
    }

    /// A size or integer of the program as an expression.
    ///
    /// # Errors
    /// An expression that is no polynomial, quotient, remainder, `Max` or `Min` of symbols.
    pub fn dim(&self, size: &SymInt) -> Result<Dim, SymbolProblem> {
        match size {
            SymInt::Int(value) => Ok(Dim::new(*value)),
            SymInt::Expr(sym) => self.parse(&sym.expr_str),
            SymInt::Unknown(tag) => Err(SymbolProblem {
                at: String::new(),
                expr: tag.clone(),
                why: "is an unknown kind of size".to_owned(),
            }),
        }
    }

    /// The expression of an `srepr` text.
    ///
    /// # Errors
    /// As [`SymbolTable::dim`].
    pub fn parse(&self, text: &str) -> Result<Dim, SymbolProblem> {
        parse(text).and_then(|expr| self.value(&expr)).and_then(Ratio::whole).map_err(|why| SymbolProblem {
            at: String::new(),
            expr: text.to_owned(),
            why,
        })
    }

    /// The value of an expression; recursion is bounded by the parser.
    fn value(&self, expr: &Expr) -> Result<Ratio, String> {
        let (name, args) = match expr {
            Expr::Call { name, args, .. } => (name.as_str(), args.as_slice()),
            Expr::Number(text) => return number(text).and_then(Ratio::of),
            Expr::Text(text) => {
                return Err(format!("has the text '{text}' where a number is expected"));
            }
            Expr::Name(name) => return Err(format!("has `{name}`, which is no finite integer")),
        };
        match (name, args) {
            ("Symbol", [Expr::Text(name), ..]) => {
                let symbol = self.get(name).ok_or_else(|| format!("has the symbol `{name}`, which no size defines"))?;
                Ratio::of(Dim::sym(symbol))
            }
            ("Integer", [Expr::Number(text)]) => number(text).and_then(Ratio::of),
            ("Float", [Expr::Text(text), ..]) => float(text),
            ("Rational", [a, b]) => self.value(a)?.div(self.value(b)?),
            ("Add", args) => args.iter().try_fold(Ratio::of(Dim::new(0))?, |sum, a| sum.add(self.value(a)?)),
            ("Mul", args) => args.iter().try_fold(Ratio::of(Dim::new(1))?, |product, a| product.mul(self.value(a)?)),
            ("Pow" | "PowByNatural", [base, exponent]) => {
                let exponent = self.whole(exponent)?.as_const().filter(|e| (-8..=16).contains(e));
                let exponent = exponent.ok_or("has a power whose exponent is no small constant")?;
                let base = self.value(base)?;
                let mut power = Ratio::of(Dim::new(1))?;
                for _ in 0..exponent.unsigned_abs() {
                    power = power.mul(base.clone())?;
                }
                if exponent < 0 { Ratio::of(Dim::new(1))?.div(power) } else { Ok(power) }
            }
            ("FloorDiv" | "CleanDiv" | "IntDiv", [a, b]) => self.value(a)?.div(self.value(b)?)?.floor(),
            ("IntTrueDiv" | "FloatTrueDiv", [a, b]) => self.value(a)?.div(self.value(b)?),
            ("Mod" | "PythonMod", [a, b]) => {
                let (a, b) = (self.whole(a)?, self.whole(b)?);
                if b.is(0) {
                    return Err("divides by zero".to_owned());
                }
                // The remainder of `Mod` has the sign of C; the two agree where nothing is negative.
                if name == "Mod" && !(self.nonnegative(&a) && self.nonnegative(&b)) {
                    return Err("has a `Mod` of a value that may be negative".to_owned());
                }
                Ratio::of(a.modulo(&b))
            }
            ("ModularIndexing", [a, b, c]) => {
                let (a, b, c) = (self.whole(a)?, self.whole(b)?, self.whole(c)?);
                if b.is(0) || c.is(0) {
                    return Err("divides by zero".to_owned());
                }
                Ratio::of(a.floor_div(&b).modulo(&c))
            }
            ("Max", [first, rest @ ..]) => rest
                .iter()
                .try_fold(self.whole(first)?, |max, a| checked(max.max_of(&self.whole(a)?)))
                .and_then(Ratio::of),
            ("Min", [first, rest @ ..]) => rest
                .iter()
                .try_fold(self.whole(first)?, |min, a| checked(min.min_of(&self.whole(a)?)))
                .and_then(Ratio::of),
            ("ToFloat" | "Identity", [a]) => self.value(a),
            ("floor" | "FloorToInt", [a]) => self.value(a)?.floor(),
            ("ceiling" | "CeilToInt", [a]) => self.value(a)?.neg()?.floor()?.neg(),
            ("TruncToInt", [a]) => {
                let a = self.value(a)?;
                if !(self.nonnegative(&a.num) && self.nonnegative(&a.den)) {
                    return Err("truncates a value that may be negative".to_owned());
                }
                a.floor()
            }
            (name, args) => Err(format!("has `{name}` with {} arguments, which has no integer form here", args.len())),
        }
    }

    fn whole(&self, expr: &Expr) -> Result<Dim, String> {
        self.value(expr)?.whole()
    }

    /// Whether every part of `dim` is seen not to be negative.
    fn nonnegative(&self, dim: &Dim) -> bool {
        let (terms, constant) = dim.parts();
        constant >= 0
            && terms.iter().all(|(atoms, coefficient)| {
                *coefficient >= 0
                    && atoms.iter().all(|atom| match atom {
                        Atom::Sym(s) => self.info(*s).is_some_and(|i| i.nonnegative),
                        Atom::FloorDiv(a, b) => self.nonnegative(a) && self.nonnegative(b),
                        Atom::Mod(_, b) => self.nonnegative(b),
                        Atom::Max(a, b) => self.nonnegative(a) || self.nonnegative(b),
                        Atom::Min(a, b) => self.nonnegative(a) && self.nonnegative(b),
                    })
            })
    }
}

/// A quotient on its way to a floor or to being whole.
#[derive(Clone, Debug)]
struct Ratio {
    num: Dim,
    den: Dim,
}

impl Ratio {
    fn of(num: Dim) -> Result<Ratio, String> {
        Ok(Ratio { num: checked(num)?, den: Dim::new(1) })
    }

    fn reduced(num: Dim, den: Dim) -> Result<Ratio, String> {
        let (num, den) = (checked(num)?, checked(den)?);
        if den.is(0) {
            return Err("divides by zero".to_owned());
        }
        if let Some(quotient) = num.exact_div(&den) {
            return Ratio::of(quotient);
        }
        let Some(divisor) = den.as_const() else { return Ok(Ratio { num, den }) };
        // Short fractions keep their numbers small, and equal ones are written alike; the divisor becomes positive.
        let (terms, constant) = num.parts();
        let common = terms.iter().map(|(_, c)| *c).chain([constant, divisor]).fold(0, gcd);
        let common = Dim::new(if divisor < 0 { -common } else { common });
        match (num.exact_div(&common), den.exact_div(&common)) {
            (Some(num), Some(den)) => Ok(Ratio { num, den }),
            _ => Ok(Ratio { num, den }),
        }
    }

    fn whole(self) -> Result<Dim, String> {
        if self.den.is(1) { Ok(self.num) } else { Err(format!("is no integer: ({})/({})", self.num, self.den)) }
    }

    fn floor(self) -> Result<Ratio, String> {
        Ratio::of(self.num.floor_div(&self.den))
    }

    fn neg(self) -> Result<Ratio, String> {
        Ok(Ratio { num: -&self.num, den: self.den })
    }

    fn add(self, other: Ratio) -> Result<Ratio, String> {
        if self.den == other.den {
            return Ratio::reduced(&self.num + &other.num, self.den);
        }
        let (left, right) = (product(&self.num, &other.den)?, product(&other.num, &self.den)?);
        Ratio::reduced(&left + &right, product(&self.den, &other.den)?)
    }

    fn mul(self, other: Ratio) -> Result<Ratio, String> {
        Ratio::reduced(product(&self.num, &other.num)?, product(&self.den, &other.den)?)
    }

    fn div(self, other: Ratio) -> Result<Ratio, String> {
        Ratio::reduced(product(&self.num, &other.den)?, product(&self.den, &other.num)?)
    }
}

/// A product that is known to stay small before it is computed.
fn product(a: &Dim, b: &Dim) -> Result<Dim, String> {
    if parts(a).saturating_mul(parts(b)) > MAX_PARTS * 16 {
        return Err("is too long once multiplied out".to_owned());
    }
    checked(a * b)
}

/// The expression, unless its numbers or its length are beyond what any shape needs.
fn checked(dim: Dim) -> Result<Dim, String> {
    let (terms, constant) = dim.parts();
    if terms.iter().map(|(_, c)| c).chain([&constant]).any(|c| c.unsigned_abs() > MAX_NUMBER.unsigned_abs()) {
        return Err("has numbers beyond 2^53".to_owned());
    }
    if parts(&dim) > MAX_PARTS {
        return Err("is too long once multiplied out".to_owned());
    }
    Ok(dim)
}

/// Size of an expression in memory, roughly.
fn parts(dim: &Dim) -> usize {
    let (terms, _) = dim.parts();
    let atom = |atom: &Atom| match atom {
        Atom::Sym(_) => 1,
        Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => 1 + parts(a) + parts(b),
    };
    1 + terms.iter().map(|(atoms, _)| 1 + atoms.iter().map(atom).sum::<usize>()).sum::<usize>()
}

/// The greatest common divisor, never negative; the numbers are within [`MAX_NUMBER`].
fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.abs(), b.abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn number(text: &str) -> Result<Dim, String> {
    let value: i64 = text.parse().map_err(|_| format!("has the number {text}, which is no 64-bit integer"))?;
    checked(Dim::new(value))
}

/// A float that is a whole number of 1024ths, as scale factors are; multiplying by it rounds nothing.
fn float(text: &str) -> Result<Ratio, String> {
    let value: f64 = text.parse().map_err(|_| format!("has the float '{text}', which is no number"))?;
    let scaled = value * 1024.0;
    if scaled.fract() != 0.0 || scaled.abs() > 1e12 {
        return Err(format!("has the float {text}, which is no short binary fraction"));
    }
    Ratio::reduced(Dim::new(scaled as i64), Dim::new(1024))
}

/// A parsed `srepr` text.
#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Call { name: String, args: Vec<Expr>, keywords: Vec<(String, Expr)> },
    Name(String),
    Number(String),
    Text(String),
}

impl Expr {
    /// The name of a bare symbol, and whether it is said not to be negative.
    fn as_symbol(&self) -> Option<(&str, bool)> {
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

    fn for_each_symbol(&self, f: &mut impl FnMut(&str, bool)) {
        if let Some((name, nonnegative)) = self.as_symbol() {
            f(name, nonnegative);
        } else if let Expr::Call { args, .. } = self {
            for arg in args {
                arg.for_each_symbol(f);
            }
        }
    }
}

fn parse(text: &str) -> Result<Expr, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SymbolTable {
        let mut table = SymbolTable::default();
        for text in ["Symbol('s77', positive=True, integer=True)", "Symbol('u0', integer=True)"] {
            let sym = super::super::schema::SymExpr { expr_str: text.to_owned(), hint: None };
            table.intern("x", &SymInt::Expr(sym)).expect("a symbol");
        }
        table
    }

    fn dim(text: &str) -> Result<String, String> {
        // Short forms of what sympy writes.
        let text = text
            .replace("%s", "Symbol('s77', positive=True, integer=True)")
            .replace("%u", "Symbol('u0', integer=True)")
            .replace('@', "Integer");
        table().parse(&text).map(|d| d.to_string()).map_err(|p| p.why)
    }

    #[test]
    fn expressions_become_dims() {
        for (text, expected) in [
            ("@(7)", "7"),
            ("%s", "s0"),
            ("Add(Mul(@(2), %s), @(1))", "s0*2 + 1"),
            ("Mul(@(-3), %s, %u)", "-s0*s1*3"),
            ("Pow(%s, @(2))", "s0*s0"),
            ("FloorDiv(Add(%s, @(-2)), @(3))", "(s0 - 2)//(3)"),
            ("FloorDiv(Mul(@(6), %s), @(3))", "s0*2"),
            ("CleanDiv(Mul(%s, %u), %u)", "s0"),
            ("PythonMod(%u, @(4))", "(s1)%(4)"),
            ("Mod(%s, @(4))", "(s0)%(4)"),
            ("Max(@(1), %s, %u)", "max(max(1, s0), s1)"),
            ("Min(@(768), Mul(@(768), %s))", "min(768, s0*768)"),
            ("TruncToInt(Mul(Float('0.5', precision=53), ToFloat(%s)))", "(s0)//(2)"),
            ("TruncToInt(Mul(Float('2.0', precision=53), ToFloat(%s)))", "s0*2"),
            ("floor(Mul(Rational(1, 2), %s))", "(s0)//(2)"),
            ("CeilToInt(IntTrueDiv(%s, @(2)))", "-(-s0)//(2)"),
            ("Mul(@(4), Pow(@(2), @(-1)), %s)", "s0*2"),
        ] {
            assert_eq!(dim(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_integer_expression_is_refused() {
        for (text, expected) in [
            ("Rational(1, 2)", "is no integer: (1)/(2)"),
            ("Mul(Float('0.3', precision=53), ToFloat(%s))", "short binary fraction"),
            ("int_oo", "which is no finite integer"),
            ("Where(%s, @(1), @(2))", "`Where` with 3 arguments"),
            ("Symbol('s9', integer=True)", "which no size defines"),
            ("FloorDiv(%s, @(0))", "divides by zero"),
            ("Mod(%s, @(0))", "divides by zero"),
            ("Mod(%u, @(2))", "may be negative"),
            ("Pow(%s, %s)", "no small constant"),
            ("Pow(Pow(Pow(Pow(Add(%s, %u), @(16)), @(16)), @(16)), @(16))", "too long"),
            ("@(99999999999999999999)", "no 64-bit integer"),
            ("Mul(@(9000000000000000), @(9000000000000000))", "beyond 2^53"),
            ("Add(%s", "expected `,` or `)`"),
            ("Add(%s) %s", "after its end"),
            ("", "ends too early"),
            ("Symbol('s77", "no end"),
            (&"Add(".repeat(5000), "nested deeper"),
        ] {
            let why = dim(text).expect_err(text);
            assert!(why.contains(expected), "{text}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-Za-z0-9_(),'= .+-]{0,60}") {
            let _ = table().parse(&text);
        }

        #[test]
        fn any_tree_is_read_or_refused(ops in proptest::collection::vec((0usize..12, 0usize..4, 0usize..4), 1..40)) {
            const OPS: [&str; 12] = ["Add", "Mul", "Pow", "FloorDiv", "PythonMod", "Max", "Min", "IntTrueDiv",
                "TruncToInt", "CeilToInt", "Rational", "ModularIndexing"];
            let mut terms: Vec<String> = ["Integer(-1)", "Integer(9007199254740992)", "Symbol('u0', integer=True)",
                "Symbol('s77', positive=True, integer=True)"].map(str::to_owned).to_vec();
            for (op, a, b) in ops {
                let (a, b) = (terms.len() - 1 - a, terms.len() - 1 - b);
                let text = format!("{}({}, {})", OPS[op], terms[a], terms[b]);
                if text.len() < 2000 {
                    let _ = table().parse(&text);
                    terms.push(text);
                }
            }
        }
    }
}
