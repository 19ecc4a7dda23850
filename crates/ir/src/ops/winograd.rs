//! Filters of Winograd's minimal filtering, by which a convolution needs fewer multiplications.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    support::{elements, input},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// `G g Gᵀ` of filters `g` of 3 × 3: what a convolution multiplies by in place of the filters when it computes `tile × tile` pixels
    /// at once, from `(tile + 2) × (tile + 2)` pixels that are transformed likewise. From Lavin and Gray, 2015,
    /// <https://arxiv.org/abs/1509.09308>.
    ///
    /// The filters are `[9 channels, out]` of f32, rows over `(ky, kx, channel)`; the result is `[(tile + 2)², channels, out]`. It is
    /// computed in f32, step by step as stated here, so that whoever computes it finds the same bits.
    pub struct WinogradFilter {
        /// Pixels along each side of a tile: 2 or 4.
        pub tile: usize,
    }
}

/// Taps of a filter.
const TAPS: usize = 9;

impl WinogradFilter {
    /// Pixels along each side of what a tile is computed from.
    pub const fn reach(&self) -> usize {
        self.tile + 2
    }

    /// Transforms `L` filters side by side; `put` gets the number of each result with it.
    #[inline(always)]
    pub fn transform<const L: usize>(&self, filters: &[[f32; L]; TAPS], put: impl FnMut(usize, [f32; L])) {
        match self.tile {
            2 => both_ways(filters, of_two, put),
            _ => both_ways(filters, of_four, put),
        }
    }
}

/// `G g Gᵀ`, where `one_way` computes `G` of three.
#[inline(always)]
fn both_ways<const L: usize, const N: usize>(
    filters: &[[f32; L]; TAPS],
    one_way: impl Fn(f32, f32, f32) -> [f32; N],
    mut put: impl FnMut(usize, [f32; L]),
) {
    let each = |a: &[f32; L], b: &[f32; L], c: &[f32; L]| {
        let mut out = [[0.0; L]; N];
        for lane in 0..L {
            for (out, value) in out.iter_mut().zip(one_way(a[lane], b[lane], c[lane])) {
                out[lane] = value;
            }
        }
        out
    };
    let columns: [[[f32; L]; N]; 3] = std::array::from_fn(|x| each(&filters[x], &filters[3 + x], &filters[6 + x]));
    let [left, middle, right] = &columns;
    for (y, ((left, middle), right)) in left.iter().zip(middle).zip(right).enumerate() {
        for (x, value) in each(left, middle, right).into_iter().enumerate() {
            put(y * N + x, value);
        }
    }
}

/// `G` for tiles of two pixels, interpolated at 0, 1, -1 and infinity.
#[inline(always)]
fn of_two(a: f32, b: f32, c: f32) -> [f32; 4] {
    let even = (a + c) * 0.5;
    [a, even + b * 0.5, even - b * 0.5, c]
}

/// `G` for tiles of four pixels, interpolated at 0, 1, -1, 2, -2 and infinity.
#[inline(always)]
fn of_four(a: f32, b: f32, c: f32) -> [f32; 6] {
    const SIXTH: f32 = 1.0 / 6.0;
    let near = (a + c) * -SIXTH;
    let far = a * (1.0 / 24.0) + c * SIXTH;
    [a * 0.25, near - b * SIXTH, near + b * SIXTH, far + b * (1.0 / 12.0), far - b * (1.0 / 12.0), c]
}

