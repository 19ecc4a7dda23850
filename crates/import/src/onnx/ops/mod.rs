//! The operators that are known: one file per family, one line per operator in the tables below.

mod activation;
mod attention;
mod control;
mod elementwise;
mod index;
mod loss;
mod microsoft;
mod ngrams;
mod norm;
mod product;
mod quant;
mod recurrent;
mod reduce;
mod regions;
mod resize;
mod sequence;
mod shape;
mod signal;
mod spectrum;
mod window;

use std::{collections::HashMap, sync::OnceLock};

use regraft_ir::ops::{ArgReduceFn, BinaryFn, CompareFn, ReduceFn, UnaryFn};

use super::args::{Bound, Cx, Res, ValueId};

/// How an operator is translated.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// One result.
    One(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// As `One`, with half-precision tensors computed in f32 and rounded once.
    Wide(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// Several results; those that are not computed are `None`.
    Many(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// As `Many`, likewise.
    WideMany(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// Results that may be no tensors.
    Bound(fn(&mut Cx<'_, '_>) -> Res<Vec<Bound>>),
    /// Known, and not supported: what it is, and what to do.
    Refuse(&'static str, &'static str),
}

use Handler::{Many, One, Refuse, Wide, WideMany};

const DATA: &str = "a result whose size depends on the values of a tensor";
const DATA_HELP: &str = "compute it outside of the model, or use Where and masks of a fixed size";
const RANDOM: &str = "a random number generator";
const RANDOM_HELP: &str = "give the random numbers as an input of the model";
const TEXT: &str = "an operator on texts";
const TEXT_HELP: &str = "compute it outside of the model";
const TRAINING: &str = "an operator of training";
const TRAINING_HELP: &str = "export the model for inference";

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
macro_rules! compare {
    ($f:ident) => {
        One(|cx| elementwise::compare(cx, CompareFn::$f))
    };
}

/// Operators of ONNX itself.
const ONNX: &[(&str, Handler)] = &[
    // Arithmetic.
    ("Add", binary!(Add)),
    ("Sub", binary!(Sub)),
    ("Mul", binary!(Mul)),
    ("Div", One(elementwise::div)),
    ("Pow", One(elementwise::pow)),
    ("Mod", One(elementwise::modulo)),
    ("Max", One(|cx| elementwise::each(cx, BinaryFn::Max))),
    ("Min", One(|cx| elementwise::each(cx, BinaryFn::Min))),
    ("Sum", Wide(|cx| elementwise::each(cx, BinaryFn::Add))),
    ("Mean", Wide(elementwise::mean)),
    ("BitShift", One(elementwise::bit_shift)),
    ("BitwiseAnd", binary!(And)),
    ("BitwiseOr", binary!(Or)),
    ("BitwiseXor", binary!(Xor)),
    ("BitwiseNot", unary!(Not)),
    ("And", binary!(And)),
    ("Or", binary!(Or)),
    ("Xor", binary!(Xor)),
    ("Not", unary!(Not)),
    ("Equal", compare!(Eq)),
    ("Greater", compare!(Gt)),
    ("GreaterOrEqual", compare!(Ge)),
    ("Less", compare!(Lt)),
    ("LessOrEqual", compare!(Le)),
    ("Where", One(elementwise::where_)),
    // Functions of one value.
    ("Abs", unary!(Abs)),
    ("Neg", unary!(Neg)),
    ("Sign", unary!(Sign)),
    ("Exp", unary!(Exp)),
    ("Log", unary!(Log)),
    ("Sqrt", unary!(Sqrt)),
    ("Reciprocal", unary!(Reciprocal)),
    ("Sin", unary!(Sin)),
    ("Cos", unary!(Cos)),
    ("Tan", unary!(Tan)),
    ("Asin", unary!(Asin)),
    ("Acos", unary!(Acos)),
    ("Atan", unary!(Atan)),
    ("Sinh", unary!(Sinh)),
    ("Cosh", unary!(Cosh)),
    ("Tanh", unary!(Tanh)),
    ("Asinh", unary!(Asinh)),
    ("Acosh", unary!(Acosh)),
    ("Atanh", unary!(Atanh)),
    ("Erf", unary!(Erf)),
    ("Floor", One(|cx| elementwise::rounding(cx, UnaryFn::Floor))),
    ("Ceil", One(|cx| elementwise::rounding(cx, UnaryFn::Ceil))),
    ("Round", One(|cx| elementwise::rounding(cx, UnaryFn::Round))),
    ("IsNaN", One(elementwise::is_nan)),
    ("IsInf", One(elementwise::is_inf)),
    ("Clip", One(elementwise::clip)),
    // Activations.
    ("Relu", unary!(Relu)),
    ("Sigmoid", unary!(Sigmoid)),
    ("Softplus", unary!(Softplus)),
    ("HardSwish", unary!(Hardswish)),
    ("HardSigmoid", Wide(activation::hard_sigmoid)),
    ("Gelu", One(activation::gelu)),
    ("LeakyRelu", One(activation::leaky_relu)),
    ("Elu", Wide(activation::elu)),
    ("Selu", Wide(activation::selu)),
    ("Celu", Wide(activation::celu)),
    ("ThresholdedRelu", One(activation::thresholded_relu)),
    ("Shrink", One(activation::shrink)),
    ("Softsign", Wide(activation::softsign)),
    ("Mish", Wide(activation::mish)),
    ("Swish", Wide(activation::swish)),
    ("PRelu", One(activation::prelu)),
    ("Softmax", One(|cx| reduce::softmax(cx, false))),
    ("LogSoftmax", One(|cx| reduce::softmax(cx, true))),
    ("Hardmax", One(activation::hardmax)),
    // Conversions, and what is nothing in inference.
    ("Cast", One(elementwise::cast)),
    ("CastLike", One(elementwise::cast_like)),
    ("Identity", Handler::Bound(sequence::identity)),
    ("Dropout", Many(elementwise::dropout)),
    // Matrix products.
    ("MatMul", One(product::matmul)),
    ("Gemm", One(product::gemm)),
    ("Einsum", One(product::einsum)),
    ("MatMulInteger", One(product::integers)),
    ("Det", Wide(product::determinant)),
    // Windows.
    ("Conv", One(window::conv)),
    ("ConvTranspose", One(window::conv_transpose)),
    ("ConvInteger", One(window::conv_integer)),
    ("DeformConv", Wide(regions::deformed)),
    ("RoiAlign", Wide(regions::rois)),
    ("Col2Im", Wide(regions::from_columns)),
    ("MaxPool", Many(window::max_pool)),
    ("MaxUnpool", One(regions::unpool)),
    ("AveragePool", One(window::avg_pool)),
    ("LpPool", Wide(window::lp_pool)),
    ("GlobalAveragePool", One(|cx| window::global(cx, ReduceFn::Mean))),
    ("GlobalMaxPool", One(|cx| window::global(cx, ReduceFn::Max))),
    ("GlobalLpPool", Wide(window::global_lp)),
    ("Resize", Wide(resize::resize)),
    ("Upsample", Wide(resize::upsample)),
    // Normalizations.
    ("BatchNormalization", Many(norm::batch)),
    ("InstanceNormalization", One(norm::instance)),
    ("GroupNormalization", One(norm::group)),
    ("LayerNormalization", Many(norm::layer)),
    ("RMSNormalization", One(norm::rms)),
    ("LRN", Wide(norm::local_response)),
    ("MeanVarianceNormalization", Wide(norm::mean_variance)),
    ("LpNormalization", Wide(reduce::lp_normalization)),
    // Reductions.
    ("ReduceSum", One(|cx| reduce::plain(cx, ReduceFn::Sum))),
    ("ReduceMean", One(|cx| reduce::plain(cx, ReduceFn::Mean))),
    ("ReduceMax", One(|cx| reduce::plain(cx, ReduceFn::Max))),
    ("ReduceMin", One(|cx| reduce::plain(cx, ReduceFn::Min))),
    ("ReduceProd", One(|cx| reduce::plain(cx, ReduceFn::Prod))),
    ("ReduceL1", Wide(|cx| reduce::sum_of(cx, Some(UnaryFn::Abs), None))),
    ("ReduceL2", Wide(|cx| reduce::sum_of(cx, None, Some(UnaryFn::Sqrt)))),
    ("ReduceSumSquare", Wide(|cx| reduce::sum_of(cx, None, None))),
    ("ReduceLogSum", Wide(reduce::log_sum)),
    ("ReduceLogSumExp", Wide(reduce::log_sum_exp)),
    ("ArgMax", One(|cx| reduce::arg_extreme(cx, ArgReduceFn::Max))),
    ("ArgMin", One(|cx| reduce::arg_extreme(cx, ArgReduceFn::Min))),
    ("CumSum", One(reduce::cumsum)),
    ("CumProd", One(reduce::cumprod)),
    ("TopK", Many(reduce::topk)),
    // Shapes.
    ("Reshape", One(shape::reshape)),
    ("Flatten", One(shape::flatten)),
    ("Transpose", One(shape::transpose)),
    ("Squeeze", One(shape::squeeze)),
    ("Unsqueeze", One(shape::unsqueeze)),
    ("Expand", One(shape::expand)),
    ("Shape", One(shape::shape_of)),
    ("Size", One(shape::size_of)),
    ("Concat", One(shape::concat)),
    ("Split", Many(shape::split)),
    ("Slice", One(shape::slice)),
    ("Tile", One(shape::tile)),
    ("Pad", One(shape::pad)),
    ("CenterCropPad", One(shape::center_crop_pad)),
    ("Constant", One(shape::constant)),
    ("ConstantOfShape", One(shape::constant_of_shape)),
    ("Range", One(shape::arange)),
    ("EyeLike", One(shape::eye_like)),
    ("Trilu", One(shape::trilu)),
    ("DepthToSpace", One(shape::depth_to_space)),
    ("SpaceToDepth", One(shape::space_to_depth)),
    // Positions.
    ("Gather", One(index::gather)),
    ("GatherElements", One(index::gather_elements)),
    ("GatherND", One(index::gather_nd)),
    ("Scatter", One(index::scatter_elements)),
    ("ScatterElements", One(index::scatter_elements)),
    ("ScatterND", One(index::scatter_nd)),
    ("OneHot", One(index::one_hot)),
    ("Compress", One(index::compress)),
    ("ReverseSequence", One(index::reverse_sequence)),
    ("TensorScatter", One(signal::tensor_scatter)),
    // Attention and recurrent networks.
    ("Attention", WideMany(attention::attention)),
    ("RotaryEmbedding", Wide(attention::rotary)),
    ("LSTM", WideMany(recurrent::lstm)),
    ("GRU", WideMany(recurrent::gru)),
    ("RNN", WideMany(recurrent::rnn)),
    // Losses.
    ("NegativeLogLikelihoodLoss", Wide(loss::negative_log_likelihood)),
    ("SoftmaxCrossEntropyLoss", WideMany(loss::softmax_cross_entropy)),
    // Signals.
    ("GridSample", Wide(signal::grid)),
    ("AffineGrid", Wide(signal::affine_grid)),
    ("DFT", Wide(spectrum::dft)),
    ("STFT", Wide(spectrum::stft)),
    ("MelWeightMatrix", One(spectrum::mel_weights)),
    ("HannWindow", One(|cx| spectrum::window(cx, &[0.5, -0.5]))),
    ("HammingWindow", One(|cx| spectrum::window(cx, &[25.0 / 46.0, -21.0 / 46.0]))),
    ("BlackmanWindow", One(|cx| spectrum::window(cx, &[0.42, -0.5, 0.08]))),
    ("TfIdfVectorizer", One(ngrams::tf_idf)),
    // ONNX Runtime puts these here, too.
    ("SimplifiedLayerNormalization", Many(microsoft::rms_norm)),
    // Quantized numbers.
    ("QuantizeLinear", One(quant::quantize)),
    ("DequantizeLinear", One(quant::dequantize)),
    ("DynamicQuantizeLinear", Many(quant::dynamic)),
    ("QLinearMatMul", One(quant::matmul)),
    ("QLinearConv", One(quant::conv)),
    // Control flow and sequences.
    ("If", Handler::Bound(control::branch)),
    ("Loop", Handler::Bound(control::repeat)),
    ("Scan", Handler::Bound(control::scan)),
    ("SequenceConstruct", Handler::Bound(sequence::sequence)),
    ("SequenceEmpty", Handler::Bound(sequence::sequence)),
    ("SequenceAt", One(sequence::sequence_at)),
    ("SequenceLength", One(sequence::sequence_length)),
    ("SequenceInsert", Handler::Bound(sequence::sequence_insert)),
    ("SequenceErase", Handler::Bound(sequence::sequence_erase)),
    ("SequenceMap", Handler::Bound(sequence::sequence_map)),
    ("ConcatFromSequence", One(sequence::concat_from_sequence)),
    ("SplitToSequence", Handler::Bound(sequence::split_to_sequence)),
    ("Optional", Handler::Bound(sequence::optional)),
    ("OptionalHasElement", One(sequence::optional_has_element)),
    ("OptionalGetElement", Handler::Bound(sequence::optional_get_element)),
    // What depends on data.
    ("NonZero", Refuse(DATA, DATA_HELP)),
    ("Unique", Refuse(DATA, DATA_HELP)),
    ("NonMaxSuppression", Refuse(DATA, "let the model give boxes and scores, and choose between them outside of it")),
    ("RandomNormal", Refuse(RANDOM, RANDOM_HELP)),
    ("RandomNormalLike", Refuse(RANDOM, RANDOM_HELP)),
    ("RandomUniform", Refuse(RANDOM, RANDOM_HELP)),
    ("RandomUniformLike", Refuse(RANDOM, RANDOM_HELP)),
    ("Bernoulli", Refuse(RANDOM, RANDOM_HELP)),
    ("Multinomial", Refuse(RANDOM, RANDOM_HELP)),
    ("StringConcat", Refuse(TEXT, TEXT_HELP)),
    ("StringNormalizer", Refuse(TEXT, TEXT_HELP)),
    ("StringSplit", Refuse(TEXT, TEXT_HELP)),
    ("RegexFullMatch", Refuse(TEXT, TEXT_HELP)),
    ("ImageDecoder", Refuse("a decoder of image files", "decode images outside of the model")),
    ("Adam", Refuse(TRAINING, TRAINING_HELP)),
    ("Adagrad", Refuse(TRAINING, TRAINING_HELP)),
    ("Momentum", Refuse(TRAINING, TRAINING_HELP)),
];

/// Operators that ONNX Runtime's optimizers write.
const MICROSOFT: &[(&str, Handler)] = &[
    ("Attention", WideMany(attention::packed)),
    ("BiasGelu", Wide(|cx| microsoft::biased(cx, UnaryFn::Gelu))),
    ("DequantizeLinear", One(quant::dequantize)),
    ("EmbedLayerNormalization", WideMany(microsoft::embed_layer_norm)),
    ("FastGelu", Wide(|cx| microsoft::biased(cx, UnaryFn::GeluTanh))),
    ("FusedConv", Wide(microsoft::conv)),
    ("FusedMatMul", Wide(microsoft::matmul)),
    ("Gelu", One(activation::gelu)),
    ("MultiHeadAttention", WideMany(attention::multi_head)),
    ("QuantizeLinear", One(quant::quantize)),
    ("QuickGelu", Wide(microsoft::quick_gelu)),
    ("RotaryEmbedding", Wide(attention::rotary_microsoft)),
    ("SimplifiedLayerNormalization", Many(microsoft::rms_norm)),
    ("SkipLayerNormalization", WideMany(microsoft::skip_layer_norm)),
    ("SkipSimplifiedLayerNormalization", WideMany(microsoft::skip_rms_norm)),
];

/// The translation of an operator; `None` when it is not known.
pub(super) fn find(domain: &str, operator: &str) -> Option<Handler> {
    static INDEX: OnceLock<HashMap<(&'static str, &'static str), Handler>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let own = ONNX.iter().map(|(name, handler)| (("", *name), *handler));
        own.chain(MICROSOFT.iter().map(|(name, handler)| (("com.microsoft", *name), *handler))).collect()
    });
    index.get(&(domain, operator)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operator_is_listed_twice() {
        for table in [ONNX, MICROSOFT] {
            let mut seen = std::collections::HashSet::new();
            assert!(table.iter().all(|(name, _)| seen.insert(*name)));
        }
    }
}
