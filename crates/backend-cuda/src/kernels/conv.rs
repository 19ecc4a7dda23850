//! Convolutions of our own, and products of few rows with a weight.

use regraft_ir::ops::{Activation, Conv, ConvTranspose, SpatialLayout};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    c_type,
    elementwise::View,
    is_small_float,
    pool::three,
    spec::{Defines, Fields, Param, Spec, Why, grid, threads_for},
};

/// What comes after the products of a linear or a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epilogue {
    /// Type of the bias, operand 2.
    pub bias: Option<DType>,
    /// Type of the residual, operand 3.
    pub residual: Option<DType>,
    /// The activation.
    pub act: Activation,
    /// Whether it comes before the residual.
    pub act_first: bool,
}

impl Epilogue {
    fn define(self, defines: Defines, other: DType) -> Defines {
        let ty = |d: Option<DType>| c_type(d.unwrap_or(other));
        defines
            .ty("TB", ty(self.bias))
            .ty("TR", ty(self.residual))
            .flag("HAS_BIAS", self.bias.is_some())
            .flag("HAS_RESIDUAL", self.residual.is_some())
            .flag("ACT_FIRST", self.act_first)
            .set("ACT", format!("f_{}", self.act.name()))
    }

    fn params(self) -> [Param; 2] {
        [self.bias.map_or(Param::Null, |_| Param::In(2, 0)), self.residual.map_or(Param::Null, |_| Param::In(3, 0))]
    }

    fn types(self) -> impl Iterator<Item = DType> {
        [self.bias, self.residual].into_iter().flatten()
    }
}

/// Where the taps of a convolution's weight stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOrder {
    /// `[out, channels, taps...]`, PyTorch's.
    ChannelsFirst,
    /// `[out, taps..., channels]`.
    ChannelsLast,
}

/// A convolution of images in one piece with a weight in one piece. Operands: `x`, `weight`, `bias?`, `residual?`.
/// `weight` has the sizes `[out, channels, taps...]` whatever its order in memory.
///
/// # Errors
/// When a type or a size does not fit.
pub fn conv(
    op: &Conv,
    x: &View<'_>,
    weight: (DType, &[usize]),
    order: WeightOrder,
    epilogue: Epilogue,
    shape: &[usize],
    out: DType,
) -> Result<Spec, Why> {
    let (weight_type, weight) = weight;
    if [x.dtype, weight_type, out].into_iter().chain(epilogue.types()).any(|d| !is_small_float(d)) {
        return Err(Why::new("convolutions take f32, f16 and bf16"));
    }
    let layout = op.layout;
    let axis = layout.channel_axis(shape.len());
    let (xs, os) = (contiguous_strides(x.shape), contiguous_strides(shape));
    let (group_in, group_out) = (weight[1], weight[0] / op.groups);
    let taps: usize = weight[2..].iter().product();
    let tap_strides = contiguous_strides(&weight[2..]);
    let (w_channel, w_strides): (usize, Vec<usize>) = match order {
        WeightOrder::ChannelsFirst => (taps, tap_strides),
        WeightOrder::ChannelsLast => (1, tap_strides.iter().map(|s| s * group_in).collect()),
    };
    let spatial = layout.spatial(shape);
    let fields = Fields::default()
        .sizes(&three(layout.spatial(x.shape), 1)?)
        .sizes(&three(spatial, 1)?)
        .sizes(&three(&op.stride, 1)?)
        .sizes(&three(&op.padding, 0)?)
        .sizes(&three(&op.dilation, 1)?)
        .sizes(&three(&weight[2..], 1)?)
        .sizes(&[xs[0], xs[axis]])
        .sizes(&three(layout.spatial(&xs), 0)?)
        .sizes(&[os[0], os[axis]])
        .sizes(&three(layout.spatial(&os), 0)?)
        .sizes(&[group_in * taps, w_channel])
        .sizes(&three(&w_strides, 0)?)
        .sizes(&[x.shape[0], group_in, group_out]);
    let source = Defines::default().ty("TX", c_type(x.dtype)).ty("TW", c_type(weight_type)).ty("TO", c_type(out));
    let source = epilogue.define(source, x.dtype).source("conv", include_str!("conv.cu"));
    let [bias, residual] = epilogue.params();
    let params = vec![Param::In(0, 0), Param::In(1, 0), bias, residual, Param::Out(0, 0), fields.param()];
    let rows = x.shape[0] * spatial.iter().product::<usize>();
    let (entry, launch) = if group_out < 16 {
        ("conv_direct", grid([(rows * group_out).div_ceil(256), 1, op.groups], 256, 0)?)
    } else {
        ("conv", grid([rows.div_ceil(64), group_out.div_ceil(64), op.groups], 256, 0)?)
    };
    Ok(Spec { source, entry, launch, params, scratch: 0 })
}

