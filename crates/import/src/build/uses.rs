//! How modules use the sources of a program. A tied tensor that several modules read becomes twins, one for each module, so that
//! an adapter of one module leaves the others alone. And what a source is to its module, its use tells: shapes do not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use regraft_ir::{Graph, NodeId, Op, Role, SourceKind, ValueId};

/// An operand of a node.
type Operand = (NodeId, usize);

/// The operands that each value is.
type Readers = HashMap<ValueId, Vec<Operand>>;

/// Makes twins of sources that several modules read, and finds out the role of each source. `classes` has the class of the
/// module of each scope.
pub(crate) fn tell_apart(graph: &mut Graph, classes: &HashMap<Arc<str>, &str>) {
    let readers = readers(graph);
    for index in 0..graph.sources.len() {
        make_twins(graph, &readers, index);
    }
    let readers = self::readers(graph);
    for index in 0..graph.sources.len() {
        let value = graph.sources[index].value;
        let role = match role_of(graph, &readers, value) {
            Role::Other => role_of_class(graph, &readers, index, classes),
            role => role,
        };
        graph.sources[index].role = role;
    }
}

fn readers(graph: &Graph) -> Readers {
    let mut readers = Readers::new();
    for id in graph.node_ids() {
        for (operand, value) in graph.node(id).inputs.iter().enumerate() {
            if let Some(value) = value {
                readers.entry(*value).or_default().push((id, operand));
            }
        }
    }
    readers
}

/// The module that has a tensor under this name.
fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// One twin for each module that reads the source and has a name for it, and one for all others together.
fn make_twins(graph: &mut Graph, readers: &Readers, index: usize) {
    let source = &graph.sources[index];
    let takes_adapters = source.kind == SourceKind::Parameter && graph.ty(source.value).dtype.is_float();
    let Some(operands) = readers.get(&source.value).filter(|_| takes_adapters) else { return };
    let names: Vec<String> = std::iter::once(&source.name).chain(&source.aliases).cloned().collect();
    let mut groups: BTreeMap<Option<usize>, Vec<Operand>> = BTreeMap::new();
    for &(node, operand) in operands {
        let scope = &*graph.node(node).scope;
        groups.entry(names.iter().position(|name| module_of(name) == scope)).or_default().push((node, operand));
    }
    // Without any name for it, the program reads the source somewhere above its module: there is no telling apart.
    let Some(first) = groups.keys().copied().flatten().min() else { return };
    groups.remove(&Some(first));
    let (kind, ty) = (source.kind, graph.ty(source.value).clone());
    for (label, operands) in groups {
        let (name, kind) = match label {
            Some(label) => (names[label].clone(), kind),
            None => (format!("{}@{}", names[0], graph.node(operands[0].0).scope), SourceKind::Constant),
        };
        let taken = |other: &regraft_ir::Source| other.name == name || other.aliases.contains(&name);
        if label.is_none() && graph.sources.iter().any(taken) {
            continue;
        }
        graph.sources[index].aliases.retain(|alias| *alias != name);
        let value = graph.add_source(name, kind, ty.clone());
        graph.sources.last_mut().expect("just added").twin_of = Some(index as u32);
        for (node, operand) in operands {
            graph.node_mut(node).inputs[operand] = Some(value);
        }
    }
}

/// What all that reads a value agrees that it is.
fn role_of(graph: &Graph, readers: &Readers, value: ValueId) -> Role {
    let mut found = BTreeSet::new();
    let (mut open, mut seen) = (vec![(value, false)], BTreeSet::from([(value, false)]));
    while let Some((value, crossed)) = open.pop() {
        for &(node, operand) in readers.get(&value).into_iter().flatten() {
            let node = graph.node(node);
            let linear = |out_in: bool| if out_in != crossed { Role::Linear } else { Role::LinearInOut };
            let mut follow = |crossed: bool| {
                let next = (node.output(), crossed);
                if seen.insert(next) {
                    open.push(next);
                }
            };
            let role = match (&node.op, operand) {
                (Op::Linear(_), 1) => linear(true),
                (Op::Matmul(_), 0) => linear(true),
                (Op::Matmul(product), 1) => linear(product.transpose_b),
                (Op::Conv(_), 1) if !crossed => Role::Conv,
                (Op::ConvTranspose(_), 1) if !crossed => Role::ConvTranspose,
                (Op::Embedding(_), 0) if !crossed => Role::Table,
                (Op::Permute(permute), 0) if swaps_last(&permute.perm) => {
                    follow(!crossed);
                    continue;
                }
                (Op::Cast(_) | Op::Unary(_), 0) => {
                    follow(crossed);
                    continue;
                }
                // A weight that is scaled or masked first.
                (Op::Binary(_), _) if graph.ty(node.output()).shape == graph.ty(value).shape => {
                    follow(crossed);
                    continue;
                }
                _ => continue,
            };
            found.insert(role.name());
        }
    }
    let only = if found.len() == 1 { found.pop_first() } else { None };
    only.and_then(|name| Role::ALL.into_iter().find(|role| role.name() == name)).unwrap_or_default()
}

