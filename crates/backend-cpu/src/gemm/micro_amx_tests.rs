//! Products in tiles are, bit for bit, what the instruction's definition gives for each element alone: so rows, panels,
//! taps and runs of `k` are found where they are.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::{
    Isa,
    gemm::{
        Epilogue, Panels, Rows, Workspace, gathered_bytes, multiply_block, operand::Operand, panel_widths_of,
        tiles::tests::added,
    },
    pack::{panel_elements, panel_place},
    scratch::{bytes_of, testing::with_scratch},
    simd::{Float, Floats},
};

fn number(i: usize) -> bf16 {
    bf16::from_f32((i * 7919 % 1009) as f32 / 500.0 - 1.0)
}

/// A product, its operands as they lie.
#[derive(Debug)]
struct Product {
    sizes: [usize; 4],
    /// Taps are found by offsets, some of them in the padding.
    indirect: bool,
    lda: usize,
    offsets: Vec<u32>,
    a: Vec<bf16>,
    weights: Vec<bf16>,
}

impl Product {
    fn new([m, n, k_tap, taps]: [usize; 4], pad: usize, indirect: bool) -> Self {
        let (lda, indirect) = (k_tap + pad, indirect || taps > 1);
        // What lies between rows is never read as a number.
        let mut a = vec![bf16::NAN; (m + taps) * lda + 1];
        for (i, x) in a.iter_mut().enumerate().filter(|(i, _)| lda > 0 && i % lda < k_tap) {
            *x = number(i);
        }
        let offset = |i: usize| if i % 7 == 3 { Rows::ZERO } else { ((i / taps + i % taps) * lda) as u32 };
        let offsets = (0..m * taps).map(offset).collect();
        Product {
            sizes: [m, n, k_tap, taps],
            indirect,
            lda,
            offsets,
            a,
            weights: (0..k_tap * taps * n).map(number).collect(),
        }
    }

    fn rows(&self) -> Rows<'_> {
        if self.indirect { Rows::Indirect { offsets: &self.offsets } } else { Rows::Strided { lda: self.lda } }
    }

    fn a(&self, row: usize, step: usize) -> f32 {
        let [_, _, k_tap, taps] = self.sizes;
        let start = if self.indirect { self.offsets[row * taps + step / k_tap] } else { (row * self.lda) as u32 };
        if start == Rows::ZERO { 0.0 } else { self.a[start as usize + step % k_tap].to_f32() }
    }

    /// An element by the instruction's definition.
    fn want(&self, row: usize, column: usize) -> f32 {
        let [_, n, k_tap, taps] = self.sizes;
        let steps: Vec<usize> = (0..k_tap * taps).collect();
        steps.chunks(STEPS).fold(0.0, |sum, steps| {
            let pair = |pair: &[usize]| {
                let of = |x: &dyn Fn(usize) -> f32| [x(pair[0]), pair.get(1).map_or(0.0, |step| x(*step))];
                (of(&|step| self.a(row, step)), of(&|step| self.weights[step * n + column].to_f32()))
            };
            added(sum, steps.chunks(2).map(pair))
        })
    }

    /// The product in tasks of some rows and panels.
    fn run<C: Float>(&self, nr: usize, task_rows: usize, task_panels: usize) -> Vec<C> {
        let [m, n, k_tap, taps] = self.sizes;
        let k = k_tap * taps;
        let mut panels = vec![bf16::NAN; panel_elements(FloatType::Bf16, k, n, nr)];
        for (i, weight) in self.weights.iter().enumerate() {
            panels[panel_place(FloatType::Bf16, nr, k, i / n, i % n)] = *weight;
        }
        let panels = Panels::new(nr, Floats::Bf16(&panels), k, n);
        let operand = Operand::new(Floats::Bf16(&self.a), self.rows(), m, taps, k_tap);
        let mut c = vec![C::zeroed(); m * n];
        let (gathered, sums, columns) =
            (gathered_bytes(task_rows, taps, k_tap), task_rows * n.max(nr), task_panels * nr);
        with_scratch(bytes_of::<u8>(gathered) + bytes_of::<f32>(sums), |scratch| {
            let mut work = Workspace { a: scratch.take(gathered), sums: scratch.take(sums) };
            for row in (0..m).step_by(task_rows) {
                for col in (0..n).step_by(columns) {
                    let (rows, cols) = (task_rows.min(m - row), columns.min(n - col));
                    let tile = TileMut::new(&mut c[row * n + col..], rows, cols, n);
                    let none = Epilogue::default();
                    multiply_block(Isa::Amx, &operand, row, &panels, col, tile, &none, &mut work);
                }
            }
        });
        c
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn products_are_those_of_the_definition(
        m in 1usize..80, n in 1usize..100, k_tap in prop_oneof![4 => 0usize..140, 1 => 480usize..1200],
        taps in 1usize..4, pad in 0usize..3, indirect: bool, task_rows in 1usize..60, task_panels in 1usize..3,
    ) {
        // The model of tiles is written over vectors of AVX512-BF16.
        if !Isa::available().contains(&Isa::Amx) {
            return Ok(());
        }
        let product = Product::new([m, n, k_tap, taps], pad, indirect);
        let want: Vec<f32> = (0..m * n).map(|i| product.want(i / n, i % n)).collect();
        for nr in panel_widths_of(Isa::Amx, FloatType::Bf16) {
            let got: Vec<f32> = product.run(nr, task_rows, task_panels);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert!(got.to_bits() == want.to_bits(), "n{nr} at {i}: {got} for {want}");
            }
            let rounded: Vec<bf16> = product.run(nr, task_rows, task_panels);
            prop_assert!(rounded.iter().zip(&want).all(|(got, want)| *got == bf16::from_f32(*want)));
        }
    }
}

#[test]
fn parts_are_whole_tiles_but_the_last() {
    let kernel = KERNELS[0];
    let parts = |len| kernel.parts(len).collect::<Vec<_>>();
    assert!(parts(0).is_empty());
    assert!(parts(5).len() == 1 && parts(5)[0].end == 5);
    assert_eq!(parts(40), [0..16, 16..40]);
    assert_eq!(parts(64), [0..32, 32..64]);
    assert_eq!(parts(101), [0..16, 16..48, 48..80, 80..101]);
}

/// An engine built where there are tiles runs where there are none, and the other way round.
#[test]
fn panels_are_those_of_vectors() {
    for ty in FloatType::ALL {
        assert!(panel_widths_of(Isa::Amx, ty).eq(panel_widths_of(Isa::Avx512Bf16, ty)));
    }
    let widths = panel_widths_of(Isa::Amx, FloatType::Bf16);
    assert!(widths.eq(KERNELS.iter().map(|kernel| kernel.nr)), "tiles take all panels");
}
