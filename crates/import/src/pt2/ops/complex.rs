//! Complex numbers, as rotary embeddings and spectra use them: a complex value is a value of real numbers with a last axis
//! of two, the real and the imaginary part.

use regraft_ir::ops::{BinaryFn, UnaryFn};
use regraft_tensor::{DType, Dim};

use super::fft;
use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};

/// How an operator on complex numbers is translated.
#[derive(Clone, Copy)]
pub(crate) enum Complex {
    /// By what it does with the real and with the imaginary parts alone.
    Each,
    /// By a handler, which reads complex tensors as pairs.
    Own(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
}

use Complex::{Each, Own};

const TABLE: &[(&str, Complex)] = &[
    // What moves elements, and what is linear.
    ("view.default", Each),
    ("_unsafe_view.default", Each),
    ("reshape.default", Each),
    ("flatten.using_ints", Each),
    ("unflatten.int", Each),
    ("squeeze.default", Each),
    ("squeeze.dim", Each),
    ("squeeze.dims", Each),
    ("unsqueeze.default", Each),
    ("permute.default", Each),
    ("transpose.int", Each),
    ("movedim.int", Each),
    ("t.default", Each),
    ("numpy_T.default", Each),
    ("mT.default", Each),
    ("expand.default", Each),
    ("repeat.default", Each),
    ("repeat_interleave.self_int", Each),
    ("slice.Tensor", Each),
    ("narrow.default", Each),
    ("select.int", Each),
    ("split.Tensor", Each),
    ("split_with_sizes.default", Each),
    ("chunk.default", Each),
    ("unbind.int", Each),
    ("cat.default", Each),
    ("stack.default", Each),
    ("index.Tensor", Each),
    ("index_select.default", Each),
    ("gather.default", Each),
    ("flip.default", Each),
    ("roll.default", Each),
    ("fft_fftshift.default", Each),
    ("fft_ifftshift.default", Each),
    ("sum.dim_IntList", Each),
    ("sum.default", Each),
    ("mean.dim", Each),
    ("mean.default", Each),
    ("neg.default", Each),
    ("clone.default", Each),
    ("contiguous.default", Each),
    ("detach.default", Each),
    ("detach_.default", Each),
    ("alias.default", Each),
    ("lift_fresh.default", Each),
    ("lift_fresh_copy.default", Each),
    ("resolve_conj.default", Each),
    ("resolve_neg.default", Each),
    // Between pairs and complex numbers.
    ("view_as_complex.default", Own(pair)),
    ("view_as_real.default", Own(pair)),
    ("real.default", Own(|cx| half(cx, 0))),
    ("imag.default", Own(|cx| half(cx, 1))),
    ("complex.default", Own(complex)),
    ("polar.default", Own(polar)),
    ("to.dtype", Own(to)),
    ("to.dtype_layout", Own(to)),
    ("to.device", Own(to)),
    ("to.other", Own(to)),
    ("_to_copy.default", Own(to)),
    // Arithmetic.
    ("add.Tensor", Own(|cx| sum(cx, BinaryFn::Add))),
    ("sub.Tensor", Own(|cx| sum(cx, BinaryFn::Sub))),
    ("mul.Tensor", Own(mul)),
    ("mul.Scalar", Own(mul)),
    ("div.Tensor", Own(div)),
    ("matmul.default", Own(matmul)),
    ("mm.default", Own(matmul)),
    ("bmm.default", Own(matmul)),
    ("abs.default", Own(abs)),
    ("angle.default", Own(angle)),
    ("exp.default", Own(exp)),
    ("conj.default", Own(conj)),
    ("_conj.default", Own(conj)),
    ("conj_physical.default", Own(conj)),
    ("_conj_physical.default", Own(conj)),
    // Spectra.
    ("fft_fft.default", Own(|cx| fft::transform(cx, false, 1))),
    ("fft_fft2.default", Own(|cx| fft::transform(cx, false, 2))),
    ("fft_fftn.default", Own(|cx| fft::transform(cx, false, 0))),
    ("fft_ifft.default", Own(|cx| fft::transform(cx, true, 1))),
    ("fft_ifft2.default", Own(|cx| fft::transform(cx, true, 2))),
    ("fft_ifftn.default", Own(|cx| fft::transform(cx, true, 0))),
    ("fft_rfft.default", Own(|cx| fft::of_real(cx, false, 1))),
    ("fft_rfft2.default", Own(|cx| fft::of_real(cx, false, 2))),
    ("fft_rfftn.default", Own(|cx| fft::of_real(cx, false, 0))),
    ("fft_ihfft.default", Own(|cx| fft::of_real(cx, true, 1))),
    ("fft_ihfft2.default", Own(|cx| fft::of_real(cx, true, 2))),
    ("fft_ihfftn.default", Own(|cx| fft::of_real(cx, true, 0))),
    ("fft_irfft.default", Own(|cx| fft::to_real(cx, true, 1))),
    ("fft_irfft2.default", Own(|cx| fft::to_real(cx, true, 2))),
    ("fft_irfftn.default", Own(|cx| fft::to_real(cx, true, 0))),
    ("fft_hfft.default", Own(|cx| fft::to_real(cx, false, 1))),
    ("fft_hfft2.default", Own(|cx| fft::to_real(cx, false, 2))),
    ("fft_hfftn.default", Own(|cx| fft::to_real(cx, false, 0))),
    ("_fft_c2c.default", Own(fft::core)),
    ("_fft_r2c.default", Own(fft::core_of_real)),
    ("_fft_c2r.default", Own(fft::core_to_real)),
    ("stft.default", Own(fft::stft)),
];

/// The translation of an operator that reads or gives complex numbers.
pub(crate) fn find(target: &str) -> Option<Complex> {
    let name = target.strip_prefix("torch.ops.aten.")?;
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, how)| *how)
}

