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
    embedding::{IndexOperand, index_operand, rows_of},
    joined::Joined,
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
    points: usize,
    indices: Vec<IndexOperand>,
    places: Places,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let (x, values) = (operand(node, 0)?, operand(node, 1)?);
    let end = op.axis + node.inputs.len() - 2;
    let indexed: Vec<&[usize]> = node.inputs[2..].iter().flatten().map(|o| o.shape).collect();
    let points = broadcast_shape(&indexed).ok_or_else(|| unsupported(node, "indices do not broadcast"))?;
    let indices = (op.axis..end).map(|axis| index_operand(node, axis - op.axis + 2, &points, x.shape[axis]));
    let indices = indices.collect::<Result<_, _>>()?;
    let written = [&x.shape[..op.axis], &points, &x.shape[end..]].concat();
    let Some(missing) = written.len().checked_sub(values.shape.len()) else {
        return Err(unsupported(node, "values have more axes than what is written"));
    };
    if values.shape.iter().zip(&written[missing..]).any(|(of, to)| of != to && *of != 1) {
        return Err(unsupported(node, "values do not broadcast to what is written"));
    }
    let mut strides = vec![0; missing];
    let own = contiguous_strides(values.shape);
    strides.extend(values.shape.iter().zip(own).map(|(&size, stride)| if size == 1 { 0 } else { stride }));
    let offsets = |range: std::ops::Range<usize>| {
        let mut all = Vec::new();
        for_each_index(&written[range.clone()], &strides[range], |at| all.push(at));
        all
    };
    let last = op.axis + points.len();
    let places =
        Places { outer: offsets(0..op.axis), points: offsets(op.axis..last), inner: offsets(last..written.len()) };
    let product = |sizes: &[usize]| sizes.iter().product::<usize>();
    let sizes = [product(&x.shape[..op.axis]), product(&x.shape[op.axis..end]), product(&x.shape[end..])];
    let points = product(&points);
    Ok(Box::new(Prepared { cx: cx.clone(), dtype: x.dtype, f: op.f, sizes, points, indices, places }))
}

impl Prepared {
    /// Whether results are made in f32, and rounded once.
    fn is_widened(&self) -> bool {
        self.f != PutFn::Set && matches!(self.dtype, DType::F16 | DType::BF16)
    }

    fn replace<T: Pod + Send + Sync>(&self, rows: &[usize], values: &[u8], out: &mut [u8]) {
        let (values, out, same) = (elements::<T>(values), elements_mut::<T>(out), |x: T| x);
        let meeting: Meeting<fn(T, T) -> T> = Meeting::Replace;
        put(&self.cx.threads, self.sizes, rows, values, &self.places, same, meeting, out);
    }

    fn join<V: Pod + Send + Sync, T: Joined>(&self, rows: &[usize], values: &[V], of: fn(V) -> T, out: &mut [T]) {
        let joined: fn(T, T) -> T = match (self.f, self.dtype) {
            // Bools are whether a result is not zero.
            (PutFn::Add, DType::Bool) => T::greater,
            (PutFn::Mul, DType::Bool) => T::lesser,
            (PutFn::Add, _) => T::plus,
            (PutFn::Mul, _) => T::times,
            (PutFn::Max, _) => T::greater,
            (PutFn::Min, _) => T::lesser,
            (PutFn::Set, _) => |_, new| new,
        };
        put(&self.cx.threads, self.sizes, rows, values, &self.places, of, Meeting::Join(joined), out);
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let wide = if self.is_widened() { self.sizes.iter().product() } else { 0 };
        bytes_of::<usize>(self.points) + bytes_of::<f32>(wide)
    }

    fn in_place(&self) -> Option<usize> {
        Some(0)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, out) = (&self.cx.threads, self.cx.isa, &mut *outputs[0]);
        let mut scratch = Scratch::new(scratch);
        // All indices are checked before anything is written.
        let rows = scratch.take::<usize>(self.points);
        rows_of(&self.indices, true, &inputs[2..], rows)?;
        if let Some(x) = inputs[0] {
            const COPY: usize = 1 << 20;
            threads.for_each_chunk(out, COPY, |i, out| out.copy_from_slice(&x[i * COPY..][..out.len()]));
        }
        let values = read(inputs, 1);
        if out.is_empty() || rows.is_empty() {
            return Ok(());
        }
        match FloatType::of(self.dtype) {
            _ if self.f == PutFn::Set => with_size!(self.dtype.size(), T => self.replace::<T>(rows, values, out)),
            Some(ty) if self.is_widened() => {
                let wide = scratch.take::<f32>(self.sizes.iter().product());
                Floats::of_bytes(ty, out).load(isa, 0, wide);
                match ty {
                    FloatType::Bf16 => self.join(rows, elements(values), half::bf16::to_f32, wide),
                    _ => self.join(rows, elements(values), half::f16::to_f32, wide),
                }
                with_floats_mut!(ty, out, out => crate::simd::Float::narrow(isa, wide, out));
            }
            _ => with_elements!(self.dtype, T => {
                self.join::<T, T>(rows, elements(values), |x| x, elements_mut(out));
            }),
        }
        Ok(())
    }
}
