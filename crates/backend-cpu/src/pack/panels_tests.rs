use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// The definition, element by element.
fn naive<T: SourceElement>(pieces: &[MatrixView<'_, T>], nr: usize) -> Vec<f32> {
    let n: usize = pieces.iter().map(|p| p.n_len).sum();
    let k = pieces[0].k_len();
    let mut out = vec![0.0; panels_len(k, n, nr)];
    let mut first = 0;
    for piece in pieces {
        for column in 0..piece.n_len {
            for k_at in 0..k {
                let (mut rest, mut at) = (k_at, piece.offset + column * piece.n_stride);
                for (size, stride) in piece.k_dims.iter().rev() {
                    at += rest % size * stride;
                    rest /= size;
                }
                let n = first + column;
                out[n / nr * nr * k + k_at * nr + n % nr] =
                    piece.data[at].to_f32() * piece.scale.map_or(1.0, |s| s[column]);
            }
        }
        first += piece.n_len;
    }
    out
}

fn check<T: SourceElement>(pieces: &[MatrixView<'_, T>]) {
    for nr in [16, 32, 48, 64] {
        let want = naive(pieces, nr);
        for isa in Isa::available() {
            for count in [1, 2] {
                let mut out = vec![f32::NAN; want.len()];
                pack_panels(&Threads::new(count).unwrap(), isa, pieces, nr, &mut out);
                assert!(out == want, "{isa} nr {nr}, {count} threads");
            }
        }
    }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 10007) as f32 * 0.01 - 50.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn linear_pieces(k in 1usize..90, ns in prop::collection::vec(1usize..70, 1..4), scaled: bool) {
        let data: Vec<Vec<f32>> = ns.iter().map(|n| numbers(n * k)).collect();
        let scale = numbers(70);
        let views: Vec<_> = ns.iter().zip(&data).map(|(n, d)| {
            let view = MatrixView::linear(d, *n, k);
            if scaled { view.scaled(&scale[..*n]) } else { view }
        }).collect();
        check(&views);
    }

    #[test]
    fn row_major(k in 1usize..300, n in 1usize..150, scaled: bool) {
        let (data, scale) = (numbers(n * k), numbers(n));
        let view = MatrixView::row_major(&data, k, n);
        check(&[if scaled { view.scaled(&scale) } else { view }]);
    }

    #[test]
    fn conv(oc in 1usize..40, ic in 1usize..20, kh in 1usize..4, kw in 1usize..4) {
        let data = numbers(oc * ic * kh * kw);
        check(&[MatrixView::conv2d(&data, [oc, ic, kh, kw])]);
    }

    #[test]
    fn any_strides(n in 1usize..40, k in 1usize..40, n_stride in 0usize..5, k_stride in 0usize..5, offset in 0usize..9) {
        let data = numbers(offset + n * n_stride + k * k_stride + 1);
        let view = MatrixView { data: &data, offset, k_dims: vec![(k, k_stride)], n_len: n, n_stride, scale: None, overlay: None };
        check(&[view]);
    }

    #[test]
    fn other_element_types(k in 1usize..40, n in 1usize..40) {
        let data = numbers(n * k);
        let halves: Vec<f16> = data.iter().map(|x| f16::from_f32(*x)).collect();
        let brains: Vec<bf16> = data.iter().map(|x| bf16::from_f32(*x)).collect();
        let doubles: Vec<f64> = data.iter().map(|x| f64::from(*x)).collect();
        check(&[MatrixView::linear(&halves, n, k)]);
        check(&[MatrixView::row_major(&brains, k, n)]);
        check(&[MatrixView::linear(&doubles, n, k)]);
    }
}

#[test]
#[should_panic(expected = "beyond its data")]
fn a_view_beyond_its_data_is_refused() {
    let view = MatrixView { offset: 1, ..MatrixView::linear(&[0f32; 12], 3, 4) };
    pack_panels(&Threads::single(), Isa::Portable, &[view], 16, &mut [0.0; 64]);
}

#[test]
fn nothing_packs_to_nothing() {
    pack_panels::<f32>(&Threads::single(), Isa::Portable, &[], 16, &mut []);
    pack_panels(&Threads::single(), Isa::Portable, &[MatrixView::linear(&[0f32; 0], 0, 4)], 16, &mut []);
}
