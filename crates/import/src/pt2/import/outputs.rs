//! The outputs of the graph, and the states it leaves behind.

use std::sync::Arc;

use regraft_ir::{ValueId, ops::SizeOf};

use super::{
    Bound, Translator,
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
        self.written_in_place(&mut mutated)?;
        self.written_inputs(&mutated)?;
        self.states(mutated)
    }

    /// Adds the outputs to the caller; returns the cell and the new value of each buffer and input that the signature says
    /// is written.
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
                    if self.is_complex(&b.arg.name) {
                        return Err(fail(Problem::Unsupported {
                            what: format!("writing to the buffer `{}` of complex numbers", b.buffer_name),
                            help: "keep torch.view_as_real() of it as the buffer".to_owned(),
                        }));
                    }
                    self.check_output(&b.arg.name).map_err(fail)?;
                    let value = self.read(&b.arg.name, &scope).map_err(fail)?;
                    mutated.push((cell, value));
                }
                OutputSpec::UserInputMutation(m) => {
                    let Some(&Bound::Tensor(cell)) = self.env.get(m.user_input_name.as_str()) else {
                        return Err(archive
                            .schema_error(&*m.user_input_name, "it is written, but the program has no such input"));
                    };
                    let value = self.read(&m.arg.name, &scope).map_err(fail)?;
                    mutated.push((cell, value));
                }
                OutputSpec::ParameterMutation(_)
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
                self.check_output(&t.name).and_then(|()| self.read(&t.name, scope))
            }
            Argument::SymInt(SymIntArgument::Name(n)) => self
                .dim(n)
                .and_then(|value| self.b.add(SizeOf { value }.into(), vec![], scope))
                .and_then(|v| v.first().copied().map_or_else(|| wrong("no result"), Ok)),
            _ => return None,
        })
    }

    /// Adds to `mutated` the sources and inputs that the nodes write in place: programs as exported do not list them.
    fn written_in_place(&self, mutated: &mut Vec<(usize, ValueId)>) -> Result<(), ImportError> {
        for cell in 0..self.cells.len() {
            let Some((c, s)) = self.cells.get(cell).and_then(|c| Some((c, self.storages.get(c.storage)?))) else {
                continue;
            };
            if s.base != cell || s.version == 0 {
                continue;
            }
            let name = match &s.origin {
                Origin::Source(source, _) => self.b.graph.sources.get(*source as usize).map(|s| s.name.clone()),
                Origin::Input(name) => Some(name.clone()),
                Origin::Computed => continue,
            };
            if s.lost {
                return Err(self_error(self.archive, name.unwrap_or_default(), lost()));
            }
            if !mutated.iter().any(|(m, _)| *m == cell) {
                mutated.push((cell, c.value));
            }
        }
        Ok(())
    }

    /// Gives the new values of written inputs as outputs behind those of the program: no engine writes to memory of the caller.
    fn written_inputs(&mut self, mutated: &[(usize, ValueId)]) -> Result<(), ImportError> {
        for (cell, value) in mutated {
            let Some(storage) = self.cells.get(*cell).and_then(|c| self.storages.get(c.storage)) else { continue };
            let Origin::Input(input) = &storage.origin else { continue };
            let name = format!("{input}.new");
            if self.b.graph.outputs.iter().any(|output| output.name == name) {
                return Err(self.archive.schema_error(name, "it has two outputs of this name"));
            }
            self.b.graph.add_output(name.clone(), *value);
            self.written.push(name);
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
        OutputSpec::ParameterMutation(p) => (
            format!("writing to the parameter `{}`", p.parameter_name),
            "export the model in evaluation mode (model.eval())",
        ),
        _ => ("a training program".to_owned(), "export the model's forward() alone"),
    };
    Problem::Unsupported { what, help: help.to_owned() }
}
