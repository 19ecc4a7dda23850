//! Parts of images: samples of boxes, windows that move, and columns of windows put together.

use regraft_ir::{Scalar, ops::PutFn};
use regraft_tensor::{DType, Dim, Tensor};

use super::shape::padded;
use crate::{
    build::{Deform, Rois, deform_conv, put, roi_align},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// More elements than a list of positions has.
const MOST: usize = 1 << 22;

pub(super) fn rois(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, boxes, batch) = (cx.input(0)?, cx.input(1)?, cx.plain(2)?);
    let usual = if cx.version >= 16 { "half_pixel" } else { "output_half_pixel" };
    let aligned = match cx.text("coordinate_transformation_mode", usual)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return wrong(format!("`{other}` is not a transformation of coordinates")),
    };
    let greatest = match cx.text("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return wrong(format!("`{other}` is not a mode of pooling")),
    };
    let how = Rois {
        size: [cx.natural("output_height", 1)?, cx.natural("output_width", 1)?],
        samples: cx.natural("sampling_ratio", 0)?,
        scale: cx.float_attr("spatial_scale", 1.0)?,
        aligned,
        greatest,
    };
    roi_align(cx, &how, image, boxes, batch)
}

pub(super) fn deformed(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, offset) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (bias, mask) = (cx.optional(3)?, cx.optional(4)?);
    if let Some(said) = cx.optional_ints_attr("kernel_shape")? {
        let sizes: Vec<Dim> = said.into_iter().map(Dim::new).collect();
        if cx.ty(weight).shape.get(2..) != Some(&sizes[..]) {
            return wrong(format!("`kernel_shape` is {sizes:?}, the weight is {}", cx.ty(weight)));
        }
    }
    let pair = |list: Vec<usize>| [list.first().copied().unwrap_or(0), list.get(1).copied().unwrap_or(0)];
    let how = Deform {
        stride: pair(cx.naturals("strides", 2, 1)?),
        padding: pair(cx.naturals("pads", 4, 0)?),
        dilation: pair(cx.naturals("dilations", 2, 1)?),
        groups: cx.natural("group", 1)?,
        offset_groups: cx.natural("offset_group", 1)?,
    };
    deform_conv(cx, &how, [x, weight, offset], mask, bias)
}

