//! A plan at known sizes: every value has a place in memory, every node a kernel.

mod draft;
mod memory;
mod reference;
mod states;
mod view;

use regraft_backend::{
    Device, Extent, KernelId, Location, NodeSpec, Operand, Place, ResultType, Sequence, Sizes, Step,
};
use regraft_engine::Plan;
use regraft_ir::{Def, Node, Op, TensorType, ValueId};
use regraft_tensor::{DType, Tensor};

pub(crate) use self::draft::{Draft, DraftStep, Home, Leaving, Use};
use self::{reference::ReferenceKernel, view::View};
use crate::{RuntimeError, RuntimeErrorKind};

/// A value that leaves the run; row-major.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Where it is when a run is over.
    pub(crate) from: Location,
    /// Whether that is the memory that it leaves in: memory behind the states, one for each output.
    pub(crate) in_place: bool,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

/// A plan at known sizes.
pub(crate) struct BoundPlan {
    pub(crate) sequence: Sequence,
    /// Where in the arena each input is copied to, on devices that cannot be given memory of the host.
    pub(crate) staged_inputs: Vec<Option<Location>>,
    pub(crate) outputs: Vec<Output>,
    /// Whether a run that fails halfway may have changed states.
    pub(crate) changes_states_early: bool,
    pub(crate) extent: Extent,
    /// Whether all memory but that of slots and states is the same in every run of a lane, and nothing is done on the host.
    pub(crate) is_repeatable: bool,
}

impl BoundPlan {
    /// Binds `plan` to the values of its symbols.
    pub(crate) fn new(plan: &Plan, symbols: &[i64], device: &dyn Device) -> Result<BoundPlan, RuntimeError> {
        let mut binder =
            Binder { plan, symbols, device, views: vec![None; plan.graph.value_count()], draft: Draft::default() };
        binder.leaves()?;
        for (index, node) in plan.graph.nodes().iter().enumerate() {
            if plan.kernels[index].0 == KernelId::VIEW {
                binder.view_node(index, node)?;
            } else {
                binder.kernel_node(index, node)?;
            }
        }
        binder.leave()?;
        binder.finish()
    }
}

struct Binder<'a> {
    plan: &'a Plan,
    symbols: &'a [i64],
    device: &'a dyn Device,
    views: Vec<Option<View>>,
    draft: Draft,
}

