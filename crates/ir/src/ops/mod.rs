//! The closed set of ops: one file per family, one line per op in the table below.
//!
//! A family's file holds, in this order: what the op computes, its attributes, inference (which is also what the
//! verifier checks) and the reference evaluation. Everything repetitive is generated from the table.

mod arithmetic;
mod attention;
mod bessel;
mod conv;
mod conv_pair;
mod create;
mod cumulate;
mod elementwise;
mod fused;
mod index;
mod index_put;
mod linear;
mod lstm;
mod matrix;
mod norm;
mod orthogonal;
mod pool;
mod quantized;
mod reduce;
mod resize;
mod rotary;
mod shape;
mod softmax;
mod sort;
mod special;
mod support;
mod unary;
mod winograd;

use regraft_tensor::{Tensor, TensorError};

pub use self::{
    attention::{Attention, HeadsLayout},
    conv::{Conv, ConvTranspose, SpatialLayout, conv_out_size},
    conv_pair::ConvPair,
    create::{Full, Iota, SizeOf},
    cumulate::{Cumulate, CumulateFn},
    elementwise::{Binary, BinaryFn, Cast, Compare, CompareFn, Select, Unary},
    fused::{Fused, FusedFn, FusedStep},
    index::{Embedding, Gather, Index},
    index_put::{IndexPut, PutFn},
    linear::{Activation, Linear, Matmul},
    lstm::Lstm,
    matrix::{Factor, FactorFn, Householder, SolveTriangular},
    norm::{BatchNorm, GroupNorm, LayerNorm, RmsNorm},
    pool::{AdaptiveAvgPool, AvgPool, MaxPool, adaptive_window, pool_out_size},
    quantized::{QuantLinear, Quantize, WeightFormat},
    reduce::{ArgReduce, ArgReduceFn, Cumsum, Reduce, ReduceFn},
    resize::{Resize, ResizeMode},
    rotary::Rotary,
    shape::{Concat, Expand, Flip, Pad, PadMode, Permute, Reshape, Slice, infer_reshape},
    softmax::Softmax,
    sort::Sort,
    support::{Operands, broadcast, broadcast_types},
    unary::UnaryFn,
    winograd::WinogradFilter,
};
use crate::{
    EvalError, OpError, TensorType,
    attr::{AttrValue, Attrs},
};

/// What an op family implements.
pub trait OpDef: Attrs {
    /// Names of the operands; a trailing `?` marks an optional one, `...` any number of them.
    const OPERANDS: &'static [&'static str];

    /// The types of the results. Checks operands and attributes as far as constants tell; sizes that are symbolic are
    /// checked when a run binds them.
    ///
    /// # Errors
    /// When the op does not take these operands.
    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError>;

    /// The results by the plain formula, accumulated in f64 and rounded once. `self` is bound: no symbols are left in
    /// attributes; `types` are the inferred types of the results, all sizes known.
    ///
    /// # Errors
    /// When an index is out of range or a tensor is too large for memory.
    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError>;

    /// Floating-point operations for operands and results of these sizes, a multiplication and an addition as two; epilogues
    /// do not count. Unless an op says otherwise, one for each element of the results.
    fn flops(&self, _inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        outputs.iter().map(|shape| support::elements(shape)).sum()
    }
}

macro_rules! define_ops {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// An operation with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $($(#[$doc])* $variant($variant),)* }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op { Op::$variant(op) }
        })*

        impl Op {
            /// Names of all ops.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name of the op in text.
            pub const fn name(&self) -> &'static str {
                match self { $(Op::$variant(_) => $name),* }
            }

            /// Names of the operands, as in [`OpDef::OPERANDS`].
            pub const fn operands(&self) -> &'static [&'static str] {
                match self { $(Op::$variant(_) => <$variant as OpDef>::OPERANDS),* }
            }

            /// Attributes that differ from their defaults.
            pub fn attrs(&self) -> Vec<(&'static str, AttrValue)> {
                match self { $(Op::$variant(op) => op.fields()),* }
            }

            /// The op called `name` with these attributes; `None` for an unknown name.
            ///
            /// # Errors
            /// The name of an attribute that is missing, unknown or of the wrong kind.
            pub fn from_text(name: &str, mut attrs: Vec<(String, AttrValue)>) -> Option<Result<Op, String>> {
                let op = match name {
                    $($name => $variant::take_fields(&mut attrs).map(Op::$variant),)*
                    _ => return None,
                };
                Some(op.map_err(str::to_owned).and_then(|op| match attrs.pop() {
                    Some((unknown, _)) => Err(unknown),
                    None => Ok(op),
                }))
            }

            /// The types of the results for operands of these types.
            ///
            /// # Errors
            /// When the op does not take these operands.
            pub fn infer(&self, inputs: &[Option<&TensorType>]) -> Result<Vec<TensorType>, OpError> {
                let operands = Operands::new(self.operands(), inputs)?;
                match self { $(Op::$variant(op) => op.infer(&operands)),* }
            }

            /// The op with every symbol in its attributes replaced by its value.
            ///
            /// # Errors
            /// When a dimension has no value.
            pub fn bind(&self, symbols: &[i64]) -> Result<Op, TensorError> {
                Ok(match self { $(Op::$variant(op) => Op::$variant(op.bind(symbols)?)),* })
            }

            /// Floating-point operations; see [`OpDef::flops`].
            pub fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
                match self { $(Op::$variant(op) => op.flops(inputs, outputs)),* }
            }

            /// Evaluates a bound op; see [`OpDef::eval`].
            ///
            /// # Errors
            /// When the operands do not fit, a value is out of range, or the system does not give the memory.
            pub fn eval(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, EvalError> {
                let types: Vec<Option<TensorType>> =
                    inputs.iter().map(|t| t.map(|t| TensorType::of_sizes(t.dtype(), t.shape()))).collect();
                let out = self.infer(&types.iter().map(Option::as_ref).collect::<Vec<_>>())?;
                support::ask_for_memory(inputs, &out)?;
                match self { $(Op::$variant(op) => op.eval(inputs, &out)),* }
            }
        }
    };
}

