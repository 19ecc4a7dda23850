//! The operators that are known: one file per family, one line per operator in the tables below.
//!
//! An in-place form (`relu_`) needs no line of its own: it is the plain form, written back.

mod activation;
mod attention;
pub(crate) mod complex;
mod conv;
mod convert;
mod create;
mod diagonal;
mod distance;
mod elementwise;
mod fft;
mod forms;
mod functions;
mod grid;
mod index;
mod linear;
mod loss;
mod lstm;
mod norm;
mod order;
mod pool;
mod product;
mod reduce;
mod resample;
mod resize;
mod scatter;
mod shape;
mod softmax;
mod sym;
mod windows;

use std::{collections::HashMap, sync::OnceLock};

use regraft_ir::ops::{BinaryFn, CompareFn, CumulateFn, ReduceFn, UnaryFn};
use regraft_tensor::Dim;

use super::args::{Cx, Res, ValueId, wrong};

/// How an operator is translated.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// One result in memory of its own.
    One(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// As `One`, with half-precision tensors computed in f32 and rounded once: for what takes several steps here and is
    /// one kernel in PyTorch.
    Wide(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// As `Many`, likewise.
    WideMany(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// Several results; those that are not computed are `None`.
    Many(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// One result that sees the memory of the first argument.
    View(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// One result that may see the memory of the first argument: strides tell.
    MaybeView(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// Several results that see the memory of the first argument.
    Views(fn(&mut Cx<'_, '_>) -> Res<Vec<ValueId>>),
    /// Several results, each of which sees the memory of one tensor of the first argument, a list.
    ViewsOfEach(fn(&mut Cx<'_, '_>) -> Res<Vec<ValueId>>),
    /// Arithmetic on sizes.
    Dim(fn(&mut Cx<'_, '_>) -> Res<Dim>),
    /// An inner graph that runs as if it stood in the place of the call.
    Inline,
    /// Nothing to compute.
    Drop,
    /// Known, and not supported: what it is, and what to do.
    Refuse(&'static str, &'static str),
}

impl Handler {
    /// All results, for a handler that gives tensors.
    pub(crate) fn values(self, cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
        match self {
            One(f) | Wide(f) | View(f) | MaybeView(f) => Ok(vec![f(cx)?]),
            Views(f) | ViewsOfEach(f) => f(cx),
            Many(_) | WideMany(_) | Sym(_) | Inline | Drop | Refuse(..) => wrong("expected an operator on tensors"),
        }
    }

    /// Whether a result may see the memory of an argument.
    pub(crate) const fn may_view(self) -> bool {
        matches!(self, View(_) | MaybeView(_) | Views(_))
    }
}

/// One part of a complex value.
pub(crate) fn part_of_pair(cx: &mut Cx<'_, '_>, v: ValueId, part: i64) -> Res<ValueId> {
    complex::part(cx, v, part)
}

/// A known operator.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) handler: Handler,
    /// Whether it writes its result to its first argument.
    pub(crate) in_place: bool,
}

use Handler::{Dim as Sym, Drop, Inline, Many, MaybeView, One, Refuse, View, Views, ViewsOfEach, Wide, WideMany};

const DATA: &str = "a result whose size depends on the values of a tensor";
const DATA_HELP: &str = "compute it outside of the model, or use where() and masks of a fixed size";
const RANDOM: &str = "a random number generator";
const RANDOM_HELP: &str = "give the random numbers as an input of forward()";

macro_rules! unary {
    ($f:ident) => {
        One(|cx| elementwise::unary(cx, UnaryFn::$f))
    };
}
macro_rules! binary {
    ($f:ident) => {
        One(|cx| elementwise::binary(cx, BinaryFn::$f))
    };
}
macro_rules! float2 {
    ($f:ident) => {
        Wide(|cx| functions::binary_float(cx, BinaryFn::$f))
    };
}
macro_rules! compare {
    ($f:ident) => {
        One(|cx| elementwise::compare(cx, CompareFn::$f))
    };
}
macro_rules! logical {
    ($f:ident) => {
        One(|cx| elementwise::logical(cx, BinaryFn::$f))
    };
}

/// Operators of ATen, without `torch.ops.aten.`.
const ATEN: &[(&str, Handler)] = &[
    // Arithmetic.
    ("add.Tensor", One(elementwise::add)),
    ("add.Scalar", One(elementwise::add)),
    ("sub.Tensor", One(elementwise::sub)),
    ("sub.Scalar", One(elementwise::sub)),
    ("subtract.Tensor", One(elementwise::sub)),
    ("rsub.Tensor", One(elementwise::rsub)),
    ("rsub.Scalar", One(elementwise::rsub)),
    ("mul.Tensor", binary!(Mul)),
    ("mul.Scalar", binary!(Mul)),
    ("multiply.Tensor", binary!(Mul)),
    ("div.Tensor", One(elementwise::div)),
    ("div.Scalar", One(elementwise::div)),
    ("div.Tensor_mode", One(elementwise::div)),
    ("div.Scalar_mode", One(elementwise::div)),
    ("divide.Tensor", One(elementwise::div)),
    ("true_divide.Tensor", One(elementwise::div)),
    ("floor_divide.default", binary!(FloorDiv)),
    ("floor_divide.Scalar", binary!(FloorDiv)),
    ("floor_divide.Tensor", binary!(FloorDiv)),
    ("remainder.Tensor", binary!(Rem)),
    ("remainder.Scalar", binary!(Rem)),
    ("remainder.Scalar_Tensor", binary!(Rem)),
    ("fmod.Tensor", binary!(Fmod)),
    ("fmod.Scalar", binary!(Fmod)),
    ("maximum.default", binary!(Max)),
    ("minimum.default", binary!(Min)),
    ("max.other", binary!(Max)),
    ("min.other", binary!(Min)),
    ("pow.Tensor_Scalar", One(elementwise::pow)),
    ("pow.Tensor_Tensor", One(elementwise::pow)),
    ("pow.Scalar", One(elementwise::pow)),
    ("square.default", One(elementwise::square)),
    ("addcmul.default", Wide(elementwise::addcmul)),
    ("addcdiv.default", Wide(elementwise::addcdiv)),
    ("lerp.Scalar", Wide(elementwise::lerp)),
    ("lerp.Tensor", Wide(elementwise::lerp)),
    ("logaddexp.default", Wide(|cx| functions::log_add_exp(cx, false))),
    ("logaddexp2.default", Wide(|cx| functions::log_add_exp(cx, true))),
    ("atan2.default", float2!(Atan2)),
    ("arctan2.default", float2!(Atan2)),
    ("hypot.default", float2!(Hypot)),
    ("copysign.Tensor", float2!(Copysign)),
    ("copysign.Scalar", float2!(Copysign)),
    ("special_zeta.default", float2!(Zeta)),
    ("special_zeta.other_scalar", float2!(Zeta)),
    ("special_zeta.self_scalar", float2!(Zeta)),
    ("ldexp.Tensor", One(functions::ldexp)),
    ("xlogy.Tensor", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log))),
    ("xlogy.Scalar_Self", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log))),
    ("xlogy.Scalar_Other", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log))),
    ("special_xlog1py.default", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log1p))),
    ("special_xlog1py.self_scalar", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log1p))),
    ("special_xlog1py.other_scalar", Wide(|cx| functions::x_log_y(cx, UnaryFn::Log1p))),
    ("heaviside.default", One(functions::heaviside)),
    ("fmax.default", One(|cx| functions::number_extreme(cx, BinaryFn::Max))),
    ("fmin.default", One(|cx| functions::number_extreme(cx, BinaryFn::Min))),
    ("float_power.Tensor_Tensor", One(functions::float_power)),
    ("float_power.Tensor_Scalar", One(functions::float_power)),
    ("float_power.Scalar", One(functions::float_power)),
    ("gcd.default", binary!(Gcd)),
    ("lcm.default", One(functions::lcm)),
    ("bitwise_left_shift.Tensor", binary!(Shl)),
    ("bitwise_left_shift.Tensor_Scalar", binary!(Shl)),
    ("bitwise_left_shift.Scalar_Tensor", binary!(Shl)),
    ("bitwise_right_shift.Tensor", binary!(Shr)),
    ("bitwise_right_shift.Tensor_Scalar", binary!(Shr)),
    ("bitwise_right_shift.Scalar_Tensor", binary!(Shr)),
    ("__lshift__.Tensor", binary!(Shl)),
    ("__lshift__.Scalar", binary!(Shl)),
    ("__rshift__.Tensor", binary!(Shr)),
    ("__rshift__.Scalar", binary!(Shr)),
    // Functions of one value.
    ("neg.default", unary!(Neg)),
    ("negative.default", unary!(Neg)),
    ("abs.default", unary!(Abs)),
    ("absolute.default", unary!(Abs)),
    ("sign.default", unary!(Sign)),
    ("sgn.default", unary!(Sign)),
    ("exp.default", unary!(Exp)),
    ("exp2.default", Wide(elementwise::exp2)),
    ("expm1.default", unary!(Expm1)),
    ("log.default", unary!(Log)),
    ("log2.default", Wide(elementwise::log2)),
    ("log10.default", Wide(elementwise::log10)),
    ("log1p.default", unary!(Log1p)),
    ("sqrt.default", unary!(Sqrt)),
    ("rsqrt.default", unary!(Rsqrt)),
    ("reciprocal.default", unary!(Reciprocal)),
    ("sin.default", unary!(Sin)),
    ("cos.default", unary!(Cos)),
    ("tan.default", unary!(Tan)),
    ("tanh.default", unary!(Tanh)),
    ("erf.default", unary!(Erf)),
    ("special_erf.default", unary!(Erf)),
    ("erfc.default", unary!(Erfc)),
    ("sigmoid.default", unary!(Sigmoid)),
    ("special_expit.default", unary!(Sigmoid)),
    ("floor.default", unary!(Floor)),
    ("ceil.default", unary!(Ceil)),
    ("round.default", unary!(Round)),
    ("trunc.default", unary!(Trunc)),
    ("fix.default", unary!(Trunc)),
    ("frac.default", One(elementwise::frac)),
    ("asin.default", unary!(Asin)),
    ("arcsin.default", unary!(Asin)),
    ("acos.default", unary!(Acos)),
    ("arccos.default", unary!(Acos)),
    ("atan.default", unary!(Atan)),
    ("arctan.default", unary!(Atan)),
    ("sinh.default", unary!(Sinh)),
    ("cosh.default", unary!(Cosh)),
    ("asinh.default", unary!(Asinh)),
    ("arcsinh.default", unary!(Asinh)),
    ("acosh.default", unary!(Acosh)),
    ("arccosh.default", unary!(Acosh)),
    ("atanh.default", unary!(Atanh)),
    ("arctanh.default", unary!(Atanh)),
    ("erfinv.default", unary!(Erfinv)),
    ("special_erfinv.default", unary!(Erfinv)),
    ("special_erfc.default", unary!(Erfc)),
    ("special_erfcx.default", unary!(Erfcx)),
    ("special_ndtri.default", unary!(Ndtri)),
    ("lgamma.default", unary!(Lgamma)),
    ("special_gammaln.default", unary!(Lgamma)),
    ("digamma.default", unary!(Digamma)),
    ("special_digamma.default", unary!(Digamma)),
    ("special_psi.default", unary!(Digamma)),
    ("i0.default", unary!(BesselI0)),
    ("special_i0.default", unary!(BesselI0)),
    ("special_modified_bessel_i0.default", unary!(BesselI0)),
    ("special_i1.default", unary!(BesselI1)),
    ("special_modified_bessel_i1.default", unary!(BesselI1)),
    ("special_expm1.default", unary!(Expm1)),
    ("special_exp2.default", Wide(elementwise::exp2)),
    ("special_log1p.default", unary!(Log1p)),
    ("special_i0e.default", One(|cx| functions::scaled_bessel(cx, UnaryFn::BesselI0))),
    ("special_i1e.default", One(|cx| functions::scaled_bessel(cx, UnaryFn::BesselI1))),
    ("special_entr.default", Wide(functions::entr)),
    ("special_ndtr.default", Wide(functions::ndtr)),
    ("special_log_ndtr.default", Wide(functions::log_ndtr)),
    ("special_sinc.default", Wide(functions::sinc)),
    ("sinc.default", Wide(functions::sinc)),
    ("polygamma.default", One(functions::polygamma)),
    ("special_polygamma.default", One(functions::polygamma)),
    ("mvlgamma.default", Wide(functions::mvlgamma)),
    ("special_multigammaln.default", Wide(functions::mvlgamma)),
    ("round.decimals", One(functions::round_decimals)),
    ("special_round.default", One(functions::round_decimals)),
    ("deg2rad.default", Wide(|cx| functions::scaled_angle(cx, std::f64::consts::PI / 180.0))),
    ("rad2deg.default", Wide(|cx| functions::scaled_angle(cx, 180.0 / std::f64::consts::PI))),
    ("angle.default", One(functions::angle)),
    ("signbit.default", One(functions::signbit)),
    ("isposinf.default", One(|cx| functions::is_infinity(cx, f64::INFINITY))),
    ("isneginf.default", One(|cx| functions::is_infinity(cx, f64::NEG_INFINITY))),
    ("isreal.default", One(functions::isreal)),
    ("isclose.default", Wide(functions::isclose)),
    ("isnan.default", One(elementwise::isnan)),
    ("isinf.default", One(elementwise::isinf)),
    ("isfinite.default", One(elementwise::isfinite)),
    ("nan_to_num.default", One(elementwise::nan_to_num)),
    ("logit.default", Wide(elementwise::logit)),
    // Comparisons and logic.
    ("eq.Tensor", compare!(Eq)),
    ("eq.Scalar", compare!(Eq)),
    ("ne.Tensor", compare!(Ne)),
    ("ne.Scalar", compare!(Ne)),
    ("lt.Tensor", compare!(Lt)),
    ("lt.Scalar", compare!(Lt)),
    ("le.Tensor", compare!(Le)),
    ("le.Scalar", compare!(Le)),
    ("gt.Tensor", compare!(Gt)),
    ("gt.Scalar", compare!(Gt)),
    ("ge.Tensor", compare!(Ge)),
    ("ge.Scalar", compare!(Ge)),
    ("greater.Tensor", compare!(Gt)),
    ("less.Tensor", compare!(Lt)),
    ("logical_and.default", logical!(And)),
    ("logical_or.default", logical!(Or)),
    ("logical_xor.default", logical!(Xor)),
    ("logical_not.default", One(elementwise::logical_not)),
    ("bitwise_and.Tensor", binary!(And)),
    ("bitwise_and.Scalar", binary!(And)),
    ("bitwise_or.Tensor", binary!(Or)),
    ("bitwise_or.Scalar", binary!(Or)),
    ("bitwise_xor.Tensor", binary!(Xor)),
    ("bitwise_xor.Scalar", binary!(Xor)),
    ("bitwise_not.default", One(elementwise::bitwise_not)),
    ("__and__.Tensor", binary!(And)),
    ("__and__.Scalar", binary!(And)),
    ("__or__.Tensor", binary!(Or)),
    ("__or__.Scalar", binary!(Or)),
    ("__xor__.Tensor", binary!(Xor)),
    ("__xor__.Scalar", binary!(Xor)),
    ("where.self", One(elementwise::where_)),
    ("where.ScalarOther", One(elementwise::where_)),
    ("where.ScalarSelf", One(elementwise::where_)),
    ("where.Scalar", One(elementwise::where_)),
    ("masked_fill.Scalar", One(elementwise::masked_fill)),
    ("masked_fill.Tensor", One(elementwise::masked_fill)),
    ("clamp.default", One(elementwise::clamp)),
    ("clamp.Tensor", One(elementwise::clamp)),
    ("clip.default", One(elementwise::clamp)),
    ("clamp_min.default", One(elementwise::clamp)),
    ("clamp_min.Tensor", One(elementwise::clamp)),
    ("clamp_max.default", One(elementwise::clamp)),
    ("clamp_max.Tensor", One(elementwise::clamp)),
    // Activations.
    ("relu.default", unary!(Relu)),
    ("relu6.default", unary!(Relu6)),
    ("hardtanh.default", One(activation::hardtanh)),
    ("gelu.default", One(activation::gelu)),
    ("silu.default", unary!(Silu)),
    ("hardswish.default", unary!(Hardswish)),
    ("hardsigmoid.default", unary!(Hardsigmoid)),
    ("leaky_relu.default", One(activation::leaky_relu)),
    ("elu.default", Wide(activation::elu)),
    ("selu.default", Wide(activation::selu)),
    ("celu.default", Wide(activation::celu)),
    ("mish.default", Wide(activation::mish)),
    ("softplus.default", Wide(activation::softplus)),
    ("log_sigmoid.default", Wide(activation::log_sigmoid)),
    ("log_sigmoid_forward.default", WideMany(|cx| Ok(vec![Some(activation::log_sigmoid(cx)?), None]))),
    ("prelu.default", One(activation::prelu)),
    ("_prelu_kernel.default", One(activation::prelu)),
    ("glu.default", Wide(activation::glu)),
    ("threshold.default", One(activation::threshold)),
    ("hardshrink.default", One(activation::hardshrink)),
    ("softshrink.default", Wide(activation::softshrink)),
    ("tanhshrink.default", Wide(activation::tanhshrink)),
    ("softsign.default", One(activation::softsign)),
    ("rrelu.default", One(activation::rrelu)),
    ("rrelu_with_noise.default", One(activation::rrelu)),
    ("rrelu_with_noise_functional.default", Many(|cx| Ok(vec![Some(activation::rrelu(cx)?), None]))),
    // Matrix products.
    ("linear.default", One(linear::linear)),
    ("addmm.default", One(linear::addmm)),
    ("mm.default", One(linear::mm)),
    ("bmm.default", One(linear::bmm)),
    ("baddbmm.default", One(linear::baddbmm)),
    ("matmul.default", One(linear::matmul)),
    ("__matmul__.default", One(linear::matmul)),
    ("mv.default", One(linear::mv)),
    ("dot.default", One(linear::dot)),
    ("vdot.default", One(linear::dot)),
    ("outer.default", One(linear::outer)),
    ("einsum.default", One(product::einsum)),
    ("addbmm.default", Wide(product::addbmm)),
    ("addmv.default", Wide(product::addmv)),
    ("addr.default", Wide(product::addr)),
    ("ger.default", One(linear::outer)),
    ("inner.default", One(product::inner)),
    ("tensordot.default", One(product::tensordot)),
    ("bilinear.default", Wide(product::bilinear)),
    ("linalg_vecdot.default", Wide(product::vecdot)),
    ("linalg_multi_dot.default", One(product::multi_dot)),
    ("chain_matmul.default", One(product::multi_dot)),
    ("linalg_matmul.default", One(linear::matmul)),
    ("kron.default", One(product::kron)),
    ("cross.default", Wide(distance::cross)),
    ("linalg_cross.default", Wide(distance::cross)),
    // Convolutions.
    ("conv1d.default", One(conv::conv)),
    ("conv1d.padding", One(conv::conv)),
    ("conv2d.default", One(conv::conv)),
    ("conv2d.padding", One(conv::conv)),
    ("conv3d.default", One(conv::conv)),
    ("conv3d.padding", One(conv::conv)),
    ("convolution.default", One(conv::convolution)),
    ("_convolution.default", One(conv::convolution)),
    ("conv_transpose1d.default", One(conv::conv_transpose)),
    ("conv_transpose2d.input", One(conv::conv_transpose)),
    ("conv_transpose3d.input", One(conv::conv_transpose)),
    // Normalisations.
    ("batch_norm.default", One(norm::batch_norm)),
    ("native_batch_norm.default", Many(norm::native_batch_norm)),
    ("_native_batch_norm_legit.default", Many(norm::native_batch_norm)),
    ("_native_batch_norm_legit.no_stats", Many(norm::batch_norm_no_stats)),
    ("_native_batch_norm_legit_no_training.default", Many(norm::native_batch_norm)),
    (
        "_batch_norm_no_update.default",
        Many(|cx| {
            norm::native_batch_norm(cx).map(|mut v| {
                v.push(None);
                v
            })
        }),
    ),
    ("instance_norm.default", One(norm::instance_norm)),
    ("group_norm.default", One(norm::group_norm)),
    ("native_group_norm.default", WideMany(norm::native_group_norm)),
    ("layer_norm.default", One(norm::layer_norm)),
    ("native_layer_norm.default", WideMany(norm::native_layer_norm)),
    ("rms_norm.default", One(norm::rms_norm)),
    ("_weight_norm.default", Wide(norm::weight_norm)),
    ("_fused_rms_norm.default", Many(|cx| Ok(vec![Some(norm::rms_norm(cx)?), None]))),
    ("linalg_vector_norm.default", Wide(reduce::vector_norm)),
    ("norm.Scalar", Wide(reduce::vector_norm)),
    ("norm.ScalarOpt_dim", Wide(reduce::vector_norm)),
    ("norm.ScalarOpt_dim_dtype", Wide(reduce::vector_norm)),
    ("linalg_norm.default", Wide(distance::linalg_norm)),
    ("linalg_norm.ord_str", Wide(distance::linalg_norm)),
    ("linalg_matrix_norm.default", Wide(distance::matrix_norm)),
    ("linalg_matrix_norm.str_ord", Wide(distance::matrix_norm)),
    ("frobenius_norm.dim", Wide(reduce::vector_norm)),
    ("cosine_similarity.default", Wide(distance::cosine_similarity)),
    ("pairwise_distance.default", Wide(distance::pairwise_distance)),
    ("dist.default", Wide(distance::dist)),
    ("cdist.default", Wide(distance::cdist)),
    ("_cdist_forward.default", Wide(distance::cdist)),
    ("pdist.default", Wide(distance::pdist)),
    ("_pdist_forward.default", Wide(distance::pdist)),
    ("renorm.default", Wide(distance::renorm)),
    // Attention and softmax.
    ("scaled_dot_product_attention.default", One(attention::sdpa)),
    ("_scaled_dot_product_flash_attention_for_cpu.default", Many(|cx| attention::sdpa_many(cx, 2))),
    ("_scaled_dot_product_flash_attention.default", Many(|cx| attention::sdpa_many(cx, 9))),
    ("_scaled_dot_product_efficient_attention.default", Many(|cx| attention::sdpa_many(cx, 4))),
    ("_scaled_dot_product_cudnn_attention.default", Many(|cx| attention::sdpa_many(cx, 9))),
    ("_scaled_dot_product_attention_math.default", Many(|cx| attention::sdpa_many(cx, 2))),
    ("_scaled_dot_product_attention_math_for_mps.default", Many(|cx| attention::sdpa_many(cx, 2))),
    ("softmax.int", One(softmax::softmax)),
    ("_softmax.default", One(softmax::softmax)),
    ("special_softmax.int", One(softmax::softmax)),
    ("log_softmax.int", One(softmax::log_softmax)),
    ("_log_softmax.default", One(softmax::log_softmax)),
    ("_safe_softmax.default", One(softmax::safe_softmax)),
    ("logsumexp.default", Wide(softmax::logsumexp)),
    // Indexing.
    ("embedding.default", One(index::embedding)),
    ("embedding_bag.padding_idx", Many(index::embedding_bag)),
    ("embedding_bag.default", Many(index::embedding_bag)),
    ("_embedding_bag.default", Many(index::embedding_bag)),
    ("_embedding_bag_forward_only.default", Many(index::embedding_bag)),
    ("gather.default", One(index::gather)),
    ("take_along_dim.default", One(index::take_along_dim)),
    ("index.Tensor", One(index::index)),
    ("_unsafe_index.Tensor", One(index::index)),
    ("index_select.default", One(index::index_select)),
    ("one_hot.default", One(index::one_hot)),
    ("take.default", One(scatter::take)),
    ("put.default", One(scatter::put_flat)),
    ("scatter.src", One(scatter::scatter)),
    ("scatter.value", One(scatter::scatter)),
    ("scatter.reduce", One(scatter::scatter)),
    ("scatter.value_reduce", One(scatter::scatter)),
    ("scatter_add.default", One(scatter::scatter_add)),
    ("scatter_reduce.two", Wide(scatter::scatter_reduce)),
    ("index_put.default", One(scatter::index_put)),
    ("_unsafe_index_put.default", One(scatter::index_put)),
    ("index_copy.default", One(scatter::index_copy)),
    ("index_add.default", One(scatter::index_add)),
    ("index_fill.int_Scalar", One(scatter::index_fill)),
    ("index_fill.int_Tensor", One(scatter::index_fill)),
    ("index_reduce.default", Wide(scatter::index_reduce)),
    ("masked_scatter.default", One(scatter::masked_scatter)),
    ("diagonal_scatter.default", One(scatter::diagonal_scatter)),
    ("nonzero_static.default", One(scatter::nonzero_static)),
    ("isin.Tensor_Tensor", One(scatter::isin)),
    ("isin.Tensor_Scalar", One(scatter::isin)),
    ("isin.Scalar_Tensor", One(scatter::isin)),
    // Order.
    ("sort.default", Many(order::sort)),
    ("sort.stable", Many(order::sort)),
    ("argsort.default", One(order::argsort)),
    ("argsort.stable", One(order::argsort)),
    ("msort.default", One(order::msort)),
    ("topk.default", Many(order::topk)),
    ("kthvalue.default", Many(order::kthvalue)),
    ("median.default", One(|cx| order::median(cx, false))),
    ("median.dim", Many(|cx| order::median_dim(cx, false))),
    ("nanmedian.default", One(|cx| order::median(cx, true))),
    ("nanmedian.dim", Many(|cx| order::median_dim(cx, true))),
    ("quantile.default", One(order::quantile)),
    ("quantile.scalar", One(order::quantile)),
    ("searchsorted.Tensor", One(order::searchsorted)),
    ("searchsorted.Scalar", One(order::searchsorted)),
    ("bucketize.Tensor", One(order::bucketize)),
    ("bucketize.Scalar", One(order::bucketize)),
    ("histc.default", One(order::histc)),
    // Pooling.
    ("max_pool1d.default", One(pool::max_pool)),
    ("max_pool2d.default", One(pool::max_pool)),
    ("max_pool3d.default", One(pool::max_pool)),
    ("max_pool1d_with_indices.default", Many(windows::max_pool_with_indices)),
    ("max_pool2d_with_indices.default", Many(windows::max_pool_with_indices)),
    ("max_pool3d_with_indices.default", Many(windows::max_pool_with_indices)),
    ("avg_pool1d.default", One(pool::avg_pool)),
    ("avg_pool2d.default", One(pool::avg_pool)),
    ("avg_pool3d.default", One(pool::avg_pool)),
    ("adaptive_avg_pool1d.default", One(pool::adaptive_avg_pool)),
    ("adaptive_avg_pool2d.default", One(pool::adaptive_avg_pool)),
    ("adaptive_avg_pool3d.default", One(pool::adaptive_avg_pool)),
    ("_adaptive_avg_pool2d.default", One(pool::adaptive_avg_pool)),
    ("_adaptive_avg_pool3d.default", One(pool::adaptive_avg_pool)),
    ("adaptive_max_pool1d.default", Many(windows::adaptive_max_pool)),
    ("adaptive_max_pool2d.default", Many(windows::adaptive_max_pool)),
    ("adaptive_max_pool3d.default", Many(windows::adaptive_max_pool)),
    ("max_unpool2d.default", One(windows::max_unpool)),
    ("max_unpool3d.default", One(windows::max_unpool)),
    // Windows.
    ("unfold.default", View(windows::unfold)),
    ("im2col.default", One(windows::im2col)),
    ("col2im.default", One(windows::col2im)),
    // Resampling.
    ("upsample_bicubic2d.vec", Wide(resample::bicubic)),
    ("upsample_bicubic2d.default", Wide(resample::bicubic)),
    ("_upsample_nearest_exact1d.vec", One(resample::nearest_exact)),
    ("_upsample_nearest_exact1d.default", One(resample::nearest_exact)),
    ("_upsample_nearest_exact2d.vec", One(resample::nearest_exact)),
    ("_upsample_nearest_exact2d.default", One(resample::nearest_exact)),
    ("_upsample_nearest_exact3d.vec", One(resample::nearest_exact)),
    ("_upsample_nearest_exact3d.default", One(resample::nearest_exact)),
    ("grid_sampler.default", Wide(grid::grid_sampler)),
    ("grid_sampler_2d.default", Wide(grid::grid_sampler)),
    ("grid_sampler_3d.default", Wide(grid::grid_sampler)),
    ("upsample_nearest1d.default", One(resize::nearest)),
    ("upsample_nearest1d.vec", One(resize::nearest)),
    ("upsample_nearest2d.default", One(resize::nearest)),
    ("upsample_nearest2d.vec", One(resize::nearest)),
    ("upsample_nearest3d.default", One(resize::nearest)),
    ("upsample_nearest3d.vec", One(resize::nearest)),
    ("upsample_linear1d.default", One(resize::linear)),
    ("upsample_linear1d.vec", One(resize::linear)),
    ("upsample_bilinear2d.default", One(resize::linear)),
    ("upsample_bilinear2d.vec", One(resize::linear)),
    ("upsample_trilinear3d.default", One(resize::linear)),
    ("upsample_trilinear3d.vec", One(resize::linear)),
    ("pixel_shuffle.default", One(resize::pixel_shuffle)),
    ("pixel_unshuffle.default", One(resize::pixel_unshuffle)),
    ("channel_shuffle.default", One(resize::channel_shuffle)),
    ("native_channel_shuffle.default", One(resize::channel_shuffle)),
    // Reductions.
    ("sum.default", One(reduce::sum)),
    ("sum.dim_IntList", One(reduce::sum)),
    ("mean.default", One(reduce::mean)),
    ("mean.dim", One(reduce::mean)),
    ("prod.default", One(reduce::prod)),
    ("prod.dim_int", One(reduce::prod)),
    ("amax.default", One(|cx| reduce::extreme(cx, ReduceFn::Max))),
    ("amin.default", One(|cx| reduce::extreme(cx, ReduceFn::Min))),
    ("max.default", One(|cx| reduce::extreme(cx, ReduceFn::Max))),
    ("min.default", One(|cx| reduce::extreme(cx, ReduceFn::Min))),
    ("max.dim", Many(|cx| reduce::extreme_with_index(cx, ReduceFn::Max))),
    ("min.dim", Many(|cx| reduce::extreme_with_index(cx, ReduceFn::Min))),
    ("aminmax.default", Many(reduce::aminmax)),
    ("any.default", One(|cx| reduce::truth(cx, ReduceFn::Any))),
    ("any.dim", One(|cx| reduce::truth(cx, ReduceFn::Any))),
    ("any.dims", One(|cx| reduce::truth(cx, ReduceFn::Any))),
    ("all.default", One(|cx| reduce::truth(cx, ReduceFn::All))),
    ("all.dim", One(|cx| reduce::truth(cx, ReduceFn::All))),
    ("all.dims", One(|cx| reduce::truth(cx, ReduceFn::All))),
    ("_is_all_true.default", One(|cx| reduce::truth(cx, ReduceFn::All))),
    ("_is_any_true.default", One(|cx| reduce::truth(cx, ReduceFn::Any))),
    ("argmax.default", One(|cx| reduce::arg_extreme(cx, ReduceFn::Max))),
    ("argmin.default", One(|cx| reduce::arg_extreme(cx, ReduceFn::Min))),
    ("var.default", Wide(reduce::var)),
    ("var.dim", Wide(reduce::var)),
    ("var.correction", Wide(reduce::var)),
    ("std.default", Wide(reduce::std)),
    ("std.dim", Wide(reduce::std)),
    ("std.correction", Wide(reduce::std)),
    ("var_mean.correction", WideMany(reduce::var_mean)),
    ("var_mean.dim", WideMany(reduce::var_mean)),
    ("var_mean.default", WideMany(reduce::var_mean)),
    ("std_mean.correction", WideMany(reduce::std_mean)),
    ("std_mean.dim", WideMany(reduce::std_mean)),
    ("std_mean.default", WideMany(reduce::std_mean)),
    ("cumsum.default", One(reduce::cumsum)),
    ("cumprod.default", One(reduce::cumprod)),
    ("logcumsumexp.default", One(reduce::logcumsumexp)),
    ("cummax.default", Many(|cx| reduce::running_extreme(cx, CumulateFn::ArgMax))),
    ("cummin.default", Many(|cx| reduce::running_extreme(cx, CumulateFn::ArgMin))),
    ("count_nonzero.default", One(reduce::count_nonzero)),
    ("count_nonzero.dim_IntList", One(reduce::count_nonzero)),
    ("nansum.default", One(reduce::nansum)),
    ("nanmean.default", Wide(reduce::nanmean)),
    ("sum_to_size.default", One(reduce::sum_to_size)),
    ("trapezoid.x", Wide(|cx| reduce::trapezoid(cx, false))),
    ("trapezoid.dx", Wide(|cx| reduce::trapezoid(cx, false))),
    ("trapz.x", Wide(|cx| reduce::trapezoid(cx, false))),
    ("trapz.dx", Wide(|cx| reduce::trapezoid(cx, false))),
    ("cumulative_trapezoid.x", Wide(|cx| reduce::trapezoid(cx, true))),
    ("cumulative_trapezoid.dx", Wide(|cx| reduce::trapezoid(cx, true))),
    // Losses.
    ("mse_loss.default", Wide(loss::mse)),
    ("l1_loss.default", Wide(loss::l1)),
    ("smooth_l1_loss.default", Wide(|cx| loss::smooth(cx, false))),
    ("huber_loss.default", Wide(|cx| loss::smooth(cx, true))),
    ("binary_cross_entropy.default", Wide(loss::binary_cross_entropy)),
    ("binary_cross_entropy_with_logits.default", Wide(loss::binary_cross_entropy_with_logits)),
    ("kl_div.default", Wide(loss::kl_div)),
    ("soft_margin_loss.default", Wide(loss::soft_margin)),
    ("hinge_embedding_loss.default", Wide(loss::hinge_embedding)),
    ("margin_ranking_loss.default", Wide(loss::margin_ranking)),
    ("poisson_nll_loss.default", Wide(loss::poisson_nll)),
    ("triplet_margin_loss.default", Wide(loss::triplet_margin)),
    ("cosine_embedding_loss.default", Wide(loss::cosine_embedding)),
    ("nll_loss.default", Wide(loss::nll_loss)),
    ("nll_loss2d.default", Wide(loss::nll_loss)),
    ("nll_loss_nd.default", Wide(loss::nll_loss)),
    ("cross_entropy_loss.default", Wide(loss::cross_entropy)),
    ("multi_margin_loss.default", Wide(loss::multi_margin)),
    // Recurrent networks.
    ("lstm.input", Many(lstm::lstm)),
    // Shapes.
    ("view.default", View(shape::view)),
    ("_unsafe_view.default", One(shape::view)),
    ("reshape.default", MaybeView(shape::view)),
    ("view_as.default", View(shape::view_as)),
    ("reshape_as.default", MaybeView(shape::view_as)),
    ("as_strided.default", View(shape::as_strided)),
    ("flatten.using_ints", MaybeView(shape::flatten)),
    ("ravel.default", MaybeView(shape::ravel)),
    ("unflatten.int", View(shape::unflatten)),
    ("squeeze.default", View(shape::squeeze)),
    ("squeeze.dim", View(shape::squeeze)),
    ("squeeze.dims", View(shape::squeeze)),
    ("unsqueeze.default", View(shape::unsqueeze)),
    ("permute.default", View(shape::permute)),
    ("movedim.int", View(shape::movedim)),
    ("movedim.intlist", View(shape::movedim)),
    ("moveaxis.int", View(shape::movedim)),
    ("transpose.int", View(shape::transpose)),
    ("swapaxes.default", View(shape::transpose)),
    ("swapdims.default", View(shape::transpose)),
    ("t.default", View(shape::t)),
    ("numpy_T.default", View(shape::t)),
    ("mT.default", View(shape::mt)),
    ("adjoint.default", View(shape::mt)),
    ("expand.default", View(shape::expand)),
    ("expand_as.default", View(shape::expand_as)),
    ("broadcast_to.default", View(shape::expand)),
    ("broadcast_tensors.default", ViewsOfEach(shape::broadcast_tensors)),
    ("meshgrid.default", ViewsOfEach(shape::meshgrid)),
    ("meshgrid.indexing", ViewsOfEach(shape::meshgrid)),
    ("repeat.default", One(shape::repeat)),
    ("tile.default", One(shape::repeat)),
    ("repeat_interleave.self_int", One(shape::repeat_interleave)),
    ("slice.Tensor", View(shape::slice)),
    ("narrow.default", View(shape::narrow)),
    ("select.int", View(shape::select)),
    ("split.Tensor", Views(shape::split)),
    ("split.sizes", Views(shape::split)),
    ("split_with_sizes.default", Views(shape::split)),
    ("chunk.default", Views(shape::chunk)),
    ("tensor_split.sections", Views(shape::chunk)),
    ("unbind.int", Views(shape::unbind)),
    ("unsafe_split.Tensor", Many(|cx| Ok(shape::split(cx)?.into_iter().map(Some).collect()))),
    ("unsafe_chunk.default", Many(|cx| Ok(shape::chunk(cx)?.into_iter().map(Some).collect()))),
    ("split_copy.Tensor", Many(|cx| Ok(shape::split(cx)?.into_iter().map(Some).collect()))),
    ("split_with_sizes_copy.default", Many(|cx| Ok(shape::split(cx)?.into_iter().map(Some).collect()))),
    ("unbind_copy.int", Many(|cx| Ok(shape::unbind(cx)?.into_iter().map(Some).collect()))),
    ("cat.default", One(shape::cat)),
    ("concat.default", One(shape::cat)),
    ("concatenate.default", One(shape::cat)),
    ("stack.default", One(shape::stack)),
    ("hstack.default", One(shape::hstack)),
    ("vstack.default", One(shape::vstack)),
    ("pad.default", One(shape::pad)),
    ("constant_pad_nd.default", One(shape::pad)),
    ("reflection_pad1d.default", One(shape::reflection_pad)),
    ("reflection_pad2d.default", One(shape::reflection_pad)),
    ("reflection_pad3d.default", One(shape::reflection_pad)),
    ("replication_pad1d.default", One(shape::replication_pad)),
    ("replication_pad2d.default", One(shape::replication_pad)),
    ("replication_pad3d.default", One(shape::replication_pad)),
    ("flip.default", One(shape::flip)),
    ("roll.default", One(shape::roll)),
    ("tril.default", One(shape::tril)),
    ("triu.default", One(shape::triu)),
    ("diff.default", One(shape::diff)),
    ("select_scatter.default", One(shape::select_scatter)),
    ("slice_scatter.default", One(shape::slice_scatter)),
    ("atleast_1d.default", MaybeView(|cx| forms::atleast(cx, 1))),
    ("atleast_2d.default", MaybeView(|cx| forms::atleast(cx, 2))),
    ("atleast_3d.default", MaybeView(|cx| forms::atleast(cx, 3))),
    ("atleast_1d.Sequence", ViewsOfEach(|cx| forms::atleast_each(cx, 1))),
    ("atleast_2d.Sequence", ViewsOfEach(|cx| forms::atleast_each(cx, 2))),
    ("atleast_3d.Sequence", ViewsOfEach(|cx| forms::atleast_each(cx, 3))),
    ("dstack.default", One(forms::dstack)),
    ("column_stack.default", One(forms::column_stack)),
    ("row_stack.default", One(shape::vstack)),
    ("flipud.default", One(|cx| forms::flipped(cx, 0))),
    ("fliplr.default", One(|cx| forms::flipped(cx, 1))),
    ("rot90.default", One(forms::rot90)),
    ("hsplit.int", Views(forms::split_by_name)),
    ("hsplit.array", Views(forms::split_by_name)),
    ("vsplit.int", Views(forms::split_by_name)),
    ("vsplit.array", Views(forms::split_by_name)),
    ("dsplit.int", Views(forms::split_by_name)),
    ("dsplit.array", Views(forms::split_by_name)),
    ("tensor_split.indices", Views(forms::tensor_split_indices)),
    ("cartesian_prod.default", One(forms::cartesian_prod)),
    ("hann_window.default", One(|cx| fft::cosine_window(cx, 0.5, 0.5))),
    ("hann_window.periodic", One(|cx| fft::cosine_window(cx, 0.5, 0.5))),
    ("hamming_window.default", One(|cx| fft::cosine_window(cx, 0.54, 0.46))),
    ("hamming_window.periodic", One(|cx| fft::cosine_window(cx, 0.54, 0.46))),
    ("hamming_window.periodic_alpha", One(|cx| fft::cosine_window(cx, 0.54, 0.46))),
    ("hamming_window.periodic_alpha_beta", One(|cx| fft::cosine_window(cx, 0.54, 0.46))),
    ("fft_irfft.default", One(|cx| fft::to_real(cx, true, 1))),
    ("fft_irfft2.default", One(|cx| fft::to_real(cx, true, 2))),
    ("fft_irfftn.default", One(|cx| fft::to_real(cx, true, 0))),
    ("fft_hfft.default", One(|cx| fft::to_real(cx, false, 1))),
    ("fft_hfft2.default", One(|cx| fft::to_real(cx, false, 2))),
    ("fft_hfftn.default", One(|cx| fft::to_real(cx, false, 0))),
    ("fft_fftshift.default", One(|cx| forms::fftshift(cx, false))),
    ("fft_ifftshift.default", One(|cx| forms::fftshift(cx, true))),
    ("matrix_H.default", View(shape::t)),
    ("mH.default", View(shape::mt)),
    ("diagonal.default", View(diagonal::diagonal)),
    ("linalg_diagonal.default", View(diagonal::diagonal)),
    ("diag.default", One(diagonal::diag)),
    ("diag_embed.default", One(diagonal::diag_embed)),
    ("diagflat.default", One(diagonal::diagflat)),
    ("trace.default", One(diagonal::trace)),
    ("block_diag.default", One(diagonal::block_diag)),
    ("tril_indices.default", One(|cx| diagonal::triangle_indices(cx, false))),
    ("triu_indices.default", One(|cx| diagonal::triangle_indices(cx, true))),
    ("linalg_vander.default", One(diagonal::vander)),
    // Tensors from nothing.
    ("full.default", One(create::full)),
    ("zeros.default", One(create::zeros)),
    ("ones.default", One(create::ones)),
    ("empty.memory_format", One(create::zeros)),
    ("empty_permuted.default", One(create::zeros)),
    ("full_like.default", One(create::full_like)),
    ("zeros_like.default", One(create::zeros_like)),
    ("ones_like.default", One(create::ones_like)),
    ("empty_like.default", One(create::zeros_like)),
    ("new_full.default", One(create::full)),
    ("new_zeros.default", One(create::zeros)),
    ("new_ones.default", One(create::ones)),
    ("new_empty.default", One(create::zeros)),
    ("fill.Scalar", One(create::fill)),
    ("fill.Tensor", One(create::fill)),
    ("zero.default", One(create::zeros_like)),
    ("arange.default", One(create::arange)),
    ("arange.start", One(create::arange)),
    ("arange.start_step", One(create::arange)),
    ("linspace.default", One(create::linspace)),
    ("scalar_tensor.default", One(create::scalar_tensor)),
    ("eye.default", One(create::eye)),
    ("eye.m", One(create::eye)),
    ("empty_strided.default", One(create::zeros)),
    ("new_empty_strided.default", One(create::zeros)),
    ("linspace.Tensor_Tensor", One(forms::spaced)),
    ("linspace.Tensor_Scalar", One(forms::spaced)),
    ("linspace.Scalar_Tensor", One(forms::spaced)),
    ("logspace.default", One(forms::spaced)),
    ("logspace.Tensor_Tensor", One(forms::spaced)),
    ("logspace.Tensor_Scalar", One(forms::spaced)),
    ("logspace.Scalar_Tensor", One(forms::spaced)),
    // Conversions, copies, and what is nothing in inference.
    ("to.dtype", MaybeView(convert::to)),
    ("to.dtype_layout", MaybeView(convert::to)),
    ("to.device", MaybeView(convert::to)),
    ("to.other", MaybeView(convert::to_other)),
    ("to.prim_Device", MaybeView(convert::to)),
    ("to.prim_dtype", MaybeView(convert::to)),
    ("_to_copy.default", One(convert::to)),
    ("type_as.default", MaybeView(convert::to_other)),
    ("contiguous.default", MaybeView(convert::same)),
    ("clone.default", One(convert::same)),
    ("copy.default", One(convert::copy)),
    ("detach.default", MaybeView(convert::same)),
    ("detach_copy.default", One(convert::same)),
    ("alias.default", MaybeView(convert::same)),
    ("alias_copy.default", One(convert::same)),
    ("positive.default", MaybeView(convert::same)),
    ("conj.default", MaybeView(convert::same)),
    ("conj_physical.default", One(convert::same)),
    ("_conj.default", MaybeView(convert::same)),
    ("resolve_conj.default", MaybeView(convert::same)),
    ("resolve_neg.default", MaybeView(convert::same)),
    ("real.default", MaybeView(convert::same)),
    ("lift.default", MaybeView(convert::same)),
    ("lift_fresh.default", MaybeView(convert::same)),
    ("lift_fresh_copy.default", One(convert::same)),
    ("requires_grad_.default", MaybeView(convert::same)),
    ("dropout.default", MaybeView(convert::dropout)),
    ("feature_dropout.default", MaybeView(convert::dropout)),
    ("alpha_dropout.default", MaybeView(convert::dropout)),
    ("native_dropout.default", Many(|cx| Ok(vec![Some(convert::dropout(cx)?), None]))),
    // Sizes.
    ("sym_size.int", Sym(sym::size)),
    ("sym_numel.default", Sym(sym::numel)),
    ("sym_stride.int", Sym(sym::unknown)),
    ("sym_storage_offset.default", Sym(sym::unknown)),
    // Checks that the exporter made.
    ("_assert_tensor_metadata.default", Drop),
    ("_assert_scalar.default", Drop),
    ("_assert_async.default", Drop),
    ("_assert_async.msg", Drop),
    ("sym_constrain_range.default", Drop),
    ("sym_constrain_range_for_size.default", Drop),
    // What depends on data.
    ("nonzero.default", Refuse(DATA, DATA_HELP)),
    ("nonzero_numpy.default", Refuse(DATA, DATA_HELP)),
    ("argwhere.default", Refuse(DATA, DATA_HELP)),
    ("masked_select.default", Refuse(DATA, DATA_HELP)),
    ("where.default", Refuse(DATA, DATA_HELP)),
    ("unique.default", Refuse(DATA, DATA_HELP)),
    ("_unique2.default", Refuse(DATA, DATA_HELP)),
    ("unique_consecutive.default", Refuse(DATA, DATA_HELP)),
    ("unique_dim.default", Refuse(DATA, DATA_HELP)),
    ("repeat_interleave.Tensor", Refuse(DATA, DATA_HELP)),
    ("repeat_interleave.self_Tensor", Refuse(DATA, DATA_HELP)),
    // Numbers read from tensors: checks may use them, nothing else.
    ("item.default", Drop),
    ("_local_scalar_dense.default", Drop),
    ("rand.default", Refuse(RANDOM, RANDOM_HELP)),
    ("randn.default", Refuse(RANDOM, RANDOM_HELP)),
    ("rand_like.default", Refuse(RANDOM, RANDOM_HELP)),
    ("randn_like.default", Refuse(RANDOM, RANDOM_HELP)),
    ("randint.default", Refuse(RANDOM, RANDOM_HELP)),
    ("randint.low", Refuse(RANDOM, RANDOM_HELP)),
    ("randperm.default", Refuse(RANDOM, RANDOM_HELP)),
    ("bernoulli.default", Refuse(RANDOM, RANDOM_HELP)),
    ("bernoulli.p", Refuse(RANDOM, RANDOM_HELP)),
    ("multinomial.default", Refuse(RANDOM, RANDOM_HELP)),
];

