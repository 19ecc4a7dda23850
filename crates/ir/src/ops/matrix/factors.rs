//! The factorizations of one matrix, row-major, in f64.

/// Rounds of rotations after which a matrix counts as diagonal; a dozen are enough for any that is finite.
const SWEEPS: usize = 60;

/// `L` and `U` in place of `a`, which row each was exchanged with, from 1 on, and which row of `a` each row is.
pub(super) fn lu(a: &mut [f64], m: usize, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut rows: Vec<f64> = (0..m).map(|i| i as f64).collect();
    let mut pivots = Vec::with_capacity(m.min(n));
    for j in 0..m.min(n) {
        let mut best = j;
        for i in j + 1..m {
            if a[i * n + j].abs() > a[best * n + j].abs() {
                best = i;
            }
        }
        pivots.push((best + 1) as f64);
        rows.swap(j, best);
        for c in 0..n {
            a.swap(j * n + c, best * n + c);
        }
        let pivot = a[j * n + j];
        if pivot == 0.0 {
            continue;
        }
        for i in j + 1..m {
            let factor = a[i * n + j] / pivot;
            a[i * n + j] = factor;
            for c in j + 1..n {
                a[i * n + c] -= factor * a[j * n + c];
            }
        }
    }
    (pivots, rows)
}

/// `L` in place of `a`; 0, or the order of the first leading minor that is not positive, where it ends.
pub(super) fn cholesky(a: &mut [f64], n: usize) -> usize {
    for i in 0..n {
        a[i * n + i + 1..(i + 1) * n].fill(0.0);
    }
    for j in 0..n {
        let square: f64 = a[j * n..][..j].iter().map(|v| v * v).sum();
        let rest = a[j * n + j] - square;
        if rest.is_nan() || rest <= 0.0 {
            return j + 1;
        }
        let root = rest.sqrt();
        a[j * n + j] = root;
        for i in j + 1..n {
            let dot: f64 = (0..j).map(|c| a[i * n + c] * a[j * n + c]).sum();
            a[i * n + j] = (a[i * n + j] - dot) / root;
        }
    }
    0
}

/// `R` above the vectors of the reflections in place of `a`, and their factors: `dlarfg` of LAPACK for each column.
pub(super) fn reflections(a: &mut [f64], m: usize, n: usize) -> Vec<f64> {
    let mut factors = Vec::with_capacity(m.min(n));
    for j in 0..m.min(n) {
        let below = (j + 1..m).fold(0.0f64, |sum, i| sum.hypot(a[i * n + j]));
        if below == 0.0 {
            factors.push(0.0);
            continue;
        }
        let alpha = a[j * n + j];
        let beta = -alpha.hypot(below).copysign(alpha);
        let factor = (beta - alpha) / beta;
        for i in j + 1..m {
            a[i * n + j] /= alpha - beta;
        }
        a[j * n + j] = beta;
        for c in j + 1..n {
            let dot: f64 = a[j * n + c] + (j + 1..m).map(|i| a[i * n + j] * a[i * n + c]).sum::<f64>();
            a[j * n + c] -= factor * dot;
            for i in j + 1..m {
                a[i * n + c] -= factor * dot * a[i * n + j];
            }
        }
        factors.push(factor);
    }
    factors
}

/// The first `n` columns of the product of reflections.
pub(super) fn householder(a: &[f64], m: usize, n: usize, factors: &[f64]) -> Vec<f64> {
    let mut q = vec![0.0; m * n];
    for i in 0..m.min(n) {
        q[i * n + i] = 1.0;
    }
    for (j, factor) in factors.iter().enumerate().rev() {
        for c in 0..n {
            let dot: f64 = q[j * n + c] + (j + 1..m).map(|i| a[i * n + j] * q[i * n + c]).sum::<f64>();
            q[j * n + c] -= factor * dot;
            for i in j + 1..m {
                q[i * n + c] -= factor * dot * a[i * n + j];
            }
        }
    }
    q
}

/// The solution of a triangular system in place of its right side.
pub(super) fn substitute(a: &[f64], x: &mut [f64], n: usize, upper: bool, unit: bool) {
    let columns = x.len().checked_div(n).unwrap_or(0);
    for step in 0..n {
        let i = if upper { n - 1 - step } else { step };
        let known = if upper { i + 1..n } else { 0..i };
        for c in 0..columns {
            let dot: f64 = known.clone().map(|j| a[i * n + j] * x[j * columns + c]).sum();
            let rest = x[i * columns + c] - dot;
            x[i * columns + c] = if unit { rest } else { rest / a[i * n + i] };
        }
    }
}

/// Sine and cosine of the rotation that makes `[[a, c], [c, b]]` diagonal.
fn rotation(a: f64, b: f64, c: f64) -> (f64, f64) {
    let theta = (b - a) / (2.0 * c);
    let tangent = 1.0f64.copysign(theta) / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    (tangent * cosine, cosine)
}

