//! Nodes: those of the program, and those of the graph made from them.

use std::sync::Arc;

use regraft_ir::TensorType;
use regraft_tensor::Dim;

use super::{Bound, Translator, self_error};
use crate::{
    At, ImportError,
    pt2::{
        args::{Cx, Res, unsupported, wrong},
        ops::{self, Handler, complex::Complex},
        schema::{self, Argument, Node},
    },
};

impl<'p> Translator<'p> {
    pub(super) fn nodes(&mut self, graph: &'p schema::Graph, depth: usize) -> Result<(), ImportError> {
        let outer = std::mem::replace(&mut self.current, graph);
        for node in &graph.nodes {
            self.node_count += 1;
            self.node(node, depth).map_err(|problem| {
                let op = node.target.strip_prefix("torch.ops.").unwrap_or(&node.target).to_owned();
                let (name, module) = (node.label().to_owned(), node.module_path().to_owned());
                self_error(self.archive, At { name, op, module }, problem)
            })?;
        }
        self.current = outer;
        Ok(())
    }

    fn node(&mut self, node: &'p Node, depth: usize) -> Res<()> {
        let Some(found) = ops::find(&node.target) else { return wrong("the operator is not known") };
        let names: Vec<&'p str> = result_names(node);
        let scope: Arc<str> = node.module_path().into();
        self.classes.entry(scope.clone()).or_insert_with(|| node.metadata.module_class());
        if self.counted_node(node, &names, found)? {
            return Ok(());
        }
        if !matches!(found.handler, Handler::Drop) && self.meets_complex(node, &names) {
            return self.complex_node(node, &names);
        }
        let results = names.iter().map(|n| self.declared(n).ok()).collect();
        self.b.scope = scope;
        let mut cx = Cx { t: self, node, results, wide: false, part: None, at_most: false };
        match found.handler {
            Handler::Drop => {
                let number = ["aten.item.", "aten._local_scalar_dense."].iter().any(|n| node.target.contains(n));
                for name in names {
                    let what = match number {
                        true => "reading a tensor's value as a number".to_owned(),
                        false => format!("the result of {}", node.target),
                    };
                    cx.t.env.insert(name, Bound::Missing(what));
                }
                Ok(())
            }
            Handler::Refuse(what, help) => unsupported(what, help),
            Handler::Dim(f) => {
                let Some(&name) = names.first() else { return Ok(()) };
                let computed = f(&mut cx);
                cx.bind_dim(name, computed);
                Ok(())
            }
            Handler::Wide(f) => {
                let value = cx.in_f32(f)?;
                let value = cx.narrowed(0, value)?;
                if found.in_place { cx.write_back(value, &names) } else { cx.bind_new(&names, vec![Some(value)]) }
            }
            Handler::WideMany(f) => {
                let mut values = cx.in_f32(f)?;
                for (i, value) in values.iter_mut().enumerate() {
                    *value = value.map(|v| cx.narrowed(i, v)).transpose()?;
                }
                cx.bind_new(&names, values)
            }
            Handler::One(f) if found.in_place => {
                let value = f(&mut cx)?;
                cx.write_back(value, &names)
            }
            Handler::One(f) => {
                let value = f(&mut cx)?;
                cx.bind_new(&names, vec![Some(value)])
            }
            Handler::Many(f) => {
                let values = f(&mut cx)?;
                cx.bind_new(&names, values)
            }
            Handler::View(f) => {
                let value = f(&mut cx)?;
                let of = cx.first_cell()?;
                cx.bind(&names, vec![Some(value)], |t, _, v| t.view_of(of, v, true))?;
                if found.in_place {
                    cx.rename_first(&names);
                }
                Ok(())
            }
            Handler::MaybeView(f) => {
                let value = f(&mut cx)?;
                cx.bind_maybe_view(&names, value)
            }
            Handler::Views(f) => {
                let values = f(&mut cx)?;
                let of = cx.first_cell()?;
                cx.bind(&names, values.into_iter().map(Some).collect(), |t, _, v| t.view_of(of, v, true))
            }
            Handler::ViewsOfEach(f) => {
                let values = f(&mut cx)?;
                cx.bind_views_of_each(&names, values)
            }
            Handler::Inline => self.inline(node, &names, depth),
        }
    }

