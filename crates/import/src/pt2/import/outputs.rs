//! The outputs of the graph, and the states it leaves behind.

use std::sync::Arc;

use regraft_ir::{ValueId, ops::SizeOf};

use super::{
    Translator,
    memory::{Origin, lost},
    self_error,
};
use crate::{
    ImportError,
    pt2::{
        args::{Problem, Res, unsupported, wrong},
        schema::{Argument, OptionalTensorArgument, OutputSpec, SymIntArgument},
    },
};

impl Translator<'_> {
    pub(super) fn outputs(&mut self) -> Result<(), ImportError> {
        let mut mutated = self.listed_outputs()?;
        self.written_sources(&mut mutated)?;
        self.states(mutated)
    }

    /// Adds the outputs to the caller; returns the cell and the new value of each buffer that the signature says is
    /// written.
    fn listed_outputs(&mut self) -> Result<Vec<(usize, ValueId)>, ImportError> {
        let archive = self.archive;
        let module = &archive.program.graph_module;
        let scope: Arc<str> = "".into();
        let mut names = archive.call.output_names.iter();
        let mut mutated: Vec<(usize, ValueId)> = Vec::new();
        for (i, (spec, arg)) in module.signature.output_specs.iter().zip(&module.graph.outputs).enumerate() {
            let at = format!("output {i}");
            let fail = |problem| self_error(archive, at.as_str(), problem);
            match spec {
                OutputSpec::UserOutput(_) | OutputSpec::Loss(_) => {
                    let name = names.next().cloned().unwrap_or_else(|| format!("output_{i}"));
                    let Some(value) = self.output_value(arg, &scope) else { continue };
                    let value = value.map_err(fail)?;
                    self.b.graph.add_output(name, value);
                }
                OutputSpec::BufferMutation(b) => {
                    let Some(&cell) = self.buffers.get(b.buffer_name.as_str()) else {
                        return Err(
                            archive.schema_error(&*b.buffer_name, "it is written, but the program has no such buffer")
                        );
                    };
                    let value = self.read(&b.arg.name, &scope).map_err(fail)?;
                    mutated.push((cell, value));
                }
                OutputSpec::UserInputMutation(_)
                | OutputSpec::ParameterMutation(_)
                | OutputSpec::GradientToParameter(_)
                | OutputSpec::GradientToUserInput(_) => return Err(fail(refused(spec))),
                OutputSpec::Token(_) => {}
                OutputSpec::Unknown(tag) => {
                    return Err(archive.schema_error(at, format!("it is an unknown kind of output `{tag}`")));
                }
            }
        }
        Ok(mutated)
    }

    /// The value of an output; none for literals and `None`, which are part of the structure of the outputs.
    fn output_value(&mut self, arg: &Argument, scope: &Arc<str>) -> Option<Res<ValueId>> {
        Some(match arg {
            Argument::Tensor(t) if self.is_complex(&t.name) => unsupported(
                "an output of complex numbers",
                "return torch.view_as_real() of it, and call torch.view_as_complex() on what comes out",
            ),
            Argument::Tensor(t) | Argument::OptionalTensor(OptionalTensorArgument::Tensor(t)) => {
                self.read(&t.name, scope)
            }
            Argument::SymInt(SymIntArgument::Name(n)) => self
                .dim(n)
                .and_then(|value| self.b.add(SizeOf { value }.into(), vec![], scope))
                .and_then(|v| v.first().copied().map_or_else(|| wrong("no result"), Ok)),
            _ => return None,
        })
    }

    /// Adds to `mutated` the sources that the nodes write in place: programs as exported do not list them.
    fn written_sources(&self, mutated: &mut Vec<(usize, ValueId)>) -> Result<(), ImportError> {
        for cell in 0..self.cells.len() {
            let Some((c, s)) = self.cells.get(cell).and_then(|c| Some((c, self.storages.get(c.storage)?))) else {
                continue;
            };
            let Origin::Source(source, _) = s.origin else { continue };
            if s.base != cell || s.version == 0 {
                continue;
            }
            if s.lost {
                let name = self.b.graph.sources.get(source as usize).map_or_else(String::new, |s| s.name.clone());
                return Err(self_error(self.archive, name.as_str(), lost()));
            }
            if !mutated.iter().any(|(m, _)| *m == cell) {
                mutated.push((cell, c.value));
            }
        }
        Ok(())
    }

    /// Makes states of written buffers, given as cells with their new values.
    fn states(&mut self, mutated: Vec<(usize, ValueId)>) -> Result<(), ImportError> {
        let archive = self.archive;
        for (cell, next) in mutated {
            let Some(storage) = self.cells.get(cell).and_then(|c| self.storages.get(c.storage)) else { continue };
            let Origin::Source(source, _) = storage.origin else { continue };
            let Some(Some((name, init))) =
                self.b.graph.sources.get(source as usize).map(|s| Some((s.name.clone(), s.value)))
            else {
                continue;
            };
            if self.b.graph.states.iter().any(|s| s.init == source) {
                return Err(archive.schema_error(name, "it is written twice"));
            }
            let (from, to) = (self.b.graph.ty(init).clone(), self.b.graph.ty(next).clone());
            if from != to {
                return Err(archive.schema_error(name, format!("it goes from {from} to {to}")));
            }
            let state = self.b.graph.add_state(name, source);
            self.b.graph.replace_uses(init, state);
            if let Some(state) = self.b.graph.states.last_mut() {
                state.next = if next == init { state.value } else { next };
            }
        }
        Ok(())
    }
}

/// Why an output of this kind has no translation.
fn refused(spec: &OutputSpec) -> Problem {
    let (what, help) = match spec {
        OutputSpec::UserInputMutation(m) => {
            (format!("writing to the input `{}`", m.user_input_name), "return the new value as an output of forward()")
        }
        OutputSpec::ParameterMutation(p) => (
            format!("writing to the parameter `{}`", p.parameter_name),
            "export the model in evaluation mode (model.eval())",
        ),
        _ => ("a training program".to_owned(), "export the model's forward() alone"),
    };
    Problem::Unsupported { what, help: help.to_owned() }
}
