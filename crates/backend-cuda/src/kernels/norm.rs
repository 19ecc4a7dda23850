//! Norms and softmax.

use regraft_tensor::DType;

use super::{
    c_type,
    elementwise::View,
    is_small_float,
    spec::{Defines, Param, Spec, Why, grid, stepping},
};

/// Most elements of a row that the registers of a block hold.
const MOST_COLS: usize = 1 << 15;

/// Layer norm, or RMS norm, of rows of `cols` elements in one piece. Operands: `x`, `weight?`, `bias?`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn rows(
    x: &View<'_>,
    weight: Option<DType>,
    bias: Option<DType>,
    axes: usize,
    eps: f64,
    rms: bool,
    out: DType,
) -> Result<Spec, Why> {
    if [Some(x.dtype), weight, bias, Some(out)].into_iter().flatten().any(|d| !is_small_float(d)) {
        return Err(Why::new("norms take f32, f16 and bf16"));
    }
    let at = x.shape.len().checked_sub(axes).ok_or_else(|| Why::new("more axes than the operand has"))?;
    let cols: usize = x.shape[at..].iter().product();
    let count: usize = x.shape[..at].iter().product();
    if cols == 0 || cols > MOST_COLS || count == 0 {
        return Err(Why::new(format!("rows of {cols} elements")));
    }
    let vec = [8, 4, 2].into_iter().find(|v| cols.is_multiple_of(*v) && v * x.dtype.size() <= 16).unwrap_or(1);
    let threads = cols.div_ceil(vec).next_multiple_of(32).min(if cols > 4096 { 1024 } else { 256 });
    let per = cols.div_ceil(threads * vec);
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TW", c_type(weight.unwrap_or(x.dtype)))
        .ty("TB", c_type(bias.unwrap_or(x.dtype)))
        .ty("TO", c_type(out))
        .set("COLS", cols)
        .flag("RMS", rms)
        .flag("HAS_WEIGHT", weight.is_some())
        .flag("HAS_BIAS", bias.is_some())
        .set("VEC", vec)
        .set("PER", per)
        .set("THREADS", threads)
        .source(if rms { "rms_norm" } else { "layer_norm" }, include_str!("norm.cu"));
    let maybe = |there: Option<DType>, i: usize| there.map_or(Param::Null, |_| Param::In(i, 0));
    let params = vec![
        Param::In(0, 0),
        maybe(weight, 1),
        maybe(bias, 2),
        Param::Out(0, 0),
        Param::size(cols),
        Param::f32(eps as f32),
    ];
    Ok(Spec { source, entry: "norm_rows", launch: grid([count, 1, 1], threads, 0)?, params, scratch: 0 })
}

