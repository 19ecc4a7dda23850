//! Reads the text form of a [`Dim`], the inverse of its `Display`.

use std::str::FromStr;

use crate::{Dim, ErrorKind, Symbol, TensorError};

/// Brackets nested deeper than this are refused: text may come from anywhere.
const MAX_DEPTH: usize = 64;

impl FromStr for Dim {
    type Err = TensorError;

    /// Reads `s0*2 + 1`, `(s0 + 1)//(2)`, `max(s0, 4)`.
    fn from_str(text: &str) -> Result<Self, TensorError> {
        let mut parser = Parser { rest: text, depth: 0 };
        let dim = parser.sum().and_then(|dim| match parser.peek() {
            None => Ok(dim),
            Some(c) => Err(format!("unexpected `{c}`")),
        });
        dim.map_err(|why| ErrorKind::DimSyntax { text: text.to_owned(), why }.into())
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("expected `{token}` before `{}`", self.rest)) }
    }

    fn sum(&mut self) -> Result<Dim, String> {
        let mut sum = if self.eat("-") { -&self.product()? } else { self.product()? };
        loop {
            if self.eat("+") {
                sum = &sum + &self.product()?;
            } else if self.eat("-") {
                sum = &sum - &self.product()?;
            } else {
                return Ok(sum);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, String> {
        let mut product = self.factor()?;
        loop {
            if self.eat("//") {
                product = product.floor_div(&self.factor()?);
            } else if self.eat("*") {
                product = &product * &self.factor()?;
            } else if self.eat("%") {
                product = product.modulo(&self.factor()?);
            } else {
                return Ok(product);
            }
        }
    }

    fn factor(&mut self) -> Result<Dim, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("brackets are nested too deeply".into());
        }
        let factor = match self.peek() {
            Some('(') => {
                self.expect("(")?;
                let inner = self.sum()?;
                self.expect(")")?;
                inner
            }
            Some('m') => self.extremum()?,
            Some('s') => {
                self.expect("s")?;
                Dim::sym(Symbol(self.number()?))
            }
            Some('0'..='9') => Dim::new(self.number()?),
            Some(c) => return Err(format!("unexpected `{c}`")),
            None => return Err("it ends too early".into()),
        };
        self.depth -= 1;
        Ok(factor)
    }

    fn extremum(&mut self) -> Result<Dim, String> {
        let is_max = self.eat("max(");
        if !is_max {
            self.expect("min(")?;
        }
        let a = self.sum()?;
        self.expect(",")?;
        let b = self.sum()?;
        self.expect(")")?;
        Ok(if is_max { a.max_of(&b) } else { a.min_of(&b) })
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits.parse().map_err(|_| format!("`{digits}` is not a number in range"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Range;

    fn dim(text: &str) -> Dim {
        text.parse().expect("a dimension")
    }

    #[test]
    fn equal_polynomials_are_equal() {
        assert_eq!(dim("(s0 + 1)*2"), dim("2 + s0*2"));
        assert_eq!(dim("s0*s1 - s1*s0"), dim("0"));
        assert_eq!(dim("s0*8").floor_div(&dim("8")), dim("s0"));
        assert_eq!(dim("s0*s1*64").floor_div(&dim("s0*64")), dim("s1"));
        assert_eq!(dim("s0*s1 + s1").floor_div(&dim("s0 + 1")), dim("s1"));
        assert_eq!(dim("s0//2").to_string(), "(s0)//(2)");
    }

    #[test]
    fn the_least_number_is_a_number() {
        let least = dim("0 - 9223372036854775807 - 1");
        assert_eq!(least, Dim::new(i64::MIN));
        let coefficient = &least * &dim("s0");
        let both = &coefficient + &least;
        for d in [&least, &coefficient, &both, &(&dim("s1") + &both)] {
            assert_eq!(dim(&d.to_string()), *d, "{d}");
            // The quotient is not a number of 64 bits: it stays as it is.
            assert_eq!(d.exact_div(&Dim::new(-1)), None, "{d}");
            assert_eq!(d.exact_div(&dim("s2 - s0")), None, "{d}");
        }
        assert_eq!(least.modulo(&Dim::new(-1)), Dim::new(0));
        assert_eq!(least.modulo(&Dim::new(i64::MAX)), Dim::new(i64::MAX - 1));
        assert_eq!(dim("s0%s1").eval(&[i64::MIN, i64::MAX]).ok(), Some(i64::MAX - 1));
        for (a, b, rest) in [(7, 3, 1), (-7, 3, 2), (7, -3, -2), (-7, -3, -1), (-6, 3, 0), (6, -3, 0)] {
            assert_eq!(Dim::new(a).modulo(&Dim::new(b)), Dim::new(rest), "{a} % {b}");
        }
    }

    #[test]
    fn bounds_follow_ranges() {
        let ranges = [Range { min: 1, max: 64 }, Range { min: 2, max: 512 }];
        assert_eq!(dim("s0*2 + 1").bounds(&ranges), Range { min: 3, max: 129 });
        assert_eq!(dim("s1//2 - s0").bounds(&ranges), Range { min: -63, max: 255 });
    }

    fn any_dim() -> impl Strategy<Value = Dim> {
        let leaf = prop_oneof![(-9i64..9).prop_map(Dim::new), (0u32..3).prop_map(|s| Dim::sym(Symbol(s)))];
        leaf.prop_recursive(4, 24, 2, |inner| {
            (inner.clone(), inner, 0..7).prop_map(|(a, b, op)| match op {
                0 | 1 => &a + &b,
                2 => &a - &b,
                3 => &a * &b,
                4 => a.floor_div(&b),
                5 => a.modulo(&b),
                _ => a.max_of(&b),
            })
        })
    }

    proptest! {
        #[test]
        fn text_round_trips(d in any_dim()) {
            prop_assert_eq!(dim(&d.to_string()), d);
        }

        #[test]
        fn hostile_text_never_panics(text in "[s0-9+*/%() max,-]{0,40}") {
            let _ = text.parse::<Dim>();
        }

        #[test]
        fn values_lie_in_bounds(d in any_dim(), s in proptest::array::uniform3(1i64..50)) {
            if let Ok(v) = d.eval(&s) {
                let r = d.bounds(&[Range { min: 1, max: 50 }; 3]);
                prop_assert!(r.min <= v && v <= r.max);
            }
        }
    }
}
