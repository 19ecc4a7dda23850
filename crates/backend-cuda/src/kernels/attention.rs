//! Attention of our own: on matrix units for f16 and bf16, split over the keys for a single query, plainly for everything else.

use regraft_ir::ops::{Attention, HeadsLayout};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    c_type,
    elementwise::View,
    is_small_float,
    spec::{Defines, Fields, Param, Spec, Why, grid},
};

/// What all kernels of attention are given.
struct Common {
    /// How the mask is meant: see the sources.
    mask: usize,
    images: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    e: usize,
    fields: Fields,
}

fn common(
    op: &Attention,
    [q, k, v]: [&View<'_>; 3],
    mask: Option<&View<'_>>,
    shape: &[usize],
    out: DType,
) -> Result<Common, Why> {
    let kind = match mask.map(|m| m.dtype) {
        None => 0,
        Some(DType::Bool) => 2,
        Some(d) if is_small_float(d) => 1,
        Some(d) => return Err(Why::new(format!("a mask of {d}"))),
    };
    if [q.dtype, k.dtype, v.dtype, out].into_iter().any(|d| !is_small_float(d)) {
        return Err(Why::new("attention takes f32, f16 and bf16"));
    }
    let (images, heads, queries, d) = (q.shape[0], q.shape[1], q.shape[2], q.shape[3]);
    let (kv_heads, keys, e) = (k.shape[1], k.shape[2], v.shape[3]);
    if kv_heads == 0 || heads % kv_heads != 0 || d == 0 || d > 256 || e == 0 || e > 256 {
        return Err(Why::new(format!("{heads} heads of {d} over {kv_heads} heads of {e}")));
    }
    let own = contiguous_strides(shape);
    let out_strides = match op.out {
        HeadsLayout::Bhsd => own,
        HeadsLayout::Bshd => vec![own[0], own[2], own[1], own[3]],
    };
    let mask_strides = match mask {
        None => vec![0; 4],
        Some(m) => {
            let lead = 4 - m.shape.len();
            let mut strides = vec![0; 4];
            for (a, (&size, &stride)) in m.shape.iter().zip(m.strides).enumerate() {
                strides[lead + a] = if size == 1 { 0 } else { stride };
            }
            strides
        }
    };
    let fields = Fields::default()
        .sizes(q.strides)
        .sizes(k.strides)
        .sizes(v.strides)
        .sizes(&mask_strides)
        .sizes(&out_strides)
        .i32(queries as i32)
        .i32(keys as i32)
        .i32((heads / kv_heads) as i32)
        .f32(op.scale as f32);
    Ok(Common { mask: kind, images, heads, kv_heads, queries, keys, d, e, fields })
}

/// Attention. Operands: `q`, `k`, `v`, `mask?`, any strides.
///
/// # Errors
/// When a type or a size does not fit.
pub fn attention(
    op: &Attention,
    q: &View<'_>,
    k: &View<'_>,
    v: &View<'_>,
    mask: Option<&View<'_>>,
    shape: &[usize],
    out: DType,
    matrix_units: bool,
) -> Result<Spec, Why> {
    let Common { mask: kind, images, heads, queries, d, e, fields, .. } = common(op, [q, k, v], mask, shape, out)?;
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        Param::In(2, 0),
        mask.map_or(Param::Null, |_| Param::In(3, 0)),
        Param::Out(0, 0),
        fields.param(),
    ];
    let half = matches!(q.dtype, DType::F16 | DType::BF16);
    let one_type = [k.dtype, v.dtype, out].iter().all(|&t| t == q.dtype);
    let side_by_side = [q, k, v].iter().all(|v| v.strides[3] == 1 || v.shape[3] == 1);
    let defines = Defines::default()
        .ty("TM", c_type(mask.map_or(DType::F32, |m| m.dtype)))
        .set("MASK", kind)
        .set("D", d)
        .flag("CAUSAL", op.causal);
    if matrix_units {
        if !(half && one_type && side_by_side && d == e && op.scale > 0.0) {
            return Err(Why::new("matrix units take f16 and bf16 with elements side by side, and a positive scale"));
        }
        // Whole rows are copied 16 bytes at a time when every row begins at such an address.
        let aligned = d % 8 == 0 && [q, k, v].iter().all(|v| (0..3).all(|a| v.shape[a] == 1 || v.strides[a] % 8 == 0));
        let dp = d.next_multiple_of(16);
        let tile = if dp > 128 { 32 } else { 64 };
        // Twice as many queries read a tile of keys half as often; few of them leave a large device idle.
        let wide = dp <= 80 && queries.div_ceil(128) * heads * images >= BLOCKS;
        let rows = if wide { 128 } else { 64 };
        let shared = (rows + 4 * tile) * (dp + 8) * 2;
        let source = defines
            .ty("T", c_type(q.dtype))
            .set("MMA", format!("\"{}\"", q.dtype))
            .set("DP", dp)
            .set("BN", tile)
            .set("MT", rows / 64)
            .flag("ASYNC", aligned)
            .source("attention_mma", include_str!("attention_mma.cu"));
        let launch = grid([queries.div_ceil(rows), heads, images], 128, shared)?;
        return Ok(Spec { source, entry: "attention_mma", launch, params, scratch: 0 });
    }
    let source = defines
        .ty("TQ", c_type(q.dtype))
        .ty("TK", c_type(k.dtype))
        .ty("TV", c_type(v.dtype))
        .ty("TO", c_type(out))
        .set("E", e)
        .source("attention", include_str!("attention.cu"));
    let shared = (32 * (d + 1) + 32 * e + 16 * d) * 4;
    let launch = grid([queries.div_ceil(16), heads, images], 128, shared)?;
    Ok(Spec { source, entry: "attention", launch, params, scratch: 0 })
}

