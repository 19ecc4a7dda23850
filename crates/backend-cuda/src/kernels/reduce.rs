//! Reductions, positions of extrema, running sums.

use regraft_ir::ops::{ArgReduceFn, ReduceFn};
use regraft_tensor::DType;

use super::{
    c_type,
    elementwise::View,
    is_small_float,
    spec::{Defines, Fields, Param, Spec, Why, grid, threads_for},
};

/// What is accumulated in.
fn accumulator(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        d if is_small_float(d) => "float",
        _ => "i64",
    }
}

/// The axes of a reduction, as the source's structure.
fn axes(x: &View<'_>, gone: &[usize]) -> Result<(Param, usize, usize), Why> {
    let mut lists: [Vec<usize>; 4] = Default::default();
    for (axis, (&size, &stride)) in x.shape.iter().zip(x.strides).enumerate() {
        if size == 1 {
            continue;
        }
        let at = if gone.contains(&axis) { 2 } else { 0 };
        // A neighbor that steps on from here makes one axis of both.
        if let Some((last, step)) = lists[at].last().copied().zip(lists[at + 1].last().copied())
            && step == stride * size
        {
            *lists[at].last_mut().expect("there is one") = last * size;
            *lists[at + 1].last_mut().expect("there is one") = stride;
        } else {
            lists[at].push(size);
            lists[at + 1].push(stride);
        }
    }
    if lists.iter().any(|l| l.len() > 6) {
        return Err(Why::new("too many axes"));
    }
    let [outputs, each] = [0, 2].map(|i| lists[i].iter().product::<usize>());
    let mut fields = Fields::default();
    for (i, list) in lists.iter().enumerate() {
        let mut padded = vec![if i % 2 == 0 { 1 } else { 0 }; 6 - list.len()];
        padded.extend(list);
        fields = fields.sizes(&padded);
    }
    Ok((fields.sizes(&[outputs, each]).param(), outputs, each))
}

/// A reduction of the axes `gone`.
///
/// # Errors
/// When a type or a size does not fit.
pub fn reduce(x: &View<'_>, f: ReduceFn, gone: &[usize], out: DType) -> Result<Spec, Why> {
    let acc = accumulator(x.dtype);
    let float = x.dtype.is_float();
    let (least, greatest) = match acc {
        "float" => ("NEG_INF", "POS_INF"),
        "double" => ("(double)NEG_INF", "(double)POS_INF"),
        _ => ("(i64)0x8000000000000000ull", "(i64)0x7fffffffffffffffull"),
    };
    let sum = if float { "(a) + (b)" } else { "i_add(a, b)" };
    let product = if float { "(a) * (b)" } else { "i_mul(a, b)" };
    if acc == "double" && matches!(f, ReduceFn::Max | ReduceFn::Min) {
        return Err(Why::new(format!("{} of f64", f.name())));
    }
    let (start, join, load, finish) = match f {
        ReduceFn::Sum => ("0", sum, "(v)", "(a)"),
        ReduceFn::Mean => ("0", sum, "(v)", "(a) / (n)"),
        ReduceFn::Prod => ("1", product, "(v)", "(a)"),
        ReduceFn::Max if float => (least, "f_max(a, b)", "(v)", "(a)"),
        ReduceFn::Max => (least, "((a) > (b) ? (a) : (b))", "(v)", "(a)"),
        ReduceFn::Min if float => (greatest, "f_min(a, b)", "(v)", "(a)"),
        ReduceFn::Min => (greatest, "((a) < (b) ? (a) : (b))", "(v)", "(a)"),
        ReduceFn::Any => ("0", "((a) + (b) != 0 ? 1 : 0)", "((v) != 0 ? 1 : 0)", "(a) != 0"),
        ReduceFn::All => ("1", "((a) + (b) == 2 ? 1 : 0)", "((v) != 0 ? 1 : 0)", "(a) != 0"),
    };
    if matches!(f, ReduceFn::Mean) && !float {
        return Err(Why::new("the mean of integers"));
    }
    let to_bool = out == DType::Bool && !matches!(f, ReduceFn::Any | ReduceFn::All);
    let finish = if to_bool { "(a) != 0" } else { finish };
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", c_type(out))
        .ty("ACC", acc)
        .set("REDUCE", "")
        .set("START", start)
        .set("JOIN(a, b)", join)
        .set("LOAD(v)", load)
        .set("FINISH(a, n)", finish)
        .source("reduce", include_str!("reduce.cu"));
    let (param, outputs, each) = axes(x, gone)?;
    let params = vec![Param::In(0, 0), Param::Out(0, 0), param];
    // Neighboring outputs read neighboring elements when the last axis stays; few elements need no block.
    let last_stays = x.shape.len().checked_sub(1).is_some_and(|last| !gone.contains(&last) && x.shape[last] >= 32);
    if each < 32 || (last_stays && outputs >= 4096) {
        return Ok(Spec { source, entry: "reduce_threads", launch: threads_for(outputs)?, params, scratch: 0 });
    }
    Ok(Spec { source, entry: "reduce_blocks", launch: grid([outputs, 1, 1], 256, 0)?, params, scratch: 0 })
}

/// The index of an extremum along `axis`.
///
/// # Errors
/// When a size does not fit.
pub fn arg_reduce(x: &View<'_>, f: ArgReduceFn, axis: usize) -> Result<Spec, Why> {
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", "i64")
        .ty("ACC", accumulator(x.dtype))
        .set("ARG", "")
        .flag("ARG_LESS", f == ArgReduceFn::Min)
        .source("arg_reduce", include_str!("reduce.cu"));
    let (param, outputs, _) = axes(x, &[axis])?;
    let params = vec![Param::In(0, 0), Param::Out(0, 0), param];
    Ok(Spec { source, entry: "arg_blocks", launch: grid([outputs, 1, 1], 256, 0)?, params, scratch: 0 })
}

/// The running sum along `axis` of a value in one piece.
///
/// # Errors
/// When a type does not fit.
pub fn cumsum(x: &View<'_>, axis: usize, out: DType) -> Result<Spec, Why> {
    if x.dtype == DType::Bool || out == DType::Bool || axis >= x.shape.len() || x.dtype.is_float() != out.is_float() {
        return Err(Why::new("running sums are of numbers"));
    }
    let (cols, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let lines = x.shape[..axis].iter().product::<usize>() * inner;
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TO", c_type(out))
        .ty("ACC", accumulator(x.dtype))
        .set("SCAN", "")
        .source("cumsum", include_str!("reduce.cu"));
    let params = vec![Param::In(0, 0), Param::Out(0, 0), Param::size(lines), Param::size(cols), Param::size(inner)];
    Ok(Spec { source, entry: "scan_lines", launch: grid([lines.div_ceil(8), 1, 1], 256, 0)?, params, scratch: 0 })
}