/// A transposed convolution; everything lies in one piece. Operands: `x`, `weight`, `bias?`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn conv_transpose(
    op: &ConvTranspose,
    x: &View<'_>,
    weight: (DType, &[usize]),
    bias: Option<DType>,
    shape: &[usize],
    out: DType,
) -> Result<Spec, Why> {
    let (weight_type, weight) = weight;
    if [Some(x.dtype), Some(weight_type), bias, Some(out)].into_iter().flatten().any(|d| !is_small_float(d)) {
        return Err(Why::new("convolutions take f32, f16 and bf16"));
    }
    let fields = Fields::default()
        .sizes(&three(&x.shape[2..], 1)?)
        .sizes(&three(&shape[2..], 1)?)
        .sizes(&three(&op.stride, 1)?)
        .sizes(&three(&op.padding, 0)?)
        .sizes(&three(&op.dilation, 1)?)
        .sizes(&three(&weight[2..], 1)?)
        .sizes(&[x.shape[0], x.shape[1], x.shape[1] / op.groups, weight[1], op.groups]);
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TW", c_type(weight_type))
        .ty("TB", c_type(bias.unwrap_or(x.dtype)))
        .ty("TO", c_type(out))
        .flag("HAS_BIAS", bias.is_some())
        .source("conv_transpose", include_str!("conv_transpose.cu"));
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        bias.map_or(Param::Null, |_| Param::In(2, 0)),
        Param::Out(0, 0),
        fields.param(),
    ];
    let launch = threads_for(shape.iter().product())?;
    Ok(Spec { source, entry: "conv_transpose", launch, params, scratch: 0 })
}

/// Rows of a product that [`matvec`] takes.
pub const MOST_ROWS: usize = 8;
/// Warps whose loads hide the memory's latency on a large device.
const BUSY_WARPS: usize = 132 * 48;

/// `x·Wᵀ` with an epilogue for few rows `m` of `x`, `k` elements each; `W: [n, k]`. Operands as of [`conv`].
///
/// # Errors
/// When a type or a size does not fit.
pub fn matvec(
    x: DType,
    weight: DType,
    (m, n, k): (usize, usize, usize),
    epilogue: Epilogue,
    out: DType,
) -> Result<Spec, Why> {
    if [x, weight, out].into_iter().chain(epilogue.types()).any(|d| !is_small_float(d)) {
        return Err(Why::new("products take f32, f16 and bf16"));
    }
    if m == 0 || m > MOST_ROWS {
        return Err(Why::new(format!("{m} rows")));
    }
    let vec = [8, 4, 2].into_iter().find(|v| k % v == 0 && v * weight.size() <= 16).unwrap_or(1);
    // Few columns keep a large device busy only when several warps share each.
    let warps = [1, 2].into_iter().find(|warps| n * warps >= BUSY_WARPS || k <= warps * 32 * vec).unwrap_or(4);
    let source = Defines::default()
        .ty("TX", c_type(x))
        .ty("TW", c_type(weight))
        .ty("TO", c_type(out))
        .set("M", m)
        .set("WARPS", warps)
        .set("VEC", vec);
    let source = epilogue.define(source, x).source("matvec", include_str!("matvec.cu"));
    let [bias, residual] = epilogue.params();
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        bias,
        residual,
        Param::Out(0, 0),
        Param::size(n),
        Param::size(k),
        Param::size(k),
    ];
    Ok(Spec { source, entry: "matvec", launch: grid([n.div_ceil(4 / warps), 1, 1], 128, 0)?, params, scratch: 0 })
}

/// The order of a weight that suits images of this layout.
pub const fn order_for(layout: SpatialLayout) -> WeightOrder {
    match layout {
        SpatialLayout::Nchw => WeightOrder::ChannelsFirst,
        SpatialLayout::Nhwc => WeightOrder::ChannelsLast,
    }
}
