//! Elementwise chains: one generated kernel for each chain, any mix of element types, computed in f32, f64 and i64.

use std::fmt::Write;

use half::{bf16, f16};
use regraft_ir::{
    Op, Scalar,
    ops::{BinaryFn, CompareFn, Fused, FusedFn, FusedStep, UnaryFn},
};
use regraft_tensor::DType;

use super::{
    bits_type, c_type, is_small_float,
    spec::{Defines, Fields, Param, Spec, Why, index_type, stepping},
};

/// An operand with known sizes and strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: &'a [usize],
    /// Strides in elements.
    pub strides: &'a [usize],
}

/// Most axes that are left after neighbors are joined.
pub(super) const MOST_AXES: usize = 6;

/// The chain that an elementwise op is; `None` for other ops.
pub fn chain_of(op: &Op, inputs: usize) -> Option<Vec<FusedStep>> {
    let args = (0..inputs as u32).collect();
    let f = match op {
        Op::Fused(fused) => return Some(fused.steps.clone()),
        Op::Unary(op) => FusedFn::Unary(op.f),
        Op::Binary(op) => FusedFn::Binary(op.f),
        Op::Compare(op) => FusedFn::Compare(op.f),
        Op::Select(_) => FusedFn::Select,
        Op::Cast(op) => FusedFn::Cast(op.dtype),
        _ => return None,
    };
    Some(vec![FusedStep { f, args }])
}

/// A chain over operands that broadcast to `shape`.
///
/// # Errors
/// When there are too many axes, or a function has no form on the device.
pub fn chain(steps: &[FusedStep], inputs: &[View<'_>], shape: &[usize]) -> Result<Spec, Why> {
    let operand_types: Vec<DType> = inputs.iter().map(|v| v.dtype).collect();
    let types = Fused { steps: steps.to_vec() }.dtypes(&operand_types).map_err(|e| Why::new(e.to_string()))?;
    let body = statements(steps, &types, inputs.len())?;
    let out = *types.last().ok_or_else(|| Why::new("a chain without steps"))?;
    let strides: Vec<Vec<usize>> = inputs.iter().map(|v| broadcast_strides(v, shape)).collect::<Result<_, _>>()?;
    let read: Vec<&str> = operand_types.iter().map(|&d| c_type(d)).collect();
    let result = format!("v{}", types.len() - 1);
    let form = Form { name: "elementwise", read, body: &body, result: &result, to: c_type(out), size: out.size() };
    let sizes = operand_types.iter().map(|d| d.size());
    build(&form, sizes, shape, strides, &(0..inputs.len()).collect::<Vec<_>>())
}

/// Operand `index` copied element by element.
///
/// # Errors
/// When there are too many axes.
pub fn copy(index: usize, from: &View<'_>) -> Result<Spec, Why> {
    let (bits, size) = (bits_type(from.dtype), from.dtype.size());
    let form = Form { name: "copy", read: vec![bits], body: "", result: "p0.v[e]", to: bits, size };
    build(&form, [size].into_iter(), from.shape, vec![from.strides.to_vec()], &[index])
}

/// The strides with which `view` is read as `shape`.
pub(super) fn broadcast_strides(view: &View<'_>, shape: &[usize]) -> Result<Vec<usize>, Why> {
    let lead = shape
        .len()
        .checked_sub(view.shape.len())
        .ok_or_else(|| Why::new("an operand has more axes than the result"))?;
    let along = |(i, &size): (usize, &usize)| {
        let Some(i) = i.checked_sub(lead) else { return Ok(0) };
        match view.shape[i] {
            1 => Ok(0),
            s if s == size => Ok(view.strides[i]),
            s => Err(Why::new(format!("size {s} does not broadcast to {size}"))),
        }
    };
    shape.iter().enumerate().map(along).collect()
}

/// What differs between generated kernels.
struct Form<'a> {
    name: &'a str,
    read: Vec<&'a str>,
    body: &'a str,
    result: &'a str,
    to: &'a str,
    size: usize,
}

