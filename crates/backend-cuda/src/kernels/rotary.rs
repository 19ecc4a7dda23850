//! Rotary position embeddings.

use regraft_tensor::DType;

use super::{
    c_type,
    elementwise::{View, broadcast_strides, join_axes},
    is_small_float,
    spec::{Defines, Fields, Param, Spec, Why, index_type, stepping},
};

/// Rows of `x` turned by rows of cosines and sines. Operands: `x`, `cos`, `sin`, whose rows each lie in one piece.
///
/// # Errors
/// When a type or a size does not fit.
pub fn rotary(x: &View<'_>, angles: [&View<'_>; 2], out: DType) -> Result<Spec, Why> {
    let [cos, sin] = angles;
    if [x.dtype, cos.dtype].into_iter().any(|d| !is_small_float(d)) || sin.dtype != cos.dtype || out != x.dtype {
        return Err(Why::new("rotary embeddings take f32, f16 and bf16"));
    }
    let Some((&cols, lead)) = x.shape.split_last().filter(|(cols, _)| **cols > 0 && cols.is_multiple_of(2)) else {
        return Err(Why::new("a row without halves"));
    };
    let mut strides = Vec::with_capacity(3);
    for view in [x, cos, sin] {
        let mut own = broadcast_strides(view, x.shape)?;
        if own.pop() != Some(1) {
            return Err(Why::new("rows that do not lie in one piece"));
        }
        strides.push(own);
    }
    let sizes = join_axes(lead, &mut strides);
    let (half, widest) = (cols / 2, x.dtype.size().max(cos.dtype.size()));
    let vec = [8, 4, 2].into_iter().find(|v| half.is_multiple_of(*v) && v * widest <= 16).unwrap_or(1);
    let groups = sizes.iter().product::<usize>() * (half / vec);
    let source = Defines::default()
        .ty("TX", c_type(x.dtype))
        .ty("TA", c_type(cos.dtype))
        .ty("I", index_type(groups))
        .set("HALF", half)
        .set("VEC", vec)
        .set("AXES", sizes.len())
        .source("rotary", include_str!("rotary.cu"));
    let fields = Fields::default().sizes(&[groups]).sizes(&sizes);
    let fields = strides.iter().fold(fields, |fields, own| fields.sizes(own));
    let params = vec![Param::In(0, 0), Param::In(1, 0), Param::In(2, 0), Param::Out(0, 0), fields.param()];
    Ok(Spec { source, entry: "rotary", launch: stepping(groups), params, scratch: 0 })
}
