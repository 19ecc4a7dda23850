//! The structure of inputs and outputs, and the names it gives to their leaves.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::schema::{ExportedProgram, InputSpec, NamedTupleDef, OutputSpec};

/// A Python value with tensors and numbers as leaves, as `torch.utils._pytree` flattens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeSpec {
    /// A tensor, a number or `None`: one value.
    Leaf,
    /// A `None` that is not a value.
    None,
    /// A tuple.
    Tuple(Vec<TreeSpec>),
    /// A list or a deque.
    List(Vec<TreeSpec>),
    /// A dict, in its order; keys that are not texts are written as JSON.
    Dict(Vec<(String, TreeSpec)>),
    /// A named tuple, data class or other class with named fields.
    Named {
        /// The registered name of the type.
        type_name: String,
        /// Its fields in order.
        fields: Vec<(String, TreeSpec)>,
    },
    /// A class whose fields have no names here.
    Other {
        /// The registered name of the type.
        type_name: String,
        /// What it holds.
        children: Vec<TreeSpec>,
    },
}

impl TreeSpec {
    /// Reads the JSON text of a tree spec.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str, namedtuples: &BTreeMap<String, NamedTupleDef>) -> Result<TreeSpec, String> {
        // Nesting is limited by the JSON reader.
        match serde_json::from_str(text).map_err(|e| e.to_string())? {
            Value::Array(parts) => match parts.as_slice() {
                [Value::Number(one), tree] if one.as_u64() == Some(1) => Self::of_json(tree, namedtuples),
                [protocol, _] => Err(format!("expected protocol 1, found {protocol}")),
                _ => Err(format!("expected a protocol and a tree, found {} parts", parts.len())),
            },
            _ => Err("expected a list of a protocol and a tree".to_owned()),
        }
    }

    fn of_json(tree: &Value, namedtuples: &BTreeMap<String, NamedTupleDef>) -> Result<TreeSpec, String> {
        let children = match tree.get("children_spec") {
            Some(Value::Array(children)) => {
                children.iter().map(|c| Self::of_json(c, namedtuples)).collect::<Result<Vec<_>, _>>()?
            }
            _ => return Err("expected `children_spec`".to_owned()),
        };
        let type_name = match tree.get("type") {
            Some(Value::Null) if children.is_empty() => return Ok(TreeSpec::Leaf),
            Some(Value::String(name)) => name.as_str(),
            other => {
                return Err(format!("expected the name of a type, found {}", other.unwrap_or(&Value::Null)));
            }
        };
        // The context of most types is JSON in a text.
        let raw = tree.get("context").unwrap_or(&Value::Null);
        let context = match raw {
            Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| raw.clone()),
            _ => raw.clone(),
        };
        let named = |names: Vec<String>, children: Vec<TreeSpec>| names.into_iter().zip(children).collect::<Vec<_>>();
        Ok(match type_name {
            "builtins.tuple" | "torch.Size" => TreeSpec::Tuple(children),
            "builtins.list" | "collections.deque" | "torch.fx.immutable_collections.immutable_list" => {
                TreeSpec::List(children)
            }
            "builtins.NoneType" if children.is_empty() => TreeSpec::None,
            "builtins.dict" | "collections.OrderedDict" | "torch.fx.immutable_collections.immutable_dict" => {
                match keys(&context, children.len()) {
                    Some(names) => TreeSpec::Dict(named(names, children)),
                    None => {
                        return Err(format!("expected {} keys of a dict, found {context}", children.len()));
                    }
                }
            }
            "collections.defaultdict" => match context.get("dict_context").and_then(|c| keys(c, children.len())) {
                Some(names) => TreeSpec::Dict(named(names, children)),
                None => {
                    return Err(format!("expected {} keys of a dict, found {context}", children.len()));
                }
            },
            "collections.namedtuple" => {
                let class = raw.as_str().unwrap_or(type_name).to_owned();
                let fields = namedtuples.get(&class).map(|def| &def.field_names).filter(|f| f.len() == children.len());
                match fields {
                    Some(names) => TreeSpec::Named { fields: named(names.clone(), children), type_name: class },
                    None => TreeSpec::Other { type_name: class, children },
                }
            }
            // Data classes keep their field names and those of absent fields; the outputs of Transformers, their keys.
            _ => match keys(context.get(0).filter(|c| c.is_array()).unwrap_or(&context), children.len()) {
                Some(names) => TreeSpec::Named { fields: named(names, children), type_name: type_name.to_owned() },
                None => TreeSpec::Other { type_name: type_name.to_owned(), children },
            },
        })
    }

    /// The steps to every leaf, in the order of flattening.
    pub fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        self.add_paths(&mut Vec::new(), &mut paths);
        paths
    }

    fn add_paths(&self, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
        match self {
            TreeSpec::Leaf => paths.push(path.clone()),
            TreeSpec::None => {}
            TreeSpec::Tuple(children) | TreeSpec::List(children) | TreeSpec::Other { children, .. } => {
                for (i, child) in children.iter().enumerate() {
                    path.push(i.to_string());
                    child.add_paths(path, paths);
                    path.pop();
                }
            }
            TreeSpec::Dict(fields) | TreeSpec::Named { fields, .. } => {
                for (name, child) in fields {
                    path.push(name.clone());
                    child.add_paths(path, paths);
                    path.pop();
                }
            }
        }
    }
}