/// Everything else, by the whole target.
const OTHERS: &[(&str, Handler)] = &[
    ("_operator.add", Sym(sym::add)),
    ("_operator.sub", Sym(sym::sub)),
    ("_operator.mul", Sym(sym::mul)),
    ("_operator.floordiv", Sym(sym::floordiv)),
    ("_operator.mod", Sym(sym::modulo)),
    ("_operator.neg", Sym(sym::neg)),
    ("_operator.pow", Sym(sym::unknown)),
    ("_operator.truediv", Sym(sym::unknown)),
    ("_operator.pos", Sym(sym::unknown)),
    ("math.ceil", Sym(sym::unknown)),
    ("math.floor", Sym(sym::unknown)),
    ("math.trunc", Sym(sym::unknown)),
    ("builtins.round", Sym(sym::unknown)),
    ("builtins.pow", Sym(sym::unknown)),
    ("torch.sym_max", Sym(sym::max)),
    ("torch.sym_min", Sym(sym::min)),
    ("torch.sym_int", Sym(sym::unknown)),
    ("torch.sym_float", Sym(sym::unknown)),
    ("torch.sym_sum", Sym(sym::unknown)),
    ("torch.sym_ite", Sym(sym::unknown)),
    ("torch.sym_not", Drop),
    ("torch._sym_sqrt", Sym(sym::unknown)),
    ("_operator.eq", Drop),
    ("_operator.ne", Drop),
    ("_operator.lt", Drop),
    ("_operator.le", Drop),
    ("_operator.gt", Drop),
    ("_operator.ge", Drop),
    ("_operator.and_", Drop),
    ("_operator.or_", Drop),
    ("_operator.not_", Drop),
    ("torch.sym_constrain_range", Drop),
    ("torch._check", Drop),
    ("torch._check_is_size", Drop),
    ("torch.ops.higher_order.wrap_with_set_grad_enabled", Inline),
    ("torch.ops.higher_order.wrap_with_autocast", Inline),
    ("torch.ops.prims.convert_element_type.default", MaybeView(convert::prims_convert)),
    ("torch.ops.transformers.grouped_mm_fallback.default", One(product::grouped)),
    ("torch.ops.prims.view_of.default", MaybeView(convert::same)),
];

