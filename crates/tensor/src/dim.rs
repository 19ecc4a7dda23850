use std::{
    fmt,
    iter::Product,
    ops::{Add, Mul, Neg, Sub},
};

use crate::{ErrorKind, TensorError};

/// A symbol of a program, by its index in the program's table; written `s0`, `s1`, ...
///
/// ```
/// assert_eq!(regraft_tensor::Symbol(1).to_string(), "s1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(pub u32);

/// An inclusive range of values of a symbol or an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Least value.
    pub min: i64,
    /// Greatest value.
    pub max: i64,
}

/// What a product is made of, besides its coefficient.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A symbol.
    Sym(Symbol),
    /// Quotient rounded towards negative infinity.
    FloorDiv(Box<Dim>, Box<Dim>),
    /// Remainder with the sign of the divisor.
    Mod(Box<Dim>, Box<Dim>),
    /// The greater of two.
    Max(Box<Dim>, Box<Dim>),
    /// The lesser of two.
    Min(Box<Dim>, Box<Dim>),
}

/// A dimension: a constant, a symbol, or an integer expression over symbols (`s0*2 + 1`, `s0//2`).
///
/// Kept as a sum of products in one canonical order, so that equal polynomials are equal values:
/// `(s0 + 1)*2 == s0*2 + 2`. Quotients, remainders, `max` and `min` are opaque atoms with canonical operands.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    terms: Vec<(Vec<Atom>, i64)>,
    constant: i64,
}

impl Dim {
    /// A constant.
    pub const fn new(value: i64) -> Self {
        Dim { terms: Vec::new(), constant: value }
    }

    /// A symbol.
    pub fn sym(symbol: Symbol) -> Self {
        Dim::atom(Atom::Sym(symbol))
    }

    fn atom(atom: Atom) -> Self {
        Dim { terms: vec![(vec![atom], 1)], constant: 0 }
    }

    fn from_terms(mut terms: Vec<(Vec<Atom>, i64)>, constant: i64) -> Self {
        for (atoms, _) in &mut terms {
            atoms.sort();
        }
        terms.sort();
        let mut merged: Vec<(Vec<Atom>, i64)> = Vec::with_capacity(terms.len());
        for (atoms, coefficient) in terms {
            match merged.last_mut() {
                Some((last, c)) if *last == atoms => *c = c.saturating_add(coefficient),
                _ => merged.push((atoms, coefficient)),
            }
        }
        merged.retain(|(_, c)| *c != 0);
        Dim { terms: merged, constant }
    }

    /// The value of a constant.
    pub fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The value of a constant that is a size.
    pub fn as_usize(&self) -> Option<usize> {
        self.as_const().and_then(|v| usize::try_from(v).ok())
    }

    /// Whether this is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// Whether this is a bare symbol.
    pub fn as_symbol(&self) -> Option<Symbol> {
        match self.terms.as_slice() {
            [(atoms, 1)] if self.constant == 0 => match atoms.as_slice() {
                [Atom::Sym(s)] => Some(*s),
                _ => None,
            },
            _ => None,
        }
    }

    /// The sum's products with their coefficients, and its constant part.
    pub fn parts(&self) -> (&[(Vec<Atom>, i64)], i64) {
        (&self.terms, self.constant)
    }