impl OpDef for WinogradFilter {
    const OPERANDS: &'static [&'static str] = &["filters"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |dtype| dtype == DType::F32, "f32")?;
        operands.expect_rank(0, 2..=2)?;
        let filters = operands.get(0);
        let rows = filters.shape[0].as_usize().filter(|rows| rows.is_multiple_of(TAPS));
        let (Some(rows), 2 | 4) = (rows, self.tile) else {
            let tile = self.tile;
            return Err(OpError::Shape(format!("{filters} are not filters of 3 x 3 for tiles of 2 or 4, not {tile}")));
        };
        let shape = [Dim::from(self.reach() * self.reach()), Dim::from(rows / TAPS), filters.shape[1].clone()];
        Ok(vec![TensorType::new(DType::F32, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let filters = input(inputs, 0);
        let values: &[f32] = filters.as_slice().expect("inference has found f32");
        let step = filters.numel() / TAPS;
        let shape = types[0].sizes().expect("the sizes of a value that is computed are known");
        let mut out = vec![0f32; elements(&shape) as usize];
        for at in 0..step {
            let filter = std::array::from_fn(|tap| [values[tap * step + at]]);
            self.transform(&filter, |number, [value]| out[number * step + at] = value);
        }
        Ok(vec![Tensor::from_slice(&shape, &out)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn infer(tile: usize, dtype: DType, shape: &[usize]) -> Result<Vec<TensorType>, OpError> {
        Op::from(WinogradFilter { tile }).infer(&[Some(&TensorType::of_sizes(dtype, shape))])
    }

    #[test]
    fn filters_are_of_nine_taps() {
        assert_eq!(infer(2, DType::F32, &[18, 5]).expect("it fits"), [TensorType::of_sizes(DType::F32, &[16, 2, 5])]);
        assert_eq!(infer(4, DType::F32, &[9, 1]).expect("it fits"), [TensorType::of_sizes(DType::F32, &[36, 1, 1])]);
        for (tile, shape) in [(2, &[10, 5][..]), (3, &[18, 5]), (0, &[18, 5])] {
            assert!(matches!(infer(tile, DType::F32, shape), Err(OpError::Shape(_))));
        }
        assert!(matches!(infer(2, DType::F16, &[18, 5]), Err(OpError::DType { .. })));
    }

    /// The pixels that are transformed, for a line of them: `Bᵀ`.
    fn pixels(tile: usize) -> Vec<Vec<f64>> {
        let rows: &[&[f64]] = match tile {
            2 => &[&[1., 0., -1., 0.], &[0., 1., 1., 0.], &[0., -1., 1., 0.], &[0., 1., 0., -1.]],
            _ => &[
                &[4., 0., -5., 0., 1., 0.],
                &[0., -4., -4., 1., 1., 0.],
                &[0., 4., -4., -1., 1., 0.],
                &[0., -2., -1., 2., 1., 0.],
                &[0., 2., -1., -2., 1., 0.],
                &[0., 4., 0., -5., 0., 1.],
            ],
        };
        rows.iter().map(|row| row.to_vec()).collect()
    }

    /// The line of results: `Aᵀ`.
    fn results(tile: usize) -> Vec<Vec<f64>> {
        let rows: &[&[f64]] = match tile {
            2 => &[&[1., 1., 1., 0.], &[0., 1., -1., -1.]],
            _ => &[
                &[1., 1., 1., 1., 1., 0.],
                &[0., 1., -1., 2., -2., 0.],
                &[0., 1., 1., 4., 4., 0.],
                &[0., 1., -1., 8., -8., 1.],
            ],
        };
        rows.iter().map(|row| row.to_vec()).collect()
    }

    /// `m x mᵀ`.
    fn around(m: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
        let n = m[0].len();
        let at = |i: usize, j: usize| -> f64 { (0..n * n).map(|p| m[i][p / n] * x[p] * m[j][p % n]).sum() };
        (0..m.len() * m.len()).map(|p| at(p / m.len(), p % m.len())).collect()
    }

    #[test]
    fn products_of_what_is_transformed_are_a_convolution() {
        let value = |i: usize| ((i * 37 + 11) % 23) as f64 / 11.0 - 1.0;
        for tile in [2, 4] {
            let reach = tile + 2;
            let filter: Vec<f32> = (0..9).map(|i| value(i + 5) as f32).collect();
            let image: Vec<f64> = (0..reach * reach).map(value).collect();
            let u = Op::from(WinogradFilter { tile }).eval(&[Some(&Tensor::from_slice(&[9, 1], &filter))]).unwrap();
            let product: Vec<f64> =
                u[0].to_f64_vec().iter().zip(around(&pixels(tile), &image)).map(|(u, v)| u * v).collect();
            for (at, got) in around(&results(tile), &product).into_iter().enumerate() {
                let (y, x) = (at / tile, at % tile);
                let tap = |t: usize| image[(y + t / 3) * reach + x + t % 3] * f64::from(filter[t]);
                let want: f64 = (0..9).map(tap).sum();
                assert!((got - want).abs() < 1e-5, "tile {tile}, pixel {at}: {got} and {want}");
            }
        }
    }
}
