//! Elements at computed positions. All operands lie in one piece.

use regraft_tensor::{DType, contiguous_strides};

use super::{
    bits_type, c_type,
    elementwise::{View, broadcast_strides},
    spec::{Defines, Fields, Param, Spec, Why, index_type, stepping},
};

fn padded(values: &[usize], with: usize) -> Result<Vec<usize>, Why> {
    let lead = 6usize.checked_sub(values.len()).ok_or_else(|| Why::new("more than 6 axes"))?;
    Ok([&vec![with; lead], values].concat())
}

/// What the places of so many elements, and those in these operands, are computed in.
fn places<'a>(count: usize, operands: impl IntoIterator<Item = &'a View<'a>>) -> &'static str {
    let reach = |view: &View<'_>| {
        let last = view.shape.iter().zip(view.strides).map(|(size, stride)| size.saturating_sub(1) * stride);
        last.sum::<usize>() + 1
    };
    index_type(operands.into_iter().map(reach).fold(count, usize::max))
}

/// Rows of a table. Operands: `weight`, `ids`.
///
/// # Errors
/// When a size does not fit.
pub fn embedding(table: &View<'_>, ids: &View<'_>) -> Result<Spec, Why> {
    let row: usize = table.shape[1..].iter().product();
    let count: usize = ids.shape.iter().product();
    let vec = [16, 8, 4, 2].into_iter().find(|v| row.is_multiple_of(*v) && v * table.dtype.size() <= 16).unwrap_or(1);
    let source = Defines::default()
        .ty("E", bits_type(table.dtype))
        .ty("TI", c_type(ids.dtype))
        .ty("N", places(count * row, []))
        .set("VEC", vec)
        .set("COUNT", 1)
        .source("embedding", include_str!("index.cu"));
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        Param::Out(0, 0),
        Param::Report,
        Param::size(count),
        Param::size(table.shape[0]),
        Param::size(row),
    ];
    Ok(Spec { source, entry: "embedding_rows", launch: stepping(count * row / vec), params, scratch: 0 })
}

/// Elements along `axis`. Operands: `x`, `index`.
///
/// # Errors
/// When a size does not fit.
pub fn gather(x: &View<'_>, index: &View<'_>, axis: usize) -> Result<Spec, Why> {
    let mut strides = contiguous_strides(x.shape);
    let step = std::mem::replace(&mut strides[axis], 0);
    let count: usize = index.shape.iter().product();
    let source = Defines::default()
        .ty("E", bits_type(x.dtype))
        .ty("TI", c_type(index.dtype))
        .ty("N", places(count, [x]))
        .set("VEC", 1)
        .set("COUNT", 1)
        .source("gather", include_str!("index.cu"));
    let shape = Fields::default().sizes(&padded(index.shape, 1)?).sizes(&padded(&strides, 0)?);
    let params = vec![
        Param::In(0, 0),
        Param::In(1, 0),
        Param::Out(0, 0),
        Param::Report,
        Param::size(count),
        Param::size(x.shape[axis]),
        Param::size(step),
        shape.param(),
    ];
    Ok(Spec { source, entry: "gather_axis", launch: stepping(count), params, scratch: 0 })
}

/// The dtype of index tensors, and the structure that sources read them with.
fn indices_of(x: &View<'_>, indices: &[View<'_>], axis: usize, points: &[usize]) -> Result<(DType, Fields), Why> {
    let dtype = indices.first().map_or(DType::I64, |i| i.dtype);
    if indices.is_empty() || indices.len() > 4 || indices.iter().any(|i| i.dtype != dtype) {
        return Err(Why::new("one to four index tensors of one dtype"));
    }
    let mut sizes = x.shape[axis..axis + indices.len()].to_vec();
    sizes.resize(4, 1);
    let mut fields = Fields::default().sizes(&sizes).sizes(&padded(points, 1)?);
    for i in 0..4 {
        let strides = match indices.get(i) {
            Some(view) => broadcast_strides(view, points)?,
            None => vec![0; points.len()],
        };
        fields = fields.sizes(&padded(&strides, 0)?);
    }
    Ok((dtype, fields))
}

/// More points than each element is worth comparing with.
const MOST_POINTS: usize = 256;

/// `x` with values put at a few points, which the indices on the axes from `axis` on broadcast to. Operands: `x`, `values`, the
/// indices.
///
/// # Errors
/// When a type, a size or the number of indices or points does not fit.
pub fn put(x: &View<'_>, values: &View<'_>, indices: &[View<'_>], axis: usize, points: &[usize]) -> Result<Spec, Why> {
    let (dtype, fields) = indices_of(x, indices, axis, points)?;
    let count: usize = points.iter().product();
    if values.dtype != x.dtype || count > MOST_POINTS {
        return Err(Why::new(format!("{count} points of {} in {}", values.dtype, x.dtype)));
    }
    let end = axis + indices.len();
    let written = [&x.shape[..axis], points, &x.shape[end..]].concat();
    let strides = broadcast_strides(values, &written)?;
    let shape = Fields::default().sizes(&padded(&written, 1)?).sizes(&padded(&strides, 0)?);
    let outer: usize = x.shape[..axis].iter().product();
    let inner: usize = x.shape[end..].iter().product();
    let indexed: usize = x.shape[axis..end].iter().product();
    let source = Defines::default()
        .ty("E", bits_type(x.dtype))
        .ty("TI", c_type(dtype))
        .ty("N", places(outer * count.max(indexed) * inner, indices.iter().chain([values])))
        .set("VEC", 1)
        .set("COUNT", indices.len())
        .source("index_put", include_str!("index.cu"));
    let mut params = vec![Param::In(0, 0), Param::In(1, 0)];
    params.extend((0..4).map(|i| if i < indices.len() { Param::In(i + 2, 0) } else { Param::Null }));
    params.extend([Param::Out(0, 0), Param::Report]);
    params.extend([outer, count, inner, indexed].map(Param::size));
    params.extend([fields.param(), shape.param()]);
    // In place, which is the rule, only a few elements are written.
    let launch = stepping((outer * indexed * inner).min(264 * 256));
    Ok(Spec { source, entry: "index_put_set", launch, params, scratch: 0 })
}

/// Several index tensors on the axes from `axis` on, which broadcast to `points`. Operands: `x`, the indices.
///
/// # Errors
/// When a size or the number of indices does not fit.
pub fn index(x: &View<'_>, indices: &[View<'_>], axis: usize, points: &[usize]) -> Result<Spec, Why> {
    let (dtype, fields) = indices_of(x, indices, axis, points)?;
    let end = axis + indices.len();
    let outer: usize = x.shape[..axis].iter().product();
    let inner: usize = x.shape[end..].iter().product();
    let indexed: usize = x.shape[axis..end].iter().product();
    let count: usize = points.iter().product();
    let source = Defines::default()
        .ty("E", bits_type(x.dtype))
        .ty("TI", c_type(dtype))
        .ty("N", places(outer * count * inner, indices))
        .set("VEC", 1)
        .set("COUNT", indices.len())
        .source("index", include_str!("index.cu"));
    let mut params = vec![Param::In(0, 0)];
    params.extend((0..4).map(|i| if i < indices.len() { Param::In(i + 1, 0) } else { Param::Null }));
    params.extend([Param::Out(0, 0), Param::Report]);
    params.extend([outer, count, inner, indexed].map(Param::size));
    params.push(fields.param());
    Ok(Spec { source, entry: "index_axes", launch: stepping(outer * count * inner), params, scratch: 0 })
}