/// Whether a permutation exchanges the last two axes and leaves the others.
fn swaps_last(perm: &[usize]) -> bool {
    let rank = perm.len();
    rank >= 2 && perm[rank - 2..] == [rank - 1, rank - 2] && perm[..rank - 2].iter().enumerate().all(|(i, p)| i == *p)
}

/// What the class of the module says that its weight is, where the ways it is read do not.
fn role_of_class(graph: &Graph, readers: &Readers, index: usize, classes: &HashMap<Arc<str>, &str>) -> Role {
    let source = &graph.sources[index];
    let scope = readers.get(&source.value).and_then(|operands| Some(&graph.node(operands.first()?.0).scope));
    let of_module = |scope: &&Arc<str>| source.name.strip_prefix(&***scope).is_some_and(|rest| rest == ".weight");
    let class = scope.filter(of_module).and_then(|scope| classes.get(scope)).copied().unwrap_or_default();
    match class.rsplit('.').next().unwrap_or_default() {
        "Linear" | "NonDynamicallyQuantizableLinear" => Role::Linear,
        "Conv1D" => Role::LinearInOut,
        "Embedding" => Role::Table,
        "Conv1d" | "Conv2d" | "Conv3d" => Role::Conv,
        "ConvTranspose1d" | "ConvTranspose2d" | "ConvTranspose3d" => Role::ConvTranspose,
        _ => Role::Other,
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::text;

    use super::*;

    /// The sources of a program with these lines, as they are told apart.
    fn sources(lines: &str, classes: &[(&str, &'static str)]) -> Vec<String> {
        let mut graph = text::parse(&format!("program \"p\" {{\n{lines}\n}}")).unwrap_or_else(|e| panic!("{e}"));
        let classes = classes.iter().map(|(scope, class)| (Arc::from(*scope), *class)).collect();
        tell_apart(&mut graph, &classes);
        graph.verify().unwrap_or_else(|e| panic!("{e}"));
        let text = text::print(&graph);
        let again = text::print(&text::parse(&text).unwrap_or_else(|e| panic!("{e}")));
        assert_eq!(text, again);
        let source = |line: &str| Some(line.trim().strip_prefix("source ")?.split_once(" = ")?.1.to_owned());
        text.lines().filter_map(source).collect()
    }

    const TIED: &str = r#"
        input  %0 : i64[2] = "ids"
        source %1 : f32[4, 4] = "wte.weight" (parameter, "lm_head.weight")
        %2 = embedding %1, %0 : f32[2, 4]  // wte
        %3 = linear %2, %1, none, none : f32[2, 4]  // HEAD
        output %3 = "y"
    "#;

    #[test]
    fn each_module_has_its_use_of_a_tied_tensor() {
        assert_eq!(
            sources(&TIED.replace("HEAD", "lm_head"), &[]),
            [r#""wte.weight" (parameter) as table"#, r#""lm_head.weight" (parameter) as linear twin of %1"#]
        );
        // Read above its module, as by `F.linear(x, self.wte.weight)`.
        assert_eq!(
            sources(&TIED.replace("HEAD", "decoder"), &[]),
            [
                r#""wte.weight" (parameter, "lm_head.weight") as table"#,
                r#""wte.weight@decoder" (constant) as linear twin of %1"#
            ]
        );
        // One module reads it twice.
        assert_eq!(sources(&TIED.replace("HEAD", "wte"), &[]), [r#""wte.weight" (parameter, "lm_head.weight")"#]);
    }

    #[test]
    fn roles_follow_the_value_to_where_it_is_read() {
        let lines = r#"
            input  %0 : f32[2, 4] = "x"
            source %1 : f32[4, 4] = "conv1d.weight" (parameter)
            source %2 : f32[4, 4] = "scaled.weight" (parameter)
            source %3 : f32[] = "scale" (parameter)
            source %4 : bf16[4, 4] = "half.weight" (parameter)
            source %5 : f32[4, 4] = "odd.weight" (parameter)
            %6 = permute %1 {perm = [1, 0]} : f32[4, 4]  // conv1d
            %7 = linear %0, %6, none, none : f32[2, 4]  // conv1d
            %8 = binary %2, %3 {f = mul} : f32[4, 4]  // scaled
            %9 = linear %7, %8, none, none : f32[2, 4]  // scaled
            %10 = cast %4 {dtype = f32} : f32[4, 4]  // half
            %11 = matmul %9, %10 : f32[2, 4]  // half
            %12 = cumsum %5 {axis = 0} : f32[4, 4]  // odd
            %13 = matmul %12, %10 : f32[4, 4]  // odd
            output %11 = "y"
            output %13 = "z"
        "#;
        let class = "transformers.pytorch_utils.Conv1D";
        assert_eq!(
            sources(lines, &[("odd", class)]),
            [
                r#""conv1d.weight" (parameter) as linear_in_out"#,
                r#""scaled.weight" (parameter) as linear"#,
                r#""scale" (parameter)"#,
                r#""half.weight" (parameter) as linear_in_out"#,
                r#""odd.weight" (parameter) as linear_in_out"#,
            ]
        );
    }
}
