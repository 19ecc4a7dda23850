//! Bessel functions of orders 0 and 1 and the Airy function, to about 1e-10, by the series and expansions of the Digital
//! Library of Mathematical Functions (DLMF, dlmf.nist.gov).

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, PI};

/// From here on the expansions for large arguments, whose smallest term is about `e^-2x`, are better than series.
const FAR: f64 = 14.0;
const EULER: f64 = 0.577_215_664_901_532_9;

/// Sums for large arguments (DLMF 10.17.1): of all terms, and of every second one with alternating signs.
struct Expansion {
    all: f64,
    even: f64,
    odd: f64,
}

/// The terms of order `nu` at `x`, up to the smallest.
fn expansion(nu: f64, x: f64) -> Expansion {
    let mut out = Expansion { all: 0.0, even: 0.0, odd: 0.0 };
    let (mut term, mut k) = (1.0f64, 0u32);
    loop {
        out.all += term;
        match k % 4 {
            0 => out.even += term,
            1 => out.odd += term,
            2 => out.even -= term,
            _ => out.odd -= term,
        }
        k += 1;
        let odd = f64::from(2 * k - 1);
        let next = term * (4.0 * nu * nu - odd * odd) / (8.0 * f64::from(k) * x);
        if next.abs() >= term.abs() || next.abs() < 1e-18 || k > 100 {
            return out;
        }
        term = next;
    }
}

/// `Σ q^k/(k!·(k + n)!)`, and the same with each term times `ψ(k + 1) + ψ(k + n + 1)`, for n 0 or 1.
fn series(order: u32, q: f64) -> (f64, f64) {
    let n = f64::from(order);
    let (mut term, mut psi) = (1.0, n - 2.0 * EULER);
    let (mut plain, mut weighted, mut k) = (0.0, 0.0, 0.0);
    loop {
        plain += term;
        weighted += term * psi;
        k += 1.0;
        term *= q / (k * (k + n));
        psi += 1.0 / k + 1.0 / (k + n);
        if term.abs() < 1e-20 || k > 500.0 {
            return (plain, weighted);
        }
    }
}

/// `J(x)` of order 0 or 1 (DLMF 10.2.2, 10.17.3).
pub(super) fn bessel_j(order: u32, x: f64) -> f64 {
    let size = x.abs();
    let j = if size <= FAR {
        let half = size / 2.0;
        let power = if order == 0 { 1.0 } else { half };
        power * series(order, -half * half).0
    } else {
        let (angle, sums) = (size - f64::from(order) * FRAC_PI_2 - FRAC_PI_4, expansion(f64::from(order), size));
        (2.0 / (PI * size)).sqrt() * (angle.cos() * sums.even - angle.sin() * sums.odd)
    };
    // Odd orders are odd functions.
    if order == 1 && x < 0.0 { -j } else { j }
}

/// `Ai(x)`: for arguments that are not small by `K` of order 1/3, or by an expansion of which the one for Bessel functions of that
/// order has the terms (DLMF 9.6.2, 9.7.9). NaN at both infinities, as PyTorch has it.
pub(super) fn airy_ai(x: f64) -> f64 {
    if x.is_infinite() || x.is_nan() {
        return f64::NAN;
    }
    let zeta = 2.0 / 3.0 * x.abs() * x.abs().sqrt();
    if x > 0.0 && zeta > 2.0 {
        return (x / 3.0).sqrt() * (-zeta).exp() * scaled_k(1.0 / 3.0, zeta) / PI;
    }
    if zeta <= FAR {
        return airy_series(x);
    }
    let (angle, sums) = (zeta - FRAC_PI_4, expansion(1.0 / 3.0, zeta));
    (angle.cos() * sums.even - angle.sin() * sums.odd) / (PI.sqrt() * x.abs().sqrt().sqrt())
}

/// The power series of `Ai` (DLMF 9.4.1).
fn airy_series(x: f64) -> f64 {
    /// `Ai(0)` and `-Ai'(0)`.
    const AT_0: (f64, f64) = (0.355_028_053_887_817_2, 0.258_819_403_792_806_8);
    let cube = x * x * x;
    let (mut even, mut odd, mut sum, mut k) = (AT_0.0, AT_0.1 * x, 0.0, 0.0);
    loop {
        sum += even - odd;
        k += 3.0;
        even *= cube / (k * (k - 1.0));
        odd *= cube / (k * (k + 1.0));
        if even.abs().max(odd.abs()) < 1e-20 || k > 1000.0 {
            return sum;
        }
    }
}

/// `Y(x)` of order 0 or 1 (DLMF 10.8.1, 10.17.4).
pub(super) fn bessel_y(order: u32, x: f64) -> f64 {
    if x <= 0.0 || x.is_nan() {
        return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    }
    if x <= FAR {
        let half = x / 2.0;
        let (sum, weighted) = series(order, -half * half);
        let (power, pole) = if order == 0 { (1.0, 0.0) } else { (half, 1.0 / half) };
        return (2.0 * half.ln() * power * sum - power * weighted - pole) / PI;
    }
    let (angle, sums) = (x - f64::from(order) * FRAC_PI_2 - FRAC_PI_4, expansion(f64::from(order), x));
    (2.0 / (PI * x)).sqrt() * (angle.sin() * sums.even + angle.cos() * sums.odd)
}

