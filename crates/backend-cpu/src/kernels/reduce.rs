//! Reductions, what runs along an axis, and positions of extrema.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{ArgReduceFn, CumulateFn, ReduceFn},
};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    joined::Joined,
    support::{
        Seen, Why, around, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported,
        with_elements,
    },
};
use crate::{
    Isa, Scratch,
    nn::{
        reduce::{Reduction, reduce},
        scan::{arg_extremum, arg_so_far, cumprod, cumsum, join, log_cum_sum_exp},
    },
    scratch::bytes_of,
    simd::{FloatType, Floats, with_floats_mut},
};

const AXES: &str = "reduce.axes";
const CUMSUM: &str = "cumsum.axis";
const CUMULATE: &str = "cumulate.axis";
const ARG: &str = "arg_reduce.axis";

pub(super) const FAMILY: Family =
    Family { ids: &[AXES, CUMSUM, CUMULATE, ARG], candidates, reads_strided: never_strided, prepare };

fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    match node.op {
        Op::Reduce(_) => Ok(AXES),
        Op::Cumsum(_) => Ok(CUMSUM),
        Op::Cumulate(_) => Ok(CUMULATE),
        Op::ArgReduce(_) => Ok(ARG),
        _ => Err(Why("it is not a reduction")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

#[derive(Clone, Copy)]
enum Kind {
    Reduce(ReduceFn),
    Cumsum,
    Cumulate(CumulateFn),
    Arg(ArgReduceFn),
}

struct Prepared {
    cx: Cx,
    kind: Kind,
    dtype: DType,
    /// The operand as `[outer, axis, inner]`. A reduction of axes that are not neighbors takes several steps, each over what the one
    /// before left.
    steps: Vec<[usize; 3]>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let x = operand(node, 0)?;
    let (kind, steps) = match node.op {
        Op::Reduce(op) => (Kind::Reduce(op.f), steps(&op.axes, x.shape)),
        Op::Cumsum(op) => (Kind::Cumsum, vec![around(x.shape, op.axis)]),
        Op::Cumulate(op) => (Kind::Cumulate(op.f), vec![around(x.shape, op.axis)]),
        Op::ArgReduce(op) => (Kind::Arg(op.f), vec![around(x.shape, op.axis)]),
        _ => return Err(unsupported(node, "it is not a reduction")),
    };
    if steps[0][1] == 0 && matches!(kind, Kind::Arg(_)) {
        return Err(unsupported(node, "the axis is empty"));
    }
    Ok(Box::new(Prepared { cx: cx.clone(), kind, dtype: x.dtype, steps }))
}

/// The steps of a reduction: neighboring axes at once, the last ones first.
fn steps(axes: &[usize], shape: &[usize]) -> Vec<[usize; 3]> {
    let product = |sizes: &[usize]| sizes.iter().product::<usize>();
    let mut shape = shape.to_vec();
    let (mut steps, mut end) = (Vec::new(), shape.len());
    while let Some(last) = (0..end).rev().find(|axis| axes.contains(axis) && shape[*axis] != 1) {
        // Axes of size 1 are nowhere in particular.
        let joins = |axis: &usize| axes.contains(axis) || shape[*axis] == 1;
        let first = (0..=last).rev().take_while(joins).last().unwrap_or(last);
        steps.push([product(&shape[..first]), product(&shape[first..=last]), product(&shape[last + 1..])]);
        shape[first..=last].fill(1);
        end = first;
    }
    if steps.is_empty() {
        steps.push([product(&shape), 1, 1]);
    }
    steps
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

/// Reduces numbers in their own type.
fn reduce_elements<T: Joined>(cx: &Cx, f: ReduceFn, x: &[T], sizes: [usize; 3], out: &mut [u8]) {
    let (threads, isa) = (&cx.threads, cx.isa);
    let (same, nonzero) = (|x: T| x, |x: T| u8::from(x.to_f64() != 0.0));
    let (zero, one) = (T::from_i64(0), T::from_i64(1));
    match f {
        ReduceFn::Sum => join(threads, isa, x, sizes, zero, same, T::plus, same, elements_mut::<T>(out)),
        ReduceFn::Mean => {
            let count = T::from_f64(sizes[1] as f64).to_f64();
            let mean = |sum: T| T::from_f64(sum.to_f64() / count);
            join(threads, isa, x, sizes, zero, same, T::plus, mean, elements_mut::<T>(out));
        }
        ReduceFn::Prod => join(threads, isa, x, sizes, one, same, T::times, same, elements_mut::<T>(out)),
        ReduceFn::Max => join(threads, isa, x, sizes, T::LEAST, same, T::greater, same, elements_mut::<T>(out)),
        ReduceFn::Min => join(threads, isa, x, sizes, T::GREATEST, same, T::lesser, same, elements_mut::<T>(out)),
        ReduceFn::Any => join(threads, isa, x, sizes, 0, nonzero, |a, b| a | b, |any| any, out),
        ReduceFn::All => join(threads, isa, x, sizes, 1, nonzero, |a, b| a & b, |all| all, out),
    }
}

impl Prepared {
    /// The type of what a step of a reduction leaves for the next: floats are rounded once, at the end.
    fn between(&self, f: ReduceFn) -> DType {
        match f {
            ReduceFn::Any | ReduceFn::All => DType::Bool,
            _ if FloatType::of(self.dtype).is_some() => DType::F32,
            _ => self.dtype,
        }
    }

    /// One step, of elements of type `dtype` to `out`, of type `to`.
    fn step(&self, f: ReduceFn, dtype: DType, bytes: &[u8], sizes: [usize; 3], to: DType, out: &mut [u8]) {
        let (threads, isa, count) = (&self.cx.threads, self.cx.isa, sizes.iter().product());
        match (FloatType::of(dtype), FloatType::of(to), reduction(f)) {
            (Some(ty), Some(to), Some(reduction)) => {
                let x = Floats::of_bytes(ty, bytes).first(count);
                with_floats_mut!(to, out, out => reduce(threads, isa, reduction, x, sizes, out));
            }
            _ => with_elements!(dtype, T => {
                reduce_elements(&self.cx, f, &elements::<T>(bytes)[..count], sizes, out)
            }),
        }
    }

    fn reduce(&self, f: ReduceFn, x: &[u8], out: &mut [u8], scratch: &mut Scratch<'_>) {
        let Some((&last, before)) = self.steps.split_last() else { return };
        let (mut dtype, mut left): (DType, &[u8]) = (self.dtype, x);
        for &sizes in before {
            let between = self.between(f);
            let made = scratch.take::<u8>(sizes[0] * sizes[2] * between.size());
            self.step(f, dtype, left, sizes, between, made);
            (dtype, left) = (between, made);
        }
        self.step(f, dtype, left, last, self.dtype, out);
    }

    fn cumulate(&self, f: CumulateFn, x: &[u8], out: &mut [u8]) {
        let (threads, sizes) = (&self.cx.threads, self.steps[0]);
        match (f, FloatType::of(self.dtype)) {
            (CumulateFn::ArgMax | CumulateFn::ArgMin, _) => {
                let (greatest, out) = (f == CumulateFn::ArgMax, elements_mut(out));
                with_elements!(self.dtype, T => arg_so_far(threads, greatest, elements::<T>(x), sizes, out));
            }
            (CumulateFn::Prod, _) => {
                with_elements!(self.dtype, T => cumprod(threads, elements::<T>(x), sizes, elements_mut(out)));
            }
            // Inference lets floats alone through.
            (CumulateFn::LogSumExp, None) => log_cum_sum_exp(threads, elements::<f64>(x), sizes, elements_mut(out)),
            (CumulateFn::LogSumExp, Some(FloatType::F32)) => {
                log_cum_sum_exp(threads, elements::<f32>(x), sizes, elements_mut(out));
            }
            (CumulateFn::LogSumExp, Some(FloatType::F16)) => {
                log_cum_sum_exp(threads, elements::<half::f16>(x), sizes, elements_mut(out));
            }
            (CumulateFn::LogSumExp, Some(FloatType::Bf16)) => {
                log_cum_sum_exp(threads, elements::<half::bf16>(x), sizes, elements_mut(out));
            }
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let Kind::Reduce(f) = self.kind else { return 0 };
        let before = &self.steps[..self.steps.len() - 1];
        before.iter().map(|sizes| bytes_of::<u8>(sizes[0] * sizes[2] * self.between(f).size())).sum()
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, x, sizes) = (&self.cx.threads, read(inputs, 0), self.steps[0]);
        let out = &mut *outputs[0];
        if out.is_empty() {
            return Ok(());
        }
        match self.kind {
            Kind::Reduce(f) => self.reduce(f, x, out, &mut Scratch::new(scratch)),
            Kind::Cumsum => {
                with_elements!(self.dtype, T => cumsum(threads, elements::<T>(x), sizes, elements_mut(out)));
            }
            Kind::Cumulate(f) => self.cumulate(f, x, out),
            Kind::Arg(f) => {
                let greatest = f == ArgReduceFn::Max;
                with_elements!(self.dtype, T => {
                    arg_extremum(threads, greatest, elements::<T>(x), sizes, elements_mut(out))
                });
            }
        }
        Ok(())
    }
}
