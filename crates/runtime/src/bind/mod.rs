//! A plan at known sizes: every value has a place in memory, every node a kernel.

mod memory;
mod reference;
mod view;

use regraft_backend::{Backend, Kernel, KernelId, Operand, Problem, ResultType};
use regraft_engine::Plan;
use regraft_ir::{Def, Node, Op, TensorType, ValueId};
use regraft_tensor::{DType, Tensor};

use self::{reference::ReferenceKernel, view::View};
use crate::{RuntimeError, RuntimeErrorKind};

/// Where the bytes of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A buffer of the session.
    Buffer(usize),
    /// A slot of the generation.
    Slot(usize),
    /// An input of the run.
    Input(usize),
    /// A state of the session.
    State(usize),
}

/// An operand of a step: where, and the byte it starts at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) start: usize,
}

/// What a step does.
pub(crate) enum Work {
    /// Runs a kernel.
    Kernel(Box<dyn Kernel>),
    /// Makes a strided value row-major.
    Copy { size: usize, shape: Vec<usize>, strides: Vec<usize> },
}

/// One step of a run.
pub(crate) struct Step {
    pub(crate) work: Work,
    pub(crate) reads: Vec<Option<Read>>,
    /// Buffer and bytes of each result.
    pub(crate) writes: Vec<(usize, usize)>,
    /// The node it belongs to.
    pub(crate) node: usize,
}

/// A value that leaves the run; row-major.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) read: Read,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

/// A plan at known sizes.
pub(crate) struct BoundPlan {
    pub(crate) steps: Vec<Step>,
    /// Bytes of each buffer of the session.
    pub(crate) buffers: Vec<usize>,
    pub(crate) outputs: Vec<Leaving>,
    pub(crate) next_states: Vec<Leaving>,
    /// Bytes of all slots.
    slot_bytes: usize,
}

/// Work on no more than this is done before another thread has woken up.
const SMALL_BYTES: usize = 64 << 10;

/// With more steps, those that are split over threads all the same would each pay for a hand-over.
const SMALL_STEPS: usize = 4;

impl BoundPlan {
    /// Whether a run on `inputs` is over sooner than handing it to other threads takes.
    pub(crate) fn is_small(&self, inputs: &[Tensor]) -> bool {
        let inputs: usize = inputs.iter().map(|input| input.bytes().len()).sum();
        let bytes = self.buffers.iter().fold(self.slot_bytes.saturating_add(inputs), |sum, b| sum.saturating_add(*b));
        self.steps.len() <= SMALL_STEPS && bytes <= SMALL_BYTES
    }

    /// Binds `plan` to the values of its symbols.
    pub(crate) fn new(plan: &Plan, symbols: &[i64], backend: &dyn Backend) -> Result<BoundPlan, RuntimeError> {
        let mut binder = Binder {
            plan,
            symbols,
            backend,
            views: vec![None; plan.graph.value_count()],
            steps: Vec::new(),
            buffers: Vec::new(),
        };
        binder.leaves()?;
        for (index, node) in plan.graph.nodes().iter().enumerate() {
            if plan.kernels[index].0 == KernelId::VIEW {
                binder.view_node(index, node)?;
            } else {
                binder.kernel_node(index, node)?;
            }
        }
        let last = plan.graph.nodes().len();
        let outputs =
            plan.graph.outputs.iter().map(|o| binder.leaving(o.value, last)).collect::<Result<Vec<_>, _>>()?;
        let next_states =
            plan.graph.states.iter().map(|s| binder.leaving(s.next, last)).collect::<Result<Vec<_>, _>>()?;
        let Binder { steps, buffers, .. } = binder;
        let slot_bytes = (0..plan.slots.len()).map(|slot| plan.slot_bytes(slot)).fold(0, usize::saturating_add);
        Ok(memory::assign(BoundPlan { steps, buffers, outputs, next_states, slot_bytes }))
    }
}