/// Columns of windows added up in an image of any number of axes.
pub(super) fn from_columns(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (image, block) = (naturals(cx, 1)?, naturals(cx, 2)?);
    let n = image.len();
    let (stride, dilation) = (cx.naturals("strides", n, 1)?, cx.naturals("dilations", n, 1)?);
    let pads = cx.naturals("pads", 2 * n, 0)?;
    let (before, after) = pads.split_at(n);
    let shape = cx.shape(x);
    let ([batch, channels, _], true) = (shape.as_slice(), block.len() == n) else {
        return wrong("expected columns of windows, and as many sizes of a window as of the image");
    };
    // Position of each tap of each window in the padded image: taps first, both with the last axis fastest.
    let (mut taps, mut windows, mut wide) = (vec![0usize], vec![0usize], Vec::new());
    for (i, size) in image.iter().enumerate() {
        let at = |list: &[usize]| list.get(i).copied().unwrap_or(0);
        let (k, s, d) = (at(&block), at(&stride), at(&dilation));
        let full = size.saturating_add(at(before)).saturating_add(at(after));
        let reach = k.saturating_sub(1).saturating_mul(d).saturating_add(1);
        let (Some(room), true) = (full.checked_sub(reach), k > 0 && s > 0) else {
            return wrong(format!("windows of {block:?} in an image of {image:?}"));
        };
        let counts = (k, room / s + 1);
        let fits = |list: &[usize], count: usize| list.len().checked_mul(count).is_some_and(|n| n <= MOST);
        if full > MOST || !fits(&taps, counts.0) || !fits(&windows, counts.1) {
            return unsupported(format!("windows of {block:?} in an image of {image:?}"), "use fewer");
        }
        let spread = |list: &[usize], count: usize, step: usize| {
            list.iter().flat_map(|at| (0..count).map(move |j| at * full + j * step)).collect::<Vec<usize>>()
        };
        (taps, windows) = (spread(&taps, counts.0, d), spread(&windows, counts.1, s));
        wide.push(full);
    }
    let pixels = wide.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MOST);
    let (Some(pixels), true) = (pixels, taps.len().saturating_mul(windows.len()) <= MOST) else {
        return unsupported(format!("an image of {image:?} made of windows of {block:?}"), "use a smaller one");
    };
    let places: Vec<i64> =
        taps.iter().flat_map(|tap| windows.iter().map(move |window| (tap + window) as i64)).collect();
    let places = Tensor::from_i64(DType::I64, &[taps.len(), windows.len()], &places);
    let places = cx.t.computed(places, "columns")?;
    let channels = channels.floor_div(&Dim::from(taps.len()));
    let split = vec![batch.clone(), channels.clone(), Dim::from(taps.len()), Dim::from(windows.len())];
    let values = cx.reshape(x, split)?;
    let zero = cx.literal_like(Scalar::Int(0), x)?;
    let empty = cx.expand(zero, vec![batch.clone(), channels.clone(), Dim::from(pixels)])?;
    let out = put(cx, PutFn::Add, empty, values, 2, &[places])?;
    let spatial = wide.into_iter().map(Dim::from);
    let out = cx.reshape(out, [batch.clone(), channels.clone()].into_iter().chain(spatial).collect())?;
    let cropped = |list: &[usize]| [0, 0].into_iter().chain(list.iter().map(|p| -(*p as i64))).collect();
    padded(cx, out, cropped(before), cropped(after))
}

/// Input `i` as known natural numbers.
fn naturals(cx: &mut Cx<'_, '_>, i: usize) -> Res<Vec<usize>> {
    let list = cx.ints(i)?;
    let naturals: Option<Vec<usize>> = list.iter().map(|v| usize::try_from(*v).ok()).collect();
    naturals.map_or_else(|| wrong(format!("expected natural numbers, found {list:?}")), Ok)
}

/// Elements put where a pool took them from, zeros elsewhere.
pub(super) fn unpool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.input(0)?, cx.plain(1)?);
    let shape = cx.shape(x);
    let (front, spatial) = shape.split_at(shape.len().min(2));
    let n = spatial.len();
    let kernel = cx.naturals("kernel_shape", n, 0)?;
    let (stride, pads) = (cx.naturals("strides", n, 1)?, cx.naturals("pads", 2 * n, 0)?);
    let mut out: Vec<Dim> = front.to_vec();
    for (i, size) in spatial.iter().enumerate() {
        let at = |list: &[usize], i: usize| Dim::from(list.get(i).copied().unwrap_or(0));
        let begin = &(size - &Dim::new(1)) * &at(&stride, i);
        let cut = &at(&pads, i) + &at(&pads, n + i);
        out.push(&(&begin - &cut) + &at(&kernel, i));
    }
    let count = out.iter().product::<Dim>();
    let zero = cx.literal_like(Scalar::Int(0), x)?;
    let empty = cx.expand(zero, vec![count])?;
    let (values, index) = (cx.flat(x)?, cx.cast(index, DType::I64)?);
    let index = cx.flat(index)?;
    let flat = put(cx, PutFn::Set, empty, values, 0, &[index])?;
    let image = cx.reshape(flat, out.clone())?;
    let Some(wanted) = cx.optional_ints(2)? else { return Ok(image) };
    // Positions are those of the smaller image; what is larger goes on with zeros.
    let more: Option<Vec<i64>> = wanted.iter().zip(&out).map(|(w, d)| Some(w - d.as_const()?)).collect();
    match more {
        Some(more) if more.len() == out.len() => padded(cx, image, vec![0; more.len()], more),
        _ => unsupported("an `output_shape` of dynamic sizes", "make them static"),
    }
}
