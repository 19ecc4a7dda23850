//! Assigns results to buffers: values whose lives do not overlap share one.

use super::{BoundPlan, Place, Read, Step};

/// Replaces the buffer per result by as few as lives allow: each result takes the smallest free buffer that holds it,
/// else the largest free one grown, else a new one.
pub(super) fn assign(mut plan: BoundPlan) -> BoundPlan {
    let last_use = last_uses(&plan);
    let mut taken: Vec<usize> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut home = vec![usize::MAX; plan.buffers.len()];
    for (at, step) in plan.steps.iter().enumerate() {
        for &(buffer, bytes) in &step.writes {
            home[buffer] = choose(bytes, &mut taken, &mut free);
        }
        // Freed only after the step: a kernel never writes what it reads.
        let reads = step.reads.iter().flatten().filter_map(buffer_of);
        let dead = reads.chain(step.writes.iter().map(|w| w.0)).filter(|&b| last_use[b] == at);
        for buffer in dead {
            if !free.contains(&home[buffer]) {
                free.push(home[buffer]);
            }
        }
    }
    for step in &mut plan.steps {
        rename(step, &home);
    }
    for leaving in plan.outputs.iter_mut().chain(&mut plan.next_states) {
        rename_read(&mut leaving.read, &home);
    }
    plan.buffers = taken;
    plan
}

fn choose(bytes: usize, taken: &mut Vec<usize>, free: &mut Vec<usize>) -> usize {
    let fitting = (0..free.len()).filter(|&i| taken[free[i]] >= bytes).min_by_key(|&i| taken[free[i]]);
    let largest = || (0..free.len()).max_by_key(|&i| taken[free[i]]);
    match fitting.or_else(largest) {
        Some(i) => {
            let buffer = free.swap_remove(i);
            taken[buffer] = taken[buffer].max(bytes);
            buffer
        }
        None => {
            taken.push(bytes);
            taken.len() - 1
        }
    }
}

/// The last step that uses each buffer; what leaves the run lives for ever.
fn last_uses(plan: &BoundPlan) -> Vec<usize> {
    let mut last = vec![0; plan.buffers.len()];
    for (at, step) in plan.steps.iter().enumerate() {
        let reads = step.reads.iter().flatten().filter_map(buffer_of);
        reads.chain(step.writes.iter().map(|w| w.0)).for_each(|buffer| last[buffer] = at);
    }
    for leaving in plan.outputs.iter().chain(&plan.next_states) {
        if let Some(buffer) = buffer_of(&leaving.read) {
            last[buffer] = usize::MAX;
        }
    }
    last
}

fn buffer_of(read: &Read) -> Option<usize> {
    match read.place {
        Place::Buffer(buffer) => Some(buffer),
        Place::Slot(_) | Place::Input(_) | Place::State(_) => None,
    }
}

fn rename(step: &mut Step, home: &[usize]) {
    step.reads.iter_mut().flatten().for_each(|read| rename_read(read, home));
    step.writes.iter_mut().for_each(|write| write.0 = home[write.0]);
}

fn rename_read(read: &mut Read, home: &[usize]) {
    if let Place::Buffer(buffer) = &mut read.place {
        *buffer = home[*buffer];
    }
}