/// The list of `count` keys in a context.
fn keys(context: &Value, count: usize) -> Option<Vec<String>> {
    let list = context.as_array().filter(|list| list.len() == count)?;
    Some(list.iter().map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned)).collect())
}

/// How the program is called: the structure of its arguments and results, and a name for each flattened value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallSpec {
    /// A tuple of the positional arguments (a tuple) and the keyword arguments (a dict); `None` when not understood.
    pub inputs: Option<TreeSpec>,
    /// The result; `None` when not understood.
    pub outputs: Option<TreeSpec>,
    /// Names of the user and constant inputs, in the order of the signature: `x`, `state.0`, `options.mask`.
    pub input_names: Vec<String>,
    /// Names of the user outputs, in the order of the signature: `last_hidden_state`, `output_0`; once the program is imported,
    /// those of the new values of inputs that it writes to behind them: `cache.new`.
    pub output_names: Vec<String>,
}

impl CallSpec {
    /// The call of `program`. Never fails: what is not understood keeps the names of the graph.
    pub fn of(program: &ExportedProgram) -> CallSpec {
        let module = &program.graph_module;
        let root =
            module.module_call_graph.iter().find(|entry| entry.fqn.is_empty()).and_then(|e| e.signature.as_ref());
        let parse = |text: &str| TreeSpec::parse(text, &module.treespec_namedtuple_fields).ok();
        let inputs = root.and_then(|s| parse(&s.in_spec));
        let outputs = root.and_then(|s| parse(&s.out_spec));
        let arg_names = root.and_then(|s| s.forward_arg_names.as_deref()).unwrap_or_default();

        let graph_inputs: Vec<String> = module
            .signature
            .input_specs
            .iter()
            .filter(|spec| matches!(spec, InputSpec::UserInput(_) | InputSpec::ConstantInput(_)))
            .enumerate()
            .map(|(i, spec)| spec.graph_name().map_or_else(|| format!("input_{i}"), str::to_owned))
            .collect();
        let input_names = inputs
            .as_ref()
            .and_then(|spec| input_names(spec, arg_names, &graph_inputs))
            .and_then(|names| distinct(names, graph_inputs.len()))
            .unwrap_or(graph_inputs);

        let is_output = |spec: &&OutputSpec| matches!(spec, OutputSpec::UserOutput(_) | OutputSpec::Loss(_));
        let output_count = module.signature.output_specs.iter().filter(is_output).count();
        let output_names = outputs
            .as_ref()
            .and_then(|spec| distinct(output_names(spec), output_count))
            .unwrap_or_else(|| (0..output_count).map(|i| format!("output_{i}")).collect());
        CallSpec { inputs, outputs, input_names, output_names }
    }
}

fn input_names(spec: &TreeSpec, arg_names: &[String], graph_names: &[String]) -> Option<Vec<String>> {
    let TreeSpec::Tuple(parts) = spec else { return None };
    let [TreeSpec::Tuple(args), TreeSpec::Dict(kwargs)] = parts.as_slice() else { return None };
    let mut names: Vec<String> = Vec::with_capacity(graph_names.len());
    for (i, arg) in args.iter().enumerate() {
        for path in arg.paths() {
            let graph_name = graph_names.get(names.len())?;
            let base = match arg_names.get(i) {
                Some(name) => name.as_str(),
                // The graph's name is the argument's with the path behind it.
                None => path.iter().rev().try_fold(graph_name.as_str(), |name, step| {
                    name.strip_suffix(step.to_lowercase().as_str())?.strip_suffix('_')
                })?,
            };
            names.push(join(base, &path));
        }
    }
    for (key, arg) in kwargs {
        names.extend(arg.paths().iter().map(|path| join(key, path)));
    }
    Some(names)
}

