use proptest::prelude::*;

use super::*;
use crate::{
    Isa, Threads,
    pack::{MatrixView, pack_panels, panels_len},
    simd::Activation,
};

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 1.0).collect()
}

fn close(got: f32, want: f64, k: usize) -> bool {
    (f64::from(got) - want).abs() <= 1e-6 * (k as f64 + 10.0) + 1e-5 * want.abs()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// Runs `product` for every instruction set and width of panels, with one and two threads: those of one instruction set must
/// agree bit for bit.
fn on_every_kernel(c_len: usize, product: impl Fn(&Threads, Isa, usize, &mut [f32]), check: impl Fn(&[f32])) {
    for isa in Isa::available() {
        let run = |nr: usize, count: usize| {
            let mut c = vec![f32::NAN; c_len];
            product(&Threads::new(count).unwrap(), isa, nr, &mut c);
            c
        };
        let first = run(panel_width(isa), 1);
        check(&first);
        for (nr, count) in panel_widths(isa).flat_map(|nr| [(nr, 1), (nr, 2)]) {
            assert!(same_bits(&first, &run(nr, count)), "{isa} n{nr}, {count} threads: other bits");
        }
    }
}

fn packed(isa: Isa, nr: usize, view: MatrixView<'_>) -> Vec<f32> {
    let mut out = vec![0.0; panels_len(view.k_len(), view.n_len, nr)];
    pack_panels(&Threads::single(), isa, &[view], nr, &mut out);
    out
}

fn act64(activation: Activation, x: f64) -> f64 {
    // The functions themselves are tested in `simd`; here any exact evaluation will do.
    let mut y = [x as f32];
    activation.apply(Isa::Portable, &mut y);
    if activation == Activation::None { x } else { f64::from(y[0]) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn strided_products_with_epilogue(
        m in 1usize..80, n in 1usize..100, k in 0usize..70, pad in 0usize..3,
        activation in prop::sample::select(&Activation::ALL[..]),
        bias: bool, residual: bool, act_before_residual: bool,
    ) {
        let (lda, ldc) = (k + pad, n + pad);
        let (a, w) = (numbers(m * lda, 1), numbers(n * k, 2));
        let (bias_data, residual_data) = (numbers(n, 3), numbers(m * n, 4));
        let epilogue = Epilogue {
            bias: bias.then_some(&bias_data[..]),
            residual: residual.then_some(Residual { data: &residual_data, ld: n }),
            activation,
            act_before_residual,
        };
        on_every_kernel(m * ldc, |threads, isa, nr, c| {
            let b = packed(isa, nr, MatrixView::linear(&w, n, k));
            let rows = Rows::Strided { lda };
            gemm(threads, isa, GemmArgs { m, n, k_tap: k, taps: 1, a: &a, rows, b: &b, nr, c, ldc, epilogue });
        }, |c| {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let dot: f64 = (0..k).map(|t| f64::from(a[i * lda + t]) * f64::from(w[j * k + t])).sum();
                let x = dot + if bias { f64::from(bias_data[j]) } else { 0.0 };
                let r = if residual { f64::from(residual_data[i * n + j]) } else { 0.0 };
                let want =
                    if act_before_residual { act64(activation, x) + r } else { act64(activation, x + r) };
                assert!(close(c[i * ldc + j], want, k), "at {i}, {j}: {} for {want}", c[i * ldc + j]);
            }
            for i in 0..m {
                assert!(c[i * ldc + n..(i + 1) * ldc].iter().all(|x| x.is_nan()), "wrote between the rows");
            }
        });
    }

    #[test]
    fn convolutions(
        batch in 1usize..3, ic in 1usize..20, oc in 1usize..40, h in 3usize..9, w in 3usize..9,
        kernel in 1usize..4, stride in 1usize..3, dilation in 1usize..3, padding in 0usize..3,
    ) {
        let reach = dilation * (kernel - 1) + 1;
        prop_assume!(h + 2 * padding >= reach && w + 2 * padding >= reach);
        let conv = Conv2d {
            batch,
            input: [h, w],
            output: [(h + 2 * padding - reach) / stride + 1, (w + 2 * padding - reach) / stride + 1],
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [dilation; 2],
            padding: [padding; 2],
        };
        let (image, weight) = (numbers(batch * h * w * ic, 5), numbers(oc * ic * kernel * kernel, 6));
        let mut offsets = vec![0; conv.pixels() * conv.taps()];
        conv2d_offsets(&conv, ic, &mut offsets);
        on_every_kernel(conv.pixels() * oc, |threads, isa, nr, c| {
            let b = packed(isa, nr, MatrixView::conv2d(&weight, [oc, ic, kernel, kernel]));
            gemm(threads, isa, GemmArgs {
                m: conv.pixels(), n: oc, k_tap: ic, taps: conv.taps(), a: &image,
                rows: Rows::Indirect { offsets: &offsets }, b: &b, nr, c, ldc: oc, epilogue: Epilogue::default(),
            });
        }, |c| {
            for (i, got) in c.iter().enumerate() {
                let (o, pixel) = (i % oc, i / oc);
                let (x, y) = (pixel % conv.output[1], pixel / conv.output[1] % conv.output[0]);
                let image_at = pixel / conv.output[1] / conv.output[0];
                let mut want = 0.0;
                for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                    let (Some(sy), Some(sx)) = (conv.source(0, y, ky), conv.source(1, x, kx)) else { continue };
                    for ch in 0..ic {
                        let pixel = image[((image_at * h + sy) * w + sx) * ic + ch];
                        want += f64::from(pixel) * f64::from(weight[((o * ic + ch) * kernel + ky) * kernel + kx]);
                    }
                }
                assert!(close(*got, want, ic * kernel * kernel));
            }
        });
    }

    #[test]
    fn batched_products(
        batches in 1usize..5, m in 1usize..30, n in 1usize..50, k in 1usize..40,
        transposed: bool, shared: bool,
    ) {
        let (a, b) = (numbers(batches * m * k, 7), numbers(batches * n * k, 8));
        let (ld, b_batch) = (if transposed { k } else { n }, if shared { 0 } else { n * k });
        on_every_kernel(batches * m * n, |threads, isa, _, c| {
            let args = MatmulArgs {
                batches, m, n, k, a: &a, lda: k, a_batch: m * k, b: DynamicB { data: &b, ld, transposed }, b_batch,
                c, ldc: n, c_batch: m * n, epilogue: Epilogue::default(),
            };
            let mut scratch = vec![f32::NAN; args.scratch_len(isa)];
            matmul(threads, isa, args, &mut scratch);
        }, |c| {
            for (at, got) in c.iter().enumerate() {
                let (batch, i, j) = (at / n / m, at / n % m, at % n);
                let entry = |t| b[batch * b_batch + if transposed { j * k + t } else { t * n + j }];
                let want: f64 = (0..k).map(|t| f64::from(a[(batch * m + i) * k + t]) * f64::from(entry(t))).sum();
                assert!(close(*got, want, k));
            }
        });
    }
}

