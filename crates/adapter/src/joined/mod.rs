//! Modules that one tool has as one and another as several, such as the projections of attention: files in the names of Flux's,
//! Hunyuan Video's and Stable Diffusion 3's own code for an engine in those of diffusers, and the other way round.
//!
//! The modules that an engine has under other names are put into a map beside its own, as if they were sources: adapters are
//! read for them as for any. What they come to is then the update of rows of the engine's sources.

mod names;
mod update;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use regraft_weights::{RefitMap, SourceInfo};

pub(super) use self::names::is_original;
use self::names::{BLOCKS, Blocks, FUSED, OUTSIDE, Row};
use crate::{AdapterLayer, AdapterProblem, Update, layer::unsupported};

/// An engine's map with the modules that it has under other names.
pub(super) struct Joined<'m> {
    map: Cow<'m, RefitMap>,
    /// How many sources the engine has.
    count: usize,
    /// Of what each other source is made, in the order of its rows.
    others: Vec<Vec<Piece>>,
}

/// Rows of a source that are rows of another one, here and there in one piece.
#[derive(Clone, Debug)]
struct Piece {
    /// The use of the engine's source.
    used_as: usize,
    /// Where it begins there.
    at: usize,
    rows: usize,
    /// Rows of that source.
    of: usize,
    /// Its halves stand the other way round.
    is_swapped: bool,
}

impl Piece {
    /// The rows of the piece, by their numbers in it, in the order in which the engine's source has them.
    fn order(&self) -> impl Iterator<Item = usize> {
        let half = if self.is_swapped { self.rows / 2 } else { 0 };
        (0..self.rows).map(move |row| (row + half) % self.rows)
    }

    fn is_whole(&self) -> bool {
        self.rows == self.of
    }
}

/// The tensors of a module, as uses of sources.
#[derive(Clone, Copy, Default)]
struct Module {
    weight: Option<usize>,
    bias: Option<usize>,
}

impl<'m> Joined<'m> {
    pub(super) fn of(map: &'m RefitMap) -> Joined<'m> {
        let mut finder = Finder::new(map);
        for (front, list, is_original, number) in finder.blocks() {
            let Blocks { original, ours, rows } = list;
            let (original, ours) = (format!("{front}{original}.{number}."), format!("{front}{ours}.{number}."));
            rows.iter().for_each(|row| finder.add(row, (&original, &ours), is_original));
        }
        for (front, is_original) in finder.fronts() {
            OUTSIDE.iter().for_each(|row| finder.add(row, (&front, &front), is_original));
        }
        for (front, row) in finder.fused() {
            finder.add(row, (&front, &front), true);
        }
        finder.joined()
    }

    /// The map to read adapters for.
    pub(super) fn map(&self) -> &RefitMap {
        &self.map
    }

    /// The layers for the engine's own sources, of those that were read for [`Joined::map`].
    pub(super) fn folded<'k>(
        &self,
        layers: Vec<(AdapterLayer, &'k str)>,
        problems: &mut Vec<AdapterProblem>,
    ) -> Vec<(AdapterLayer, &'k str)> {
        let mut whole = Vec::new();
        let mut parts: BTreeMap<(usize, bool), Vec<(&Piece, Update, &'k str)>> = BTreeMap::new();
        for (AdapterLayer { source, update }, key) in layers {
            let Some(other) = source.checked_sub(self.count).filter(|other| *other < self.others.len()) else {
                let source = if source < self.count { source } else { source - self.others.len() };
                whole.push((AdapterLayer { source, update }, key));
                continue;
            };
            let pieces = self.others[other].as_slice();
            if let [Piece { used_as, is_swapped: false, .. }] = pieces
                && pieces[0].is_whole()
            {
                whole.push((AdapterLayer { source: *used_as, update }, key));
                continue;
            }
            let mut begin = 0;
            for piece in pieces {
                let rows: Vec<usize> = piece.order().map(|row| begin + row).collect();
                begin += piece.rows;
                match update::of_rows(&update, &rows) {
                    Ok(update) if piece.is_whole() => {
                        whole.push((AdapterLayer { source: piece.used_as, update }, key));
                    }
                    Ok(update) => {
                        parts.entry((piece.used_as, update.is_rewrite())).or_default().push((piece, update, key));
                    }
                    Err(why) => problems.push(unsupported(key, why)),
                }
            }
        }
        for ((source, _), mut parts) in parts {
            parts.sort_by_key(|(piece, _, _)| piece.at);
            let key = parts[0].2;
            if let Some(pair) = parts.windows(2).find(|pair| pair[0].0.at + pair[0].0.rows > pair[1].0.at) {
                problems.push(AdapterProblem::Twice { key: pair[1].2.into(), other: pair[0].2.into() });
                continue;
            }
            let of = parts[0].0.of;
            let parts: Vec<_> = parts.into_iter().map(|(piece, update, _)| (piece.at, piece.rows, update)).collect();
            match update::of_parts(&parts, of) {
                Ok(update) => whole.push((AdapterLayer { source, update }, key)),
                Err(why) => problems.push(unsupported(key, why)),
            }
        }
        whole
    }
}

/// Looks for modules that have other names.
struct Finder<'m> {
    map: &'m RefitMap,
    modules: HashMap<&'m str, Module>,
    /// Names that are taken.
    taken: HashMap<&'m str, usize>,
    /// Sources that no slot is made of, where it is known of what slots are made.
    is_unread: Vec<bool>,
    /// Sources of the map that are found under other names instead.
    hidden: BTreeSet<usize>,
    others: Vec<(SourceInfo, Vec<Piece>)>,
}

impl<'m> Finder<'m> {
    fn new(map: &'m RefitMap) -> Self {
        let taken = map.uses_by_name();
        let mut modules: HashMap<&str, Module> = HashMap::new();
        for (name, used_as) in &taken {
            match name.rsplit_once('.') {
                // What the original code calls the weights of norms.
                Some((module, "weight" | "scale")) => modules.entry(module).or_default().weight = Some(*used_as),
                Some((module, "bias")) => modules.entry(module).or_default().bias = Some(*used_as),
                _ => {}
            }
        }
        let is_unread = match map.recipes.is_empty() {
            true => Vec::new(),
            false => map.are_read().into_iter().map(|is_read| !is_read).collect(),
        };
        Finder { map, modules, taken, is_unread, hidden: BTreeSet::new(), others: Vec::new() }
    }