/// Group norm of images in one piece. Operands: `x`, `weight?`, `bias?`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn groups(
    x: &View<'_>,
    weight: Option<DType>,
    bias: Option<DType>,
    groups: usize,
    eps: f64,
    nhwc: bool,
    act: &str,
    out: DType,
) -> Result<Vec<Spec>, Why> {
    if [Some(x.dtype), weight, bias, Some(out)].into_iter().flatten().any(|d| !is_small_float(d)) {
        return Err(Why::new("norms take f32, f16 and bf16"));
    }
    let rank = x.shape.len();
    if rank < 2 || x.shape.contains(&0) {
        return Err(Why::new("group norm takes images"));
    }
    let (channels, spatial) =
        if nhwc { (x.shape[rank - 1], &x.shape[1..rank - 1]) } else { (x.shape[1], &x.shape[2..]) };
    let (images, pixels) = (x.shape[0], spatial.iter().product::<usize>());
    if groups == 0 || channels % groups != 0 || groups > 4096 {
        return Err(Why::new(format!("{channels} channels in {groups} groups")));
    }
    if let Some(lanes) = lanes_of(x.dtype, channels, groups).filter(|_| nhwc) {
        return group_rows(x.dtype, [weight, bias], (images, pixels, channels, groups), lanes, eps, act, out);
    }
    // Enough blocks for a large device, each with some thousand elements; the split depends on sizes alone.
    let parts = (pixels * (channels / groups) / 2048).clamp(1, (512 / (images * groups)).max(1));
    let act = format!("f_{act}");
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TW", c_type(weight.unwrap_or(x.dtype)))
        .ty("TB", c_type(bias.unwrap_or(x.dtype)))
        .ty("TO", c_type(out))
        .flag("HAS_WEIGHT", weight.is_some())
        .flag("HAS_BIAS", bias.is_some())
        .flag("NHWC", nhwc)
        .set("ACT", act)
        .source("group_norm", concat!(include_str!("join.cu"), include_str!("group_norm.cu")));
    let scratch = images * groups * parts * 12;
    let sizes = [Param::size(channels), Param::size(pixels), Param::i32(groups as i32), Param::i32(parts as i32)];
    let mut first = vec![Param::In(0, 0), Param::Scratch(0)];
    first.extend(sizes.clone());
    let maybe = |there: Option<DType>, i: usize| there.map_or(Param::Null, |_| Param::In(i, 0));
    let mut second = vec![Param::In(0, 0), maybe(weight, 1), maybe(bias, 2), Param::Scratch(0), Param::Out(0, 0)];
    second.extend(sizes);
    second.push(Param::f32(eps as f32));
    let blocks = (channels * pixels).div_ceil(2048).min((132 * 8usize).div_ceil(images)).max(1);
    Ok(vec![
        Spec {
            source: source.clone(),
            entry: "group_norm_stats",
            launch: grid([images * groups, parts, 1], 256, 0)?,
            params: first,
            scratch,
        },
        Spec {
            source,
            entry: "group_norm_apply",
            launch: grid([images, blocks, 1], 256, groups * 8)?,
            params: second,
            scratch,
        },
    ])
}

/// Threads for all channels of a pixel, and channels of each, where blocks of [`group_rows`] can have so many.
fn lanes_of(dtype: DType, channels: usize, groups: usize) -> Option<(usize, usize)> {
    let width = [16 / dtype.size(), 4, 2, 1].into_iter().find(|width| channels.is_multiple_of(*width))?;
    let lanes = channels / width;
    // The statistics of a row of channels are in shared memory.
    (lanes <= 1024 && channels <= 4096 && groups <= 1024).then_some((lanes, width))
}

/// Group norm with channels last.
fn group_rows(
    dtype: DType,
    [weight, bias]: [Option<DType>; 2],
    (images, pixels, channels, groups): (usize, usize, usize, usize),
    (lanes, width): (usize, usize),
    eps: f64,
    act: &str,
    out: DType,
) -> Result<Vec<Spec>, Why> {
    let threads = if lanes <= 256 { 256 } else { lanes.next_multiple_of(32) };
    let rows = (threads / lanes).min(16).min(6144 / channels).max(1);
    let source = Defines::default()
        .ty("TX", c_type(dtype))
        .ty("TW", c_type(weight.unwrap_or(dtype)))
        .ty("TB", c_type(bias.unwrap_or(dtype)))
        .ty("TO", c_type(out))
        .flag("HAS_WEIGHT", weight.is_some())
        .flag("HAS_BIAS", bias.is_some())
        .set("CHANNELS", channels)
        .set("GROUPS", groups)
        .set("V", width)
        .set("ROWS", rows)
        .set("THREADS", threads)
        .set("ACT", format!("f_{act}"))
        .source("group_norm_rows", concat!(include_str!("join.cu"), include_str!("group_norm_rows.cu")));
    // Enough blocks for a large device. Each of the second launch joins all parts first, so there are few; the split depends
    // on sizes alone.
    let parts = pixels.div_ceil(rows * 4).clamp(1, 132usize.div_ceil(images));
    let blocks = pixels.div_ceil(rows * 4).clamp(1, (132 * 4usize).div_ceil(images));
    let scratch = images * groups * parts * 12;
    let maybe = |there: Option<DType>, i: usize| there.map_or(Param::Null, |_| Param::In(i, 0));
    let sizes = [Param::size(pixels), Param::i32(parts as i32)];
    let mut first = vec![Param::In(0, 0), Param::Scratch(0)];
    first.extend(sizes.clone());
    let mut second = vec![Param::In(0, 0), maybe(weight, 1), maybe(bias, 2), Param::Scratch(0), Param::Out(0, 0)];
    second.extend(sizes);
    second.push(Param::f32(eps as f32));
    Ok(vec![
        Spec {
            source: source.clone(),
            entry: "group_norm_rows_stats",
            launch: grid([images, parts, 1], threads, rows * channels * 8)?,
            params: first,
            scratch,
        },
        Spec {
            source,
            entry: "group_norm_rows_apply",
            launch: grid([images, blocks, 1], threads, 0)?,
            params: second,
            scratch,
        },
    ])
}