/// A row has the same bits alone and among others, and a product large enough for several tasks is still right.
#[test]
fn rows_do_not_depend_on_the_batch() {
    let (m, n, k) = (150, 330, 257);
    let (a, w) = (numbers(m * k, 1), numbers(n * k, 2));
    for (isa, nr) in Isa::available().into_iter().flat_map(|isa| panel_widths(isa).map(move |nr| (isa, nr))) {
        let b = packed(isa, nr, MatrixView::linear(&w, n, k));
        let product = |threads: &Threads, a: &[f32], m: usize| {
            let mut c = vec![0.0; m * n];
            let (rows, epilogue) = (Rows::Strided { lda: k }, Epilogue::default());
            gemm(threads, isa, GemmArgs { m, n, k_tap: k, taps: 1, a, rows, b: &b, nr, c: &mut c, ldc: n, epilogue });
            c
        };
        let all = product(&Threads::new(2).unwrap(), &a, m);
        for i in [0, 1, 77, 149] {
            assert_eq!(all[i * n..(i + 1) * n], product(&Threads::single(), &a[i * k..(i + 1) * k], 1));
        }
    }
}

#[test]
#[should_panic(expected = "no kernel of portable takes panels of 48 columns")]
fn a_width_without_a_kernel_is_refused() {
    let (rows, epilogue) = (Rows::Strided { lda: 1 }, Epilogue::default());
    let (a, b, c) = (&[0.0], &[0.0; 48], &mut [0.0]);
    let args = GemmArgs { m: 1, n: 1, k_tap: 1, taps: 1, a, rows, b, nr: 48, c, ldc: 1, epilogue };
    gemm(&Threads::single(), Isa::Portable, args);
}

#[test]
#[should_panic(expected = "beyond A")]
fn an_offset_beyond_the_image_is_refused() {
    Operand::new(&[0.0; 10], Rows::Indirect { offsets: &[0, Rows::ZERO, 7, 3] }, 2, 2, 4);
}
