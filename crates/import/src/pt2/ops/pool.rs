//! Pooling.

use regraft_ir::ops::{AdaptiveAvgPool, AvgPool, MaxPool, Reduce, ReduceFn, SpatialLayout};
use regraft_tensor::Dim;

use super::whole;
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// Number of spatial axes, from the operator's name.
pub(super) fn spatial(cx: &Cx<'_, '_>) -> Res<usize> {
    for (mark, n) in [("pool1d", 1), ("pool2d", 2), ("pool3d", 3)] {
        if cx.node.target.contains(mark) {
            return Ok(n);
        }
    }
    wrong("expected a pooling operator")
}

/// The input with a batch axis, and whether one was added.
pub(super) fn input(cx: &mut Cx<'_, '_>, spatial: usize) -> Res<(ValueId, bool)> {
    let x = cx.tensor("self")?;
    match cx.rank(x).checked_sub(spatial) {
        Some(2) => Ok((x, false)),
        Some(1) => Ok((cx.unsqueeze(x, 0)?, true)),
        _ => wrong(format!("a tensor with {} axes for {spatial} spatial ones", cx.rank(x))),
    }
}

pub(super) fn done(cx: &mut Cx<'_, '_>, out: ValueId, alone: bool) -> Res<ValueId> {
    if alone { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn max_pool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let n = spatial(cx)?;
    let (x, alone) = input(cx, n)?;
    if !cx.dtype_of(x).is_float() {
        // The op takes floats, which do not hold all integers.
        let results = super::windows::max_pool_with_indices(cx)?;
        return results.into_iter().next().flatten().map_or_else(|| wrong("expected a result"), Ok);
    }
    let kernel = cx.windows("kernel_size", n, &[])?;
    let op = MaxPool {
        stride: cx.windows("stride", n, &kernel)?,
        padding: cx.windows("padding", n, &vec![0; n])?,
        dilation: cx.windows("dilation", n, &vec![1; n])?,
        ceil: cx.bool_or("ceil_mode", false)?,
        layout: SpatialLayout::Nchw,
        kernel,
    };
    let out = cx.emit(op, &[x])?;
    done(cx, out, alone)
}

pub(super) fn avg_pool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let n = spatial(cx)?;
    let (x, alone) = input(cx, n)?;
    let kernel = cx.windows("kernel_size", n, &[])?;
    let divisor = match cx.optional_int("divisor_override")? {
        None => None,
        Some(d) => match usize::try_from(d) {
            Ok(d) if d > 0 => Some(d),
            _ => return wrong(format!("a divisor of {d}")),
        },
    };
    if !cx.dtype_of(x).is_float() {
        let pool = whole::Pool {
            stride: cx.windows("stride", n, &kernel)?,
            padding: cx.windows("padding", n, &vec![0; n])?,
            ceil: cx.bool_or("ceil_mode", false)?,
            count_include_pad: cx.bool_or("count_include_pad", true)?,
            divisor,
            kernel,
        };
        let out = whole::avg_pool(cx, x, &pool)?;
        return done(cx, out, alone);
    }
    let op = AvgPool {
        stride: cx.windows("stride", n, &kernel)?,
        padding: cx.windows("padding", n, &vec![0; n])?,
        ceil: cx.bool_or("ceil_mode", false)?,
        count_include_pad: cx.bool_or("count_include_pad", true)?,
        divisor,
        layout: SpatialLayout::Nchw,
        kernel,
    };
    let out = cx.emit(op, &[x])?;
    done(cx, out, alone)
}

pub(super) fn adaptive_avg_pool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let n = spatial(cx)?;
    let (x, alone) = input(cx, n)?;
    let wanted = sizes(cx, n)?;
    let have: Vec<Dim> = cx.shape(x).into_iter().skip(2).collect();
    if wanted == have {
        return done(cx, x, alone);
    }
    let Some(size) = wanted.iter().map(Dim::as_usize).collect::<Option<Vec<usize>>>() else {
        return unsupported("adaptive pooling to a dynamic size", "export this dimension as a static one");
    };
    let out = cx.emit(AdaptiveAvgPool { size, layout: SpatialLayout::Nchw }, &[x])?;
    done(cx, out, alone)
}

pub(super) fn sizes(cx: &Cx<'_, '_>, n: usize) -> Res<Vec<Dim>> {
    let wanted = cx.dims("output_size")?;
    match wanted.as_slice() {
        [one] => Ok(vec![one.clone(); n]),
        _ if wanted.len() == n => Ok(wanted),
        _ => wrong(format!("expected {n} sizes, found {wanted:?}")),
    }
}

/// The maximum over windows that divide the image evenly, or over all of it; `None` for others.
pub(super) fn even_max_pool(cx: &mut Cx<'_, '_>, x: ValueId, wanted: &[Dim], have: &[Dim]) -> Res<Option<ValueId>> {
    let n = wanted.len();
    if wanted.iter().all(|d| d.is(1)) && cx.dtype_of(x).is_float() {
        return cx.emit(Reduce { f: ReduceFn::Max, axes: (2..2 + n).collect(), keep: true }, &[x]).map(Some);
    }
    let windows = wanted.iter().zip(have).map(|(w, h)| match (w.as_usize(), h.as_usize()) {
        (Some(w), Some(h)) if w > 0 && h % w == 0 => Some(h / w),
        _ => None,
    });
    let Some(kernel) = windows.collect::<Option<Vec<usize>>>().filter(|_| cx.dtype_of(x).is_float()) else {
        return Ok(None);
    };
    let op = MaxPool {
        stride: kernel.clone(),
        padding: vec![0; n],
        dilation: vec![1; n],
        ceil: false,
        layout: SpatialLayout::Nchw,
        kernel,
    };
    cx.emit(op, &[x]).map(Some)
}