/// Most heads whose queries a block of [`decode`] holds in registers.
const MOST_GROUP: usize = 8;
/// Blocks that keep a large device busy.
const BLOCKS: usize = 264;

/// Attention of one query for each image and head, as a step of decoding has it. Operands as [`attention`]'s.
///
/// # Errors
/// When a type or a size does not fit.
pub fn decode(
    op: &Attention,
    q: &View<'_>,
    k: &View<'_>,
    v: &View<'_>,
    mask: Option<&View<'_>>,
    shape: &[usize],
    out: DType,
) -> Result<Vec<Spec>, Why> {
    let common = common(op, [q, k, v], mask, shape, out)?;
    let Common { images, heads, kv_heads, queries, keys, d, e, .. } = common;
    let size = q.dtype.size();
    let lanes = d * size / 16;
    let one_type = [k.dtype, v.dtype, out].iter().all(|&t| t == q.dtype);
    let side_by_side = [q, k, v].iter().all(|v| v.strides[3] == 1);
    if queries != 1 || op.causal || d != e || keys == 0 || !one_type || !side_by_side {
        return Err(Why::new("one query over keys of its own type, side by side"));
    }
    if !(lanes * 16 == d * size && lanes.is_power_of_two() && (4..=32).contains(&lanes)) {
        return Err(Why::new(format!("heads of {d}")));
    }
    let each = heads / kv_heads;
    let group = (1..=MOST_GROUP).rev().find(|g| each.is_multiple_of(*g)).unwrap_or(1);
    let (blocks, teams) = (heads / group * images, 128 / lanes);
    let splits = BLOCKS.div_ceil(blocks).clamp(1, keys.div_ceil(teams * 2));
    let source = Defines::default()
        .ty("T", c_type(q.dtype))
        .ty("TM", c_type(mask.map_or(DType::F32, |m| m.dtype)))
        .set("MASK", common.mask)
        .set("D", d)
        .set("GROUP", group)
        .set("LANES", lanes)
        .set("MOST_SPLITS", BLOCKS)
        .source("attention_decode", include_str!("attention_decode.cu"));
    let heads_param = common.fields.param();
    let scratch = images * heads * splits * (d + 2) * 4;
    let mask = mask.map_or(Param::Null, |_| Param::In(3, 0));
    let first = vec![Param::In(0, 0), Param::In(1, 0), Param::In(2, 0), mask, Param::Scratch(0), heads_param.clone()];
    Ok(vec![
        Spec {
            source: source.clone(),
            entry: "attention_decode",
            launch: grid([splits, heads / group, images], 128, 0)?,
            params: first,
            scratch,
        },
        Spec {
            source,
            entry: "attention_join",
            launch: grid([heads, images, 1], 128, 0)?,
            params: vec![Param::Scratch(0), Param::Out(0, 0), heads_param, Param::i32(splits as i32)],
            scratch,
        },
    ])
}
