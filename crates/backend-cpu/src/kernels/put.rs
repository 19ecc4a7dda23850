//! Elements written at computed positions.

use bytemuck::Pod;
use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{IndexPut, PutFn},
};
use regraft_tensor::{DType, broadcast_shape, contiguous_strides, for_each_index};

use super::{
    CpuKernel, Cx, Family,
    joined::Joined,
    points::Points,
    support::{
        Seen, Why, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported,
        with_elements, with_size,
    },
};
use crate::{
    Isa, Scratch,
    nn::put::{Meeting, Places, put},
    scratch::bytes_of,
    simd::{FloatType, Floats, with_floats_mut},
};

const RUNS: &str = "index_put.runs";

pub(super) const FAMILY: Family = Family { ids: &[RUNS], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a IndexPut, Why> {
    match node.op {
        Op::IndexPut(op) => Ok(op),
        _ => Err(Why("it writes at no positions")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| RUNS))
}

struct Prepared {
    cx: Cx,
    dtype: DType,
    f: PutFn,
    /// Groups, runs of a group, elements of a run.
    sizes: [usize; 3],
    points: Points,
    places: Where,
}

/// Where values are.
enum Where {
    /// Each point has one element, and the values are in the order of the points.
    InOrder,
    Places(Places),
}

/// Points whose rows are found together, where each has one element.
const BLOCK: usize = 1024;

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let (x, values) = (operand(node, 0)?, operand(node, 1)?);
    let end = op.axis + node.inputs.len() - 2;
    let indexed: Vec<&[usize]> = node.inputs[2..].iter().flatten().map(|o| o.shape).collect();
    let points = broadcast_shape(&indexed).ok_or_else(|| unsupported(node, "indices do not broadcast"))?;
    let written = [&x.shape[..op.axis], &points, &x.shape[end..]].concat();
    let Some(missing) = written.len().checked_sub(values.shape.len()) else {
        return Err(unsupported(node, "values have more axes than what is written"));
    };
    if values.shape.iter().zip(&written[missing..]).any(|(of, to)| of != to && *of != 1) {
        return Err(unsupported(node, "values do not broadcast to what is written"));
    }
    let product = |sizes: &[usize]| sizes.iter().product::<usize>();
    let sizes = [product(&x.shape[..op.axis]), product(&x.shape[op.axis..end]), product(&x.shape[end..])];
    let last = op.axis + points.len();
    let points = Points::new(node, 2, &points, &x.shape[op.axis..end], true)?;
    let prepared = |places| Prepared { cx: cx.clone(), dtype: x.dtype, f: op.f, sizes, points, places };
    if sizes[0] == 1 && sizes[2] == 1 && product(values.shape) == product(&written) {
        return Ok(Box::new(prepared(Where::InOrder)));
    }
    let mut strides = vec![0; missing];
    let own = contiguous_strides(values.shape);
    strides.extend(values.shape.iter().zip(own).map(|(&size, stride)| if size == 1 { 0 } else { stride }));
    let offsets = |range: std::ops::Range<usize>| {
        let mut all = Vec::new();
        for_each_index(&written[range.clone()], &strides[range], |at| all.push(at));
        all
    };
    let places =
        Places { outer: offsets(0..op.axis), points: offsets(op.axis..last), inner: offsets(last..written.len()) };
    Ok(Box::new(prepared(Where::Places(places))))
}

impl Prepared {
    /// Whether results are made in f32, and rounded once.
    fn is_widened(&self) -> bool {
        self.f != PutFn::Set && matches!(self.dtype, DType::F16 | DType::BF16)
    }

    fn replace<T: Pod + Send + Sync>(&self, run: &mut Run<'_, '_>, values: &[u8], out: &mut [u8]) -> Written {
        let (values, out, same) = (elements::<T>(values), elements_mut::<T>(out), |x: T| x);
        let meeting: Meeting<fn(T, T) -> T> = Meeting::Replace;
        self.put(run, values, same, meeting, out)
    }

    fn join<V, T>(&self, run: &mut Run<'_, '_>, values: &[V], of: impl Fn(V) -> T + Sync, out: &mut [T]) -> Written
    where
        V: Pod + Send + Sync,
        T: Joined,
    {
        let joined: fn(T, T) -> T = match (self.f, self.dtype) {
            // Bools are whether a result is not zero.
            (PutFn::Add, DType::Bool) => T::greater,
            (PutFn::Mul, DType::Bool) => T::lesser,
            // The most frequent, without a call for each element.
            (PutFn::Add, _) => return self.put(run, values, of, Meeting::Join(|a: T, b: T| a.plus(b)), out),
            (PutFn::Mul, _) => T::times,
            (PutFn::Max, _) => T::greater,
            (PutFn::Min, _) => T::lesser,
            (PutFn::Set, _) => |_, new| new,
        };
        self.put(run, values, of, Meeting::Join(joined), out)
    }

