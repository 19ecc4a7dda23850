//! Launches in order over memory with known sizes: a plan at known sizes, checked once and launched many times.
//!
//! What makes it safe to launch kernels on parts of one arena is checked when a [`Sequence`] is made: a step writes nothing
//! that it reads, or writes twice, and reaches nowhere outside.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::{Kernel, Launch, Queue, Region, RegionMut};

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The scratch memory of the session.
    Arena,
    /// A slot of the generation. Never written.
    Slot(usize),
    /// An input of the run. Never written.
    Input(usize),
    /// A state of the session.
    State(usize),
}

/// Where bytes lie: which memory, and which of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which memory.
    pub place: Place,
    /// First byte.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

impl Location {
    /// The bytes.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    fn overlaps(&self, other: &Location) -> bool {
        let apart = self.start + self.len <= other.start || other.start + other.len <= self.start;
        self.place == other.place && self.len > 0 && other.len > 0 && !apart
    }
}

/// A kernel and what it works on.
pub struct Step {
    /// The kernel.
    pub kernel: Box<dyn Kernel>,
    /// Its operands.
    pub inputs: Vec<Option<Location>>,
    /// Its results, in the arena or in states.
    pub outputs: Vec<Location>,
    /// First byte in the arena of its scratch memory.
    pub scratch: usize,
    /// Number of the node that it belongs to.
    pub node: usize,
}

impl Step {
    /// Bytes of operands and results.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().flatten().chain(&self.outputs).map(|part| part.len).sum()
    }

    fn scratch_location(&self) -> Location {
        Location { place: Place::Arena, start: self.scratch, len: self.kernel.scratch() }
    }

    /// The operand that is where result 0 is, because the kernel takes it there.
    fn operand_in_place(&self) -> Option<usize> {
        let operand = self.kernel.in_place()?;
        (self.inputs.get(operand).copied().flatten()? == *self.outputs.first()?).then_some(operand)
    }
}

/// The sizes of the memory that a sequence is launched over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the arena.
    pub arena: usize,
    /// Bytes of each slot.
    pub slots: Vec<usize>,
    /// Bytes of each input.
    pub inputs: Vec<usize>,
    /// Bytes of each state.
    pub states: Vec<usize>,
}

impl Sizes {
    fn of(&self, place: Place) -> Option<usize> {
        match place {
            Place::Arena => Some(self.arena),
            Place::Slot(i) => self.slots.get(i).copied(),
            Place::Input(i) => self.inputs.get(i).copied(),
            Place::State(i) => self.states.get(i).copied(),
        }
    }
}

/// Steps that cannot be launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step} of a bound plan: {why}")]
pub struct SequenceError {
    /// The step.
    pub step: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Steps that were checked.
pub struct Sequence {
    steps: Vec<Step>,
    sizes: Sizes,
}

/// The memory of one launch of a [`Sequence`].
pub struct Bindings<'a> {
    /// The arena.
    pub arena: RegionMut<'a>,
    /// The states.
    pub states: Vec<RegionMut<'a>>,
    /// The inputs.
    pub inputs: &'a [Region<'a>],
    /// The slots.
    pub slots: &'a (dyn Fn(usize) -> Region<'a> + Sync),
}

impl Bindings<'_> {
    /// The bytes of `part`.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn part(&self, part: Location) -> Region<'_> {
        let whole = match part.place {
            Place::Arena => self.arena.shared(),
            Place::Slot(index) => (self.slots)(index),
            Place::Input(index) => self.inputs[index],
            Place::State(index) => self.states[index].shared(),
        };
        whole.part(part.range())
    }
}