/// Softmax of a value in one piece.
///
/// # Errors
/// When a type or a size does not fit.
pub fn softmax(x: &View<'_>, axis: usize, log: bool, out: DType) -> Result<Spec, Why> {
    if !is_small_float(x.dtype) || !is_small_float(out) || axis >= x.shape.len() {
        return Err(Why::new("softmax takes f32, f16 and bf16"));
    }
    let outer: usize = x.shape[..axis].iter().product();
    let (cols, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    if outer * cols * inner == 0 {
        return Err(Why::new("an empty value"));
    }
    let threads = cols.div_ceil(4).next_multiple_of(32).clamp(32, 256);
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", c_type(out))
        .flag("LOG", log)
        .set("THREADS", threads)
        .source("softmax", include_str!("softmax.cu"));
    let mut params = vec![Param::In(0, 0), Param::Out(0, 0)];
    if inner == 1 {
        params.push(Param::size(cols));
        return Ok(Spec {
            source,
            entry: "softmax_rows",
            launch: grid([outer, 1, 1], threads, 0)?,
            params,
            scratch: 0,
        });
    }
    let count = outer * inner;
    params.extend([Param::size(count), Param::size(cols), Param::size(inner)]);
    let launch = grid([count.div_ceil(256), 1, 1], 256, 0)?;
    Ok(Spec { source, entry: "softmax_inner", launch, params, scratch: 0 })
}

/// Batch norm by given statistics, over any layout: elementwise. Operands: `x`, `mean`, `var`, `weight?`, `bias?`.
///
/// # Errors
/// When a type does not fit.
pub fn batch(x: &View<'_>, others: [Option<DType>; 4], eps: f64, nhwc: bool, out: DType) -> Result<Spec, Why> {
    let [mean, var, weight, bias] = others;
    let all = [Some(x.dtype), mean, var, weight, bias, Some(out)];
    if all.into_iter().flatten().any(|d| !is_small_float(d)) || mean.is_none() || var.is_none() || x.shape.len() < 2 {
        return Err(Why::new("batch norm takes f32, f16 and bf16"));
    }
    let count: usize = x.shape.iter().product();
    let (channels, inner) =
        if nhwc { (x.shape[x.shape.len() - 1], 1) } else { (x.shape[1], x.shape[2..].iter().product::<usize>()) };
    let ty = |d: Option<DType>| c_type(d.unwrap_or(x.dtype));
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TM", ty(mean))
        .ty("TV", ty(var))
        .ty("TW", ty(weight))
        .ty("TB", ty(bias))
        .ty("TO", c_type(out))
        .flag("HAS_WEIGHT", weight.is_some())
        .flag("HAS_BIAS", bias.is_some())
        .source("batch_norm", include_str!("batch_norm.cu"));
    let maybe = |there: Option<DType>, i: usize| there.map_or(Param::Null, |_| Param::In(i, 0));
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        Param::In(2, 0),
        maybe(weight, 3),
        maybe(bias, 4),
        Param::Out(0, 0),
        Param::size(count),
        Param::size(channels),
        Param::size(inner),
        Param::f32(eps as f32),
    ];
    Ok(Spec { source, entry: "batch_norm", launch: stepping(count), params, scratch: 0 })
}