struct Binder<'a> {
    plan: &'a Plan,
    symbols: &'a [i64],
    backend: &'a dyn Backend,
    views: Vec<Option<View>>,
    steps: Vec<Step>,
    /// Bytes of each buffer; one per result until memory is assigned.
    buffers: Vec<usize>,
}

impl Binder<'_> {
    fn leaves(&mut self) -> Result<(), RuntimeError> {
        let graph = &self.plan.graph;
        for (i, input) in graph.inputs.iter().enumerate() {
            self.leaf(input.value, Place::Input(i))?;
        }
        for (i, slot) in graph.sources.iter().enumerate() {
            self.leaf(slot.value, Place::Slot(i))?;
        }
        for (i, state) in graph.states.iter().enumerate() {
            self.leaf(state.value, Place::State(i))?;
        }
        Ok(())
    }

    fn leaf(&mut self, value: ValueId, place: Place) -> Result<(), RuntimeError> {
        self.views[value.0 as usize] = Some(View::contiguous(place, self.dtype(value), self.sizes(value)?));
        Ok(())
    }

    fn dtype(&self, value: ValueId) -> DType {
        self.plan.graph.ty(value).dtype
    }

    /// The sizes of a value, checked to fit in memory.
    fn sizes(&self, value: ValueId) -> Result<Vec<usize>, RuntimeError> {
        let ty = self.plan.graph.ty(value);
        let too_large = || RuntimeErrorKind::TooLarge { what: format!("a value of type {ty}") };
        let size = |d: &regraft_tensor::Dim| d.eval(self.symbols).ok().and_then(|v| usize::try_from(v).ok());
        let sizes: Vec<usize> = ty.shape.iter().map(size).collect::<Option<_>>().ok_or_else(too_large)?;
        Tensor::byte_len(ty.dtype, &sizes).map_err(|_| too_large())?;
        Ok(sizes)
    }

    fn view(&self, value: ValueId) -> &View {
        self.views[value.0 as usize].as_ref().expect("operands come before their uses")
    }

    fn new_buffer(&mut self, bytes: usize) -> usize {
        self.buffers.push(bytes);
        self.buffers.len() - 1
    }

    /// A row-major copy of a strided value.
    fn copied(&mut self, view: &View, node: usize) -> View {
        let copy = View::contiguous(Place::Buffer(self.buffers.len()), view.dtype, view.shape.clone());
        let size = view.dtype.size();
        let bytes = view.shape.iter().product::<usize>() * size;
        let buffer = self.new_buffer(bytes);
        let work = Work::Copy { size, shape: view.shape.clone(), strides: view.strides.clone() };
        self.steps.push(Step { work, reads: vec![Some(view.read())], writes: vec![(buffer, bytes)], node });
        copy
    }

    fn view_node(&mut self, index: usize, node: &Node) -> Result<(), RuntimeError> {
        let op = self.bind_op(node)?;
        let from = self.view(node.input(0)).clone();
        let shape = self.sizes(node.output())?;
        self.check_types(node, &op, &[Some(&from)], std::slice::from_ref(&shape))?;
        let view = match from.apply(&op, &shape) {
            Some(view) => view,
            None => {
                let row_major = self.copied(&from, index);
                row_major.apply(&op, &shape).expect("any view of a row-major value can be expressed")
            }
        };
        self.views[node.output().0 as usize] = Some(view);
        Ok(())
    }

    /// Symbolic sizes that inference let through must work out at these ones.
    fn check_types(
        &self,
        node: &Node,
        op: &Op,
        operands: &[Option<&View>],
        shapes: &[Vec<usize>],
    ) -> Result<(), RuntimeError> {
        let refuse = |why: String| RuntimeErrorKind::Sizes { op: op.name(), scope: node.scope.to_string(), why };
        let operands: Vec<_> =
            operands.iter().map(|view| view.map(|view| TensorType::of_sizes(view.dtype, &view.shape))).collect();
        let types: Vec<_> = operands.iter().map(Option::as_ref).collect();
        let computed = op.infer(&types).map_err(|e| refuse(e.to_string()))?;
        let declared: Vec<_> =
            node.outputs.iter().zip(shapes).map(|(&v, shape)| TensorType::of_sizes(self.dtype(v), shape)).collect();
        if computed != declared {
            let operands: Vec<_> = operands.iter().flatten().collect();
            return Err(refuse(format!("{operands:?} give {computed:?}, not {declared:?}")).into());
        }
        Ok(())
    }

    fn bind_op(&self, node: &Node) -> Result<Op, RuntimeError> {
        let refuse = |e: regraft_tensor::TensorError| RuntimeErrorKind::Sizes {
            op: node.op.name(),
            scope: node.scope.to_string(),
            why: e.to_string(),
        };
        Ok(node.op.bind(self.symbols).map_err(refuse)?)
    }

    fn kernel_node(&mut self, index: usize, node: &Node) -> Result<(), RuntimeError> {
        let op = self.bind_op(node)?;
        let kernel = &self.plan.kernels[index];
        let shapes = node.outputs.iter().map(|&v| self.sizes(v)).collect::<Result<Vec<_>, _>>()?;
        let operands: Vec<_> = node.inputs.iter().map(|input| input.map(|v| self.view(v))).collect();
        self.check_types(node, &op, &operands, &shapes)?;
        let mut views = Vec::with_capacity(node.inputs.len());
        for (i, input) in node.inputs.iter().enumerate() {
            views.push(input.map(|v| self.operand(v, index, i, kernel, &op)));
        }
        let inputs: Vec<_> =
            node.inputs.iter().zip(&views).map(|(v, view)| Some(self.problem_operand((*v)?, view.as_ref()?))).collect();
        let outputs: Vec<_> =
            (node.outputs.iter().zip(&shapes)).map(|(&v, shape)| ResultType { dtype: self.dtype(v), shape }).collect();
        let problem = Problem { kernel, op: &op, inputs: &inputs, outputs: &outputs };
        let prepared: Box<dyn Kernel> = if kernel.0 == KernelId::REFERENCE {
            Box::new(ReferenceKernel::new(&problem))
        } else {
            let at = |error| RuntimeErrorKind::Prepare { scope: node.scope.to_string(), error };
            self.backend.prepare(&problem).map_err(at)?
        };
        let mut writes = Vec::with_capacity(node.outputs.len());
        for (&v, shape) in node.outputs.iter().zip(shapes) {
            let bytes = shape.iter().product::<usize>() * self.dtype(v).size();
            let buffer = self.new_buffer(bytes);
            writes.push((buffer, bytes));
            self.views[v.0 as usize] = Some(View::contiguous(Place::Buffer(buffer), self.dtype(v), shape));
        }
        let reads = views.iter().map(|v| v.as_ref().map(View::read)).collect();
        self.steps.push(Step { work: Work::Kernel(prepared), reads, writes, node: index });
        Ok(())
    }

    /// The operand as the kernel can read it: as it is, or copied to row-major first.
    fn operand(&mut self, value: ValueId, node: usize, index: usize, kernel: &KernelId, op: &Op) -> View {
        let view = self.view(value).clone();
        if view.is_contiguous() {
            return view;
        }
        let reads = kernel.0 != KernelId::REFERENCE
            && self.backend.reads_strided(kernel, op, index, &self.problem_operand(value, &view));
        if reads { view } else { self.copied(&view, node) }
    }

    fn problem_operand<'v>(&'v self, value: ValueId, view: &'v View) -> Operand<'v> {
        let slot = match self.plan.graph.value(value).def {
            Def::Source(index) => Some(&self.plan.slots[index as usize]),
            Def::Input(_) | Def::State(_) | Def::Node(..) => None,
        };
        Operand { dtype: view.dtype, shape: &view.shape, strides: &view.strides, slot }
    }

    fn leaving(&mut self, value: ValueId, node: usize) -> Result<Leaving, RuntimeError> {
        let view = self.view(value).clone();
        let view = if view.is_contiguous() { view } else { self.copied(&view, node) };
        Ok(Leaving { read: view.read(), dtype: view.dtype, shape: view.shape })
    }
}
