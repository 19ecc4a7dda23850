//! Programs whose arguments and types were changed at random: imported or refused, never a panic.

use std::path::{Path, PathBuf};

use regraft_import::{
    import_program,
    pt2::{
        Pt2Archive,
        schema::{Argument, ScalarType, SymInt},
    },
};

/// A small generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn int(&mut self) -> i64 {
        const ODD: [i64; 14] = [0, 1, -1, 2, -2, 3, 7, 64, 1 << 20, 1 << 31, 1 << 53, i64::MAX, i64::MIN, i64::MAX / 4];
        ODD[self.below(ODD.len())]
    }
}

fn change(archive: &mut Pt2Archive, random: &mut Random) {
    let graph = &mut archive.program.graph_module.graph;
    let names: Vec<String> = graph.tensor_values.keys().cloned().collect();
    if random.below(4) == 0 {
        if let Some(meta) = graph.tensor_values.get_mut(&names[random.below(names.len())]) {
            match random.below(4) {
                0 => {
                    meta.dtype =
                        [ScalarType::Long, ScalarType::Half, ScalarType::Bool, ScalarType::Byte][random.below(4)]
                }
                1 => meta.sizes.push(SymInt::Int(random.int())),
                2 => drop(meta.sizes.pop()),
                _ => {
                    let at = random.below(meta.sizes.len());
                    if let Some(size) = meta.sizes.get_mut(at) {
                        *size = SymInt::Int(random.int());
                    }
                }
            }
        }
        return;
    }
    let at = random.below(graph.nodes.len());
    let Some(node) = graph.nodes.get_mut(at) else { return };
    let input = random.below(node.inputs.len());
    if random.below(6) == 0 && !node.inputs.is_empty() {
        node.inputs.remove(input);
        return;
    }
    let Some(input) = node.inputs.get_mut(input) else { return };
    input.arg = match &input.arg {
        Argument::Int(_) => Argument::Int(random.int()),
        Argument::Bool(v) => Argument::Bool(!v),
        Argument::Float(_) => Argument::Float([0.0, -1.0, f64::NAN, f64::INFINITY, 1e300][random.below(5)]),
        Argument::Ints(list) => {
            let mut list = list.clone();
            match random.below(3) {
                0 => list.push(random.int()),
                1 => drop(list.pop()),
                _ => {
                    let at = random.below(list.len());
                    if let Some(v) = list.get_mut(at) {
                        *v = random.int();
                    }
                }
            }
            Argument::Ints(list)
        }
        Argument::Tensors(list) => Argument::Tensors(list.iter().skip(1).cloned().collect()),
        Argument::Tensor(t) => {
            let mut t = t.clone();
            t.name.clone_from(&names[random.below(names.len())]);
            Argument::Tensor(t)
        }
        _ => Argument::Ints(vec![random.int(); random.below(4)]),
    };
}

#[test]
fn changed_programs_never_panic() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rounds: u64 = std::env::var("REGRAFT_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(40);
    let mut paths: Vec<PathBuf> = ["tests/aten", "../conformance/fixtures"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(here.join(folder)).expect("a folder"))
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "pt2"))
        .collect();
    paths.sort();
    let (mut imported, mut refused) = (0, 0);
    for (i, path) in paths.iter().enumerate() {
        for round in 0..rounds {
            let mut archive = Pt2Archive::open(path).expect("a good archive");
            let mut random = Random((i as u64) << 32 | round);
            for _ in 0..=random.below(3) {
                change(&mut archive, &mut random);
            }
            match import_program(&archive) {
                Ok(_) => imported += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(imported > 0 && refused > 0, "{imported} imported, {refused} refused");
}
