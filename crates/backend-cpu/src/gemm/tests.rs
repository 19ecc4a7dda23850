use proptest::prelude::*;
use regraft_ir::ops::Activation;

use super::{
    conv::testing::{met, windows},
    *,
};
use crate::{
    Isa, Scratch, Threads,
    nn::testing::{Compute, Numbers, in_every_type, rounding},
    pack::{MatrixView, SourceElement, pack_half_panels, pack_panels, pack_scratch, panel_elements},
    scratch::testing::with_scratch,
    simd::{Float, FloatType, Floats, activation},
};

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 1.0).collect()
}

fn close(got: f32, want: f64, k: usize, rounding: f64) -> bool {
    (f64::from(got) - want).abs() <= 1e-6 * (k as f64 + 10.0) + (1e-5 + rounding) * want.abs()
}

/// Panels of one type, as the product wants them.
enum Packed {
    F32(Vec<f32>),
    F16(Vec<half::f16>),
    Bf16(Vec<half::bf16>),
}

impl Packed {
    fn new<T: SourceElement + 'static>(isa: Isa, ty: FloatType, nr: usize, view: MatrixView<'_, T>) -> Packed {
        let (one, k, n) = (Threads::single(), view.k_len(), view.n_len);
        let len = panel_elements(ty, k, n, nr);
        with_scratch(pack_scratch(&one, k, nr), |scratch| match ty {
            FloatType::F32 => {
                let mut out = vec![f32::NAN; len];
                pack_panels(&one, isa, &[view], nr, &mut out);
                Packed::F32(out)
            }
            FloatType::F16 => {
                let mut out = vec![half::f16::NAN; len];
                pack_half_panels(&one, isa, &[view], nr, &mut out, scratch);
                Packed::F16(out)
            }
            FloatType::Bf16 => {
                let mut out = vec![half::bf16::NAN; len];
                pack_half_panels(&one, isa, &[view], nr, &mut out, scratch);
                Packed::Bf16(out)
            }
        })
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Packed::F32(x) => x.into(),
            Packed::F16(x) => x.into(),
            Packed::Bf16(x) => x.into(),
        }
    }
}

/// A product by [`gemm`], run with every width of panels: those must agree bit for bit.
struct Gemm<'a> {
    sizes: [usize; 4],
    a: Floats<'a>,
    rows: Rows<'a>,
    weight: MatrixView<'a>,
    b: FloatType,
    ldc: usize,
    epilogue: Epilogue<'a>,
}

impl Gemm<'_> {
    fn shape(&self, nr: usize, c: FloatType) -> GemmShape {
        let [m, n, k_tap, taps] = self.sizes;
        GemmShape { m, n, k_tap, taps, nr, a: self.a.ty(), b: self.b, c }
    }
}

impl Compute for Gemm<'_> {
    fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
        let Gemm { sizes: [m, n, k_tap, taps], a, rows, ldc, epilogue, .. } = *self;
        let mut first: Option<Vec<u8>> = None;
        for nr in panel_widths_of(isa, self.b) {
            let b = Packed::new(isa, self.b, nr, self.weight.clone());
            let (b, c) = (b.floats(), &mut *out);
            gemm(threads, isa, GemmArgs { m, n, k_tap, taps, a, rows, b, nr, c, ldc, epilogue }, scratch);
            let bits: Vec<u8> = bytemuck::cast_slice(out).to_vec();
            assert!(first.is_none_or(|first| first == bits), "{isa} n{nr}: other bits");
            first = Some(bits);
        }
    }

    fn scratch(&self, threads: &Threads, isa: Isa, out: FloatType) -> usize {
        panel_widths_of(isa, self.b).map(|nr| self.shape(nr, out).scratch(isa, threads)).max().unwrap()
    }
}

fn any_type() -> impl Strategy<Value = FloatType> {
    prop::sample::select(&FloatType::ALL[..])
}