/// The translation of an operator; `None` when it is not known.
pub(crate) fn find(target: &str) -> Option<Found> {
    static INDEX: OnceLock<HashMap<&'static str, HashMap<&'static str, Handler>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        [("aten", ATEN), ("", OTHERS)].into_iter().map(|(k, table)| (k, table.iter().copied().collect())).collect()
    });
    let get = |space: &str, name: &str| index.get(space)?.get(name).copied();
    let Some(name) = target.strip_prefix("torch.ops.aten.") else {
        return get("", target).map(|handler| Found { handler, in_place: false });
    };
    if let Some(handler) = get("aten", name) {
        return Some(Found { handler, in_place: false });
    }
    if complex::find(target).is_some() {
        let handler = Refuse("this form for real numbers", "use the operator for real numbers");
        return Some(Found { handler, in_place: false });
    }
    // `view_copy.default` is `view.default` in memory of its own.
    let (base, overload) = name.split_once('.')?;
    if let Some(base) = base.strip_suffix("_copy")
        && let Some(View(f) | MaybeView(f)) = get("aten", &format!("{base}.{overload}"))
    {
        return Some(Found { handler: One(f), in_place: false });
    }
    // `relu_.default` is `relu.default`, written back; `__iand__` and the like do not end in one underscore.
    let base = base.strip_suffix('_').filter(|b| !b.ends_with('_'))?;
    let handler = get("aten", &format!("{base}.{overload}"))?;
    match handler {
        One(_) | Wide(_) => Some(Found { handler, in_place: true }),
        // `detach_` and `dropout_` change nothing; `unsqueeze_` makes the name mean the view.
        MaybeView(_) => Some(Found { handler, in_place: false }),
        View(_) => Some(Found { handler, in_place: true }),
        Many(_) | WideMany(_) | Views(_) | ViewsOfEach(_) | Sym(_) | Inline | Drop => None,
        Refuse(..) => Some(Found { handler, in_place: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_place_forms_are_found() {
        let in_place = |target: &str| find(target).map(|f| f.in_place);
        assert_eq!(in_place("torch.ops.aten.relu.default"), Some(false));
        assert_eq!(in_place("torch.ops.aten.relu_.default"), Some(true));
        assert_eq!(in_place("torch.ops.aten.add_.Tensor"), Some(true));
        assert_eq!(in_place("torch.ops.aten.detach_.default"), Some(false));
        assert_eq!(in_place("torch.ops.aten.relu__.default"), None);
        assert_eq!(in_place("torch.ops.aten.no_such_op.default"), None);
    }

    #[test]
    fn no_operator_is_listed_twice() {
        let mut seen = std::collections::HashSet::new();
        assert!(ATEN.iter().chain(OTHERS).all(|(name, _)| seen.insert(*name)));
    }
}
