//! Products of two computed values: the right one is packed on the way.

use std::iter::zip;

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, Operand, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{Activation, Linear, Matmul},
};
use regraft_tensor::for_each_index;

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, operand, plain, uniform_rows, unsupported},
};
use crate::{
    Isa, Scratch,
    gemm::{DynamicB, Epilogue, MatmulArgs, MatmulShape, matmul},
    simd::{Float, Floats, with_floats_mut},
};

const MATMUL: &str = "matmul.dynamic";
const LINEAR: &str = "linear.dynamic";

pub(super) const FAMILY: Family = Family { ids: &[MATMUL, LINEAR], candidates, reads_strided, prepare };

/// A product of floats.
enum Spec<'a> {
    Matmul(&'a Matmul),
    Linear(&'a Linear),
}

impl Spec<'_> {
    fn id(&self) -> &'static str {
        match self {
            Spec::Matmul(_) => MATMUL,
            Spec::Linear(_) => LINEAR,
        }
    }
}

fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    node.all_floats()?;
    match node.op {
        Op::Matmul(op) => Ok(Spec::Matmul(op)),
        // It needs the packed form; a linear with a computed weight has none in practice.
        Op::Linear(_) if node.has(3) => Err(Why("nothing can be added to its result")),
        Op::Linear(op) => Ok(Spec::Linear(op)),
        _ => Err(Why("it is not a product")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|spec| spec.id()))
}

fn reads_strided(op: &Op, index: usize, operand: &Operand<'_>) -> bool {
    let inner = operand.strides.last() == Some(&1) || operand.shape.last() == Some(&1);
    match op {
        Op::Matmul(_) => inner,
        Op::Linear(_) => index == 0 && uniform_rows(operand).is_some(),
        _ => false,
    }
}

/// One product of a batch: where its operands and its result start.
pub(super) struct Item {
    pub(super) a: usize,
    pub(super) b: usize,
}

struct Prepared {
    cx: Cx,
    types: Types,
    m: usize,
    n: usize,
    k: usize,
    lda: usize,
    ldb: usize,
    transposed: bool,
    act: Activation,
    items: Vec<Item>,
    /// Distances between neighboring operands when they are all alike: the batch is one call then.
    uniform: Option<(usize, usize)>,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let types = Types::expect(node, 0..node.inputs.len())?;
    let (a, b) = (operand(node, 0)?, operand(node, 1)?);
    match spec {
        Spec::Matmul(op) => {
            let (m, k) = (a.shape[a.shape.len() - 2], a.shape[a.shape.len() - 1]);
            let n = node.outputs[0].shape.last().copied().unwrap_or(1);
            let row = |o: &Operand<'_>| o.strides[o.strides.len() - 2];
            if !reads_strided(node.op, 0, &a) || !reads_strided(node.op, 1, &b) {
                return Err(unsupported(node, "the last axis is not contiguous"));
            }
            let batch = &node.outputs[0].shape[..node.outputs[0].shape.len() - 2];
            let items = items(&a, &b, batch);
            Ok(Box::new(Prepared {
                cx: cx.clone(),
                types,
                m,
                n,
                k,
                lda: row(&a),
                ldb: row(&b),
                transposed: op.transpose_b,
                act: Activation::None,
                uniform: uniform(&items),
                items,
            }))
        }
        Spec::Linear(op) => {
            let (n, k) = (b.shape[0], b.shape[1]);
            let (m, lda) = uniform_rows(&a).ok_or_else(|| unsupported(node, "rows are not equally far apart"))?;
            let items = vec![Item { a: 0, b: 0 }];
            let act = op.act;
            let (uniform, cx) = (Some((0, 0)), cx.clone());
            Ok(Box::new(Prepared { cx, types, m, n, k, lda, ldb: k, transposed: true, act, items, uniform }))
        }
    }
}

/// The operands of each product of a batch, broadcasting.
pub(super) fn items(a: &Operand<'_>, b: &Operand<'_>, batch: &[usize]) -> Vec<Item> {
    let offsets = |o: &Operand<'_>| {
        let own = o.shape.len() - 2;
        let mut strides = vec![0; batch.len() - own];
        strides.extend(zip(&o.shape[..own], &o.strides[..own]).map(|(&size, &s)| if size == 1 { 0 } else { s }));
        let mut all = Vec::new();
        for_each_index(batch, &strides, |at| all.push(at));
        all
    };
    zip(offsets(a), offsets(b)).map(|(a, b)| Item { a, b }).collect()
}

fn uniform(items: &[Item]) -> Option<(usize, usize)> {
    let [first, second, ..] = items else { return Some((0, 0)) };
    let step = (second.a.checked_sub(first.a)?, second.b.checked_sub(first.b)?);
    let alike = items.iter().enumerate().all(|(i, item)| item.a == i * step.0 && item.b == i * step.1);
    alike.then_some(step)
}

impl Prepared {
    /// How many products are one call, and how far apart their operands are.
    fn batch(&self) -> (usize, (usize, usize)) {
        self.uniform.map_or((1, (0, 0)), |steps| (self.items.len(), steps))
    }

    fn multiply<C: Float>(
        &self,
        a: Floats<'_>,
        b: Floats<'_>,
        bias: Option<Floats<'_>>,
        c: &mut [C],
        scratch: &mut [u8],
    ) {
        let ((batches, steps), &Prepared { m, n, k, lda, .. }) = (self.batch(), self);
        let args = MatmulArgs {
            batches,
            m,
            n,
            k,
            a,
            lda,
            a_batch: steps.0,
            b: DynamicB { data: b, ld: self.ldb, transposed: self.transposed },
            b_batch: steps.1,
            c,
            ldc: n,
            c_batch: m * n,
            epilogue: Epilogue { bias, activation: self.act, ..Epilogue::default() },
        };
        matmul(&self.cx.threads, self.cx.isa, args, &mut Scratch::new(scratch));
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let ((batches, steps), types) = (self.batch(), &self.types);
        let (a, b, c) = (types.of(0), types.of(1), types.out());
        let shape = MatmulShape { batches, shared_b: steps.1 == 0, m: self.m, n: self.n, k: self.k, a, b, c };
        shape.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (a, b) = (self.types.read(inputs, 0), self.types.read(inputs, 1));
        let bias = self.types.optional(inputs, 2).map(|bias| bias.first(self.n));
        with_floats_mut!(self.types.out(), &mut *outputs[0], c => {
            if c.is_empty() {
                return Ok(());
            }
            if self.uniform.is_some() {
                self.multiply(a, b, bias, c, scratch);
                return Ok(());
            }
            for (item, c) in zip(&self.items, c.chunks_exact_mut(self.m * self.n)) {
                self.multiply(a.from(item.a), b.from(item.b), bias, c, scratch);
            }
        });
        Ok(())
    }
}