/// Joins neighboring axes that all operands step through alike, and drops axes of size 1.
pub(super) fn join_axes(shape: &[usize], strides: &mut [Vec<usize>]) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    let mut kept: Vec<Vec<usize>> = vec![Vec::new(); strides.len()];
    for (axis, &size) in shape.iter().enumerate() {
        if size == 1 {
            continue;
        }
        let joins = !sizes.is_empty()
            && strides.iter().zip(&kept).all(|(s, k)| k.last().copied().unwrap_or(0) == s[axis] * size);
        if joins {
            *sizes.last_mut().expect("there is one") *= size;
            kept.iter_mut().zip(strides.iter()).for_each(|(k, s)| *k.last_mut().expect("there is one") = s[axis]);
        } else {
            sizes.push(size);
            kept.iter_mut().zip(strides.iter()).for_each(|(k, s)| k.push(s[axis]));
        }
    }
    if sizes.is_empty() {
        sizes.push(1);
        kept.iter_mut().for_each(|k| k.push(0));
    }
    strides.clone_from_slice(&kept);
    sizes
}

fn build(
    form: &Form<'_>,
    read_sizes: impl Iterator<Item = usize>,
    shape: &[usize],
    mut strides: Vec<Vec<usize>>,
    operands: &[usize],
) -> Result<Spec, Why> {
    strides.push(regraft_tensor::contiguous_strides(shape));
    let mut sizes = join_axes(shape, &mut strides);
    let axes = sizes.len();
    if axes > MOST_AXES {
        return Err(Why::new(format!("{axes} axes cannot be joined to {MOST_AXES}")));
    }
    let count: usize = sizes.iter().product();
    let inner = sizes[axes - 1];
    let widest = read_sizes.chain([form.size]).max().unwrap_or(8);
    let steps: Vec<usize> = strides.iter().map(|s| s[axes - 1]).collect();
    let vectors = steps.iter().all(|&s| s <= 1);
    let vec = [8, 4, 2].into_iter().find(|v| vectors && inner.is_multiple_of(*v) && v * widest <= 16).unwrap_or(1);
    sizes[axes - 1] /= vec;
    let text = kernel(form, axes, vec, &steps, count);
    let mut fields = Fields::default().sizes(&[count / vec]).sizes(&sizes);
    for s in &strides {
        fields = fields.sizes(s);
    }
    let mut params: Vec<Param> = operands.iter().map(|&i| Param::In(i, 0)).collect();
    params.extend([Param::Out(0, 0), fields.param()]);
    Ok(Spec {
        source: Defines::default().source(form.name, &text),
        entry: "elementwise",
        launch: stepping(count / vec),
        params,
        scratch: 0,
    })
}

/// The text of a kernel for this many axes and neighbors at once.
fn kernel(form: &Form<'_>, axes: usize, vec: usize, steps: &[usize], count: usize) -> String {
    let operands = form.read.len();
    let mut t = String::new();
    let index = index_type(count);
    let params: String = form.read.iter().enumerate().map(|(i, ty)| format!("const {ty}* a{i}, ")).collect();
    let _ = write!(
        t,
        "struct Shape {{ i64 groups, size[{axes}], stride[{}][{axes}]; }};\n\
         extern \"C\" __global__ void __launch_bounds__(256) elementwise({params}{}* out, const Shape s) {{\n    \
         AWAIT();\n    \
         for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < s.groups; i += (i64)gridDim.x * 256) {{\n        \
         {index} rest = ({index})i;\n",
        operands + 1,
        form.to
    );
    for i in 0..=operands {
        let _ = writeln!(t, "        i64 at{i} = 0;");
    }
    for axis in (0..axes).rev() {
        if axis == 0 {
            let _ = writeln!(t, "        {{ i64 k = rest;");
        } else {
            let _ = writeln!(t, "        {{ {index} n = ({index})s.size[{axis}]; i64 k = rest % n; rest /= n;");
        }
        let _ = write!(t, "         ");
        for i in 0..=operands {
            let by = if axis == axes - 1 && vec > 1 { format!("k * {vec}") } else { "k".to_owned() };
            let _ = write!(t, " at{i} += {by} * s.stride[{i}][{axis}];");
        }
        let _ = writeln!(t, " }}");
    }
    for (i, ty) in form.read.iter().enumerate() {
        if steps[i] == 0 || vec == 1 {
            let _ = writeln!(t, "        Pack<{ty}, 1> p{i}; p{i}.v[0] = a{i}[at{i}];");
        } else {
            let _ = writeln!(t, "        Pack<{ty}, {vec}> p{i} = read<{ty}, {vec}>(a{i} + at{i});");
        }
    }
    let _ = writeln!(
        t,
        "        Pack<{0}, {vec}> to;\n#pragma unroll\n        for (int e = 0; e < {vec}; e++) {{",
        form.to
    );
    if form.body.is_empty() {
        let element = if steps[0] == 0 || vec == 1 { "p0.v[0]" } else { form.result };
        let _ = writeln!(t, "            to.v[e] = {element};");
    } else {
        for (i, step) in steps.iter().take(operands).enumerate() {
            let at = if *step == 0 || vec == 1 { "0" } else { "e" };
            let _ = writeln!(t, "            auto v{i} = get(p{i}.v[{at}]);");
        }
        t.push_str(form.body);
        let _ = writeln!(t, "            put(to.v[e], {});", form.result);
    }
    let _ = writeln!(t, "        }}\n        write<{}, {vec}>(out + at{operands}, to);\n    }}\n}}", form.to);
    t
}