    /// A node that reads or gives complex numbers.
    fn complex_node(&mut self, node: &'p Node, names: &[&'p str]) -> Res<()> {
        let Some(how) = ops::complex::find(&node.target) else {
            return unsupported("this operator on complex numbers", "compute with their real and imaginary parts");
        };
        let pairs: Vec<Option<TensorType>> = names.iter().map(|n| self.declared(n).ok()).collect();
        let element = |(name, ty): (&&str, &Option<TensorType>)| {
            let mut ty = ty.clone()?;
            if self.is_complex(name) {
                ty.shape.pop();
            }
            Some(ty)
        };
        let results = names.iter().zip(&pairs).map(element).collect();
        self.b.scope = node.module_path().into();
        let mut cx = Cx { t: self, node, results, wide: false, part: None, at_most: false };
        let real = ops::find(&node.target).map(|f| f.handler);
        let values = match how {
            Complex::Own(f) => vec![f(&mut cx)?],
            Complex::Each => {
                let Some(handler) = real else { return wrong("the operator is not known") };
                // Of a real number among those that are joined, each part would be that number.
                let mut real = false;
                if let Some(list) = node.input("tensors") {
                    list.for_each_name(&mut |n| real |= !cx.t.is_complex(n));
                }
                if real {
                    return unsupported(
                        "joining complex numbers with real ones",
                        "make all of them complex first, with torch.complex()",
                    );
                }
                let mut parts = Vec::with_capacity(2);
                for part in 0..2 {
                    cx.part = Some(part);
                    parts.push(handler.values(&mut cx)?);
                }
                cx.part = None;
                let (Some(im), Some(re)) = (parts.pop(), parts.pop()) else { return wrong("expected two parts") };
                re.into_iter().zip(im).map(|(re, im)| ops::complex::joined(&mut cx, re, im)).collect::<Res<_>>()?
            }
        };
        cx.results = pairs;
        let values = values.into_iter().map(Some).collect();
        // Pairs are made of parts: what is written to one of them is not followed into the others.
        let views =
            matches!(how, Complex::Each) && real.is_some_and(Handler::may_view) || node.target.contains("view_as_");
        let views = views || ["real.default", "imag.default", "conj.default"].iter().any(|n| node.target.ends_with(n));
        if views || node.target.contains("aten.to.") {
            let of = cx.first_cell()?;
            return cx.bind(names, values, |t, _, v| t.view_of(of, v, false));
        }
        cx.bind_new(names, values)
    }

    /// Whether a tensor of the node, read or given, is complex.
    pub(super) fn meets_complex(&self, node: &'p Node, names: &[&'p str]) -> bool {
        let mut found = names.iter().any(|n| self.is_complex(n));
        for input in &node.inputs {
            if !matches!(input.arg, Argument::Graph(_)) {
                input.arg.for_each_name(&mut |n| found |= self.is_complex(n));
            }
        }
        found
    }

    /// Whether the program says that a tensor is complex.
    pub(crate) fn is_complex(&self, name: &str) -> bool {
        self.meta(name).is_some_and(|m| m.dtype.part().is_some())
    }

    /// The type of a tensor as the program says it; of a complex one that of its pairs.
    pub(super) fn declared(&self, name: &str) -> Result<TensorType, ImportError> {
        if let Some(meta) = self.meta(name)
            && let Some(dtype) = meta.dtype.part()
        {
            let mut shape = self.archive.shape(name, meta)?;
            shape.push(Dim::new(2));
            return Ok(TensorType::new(dtype, shape));
        }
        let ty = self.archive.tensor_type(self.current, name)?;
        Ok(TensorType::new(ty.dtype, ty.shape))
    }
}

/// Names of the results of a node, lists flattened.
fn result_names(node: &Node) -> Vec<&str> {
    let mut names = Vec::new();
    for output in &node.outputs {
        output.for_each_name(&mut |name| names.push(name));
    }
    names
}
