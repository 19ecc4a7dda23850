//! Symbols and the expressions over them, as sympy's `srepr` writes them.

mod parse;
mod ratio;
mod value;

use std::collections::HashMap;

use regraft_tensor::{Dim, Range, Symbol};

use super::schema::{Argument, ExportedProgram, Graph, SymExprHint, SymInt};
use parse::parse;
use ratio::Ratio;

/// The end of a range that the program leaves open; leaves room for arithmetic.
pub const UNBOUNDED: i64 = i64::MAX / 4;

/// A symbol of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolInfo {
    /// Its name in the program, such as `s77`, or `u0` when its value depends on data.
    pub name: String,
    /// The values it may have.
    pub range: Range,
    /// The value it had when the program was exported.
    pub opt: Option<i64>,
    /// Whether its value is known only while the program runs (`u0`), rather than from the sizes of the inputs.
    pub is_from_data: bool,
    nonnegative: bool,
}

/// The symbols of a program, indexed in the order in which the graph first mentions them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolTable {
    symbols: Vec<SymbolInfo>,
    index: HashMap<String, Symbol>,
}

/// Why an expression is no [`Dim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolProblem {
    /// The value or range constraint that has the expression; may be empty.
    pub at: String,
    /// The expression.
    pub expr: String,
    /// What is wrong.
    pub why: String,
}

impl SymbolTable {
    /// The symbols of all sizes and integers of `program`, with their ranges and the values they had in the example.
    ///
    /// # Errors
    /// An expression that cannot be read, or an empty range.
    pub fn collect(program: &ExportedProgram) -> Result<Self, SymbolProblem> {
        let mut table = SymbolTable::default();
        table.collect_graph(&program.graph_module.graph)?;
        for info in &mut table.symbols {
            let Some(constraint) = program.range_constraints.get(&info.name) else { continue };
            let clamp = |v: Option<i64>, open| v.map_or(open, |v| v.clamp(-UNBOUNDED, UNBOUNDED));
            info.range =
                Range { min: clamp(constraint.min_val, -UNBOUNDED), max: clamp(constraint.max_val, UNBOUNDED) };
            let Range { min, max } = info.range;
            if min > max {
                let why = format!("has no value: its range is {min} to {max}");
                return Err(SymbolProblem { at: "range_constraints".to_owned(), expr: info.name.clone(), why });
            }
            info.opt = info.opt.filter(|opt| (min..=max).contains(opt));
        }
        Ok(table)
    }

    fn collect_graph(&mut self, graph: &Graph) -> Result<(), SymbolProblem> {
        for arg in &graph.inputs {
            self.collect_value(graph, arg)?;
        }
        for node in &graph.nodes {
            for named in &node.inputs {
                // Depth is bounded by that of the JSON text.
                if let Argument::Graph(inner) = &named.arg {
                    self.collect_graph(&inner.graph)?;
                }
            }
            for arg in &node.outputs {
                self.collect_value(graph, arg)?;
            }
        }
        Ok(())
    }

    fn collect_value(&mut self, graph: &Graph, arg: &Argument) -> Result<(), SymbolProblem> {
        let mut result = Ok(());
        arg.for_each_name(&mut |name| {
            let sizes = graph.tensor_values.get(name).into_iter().flat_map(|meta| &meta.sizes);
            for size in sizes.chain(graph.sym_int_values.get(name)) {
                if result.is_ok() {
                    result = self.intern(name, size);
                }
            }
        });
        result
    }

    fn intern(&mut self, at: &str, size: &SymInt) -> Result<(), SymbolProblem> {
        let SymInt::Expr(sym) = size else { return Ok(()) };
        let expr =
            parse(&sym.expr_str).map_err(|why| SymbolProblem { at: at.to_owned(), expr: sym.expr_str.clone(), why })?;
        expr.for_each_symbol(&mut |name, nonnegative| {
            if !self.index.contains_key(name) {
                // Every symbol takes several bytes of a text of at most 512 MiB.
                self.index.insert(name.to_owned(), Symbol(self.symbols.len() as u32));
                let min = if nonnegative { 0 } else { -UNBOUNDED };
                self.symbols.push(SymbolInfo {
                    name: name.to_owned(),
                    range: Range { min, max: UNBOUNDED },
                    opt: None,
                    is_from_data: name.starts_with('u'),
                    nonnegative,
                });
            }
        });
        if let (Some((name, _)), Some(SymExprHint::Int(hint))) = (expr.as_symbol(), &sym.hint)
            && let Some(info) = self.index.get(name).and_then(|s| self.symbols.get_mut(s.0 as usize))
        {
            info.opt.get_or_insert(*hint);
        }
        Ok(())
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether the program has fixed shapes only.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// All symbols; the position of each is its index.
    pub fn iter(&self) -> std::slice::Iter<'_, SymbolInfo> {
        self.symbols.iter()
    }

    /// What is known of a symbol.
    pub fn info(&self, symbol: Symbol) -> Option<&SymbolInfo> {
        self.symbols.get(symbol.0 as usize)
    }

    /// The symbol with this name.
    pub fn get(&self, name: &str) -> Option<Symbol> {
        self.index.get(name).copied()
    }

    /// The ranges of all symbols, as [`Dim::eval`]'s relatives want them.
    pub fn ranges(&self) -> Vec<Range> {
        self.symbols.iter().map(|s| s.range).collect()
    }

    /// A size or integer of the program as an expression.
    ///
    /// # Errors
    /// An expression that is not a polynomial, quotient, remainder, `Max` or `Min` of symbols.
    pub fn dim(&self, size: &SymInt) -> Result<Dim, SymbolProblem> {
        match size {
            SymInt::Int(value) => Ok(Dim::new(*value)),
            SymInt::Expr(sym) => self.parse(&sym.expr_str),
            SymInt::Unknown(tag) => Err(SymbolProblem {
                at: String::new(),
                expr: tag.clone(),
                why: "is an unknown kind of size".to_owned(),
            }),
        }
    }

    /// The expression of an `srepr` text.
    ///
    /// # Errors
    /// As [`SymbolTable::dim`].
    pub fn parse(&self, text: &str) -> Result<Dim, SymbolProblem> {
        parse(text).and_then(|expr| self.value(&expr)).and_then(Ratio::whole).map_err(|why| SymbolProblem {
            at: String::new(),
            expr: text.to_owned(),
            why,
        })
    }
}

#[cfg(test)]
mod tests;
