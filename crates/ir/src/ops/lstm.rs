//! The recurrent part of an LSTM.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    support::{elements, input, join, last, optional},
    unary::UnaryFn,
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// One direction of one layer, after the product with `W_ih` (a `linear` before this op, which brings both biases or
    /// only `b_ih`): operands `gates: [t, b, 4h]` = `x·W_ihᵀ + b_ih`, `h0: [b, h]`, `c0: [b, h]`, `w_hh: [4h, h]`,
    /// `b_hh?: [4h]`. At each step `i, f, g, o = chunk(gates_t + h·W_hhᵀ + b_hh)`, `c = σ(f)·c + σ(i)·tanh(g)`,
    /// `h = σ(o)·tanh(c)`. Results `y: [t, b, h]` (in input order), `h_n: [b, h]`, `c_n: [b, h]`. `torch.nn.LSTM`.
    pub struct Lstm {
        /// Whether time runs backwards.
        pub reverse: bool = false,
    }
}

impl OpDef for Lstm {
    const OPERANDS: &'static [&'static str] = &["gates", "h0", "c0", "w_hh", "b_hh?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype(1..5)?;
        operands.expect_rank(0, 3..=3)?;
        operands.expect_rank(1, 2..=2)?;
        let (gates, h0) = (operands.get(0), &operands.get(1).shape);
        let (time, batch, hidden) = (gates.shape[0].clone(), join(&gates.shape[1], &h0[0]), h0[1].clone());
        let all_gates = &hidden * &Dim::new(4);
        let state = [batch.clone(), hidden.clone()];
        operands.expect_shape(0, &[time.clone(), batch.clone(), all_gates.clone()])?;
        operands.expect_shape(1, &state)?;
        operands.expect_shape(2, &state)?;
        operands.expect_shape(3, &[all_gates.clone(), hidden.clone()])?;
        operands.expect_shape(4, &[all_gates])?;
        let state = TensorType::new(gates.dtype, state);
        Ok(vec![TensorType::new(gates.dtype, [time, batch, hidden]), state.clone(), state])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (gates, shape) = (input(inputs, 0), input(inputs, 1).shape());
        let (time, batch, hidden) = (gates.shape()[0], shape[0], shape[1]);
        let gates = gates.to_f64_vec();
        let (mut h, mut c) = (input(inputs, 1).to_f64_vec(), input(inputs, 2).to_f64_vec());
        let w = input(inputs, 3).to_f64_vec();
        let bias = optional(inputs, 4).map_or(vec![0.0; 4 * hidden], Tensor::to_f64_vec);
        let mut y = vec![0.0; time * batch * hidden];
        for step in 0..time {
            let t = if self.reverse { time - 1 - step } else { step };
            let before = h.clone();
            for at in 0..batch * hidden {
                let (b, unit) = (at / hidden, at % hidden);
                let gate = |n: usize| {
                    let row = n * hidden + unit;
                    let (w, h) = (&w[row * hidden..][..hidden], &before[b * hidden..][..hidden]);
                    let dot: f64 = w.iter().zip(h).map(|(w, h)| w * h).sum();
                    gates[(t * batch + b) * 4 * hidden + row] + dot + bias[row]
                };
                let sigmoid = |x: f64| UnaryFn::Sigmoid.apply_f64(x);
                c[at] = sigmoid(gate(1)) * c[at] + sigmoid(gate(0)) * gate(2).tanh();
                h[at] = sigmoid(gate(3)) * c[at].tanh();
            }
            y[t * batch * hidden..][..batch * hidden].copy_from_slice(&h);
        }
        let state = |values: &[f64]| Tensor::from_f64(types[0].dtype, shape, values);
        Ok(vec![Tensor::from_f64(types[0].dtype, &[time, batch, hidden], &y), state(&h), state(&c)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], _: &[&[usize]]) -> u64 {
        2 * inputs[0].map_or(0, elements) * last(inputs[1])
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Symbol;

    use super::*;
    use crate::Op;

    #[test]
    fn results_are_those_of_torch() {
        // `torch.nn.LSTM(8, 2)` in f64 with an identity `weight_ih`.
        let ramp = |n: u32, scale: f64, start: f64| (0..n).map(|i| f64::from(i) / scale + start).collect::<Vec<_>>();
        let gates = Tensor::from_slice(&[2, 2, 8], &ramp(32, 20.0, -0.7));
        let (h0, c0) = (Tensor::from_slice(&[2, 2], &[0.1, 0.2, 0.3, 0.4]), [-0.5, 0.5, 1.0, -1.0]);
        let (c0, w) = (Tensor::from_slice(&[2, 2], &c0), Tensor::from_slice(&[8, 2], &ramp(16, 10.0, -0.8)));
        let bias = Tensor::from_slice(&[8], &ramp(8, 4.0, -1.0));
        let inputs = [&gates, &h0, &c0, &w, &bias].map(Some);
        let out = Op::from(Lstm { reverse: false }).eval(&inputs).expect("they fit");
        let want = [
            -0.095764504445,
            0.083484223552,
            0.184660446245,
            -0.23023873787,
            0.009558881977,
            0.194827723365,
            0.273781873169,
            0.127690141868,
            0.013432709445,
            0.259097512341,
            0.367198385474,
            0.156056802615,
        ];
        let found: Vec<f64> = out[0].to_f64_vec().into_iter().chain(out[2].to_f64_vec()).collect();
        assert_eq!(found.len(), want.len());
        assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-11), "{found:?}");
        assert_eq!(out[0].to_f64_vec()[4..], out[1].to_f64_vec());
    }

    #[test]
    fn time_may_run_backwards() {
        // One unit whose gates saturate: i = f = o = 1 and g = tanh of its input, so c sums the inputs' tanh up.
        let step = |g: f64| [100.0, 100.0, g, 100.0];
        let gates = Tensor::from_slice(&[2, 1, 4], &[step(100.0), step(0.0)].concat());
        let zero = Tensor::from_slice(&[1, 1], &[0.0]);
        let w = Tensor::from_slice(&[4, 1], &[0.0; 4]);
        let run = |reverse| {
            let out = Op::from(Lstm { reverse }).eval(&[Some(&gates), Some(&zero), Some(&zero), Some(&w)]);
            out.expect("they fit").iter().map(Tensor::to_f64_vec).collect::<Vec<_>>()
        };
        let h = 1f64.tanh();
        assert_eq!(run(false), [vec![h, h], vec![h], vec![1.0]]);
        assert_eq!(run(true), [vec![h, 0.0], vec![h], vec![1.0]]);
    }

    #[test]
    fn the_state_sets_the_number_of_gates() {
        let (t, b) = (Dim::sym(Symbol(0)), Dim::sym(Symbol(1)));
        let gates = |n| TensorType::new(DType::F32, [t.clone(), b.clone(), Dim::new(n)]);
        let state = TensorType::new(DType::F32, [b.clone(), Dim::new(5)]);
        let w = TensorType::of_sizes(DType::F32, &[20, 5]);
        let infer =
            |n| Op::from(Lstm { reverse: false }).infer(&[Some(&gates(n)), Some(&state), Some(&state), Some(&w)]);
        let types = infer(20).expect("they fit");
        assert_eq!(
            types.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["f32[s0, s1, 5]", "f32[s1, 5]", "f32[s1, 5]"]
        );
        assert!(matches!(infer(15), Err(OpError::Shape(_))));
    }
}