/// The type that a value is computed in.
const fn value_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F32 | DType::F16 | DType::BF16 => "float",
        DType::Bool => "bool",
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => "i64",
    }
}

/// One statement for each step.
fn statements(steps: &[FusedStep], types: &[DType], operands: usize) -> Result<String, Why> {
    let mut text = String::new();
    for (i, step) in steps.iter().enumerate() {
        let at = operands + i;
        let args: Vec<String> = step.args.iter().map(|a| format!("v{a}")).collect();
        let from = step.args.last().map_or(types[at], |&a| types[a as usize]);
        let value = expression(step.f, &args, from)?;
        let value = match types[at] {
            DType::I32 | DType::I16 | DType::I8 | DType::U8 => format!("({})({value})", c_type(types[at])),
            _ => value,
        };
        let _ = writeln!(text, "            {} v{at} = {value};", value_type(types[at]));
    }
    Ok(text)
}

fn expression(f: FusedFn, args: &[String], from: DType) -> Result<String, Why> {
    let arg = |i: usize| args.get(i).map_or("", String::as_str);
    let a = arg(0);
    Ok(match f {
        FusedFn::Unary(f) => return unary(f, a, from),
        FusedFn::Binary(f) => return binary(f, a, arg(1), from),
        FusedFn::Compare(f) => format!("{a} {} {}", comparison(f), arg(1)),
        FusedFn::Select => format!("{a} ? {} : {}", arg(1), arg(2)),
        FusedFn::Cast(to) => cast(a, from, to),
        FusedFn::Literal(value, dtype) => literal(value, dtype),
    })
}

fn unary(f: UnaryFn, a: &str, dtype: DType) -> Result<String, Why> {
    if is_small_float(dtype) {
        return match f {
            UnaryFn::Digamma
            | UnaryFn::BesselI0
            | UnaryFn::BesselI1
            | UnaryFn::BesselJ0
            | UnaryFn::BesselJ1
            | UnaryFn::AiryAi
            | UnaryFn::BesselY0
            | UnaryFn::BesselY1
            | UnaryFn::BesselK0e
            | UnaryFn::BesselK1e => Err(Why::new(format!("{} of {dtype}", f.name()))),
            f => Ok(format!("f_{}({a})", f.name())),
        };
    }
    let text = match (dtype, f) {
        (DType::Bool, UnaryFn::Not) => format!("!{a}"),
        (DType::F64, UnaryFn::Neg) => format!("-{a}"),
        (DType::F64, UnaryFn::Abs) => format!("fabs({a})"),
        (DType::F64, UnaryFn::Sqrt) => format!("sqrt({a})"),
        (DType::F64, UnaryFn::Reciprocal) => format!("1.0 / {a}"),
        (DType::F64 | DType::Bool, _) => return Err(Why::new(format!("{} of {dtype}", f.name()))),
        (_, UnaryFn::Neg) => format!("i_sub(0, {a})"),
        (_, UnaryFn::Abs) => format!("{a} < 0 ? i_sub(0, {a}) : {a}"),
        (_, UnaryFn::Sign) => format!("(i64)({a} > 0) - (i64)({a} < 0)"),
        (_, UnaryFn::Not) => format!("~{a}"),
        (_, UnaryFn::Relu) => format!("{a} > 0 ? {a} : 0"),
        (_, UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round | UnaryFn::Trunc) => a.to_owned(),
        _ => return Err(Why::new(format!("{} of {dtype}", f.name()))),
    };
    Ok(text)
}

