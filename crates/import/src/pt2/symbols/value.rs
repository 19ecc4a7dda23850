//! The meaning of each function of an expression.

use regraft_tensor::{Atom, Dim};

use super::{
    SymbolTable,
    parse::Expr,
    ratio::{Ratio, checked, float, number},
};

impl SymbolTable {
    /// The value of an expression; recursion is bounded by the parser.
    pub(super) fn value(&self, expr: &Expr) -> Result<Ratio, String> {
        let (name, args) = match expr {
            Expr::Call { name, args, .. } => (name.as_str(), args.as_slice()),
            Expr::Number(text) => return number(text).and_then(Ratio::of),
            Expr::Text(text) => {
                return Err(format!("has the text '{text}' where a number is expected"));
            }
            Expr::Name(name) => return Err(format!("has `{name}`, which is not a finite integer")),
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
                let exponent = exponent.ok_or("has a power whose exponent is not a small constant")?;
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