fn act64(act: Activation, x: f64) -> f64 {
    // The functions themselves are tested in `simd`; here any exact evaluation will do.
    let mut y = [x as f32];
    activation::apply(Isa::Portable, act, &mut y);
    if act == Activation::None { x } else { f64::from(y[0]) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn strided_products_with_epilogue(
        m in 1usize..80, n in 1usize..100, k in 0usize..70, pad in 0usize..3,
        activation in prop::sample::select(Activation::ALL),
        bias: bool, residual: bool, act_before_residual: bool,
        types in prop::array::uniform4(any_type()),
    ) {
        let (lda, ldc) = (k + pad, n + pad);
        let (a, w) = (Numbers::new(types[0], &numbers(m * lda, 1)), Numbers::new(types[1], &numbers(n * k, 2)));
        let bias_data = Numbers::new(types[2], &numbers(n, 3));
        let residual_data = Numbers::new(types[3], &numbers(m * n, 4));
        let epilogue = Epilogue {
            bias: bias.then(|| bias_data.floats()),
            residual: residual.then(|| Residual { data: residual_data.floats(), ld: n }),
            activation,
            act_before_residual,
        };
        let weight: Vec<f32> = (0..n * k).map(|i| w.at(i) as f32).collect();
        let product = Gemm {
            sizes: [m, n, k, 1], a: a.floats(), rows: Rows::Strided { lda },
            weight: MatrixView::linear(&weight, n, k), b: types[1], ldc, epilogue,
        };
        in_every_type(m * ldc, &product, |c, rounding| {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let dot: f64 = (0..k).map(|t| a.at(i * lda + t) * w.at(j * k + t)).sum();
                let x = dot + if bias { bias_data.at(j) } else { 0.0 };
                let r = if residual { residual_data.at(i * n + j) } else { 0.0 };
                let want =
                    if act_before_residual { act64(activation, x) + r } else { act64(activation, x + r) };
                assert!(close(c[i * ldc + j], want, k, rounding), "at {i}, {j}: {} for {want}", c[i * ldc + j]);
            }
            for i in 0..m {
                assert!(c[i * ldc + n..(i + 1) * ldc].iter().all(|x| *x == 0.0), "wrote between the rows");
            }
        });
    }

    #[test]
    fn convolutions(
        window in windows(3..9, 1..4), ic in 1usize..20, oc in 1usize..40, types in prop::array::uniform2(any_type()),
    ) {
        let (taps, plane) = (window.taps(), window.input[1] * window.input[2] * ic);
        let image = Numbers::new(types[0], &numbers(window.batch * window.pixels_in() * ic, 5));
        let weight = Numbers::new(types[1], &numbers(oc * ic * taps, 6));
        let rounded: Vec<f32> = (0..oc * ic * taps).map(|i| weight.at(i) as f32).collect();
        let rows = ConvRows::new(&window, ic).unwrap();
        for part in rows.parts() {
            let first = part.planes.start * window.output[1] * window.output[2];
            let m = part.planes.len() * window.output[1] * window.output[2];
            let product = Gemm {
                sizes: [m, oc, ic, taps],
                a: image.floats().from(part.reads.start * plane).first(part.reads.len() * plane),
                rows: rows.rows(part),
                weight: MatrixView::conv2d(&rounded, [oc, ic, 1, taps]), b: types[1], ldc: oc,
                epilogue: Epilogue::default(),
            };
            in_every_type(m * oc, &product, |c, rounding| {
                for (i, got) in c.iter().enumerate() {
                    let (o, pixel) = (i % oc, first + i / oc);
                    let mut want = 0.0;
                    for (tap, source) in met(&window, pixel) {
                        want += (0..ic).map(|ch| image.at(source * ic + ch) * weight.at((o * ic + ch) * taps + tap)).sum::<f64>();
                    }
                    assert!(close(*got, want, ic * taps, rounding), "{got} for {want}");
                }
            });
        }
    }

    #[test]
    fn batched_products(
        batches in 1usize..5, m in 1usize..30, n in 1usize..50, k in 1usize..40,
        transposed: bool, shared: bool, types in prop::array::uniform2(any_type()),
    ) {
        let a = Numbers::new(types[0], &numbers(batches * m * k, 7));
        let b = Numbers::new(types[1], &numbers(batches * n * k, 8));
        let product = Batch { sizes: [batches, m, n, k], a: a.floats(), b: b.floats(), transposed, shared };
        in_every_type(batches * m * n, &product, |c, rounding| {
            for (at, got) in c.iter().enumerate() {
                let (batch, i, j) = (at / n / m, at / n % m, at % n);
                let first = if shared { 0 } else { batch * n * k };
                let entry = |t| b.at(first + if transposed { j * k + t } else { t * n + j });
                let want: f64 = (0..k).map(|t| a.at((batch * m + i) * k + t) * entry(t)).sum();
                assert!(close(*got, want, k, rounding), "{got} for {want}");
            }
        });
    }
}

struct Batch<'a> {
    sizes: [usize; 4],
    a: Floats<'a>,
    b: Floats<'a>,
    transposed: bool,
    shared: bool,
}