impl Sequence {
    /// Steps over memory of these sizes.
    ///
    /// # Errors
    /// When a step reaches outside, writes what is never written, or writes what it reads or writes otherwise.
    pub fn new(steps: Vec<Step>, sizes: Sizes) -> Result<Sequence, SequenceError> {
        for (index, step) in steps.iter().enumerate() {
            check(step, &sizes).map_err(|why| SequenceError { step: index, why })?;
        }
        Ok(Sequence { steps, sizes })
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The sizes that were checked.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Launches all steps. Memory must have the sizes that were checked, at least.
    ///
    /// # Panics
    /// When memory is smaller.
    pub fn launch(&self, queue: &dyn Queue, memory: &mut Bindings<'_>) {
        self.launch_each(queue, memory, |_| {});
    }

    /// As [`Sequence::launch`]; calls `launched` after each step.
    ///
    /// # Panics
    /// When memory is smaller.
    pub fn launch_each(&self, queue: &dyn Queue, memory: &mut Bindings<'_>, mut launched: impl FnMut(&Step)) {
        let small = memory.arena.len() < self.sizes.arena
            || memory.states.len() < self.sizes.states.len()
            || memory.inputs.len() < self.sizes.inputs.len();
        assert!(!small, "the memory of a launch is smaller than what was bound");
        let (mut inputs, mut outputs) = (Vec::with_capacity(8), Vec::with_capacity(2));
        for step in &self.steps {
            inputs.clear();
            outputs.clear();
            let in_place = step.operand_in_place();
            for (index, part) in step.inputs.iter().enumerate() {
                let part = part.filter(|_| in_place != Some(index));
                // SAFETY: `check` has found that no other part of this step that is written overlaps this one, and the
                // regions of a step are gone before the next one's are made.
                inputs.push(part.map(|part| unsafe { read(memory, part) }));
            }
            for part in &step.outputs {
                // SAFETY: as above.
                outputs.push(unsafe { written(memory, *part) });
            }
            // SAFETY: as above.
            let scratch = unsafe { written(memory, step.scratch_location()) };
            let launch = Launch { node: step.node, inputs: &inputs, outputs: &mut outputs, scratch };
            step.kernel.launch(queue, launch);
            launched(step);
        }
    }
}

/// The bytes of `part`, to be read.
///
/// # Safety
/// They are not written while the region is used.
unsafe fn read<'a>(memory: &Bindings<'a>, part: Location) -> Region<'a> {
    match part.place {
        Place::Slot(index) => (memory.slots)(index).part(part.range()),
        Place::Input(index) => memory.inputs[index].part(part.range()),
        // SAFETY: the caller's.
        Place::Arena | Place::State(_) => unsafe { written(memory, part).into_shared() },
    }
}

/// The bytes of `part`, to be written.
///
/// # Safety
/// They are not used otherwise while the region is.
unsafe fn written<'a>(memory: &Bindings<'a>, part: Location) -> RegionMut<'a> {
    let whole = match part.place {
        Place::Arena => &memory.arena,
        Place::State(index) => &memory.states[index],
        Place::Slot(_) | Place::Input(_) => unreachable!("`check` refuses steps that write slots or inputs"),
    };
    // SAFETY: the caller's.
    unsafe { whole.again() }.part(part.range())
}

