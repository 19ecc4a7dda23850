//! What a run leaves: outputs, and states, which are updated where they are. A device that reads memory of the host computes outputs
//! where they leave.
//!
//! All values that leave are computed first; then new states are copied over old ones, so that a run that fails leaves the
//! states as they were. A kernel that works [in place](regraft_backend::Kernel::in_place), such as one that writes a row of a
//! cache, gets the state itself where nothing reads the old one afterwards: then a run that fails may have changed it.

use super::{Binder, Draft, Home, Leaving, View};
use crate::RuntimeError;

impl Binder<'_> {
    /// Adds the steps that outputs and states take, and lets kernels work in place.
    pub(super) fn leave(&mut self) -> Result<(), RuntimeError> {
        let graph = &self.plan.graph;
        let last = graph.nodes().len();
        self.draft.input_bytes = graph.inputs.iter().map(|input| self.bytes(input.value)).collect::<Result<_, _>>()?;
        self.draft.state_bytes = graph.states.iter().map(|state| self.bytes(state.value)).collect::<Result<_, _>>()?;
        if !self.device.reads_host() {
            self.draft.input_bytes.clear();
        }
        for output in &graph.outputs {
            let view = self.leaving(output.value, last)?;
            let leaving = Leaving { from: view.extent(), dtype: view.dtype, shape: view.shape };
            self.draft.outputs.push(leaving);
        }
        let mut next = Vec::with_capacity(graph.states.len());
        for (index, state) in graph.states.iter().enumerate() {
            let own = self.view(state.value).clone();
            let view = self.view(state.next).clone();
            if view == own {
                continue;
            }
            let view = self.leaving(state.next, last)?;
            next.push((index, own, view));
        }
        let homes: Vec<Home> = next.iter().map(|(_, _, view)| view.home).collect();
        for (index, own, view) in next {
            let only = homes.iter().filter(|home| **home == view.home).count() == 1;
            if !only || !update_in_place(&mut self.draft, index, &view) {
                self.copy(&view, &own, last)?;
            }
        }
        reuse_operands(&mut self.draft);
        if self.device.reads_host() {
            write_outputs(&mut self.draft);
        }
        Ok(())
    }

    /// A value that leaves, row-major, and not in a state, which may be changed before it has left.
    fn leaving(&mut self, value: regraft_ir::ValueId, node: usize) -> Result<View, RuntimeError> {
        let view = self.row_major(value, node)?;
        if matches!(view.home, Home::State(_)) { self.copied(&view, node) } else { Ok(view) }
    }
}

/// Lets a kernel that can write its result over a state do so. Whether it was possible.
fn update_in_place(draft: &mut Draft, index: usize, next: &View) -> bool {
    let state = Home::State(index);
    let Some(at) = draft.steps.iter().position(|step| step.writes.first() == Some(&next.extent())) else {
        return false;
    };
    let step = &draft.steps[at];
    let operand = step.kernel.as_ref().and_then(|kernel| kernel.in_place()).and_then(|i| step.reads.get(i)?.as_ref());
    let whole = |len: usize| next.extent().start == 0 && next.extent().len == len && draft.state_bytes[index] == len;
    let fits = operand.is_some_and(|o| o.home == state && o.start == 0 && whole(o.len));
    let read_once = step.reads.iter().flatten().filter(|read| read.home == state).count() == 1;
    if !fits || !read_once || draft.last_use(state) != Some(at) {
        return false;
    }
    draft.rename(next.home, state);
    draft.changes_states_early = true;
    true
}

/// Lets kernels that can write their result over an operand do so, where nothing else needs the operand any more.
fn reuse_operands(draft: &mut Draft) {
    for at in 0..draft.steps.len() {
        let step = &draft.steps[at];
        let Some(operand) = step.kernel.as_ref().and_then(|kernel| kernel.in_place()) else { continue };
        let (Some(Some(read)), Some(written)) = (step.reads.get(operand).copied(), step.writes.first().copied()) else {
            continue;
        };
        let (Home::Buffer(from), Home::Buffer(to)) = (read.home, written.home) else { continue };
        let whole = read.start == 0 && read.len == draft.buffers[from] && written.len == draft.buffers[to];
        let read_once = step.reads.iter().flatten().filter(|other| other.home == read.home).count() == 1;
        if from != to && whole && read.len == written.len && read_once && draft.last_use(read.home) == Some(at) {
            draft.rename(written.home, read.home);
        }
    }
}

/// Lets outputs be computed where they leave, which spares a copy of each.
fn write_outputs(draft: &mut Draft) {
    for index in 0..draft.outputs.len() {
        let from = draft.outputs[index].from;
        let Home::Buffer(buffer) = from.home else { continue };
        if from.start == 0 && from.len > 0 && from.len == draft.buffers[buffer] {
            draft.rename(from.home, Home::Output(index));
        }
    }
}