    fn put<T: Pod + Send + Sync, V: Pod + Send + Sync>(
        &self,
        run: &mut Run<'_, '_>,
        values: &[V],
        of: impl Fn(V) -> T + Sync,
        meeting: Meeting<impl Fn(T, T) -> T + Sync>,
        out: &mut [T],
    ) -> Written {
        let places = match &self.places {
            Where::Places(places) => places,
            Where::InOrder => return self.put_in_order(run, values, of, meeting, out),
        };
        put(&self.cx.threads, self.sizes, run.rows, values, places, of, meeting, out);
        Ok(())
    }

    /// Writes block by block, so that the rows of points stay in a cache.
    fn put_in_order<T: Pod, V: Pod>(
        &self,
        run: &mut Run<'_, '_>,
        values: &[V],
        of: impl Fn(V) -> T,
        meeting: Meeting<impl Fn(T, T) -> T>,
        out: &mut [T],
    ) -> Written {
        for (block, values) in values[..self.points.count()].chunks(BLOCK).enumerate() {
            let rows = &mut run.rows[..values.len()];
            self.points.rows(self.cx.isa, run.indices, block * BLOCK, rows)?;
            let pairs = rows.iter().zip(values);
            match &meeting {
                Meeting::Replace => pairs.for_each(|(row, value)| out[*row] = of(*value)),
                Meeting::Join(f) => pairs.for_each(|(row, value)| out[*row] = f(out[*row], of(*value))),
            }
        }
        Ok(())
    }

    /// Finds the rows of all points, or sees that they can be found.
    fn check(&self, run: &mut Run<'_, '_>) -> Written {
        match self.places {
            Where::Places(_) => self.points.rows(self.cx.isa, run.indices, 0, run.rows),
            Where::InOrder => (0..self.points.count()).step_by(BLOCK).try_for_each(|first| {
                let count = BLOCK.min(self.points.count() - first);
                self.points.rows(self.cx.isa, run.indices, first, &mut run.rows[..count])
            }),
        }
    }

    /// Points whose rows are found together.
    fn rows(&self) -> usize {
        match self.places {
            Where::Places(_) => self.points.count(),
            Where::InOrder => BLOCK.min(self.points.count()),
        }
    }
}

/// An index may be out of range.
type Written = Result<(), DataError>;

/// What a run finds rows from, and where it puts them.
struct Run<'a, 's> {
    indices: &'a [Option<&'a [u8]>],
    rows: &'s mut [usize],
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let wide = if self.is_widened() { self.sizes.iter().product() } else { 0 };
        bytes_of::<usize>(self.rows()) + bytes_of::<f32>(wide)
    }

    fn in_place(&self) -> Option<usize> {
        Some(0)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, out) = (&self.cx.threads, self.cx.isa, &mut *outputs[0]);
        let mut scratch = Scratch::new(scratch);
        let run = &mut Run { indices: &inputs[2..], rows: scratch.take(self.rows()) };
        // Where the operand itself is written, nothing is before all indices are checked.
        if inputs[0].is_none() || matches!(self.places, Where::Places(_)) {
            self.check(run)?;
        }
        if let Some(x) = inputs[0] {
            const COPY: usize = 1 << 20;
            threads.for_each_chunk(out, COPY, |i, out| out.copy_from_slice(&x[i * COPY..][..out.len()]));
        }
        let values = read(inputs, 1);
        if out.is_empty() || self.points.count() == 0 {
            return Ok(());
        }
        match FloatType::of(self.dtype) {
            _ if self.f == PutFn::Set => with_size!(self.dtype.size(), T => self.replace::<T>(run, values, out)),
            Some(ty) if self.is_widened() => {
                let wide = scratch.take::<f32>(self.sizes.iter().product());
                Floats::of_bytes(ty, out).load(isa, 0, wide);
                match ty {
                    FloatType::Bf16 => self.join(run, elements(values), half::bf16::to_f32, wide),
                    _ => self.join(run, elements(values), half::f16::to_f32, wide),
                }?;
                with_floats_mut!(ty, out, out => crate::simd::Float::narrow(isa, wide, out));
                Ok(())
            }
            _ => with_elements!(self.dtype, T => self.join(run, elements::<T>(values), |x| x, elements_mut::<T>(out))),
        }
    }
}