impl Op {
    /// Whether the result is another view of the operand's memory: the same elements, found by other strides.
    pub const fn is_view(&self) -> bool {
        matches!(self, Op::Reshape(_) | Op::Permute(_) | Op::Expand(_) | Op::Slice(_))
    }
}

define_ops! {
    /// A function of one value, element by element.
    Unary = "unary",
    /// A function of two values, element by element, with broadcasting.
    Binary = "binary",
    /// A comparison, element by element, with broadcasting.
    Compare = "compare",
    /// `cond ? a : b`, element by element, with broadcasting.
    Select = "select",
    /// Conversion to another dtype.
    Cast = "cast",
    /// Several elementwise ops in one pass over memory.
    Fused = "fused",
    /// Matrix product of two computed values.
    Matmul = "matmul",
    /// `x·Wᵀ + b`, with an epilogue.
    Linear = "linear",
    /// A weight as small integers with scales.
    Quantize = "quantize",
    /// `x·Wᵀ + b` with a weight of small integers, with an epilogue.
    QuantLinear = "quant_linear",
    /// Convolution, with an epilogue.
    Conv = "conv",
    /// Filters of a convolution by Winograd's algorithm.
    WinogradFilter = "winograd_filter",
    /// A convolution of single pixels and the depthwise one behind it.
    ConvPair = "conv_pair",
    /// Transposed convolution.
    ConvTranspose = "conv_transpose",
    /// Batch normalization by given statistics.
    BatchNorm = "batch_norm",
    /// Layer normalization.
    LayerNorm = "layer_norm",
    /// Root-mean-square normalization.
    RmsNorm = "rms_norm",
    /// Group normalization.
    GroupNorm = "group_norm",
    /// Softmax, or its logarithm, over one axis.
    Softmax = "softmax",
    /// Rotary position embedding.
    Rotary = "rotary",
    /// Scaled dot-product attention.
    Attention = "attention",
    /// Rows of a table by index.
    Embedding = "embedding",
    /// Elements along an axis by index.
    Gather = "gather",
    /// Indexing by several index tensors at once.
    Index = "index",
    /// Elements written at computed positions.
    IndexPut = "index_put",
    /// Elements in order along an axis, and where they were.
    Sort = "sort",
    /// Maximum over sliding windows.
    MaxPool = "max_pool",
    /// Mean over sliding windows.
    AvgPool = "avg_pool",
    /// Mean over a fixed number of windows.
    AdaptiveAvgPool = "adaptive_avg_pool",
    /// Spatial resampling.
    Resize = "resize",
    /// A reduction over axes.
    Reduce = "reduce",
    /// Position of the greatest or least element.
    ArgReduce = "arg_reduce",
    /// Running sum along an axis.
    Cumsum = "cumsum",
    /// Running product, extremum and the like along an axis.
    Cumulate = "cumulate",
    /// A factorization of matrices.
    Factor = "factor",
    /// The solution of triangular systems.
    SolveTriangular = "solve_triangular",
    /// The product of reflections.
    Householder = "householder",
    /// The recurrent part of one direction of one LSTM layer.
    Lstm = "lstm",
    /// The same elements under another shape.
    Reshape = "reshape",
    /// Axes in another order.
    Permute = "permute",
    /// Axes of size 1 repeated.
    Expand = "expand",
    /// A range of an axis.
    Slice = "slice",
    /// Values joined along an axis.
    Concat = "concat",
    /// Elements added around.
    Pad = "pad",
    /// Axes reversed.
    Flip = "flip",
    /// A literal, repeated.
    Full = "full",
    /// `start, start + step, ...`.
    Iota = "iota",
    /// The value of a dimension expression.
    SizeOf = "size_of",
}