    /// The quotient by `divisor`, rounded down; exact polynomial division where it is possible.
    pub fn floor_div(&self, divisor: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const())
            && b != 0
        {
            return Dim::new(floor_div(a, b));
        }
        if divisor.is(1) {
            return self.clone();
        }
        self.exact_div(divisor)
            .unwrap_or_else(|| Dim::atom(Atom::FloorDiv(Box::new(self.clone()), Box::new(divisor.clone()))))
    }

    /// The quotient when `divisor` is one product that divides every product of `self`, such as `s0*8 / 8` or
    /// `s0*s1*4 / s0`; symbols are taken to be non-zero, as sizes with which anything is divided are.
    pub fn exact_div(&self, divisor: &Dim) -> Option<Dim> {
        if self == divisor {
            return Some(Dim::new(1));
        }
        let (atoms, c) = match (divisor.terms.as_slice(), divisor.constant) {
            ([], c) => (&[][..], c),
            ([(atoms, c)], 0) => (atoms.as_slice(), *c),
            _ => return self.div_by_sum(divisor),
        };
        if !divides(c, self.constant) || (!atoms.is_empty() && self.constant != 0) {
            return None;
        }
        let mut terms = Vec::with_capacity(self.terms.len());
        for (term, coefficient) in &self.terms {
            let mut rest = term.clone();
            for atom in atoms {
                let at = rest.iter().position(|a| a == atom)?;
                rest.remove(at);
            }
            if !divides(c, *coefficient) {
                return None;
            }
            terms.push((rest, coefficient / c));
        }
        // A product that was the divisor itself has become a constant.
        let constant = if atoms.is_empty() { self.constant / c } else { 0 };
        let ones: i64 = terms.iter().filter(|(t, _)| t.is_empty()).map(|(_, c)| c).sum();
        terms.retain(|(t, _)| !t.is_empty());
        Some(Dim::from_terms(terms, constant.saturating_add(ones)))
    }

    /// Division by a sum, tried for quotients that are one product: `(s0+1)*s1*4 / (s0+1)`.
    fn div_by_sum(&self, divisor: &Dim) -> Option<Dim> {
        let (lead, c) = divisor.terms.first()?;
        for (term, coefficient) in &self.terms {
            let mut rest = term.clone();
            let fits = lead.iter().all(|atom| match rest.iter().position(|a| a == atom) {
                Some(at) => {
                    rest.remove(at);
                    true
                }
                None => false,
            });
            if fits && divides(*c, *coefficient) {
                let quotient = if rest.is_empty() {
                    Dim::new(coefficient / c)
                } else {
                    Dim::from_terms(vec![(rest, coefficient / c)], 0)
                };
                if &quotient * divisor == *self {
                    return Some(quotient);
                }
            }
        }
        None
    }

    /// The remainder of the division by `divisor`.
    pub fn modulo(&self, divisor: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const())
            && b != 0
        {
            return Dim::new(floor_mod(a, b));
        }
        if self.exact_div(divisor).is_some() {
            return Dim::new(0);
        }
        Dim::atom(Atom::Mod(Box::new(self.clone()), Box::new(divisor.clone())))
    }

    /// The greater of `self` and `other`.
    pub fn max_of(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::new(a.max(b)),
            _ if self == other => self.clone(),
            _ => Dim::atom(Atom::Max(Box::new(self.clone()), Box::new(other.clone()))),
        }
    }

    /// The lesser of `self` and `other`.
    pub fn min_of(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::new(a.min(b)),
            _ if self == other => self.clone(),
            _ => Dim::atom(Atom::Min(Box::new(self.clone()), Box::new(other.clone()))),
        }
    }

    /// The value when symbol `i` has the value `symbols[i]`.
    ///
    /// # Errors
    /// Unbound symbol, overflow, division by zero.
    pub fn eval(&self, symbols: &[i64]) -> Result<i64, TensorError> {
        self.try_eval(symbols).map_err(|why| ErrorKind::DimValue { dim: self.to_string(), why }.into())
    }

    fn try_eval(&self, symbols: &[i64]) -> Result<i64, &'static str> {
        const OVERFLOW: &str = "it overflows 64 bits";
        let mut sum = self.constant;
        for (atoms, coefficient) in &self.terms {
            let mut product = *coefficient;
            for atom in atoms {
                let value = match atom {
                    Atom::Sym(s) => *symbols.get(s.0 as usize).ok_or("a symbol has no value")?,
                    Atom::FloorDiv(a, b) | Atom::Mod(a, b) => {
                        let (a, b, is_div) =
                            (a.try_eval(symbols)?, b.try_eval(symbols)?, matches!(atom, Atom::FloorDiv(..)));
                        if b == 0 {
                            return Err("it divides by zero");
                        }
                        if a == i64::MIN && b == -1 {
                            return Err(OVERFLOW);
                        }
                        if is_div { floor_div(a, b) } else { floor_mod(a, b) }
                    }
                    Atom::Max(a, b) => a.try_eval(symbols)?.max(b.try_eval(symbols)?),
                    Atom::Min(a, b) => a.try_eval(symbols)?.min(b.try_eval(symbols)?),
                };
                product = product.checked_mul(value).ok_or(OVERFLOW)?;
            }
            sum = sum.checked_add(product).ok_or(OVERFLOW)?;
        }
        Ok(sum)
    }

    /// The expression with symbol `i` replaced by `values[i]`; symbols beyond `values` stay.
    pub fn substitute(&self, values: &[Dim]) -> Dim {
        let mut sum = Dim::new(self.constant);
        for (atoms, coefficient) in &self.terms {
            let mut product = Dim::new(*coefficient);
            for atom in atoms {
                let value = match atom {
                    Atom::Sym(s) => values.get(s.0 as usize).cloned().unwrap_or_else(|| Dim::sym(*s)),
                    Atom::FloorDiv(a, b) => a.substitute(values).floor_div(&b.substitute(values)),
                    Atom::Mod(a, b) => a.substitute(values).modulo(&b.substitute(values)),
                    Atom::Max(a, b) => a.substitute(values).max_of(&b.substitute(values)),
                    Atom::Min(a, b) => a.substitute(values).min_of(&b.substitute(values)),
                };
                product = &product * &value;
            }
            sum = &sum + &product;
        }
        sum
    }

    /// Calls `f` for every symbol in the expression, with repetitions.
    pub fn for_each_symbol(&self, f: &mut impl FnMut(Symbol)) {
        for atom in self.terms.iter().flat_map(|(atoms, _)| atoms) {
            match atom {
                Atom::Sym(s) => f(*s),
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.for_each_symbol(f);
                    b.for_each_symbol(f);
                }
            }
        }
    }

    /// Bounds of the expression when symbol `i` lies in `ranges[i]`; wide where nothing better is known.
    pub fn bounds(&self, ranges: &[Range]) -> Range {
        let mut sum = Range { min: self.constant, max: self.constant };
        for (atoms, coefficient) in &self.terms {
            let mut product = Range { min: *coefficient, max: *coefficient };
            for atom in atoms {
                product = product.mul(atom.bounds(ranges));
            }
            sum = Range { min: sum.min.saturating_add(product.min), max: sum.max.saturating_add(product.max) };
        }
        sum
    }
}