impl Binder<'_> {
    fn leaves(&mut self) -> Result<(), RuntimeError> {
        let graph = &self.plan.graph;
        for (i, input) in graph.inputs.iter().enumerate() {
            let home = if self.device.reads_host() {
                self.draft.staged_inputs.push(None);
                Home::Input(i)
            } else {
                let home = self.draft.buffer(self.bytes(input.value)?);
                self.draft.staged_inputs.push(Some(home));
                home
            };
            self.leaf(input.value, home)?;
        }
        for (i, slot) in graph.sources.iter().enumerate() {
            self.leaf(slot.value, Home::Slot(i))?;
        }
        for (i, state) in graph.states.iter().enumerate() {
            self.leaf(state.value, Home::State(i))?;
        }
        Ok(())
    }

    fn leaf(&mut self, value: ValueId, home: Home) -> Result<(), RuntimeError> {
        self.views[value.0 as usize] = Some(View::contiguous(home, self.dtype(value), self.sizes(value)?));
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

    /// Bytes of a value, row-major.
    fn bytes(&self, value: ValueId) -> Result<usize, RuntimeError> {
        Ok(self.sizes(value)?.iter().product::<usize>() * self.dtype(value).size())
    }

    fn view(&self, value: ValueId) -> &View {
        self.views[value.0 as usize].as_ref().expect("operands come before their uses")
    }

    /// A row-major copy of a strided value.
    fn copied(&mut self, view: &View, node: usize) -> Result<View, RuntimeError> {
        let bytes = view.shape.iter().product::<usize>() * view.dtype.size();
        let copy = View::contiguous(self.draft.buffer(bytes), view.dtype, view.shape.clone());
        self.copy(view, &copy, node)?;
        Ok(copy)
    }

    /// A step that copies a strided value to where `to`, row-major, is.
    fn copy(&mut self, from: &View, to: &View, node: usize) -> Result<(), RuntimeError> {
        let operand = Operand { dtype: from.dtype, shape: &from.shape, strides: &from.strides, slot: None };
        let result = ResultType { dtype: from.dtype, shape: &from.shape };
        let op = regraft_ir::ops::Reshape { shape: from.shape.iter().map(|&size| size.into()).collect() }.into();
        let kernel = KernelId::new(KernelId::COPY);
        let spec = NodeSpec { kernel: &kernel, op: &op, inputs: &[Some(operand)], outputs: &[result] };
        let scope = || self.plan.graph.nodes().get(node).map_or_else(String::new, |node| node.scope.to_string());
        let at = |error| RuntimeErrorKind::Prepare { scope: scope(), error };
        let kernel = self.device.prepare(&spec).map_err(at)?;
        self.draft.step(kernel, vec![Some(from.extent())], vec![to.extent()], node);
        Ok(())
    }

    fn view_node(&mut self, index: usize, node: &Node) -> Result<(), RuntimeError> {
        let op = self.bind_op(node)?;
        let from = self.view(node.input(0)).clone();
        let shape = self.sizes(node.output())?;
        self.check_types(node, &op, &[Some(&from)], std::slice::from_ref(&shape))?;
        let view = match from.apply(&op, &shape) {
            Some(view) => view,
            None => {
                let row_major = self.copied(&from, index)?;
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
            views.push(match input {
                Some(v) => Some(self.operand(*v, index, i, kernel, &op)?),
                None => None,
            });
        }
        let inputs: Vec<_> =
            node.inputs.iter().zip(&views).map(|(v, view)| Some(self.operand_spec((*v)?, view.as_ref()?))).collect();
        let outputs: Vec<_> =
            (node.outputs.iter().zip(&shapes)).map(|(&v, shape)| ResultType { dtype: self.dtype(v), shape }).collect();
        let spec = NodeSpec { kernel, op: &op, inputs: &inputs, outputs: &outputs };
        let prepared: Box<dyn regraft_backend::Kernel> = if kernel.0 == KernelId::REFERENCE {
            Box::new(ReferenceKernel::new(&spec))
        } else {
            let at = |error| RuntimeErrorKind::Prepare { scope: node.scope.to_string(), error };
            self.device.prepare(&spec).map_err(at)?
        };
        let mut writes = Vec::with_capacity(node.outputs.len());
        for (&v, shape) in node.outputs.iter().zip(shapes) {
            let bytes = shape.iter().product::<usize>() * self.dtype(v).size();
            let view = View::contiguous(self.draft.buffer(bytes), self.dtype(v), shape);
            writes.push(view.extent());
            self.views[v.0 as usize] = Some(view);
        }
        // A slot is given whole: its layout is its kernel's matter.
        let read = |(v, view): (&Option<ValueId>, &Option<View>)| {
            let view = view.as_ref()?;
            Some(match self.plan.graph.source_of((*v)?) {
                Some(slot) if view.home == Home::Slot(slot as usize) => {
                    Use { home: view.home, start: 0, len: self.plan.slots[slot as usize].bytes }
                }
                _ => view.extent(),
            })
        };
        let reads = node.inputs.iter().zip(&views).map(read).collect();
        self.draft.step(prepared, reads, writes, index);
        Ok(())
    }

    /// The operand as the kernel can read it: as it is, or copied to row-major first.
    fn operand(
        &mut self,
        value: ValueId,
        node: usize,
        index: usize,
        kernel: &KernelId,
        op: &Op,
    ) -> Result<View, RuntimeError> {
        let view = self.view(value).clone();
        if view.is_contiguous() {
            return Ok(view);
        }
        let reads = kernel.0 != KernelId::REFERENCE
            && self.device.reads_strided(kernel, op, index, &self.operand_spec(value, &view));
        if reads { Ok(view) } else { self.copied(&view, node) }
    }

    fn operand_spec<'v>(&'v self, value: ValueId, view: &'v View) -> Operand<'v> {
        let slot = match self.plan.graph.value(value).def {
            Def::Source(index) => Some(&self.plan.slots[index as usize]),
            Def::Input(_) | Def::State(_) | Def::Node(..) => None,
        };
        Operand { dtype: view.dtype, shape: &view.shape, strides: &view.strides, slot }
    }

    /// A value that is row-major where it is, or a copy of it.
    fn row_major(&mut self, value: ValueId, node: usize) -> Result<View, RuntimeError> {
        let view = self.view(value).clone();
        if view.is_contiguous() { Ok(view) } else { self.copied(&view, node) }
    }

    /// Places for everything.
    fn finish(self) -> Result<BoundPlan, RuntimeError> {
        let Binder { plan, draft, .. } = self;
        let too_large = || RuntimeErrorKind::TooLarge { what: "the memory of a run".into() };
        let (starts, arena) = memory::assign(&draft).ok_or_else(too_large)?;
        let part = |of: &Use| match of.home {
            Home::Buffer(buffer) => Location { place: Place::Arena, start: starts[buffer] + of.start, len: of.len },
            Home::Slot(i) => Location { place: Place::Slot(i), start: of.start, len: of.len },
            Home::Input(i) => Location { place: Place::Input(i), start: of.start, len: of.len },
            Home::State(i) => Location { place: Place::State(i), start: of.start, len: of.len },
            Home::Output(i) => {
                Location { place: Place::State(plan.graph.states.len() + i), start: of.start, len: of.len }
            }
            Home::Nowhere => Location { place: Place::Arena, start: 0, len: 0 },
        };
        let step = |step: DraftStep| Step {
            kernel: step.kernel.expect("a draft of a plan has kernels"),
            inputs: step.reads.iter().map(|read| read.as_ref().map(part)).collect(),
            outputs: step.writes.iter().map(part).collect(),
            scratch: part(&Use { home: step.scratch, start: 0, len: 0 }).start,
            node: step.node,
        };
        let whole = |home: &Home| match home {
            Home::Buffer(buffer) => part(&Use { home: *home, start: 0, len: draft.buffers[*buffer] }),
            _ => unreachable!("inputs are staged in buffers"),
        };
        let staged_inputs: Vec<Option<Location>> =
            draft.staged_inputs.iter().map(|home| home.as_ref().map(whole)).collect();
        let output = |(index, leaving): (usize, &Leaving)| Output {
            from: part(&leaving.from),
            in_place: leaving.from.home == Home::Output(index),
            dtype: leaving.dtype,
            shape: leaving.shape.clone(),
        };
        let outputs = draft.outputs.iter().enumerate().map(output).collect();
        let changes_states_early = draft.changes_states_early;
        let sizes = sizes(plan, &draft, arena);
        let slot_bytes = sizes.slots.iter().fold(arena, |sum, bytes| sum.saturating_add(*bytes));
        let in_place = sizes.states.get(plan.graph.states.len()..).unwrap_or_default();
        let bytes = sizes.inputs.iter().chain(in_place).fold(slot_bytes, |sum, bytes| sum.saturating_add(*bytes));
        let steps: Vec<Step> = draft.steps.into_iter().map(step).collect();
        let extent = Extent { steps: steps.len(), bytes };
        let is_repeatable =
            sizes.inputs.is_empty() && in_place.is_empty() && !steps.iter().any(|step| step.kernel.is_host_step());
        let sequence = Sequence::new(steps, sizes).map_err(RuntimeErrorKind::Sequence)?;
        Ok(BoundPlan { sequence, staged_inputs, outputs, changes_states_early, extent, is_repeatable })
    }
}

/// The sizes of the memory that a draft works on.
fn sizes(plan: &Plan, draft: &Draft, arena: usize) -> Sizes {
    let in_place = |(index, leaving): (usize, &Leaving)| {
        if leaving.from.home == Home::Output(index) { leaving.from.len } else { 0 }
    };
    // Memory of outputs stands behind that of states; a run is given none where no output is computed in place.
    let outputs = draft.outputs.iter().enumerate().map(in_place);
    let outputs = outputs.filter(|_| draft.outputs.iter().any(|leaving| matches!(leaving.from.home, Home::Output(_))));
    Sizes {
        arena,
        slots: plan.slots.iter().map(|slot| slot.bytes).collect(),
        inputs: draft.input_bytes.clone(),
        states: draft.state_bytes.iter().copied().chain(outputs).collect(),
    }
}