fn output_names(spec: &TreeSpec) -> Vec<String> {
    let mut paths = spec.paths();
    let by_position = matches!(spec, TreeSpec::Tuple(_) | TreeSpec::List(_) | TreeSpec::Other { .. });
    for path in &mut paths {
        match path.first_mut() {
            None => path.push("output".to_owned()),
            Some(first) if by_position => *first = format!("output_{first}"),
            Some(_) => {}
        }
    }
    paths.iter().map(|path| path.join(".")).collect()
}

fn join(base: &str, path: &[String]) -> String {
    std::iter::once(base).chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join(".")
}

/// The names when they are `count` different ones.
fn distinct(names: Vec<String>, count: usize) -> Option<Vec<String>> {
    (names.len() == count && names.iter().collect::<BTreeSet<_>>().len() == count).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &str = r#"{"type": null, "context": null, "children_spec": []}"#;

    fn tree(type_name: &str, context: &str, children: &[String]) -> String {
        let context = Value::String(context.to_owned());
        format!(r#"{{"type": "{type_name}", "context": {context}, "children_spec": [{}]}}"#, children.join(", "))
    }

    fn parse(tree: &str) -> Result<TreeSpec, String> {
        let fields = NamedTupleDef { field_names: vec!["a".to_owned(), "b".to_owned()] };
        TreeSpec::parse(&format!("[1, {tree}]"), &[("Pair".to_owned(), fields)].into())
    }

    #[test]
    fn inputs_are_named_by_argument_and_path() {
        let leaf = || LEAF.to_owned();
        let dict = tree("builtins.dict", r#"["u", 3]"#, &[leaf(), tree("builtins.list", "null", &[leaf(), leaf()])]);
        let args =
            tree("builtins.tuple", "null", &[leaf(), dict, tree("collections.namedtuple", "Pair", &[leaf(), leaf()])]);
        let kwargs = tree("builtins.dict", r#"["mask"]"#, &[leaf()]);
        let spec = parse(&tree("builtins.tuple", "null", &[args, kwargs])).expect("a spec");
        let graph: Vec<String> = ["x", "d_u", "d_3_0", "d_3_1", "p_a", "p_b", "mask"].map(str::to_owned).to_vec();
        let expected = ["x", "d.u", "d.3.0", "d.3.1", "p.a", "p.b", "mask"];
        let given: Vec<String> = ["x", "d", "p", "mask"].map(str::to_owned).to_vec();
        assert_eq!(input_names(&spec, &given, &graph).expect("names"), expected);
        assert_eq!(input_names(&spec, &[], &graph).expect("names"), expected);
    }

    #[test]
    fn outputs_are_named() {
        let names = |tree: &str| parse(tree).map(|spec| output_names(&spec));
        let two = [LEAF.to_owned(), LEAF.to_owned()];
        assert_eq!(names(LEAF), Ok(vec!["output".to_owned()]));
        assert_eq!(
            names(&tree("builtins.tuple", "null", &two)),
            Ok(vec!["output_0".to_owned(), "output_1".to_owned()])
        );
        for (class, context) in [
            ("builtins.dict", r#"["y", "z"]"#),
            ("collections.OrderedDict", r#"["y", "z"]"#),
            ("transformers.modeling_outputs.BaseModelOutput", r#"["y", "z"]"#),
            ("my.DataClass", r#"[["y", "z"], ["absent"]]"#),
        ] {
            assert_eq!(names(&tree(class, context, &two)), Ok(vec!["y".to_owned(), "z".to_owned()]), "{class}");
        }
        assert_eq!(names(&tree("my.Opaque", "{}", &two)), Ok(vec!["output_0".to_owned(), "output_1".to_owned()]));
    }

    #[test]
    fn malformed_specs_are_refused() {
        for text in ["", "[]", "[2, {}]", "[1, {}]", "[1, 3]", r#"[1, {"type": 3, "children_spec": []}]"#] {
            assert!(TreeSpec::parse(text, &BTreeMap::new()).is_err(), "{text}");
        }
        assert!(parse(&tree("builtins.dict", r#"["only"]"#, &[LEAF.to_owned(), LEAF.to_owned()])).is_err());
        let deep = r#"{"type": "builtins.list", "context": "null", "children_spec": ["#.repeat(10_000);
        assert!(parse(&deep).is_err());
    }
}
