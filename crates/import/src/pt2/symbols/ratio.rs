//! Quotients of expressions, whose numbers and lengths stay bounded.

use regraft_tensor::{Atom, Dim};

/// Greatest coefficient, and the number of parts an expression may have.
const MAX_NUMBER: i64 = 1 << 53;
const MAX_PARTS: usize = 1024;

/// A quotient on its way to a floor or to being whole.
#[derive(Clone, Debug)]
pub(super) struct Ratio {
    pub(super) num: Dim,
    pub(super) den: Dim,
}

impl Ratio {
    pub(super) fn of(num: Dim) -> Result<Ratio, String> {
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

    pub(super) fn whole(self) -> Result<Dim, String> {
        if self.den.is(1) { Ok(self.num) } else { Err(format!("is not an integer: ({})/({})", self.num, self.den)) }
    }

    pub(super) fn floor(self) -> Result<Ratio, String> {
        Ratio::of(self.num.floor_div(&self.den))
    }

    pub(super) fn neg(self) -> Result<Ratio, String> {
        Ok(Ratio { num: -&self.num, den: self.den })
    }

    pub(super) fn add(self, other: Ratio) -> Result<Ratio, String> {
        if self.den == other.den {
            return Ratio::reduced(&self.num + &other.num, self.den);
        }
        let (left, right) = (product(&self.num, &other.den)?, product(&other.num, &self.den)?);
        Ratio::reduced(&left + &right, product(&self.den, &other.den)?)
    }

    pub(super) fn mul(self, other: Ratio) -> Result<Ratio, String> {
        Ratio::reduced(product(&self.num, &other.num)?, product(&self.den, &other.den)?)
    }

    pub(super) fn div(self, other: Ratio) -> Result<Ratio, String> {
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
pub(super) fn checked(dim: Dim) -> Result<Dim, String> {
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

pub(super) fn number(text: &str) -> Result<Dim, String> {
    let value: i64 = text.parse().map_err(|_| format!("has the number {text}, which is no 64-bit integer"))?;
    checked(Dim::new(value))
}

/// A float that is a whole number of 1024ths, as scale factors are; multiplying by it rounds nothing.
pub(super) fn float(text: &str) -> Result<Ratio, String> {
    let value: f64 = text.parse().map_err(|_| format!("has the float '{text}', which is not a number"))?;
    let scaled = value * 1024.0;
    if scaled.fract() != 0.0 || scaled.abs() > 1e12 {
        return Err(format!("has the float {text}, which is not a short binary fraction"));
    }
    Ratio::reduced(Dim::new(scaled as i64), Dim::new(1024))
}