/// `e^x·K(x)` of order 0 or 1 (DLMF 10.31.1).
pub(super) fn scaled_bessel_k(order: u32, x: f64) -> f64 {
    if x <= 0.0 || x.is_nan() {
        return if x == 0.0 { f64::INFINITY } else { f64::NAN };
    }
    if x > 2.0 {
        return scaled_k(f64::from(order), x);
    }
    let half = x / 2.0;
    let (sum, weighted) = series(order, half * half);
    let k = if order == 0 {
        0.5 * weighted - half.ln() * sum
    } else {
        0.5 / half + half * (half.ln() * sum - 0.5 * weighted)
    };
    x.exp() * k
}

/// `e^x·K(x)` of any order for arguments that are not small: `∫ e^(-x(cosh t - 1))·cosh(νt) dt` from 0 on by the trapezoidal
/// rule, which is exact but for what vanishes exponentially with the step (DLMF 10.32.9); far out the expansion (10.40.2).
fn scaled_k(nu: f64, x: f64) -> f64 {
    const STEP: f64 = 1.0 / 16.0;
    if x > FAR {
        return (FRAC_PI_2 / x).sqrt() * expansion(nu, x).all;
    }
    let (mut sum, mut t) = (0.5, STEP);
    loop {
        let sine = (t / 2.0).sinh();
        let value = (-2.0 * x * sine * sine).exp() * (nu * t).cosh();
        sum += value;
        if value < 1e-18 || t > 60.0 {
            return sum * STEP;
        }
        t += STEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(what: &str, found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-10 * expected.abs().max(1e-2), "{what}: {found}, expected {expected}");
    }

    #[test]
    fn functions_of_the_first_kind_have_scipys_values() {
        near("j0(1)", bessel_j(0, 1.0), 0.765_197_686_557_966_6);
        near("j0(-20)", bessel_j(0, -20.0), 0.167_024_664_340_583_15);
        near("j1(1)", bessel_j(1, 1.0), 0.440_050_585_744_933_5);
        near("j1(-20)", bessel_j(1, -20.0), -0.066_833_124_175_850_05);
        assert!(bessel_j(0, 0.0) == 1.0 && bessel_j(1, 0.0) == 0.0 && bessel_j(0, f64::NAN).is_nan());
        near("ai(0)", airy_ai(0.0), 0.355_028_053_887_817_2);
        near("ai(1)", airy_ai(1.0), 0.135_292_416_312_881_42);
        near("ai(3)", airy_ai(3.0), 0.006_591_139_357_460_717);
        near("ai(-5)", airy_ai(-5.0), 0.350_761_009_024_114_3);
        near("ai(-10)", airy_ai(-10.0), 0.040_241_238_486_441_96);
        assert!((airy_ai(10.0) / 1.104_753_255_289_865_4e-10 - 1.0).abs() < 1e-9);
        assert!(airy_ai(200.0) == 0.0 && airy_ai(f64::NAN).is_nan());
    }

    #[test]
    fn functions_of_the_second_kind_have_scipys_values() {
        near("y0(1)", bessel_y(0, 1.0), 0.088_256_964_215_676_95);
        near("y0(20)", bessel_y(0, 20.0), 0.062_640_596_809_383_84);
        near("y1(1)", bessel_y(1, 1.0), -0.781_212_821_300_288_7);
        near("y1(20)", bessel_y(1, 20.0), -0.165_511_614_362_521_3);
        assert!(bessel_y(0, 0.0) == f64::NEG_INFINITY && bessel_y(1, -1.0).is_nan());
        near("k0(1)", scaled_bessel_k(0, 1.0), 1.144_463_079_806_894_6);
        near("k1(1)", scaled_bessel_k(1, 1.0), 1.636_153_486_263_258_5);
        near("k0(5)", scaled_bessel_k(0, 5.0), 0.547_807_564_313_518_9);
        near("k1(5)", scaled_bessel_k(1, 5.0), 0.600_273_858_788_312_4);
        assert!(scaled_bessel_k(0, 0.0).is_infinite() && scaled_bessel_k(1, -1.0).is_nan());
    }

    #[test]
    fn expansions_and_series_meet() {
        for at in [-(1.5 * FAR).powf(2.0 / 3.0), 3f64.powf(2.0 / 3.0)] {
            near("ai", airy_ai(at * (1.0 + 1e-14)), airy_ai(at));
        }
        for order in [0, 1] {
            for (what, f) in [("j", bessel_j as fn(u32, f64) -> f64), ("y", bessel_y), ("k", scaled_bessel_k)] {
                for at in [2.0, FAR] {
                    near(what, f(order, at * (1.0 + 1e-14)), f(order, at));
                }
            }
        }
    }
}
