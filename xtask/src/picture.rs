//! The picture of the crates: each above those that it depends on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use crate::workspace_dependencies;

/// Where it is, from the root.
pub(crate) const PLACE: &str = "docs/images/crates.svg";

/// For tests only: what they depend on says nothing about the product.
const LEFT_OUT: &[&str] = &["backend-mock", "conformance"];

const BOX: (usize, usize) = (112, 28);
const STEP: (usize, usize) = (132, 58);

type Edges = BTreeMap<String, BTreeSet<String>>;

/// The picture as SVG, from the manifests below `root`.
pub(crate) fn svg(root: &Path) -> Result<String, std::io::Error> {
    let edges = direct(&read(root)?);
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    for name in edges.keys() {
        level(name, &edges, &mut levels);
    }
    let rows = rows(&edges, &levels);
    let widest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (width, height) = (widest * STEP.0 + 20, rows.len() * STEP.1 + 10);
    // The middle of each box; foundations are at the bottom.
    let mut places = BTreeMap::new();
    for (level, row) in rows.iter().enumerate() {
        let left = (width - row.len() * STEP.0) / 2;
        for (number, name) in row.iter().enumerate() {
            let middle = (left + number * STEP.0 + STEP.0 / 2, height - level * STEP.1 - STEP.1 / 2 - 5);
            places.insert(name.as_str(), middle);
        }
    }
    Ok(draw(&edges, &places, (width, height)))
}

fn draw(edges: &Edges, places: &BTreeMap<&str, (usize, usize)>, (width, height): (usize, usize)) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<title>The crates, each above those that it depends on</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (name, below) in edges {
        let (x, y) = places[name.as_str()];
        for other in below {
            let (to_x, to_y) = places[other.as_str()];
            let (y, to_y) = (y + BOX.1 / 2, to_y - BOX.1 / 2);
            let _ = writeln!(out, "<path d=\"M{x} {y}L{to_x} {to_y}\" stroke=\"#9ca3af\"/>");
        }
    }
    for (name, (x, y)) in places {
        let (left, top, base) = (x - BOX.0 / 2, y - BOX.1 / 2, y + 5);
        let (w, h) = BOX;
        let _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{w}\" height=\"{h}\" rx=\"5\" fill=\"#eef2ff\" stroke=\"#6366f1\"/>\
             <text x=\"{x}\" y=\"{base}\" text-anchor=\"middle\" fill=\"#111827\">{name}</text>"
        );
    }
    out + "</svg>\n"
}

/// What each crate depends on, as its manifest says.
fn read(root: &Path) -> Result<Edges, std::io::Error> {
    let mut edges = Edges::new();
    for folder in fs::read_dir(root.join("crates"))? {
        let folder = folder?;
        let name = folder.file_name().to_string_lossy().into_owned();
        if !LEFT_OUT.contains(&name.as_str()) {
            let manifest = fs::read_to_string(folder.path().join("Cargo.toml"))?;
            edges.insert(name, workspace_dependencies(&manifest).into_iter().collect());
        }
    }
    Ok(edges)
}

/// Without the edges that others imply.
fn direct(edges: &Edges) -> Edges {
    let implied = |name: &str, of: &str| {
        edges[name].iter().any(|between| between != of && edges.contains_key(between) && reaches(between, of, edges))
    };
    let kept = |name: &String, below: &BTreeSet<String>| {
        below.iter().filter(|of| edges.contains_key(*of) && !implied(name, of)).cloned().collect()
    };
    edges.iter().map(|(name, below)| (name.clone(), kept(name, below))).collect()
}

fn reaches(from: &str, to: &str, edges: &Edges) -> bool {
    from == to || edges.get(from).is_some_and(|below| below.iter().any(|next| reaches(next, to, edges)))
}

/// How many crates are below one another under `name`.
fn level(name: &str, edges: &Edges, known: &mut BTreeMap<String, usize>) -> usize {
    if let Some(level) = known.get(name) {
        return *level;
    }
    let found = edges[name].iter().map(|below| level(below, edges, known) + 1).max().unwrap_or(0);
    known.insert(name.to_owned(), found);
    found
}

/// The crates of each level, from left to right: near those that they depend on.
fn rows(edges: &Edges, levels: &BTreeMap<String, usize>) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = vec![Vec::new(); levels.values().max().map_or(0, |top| top + 1)];
    for (name, level) in levels {
        rows[*level].push(name.clone());
    }
    let mut across: BTreeMap<String, f64> = BTreeMap::new();
    for row in &mut rows {
        let wanted = |name: &String| {
            let below: Vec<f64> = edges[name].iter().filter_map(|of| across.get(of)).copied().collect();
            below.iter().sum::<f64>() / below.len().max(1) as f64
        };
        row.sort_by(|a, b| wanted(a).total_cmp(&wanted(b)).then(a.cmp(b)));
        let count = row.len() as f64;
        for (number, name) in row.iter().enumerate() {
            across.insert(name.clone(), number as f64 - (count - 1.0) / 2.0);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(pairs: &[(&str, &[&str])]) -> Edges {
        pairs.iter().map(|(name, below)| (name.to_string(), below.iter().map(ToString::to_string).collect())).collect()
    }

    #[test]
    fn edges_that_others_imply_are_not_drawn() {
        let found = direct(&edges(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b"])]));
        assert_eq!(found, edges(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]));
    }

    #[test]
    fn a_crate_is_above_all_that_it_depends_on() {
        let edges = edges(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])]);
        let mut levels = BTreeMap::new();
        assert_eq!(level("d", &edges, &mut levels), 2);
        for name in edges.keys() {
            level(name, &edges, &mut levels);
        }
        assert_eq!(rows(&edges, &levels), [vec!["a"], vec!["b", "c"], vec!["d"]]);
    }
}