/// Eigenvalues, ascending, and eigenvectors as columns, by Jacobi's rotations of the lower triangle.
pub(super) fn eigen(mut a: Vec<f64>, n: usize) -> [Vec<f64>; 2] {
    for i in 0..n {
        for j in i + 1..n {
            a[i * n + j] = a[j * n + i];
        }
    }
    let size = a.iter().fold(0.0f64, |sum, v| sum.hypot(*v));
    if !size.is_finite() {
        return [vec![f64::NAN; n], vec![f64::NAN; n * n]];
    }
    // Rows are vectors here.
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..SWEEPS {
        let mut done = true;
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q].abs() <= 1e-16 * size {
                    continue;
                }
                done = false;
                let (sine, cosine) = rotation(a[p * n + p], a[q * n + q], a[p * n + q]);
                for k in 0..n {
                    turn(&mut a, p * n + k, q * n + k, sine, cosine);
                }
                for k in 0..n {
                    turn(&mut a, k * n + p, k * n + q, sine, cosine);
                    turn(&mut vectors, p * n + k, q * n + k, sine, cosine);
                }
                (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
            }
        }
        if done {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[i * n + i].total_cmp(&a[j * n + j]));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let columns = (0..n).flat_map(|row| order.iter().map(move |&i| (i, row))).map(|(i, row)| vectors[i * n + row]);
    [values, columns.collect()]
}

fn turn(a: &mut [f64], p: usize, q: usize, sine: f64, cosine: f64) {
    (a[p], a[q]) = (cosine * a[p] - sine * a[q], sine * a[p] + cosine * a[q]);
}

/// Left singular vectors as columns, singular values, descending, and right ones as rows, by rotations of columns that make
/// them orthogonal.
pub(super) fn singular(a: &[f64], m: usize, n: usize) -> [Vec<f64>; 3] {
    let k = m.min(n);
    let size = a.iter().fold(0.0f64, |most, v| if v.is_nan() { f64::NAN } else { most.max(v.abs()) });
    if !size.is_finite() || a.iter().any(|v| v.is_nan()) {
        return [vec![f64::NAN; m * k], vec![f64::NAN; k], vec![f64::NAN; k * n]];
    }
    let unit = if size == 0.0 { 1.0 } else { size };
    // `long` vectors of `of` elements: columns of a tall matrix, rows of a wide one; `turns` are the rotations of them.
    let (of, tall) = (m.max(n), m >= n);
    let at = |i: usize, e: usize| if tall { a[e * n + i] } else { a[i * n + e] };
    let mut long: Vec<Vec<f64>> = (0..k).map(|i| (0..of).map(|e| at(i, e) / unit).collect()).collect();
    let mut turns: Vec<Vec<f64>> = (0..k).map(|i| (0..k).map(|e| if e == i { 1.0 } else { 0.0 }).collect()).collect();
    orthogonalize(&mut long, &mut turns);
    let lengths: Vec<f64> = long.iter().map(|v| v.iter().map(|e| e * e).sum::<f64>().sqrt()).collect();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));
    let values: Vec<f64> = order.iter().map(|&i| lengths[i] * unit).collect();
    let direction = |i: usize, e: usize| if lengths[i] == 0.0 { 0.0 } else { long[i][e] / lengths[i] };
    let left = |i: usize, e: usize| if tall { direction(i, e) } else { turns[i][e] };
    let right = |i: usize, e: usize| if tall { turns[i][e] } else { direction(i, e) };
    let columns = (0..m).flat_map(|e| order.iter().map(move |&i| (i, e))).map(|(i, e)| left(i, e)).collect();
    let rows = order.iter().flat_map(|&i| (0..n).map(move |e| (i, e))).map(|(i, e)| right(i, e)).collect();
    [columns, values, rows]
}

/// Rotates vectors until they are orthogonal, and `turns` with them.
fn orthogonalize(vectors: &mut [Vec<f64>], turns: &mut [Vec<f64>]) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..SWEEPS {
        let mut done = true;
        for q in 1..vectors.len() {
            for p in 0..q {
                let (head, tail) = vectors.split_at_mut(q);
                let (a, b, c) = (dot(&head[p], &head[p]), dot(&tail[0], &tail[0]), dot(&head[p], &tail[0]));
                if c.abs() <= 1e-15 * (a * b).sqrt() || c == 0.0 {
                    continue;
                }
                done = false;
                let (sine, cosine) = rotation(a, b, c);
                let (before, behind) = turns.split_at_mut(q);
                for (x, y) in [(&mut head[p], &mut tail[0]), (&mut before[p], &mut behind[0])] {
                    for (x, y) in x.iter_mut().zip(y.iter_mut()) {
                        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                    }
                }
            }
        }
        if done {
            break;
        }
    }
}