    /// The blocks of the engine: their prefix, whose names they have, and their numbers.
    fn blocks(&self) -> Vec<(String, &'static Blocks, bool, usize)> {
        let mut found = BTreeSet::new();
        for module in self.modules.keys() {
            for (index, blocks) in BLOCKS.iter().enumerate() {
                for (list, is_original) in [(blocks.original, true), (blocks.ours, false)] {
                    let Some(at) = module.find(list).filter(|at| *at == 0 || module[..*at].ends_with('.')) else {
                        continue;
                    };
                    let number = module[at + list.len()..].strip_prefix('.').and_then(|rest| rest.split('.').next());
                    if let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) {
                        found.insert((module[..at].to_owned(), index, is_original, number));
                    }
                }
            }
        }
        found
            .into_iter()
            .map(|(front, index, is_original, number)| (front, &BLOCKS[index], is_original, number))
            .collect()
    }

    /// The prefixes of the blocks of models in which any module has another name.
    fn fronts(&self) -> BTreeSet<(String, bool)> {
        let is_known = |(front, list, is_original, number): &(String, &'static Blocks, bool, usize)| {
            let (list_name, inner) =
                if *is_original { (list.original, list.rows[0].original[0]) } else { (list.ours, "attn.to_q") };
            let other = list.rows[0].original.last().copied().unwrap_or(inner);
            [inner, other]
                .iter()
                .any(|inner| self.modules.contains_key(format!("{front}{list_name}.{number}.{inner}").as_str()))
        };
        self.blocks().into_iter().filter(is_known).map(|(front, _, is_original, _)| (front, is_original)).collect()
    }

    /// Modules that diffusers made of several.
    fn fused(&self) -> Vec<(String, &'static Row)> {
        let of = |module: &&str| {
            let (front, last) =
                module.rsplit_once('.').map_or(("", *module), |(_, last)| (&module[..module.len() - last.len()], last));
            let row = FUSED.iter().find(|row| row.original.contains(&last))?;
            Some((front.to_owned(), row))
        };
        self.modules.keys().filter_map(of).collect()
    }

    fn shape(&self, used_as: usize) -> (usize, usize) {
        let shape = self.map.source_of(used_as).map_or(&[][..], |source| &self.map.sources[source].shape);
        (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product())
    }

    /// Adds what the engine's modules of this row are called by the others. `fronts` stand before the names in the original code and
    /// in diffusers.
    fn add(&mut self, row: &'static Row, fronts: (&str, &str), engine_is_original: bool) {
        let module = |name: String| self.modules.get(name.as_str()).copied();
        let originals = || row.original.iter().map(|name| format!("{}{name}", fronts.0));
        let ours: Vec<String> = row.ours.iter().map(|name| format!("{}{name}", fronts.1)).collect();
        if !engine_is_original {
            let modules: Option<Vec<Module>> = ours.iter().map(|name| module(name.clone())).collect();
            let Some(modules) = modules else { return };
            let names: Vec<String> = originals().collect();
            self.join(row, &names, &modules, |module| module.weight, "weight");
            self.join(row, &names, &modules, |module| module.bias, "bias");
        } else if let Some(whole) = originals().find_map(module) {
            self.part(row, &ours, whole);
        } else if let Some(whole) = row.begins.and_then(|of| module(format!("{}{of}", fronts.0))) {
            let names: Vec<String> = originals().collect();
            self.beginning(row, &names, whole);
        }
    }