impl Compute for Batch<'_> {
    fn run<T: Float>(&self, threads: &Threads, isa: Isa, c: &mut [T], scratch: &mut Scratch<'_>) {
        let Batch { sizes: [batches, m, n, k], a, b, transposed, shared } = *self;
        let (ld, b_batch) = (if transposed { k } else { n }, if shared { 0 } else { n * k });
        let args = MatmulArgs {
            batches,
            m,
            n,
            k,
            a,
            lda: k,
            a_batch: m * k,
            b: DynamicB { data: b, ld, transposed },
            b_batch,
            c,
            ldc: n,
            c_batch: m * n,
            epilogue: Epilogue::default(),
        };
        matmul(threads, isa, args, scratch);
    }

    fn scratch(&self, threads: &Threads, isa: Isa, c: FloatType) -> usize {
        let Batch { sizes: [batches, m, n, k], a, b, shared, .. } = *self;
        MatmulShape { batches, shared_b: shared, m, n, k, a: a.ty(), b: b.ty(), c }.scratch(isa, threads)
    }
}

#[test]
fn panels_suit_the_columns() {
    let first = |n| panel_widths_for(Isa::Avx512, FloatType::F32, n)[0];
    // 48 columns for 40, not 64; narrow ones where they have fewer columns; two tiles of several vectors for 112; in general what comes
    // first.
    assert_eq!([40, 16, 112, 256, 1000].map(first), [48, 16, 64, 32, 48]);
    let mut all = panel_widths_for(Isa::Avx512, FloatType::F32, 40);
    all.sort_unstable();
    assert_eq!(all, [16, 32, 48, 64]);
}

/// A row has the same bits alone and among others, and a product large enough for several tasks and runs of `k` is still right.
#[test]
fn rows_do_not_depend_on_the_batch() {
    let (m, n, k) = (150, 330, 2571);
    let (a, w) = (numbers(m * k, 1), numbers(n * k, 2));
    let exact = |i: usize, j: usize| (0..k).map(|t| f64::from(a[i * k + t]) * f64::from(w[j * k + t])).sum::<f64>();
    for (ty, isa) in FloatType::ALL.into_iter().flat_map(|ty| Isa::available().into_iter().map(move |isa| (ty, isa))) {
        for nr in panel_widths_of(isa, ty) {
            let (b, a) = (Packed::new(isa, ty, nr, MatrixView::linear(&w, n, k)), Numbers::new(ty, &a));
            let product = |threads: &Threads, a: Floats<'_>, m: usize| {
                let mut c = vec![half::bf16::ZERO; m * n];
                let (rows, epilogue, b) = (Rows::Strided { lda: k }, Epilogue::default(), b.floats());
                let shape = GemmShape { m, n, k_tap: k, taps: 1, nr, a: ty, b: ty, c: FloatType::Bf16 };
                let args = GemmArgs { m, n, k_tap: k, taps: 1, a, rows, b, nr, c: &mut c, ldc: n, epilogue };
                with_scratch(shape.scratch(isa, threads), |scratch| gemm(threads, isa, args, scratch));
                c
            };
            let all = product(&Threads::new(2).unwrap(), a.floats(), m);
            assert!(all == product(&Threads::single(), a.floats(), m), "{isa}: threads disagree");
            for i in [0, 1, 77, 149] {
                let row = a.floats().from(i * k).first(k);
                assert_eq!(all[i * n..(i + 1) * n], product(&Threads::single(), row, 1));
                // The operands of `exact` are not rounded; their errors average out.
                let bound = (rounding(ty) * 40.0 + rounding(FloatType::Bf16)) * 20.0 + 1e-3;
                for j in [0, n - 1] {
                    let (got, want) = (f64::from(all[i * n + j].to_f32()), exact(i, j));
                    assert!((got - want).abs() <= bound + want.abs() / 200.0, "{isa} {ty:?}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "no kernel of portable takes panels of 48 columns")]
fn a_width_without_a_kernel_is_refused() {
    let (rows, epilogue) = (Rows::Strided { lda: 1 }, Epilogue::default());
    let (a, b, c) = (Floats::F32(&[0.0]), Floats::F32(&[0.0; 48]), &mut [0.0f32]);
    let args = GemmArgs { m: 1, n: 1, k_tap: 1, taps: 1, a, rows, b, nr: 48, c, ldc: 1, epilogue };
    gemm(&Threads::single(), Isa::Portable, args, &mut Scratch::none());
}

#[test]
#[should_panic(expected = "beyond A")]
fn an_offset_beyond_the_image_is_refused() {
    Operand::new(Floats::F32(&[0.0; 10]), Rows::Indirect { offsets: &[0, Rows::ZERO, 7, 3] }, 2, 2, 4);
}
