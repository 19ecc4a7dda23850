//! Which prefixes of names may replace one another.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use super::{HOLDERS, Names, PARALLEL, Sides, WRAPPERS};

/// Sources whose names are looked for at the ends of the file's.
const ANCHORS: usize = 8;
/// Fronts that are tried; those that the most anchors speak for come first.
const MOST: usize = 64;
/// Further prefixes that names have, each with or without: what checkpoints call a model.
const KNOWN: [&str; 5] = ["generator", "backbone", "state_dict", "base_model.model", "module.model"];

/// Fronts of names of the file with what stands in their place in the engine.
pub(super) struct Prefixes(Vec<(String, String)>);

impl Prefixes {
    pub(super) fn of(sides: &Sides<'_>, engine: &Names<'_>, file: &[Cow<'_, str>]) -> Prefixes {
        let none = (String::new(), String::new());
        let mut prefixes = vec![none];
        if sides.partial {
            // Few names fit in many places: prefixes that name nothing are ignored.
            let both = known().flat_map(|k| [(k.to_owned(), String::new()), (String::new(), k.to_owned())]);
            prefixes.extend(both);
            if !sides.ignore_unknown {
                return Prefixes(prefixes);
            }
        }
        let is_anchor = if sides.partial { sides.is_checked } else { sides.needed };
        let needed = engine.by_name.iter().filter(|(_, index)| is_anchor[**index]);
        let mut needed: Vec<&str> = needed.map(|(name, _)| &**name).collect();
        needed.sort_unstable();
        let step = needed.len().div_ceil(ANCHORS).max(1);
        let mut votes: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for anchor in needed.iter().step_by(step) {
            let mut of_anchor = HashSet::new();
            for name in file {
                of_anchor.extend(fronts_of(name, anchor));
            }
            of_anchor.into_iter().for_each(|prefix| *votes.entry(prefix).or_default() += 1);
        }
        let mut votes: Vec<_> = votes.into_iter().filter(|((from, to), _)| may_replace(from, to)).collect();
        votes.sort_by_key(|(prefix, votes)| (std::cmp::Reverse(*votes), *prefix));
        prefixes.extend(votes.into_iter().take(MOST).map(|((from, to), _)| (from.to_owned(), to.to_owned())));
        Prefixes(prefixes)
    }

    pub(super) fn candidates(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter()
    }
}

/// Fronts that name nothing.
fn known() -> impl Iterator<Item = &'static str> {
    WRAPPERS.into_iter().chain(PARALLEL).chain(HOLDERS).chain(KNOWN)
}

/// Whether a replacement is of prefixes that name nothing.
pub(super) fn is_known(from: &str, to: &str) -> bool {
    [from, to].iter().all(|prefix| prefix.is_empty() || known().any(|k| k == *prefix))
}

/// A prefix may be added or removed; one that names a part of a model never becomes another part.
fn may_replace(from: &str, to: &str) -> bool {
    let is_holder = |prefix: &str| {
        prefix.split('.').all(|s| WRAPPERS.contains(&s) || PARALLEL.contains(&s) || HOLDERS.contains(&s))
    };
    from.is_empty() || to.is_empty() || (is_holder(from) && is_holder(to))
}

/// What precedes the common end of two names, if they have one.
fn fronts_of<'a>(name: &'a str, anchor: &'a str) -> Option<(&'a str, &'a str)> {
    let (mut from, mut to) = (name, anchor);
    let mut is_common = false;
    loop {
        let (from_prefix, from_last) = last_segment(from);
        let (to_prefix, to_last) = last_segment(to);
        if from_last != to_last || from.is_empty() || to.is_empty() {
            break;
        }
        is_common = true;
        (from, to) = (from_prefix, to_prefix);
    }
    is_common.then_some((from, to))
}

fn last_segment(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}
