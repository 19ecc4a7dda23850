//! Slots that models of other programs over the same weights have already.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use regraft_adapter::AdapterSet;
use regraft_tensor::Tensor;
use regraft_weights::{FormatId, RefitMap};

use super::Parts;
use crate::{Generation, Model, RuntimeError, Slot, SourceContent};

/// Those of the slots `which` that one of `siblings` has: made by the same recipe, from the same sources bit for bit, without
/// adapters. The tensors of their sources must be held.
pub(super) fn slots_of_siblings(
    siblings: &[Model],
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    adapters: &AdapterSet,
    which: &[usize],
) -> Result<BTreeMap<usize, Arc<Slot>>, RuntimeError> {
    if siblings.is_empty() {
        return Ok(BTreeMap::new());
    }
    let adapted = adapted_uses(adapters);
    let mut left: Vec<usize> = which.iter().copied().filter(|&slot| is_plain(parts.map, slot, &adapted)).collect();
    let mut found = BTreeMap::new();
    for sibling in siblings {
        if left.is_empty() {
            break;
        }
        // One without weights has nothing to share, nor one whose file is damaged.
        let Some(generation) = sibling.generation().filter(|_| sibling.check_file().is_ok()) else { continue };
        let theirs = sibling.shared.program.parts();
        let alike = alike(parts.map, &left, theirs.map, &adapted_uses(&generation.adapters));
        let same = same_sources(parts, sources, &alike, &theirs, &generation)?;
        let is_same = |slot: usize| parts.map.recipes[slot].sources.iter().all(|source| same.contains(source));
        let shared = alike.into_iter().filter(|&(slot, _)| is_same(slot));
        found.extend(shared.map(|(slot, other)| (slot, generation.slots[other].clone())));
        left.retain(|slot| !found.contains_key(slot));
    }
    Ok(found)
}

/// Slots of two maps that have the same recipe, over sources of the same names and types.
pub(crate) fn slots_alike(here: &RefitMap, there: &RefitMap) -> Vec<(usize, usize)> {
    let all: Vec<usize> = (0..here.recipes.len()).collect();
    alike(here, &all, there, &BTreeSet::new())
}

fn adapted_uses(adapters: &AdapterSet) -> BTreeSet<usize> {
    adapters.differing_uses(&AdapterSet::default()).into_iter().collect()
}

fn is_plain(map: &RefitMap, slot: usize, adapted: &BTreeSet<usize>) -> bool {
    !map.recipes[slot].uses.iter().any(|&one| adapted.contains(&(one as usize)))
}

/// For each of the slots `which` one of the other map that has the same recipe over sources of the same names and types.
fn alike(here: &RefitMap, which: &[usize], there: &RefitMap, adapted: &BTreeSet<usize>) -> Vec<(usize, usize)> {
    let others = sources_there(here, there);
    let mut candidates: HashMap<(Vec<u32>, &FormatId), Vec<usize>> = HashMap::new();
    for slot in (0..there.recipes.len()).filter(|&slot| is_plain(there, slot, adapted)) {
        let recipe = &there.recipes[slot];
        candidates.entry((recipe.sources.clone(), &recipe.format)).or_default().push(slot);
    }
    let other = |&slot: &usize| {
        let recipe = &here.recipes[slot];
        let sources = recipe.sources.iter().map(|&source| others[source as usize]).collect::<Option<Vec<u32>>>()?;
        let candidates = candidates.get(&(sources, &recipe.format))?;
        let same = candidates.iter().find(|&&other| recipe.makes_what(&there.recipes[other]))?;
        Some((slot, *same))
    };
    which.iter().filter_map(other).collect()
}

/// For each source the one of the other map that has its name and type.
fn sources_there(here: &RefitMap, there: &RefitMap) -> Vec<Option<u32>> {
    let by_name = there.by_name();
    let other = |info: &regraft_weights::SourceInfo| {
        let index = info.names().find_map(|name| by_name.get(name).copied())?;
        let other = &there.sources[index];
        (other.dtype == info.dtype && other.shape == info.shape).then_some(index as u32)
    };
    here.sources.iter().map(other).collect()
}

/// The sources of the slots that are `alike` whose contents are the same there.
fn same_sources(
    parts: &Parts<'_>,
    sources: &[Arc<SourceContent>],
    alike: &[(usize, usize)],
    theirs: &Parts<'_>,
    generation: &Generation,
) -> Result<BTreeSet<u32>, RuntimeError> {
    let both = |&(slot, other): &(usize, usize)| {
        let (here, there) = (&parts.map.recipes[slot].sources, &theirs.map.recipes[other].sources);
        here.iter().copied().zip(there.iter().copied())
    };
    let compared: BTreeMap<u32, u32> = alike.iter().flat_map(both).collect();
    let pair = |(&here, &there): (&u32, &u32)| {
        let given = sources[here as usize].held()?;
        Some((here, (&*generation.sources[there as usize], given)))
    };
    let (numbers, pairs): (Vec<u32>, Vec<(&SourceContent, &Tensor)>) = compared.iter().filter_map(pair).unzip();
    // What a slot keeps can be read by the packer that made it.
    let differ = SourceContent::differ(&**theirs.packer, &pairs)?;
    Ok(numbers.into_iter().zip(differ).filter(|(_, differs)| !differs).map(|(number, _)| number).collect())
}
