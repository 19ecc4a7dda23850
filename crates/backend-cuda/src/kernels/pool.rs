//! Pools and resampling of images in one piece, over one to three spatial axes.

use regraft_ir::ops::{Resize, ResizeMode, SpatialLayout};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    c_type,
    elementwise::View,
    is_small_float,
    spec::{Defines, Fields, Param, Spec, Why, stepping},
};

/// What a pool computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The greatest element.
    Max,
    /// The mean over windows.
    Mean,
    /// The mean over windows that cover the axes.
    Adaptive,
}

/// Windows of a pool; empty lists for the adaptive one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows<'a> {
    /// Sizes of the window.
    pub kernel: &'a [usize],
    /// Steps of the window.
    pub stride: &'a [usize],
    /// Padding before and after.
    pub padding: &'a [usize],
    /// Steps between taps.
    pub dilation: &'a [usize],
    /// A fixed divisor.
    pub divisor: Option<usize>,
    /// Whether padding counts in the divisor.
    pub include_pad: bool,
}

/// Three values, the missing ones in front.
pub(super) fn three(values: &[usize], with: usize) -> Result<[usize; 3], Why> {
    let mut all = [with; 3];
    let lead = 3usize.checked_sub(values.len()).ok_or_else(|| Why::new("more than three spatial axes"))?;
    all[lead..].copy_from_slice(values);
    Ok(all)
}

/// A pool of `x` to `shape`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn pool(
    x: &View<'_>,
    kind: PoolKind,
    windows: &Windows<'_>,
    layout: SpatialLayout,
    shape: &[usize],
    out: DType,
) -> Result<Spec, Why> {
    if !is_small_float(x.dtype) || !is_small_float(out) {
        return Err(Why::new("pools take f32, f16 and bf16"));
    }
    let nhwc = layout == SpatialLayout::Nhwc;
    let number = match kind {
        PoolKind::Max => 0,
        PoolKind::Mean => 1,
        PoolKind::Adaptive => 2,
    };
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", c_type(out))
        .set("KIND", number)
        .flag("NHWC", nhwc)
        .source("pool", include_str!("pool.cu"));
    let (axis, strides) = (layout.channel_axis(shape.len()), contiguous_strides(x.shape));
    let count: usize = shape.iter().product();
    let fields = Fields::default()
        .sizes(&three(layout.spatial(x.shape), 1)?)
        .sizes(&three(layout.spatial(shape), 1)?)
        .sizes(&three(windows.kernel, 1)?)
        .sizes(&three(windows.stride, 1)?)
        .sizes(&three(windows.padding, 0)?)
        .sizes(&three(windows.dilation, 1)?)
        .sizes(&three(layout.spatial(&strides), 0)?)
        .sizes(&[strides[0], strides[axis], shape[axis]])
        .sizes(&[windows.divisor.unwrap_or(0), usize::from(windows.include_pad)]);
    let params = vec![Param::In(0, 0), Param::Out(0, 0), Param::size(count), fields.param()];
    Ok(Spec { source, entry: "pool", launch: stepping(count), params, scratch: 0 })
}

/// Resampling of `x` to `shape`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn resize(x: &View<'_>, op: &Resize, shape: &[usize], out: DType) -> Result<Spec, Why> {
    let blends = op.mode != ResizeMode::Nearest;
    if (blends && !is_small_float(x.dtype)) || x.dtype != out || x.shape.contains(&0) {
        return Err(Why::new("resampling that blends takes f32, f16 and bf16"));
    }
    let layout = op.layout;
    let (from, to) = (layout.spatial(x.shape), layout.spatial(shape));
    // As `Resize::taps` rounds it.
    let scale = |axis: usize| -> f32 {
        let scale = match &op.scales {
            _ if blends && op.align_corners => {
                if to[axis] > 1 {
                    (from[axis] - 1) as f64 / (to[axis] - 1) as f64
                } else {
                    0.0
                }
            }
            Some(scales) => 1.0 / scales[axis],
            None => from[axis] as f64 / to[axis] as f64,
        };
        scale as f32
    };
    let mut fields = Fields::default().sizes(&three(from, 1)?).sizes(&three(to, 1)?);
    let strides = contiguous_strides(x.shape);
    let axis = layout.channel_axis(shape.len());
    fields = fields.sizes(&three(layout.spatial(&strides), 0)?).sizes(&[strides[0], strides[axis], shape[axis]]);
    for _ in from.len()..3 {
        fields = fields.f32(1.0);
    }
    for axis in 0..from.len() {
        fields = fields.f32(scale(axis));
    }
    fields = fields.i32(i32::from(op.align_corners));
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", c_type(out))
        .set("TAPS", op.mode.taps())
        .flag("NHWC", layout == SpatialLayout::Nhwc)
        .source("resize", include_str!("resize.cu"));
    let count: usize = shape.iter().product();
    let params = vec![Param::In(0, 0), Param::Out(0, 0), Param::size(count), fields.param()];
    Ok(Spec { source, entry: "resize", launch: stepping(count), params, scratch: 0 })
}
