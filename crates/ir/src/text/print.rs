use std::fmt::Write;

use crate::{Graph, Node, ValueId};

/// The text of a program. Values are numbered in the order of their lines.
pub fn print(graph: &Graph) -> String {
    let mut printer = Printer { graph, numbers: vec![None; graph.value_count()], next: 0, out: String::new() };
    printer.program().expect("writing to a string");
    printer.out
}

struct Printer<'a> {
    graph: &'a Graph,
    numbers: Vec<Option<u32>>,
    next: u32,
    out: String,
}

impl Printer<'_> {
    fn define(&mut self, v: ValueId) -> u32 {
        let number = self.next;
        self.next += 1;
        self.numbers[v.0 as usize] = Some(number);
        number
    }

    fn number(&self, v: ValueId) -> String {
        self.numbers[v.0 as usize].map_or_else(|| format!("%?{}", v.0), |n| format!("%{n}"))
    }

    fn program(&mut self) -> std::fmt::Result {
        let graph = self.graph;
        writeln!(self.out, "program {:?} {{", graph.name)?;
        for (i, info) in graph.symbols.iter().enumerate() {
            writeln!(self.out, "  dims   s{i} in {}..={} (opt {})", info.range.min, info.range.max, info.opt)?;
        }
        for input in &graph.inputs {
            let n = self.define(input.value);
            writeln!(self.out, "  input  %{n} : {} = {:?}", graph.ty(input.value), input.name)?;
        }
        for source in &graph.sources {
            let n = self.define(source.value);
            let ty = graph.ty(source.value);
            write!(self.out, "  source %{n} : {ty} = {:?} ({}", source.name, source.kind.name())?;
            for alias in &source.aliases {
                write!(self.out, ", {alias:?}")?;
            }
            self.out.push(')');
            if !source.role.is_other() {
                write!(self.out, " as {}", source.role.name())?;
            }
            if let Some(twin) = source.twin_of {
                let twin = self.number(graph.sources[twin as usize].value);
                write!(self.out, " twin of {twin}")?;
            }
            if let Some(folded) = &source.folded {
                write!(self.out, " folded {folded:?}")?;
            }
            self.out.push('\n');
        }
        for state in &graph.states {
            let n = self.define(state.value);
            let init = self.number(graph.sources[state.init as usize].value);
            writeln!(self.out, "  state  %{n} : {} = {:?} from {init}", graph.ty(state.value), state.name)?;
        }
        for node in graph.nodes() {
            self.node(node)?;
        }
        for output in &graph.outputs {
            let n = self.number(output.value);
            writeln!(self.out, "  output {n} = {:?}", output.name)?;
        }
        for state in &graph.states {
            let n = self.number(state.next);
            writeln!(self.out, "  next   {n} = {:?}", state.name)?;
        }
        self.out.push_str("}\n");
        Ok(())
    }

    fn node(&mut self, node: &Node) -> std::fmt::Result {
        let operands: Vec<String> =
            node.inputs.iter().map(|v| v.map_or_else(|| "none".to_owned(), |v| self.number(v))).collect();
        let results: Vec<String> = node.outputs.iter().map(|&v| format!("%{}", self.define(v))).collect();
        let types: Vec<String> = node.outputs.iter().map(|&v| self.graph.ty(v).to_string()).collect();
        write!(self.out, "  {} = {}", results.join(", "), node.op.name())?;
        if !operands.is_empty() {
            write!(self.out, " {}", operands.join(", "))?;
        }
        let attrs: Vec<String> = node.op.attrs().iter().map(|(name, value)| format!("{name} = {value}")).collect();
        if !attrs.is_empty() {
            write!(self.out, " {{{}}}", attrs.join(", "))?;
        }
        write!(self.out, " : {}", types.join(", "))?;
        if !node.scope.is_empty() {
            write!(self.out, "  // {}", node.scope)?;
        }
        self.out.push('\n');
        Ok(())
    }
}
