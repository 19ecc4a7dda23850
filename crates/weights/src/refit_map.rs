use std::{
    collections::{BTreeSet, HashMap},
    ops::Index,
};

use regraft_ir::{Graph, Role, Source, SourceKind, TensorType};
use regraft_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::Recipe;

/// A source of an engine: what a state dict must bring for it.
///
/// ```
/// # fn f(map: &regraft_weights::RefitMap) {
/// for source in &map.sources {
///     println!("{}: {}, {} bytes", source.name, source.type_text(), source.byte_len());
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Fully qualified name, as `state_dict()` spells it.
    pub name: String,
    /// Other names of the same tensor (tied weights).
    pub aliases: Vec<String>,
    /// Its kind in the original model.
    pub kind: SourceKind,
    /// Element type in the program.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Its role in the module that reads it.
    #[serde(default, skip_serializing_if = "Role::is_other")]
    pub role: Role,
    /// What its tensor held when the program was made, as [`folded_value`](crate::folded_value) says it, where that became a part
    /// of the program: no refit can change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<String>,
}

/// How a second module reads a source: the same tensor, and perhaps another adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// Index of the source.
    pub of: u32,
    /// The name that the source has in that module, one of its aliases; otherwise a descriptive name.
    pub name: String,
    /// Its role in that module.
    #[serde(default, skip_serializing_if = "Role::is_other")]
    pub role: Role,
}

/// The slots that depend on each source, by the source's index: `slots[source]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsBySource {
    /// Where those of each source begin; at last the end of all.
    starts: Vec<usize>,
    slots: Vec<usize>,
}

impl SlotsBySource {
    /// Those of each source, in the order of sources.
    pub fn iter(&self) -> impl Iterator<Item = &[usize]> {
        self.starts.windows(2).map(|ends| &self.slots[ends[0]..ends[1]])
    }
}

impl Index<usize> for SlotsBySource {
    type Output = [usize];

    fn index(&self, source: usize) -> &[usize] {
        &self.slots[self.starts[source]..self.starts[source + 1]]
    }
}

impl SourceInfo {
    /// The facts about a source of a program; `ty` is the type of its value.
    ///
    /// # Panics
    /// When the type is symbolic, which the verifier rules out.
    pub fn new(source: &Source, ty: &TensorType) -> Self {
        SourceInfo {
            name: source.name.clone(),
            aliases: source.aliases.clone(),
            kind: source.kind,
            dtype: ty.dtype,
            shape: ty.sizes().expect("the verifier checked that sources have known sizes"),
            role: source.role,
            folded: source.folded.clone(),
        }
    }

    /// Its name, then its other names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }

    /// Bytes of the tensor.
    pub fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// Name and type, `f32[768, 768]`.
    pub fn type_text(&self) -> String {
        format!("{}{:?}", self.dtype, self.shape)
    }
}

/// All recipes of an engine: which slot is computed from which sources, and how.
///
/// A tied tensor is one source, and each module that reads it has a *use* of it, which adapters tell apart. Uses are
/// numbered: those with the numbers of sources are these themselves, the others are the twins in their order.
///
/// ```
/// # fn f(map: &regraft_weights::RefitMap) {
/// for recipe in &map.recipes {
///     let sources: Vec<&str> = recipe.sources.iter().map(|&index| &*map.sources[index as usize].name).collect();
///     println!("{} is made from {}", recipe.slot, sources.join(", "));
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct RefitMap {
    /// The sources of the model.
    pub sources: Vec<SourceInfo>,
    /// Other uses of sources.
    pub twins: Vec<Twin>,
    /// One recipe per slot.
    pub recipes: Vec<Recipe>,
}

impl RefitMap {
    /// The sources of a program, and their other uses.
    pub fn uses_of(program: &Graph) -> (Vec<SourceInfo>, Vec<Twin>) {
        let (twins, sources): (Vec<&Source>, Vec<&Source>) = program.sources.iter().partition(|s| s.twin_of.is_some());
        let mut sources: Vec<SourceInfo> =
            sources.into_iter().map(|s| SourceInfo::new(s, program.ty(s.value))).collect();
        let twin = |twin: &Source| {
            let of = twin.twin_of?;
            let names = std::iter::once(&twin.name).chain(&twin.aliases).filter(|_| twin.kind.in_state_dict());
            sources.get_mut(of as usize)?.aliases.extend(names.cloned());
            Some(Twin { of, name: twin.name.clone(), role: twin.role })
        };
        let twins = twins.into_iter().filter_map(twin).collect();
        (sources, twins)
    }

    /// The sources that a refit can change: all but those that were compiled into the program.
    pub fn changeable(&self) -> impl Iterator<Item = &SourceInfo> {
        self.sources.iter().filter(|source| source.folded.is_none())
    }

    /// The source that use number `index` is one of; `None` when there is no such use.
    pub fn source_of(&self, index: usize) -> Option<usize> {
        match index.checked_sub(self.sources.len()) {
            None => Some(index),
            Some(twin) => self.twins.get(twin).map(|twin| twin.of as usize),
        }
    }

    /// The uses of source number `source`: itself first.
    pub fn uses(&self, source: usize) -> impl Iterator<Item = usize> {
        let twins = self.twins.iter().enumerate().filter(move |(_, twin)| twin.of as usize == source);
        std::iter::once(source).chain(twins.map(|(i, _)| self.sources.len() + i))
    }

    /// The name of use number `index`; empty when there is none.
    pub fn use_name(&self, index: usize) -> &str {
        let twin = || self.twins.get(index.checked_sub(self.sources.len())?).map(|twin| twin.name.as_str());
        self.sources.get(index).map(|source| source.name.as_str()).or_else(twin).unwrap_or_default()
    }