    /// The first rows of one of the engine's modules under a name of their own.
    fn beginning(&mut self, row: &Row, names: &[String], whole: Module) {
        let Some((of, inputs)) = whole.weight.map(|weight| self.shape(weight)) else { return };
        let rows = row.ours.len() * inputs;
        if rows >= of {
            return;
        }
        for (what, used_as) in [("weight", whole.weight), ("bias", whole.bias)] {
            let Some(used_as) = used_as else { continue };
            self.insert(names, what, vec![Piece { used_as, at: 0, rows, of, is_swapped: false }]);
        }
    }

    /// Several of the engine's tensors under the name of one.
    fn join(
        &mut self,
        row: &Row,
        names: &[String],
        modules: &[Module],
        of: impl Fn(&Module) -> Option<usize>,
        what: &str,
    ) {
        let Some(uses) = modules.iter().map(of).collect::<Option<Vec<usize>>>() else { return };
        let widths: BTreeSet<usize> = uses.iter().map(|used_as| self.shape(*used_as).1).collect();
        if widths.len() != 1 {
            return;
        }
        let inputs = modules[0].weight.map_or(0, |weight| self.shape(weight).1);
        let piece = |used_as: &usize| {
            let (rows, _) = self.shape(*used_as);
            Piece { used_as: *used_as, at: 0, rows, of: rows, is_swapped: row.is_shift_and_scale && rows == 2 * inputs }
        };
        let pieces = uses.iter().map(piece).collect();
        self.insert(names, what, pieces);
    }

    /// Parts of one of the engine's modules under names of their own.
    fn part(&mut self, row: &Row, names: &[String], whole: Module) {
        let Some((rows, inputs)) = whole.weight.map(|weight| self.shape(weight)) else { return };
        let own: Vec<Option<Module>> = names.iter().map(|name| self.modules.get(name.as_str()).copied()).collect();
        let own_rows: Option<Vec<usize>> = own.iter().map(|own| Some(self.shape((*own)?.weight?).0)).collect();
        let sizes = match (own_rows, names.len()) {
            // Those that were joined are still there, and not read any more.
            (Some(sizes), 2..) if sizes.iter().sum::<usize>() == rows => sizes,
            // Attention and what runs beside it read the same.
            (None, 4) if rows > 3 * inputs => vec![inputs, inputs, inputs, rows - 3 * inputs],
            (None, count) if count != 4 && rows.is_multiple_of(count) => vec![rows / count; count],
            _ => return,
        };
        let mut at = 0;
        for ((name, rows), own) in names.iter().zip(sizes).zip(own) {
            for (what, of_whole, of_own) in [
                ("weight", whole.weight, own.and_then(|own| own.weight)),
                ("bias", whole.bias, own.and_then(|own| own.bias)),
            ] {
                let Some(used_as) = of_whole else { continue };
                match of_own.map(|used_as| (used_as, self.is_unread.get(used_as).copied().unwrap_or(false))) {
                    Some((_, false)) => continue,
                    Some((unread, true)) => {
                        self.hidden.insert(unread);
                    }
                    None => {}
                }
                let of = self.shape(used_as).0;
                let is_swapped = row.is_shift_and_scale && rows == 2 * inputs;
                self.insert(std::slice::from_ref(name), what, vec![Piece { used_as, at, rows, of, is_swapped }]);
            }
            at += rows;
        }
    }

    fn insert(&mut self, modules: &[String], what: &str, pieces: Vec<Piece>) {
        let names: Vec<String> = modules.iter().map(|module| format!("{module}.{what}")).collect();
        let is_taken = |name: &String| {
            let is_hidden = |used_as: &usize| self.hidden.contains(used_as);
            self.taken.get(name.as_str()).is_some_and(|used_as| !is_hidden(used_as))
        };
        let mut names = names.into_iter().filter(|name| !is_taken(name));
        let source = self.map.source_of(pieces[0].used_as).map(|source| &self.map.sources[source]);
        let (Some(name), Some(source)) = (names.next(), source) else { return };
        let rows = pieces.iter().map(|piece| piece.rows).sum();
        let shape = std::iter::once(rows).chain(source.shape.iter().skip(1).copied()).collect();
        let role = self.map.role(pieces[0].used_as);
        let info = SourceInfo { name, aliases: names.collect(), shape, role, ..source.clone() };
        self.others.push((info, pieces));
    }

    fn joined(self) -> Joined<'m> {
        let count = self.map.sources.len();
        if self.others.is_empty() {
            return Joined { map: Cow::Borrowed(self.map), count, others: Vec::new() };
        }
        let (infos, others): (Vec<SourceInfo>, Vec<Vec<Piece>>) = self.others.into_iter().unzip();
        let mut sources = self.map.sources.clone();
        for source in self.hidden {
            sources[source].name.clear();
            sources[source].aliases.clear();
        }
        sources.extend(infos);
        let map = RefitMap { sources, twins: self.map.twins.clone(), recipes: Vec::new() };
        Joined { map: Cow::Owned(map), count, others }
    }
}