fn check(step: &Step, sizes: &Sizes) -> Result<(), String> {
    let inside = |part: &Location| match sizes.of(part.place) {
        Some(len) if part.start.checked_add(part.len).is_some_and(|end| end <= len) => Ok(()),
        Some(len) => Err(format!("{part:?} lies outside of {len} bytes")),
        None => Err(format!("{part:?} does not exist")),
    };
    let scratch = step.scratch_location();
    let written: Vec<&Location> = step.outputs.iter().chain([&scratch]).collect();
    for part in step.inputs.iter().flatten().chain(written.iter().copied()) {
        inside(part)?;
    }
    for (i, part) in written.iter().enumerate() {
        if part.len > 0 && !matches!(part.place, Place::Arena | Place::State(_)) {
            return Err(format!("{part:?} is never written"));
        }
        if let Some(other) = written[..i].iter().find(|other| other.overlaps(part)) {
            return Err(format!("{part:?} and {other:?} are both written"));
        }
        let in_place = step.operand_in_place();
        let read = step.inputs.iter().enumerate().filter(|(index, _)| in_place != Some(*index));
        if let Some(other) = read.filter_map(|(_, other)| other.as_ref()).find(|other| other.overlaps(part)) {
            return Err(format!("{part:?} is written and {other:?} is read"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;
    use crate::{Extent, Fence, RunError};

    struct Nothing {
        scratch: usize,
        in_place: Option<usize>,
    }

    impl Kernel for Nothing {
        fn scratch(&self) -> usize {
            self.scratch
        }

        fn in_place(&self) -> Option<usize> {
            self.in_place
        }

        fn launch(&self, _: &dyn Queue, mut launch: Launch<'_, '_>) {
            let sum: u8 = launch.inputs.iter().flatten().map(|r| r.host_bytes()[0]).sum();
            launch.outputs[0].host_bytes()[0] += sum;
            launch.scratch.host_bytes().fill(7);
        }
    }

    struct Now;

    impl Queue for Now {
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn submit(&self, _: Extent, work: &mut (dyn FnMut() + Send)) {
            work();
        }
        fn write(&self, from: &[u8], mut to: RegionMut<'_>) {
            to.host_bytes().copy_from_slice(from);
        }
        fn copy(&self, from: Region<'_>, mut to: RegionMut<'_>) {
            to.host_bytes().copy_from_slice(from.host_bytes());
        }
        fn read(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), RunError> {
            to.copy_from_slice(from.host_bytes());
            Ok(())
        }
        fn report(&self, _: RunError) {}
        fn fence(&self) -> Fence {
            Fence::done()
        }
    }

    fn arena(start: usize, len: usize) -> Location {
        Location { place: Place::Arena, start, len }
    }

    fn step(inputs: &[Location], output: Location, scratch: (usize, usize), in_place: Option<usize>) -> Step {
        let kernel = Box::new(Nothing { scratch: scratch.1, in_place });
        let inputs = inputs.iter().map(|p| Some(*p)).collect();
        Step { kernel, inputs, outputs: vec![output], scratch: scratch.0, node: 0 }
    }

    fn made(step: Step) -> Result<Sequence, SequenceError> {
        let sizes = Sizes { arena: 16, slots: vec![4], inputs: vec![4], states: vec![4] };
        Sequence::new(vec![step], sizes)
    }

    #[test]
    fn steps_that_overlap_or_reach_outside_are_refused() {
        assert!(made(step(&[arena(0, 4)], arena(4, 4), (8, 8), None)).is_ok());
        assert!(made(step(&[arena(0, 4)], arena(3, 4), (8, 0), None)).is_err(), "writes what it reads");
        assert!(made(step(&[arena(0, 4)], arena(4, 4), (6, 4), None)).is_err(), "scratch over the result");
        assert!(made(step(&[arena(0, 4)], arena(0, 4), (8, 0), None)).is_err(), "not in place");
        assert!(made(step(&[arena(0, 4)], arena(0, 4), (8, 0), Some(0))).is_ok(), "in place");
        assert!(made(step(&[arena(0, 4), arena(0, 4)], arena(0, 4), (8, 0), Some(0))).is_err(), "read otherwise too");
        assert!(made(step(&[], arena(14, 4), (0, 0), None)).is_err(), "outside");
        assert!(made(step(&[], arena(usize::MAX, 4), (0, 0), None)).is_err(), "overflow");
        let slot = Location { place: Place::Slot(0), start: 0, len: 4 };
        assert!(made(step(&[], slot, (0, 0), None)).is_err(), "a slot is never written");
        assert!(made(step(&[Location { place: Place::Input(1), ..slot }], arena(0, 4), (8, 0), None)).is_err());
    }

    #[test]
    fn an_operand_in_place_is_in_the_result() {
        let sequence = made(step(&[arena(0, 4), arena(4, 4)], arena(0, 4), (8, 4), Some(0))).expect("it fits");
        let mut bytes = [1u8; 16];
        let slots = |_: usize| Region::of_host(&[0; 4]);
        let inputs = [Region::of_host(&[0; 4])];
        let mut state = [0u8; 4];
        let states = vec![RegionMut::of_host(&mut state)];
        let mut memory = Bindings { arena: RegionMut::of_host(&mut bytes), states, inputs: &inputs, slots: &slots };
        sequence.launch(&Now, &mut memory);
        assert_eq!(bytes[..4], [2, 1, 1, 1]);
        assert_eq!(bytes[8..], [7, 7, 7, 7, 1, 1, 1, 1]);
    }
}
