//! Arithmetic that the standard library lacks, as PyTorch does it.

/// `a / b` rounded down, as PyTorch does: from the exact remainder, since the rounded quotient may be one too high.
pub(super) fn floor_div(a: f64, b: f64) -> f64 {
    if b == 0.0 {
        return a / b;
    }
    let rest = a % b;
    let quotient = (a - rest) / b;
    let quotient = if rest != 0.0 && (b < 0.0) != (rest < 0.0) { quotient - 1.0 } else { quotient };
    if quotient == 0.0 {
        return 0.0f64.copysign(a / b);
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

/// `base^exponent`, wrapping; a value that is not an integer is rounded towards zero.
pub(super) fn power(base: i64, exponent: i64) -> i64 {
    match u64::try_from(exponent) {
        Ok(exponent) => natural_power(base, exponent),
        Err(_) => match base {
            1 => 1,
            -1 if exponent % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        },
    }
}

/// `base^exponent`, wrapping.
pub(super) fn natural_power(base: i64, exponent: u64) -> i64 {
    let (mut power, mut square, mut left) = (1i64, base, exponent);
    while left > 0 {
        if left % 2 == 1 {
            power = power.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left /= 2;
    }
    power
}

/// The greatest common divisor.
pub(super) fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
