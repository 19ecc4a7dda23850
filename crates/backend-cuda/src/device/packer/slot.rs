//! What the device does to make one slot.

use std::borrow::Cow;

use regraft_backend::{
    Given, SlotLayout,
    adapter::{Delta, LowRank, Overlay, Term},
};
use regraft_tensor::{DType, numel};
use regraft_weights::{Move, MoveAxis, MovePlan, Recipe, RefitMap};

use super::kept::Kept;
use crate::kernels::{
    Why, is_small_float,
    pack::{self, Axis, Layout},
};

/// A slot's recipe as the device runs it.
#[derive(Debug)]
pub(super) struct SlotPlan {
    /// `None` where the host makes the slot.
    pub(super) moves: Option<MovePlan>,
    pub(super) dtype: DType,
    pub(super) bytes: usize,
    /// Dtype and shape of each source, as the program has it.
    pub(super) sources: Vec<(DType, Vec<usize>)>,
    /// For each move what the kernel does with a source of the program's dtype; `None` where it takes none.
    layouts: Vec<Option<Layout>>,
    /// For each source how it is read back, where all of it lies in the slot bit for bit.
    kept: Vec<Option<Kept>>,
}

/// What is done to a source before it is moved.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    /// Nothing: moves read it as it was given.
    AsGiven,
    /// It is rounded to the program's dtype.
    Cast,
    /// A product is added, in the program's dtype.
    Merged(&'a LowRank),
}

impl SlotPlan {
    pub(super) fn new(map: &RefitMap, recipe: &Recipe, layout: &SlotLayout) -> SlotPlan {
        let source = |&index: &u32| {
            let info = &map.sources[index as usize];
            (info.dtype, info.shape.clone())
        };
        let sources: Vec<(DType, Vec<usize>)> = recipe.sources.iter().map(source).collect();
        let dtype = recipe.dtype();
        let fits = |m: &Move| {
            let len = numel(&sources[m.source as usize].1).unwrap_or(0);
            pack::takes(m.axes.len(), m.len()) && m.source_end() <= len
        };
        let moves = if layout.format.is_plain() { MovePlan::compile(&recipe.graph) } else { None };
        let moves = moves.filter(|plan| plan.moves.iter().all(fits));
        let own = |m: &Move| layout_of(m, sources[m.source as usize].0, dtype).ok();
        let layouts = moves.iter().flat_map(|plan| &plan.moves).map(own).collect();
        let kept = |(index, (own, shape)): (usize, &(DType, Vec<usize>))| {
            let plan = moves.as_ref().filter(|_| *own == dtype)?;
            Kept::new(dtype, &kept_moves(plan, index, numel(shape)?)?)
        };
        let kept = sources.iter().enumerate().map(kept).collect();
        SlotPlan { moves, dtype, bytes: numel(&layout.shape).map_or(0, |n| n * dtype.size()), sources, layouts, kept }
    }