fn binary(f: BinaryFn, a: &str, b: &str, dtype: DType) -> Result<String, Why> {
    use BinaryFn::{
        Add, And, Atan2, Copysign, Div, FloorDiv, Fmod, GammaP, GammaQ, Gcd, HermiteH, HermiteHe, Hypot, Laguerre,
        Legendre, Max, Min, Mul, Or, Pow, Rem, Shl, Shr, Sub, TruncDiv, Xor, Zeta,
    };
    if dtype == DType::Bool {
        return Ok(match f {
            And | Min | Mul => format!("{a} && {b}"),
            Or | Max | Add => format!("{a} || {b}"),
            Xor => format!("{a} != {b}"),
            Sub | Div | FloorDiv | TruncDiv | Rem | Fmod | Pow | Atan2 | Hypot | Copysign | Shl | Shr | Gcd | Zeta
            | GammaP | GammaQ | HermiteH | HermiteHe | Laguerre | Legendre => {
                return Err(Why::new(format!("{} of bool", f.name())));
            }
        });
    }
    if dtype.is_float() {
        let double = dtype == DType::F64;
        return Ok(match f {
            Add => format!("{a} + {b}"),
            Sub => format!("{a} - {b}"),
            Mul => format!("{a} * {b}"),
            Div => format!("{a} / {b}"),
            FloorDiv if !double => format!("f_floor_div({a}, {b})"),
            TruncDiv if !double => format!("truncf({a} / {b})"),
            Rem if !double => format!("f_rem({a}, {b})"),
            Fmod if !double => format!("fmodf({a}, {b})"),
            Atan2 if !double => format!("atan2f({a}, {b})"),
            Hypot if !double => format!("hypotf({a}, {b})"),
            Copysign if !double => format!("copysignf({a}, {b})"),
            Pow if !double => format!("powf({a}, {b})"),
            Max if !double => format!("f_max({a}, {b})"),
            Min if !double => format!("f_min({a}, {b})"),
            And | Or | Xor | FloorDiv | TruncDiv | Rem | Fmod | Pow | Max | Min | Atan2 | Hypot | Copysign | Shl
            | Shr | Gcd | Zeta | GammaP | GammaQ | HermiteH | HermiteHe | Laguerre | Legendre => {
                return Err(Why::new(format!("{} of {dtype}", f.name())));
            }
        });
    }
    Ok(match f {
        Add => format!("i_add({a}, {b})"),
        Sub => format!("i_sub({a}, {b})"),
        Mul => format!("i_mul({a}, {b})"),
        Div | TruncDiv => format!("i_trunc_div({a}, {b})"),
        FloorDiv => format!("i_floor_div({a}, {b})"),
        Rem => format!("i_rem({a}, {b})"),
        Pow => format!("i_pow({a}, {b})"),
        Max => format!("{a} > {b} ? {a} : {b}"),
        Min => format!("{a} < {b} ? {a} : {b}"),
        And => format!("{a} & {b}"),
        Or => format!("{a} | {b}"),
        Xor => format!("{a} ^ {b}"),
        Shl => format!("{b} < 0 || {b} > 63 ? 0 : (i64)((u64){a} << {b})"),
        Shr => format!("{a} >> ({b} < 0 || {b} > 63 ? 63 : {b})"),
        Fmod | Atan2 | Hypot | Copysign | Gcd | Zeta | GammaP | GammaQ | HermiteH | HermiteHe | Laguerre | Legendre => {
            return Err(Why::new(format!("{} of {dtype}", f.name())));
        }
    })
}

const fn comparison(f: CompareFn) -> &'static str {
    match f {
        CompareFn::Eq => "==",
        CompareFn::Ne => "!=",
        CompareFn::Lt => "<",
        CompareFn::Le => "<=",
        CompareFn::Gt => ">",
        CompareFn::Ge => ">=",
    }
}

