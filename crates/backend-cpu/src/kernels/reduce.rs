//! Reductions, what runs along an axis, and positions of extrema.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{ArgReduceFn, CumulateFn, ReduceFn},
};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    CpuKernel, Cx, Family,
    joined::Joined,
    support::{
        Seen, Why, around, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported,
        with_elements, with_size,
    },
};
use crate::{
    Isa, Scratch, Threads,
    nn::{
        reduce::{Reduction, reduce},
        scan::{arg_extremum, arg_so_far, cumprod, cumsum, join, log_cum_sum_exp},
        transpose::copy_strided,
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

/// A copy in which the axes that are reduced stand last.
struct Sorted {
    shape: Vec<usize>,
    strides: Vec<usize>,
}

struct Prepared {
    cx: Cx,
    kind: Kind,
    dtype: DType,
    sizes: [usize; 3],
    /// What is reduced, where it is not the operand as it is.
    sorted: Option<Sorted>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let x = operand(node, 0)?;
    let mut sorted = None;
    let (kind, sizes) = match node.op {
        Op::Reduce(op) => {
            let (sizes, copy) = reduced(&op.axes, x.shape);
            sorted = copy;
            (Kind::Reduce(op.f), sizes)
        }
        Op::Cumsum(op) => (Kind::Cumsum, around(x.shape, op.axis)),
        Op::Cumulate(op) => (Kind::Cumulate(op.f), around(x.shape, op.axis)),
        Op::ArgReduce(op) => (Kind::Arg(op.f), around(x.shape, op.axis)),
        _ => return Err(unsupported(node, "it is not a reduction")),
    };
    if sizes[1] == 0 && matches!(kind, Kind::Arg(_)) {
        return Err(unsupported(node, "the axis is empty"));
    }
    Ok(Box::new(Prepared { cx: cx.clone(), kind, dtype: x.dtype, sizes, sorted }))
}

/// The operand as `[outer, reduced, inner]`, and the copy of it that lies so if it does not itself.
fn reduced(axes: &[usize], shape: &[usize]) -> ([usize; 3], Option<Sorted>) {
    let product = |sizes: &[usize]| sizes.iter().product();
    // Axes of size 1 are nowhere in particular.
    let large: Vec<usize> = axes.iter().copied().filter(|axis| shape[*axis] != 1).collect();
    let between = |first: usize, last: usize| (first..=last).any(|axis| shape[axis] != 1 && !axes.contains(&axis));
    match (large.first(), large.last()) {
        (Some(&first), Some(&last)) if between(first, last) => {}
        (Some(&first), Some(&last)) => {
            let sizes = [product(&shape[..first]), product(&shape[first..=last]), product(&shape[last + 1..])];
            return (sizes, None);
        }
        _ => return ([product(shape), 1, 1], None),
    }
    let strides = contiguous_strides(shape);
    let order: Vec<usize> = (0..shape.len()).filter(|axis| !axes.contains(axis)).chain(axes.iter().copied()).collect();
    let pick = |from: &[usize]| order.iter().map(|axis| from[*axis]).collect::<Vec<_>>();
    let (sorted, kept) = (Sorted { shape: pick(shape), strides: pick(&strides) }, shape.len() - axes.len());
    ([product(&sorted.shape[..kept]), product(&sorted.shape[kept..]), 1], Some(sorted))
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
    fn scratch(&self) -> usize {
        let count = |sorted: &Sorted| sorted.shape.iter().product::<usize>();
        bytes_of::<u8>(self.sorted.as_ref().map_or(0, count) * self.dtype.size())
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, mut bytes, sizes) = (&self.cx.threads, read(inputs, 0), self.sizes);
        let out = &mut *outputs[0];
        if out.is_empty() {
            return Ok(());
        }
        if let Some(Sorted { shape, strides }) = &self.sorted {
            let size = self.dtype.size();
            let copy = Scratch::new(scratch).take::<u8>(shape.iter().product::<usize>() * size);
            with_size!(size, T => {
                copy_strided(threads, self.cx.isa, elements::<T>(bytes), shape, strides, elements_mut(copy));
            });
            bytes = copy;
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
            Kind::Cumulate(f @ (CumulateFn::ArgMax | CumulateFn::ArgMin)) => {
                let (greatest, out) = (f == CumulateFn::ArgMax, elements_mut(out));
                with_elements!(self.dtype, T => arg_so_far(threads, greatest, elements::<T>(bytes), sizes, out));
            }
            Kind::Cumulate(CumulateFn::Prod) => {
                with_elements!(self.dtype, T => cumprod(threads, elements::<T>(bytes), sizes, elements_mut(out)));
            }
            Kind::Cumulate(CumulateFn::LogSumExp) => match FloatType::of(self.dtype) {
                // Inference lets floats alone through.
                None => log_cum_sum_exp(threads, elements::<f64>(bytes), sizes, elements_mut(out)),
                Some(FloatType::F32) => log_cum_sum_exp(threads, elements::<f32>(bytes), sizes, elements_mut(out)),
                Some(FloatType::F16) => {
                    log_cum_sum_exp(threads, elements::<half::f16>(bytes), sizes, elements_mut(out))
                }
                Some(FloatType::Bf16) => {
                    log_cum_sum_exp(threads, elements::<half::bf16>(bytes), sizes, elements_mut(out));
                }
            },
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
