//! The text form of a program: [`print()`] and [`parse()`] are each other's inverse.
//!
//! ```text
//! program "mlp" {
//!   dims   s0 in 1..=64 (opt 8)
//!   input  %0 : f32[s0, 16] = "x"
//!   source %1 : f32[32, 16] = "fc.weight" (parameter)
//!   %2 = linear %0, %1 {act = relu} : f32[s0, 32]  // fc
//!   output %2 = "y"
//! }
//! ```

mod parse;
mod print;

pub use parse::parse;
pub use print::print;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compiled_in_is_part_of_the_program() {
        let text = "program \"p\" {\n  source %0 : f32[] = \"c\" (constant) folded \"0.5\"\n  output %0 = \"y\"\n}\n";
        let mut graph = parse(text).expect("a program");
        graph.compact().expect("no cycle");
        assert_eq!(graph.sources[0].folded.as_deref(), Some("0.5"));
        assert_eq!(print(&graph), text);
        assert!(parse(&text.replace("\"0.5\"", "0.5")).is_err());
    }
}
