//! The inputs of the graph: sources, and what the caller gives.

use std::collections::HashMap;

use regraft_ir::{SourceKind, TensorType};

use super::{Bound, Translator, memory::Origin, self_error};
use crate::{
    ImportError,
    pt2::{
        args::Problem,
        schema::{Argument, InputSpec},
    },
};

/// The source and cell of each tensor of the archive, by the name under which it is stored.
type Roots<'p> = HashMap<&'p str, (u32, usize)>;

impl<'p> Translator<'p> {
    pub(super) fn inputs(&mut self) -> Result<(), ImportError> {
        let roots = self.sources()?;
        self.tied_names(&roots);
        self.user_inputs()
    }

    /// Adds parameters, buffers and constants; tied ones become one source.
    fn sources(&mut self) -> Result<Roots<'p>, ImportError> {
        let archive = self.archive;
        let mut roots = Roots::new();
        for spec in &archive.program.graph_module.signature.input_specs {
            let (Some(name), Some(graph_name)) = (spec.source(), spec.graph_name()) else { continue };
            let kind = match spec {
                InputSpec::Parameter(_) => SourceKind::Parameter,
                InputSpec::Buffer(b) if b.persistent => SourceKind::Buffer,
                InputSpec::Buffer(_) => SourceKind::NonPersistentBuffer,
                _ => SourceKind::Constant,
            };
            let weight = archive.weights.get(name);
            let root = weight.and_then(|w| w.alias_of.as_deref()).unwrap_or(name);
            let cell = match roots.get(root) {
                Some(&(source, cell)) => {
                    if let Some(source) = self.b.graph.sources.get_mut(source as usize) {
                        source.aliases.push(name.to_owned());
                    }
                    cell
                }
                None => {
                    let ty = self.declared(graph_name)?;
                    let value = self.b.graph.add_source(name, kind, ty);
                    let source = self.b.graph.sources.len() as u32 - 1;
                    self.b.mark(value, true);
                    // A number that the code wrote down may count rounds.
                    if let (SourceKind::Constant, Some(tensor)) = (kind, weight.and_then(|w| w.tensor.as_ref()))
                        && tensor.numel() == 1
                    {
                        self.b.literals.insert(source, tensor.clone());
                    }
                    let cell = self.new_storage(value, Origin::Source(source, kind));
                    roots.insert(root, (source, cell));
                    cell
                }
            };
            self.buffers.insert(name, cell);
            self.env.insert(graph_name, Bound::Tensor(cell));
        }
        Ok(roots)
    }

    /// Adds tied names that the signature leaves out, since the program reads the tensor by another name.
    fn tied_names(&mut self, roots: &Roots<'p>) {
        for (name, root) in self.archive.weights.aliases() {
            if let (false, Some(&(source, _))) = (self.buffers.contains_key(name), roots.get(root))
                && let Some(source) = self.b.graph.sources.get_mut(source as usize)
            {
                source.aliases.push(name.to_owned());
            }
        }
        for (root, (source, _)) in roots {
            if !self.buffers.contains_key(root)
                && let Some(source) = self.b.graph.sources.get_mut(*source as usize)
            {
                source.aliases.push((*root).to_owned());
            }
        }
    }

    /// Binds the inputs that the caller gives.
    fn user_inputs(&mut self) -> Result<(), ImportError> {
        let archive = self.archive;
        for (name, spec) in archive.user_inputs() {
            let Some(graph_name) = spec.graph_name() else { continue };
            let bound = match spec {
                InputSpec::UserInput(u) => match &u.arg {
                    Argument::Tensor(_) if self.is_complex(graph_name) => {
                        let what = "an input of complex numbers".to_owned();
                        let help = "take pairs of real numbers, and call torch.view_as_complex() on them".to_owned();
                        return Err(self_error(archive, name, Problem::Unsupported { what, help }));
                    }
                    Argument::Tensor(_) => {
                        let ty = archive.tensor_type(archive.graph(), graph_name)?;
                        let value = self.b.graph.add_input(name, TensorType::new(ty.dtype, ty.shape));
                        self.b.mark(value, false);
                        Bound::Tensor(self.new_storage(value, Origin::Input(name.to_owned())))
                    }
                    Argument::SymInt(_) => Bound::Dim(archive.sym_int(archive.graph(), graph_name)?),
                    _ => Bound::Missing(format!("the input `{name}`, which is not a tensor")),
                },
                _ => Bound::Missing(format!("the constant input `{name}`")),
            };
            self.env.insert(graph_name, bound);
        }
        Ok(())
    }
}
