//! Layers other than matrix products. They read and write any [`Float`], compute in f32 and round once. Images are channels-last
//! (`[batch, height, width, channels]`).

pub mod attention;
pub mod batch_norm;
pub mod conv_pair;
pub mod depthwise;
pub mod direct;
pub mod double;
pub mod group_norm;
pub mod lines;
pub mod lstm;
pub mod moves;
pub mod norm;
pub mod pool;
pub mod pool_any;
pub mod put;
pub mod reduce;
pub mod resize;
pub mod rotary;
pub mod scan;
pub mod softmax;
pub mod sort;
pub mod subpixel;
pub mod transpose;
pub mod transposed;
mod window;
pub mod winograd;

use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
    threads::{MAX_WORKERS, TASKS_PER_THREAD},
};

/// Elements that a task should at least work on; less is not worth a hand-over.
const GRAIN: usize = 8 * 1024;

/// How many rows of `cols` elements go into one task.
fn rows_per_task(threads: &Threads, rows: usize, cols: usize) -> usize {
    threads.per_task(rows, GRAIN.div_ceil(cols.max(1)))
}

/// How many of `rows`, each of which reads `work` elements, are a tile of a task.
fn rows_of_tile(threads: &Threads, rows: usize, work: usize) -> usize {
    GRAIN.div_ceil(work).min(rows.div_ceil(TASKS_PER_THREAD * threads.count())).max(1)
}

/// Runs `row(i, out_row)` for every row of `out`, several rows a task.
fn for_each_row<T: Send>(threads: &Threads, out: &mut [T], cols: usize, row: impl Fn(usize, &mut [T]) + Sync) {
    if cols == 0 {
        return;
    }
    assert!(out.len().is_multiple_of(cols), "{} elements are not rows of {cols}", out.len());
    let per_task = rows_per_task(threads, out.len() / cols, cols);
    threads.for_each_chunk(out, per_task * cols, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            row(task * per_task + i, out);
        }
    });
}

/// Workers that have a part of the scratch each.
pub(crate) fn workers(threads: &Threads) -> usize {
    threads.count().min(MAX_WORKERS)
}

/// Bytes of scratch that [`for_each_float_row`] needs.
fn row_scratch(threads: &Threads, out: FloatType, cols: usize) -> usize {
    if out == FloatType::F32 { 0 } else { workers(threads) * bytes_of::<f32>(cols) }
}

/// As [`for_each_row`]; `row` computes in f32: in the row itself, or in scratch that is rounded to it.
fn for_each_float_row<T: Float>(
    threads: &Threads,
    isa: Isa,
    out: &mut [T],
    cols: usize,
    scratch: &mut Scratch<'_>,
    row: impl Fn(usize, &mut [f32]) + Sync,
) {
    if let Some(out) = T::as_f32_mut(out) {
        return for_each_row(threads, out, cols, row);
    }
    if cols == 0 {
        return;
    }
    assert!(out.len().is_multiple_of(cols), "{} elements are not rows of {cols}", out.len());
    let per_task = rows_per_task(threads, out.len() / cols, cols);
    let mut scratch = scratch.again();
    let mut buffers = scratch.parts::<f32>(workers(threads), cols);
    threads.for_each_chunk_with(&mut buffers, out, per_task * cols, |buffer, task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            row(task * per_task + i, buffer);
            T::narrow(isa, buffer, out);
        }
    });
}

/// Operands that every row needs, widened once into scratch.
fn widened<'s>(isa: Isa, floats: Option<Floats<'s>>, scratch: &mut Scratch<'s>) -> Option<&'s [f32]> {
    floats.map(|floats| match floats {
        Floats::F32(same) => same,
        _ => {
            let buffer = scratch.take(floats.len());
            floats.read(isa, 0, buffer)
        }
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use half::{bf16, f16};

    use crate::{
        Isa, Scratch, Threads,
        scratch::testing::with_scratch,
        simd::{Float, FloatType, Floats},
    };

    /// Numbers of one type, and what they are.
    pub(crate) struct Numbers {
        f32: Vec<f32>,
        f16: Vec<f16>,
        bf16: Vec<bf16>,
        ty: FloatType,
    }

    impl Numbers {
        /// `values`, rounded to `ty`.
        pub(crate) fn new(ty: FloatType, values: &[f32]) -> Self {
            let f16: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
            let bf16: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            let f32 = match ty {
                FloatType::F32 => values.to_vec(),
                FloatType::F16 => f16.iter().map(|x| x.to_f32()).collect(),
                FloatType::Bf16 => bf16.iter().map(|x| x.to_f32()).collect(),
            };
            Numbers { f32, f16, bf16, ty }
        }

        pub(crate) fn floats(&self) -> Floats<'_> {
            match self.ty {
                FloatType::F32 => Floats::F32(&self.f32),
                FloatType::F16 => Floats::F16(&self.f16),
                FloatType::Bf16 => Floats::Bf16(&self.bf16),
            }
        }

        /// Element `i`, exactly.
        pub(crate) fn at(&self, i: usize) -> f64 {
            f64::from(self.f32[i])
        }
    }

    /// What one rounding to `ty` may change, relatively.
    pub(crate) fn rounding(ty: FloatType) -> f64 {
        match ty {
            FloatType::F32 => 0.0,
            FloatType::F16 => 2f64.powi(-11),
            FloatType::Bf16 => 2f64.powi(-8),
        }
    }

    /// A computation that is generic over what it writes.
    pub(crate) trait Compute {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>);
        fn scratch(&self, threads: &Threads, isa: Isa, out: FloatType) -> usize;
    }

    /// Runs `compute` for every instruction set and type of results, with one and two threads, which must agree bit for bit, and
    /// hands the result to `check` with what rounding to its type may change.
    pub(crate) fn in_every_type(len: usize, compute: &impl Compute, check: impl Fn(&[f32], f64)) {
        fn one<T: Float>(len: usize, compute: &impl Compute, isa: Isa) -> Vec<f32> {
            let [one, two] = [1, 2].map(|count| {
                let threads = Threads::new(count).unwrap();
                let mut out = vec![T::zeroed(); len];
                with_scratch(compute.scratch(&threads, isa, T::TYPE), |s| compute.run(&threads, isa, &mut out, s));
                let mut wide = vec![f32::NAN; len];
                T::widen(Isa::Portable, &out, &mut wide);
                wide
            });
            assert!(one.iter().zip(&two).all(|(x, y)| x.to_bits() == y.to_bits()), "{isa}: threads disagree");
            one
        }
        for isa in Isa::available() {
            check(&one::<f32>(len, compute, isa), rounding(FloatType::F32));
            check(&one::<f16>(len, compute, isa), rounding(FloatType::F16));
            check(&one::<bf16>(len, compute, isa), rounding(FloatType::Bf16));
        }
    }

    /// Numbers between -1 and 1 without a pattern.
    pub(super) fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 31 + seed * 17) * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Panics unless `got` is within `tolerance` of `want`, absolutely and relatively.
    #[track_caller]
    pub(super) fn assert_close(got: f32, want: f64, tolerance: f64) {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{got} for {want}");
    }
}
