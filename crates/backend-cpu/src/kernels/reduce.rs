//! Reductions, running sums and positions of extrema.

use half::{bf16, f16};
use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{ArgReduceFn, ReduceFn},
};
use regraft_tensor::{DType, Element};

use super::{
    CpuKernel, Cx, Family,
    support::{around, elements, elements_mut, expect_plain, operand, read, unsupported, with_elements},
};
use crate::{
    Isa, Threads,
    nn::{
        reduce::{Reduction, reduce},
        scan::{arg_extremum, cumsum, join},
    },
    simd::{FloatType, Floats, with_floats_mut},
};

const AXES: &str = "reduce.axes";
const CUMSUM: &str = "cumsum.axis";
const ARG: &str = "arg_reduce.axis";

pub(super) const FAMILY: Family = Family { ids: &[AXES, CUMSUM, ARG], candidates, reads_strided, prepare };

/// Whether no axis that is reduced has one between that is not.
fn neighbouring(axes: &[usize]) -> bool {
    !axes.is_empty() && axes.windows(2).all(|w| w[1] == w[0] + 1)
}

fn candidates(_: Isa, op: &Op, _: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    match op {
        Op::Reduce(op) if neighbouring(&op.axes) => vec![Candidate::plain(AXES)],
        Op::Cumsum(_) => vec![Candidate::plain(CUMSUM)],
        Op::ArgReduce(_) => vec![Candidate::plain(ARG)],
        _ => Vec::new(),
    }
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

#[derive(Clone, Copy)]
enum Kind {
    Reduce(ReduceFn),
    Cumsum,
    Arg(ArgReduceFn),
}

struct Prepared {
    cx: Cx,
    kind: Kind,
    dtype: DType,
    sizes: [usize; 3],
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, [0])?;
    let x = operand(node, 0)?;
    let (kind, sizes) = match node.op {
        Op::Reduce(op) if neighbouring(&op.axes) => {
            let (first, last) = (op.axes[0], op.axes[op.axes.len() - 1]);
            let product = |sizes: &[usize]| sizes.iter().product();
            let sizes = [product(&x.shape[..first]), product(&x.shape[first..=last]), product(&x.shape[last + 1..])];
            (Kind::Reduce(op.f), sizes)
        }
        Op::Cumsum(op) => (Kind::Cumsum, around(x.shape, op.axis)),
        Op::ArgReduce(op) => (Kind::Arg(op.f), around(x.shape, op.axis)),
        _ => return Err(unsupported(node, "it is no reduction over neighbouring axes")),
    };
    if sizes[1] == 0 && matches!(kind, Kind::Arg(_)) {
        return Err(unsupported(node, "the axis is empty"));
    }
    Ok(Box::new(Prepared { cx: cx.clone(), kind, dtype: x.dtype, sizes }))
}

/// The reduction of floats that routines have.
fn reduction(f: ReduceFn) -> Option<Reduction> {
    match f {
        ReduceFn::Sum => Some(Reduction::Sum),
        ReduceFn::Mean => Some(Reduction::Mean),
        ReduceFn::Max => Some(Reduction::Max),
        ReduceFn::Min => Some(Reduction::Min),
        ReduceFn::Prod => Some(Reduction::Prod),
        ReduceFn::Any | ReduceFn::All => None,
    }
}

/// What integers are joined by.
trait Joined: Element {
    const LEAST: Self;
    const GREATEST: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn greater(self, other: Self) -> Self;
    fn lesser(self, other: Self) -> Self;
}

macro_rules! joined {
    ($($t:ty),*) => {$(
        impl Joined for $t {
            const LEAST: $t = <$t>::MIN;
            const GREATEST: $t = <$t>::MAX;
            fn plus(self, other: $t) -> $t { self.wrapping_add(other) }
            fn times(self, other: $t) -> $t { self.wrapping_mul(other) }
            fn greater(self, other: $t) -> $t { Ord::max(self, other) }
            fn lesser(self, other: $t) -> $t { Ord::min(self, other) }
        }
    )*};
}
joined!(i64, i32, i16, i8, u8);

macro_rules! joined_floats {
    ($($t:ty),*) => {$(
        impl Joined for $t {
            const LEAST: $t = <$t>::NEG_INFINITY;
            const GREATEST: $t = <$t>::INFINITY;
            fn plus(self, other: $t) -> $t { self + other }
            fn times(self, other: $t) -> $t { self * other }
            fn greater(self, other: $t) -> $t { if other > self || other.is_nan() { other } else { self } }
            fn lesser(self, other: $t) -> $t { if other < self || other.is_nan() { other } else { self } }
        }
    )*};
}
// Short floats are reduced as f32; these are for `any` and `all`.
joined_floats!(f64, f32, f16, bf16);

/// Reduces numbers in their own type.
fn reduce_elements<T: Joined>(threads: &Threads, f: ReduceFn, x: &[T], sizes: [usize; 3], out: &mut [u8]) {
    let (same, nonzero) = (|x: T| x, |x: T| u8::from(x.to_f64() != 0.0));
    let (zero, one) = (T::from_i64(0), T::from_i64(1));
    match f {
        ReduceFn::Sum => join(threads, x, sizes, zero, same, T::plus, same, elements_mut::<T>(out)),
        ReduceFn::Mean => {
            let count = T::from_f64(sizes[1] as f64).to_f64();
            let mean = |sum: T| T::from_f64(sum.to_f64() / count);
            join(threads, x, sizes, zero, same, T::plus, mean, elements_mut::<T>(out));
        }
        ReduceFn::Prod => join(threads, x, sizes, one, same, T::times, same, elements_mut::<T>(out)),
        ReduceFn::Max => join(threads, x, sizes, T::LEAST, same, T::greater, same, elements_mut::<T>(out)),
        ReduceFn::Min => join(threads, x, sizes, T::GREATEST, same, T::lesser, same, elements_mut::<T>(out)),
        ReduceFn::Any => join(threads, x, sizes, 0, nonzero, |a, b| a | b, |any| any, out),
        ReduceFn::All => join(threads, x, sizes, 1, nonzero, |a, b| a & b, |all| all, out),
    }
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (threads, bytes, sizes) = (&self.cx.threads, read(inputs, 0), self.sizes);
        let out = &mut *outputs[0];
        if out.is_empty() {
            return Ok(());
        }
        let count = sizes.iter().product();
        match self.kind {
            Kind::Reduce(f) => match FloatType::of(self.dtype).zip(reduction(f)) {
                Some((ty, reduction)) => {
                    let x = Floats::of_bytes(ty, bytes).first(count);
                    with_floats_mut!(ty, out, out => reduce(threads, self.cx.isa, reduction, x, sizes, out));
                }
                None => {
                    with_elements!(self.dtype, T => {
                        reduce_elements(threads, f, &elements::<T>(bytes)[..count], sizes, out)
                    });
                }
            },
            Kind::Cumsum => {
                with_elements!(self.dtype, T => cumsum(threads, elements::<T>(bytes), sizes, elements_mut(out)));
            }
            Kind::Arg(f) => {
                let greatest = f == ArgReduceFn::Max;
                with_elements!(self.dtype, T => {
                    arg_extremum(threads, greatest, elements::<T>(bytes), sizes, elements_mut(out))
                });
            }
        }
        Ok(())
    }
}
