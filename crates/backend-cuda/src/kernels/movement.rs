//! Moving elements, and making them from nothing.

use regraft_ir::{Scalar, ops::PadMode};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    bits_type, c_type,
    elementwise::{MOST_AXES, View, copy, join_axes},
    spec::{Defines, Fields, Param, Spec, Why, grid, index_type, stepping},
};

/// Operand `index` with its elements in row-major order.
///
/// # Errors
/// When there are too many axes.
pub fn row_major(index: usize, from: &View<'_>) -> Result<Spec, Why> {
    if let Some((batch, rows, cols)) = turned(from) {
        return transpose(index, from.dtype, batch, rows, cols);
    }
    copy(index, from)
}

/// `[b, r, c]` when `from` shows `[b, c, r]` in memory of that order, and both are large enough for tiles.
fn turned(from: &View<'_>) -> Option<(usize, usize, usize)> {
    let dims: Vec<(usize, usize)> =
        from.shape.iter().copied().zip(from.strides.iter().copied()).filter(|d| d.0 != 1).collect();
    // Split the axes into those before and after the one with stride 1's group.
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for (size, stride) in dims {
        match groups.last_mut() {
            Some(last) if last.1 == stride * size => *last = (last.0 * size, stride),
            _ => groups.push((size, stride)),
        }
    }
    let (batch, matrix) = match groups.as_slice() {
        [b, m @ ..] if m.len() == 2 => (b.0, m),
        m if m.len() == 2 => (1, m),
        _ => return None,
    };
    let ((c, cs), (r, rs)) = (matrix[0], matrix[1]);
    let whole = groups.len() == 2 || groups[0].1 == r * c;
    (cs == 1 && rs == c && whole && r >= 8 && c >= 8 && batch < 65_536).then_some((batch, r, c))
}

fn transpose(index: usize, dtype: DType, batch: usize, rows: usize, cols: usize) -> Result<Spec, Why> {
    let source =
        Defines::default().ty("E", bits_type(dtype)).set("MODE", 0).source("transpose", include_str!("move.cu"));
    let launch = grid([cols.div_ceil(32), rows.div_ceil(32), batch], 256, 0)?;
    let params = vec![Param::In(index, 0), Param::Out(0, 0), Param::size(rows), Param::size(cols)];
    Ok(Spec { source, entry: "transpose", launch, params, scratch: 0 })
}

/// Most operands that one launch joins.
const MOST_PARTS: usize = 4;