    /// What use number `index` is to its module.
    pub fn role(&self, index: usize) -> Role {
        let twin = || self.twins.get(index.checked_sub(self.sources.len())?).map(|twin| twin.role);
        self.sources.get(index).map(|source| source.role).or_else(twin).unwrap_or_default()
    }

    /// A slot that holds what `slot` does: it has the same recipe for another module, and the uses of their sources are treated
    /// alike, which `alike` says of two uses. The first of those that are `kept`, otherwise the first before `slot`.
    pub fn twin_slot(
        &self,
        slot: usize,
        alike: impl Fn(usize, usize) -> bool,
        kept: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let recipe = &self.recipes[slot];
        if self.twins.is_empty() || recipe.sources.iter().all(|&source| self.uses(source as usize).nth(1).is_none()) {
            return None;
        }
        let same = |other: &Recipe| {
            let mut uses = recipe.uses.iter().zip(&other.uses);
            recipe.is_twin_of(other) && uses.all(|(&one, &other)| one == other || alike(one as usize, other as usize))
        };
        let kept_twin = (0..self.recipes.len()).find(|&other| kept(other) && same(&self.recipes[other]));
        kept_twin.or_else(|| self.recipes[..slot].iter().position(same))
    }

    /// The slots that depend on each source.
    pub fn slots_by_source(&self) -> SlotsBySource {
        let mut ends = vec![0; self.sources.len() + 1];
        self.recipes.iter().flat_map(|recipe| &recipe.sources).for_each(|&source| ends[source as usize] += 1);
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        // From the back, so that each end comes to be the beginning.
        let (mut starts, mut slots) = (ends, vec![0; sum]);
        for (slot, recipe) in self.recipes.iter().enumerate().rev() {
            for &source in recipe.sources.iter().rev() {
                starts[source as usize] -= 1;
                slots[starts[source as usize]] = slot;
            }
        }
        SlotsBySource { starts, slots }
    }

    /// Whether each source has slots that depend on it.
    pub fn are_read(&self) -> Vec<bool> {
        let mut read = vec![false; self.sources.len()];
        self.recipes.iter().flat_map(|recipe| &recipe.sources).for_each(|&source| read[source as usize] = true);
        read
    }

    /// The map in which these twins are sources of their own, behind the others; `None` when one of them has no name that a
    /// state dict would bring it under.
    pub fn untied(&self, which: &BTreeSet<usize>) -> Option<RefitMap> {
        let (before, after) = (self.sources.len(), self.sources.len() + which.len());
        let mut map = RefitMap { sources: self.sources.clone(), ..RefitMap::default() };
        // The new number of each use.
        let mut numbers: Vec<u32> = (0..before as u32).collect();
        for (i, twin) in self.twins.iter().enumerate() {
            if !which.contains(&i) {
                numbers.push((after + map.twins.len()) as u32);
                map.twins.push(twin.clone());
                continue;
            }
            numbers.push(map.sources.len() as u32);
            let of = map.sources.get_mut(twin.of as usize)?;
            let at = of.aliases.iter().position(|alias| *alias == twin.name)?;
            of.aliases.remove(at);
            let of = of.clone();
            map.sources.push(SourceInfo { name: twin.name.clone(), aliases: Vec::new(), role: twin.role, ..of });
        }
        for recipe in &self.recipes {
            let uses: Vec<u32> =
                recipe.uses.iter().map(|&one| numbers.get(one as usize).copied()).collect::<Option<_>>()?;
            let moved = |(&of, &one): (&u32, &u32)| if (one as usize) < after { one } else { of };
            let sources = recipe.sources.iter().zip(&uses).map(moved).collect();
            map.recipes.push(Recipe { sources, uses, ..recipe.clone() });
        }
        Some(map)
    }

    /// The use with each name, aliases included: as [`RefitMap::by_name`], with twins under the names that are theirs.
    pub fn uses_by_name(&self) -> HashMap<&str, usize> {
        let mut uses = self.by_name();
        uses.extend(self.twins.iter().enumerate().map(|(i, twin)| (twin.name.as_str(), self.sources.len() + i)));
        uses
    }

    /// The index of the source with each name, aliases included.
    pub fn by_name(&self) -> HashMap<&str, usize> {
        (self.sources.iter().enumerate()).flat_map(|(i, s)| s.names().map(move |n| (n, i))).collect()
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::text;

    use super::*;
    use crate::FormatId;

    #[test]
    fn slots_are_found_by_their_sources() {
        let graph = text::parse("program \"r\" {\nsource %0 : f32[1] = \"a\" (parameter)\noutput %0 = \"w\"\n}");
        let graph = graph.expect("a program");
        let source = |_| SourceInfo::new(&graph.sources[0], graph.ty(graph.sources[0].value));
        let recipe = |sources: &[u32]| Recipe {
            slot: String::new(),
            graph: graph.clone(),
            sources: sources.to_vec(),
            uses: sources.to_vec(),
            format: FormatId::PLAIN,
            layout_ops: 0,
        };
        let recipes = [&[2][..], &[0, 2], &[], &[4, 0]].map(recipe).into();
        let map = RefitMap { sources: (0..5).map(source).collect(), twins: vec![], recipes };
        let slots = map.slots_by_source();
        let all: Vec<&[usize]> = slots.iter().collect();
        assert_eq!(all, [&[1, 3][..], &[], &[0, 1], &[], &[3]]);
        assert_eq!(&slots[2], [0, 1]);
    }
}
