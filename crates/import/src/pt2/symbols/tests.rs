use super::*;

fn table() -> SymbolTable {
    let mut table = SymbolTable::default();
    for text in ["Symbol('s77', positive=True, integer=True)", "Symbol('u0', integer=True)"] {
        let sym = crate::pt2::schema::SymExpr { expr_str: text.to_owned(), hint: None };
        table.intern("x", &SymInt::Expr(sym)).expect("a symbol");
    }
    table
}

fn dim(text: &str) -> Result<String, String> {
    // Short forms of what sympy writes.
    let text = text
        .replace("%s", "Symbol('s77', positive=True, integer=True)")
        .replace("%u", "Symbol('u0', integer=True)")
        .replace('@', "Integer");
    table().parse(&text).map(|d| d.to_string()).map_err(|p| p.why)
}

#[test]
fn expressions_become_dims() {
    for (text, expected) in [
        ("@(7)", "7"),
        ("%s", "s0"),
        ("Add(Mul(@(2), %s), @(1))", "s0*2 + 1"),
        ("Mul(@(-3), %s, %u)", "-s0*s1*3"),
        ("Pow(%s, @(2))", "s0*s0"),
        ("FloorDiv(Add(%s, @(-2)), @(3))", "(s0 - 2)//(3)"),
        ("FloorDiv(Mul(@(6), %s), @(3))", "s0*2"),
        ("CleanDiv(Mul(%s, %u), %u)", "s0"),
        ("PythonMod(%u, @(4))", "(s1)%(4)"),
        ("Mod(%s, @(4))", "(s0)%(4)"),
        ("Max(@(1), %s, %u)", "max(max(1, s0), s1)"),
        ("Min(@(768), Mul(@(768), %s))", "min(768, s0*768)"),
        ("TruncToInt(Mul(Float('0.5', precision=53), ToFloat(%s)))", "(s0)//(2)"),
        ("TruncToInt(Mul(Float('2.0', precision=53), ToFloat(%s)))", "s0*2"),
        ("floor(Mul(Rational(1, 2), %s))", "(s0)//(2)"),
        ("CeilToInt(IntTrueDiv(%s, @(2)))", "-(-s0)//(2)"),
        ("Mul(@(4), Pow(@(2), @(-1)), %s)", "s0*2"),
    ] {
        assert_eq!(dim(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_integer_expression_is_refused() {
    for (text, expected) in [
        ("Rational(1, 2)", "is not an integer: (1)/(2)"),
        ("Mul(Float('0.3', precision=53), ToFloat(%s))", "short binary fraction"),
        ("int_oo", "which is not a finite integer"),
        ("Where(%s, @(1), @(2))", "`Where` with 3 arguments"),
        ("Symbol('s9', integer=True)", "which no size defines"),
        ("FloorDiv(%s, @(0))", "divides by zero"),
        ("Mod(%s, @(0))", "divides by zero"),
        ("Mod(%u, @(2))", "may be negative"),
        ("Pow(%s, %s)", "not a small constant"),
        ("Pow(Pow(Pow(Pow(Add(%s, %u), @(16)), @(16)), @(16)), @(16))", "too long"),
        ("@(99999999999999999999)", "no 64-bit integer"),
        ("Mul(@(9000000000000000), @(9000000000000000))", "beyond 2^53"),
        ("Add(%s", "expected `,` or `)`"),
        ("Add(%s) %s", "after its end"),
        ("", "ends too early"),
        ("Symbol('s77", "no end"),
        (&"Add(".repeat(5000), "nested deeper"),
    ] {
        let why = dim(text).expect_err(text);
        assert!(why.contains(expected), "{text}: {why}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[A-Za-z0-9_(),'= .+-]{0,60}") {
        let _ = table().parse(&text);
    }

    #[test]
    fn any_tree_is_read_or_refused(ops in proptest::collection::vec((0usize..12, 0usize..4, 0usize..4), 1..40)) {
        const OPS: [&str; 12] = ["Add", "Mul", "Pow", "FloorDiv", "PythonMod", "Max", "Min", "IntTrueDiv",
            "TruncToInt", "CeilToInt", "Rational", "ModularIndexing"];
        let mut terms: Vec<String> = ["Integer(-1)", "Integer(9007199254740992)", "Symbol('u0', integer=True)",
            "Symbol('s77', positive=True, integer=True)"].map(str::to_owned).to_vec();
        for (op, a, b) in ops {
            let (a, b) = (terms.len() - 1 - a, terms.len() - 1 - b);
            let text = format!("{}({}, {})", OPS[op], terms[a], terms[b]);
            if text.len() < 2000 {
                let _ = table().parse(&text);
                terms.push(text);
            }
        }
    }
}