/// The last axis of a pair.
fn last(cx: &Cx<'_, '_>, v: ValueId) -> usize {
    cx.rank(v).saturating_sub(1)
}

/// Real and imaginary part of a pair.
pub(super) fn parts(cx: &mut Cx<'_, '_>, v: ValueId) -> Res<(ValueId, ValueId)> {
    Ok((part(cx, v, 0)?, part(cx, v, 1)?))
}

pub(super) fn part(cx: &mut Cx<'_, '_>, v: ValueId, which: i64) -> Res<ValueId> {
    let axis = last(cx, v);
    let one = cx.slice(v, axis, Dim::new(which), Dim::new(which + 1))?;
    cx.squeeze(one, axis)
}

/// The pair of two values that broadcast.
pub(crate) fn joined(cx: &mut Cx<'_, '_>, re: ValueId, im: ValueId) -> Res<ValueId> {
    let types = [cx.ty(re).clone(), cx.ty(im).clone()];
    let Ok(shape) = regraft_ir::ops::broadcast_types(types.iter()) else { return wrong("parts do not broadcast") };
    let (re, im) = (cx.expand(re, shape.clone())?, cx.expand(im, shape)?);
    let axis = cx.rank(re);
    let (re, im) = (cx.unsqueeze(re, axis)?, cx.unsqueeze(im, axis)?);
    cx.concat(&[re, im], axis)
}

/// A factor or summand: a real part, and an imaginary one if it is complex.
struct Term {
    re: Operand,
    im: Option<ValueId>,
}

fn term(cx: &mut Cx<'_, '_>, name: &str) -> Res<Term> {
    let operand = cx.operand(name)?;
    Ok(match operand {
        Operand::Tensor(v) if cx.is_complex(name) => {
            let (re, im) = parts(cx, v)?;
            Term { re: Operand::Tensor(re), im: Some(im) }
        }
        re => Term { re, im: None },
    })
}

/// Both operands, and the dtype of the parts of the result.
fn two(cx: &mut Cx<'_, '_>) -> Res<(Term, Term, DType)> {
    let [a, b, ..] = cx.node.inputs.as_slice() else { return wrong("expected two arguments") };
    let (a, b) = (term(cx, &a.name)?, term(cx, &b.name)?);
    let Some(dtype) = cx.result_dtype() else { return wrong("expected a result") };
    Ok((a, b, dtype))
}

fn zero(cx: &mut Cx<'_, '_>, dtype: DType) -> Res<ValueId> {
    cx.float(0.0, dtype)
}

fn pair(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    cx.tensor("self")
}

fn half(cx: &mut Cx<'_, '_>, which: i64) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    part(cx, v, which)
}

fn complex(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (re, im) = (cx.tensor("real")?, cx.tensor("imag")?);
    joined(cx, re, im)
}

fn polar(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (size, angle) = (cx.tensor("abs")?, cx.tensor("angle")?);
    let (cos, sin) = (cx.unary(UnaryFn::Cos, angle)?, cx.unary(UnaryFn::Sin, angle)?);
    let (re, im) = (cx.binary(BinaryFn::Mul, size, cos)?, cx.binary(BinaryFn::Mul, size, sin)?);
    joined(cx, re, im)
}

fn to(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    let Some(dtype) = cx.result_dtype() else { return wrong("expected a result") };
    if !cx.gives_complex() {
        return unsupported("a conversion of complex numbers to real ones", "take their real part with torch.real()");
    }
    let v = cx.cast(v, dtype)?;
    if cx.is_complex("self") {
        return Ok(v);
    }
    let none = zero(cx, dtype)?;
    joined(cx, v, none)
}

fn sum(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b, dtype) = two(cx)?;
    if !cx.number_or("alpha", Number::Int(1))?.is(1.0) {
        return unsupported("a scaled sum of complex numbers", "multiply before");
    }
    let (ar, br) = (super::elementwise::value(cx, &a.re, dtype)?, super::elementwise::value(cx, &b.re, dtype)?);
    let (ai, bi) = (imaginary(cx, &a, dtype)?, imaginary(cx, &b, dtype)?);
    let (re, im) = (cx.binary(f, ar, br)?, cx.binary(f, ai, bi)?);
    joined(cx, re, im)
}