    /// What the kernel does with move number `index` of a source that is given in this dtype.
    pub(super) fn layout(&self, index: usize, m: &Move, given: DType) -> Result<Cow<'_, Layout>, Why> {
        match &self.layouts[index] {
            Some(layout) if given == self.sources[m.source as usize].0 => Ok(Cow::Borrowed(layout)),
            _ => layout_of(m, given, self.dtype).map(Cow::Owned),
        }
    }

    /// How a source is read back, where all of it lies in the slot bit for bit.
    pub(super) fn kept(&self, source: usize) -> Option<&Kept> {
        self.kept.get(source)?.as_ref()
    }

    /// The moves that make the slot of these sources; `None` where the host makes it. What is done to each source first becomes
    /// `forms`.
    pub(super) fn accept<'a>(&self, given: &[Given<'a>], forms: &mut Vec<Form<'a>>) -> Option<&MovePlan> {
        let plan = self.moves_of(given)?;
        forms.clear();
        for (index, given) in given.iter().enumerate() {
            forms.push(self.form(plan, index, given)?);
        }
        Some(plan)
    }

    /// Whether all of these sources go to the slot in one pass; `None` where the host makes it.
    pub(super) fn is_one_pass(&self, given: &[Given<'_>]) -> Option<bool> {
        let (plan, mut is_one) = (self.moves_of(given)?, true);
        for (index, given) in given.iter().enumerate() {
            is_one &= match self.form(plan, index, given)? {
                Form::AsGiven => true,
                Form::Cast => false,
                Form::Merged(_) => given.tensor.dtype() == self.dtype && self.piece(index).is_some(),
            };
        }
        Some(is_one)
    }

    /// The moves, unless adapters change what they scale by.
    fn moves_of(&self, given: &[Given<'_>]) -> Option<&MovePlan> {
        let plan = self.moves.as_ref()?;
        let scaled_by_adapted =
            plan.scales.iter().flat_map(|scale| &scale.sources).any(|&s| given[s as usize].overlay.is_some());
        (!scaled_by_adapted && given.len() == self.sources.len()).then_some(plan)
    }

    /// Whether moves alone read a source that is given in the program's dtype: its values are not looked at on the host.
    pub(super) fn only_moves(&self, source: usize) -> bool {
        let Some(plan) = &self.moves else { return false };
        let own = self.sources[source].0;
        let takes = |m: &Move| takes(own, self.dtype, m.scale.is_some());
        let mut of = plan.moves.iter().filter(|m| m.source as usize == source).peekable();
        of.peek().is_some()
            && of.all(takes)
            && !plan.scales.iter().any(|scale| scale.sources.iter().any(|&s| s as usize == source))
    }

    /// The only move of a source, where it takes all of it to one piece of the slot as it is: what is merged is written there.
    pub(super) fn piece(&self, source: usize) -> Option<&Move> {
        let (dtype, shape) = &self.sources[source];
        let mut of = self.moves.as_ref()?.moves.iter().filter(|m| m.source as usize == source);
        let (only, others) = (of.next()?, of.next());
        let is_whole = only.is_run() && only.from == 0 && Some(only.len()) == numel(shape);
        (is_whole && others.is_none() && *dtype == self.dtype).then_some(only)
    }

    fn form<'a>(&self, plan: &MovePlan, index: usize, given: &Given<'a>) -> Option<Form<'a>> {
        let (own, from) = (self.sources[index].0, given.tensor.dtype());
        let moves = || plan.moves.iter().filter(|m| m.source as usize == index);
        // A source of scales alone is read on the host.
        if moves().next().is_none() {
            return Some(Form::AsGiven);
        }
        if !moves().all(|m| takes(own, self.dtype, m.scale.is_some())) || !takes(from, own, false) {
            return None;
        }
        if let Some(overlay) = given.overlay {
            let product = low_rank(overlay).filter(|_| overlay.dtype == own && is_small_float(own))?;
            return Some(Form::Merged(product));
        }
        // Rounding once is what the recipe does, too: nothing lies between, or nothing is lost before.
        let once = own == DType::F32 || (own == self.dtype && moves().all(|m| m.scale.is_none()));
        Some(if from == own || (once && takes(from, self.dtype, false)) { Form::AsGiven } else { Form::Cast })
    }
}

fn layout_of(m: &Move, from: DType, to: DType) -> Result<Layout, Why> {
    let axis = |a: &MoveAxis| Axis { size: a.size, from: a.from, to: a.to, by: a.by };
    Layout::new((from, to), m.scale.is_some(), &m.axes.iter().map(axis).collect::<Vec<_>>())
}

/// The moves of a source of `len` elements all of which lie in the slot bit for bit, in the order of the source; `None` where they
/// do not.
fn kept_moves(plan: &MovePlan, source: usize, len: usize) -> Option<Vec<&Move>> {
    let mut of: Vec<&Move> = plan.moves.iter().filter(|m| m.source as usize == source).collect();
    of.sort_by_key(|m| m.from);
    let is_whole = match of.as_slice() {
        [one] => one.from == 0 && one.scale.is_none() && takes_each_once(&one.axes, len),
        runs => {
            let follows_on = |at: usize, m: &&Move| (m.is_run() && m.from == at).then(|| at + m.len());
            runs.iter().try_fold(0, follows_on) == Some(len)
        }
    };
    (is_whole && len > 0).then_some(of)
}

/// Whether axes run over `len` neighbors in the source, over each once, in any order.
fn takes_each_once(axes: &[MoveAxis], len: usize) -> bool {
    let mut inner_first: Vec<&MoveAxis> = axes.iter().collect();
    inner_first.sort_by_key(|axis| axis.from);
    let next = |step: usize, axis: &&MoveAxis| (axis.from == step).then(|| step * axis.size);
    inner_first.iter().try_fold(1, next) == Some(len)
}

/// Whether a kernel moves elements of one type to another.
fn takes(from: DType, to: DType, scaled: bool) -> bool {
    (from == to && !scaled) || (is_small_float(from) && is_small_float(to))
}

/// The product that is all an overlay adds.
fn low_rank(overlay: &Overlay) -> Option<&LowRank> {
    match overlay.terms.as_slice() {
        [Term { delta: Delta::LowRank(product), norms: None }] => Some(product),
        _ => None,
    }
}
