//! A plan at known sizes before its memory is assigned: each result has a buffer of its own.

use regraft_backend::Kernel;
use regraft_tensor::DType;

/// Where the bytes of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Home {
    /// No bytes at all.
    Nowhere,
    /// A buffer in the arena.
    Buffer(usize),
    /// A slot of the generation.
    Slot(usize),
    /// An input of the run.
    Input(usize),
    /// A state of the session.
    State(usize),
    /// The memory that an output of the run leaves in.
    Output(usize),
}

/// Bytes that a step reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) home: Home,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// One step of a run.
pub(crate) struct DraftStep {
    /// `None` in tests of memory alone.
    pub(crate) kernel: Option<Box<dyn Kernel>>,
    pub(crate) reads: Vec<Option<Use>>,
    pub(crate) writes: Vec<Use>,
    pub(crate) scratch: Home,
    /// The node it belongs to.
    pub(crate) node: usize,
}

/// A value that leaves the run; row-major.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) from: Use,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) steps: Vec<DraftStep>,
    /// Bytes of each buffer.
    pub(crate) buffers: Vec<usize>,
    /// The buffer that each input is copied to, where it is.
    pub(crate) staged_inputs: Vec<Option<Home>>,
    pub(crate) input_bytes: Vec<usize>,
    pub(crate) state_bytes: Vec<usize>,
    pub(crate) outputs: Vec<Leaving>,
    pub(crate) changes_states_early: bool,
}

impl Draft {
    pub(crate) fn buffer(&mut self, bytes: usize) -> Home {
        self.buffers.push(bytes);
        Home::Buffer(self.buffers.len() - 1)
    }

    pub(crate) fn step(&mut self, kernel: Box<dyn Kernel>, reads: Vec<Option<Use>>, writes: Vec<Use>, node: usize) {
        let scratch = match kernel.scratch() {
            0 => Home::Nowhere,
            bytes => self.buffer(bytes),
        };
        self.steps.push(DraftStep { kernel: Some(kernel), reads, writes, scratch, node });
    }

    /// The last step that reads or writes `home`, and what leaves the run last of all.
    pub(crate) fn last_use(&self, home: Home) -> Option<usize> {
        if self.outputs.iter().any(|leaving| leaving.from.home == home) {
            return Some(usize::MAX);
        }
        let uses = |step: &DraftStep| step.reads.iter().flatten().chain(&step.writes).any(|of| of.home == home);
        self.steps.iter().rposition(uses)
    }

    /// Replaces a buffer, whole, by another home.
    pub(crate) fn rename(&mut self, buffer: Home, to: Home) {
        let steps = self.steps.iter_mut().flat_map(|step| step.reads.iter_mut().flatten().chain(&mut step.writes));
        let leaving = self.outputs.iter_mut().map(|leaving| &mut leaving.from);
        steps.chain(leaving).filter(|of| of.home == buffer).for_each(|of| of.home = to);
    }
}