fn cast(a: &str, from: DType, to: DType) -> String {
    match (from, to) {
        (_, DType::Bool) => format!("{a} != 0"),
        // An explicit conversion rounds, also between steps.
        (f, DType::F16 | DType::BF16) if f.is_float() => format!("held<{}>((float){a})", c_type(to)),
        (_, DType::F16 | DType::BF16) => format!("held<{}>((float)(i64){a})", c_type(to)),
        (_, DType::F32) => format!("(float){a}"),
        (_, DType::F64) => format!("(double){a}"),
        (f, _) if f.is_float() => format!("whole({a})"),
        (_, _) => format!("(i64){a}"),
    }
}

fn literal(value: Scalar, dtype: DType) -> String {
    let (float, int) = match value {
        Scalar::Float(v) => (v, v as i64),
        Scalar::Int(v) => (v as f64, v),
    };
    let bits32 = |v: f32| format!("__int_as_float({:#x})", v.to_bits());
    match dtype {
        DType::F64 => format!("__longlong_as_double({:#x}ll)", float.to_bits()),
        DType::F32 => bits32(float as f32),
        DType::F16 => bits32(f16::from_f32(float as f32).to_f32()),
        DType::BF16 => bits32(bf16::from_f32(float as f32).to_f32()),
        DType::Bool => (int != 0 || (float != 0.0)).to_string(),
        _ => format!("(i64){:#x}ull", int as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_all_step_alike_are_joined() {
        let mut strides = vec![vec![12, 4, 1], vec![0, 0, 1], vec![12, 4, 1]];
        assert_eq!(join_axes(&[2, 3, 4], &mut strides), [6, 4]);
        assert_eq!(strides, [vec![4, 1], vec![0, 1], vec![4, 1]]);
        let mut strides = vec![vec![12, 4, 1], vec![12, 4, 1]];
        assert_eq!(join_axes(&[2, 3, 4], &mut strides), [24]);
        let mut strides = vec![vec![0, 7]];
        assert_eq!(join_axes(&[1, 1], &mut strides), [1]);
    }

    /// The generated part of a source, compared with a file; `REGRAFT_BLESS=1` rewrites it.
    fn golden(name: &str, spec: &Spec) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let text = &spec.source.text[super::super::PRELUDE.len()..];
        if std::env::var_os("REGRAFT_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("it is made");
            std::fs::write(&path, text).expect("it is written");
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, want, "{name} changed; if that is meant: REGRAFT_BLESS=1");
    }

    #[test]
    fn a_chain_of_halves_reads_eight_at_once() {
        let steps = vec![
            FusedStep { f: FusedFn::Binary(BinaryFn::Add), args: vec![0, 1] },
            FusedStep { f: FusedFn::Unary(UnaryFn::Gelu), args: vec![2] },
        ];
        let x = View { dtype: DType::F16, shape: &[4, 16], strides: &[16, 1] };
        let bias = View { dtype: DType::F16, shape: &[16], strides: &[1] };
        let spec = chain(&steps, &[x, bias], &[4, 16]).expect("it is taken");
        golden("chain_f16.cu", &spec);
        assert_eq!(spec.params.len(), 4);
    }

    #[test]
    fn a_mask_of_mixed_types_is_one_kernel() {
        let steps = vec![
            FusedStep { f: FusedFn::Literal(Scalar::Int(0), DType::I64), args: vec![] },
            FusedStep { f: FusedFn::Compare(CompareFn::Gt), args: vec![0, 2] },
            FusedStep { f: FusedFn::Literal(Scalar::Float(-1e30), DType::F32), args: vec![] },
            FusedStep { f: FusedFn::Select, args: vec![3, 1, 4] },
            FusedStep { f: FusedFn::Cast(DType::BF16), args: vec![5] },
        ];
        let ids = View { dtype: DType::I64, shape: &[2, 1, 8], strides: &[8, 8, 1] };
        let bias = View { dtype: DType::F32, shape: &[2, 3, 8], strides: &[24, 1, 3] };
        golden("mask.cu", &chain(&steps, &[ids, bias], &[2, 3, 8]).expect("it is taken"));
    }
}
