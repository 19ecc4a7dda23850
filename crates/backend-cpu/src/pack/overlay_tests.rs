use half::bf16;
use proptest::prelude::*;
use regraft_backend::adapter::{Factors, Magnitude, Update};
use regraft_tensor::Tensor;

use super::*;
use crate::pack::{MatrixView, pack_panels, panels_len};

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed * 31) * 7919 % 10007) as f32 * 2e-4 - 1.0).collect()
}

fn matrix(rows: usize, cols: usize, seed: usize) -> Tensor {
    Tensor::from_slice(&[rows, cols], &numbers(rows * cols, seed))
}

fn factors(rows: usize, rank: usize, cols: usize, seed: usize) -> Factors {
    Factors { up: matrix(rows, rank, seed), down: matrix(rank, cols, seed + 1) }
}

/// One of each form; `rows` and `cols` are even.
fn updates(rows: usize, cols: usize) -> Vec<(Update, f64)> {
    let magnitude = |axis, len: usize| Some(Magnitude { axis, values: Tensor::from_slice(&[len], &numbers(len, 5)) });
    vec![
        (Update::LowRank { factors: factors(rows, 3, cols, 1), scale: 0.5, magnitude: None }, 0.7),
        (Update::LowRank { factors: factors(rows, 1, cols, 2), scale: 2.0, magnitude: None }, 0.3),
        (
            Update::LowRank {
                factors: factors(rows, 2, cols, 3),
                scale: 1.0,
                magnitude: magnitude(MagnitudeAxis::Rows, rows),
            },
            1.0,
        ),
        (
            Update::LowRank {
                factors: factors(rows, 2, cols, 3),
                scale: 1.0,
                magnitude: magnitude(MagnitudeAxis::Columns, cols),
            },
            0.5,
        ),
        (
            Update::Hadamard {
                first: factors(rows, 2, cols, 4),
                second: factors(rows, 3, cols, 5),
                scale: 1.5,
                magnitude: None,
            },
            1.0,
        ),
        (
            Update::Kronecker {
                left: matrix(2, cols / 2, 6),
                right: matrix(rows / 2, 2, 7),
                scale: 0.25,
                magnitude: None,
            },
            2.0,
        ),
        (Update::Full { delta: matrix(rows, cols, 8), scale: 1.0 }, -0.5),
    ]
}

fn overlay<T: SourceElement>(dtype: DType, shape: &[usize], chosen: &[(Update, f64)], data: &[T]) -> Overlay {
    let chosen: Vec<_> = chosen.iter().map(|(update, by)| (update, *by)).collect();
    let mut overlay = Overlay::new(dtype, shape, &chosen);
    fill_norms(&Threads::single(), Isa::detect(), &mut overlay, data);
    overlay
}

fn merged<T: SourceElement + Default>(isa: Isa, threads: usize, overlay: &Overlay, data: &[T]) -> Vec<T> {
    let mut out = vec![T::default(); data.len()];
    merge(&Threads::new(threads).unwrap(), isa, overlay, data, 0, &mut out);
    out
}

fn close(got: &[f32], want: &[f32]) {
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} is not {want}");
    }
}

/// `W + delta` by the definition of each update, in f64.
fn naive(update: &Update, by: f64, data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let source = Tensor::from_slice(&[rows, cols], data);
    update.reference(&source, by).as_slice::<f32>().unwrap().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_form_is_its_definition(rows in 1usize..20, cols in 1usize..150) {
        let (rows, cols) = (rows * 2, cols * 2);
        let data = numbers(rows * cols, 0);
        for (update, by) in updates(rows, cols) {
            let overlay = overlay(DType::F32, &[rows, cols], &[(update.clone(), by)], &data);
            for isa in Isa::available() {
                close(&merged(isa, 2, &overlay, &data), &naive(&update, by, &data, rows, cols));
            }
        }
    }

    #[test]
    fn any_part_of_a_merge_is_that_part_of_the_whole(
        rows in 1usize..20, cols in 1usize..150, first in 0usize..500, len in 0usize..500,
    ) {
        let (rows, cols) = (rows * 2, cols * 2);
        let data = numbers(rows * cols, 0);
        let overlay = overlay(DType::F32, &[rows, cols], &updates(rows, cols), &data);
        let whole = merged(Isa::detect(), 1, &overlay, &data);
        let first = first.min(data.len());
        let len = len.min(data.len() - first);
        let mut part = vec![0.0; len];
        merge(&Threads::new(2).unwrap(), Isa::detect(), &overlay, &data, first, &mut part);
        prop_assert_eq!(&part[..], &whole[first..first + len]);
    }

    #[test]
    fn packing_with_adapters_is_packing_what_they_make(oc in 1usize..40, ic in 1usize..40, taps in 1usize..4, scaled: bool) {
        let (oc, ic) = (oc * 2, ic * 2);
        let cols = ic * taps * taps;
        let data = numbers(oc * cols, 0);
        let halves: Vec<bf16> = data.iter().map(|x| bf16::from_f32(*x)).collect();
        for isa in Isa::available() {
            check(isa, DType::F32, [oc, ic, taps, taps], &data, scaled);
            check(isa, DType::BF16, [oc, ic, taps, taps], &halves, scaled);
        }
    }
}

/// Linear, row-major and convolution views, with and without column scales, on one and two threads.
fn check<T: SourceElement + Default>(isa: Isa, dtype: DType, shape: [usize; 4], data: &[T], scaled: bool) {
    let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
    let overlay = overlay(dtype, &shape, &updates(rows, cols), data);
    let merged = merged(isa, 1, &overlay, data);
    let scale = numbers(rows.max(cols), 9);
    let views = |data| {
        [MatrixView::linear(data, rows, cols), MatrixView::row_major(data, rows, cols), MatrixView::conv2d(data, shape)]
    };
    for (plain, view) in views(&merged).into_iter().zip(views(data)) {
        let scale = scaled.then(|| &scale[..view.n_len]);
        let (plain, view) = (MatrixView { scale, ..plain }, MatrixView { scale, ..view });
        let len = panels_len(plain.k_len(), plain.n_len, 32);
        let (mut want, mut got) = (vec![0.0; len], vec![f32::NAN; len]);
        for threads in [1, 2] {
            let threads = Threads::new(threads).unwrap();
            pack_panels(&threads, isa, std::slice::from_ref(&plain), 32, &mut want);
            pack_panels(&threads, isa, &[MatrixView { overlay: Some(&overlay), ..view.clone() }], 32, &mut got);
            assert!(want == got, "{isa}, {shape:?}");
        }
    }
}
