//! Assigns results and scratch memory to one arena: values whose lives do not overlap share bytes.
//!
//! Offsets are chosen greedily by size (Pisarchyk and Lee, 2020, "Efficient memory management for deep neural net inference"):
//! the largest buffer first, each at the lowest place that is free for as long as it lives.

use super::{Draft, Home, Use};

/// Buffers start on cache lines.
const ALIGN: usize = 64;

/// The byte in the arena that each buffer of a draft starts at, and the bytes of the arena; `None` on overflow.
pub(super) fn assign(draft: &Draft) -> Option<(Vec<usize>, usize)> {
    let lives = lives(draft);
    let mut order: Vec<usize> =
        (0..draft.buffers.len()).filter(|&b| draft.buffers[b] > 0 && lives[b].0 <= lives[b].1).collect();
    order.sort_by_key(|&b| (std::cmp::Reverse(draft.buffers[b]), lives[b].0));
    let mut starts = vec![0; draft.buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut arena = 0;
    for buffer in order {
        let bytes = draft.buffers[buffer].checked_next_multiple_of(ALIGN)?;
        let (first, last) = lives[buffer];
        let mut start = 0usize;
        // In the order of their starts: the first gap that is large enough.
        for &other in placed.iter().filter(|&&other| lives[other].0 <= last && first <= lives[other].1) {
            if start.checked_add(bytes)? <= starts[other] {
                break;
            }
            start = start.max(starts[other] + draft.buffers[other].next_multiple_of(ALIGN));
        }
        starts[buffer] = start;
        arena = arena.max(start.checked_add(bytes)?);
        let at = placed.partition_point(|&other| starts[other] <= start);
        placed.insert(at, buffer);
    }
    Some((starts, arena))
}

/// The first and the last step that each buffer is used in; what leaves the run lives to the end, and what comes in from the
/// beginning.
fn lives(draft: &Draft) -> Vec<(usize, usize)> {
    let mut lives = vec![(usize::MAX, 0); draft.buffers.len()];
    let mut used = |home: Home, at: usize| {
        if let Home::Buffer(buffer) = home {
            let (first, last) = lives[buffer];
            lives[buffer] = (first.min(at), last.max(at));
        }
    };
    for (at, step) in draft.steps.iter().enumerate() {
        let operands = step.reads.iter().flatten().chain(&step.writes);
        operands.for_each(|of: &Use| used(of.home, at));
        used(step.scratch, at);
    }
    draft.staged_inputs.iter().flatten().for_each(|&home| used(home, 0));
    draft.outputs.iter().for_each(|leaving| used(leaving.from.home, usize::MAX));
    lives
}

#[cfg(test)]
mod tests {
    use regraft_tensor::DType;

    use super::*;
    use crate::bind::{DraftStep, Leaving};

    fn whole(buffer: usize, len: usize) -> Use {
        Use { home: Home::Buffer(buffer), start: 0, len }
    }

    fn step(reads: &[Use], writes: Use) -> DraftStep {
        let reads = reads.iter().map(|r| Some(*r)).collect();
        DraftStep { kernel: None, reads, writes: vec![writes], scratch: Home::Nowhere, node: 0 }
    }

    #[test]
    fn values_that_live_at_once_are_apart_and_others_share() {
        let (a, b, c, d) = (whole(0, 100), whole(1, 300), whole(2, 100), whole(3, 10));
        let steps = vec![step(&[], a), step(&[a], b), step(&[b], c), step(&[c], d)];
        let outputs = vec![Leaving { from: d, dtype: DType::U8, shape: vec![10] }];
        let draft = Draft { steps, buffers: vec![100, 300, 100, 10], outputs, ..Draft::default() };
        let (starts, arena) = assign(&draft).expect("small");
        assert_eq!(arena, 320 + 128, "the first and the third share");
        assert_eq!((starts[1], starts[0], starts[2]), (0, 320, 320));
        assert!(starts[3] < 320, "the largest is dead by then");
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let (a, b) = (whole(0, usize::MAX - 64), whole(1, usize::MAX - 64));
        let draft = Draft {
            steps: vec![step(&[], a), step(&[a], b)],
            buffers: vec![usize::MAX - 64, usize::MAX - 64],
            ..Draft::default()
        };
        assert_eq!(assign(&draft), None);
    }
}
