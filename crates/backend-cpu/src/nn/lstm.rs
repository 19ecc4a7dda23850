//! The recurrent part of an LSTM: a small product and the gates for every step.

use super::widened;
use crate::{
    Isa, Scratch, Threads,
    gemm::{
        DynamicB, Epilogue, GemmArgs, GemmShape, Residual, Rows, dynamic_scratch, dynamic_width, gemm, pack_dynamic,
    },
    pack::panel_elements,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, math, simd_fn},
};

/// One direction of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LstmArgs<'a> {
    /// Steps.
    pub time: usize,
    /// Sequences.
    pub batch: usize,
    /// Elements of the state.
    pub hidden: usize,
    /// Whether the last step comes first.
    pub reverse: bool,
    /// What the inputs give to the gates `i, f, g, o`: `[time, batch, 4 hidden]`.
    pub gates: Floats<'a>,
    /// The first state, `[batch, hidden]`.
    pub h: Floats<'a>,
    /// The first cell state.
    pub c: Floats<'a>,
    /// The recurrent weight, `[4 hidden, hidden]`.
    pub weight: Floats<'a>,
    /// Added to the gates, `[4 hidden]`.
    pub bias: Option<Floats<'a>>,
}

/// What the scratch of an LSTM depends on.
#[derive(Clone, Copy, Debug)]
pub struct LstmShape {
    /// Sequences.
    pub batch: usize,
    /// Elements of the state.
    pub hidden: usize,
    /// Element type of the weight.
    pub weight: FloatType,
}

impl LstmShape {
    fn product(&self, isa: Isa) -> GemmShape {
        let (m, n, nr, f32) = (self.batch, 4 * self.hidden, dynamic_width(isa, self.weight), FloatType::F32);
        GemmShape { m, n, k_tap: self.hidden, taps: 1, nr, a: f32, b: self.weight, c: f32 }
    }

    fn panels(&self, isa: Isa) -> usize {
        panel_elements(self.weight, self.hidden, 4 * self.hidden, dynamic_width(isa, self.weight)) * self.weight.size()
    }

    /// Bytes of scratch that [`lstm`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let (state, gates) = (self.batch * self.hidden, self.batch * 4 * self.hidden);
        let packing = dynamic_scratch(self.weight, self.hidden, dynamic_width(isa, self.weight));
        bytes_of::<u8>(self.panels(isa))
            + bytes_of::<f32>(4 * self.hidden)
            + 2 * bytes_of::<f32>(state)
            + bytes_of::<f32>(gates)
            + bytes_of::<f32>(packing)
            + self.product(isa).scratch(isa, threads)
    }
}

/// Computes all states into `y` (`[time, batch, hidden]`), and the last ones into `h` and `c`. States are f32 between steps.
///
/// # Panics
///
/// If a length does not fit, or the scratch is shorter than [`LstmShape::scratch`].
pub fn lstm<T: Float>(
    threads: &Threads,
    isa: Isa,
    args: &LstmArgs<'_>,
    [y, last_h, last_c]: [&mut [T]; 3],
    scratch: &mut Scratch<'_>,
) {
    let LstmArgs { time, batch, hidden, .. } = *args;
    let (state, width) = (batch * hidden, 4 * hidden);
    assert!(args.gates.len() >= time * batch * width && args.h.len() >= state && args.c.len() >= state);
    assert!(args.weight.len() >= width * hidden && args.bias.is_none_or(|b| b.len() == width));
    assert!(y.len() == time * state && last_h.len() == state && last_c.len() == state);
    let shape = LstmShape { batch, hidden, weight: args.weight.ty() };
    let (nr, mut scratch) = (dynamic_width(isa, shape.weight), scratch.again());
    let panels = scratch.take::<u8>(shape.panels(isa));
    let bias = widened(isa, args.bias, &mut scratch);
    let (h, c) = (scratch.take::<f32>(state), scratch.take::<f32>(state));
    let gates = scratch.take::<f32>(batch * width);
    let weight = DynamicB { data: args.weight, ld: hidden, transposed: true };
    pack_dynamic(isa, &weight, [hidden, width], nr, panels, scratch.take(dynamic_scratch(shape.weight, hidden, nr)));
    args.h.load(isa, 0, h);
    args.c.load(isa, 0, c);
    for step in 0..time {
        let t = if args.reverse { time - 1 - step } else { step };
        let inputs = args.gates.from(t * batch * width);
        let weight = Floats::of_bytes(shape.weight, panels);
        multiply(threads, isa, &shape, (h, weight), (inputs, bias), gates, &mut scratch);
        let rows = h.chunks_exact_mut(hidden.max(1)).zip(c.chunks_exact_mut(hidden.max(1)));
        for (gates, (h, c)) in gates.chunks_exact(width.max(1)).zip(rows) {
            cell(isa, gates, h, c);
        }
        T::narrow(isa, h, &mut y[t * state..][..state]);
    }
    T::narrow(isa, h, last_h);
    T::narrow(isa, c, last_c);
}

/// The gates: what the inputs give, the bias and the product of the state and the weight.
fn multiply(
    threads: &Threads,
    isa: Isa,
    shape: &LstmShape,
    (h, weight): (&[f32], Floats<'_>),
    (inputs, bias): (Floats<'_>, Option<&[f32]>),
    gates: &mut [f32],
    scratch: &mut Scratch<'_>,
) {
    let GemmShape { m, n, k_tap, nr, .. } = shape.product(isa);
    let residual = Some(Residual { data: inputs, ld: n });
    let epilogue = Epilogue { bias: bias.map(Floats::F32), residual, ..Epilogue::default() };
    let (a, rows) = (Floats::F32(h), Rows::Strided { lda: k_tap });
    let args = GemmArgs { m, n, k_tap, taps: 1, a, rows, b: weight, nr, c: gates, ldc: n, epilogue };
    gemm(threads, isa, args, scratch);
}

simd_fn! {
    /// One step of one sequence.
    fn cell<F>(gates: &[f32], h: &mut [f32], c: &mut [f32]) {
        let hidden = h.len();
        let (i, rest) = gates.split_at(hidden);
        let (f, rest) = rest.split_at(hidden);
        let (g, o) = rest.split_at(hidden);
        let o = &o[..hidden];
        for j in 0..hidden {
            c[j] = math::sigmoid::<F>(f[j]) * c[j] + math::sigmoid::<F>(i[j]) * math::tanh::<F>(g[j]);
            h[j] = math::sigmoid::<F>(o[j]) * math::tanh::<F>(c[j]);
        }
    }
}
