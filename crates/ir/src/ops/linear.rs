//! Matrix products.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    support::{broadcast, broadcast_positions, differ, elements, input, last, optional, sizes},
    unary::UnaryFn,
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

/// The activations: each is the function of its name. This is the one list of them; code that applies activations matches on it.
macro_rules! activations {
    ($($variant:ident = $word:literal),* $(,)?) => {
        word_enum! {
            /// The function that an epilogue applies to each element.
            #[derive(Default)]
            pub enum Activation {
                /// The identity.
                #[default]
                None = "none",
                $(#[doc = concat!("[`UnaryFn::", stringify!($variant), "`]")] $variant = $word),*
            }
        }

        impl Activation {
            /// The function itself; `None` for the identity.
            pub const fn function(self) -> Option<UnaryFn> {
                match self {
                    Activation::None => None,
                    $(Activation::$variant => Some(UnaryFn::$variant)),*
                }
            }
        }
    };
}

activations! {
    Relu = "relu",
    Relu6 = "relu6",
    Gelu = "gelu",
    GeluTanh = "gelu_tanh",
    Silu = "silu",
    Sigmoid = "sigmoid",
    Tanh = "tanh",
    Hardswish = "hardswish",
    Hardsigmoid = "hardsigmoid",
}

impl Activation {
    /// The activation that is `f`, if an epilogue can apply it.
    pub fn from_function(f: UnaryFn) -> Option<Activation> {
        Activation::ALL.iter().copied().find(|a| a.function() == Some(f))
    }

    /// The value at `x`.
    pub fn apply_f64(self, x: f64) -> f64 {
        self.function().map_or(x, |f| f.apply_f64(x))
    }
}

/// The epilogue of one accumulated element: bias, activation and residual in the stated order.
pub(crate) fn epilogue(act: Activation, act_first: bool, sum: f64, residual: Option<f64>) -> f64 {
    match residual {
        Some(r) if act_first => act.apply_f64(sum) + r,
        r => act.apply_f64(sum + r.unwrap_or(0.0)),
    }
}

attrs! {
    /// Matrix product over the last two axes, the others broadcast: `[.., m, k] · [.., k, n]`, `torch.matmul` for
    /// operands with at least two axes.
    pub struct Matmul {
        /// Whether `b` is `[.., n, k]`.
        pub transpose_b: bool = false,
    }
}

attrs! {
    /// `act(x·Wᵀ + bias + residual)`, or `act(x·Wᵀ + bias) + residual`, for `x: [.., k]`, `W: [n, k]`, `bias: [n]`,
    /// `residual: [.., n]`: `torch.nn.functional.linear` with an epilogue.
    pub struct Linear {
        /// Activation.
        pub act: Activation = Activation::None,
        /// Whether the activation comes before the residual is added.
        pub act_first: bool = false,
    }
}

impl OpDef for Matmul {
    const OPERANDS: &'static [&'static str] = &["a", "b"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| d != DType::Bool, "a number")?;
        operands.expect_same_dtype([1])?;
        operands.expect_rank(0, 2..)?;
        operands.expect_rank(1, 2..)?;
        let (a, b) = (&operands.get(0).shape, &operands.get(1).shape);
        let (la, lb) = (a.len(), b.len());
        let (k, n) = if self.transpose_b { (&b[lb - 1], &b[lb - 2]) } else { (&b[lb - 2], &b[lb - 1]) };
        if differ(&a[la - 1], k) {
            return Err(OpError::Shape(format!("inner sizes differ: {} and {k}", a[la - 1])));
        }
        let mut shape = broadcast(&a[..la - 2], &b[..lb - 2])?;
        shape.extend([a[la - 2].clone(), n.clone()]);
        Ok(vec![TensorType::new(operands.get(0).dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let rank = shape.len();
        let (m, n, k) = (shape[rank - 2], shape[rank - 1], a.shape()[a.shape().len() - 1]);
        let batch = &shape[..rank - 2];
        let offsets = |t: &Tensor| broadcast_positions(&t.shape()[..t.shape().len() - 2], batch);
        let (bk, bn) = if self.transpose_b { (1, k) } else { (n, 1) };
        let pairs: Vec<(usize, usize)> = offsets(a).into_iter().zip(offsets(b)).collect();
        let places = pairs
            .into_iter()
            .flat_map(|(ba, bb)| (0..m * n).map(move |at| (ba * m * k + at / n * k, bb * n * k + at % n * bn)));
        let dtype = types[0].dtype;
        Ok(vec![if dtype.is_float() {
            let (va, vb) = (a.to_f64_vec(), b.to_f64_vec());
            let dot = |(i, j): (usize, usize)| (0..k).map(|l| va[i + l] * vb[j + l * bk]).sum::<f64>();
            Tensor::from_f64(dtype, &shape, &places.map(dot).collect::<Vec<_>>())
        } else {
            let (va, vb) = (a.to_i64_vec(), b.to_i64_vec());
            let dot = |(i, j): (usize, usize)| {
                (0..k).fold(0i64, |sum, l| sum.wrapping_add(va[i + l].wrapping_mul(vb[j + l * bk])))
            };
            Tensor::from_i64(dtype, &shape, &places.map(dot).collect::<Vec<_>>())
        }])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        2 * elements(outputs[0]) * last(inputs[0])
    }
}

impl OpDef for Linear {
    const OPERANDS: &'static [&'static str] = &["x", "weight", "bias?", "residual?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype(1..4)?;
        operands.expect_rank(0, 1..)?;
        operands.expect_rank(1, 2..=2)?;
        let (x, w) = (operands.get(0), &operands.get(1).shape);
        let (k, lead) = x.shape.split_last().expect("rank is at least 1");
        if differ(k, &w[1]) {
            return Err(OpError::Shape(format!("x has {k} features, the weight takes {}", w[1])));
        }
        let mut shape = lead.to_vec();
        shape.push(w[0].clone());
        operands.expect_shape(2, &w[..1])?;
        operands.expect_shape(3, &shape)?;
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let (n, k) = (w.shape()[0], w.shape()[1]);
        let (x, w) = (x.to_f64_vec(), w.to_f64_vec());
        let bias = optional(inputs, 2).map(Tensor::to_f64_vec);
        let residual = optional(inputs, 3).map(Tensor::to_f64_vec);
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        let mut out = Vec::with_capacity(rows * n);
        for i in 0..rows {
            let row = &x[i * k..(i + 1) * k];
            for j in 0..n {
                let dot: f64 = row.iter().zip(&w[j * k..(j + 1) * k]).map(|(x, w)| x * w).sum();
                let sum = dot + bias.as_ref().map_or(0.0, |b| b[j]);
                out.push(epilogue(self.act, self.act_first, sum, residual.as_ref().map(|r| r[i * n + j])));
            }
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, &shape, &out)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        2 * elements(outputs[0]) * last(inputs[0])
    }
}