/// Operands one after the other along `axis` of the result.
///
/// # Errors
/// When there are too many axes.
pub fn concat(inputs: &[View<'_>], axis: usize, shape: &[usize]) -> Result<Vec<Spec>, Why> {
    let to = contiguous_strides(shape);
    let mut first = 0;
    let mut parts = Vec::with_capacity(inputs.len());
    for (index, view) in inputs.iter().enumerate() {
        if view.shape.iter().product::<usize>() > 0 {
            let mut strides = [view.strides.to_vec(), to.clone()];
            let sizes = join_axes(view.shape, &mut strides);
            parts.push(Part { index, first: first * to[axis], sizes, strides });
        }
        first += view.shape[axis];
    }
    let dtype = inputs.first().map_or(DType::U8, |view| view.dtype);
    parts.chunks(MOST_PARTS).map(|parts| join(parts, dtype)).collect()
}

/// An operand, and where its elements are in it and in what it is joined to.
struct Part {
    index: usize,
    /// The element of the result that its first one is.
    first: usize,
    sizes: Vec<usize>,
    strides: [Vec<usize>; 2],
}

impl Part {
    /// Whether `vec` elements can be moved at once.
    fn moves(&self, vec: usize) -> bool {
        self.sizes.last().is_some_and(|size| size.is_multiple_of(vec))
            && self.strides.iter().all(|strides| strides.last() == Some(&1))
    }

    /// The fields of its structure with so many axes, in groups of `vec` elements.
    fn fields(&self, fields: Fields, axes: usize, vec: usize) -> Fields {
        let with = |values: &[usize], one: usize| [&vec![one; axes - values.len()], values].concat();
        let mut sizes = with(&self.sizes, 1);
        sizes[axes - 1] /= vec;
        let fields = fields.sizes(&[sizes.iter().product(), self.first]).sizes(&sizes);
        self.strides.iter().fold(fields, |fields, strides| {
            let mut strides = with(strides, 0);
            strides[axes - 1] *= vec;
            fields.sizes(&strides)
        })
    }
}

/// One launch for a few operands.
fn join(parts: &[Part], dtype: DType) -> Result<Spec, Why> {
    let axes = parts.iter().map(|part| part.sizes.len()).max().unwrap_or(1);
    if axes > MOST_AXES {
        return Err(Why::new(format!("{axes} axes cannot be joined to {MOST_AXES}")));
    }
    let fits = |vec: &usize| vec * dtype.size() <= 16 && parts.iter().all(|part| part.moves(*vec));
    let vec = [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
    let most = parts.iter().map(|part| part.sizes.iter().product::<usize>() / vec).max().unwrap_or(0);
    let source = Defines::default()
        .ty("E", bits_type(dtype))
        .ty("I", index_type(most))
        .set("VEC", vec)
        .set("AXES", axes)
        .set("PARTS", parts.len())
        .source("concat", include_str!("concat.cu"));
    let mut launch = stepping(most);
    launch.grid[1] = parts.len() as u32;
    let fields = parts.iter().fold(Fields::default(), |fields, part| part.fields(fields, axes, vec));
    let operand = |i: usize| parts.get(i).map_or(Param::Null, |part| Param::In(part.index, 0));
    let mut params: Vec<Param> = (0..MOST_PARTS).map(operand).collect();
    params.extend([Param::Out(0, 0), fields.param()]);
    Ok(Spec { source, entry: "concat", launch, params, scratch: 0 })
}

/// Elements added around a value in one piece.
///
/// # Errors
/// When there are too many axes.
pub fn pad(x: &View<'_>, before: &[i64], mode: PadMode, value: Scalar, shape: &[usize]) -> Result<Spec, Why> {
    let lead = 6usize.checked_sub(shape.len()).ok_or_else(|| Why::new("more than 6 axes"))?;
    let with = |values: &[usize], one: usize| [&vec![one; lead], values].concat();
    let mut fields =
        Fields::default().sizes(&with(shape, 1)).sizes(&with(x.shape, 1)).sizes(&with(&contiguous_strides(x.shape), 0));
    let shift: Vec<usize> = before.iter().map(|&b| b as usize).collect();
    fields = fields.sizes(&with(&shift, 0));
    let number = match mode {
        PadMode::Constant => 0,
        PadMode::Reflect => 1,
        PadMode::Replicate => 2,
    };
    let source =
        Defines::default().ty("E", bits_type(x.dtype)).set("MODE", number).source("pad", include_str!("move.cu"));
    let count: usize = shape.iter().product();
    let params = vec![
        Param::In(0, 0),
        Param::Out(0, 0),
        Param::size(count),
        Param::Bytes(literal_bytes(value, x.dtype)),
        fields.param(),
    ];
    Ok(Spec { source, entry: "pad", launch: stepping(count), params, scratch: 0 })
}

/// A value in reverse order along `axes`; it lies in one piece.
///
/// # Errors
/// When there are too many axes.
pub fn flip(x: &View<'_>, axes: &[usize]) -> Result<Spec, Why> {
    let mut strides: Vec<i64> = contiguous_strides(x.shape).iter().map(|&s| s as i64).collect();
    let mut first = 0i64;
    for &axis in axes {
        first += (x.shape[axis] as i64 - 1) * strides[axis];
        strides[axis] = -strides[axis];
    }
    let lead = 6usize.checked_sub(x.shape.len()).ok_or_else(|| Why::new("more than 6 axes"))?;
    let sizes = [&vec![1; lead], x.shape].concat();
    let steps: Vec<usize> = vec![0; lead].into_iter().chain(strides.iter().map(|&s| s as usize)).collect();
    let source = Defines::default().ty("E", bits_type(x.dtype)).source("flip", include_str!("flip.cu"));
    let count: usize = x.shape.iter().product();
    let params = vec![
        Param::In(0, 0),
        Param::Out(0, 0),
        Param::size(count),
        Param::i64(first),
        Fields::default().sizes(&sizes).sizes(&steps).param(),
    ];
    Ok(Spec { source, entry: "flip", launch: stepping(count), params, scratch: 0 })
}

/// A literal, `count` times.
pub fn full(value: Scalar, dtype: DType, count: usize) -> Spec {
    let source = Defines::default().ty("T", bits_type(dtype)).source("full", include_str!("create.cu"));
    let params = vec![Param::Out(0, 0), Param::size(count), Param::Bytes(literal_bytes(value, dtype))];
    Spec { source, entry: "full", launch: stepping(count), params, scratch: 0 }
}

/// `start, start + step, ...`
///
/// # Errors
/// For bool.
pub fn iota(start: i64, step: i64, dtype: DType, count: usize) -> Result<Spec, Why> {
    let value = match dtype {
        DType::Bool => return Err(Why::new("bool has no steps")),
        DType::F64 => "double",
        d if d.is_float() => "float",
        _ => "i64",
    };
    let source = Defines::default().ty("T", c_type(dtype)).ty("V", value).source("iota", include_str!("iota.cu"));
    let params = vec![Param::Out(0, 0), Param::size(count), Param::i64(start), Param::i64(step)];
    Ok(Spec { source, entry: "iota", launch: stepping(count), params, scratch: 0 })
}

/// A literal as one element.
fn literal_bytes(value: Scalar, dtype: DType) -> Vec<u8> {
    let tensor = match value {
        Scalar::Float(v) => regraft_tensor::Tensor::from_f64(dtype, &[1], &[v]),
        Scalar::Int(v) => regraft_tensor::Tensor::from_i64(dtype, &[1], &[v]),
    };
    tensor.bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_operands_are_joined_by_one_launch() {
        let view = |cols: usize| View {
            dtype: DType::F16,
            shape: if cols == 8 { &[4, 8] } else { &[4, 0] },
            strides: &[8, 1],
        };
        let launches = |count: usize| concat(&vec![view(8); count], 1, &[4, 8 * count]).expect("two axes");
        assert_eq!([1, 2, 4, 5, 9].map(|count| launches(count).len()), [1, 1, 1, 2, 3]);
        let spec = concat(&[view(8), view(0), view(8)], 1, &[4, 16]).expect("two axes").remove(0);
        assert_eq!(spec.params[..3], [Param::In(0, 0), Param::In(2, 0), Param::Null]);
        assert_eq!(spec.launch.grid, [1, 2, 1]);
    }

    #[test]
    fn an_image_with_channels_last_is_a_transpose() {
        let view = |shape, strides| View { dtype: DType::F32, shape, strides };
        // NCHW memory shown as NHWC.
        assert_eq!(turned(&view(&[2, 8, 8, 16], &[1024, 8, 1, 64])), Some((2, 16, 64)));
        assert_eq!(turned(&view(&[64, 16], &[1, 64])), Some((1, 16, 64)));
        assert_eq!(turned(&view(&[64, 16], &[16, 1])), None);
        assert_eq!(turned(&view(&[2, 64, 16], &[2048, 1, 64])), None);
    }
}