impl Atom {
    fn bounds(&self, ranges: &[Range]) -> Range {
        const ALL: Range = Range { min: i64::MIN, max: i64::MAX };
        match self {
            Atom::Sym(s) => ranges.get(s.0 as usize).copied().unwrap_or(ALL),
            Atom::FloorDiv(a, b) => match b.as_const() {
                Some(b) if b > 0 => {
                    let a = a.bounds(ranges);
                    Range { min: floor_div(a.min, b), max: floor_div(a.max, b) }
                }
                _ => ALL,
            },
            Atom::Mod(_, b) => match b.as_const() {
                Some(b) if b > 0 => Range { min: 0, max: b - 1 },
                _ => ALL,
            },
            Atom::Max(a, b) => {
                let (a, b) = (a.bounds(ranges), b.bounds(ranges));
                Range { min: a.min.max(b.min), max: a.max.max(b.max) }
            }
            Atom::Min(a, b) => {
                let (a, b) = (a.bounds(ranges), b.bounds(ranges));
                Range { min: a.min.min(b.min), max: a.max.min(b.max) }
            }
        }
    }
}

impl Range {
    fn mul(self, other: Range) -> Range {
        let products = [
            self.min.saturating_mul(other.min),
            self.min.saturating_mul(other.max),
            self.max.saturating_mul(other.min),
            self.max.saturating_mul(other.max),
        ];
        let fold = |f: fn(i64, i64) -> i64| products.into_iter().reduce(f).expect("four products");
        Range { min: fold(i64::min), max: fold(i64::max) }
    }
}

fn floor_div(a: i64, b: i64) -> i64 {
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

fn floor_mod(a: i64, b: i64) -> i64 {
    let r = a.wrapping_rem(b);
    if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
}

/// Whether `value / by` is an integer of 64 bits.
fn divides(by: i64, value: i64) -> bool {
    value.checked_rem(by) == Some(0)
}

/// `value` as numbers that can be read: the least one is a sum, as there is no positive number of its digits.
fn written(value: i64) -> impl Iterator<Item = i64> {
    let (first, rest) = if value == i64::MIN { (-i64::MAX, Some(-1)) } else { (value, None) };
    std::iter::once(first).chain(rest)
}

impl From<i64> for Dim {
    fn from(v: i64) -> Self {
        Dim::new(v)
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Self {
        Dim::new(v as i64)
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        if self.terms.is_empty() && other.terms.is_empty() {
            return Dim::new(self.constant.saturating_add(other.constant));
        }
        let terms = self.terms.iter().chain(&other.terms).cloned().collect();
        Dim::from_terms(terms, self.constant.saturating_add(other.constant))
    }
}

impl<'a> Product<&'a Dim> for Dim {
    fn product<I: Iterator<Item = &'a Dim>>(dims: I) -> Dim {
        dims.fold(Dim::new(1), |product, dim| &product * dim)
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        let mut terms = Vec::new();
        for (a, ca) in &self.terms {
            for (b, cb) in &other.terms {
                terms.push((a.iter().chain(b).cloned().collect(), ca.saturating_mul(*cb)));
            }
            terms.push((a.clone(), ca.saturating_mul(other.constant)));
        }
        terms.extend(other.terms.iter().map(|(b, cb)| (b.clone(), cb.saturating_mul(self.constant))));
        Dim::from_terms(terms, self.constant.saturating_mul(other.constant))
    }
}

impl Neg for &Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        self * &Dim::new(-1)
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        self + &-other
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "({a})//({b})"),
            Atom::Mod(a, b) => write!(f, "({a})%({b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let terms = self.terms.iter().flat_map(|(atoms, coefficient)| written(*coefficient).map(move |c| (atoms, c)));
        for (atoms, coefficient) in terms {
            match (first, coefficient < 0) {
                (true, true) => f.write_str("-")?,
                (true, false) => {}
                (false, true) => f.write_str(" - ")?,
                (false, false) => f.write_str(" + ")?,
            }
            first = false;
            for (i, atom) in atoms.iter().enumerate() {
                if i > 0 {
                    f.write_str("*")?;
                }
                // A quotient or remainder inside a product needs its own brackets.
                match atom {
                    Atom::FloorDiv(..) | Atom::Mod(..) if atoms.len() > 1 || coefficient.unsigned_abs() != 1 => {
                        write!(f, "({atom})")?;
                    }
                    _ => write!(f, "{atom}")?,
                }
            }
            if coefficient.unsigned_abs() != 1 {
                write!(f, "*{}", coefficient.unsigned_abs())?;
            }
        }
        for constant in written(self.constant) {
            match constant {
                c if first => write!(f, "{c}")?,
                0 => {}
                c if c < 0 => write!(f, " - {}", c.unsigned_abs())?,
                c => write!(f, " + {c}")?,
            }
            first = false;
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
