//! Orthogonal polynomials by their recurrences, in f64. The degree is rounded towards zero; below 0 the value is 0.

/// Higher degrees give NaN: each takes as many steps.
const HIGHEST: f64 = 1e6;

/// The polynomial of degree `n` from those of degrees 0 and 1, which are 1 and `first`.
fn by_recurrence(n: f64, first: f64, next: impl Fn(f64, f64, f64) -> f64) -> f64 {
    let n = n.trunc();
    if n <= 0.0 {
        return if n == 0.0 { 1.0 } else { 0.0 };
    }
    if n.is_nan() || n > HIGHEST {
        return f64::NAN;
    }
    let (mut before, mut value, mut k) = (1.0, first, 1.0);
    while k < n && !value.is_nan() {
        (before, value) = (value, next(k, value, before));
        k += 1.0;
    }
    value
}

/// The physicists' polynomial `H(x)`.
pub(super) fn hermite_h(x: f64, n: f64) -> f64 {
    by_recurrence(n, 2.0 * x, |k, value, before| 2.0 * (x * value - k * before))
}

/// The probabilists' polynomial `He(x)`.
pub(super) fn hermite_he(x: f64, n: f64) -> f64 {
    by_recurrence(n, x, |k, value, before| x * value - k * before)
}

pub(super) fn laguerre(x: f64, n: f64) -> f64 {
    by_recurrence(n, 1.0 - x, |k, value, before| ((2.0 * k + 1.0 - x) * value - k * before) / (k + 1.0))
}

pub(super) fn legendre(x: f64, n: f64) -> f64 {
    by_recurrence(n, x, |k, value, before| ((2.0 * k + 1.0) * x * value - k * before) / (k + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_degrees_are_their_formulas() {
        let x = 0.7f64;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-14 * b.abs().max(1.0), "{a}, expected {b}");
        close(hermite_h(x, 3.0), 8.0 * x.powi(3) - 12.0 * x);
        close(hermite_he(x, 3.9), x.powi(3) - 3.0 * x);
        close(laguerre(x, 2.0), (x * x - 4.0 * x + 2.0) / 2.0);
        close(legendre(x, 4.0), (35.0 * x.powi(4) - 30.0 * x * x + 3.0) / 8.0);
        close(legendre(-1.0, 7.0), -1.0);
        assert_eq!([hermite_h(x, -1.0), hermite_h(f64::NAN, 0.5), laguerre(0.0, 30.0)], [0.0, 1.0, 1.0]);
        assert!(legendre(x, f64::INFINITY).is_nan() && hermite_he(x, f64::NAN).is_nan());
    }
}