fn imaginary(cx: &mut Cx<'_, '_>, term: &Term, dtype: DType) -> Res<ValueId> {
    match term.im {
        Some(im) => cx.cast(im, dtype),
        None => zero(cx, dtype),
    }
}

fn mul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b, dtype) = two(cx)?;
    let (ar, br) = (super::elementwise::value(cx, &a.re, dtype)?, super::elementwise::value(cx, &b.re, dtype)?);
    let (re, im) = match (a.im, b.im) {
        (Some(ai), Some(bi)) => {
            let (ai, bi) = (cx.cast(ai, dtype)?, cx.cast(bi, dtype)?);
            multiplied(cx, (ar, ai), (br, bi))?
        }
        // A real factor scales both parts.
        (Some(i), None) | (None, Some(i)) => {
            let i = cx.cast(i, dtype)?;
            let other = if a.im.is_some() { br } else { ar };
            (cx.binary(BinaryFn::Mul, ar, br)?, cx.binary(BinaryFn::Mul, i, other)?)
        }
        (None, None) => return wrong("expected complex numbers"),
    };
    joined(cx, re, im)
}

type Pair = (ValueId, ValueId);

fn multiplied(cx: &mut Cx<'_, '_>, (ar, ai): Pair, (br, bi): Pair) -> Res<Pair> {
    let (rr, ii) = (cx.binary(BinaryFn::Mul, ar, br)?, cx.binary(BinaryFn::Mul, ai, bi)?);
    let (ri, ir) = (cx.binary(BinaryFn::Mul, ar, bi)?, cx.binary(BinaryFn::Mul, ai, br)?);
    Ok((cx.binary(BinaryFn::Sub, rr, ii)?, cx.binary(BinaryFn::Add, ri, ir)?))
}

fn div(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b, dtype) = two(cx)?;
    let (ar, br) = (super::elementwise::value(cx, &a.re, dtype)?, super::elementwise::value(cx, &b.re, dtype)?);
    let ai = imaginary(cx, &a, dtype)?;
    let (re, im) = match b.im {
        None => (cx.binary(BinaryFn::Div, ar, br)?, cx.binary(BinaryFn::Div, ai, br)?),
        Some(bi) => {
            let bi = cx.cast(bi, dtype)?;
            let (rr, ii) = (cx.binary(BinaryFn::Mul, br, br)?, cx.binary(BinaryFn::Mul, bi, bi)?);
            let square = cx.binary(BinaryFn::Add, rr, ii)?;
            let minus = cx.unary(UnaryFn::Neg, bi)?;
            let (re, im) = multiplied(cx, (ar, ai), (br, minus))?;
            (cx.binary(BinaryFn::Div, re, square)?, cx.binary(BinaryFn::Div, im, square)?)
        }
    };
    joined(cx, re, im)
}

fn matmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b, dtype) = two(cx)?;
    let (ar, br) = (super::elementwise::value(cx, &a.re, dtype)?, super::elementwise::value(cx, &b.re, dtype)?);
    let re = crate::build::product(cx, ar, br)?;
    let mixed = |cx: &mut Cx<'_, '_>, x: Option<ValueId>, y: Option<ValueId>| -> Res<Option<ValueId>> {
        let (Some(x), Some(y)) = (x, y) else { return Ok(None) };
        crate::build::product(cx, x, y).map(Some)
    };
    let (ii, ri, ir) = (mixed(cx, a.im, b.im)?, mixed(cx, Some(ar), b.im)?, mixed(cx, a.im, Some(br))?);
    let re = match ii {
        Some(ii) => cx.binary(BinaryFn::Sub, re, ii)?,
        None => re,
    };
    let im = match (ri, ir) {
        (Some(x), Some(y)) => cx.binary(BinaryFn::Add, x, y)?,
        (Some(x), None) | (None, Some(x)) => x,
        (None, None) => return wrong("expected complex numbers"),
    };
    joined(cx, re, im)
}

fn abs(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    let (re, im) = parts(cx, v)?;
    cx.binary(BinaryFn::Hypot, re, im)
}

fn angle(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    let (re, im) = parts(cx, v)?;
    cx.binary(BinaryFn::Atan2, im, re)
}

fn exp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    let (re, im) = parts(cx, v)?;
    let size = cx.unary(UnaryFn::Exp, re)?;
    let (cos, sin) = (cx.unary(UnaryFn::Cos, im)?, cx.unary(UnaryFn::Sin, im)?);
    let (re, im) = (cx.binary(BinaryFn::Mul, size, cos)?, cx.binary(BinaryFn::Mul, size, sin)?);
    joined(cx, re, im)
}

fn conj(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let v = cx.tensor("self")?;
    let (re, im) = parts(cx, v)?;
    let minus = cx.unary(UnaryFn::Neg, im)?;
    joined(cx, re, minus)
}
