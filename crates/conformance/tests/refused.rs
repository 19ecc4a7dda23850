//! A process that the system gives little memory: what is too large is an error with its size, and what fits goes on.

#![cfg(target_os = "linux")]

use std::process::Command;

use regraft::{RuntimeErrorKind, Tensor};
use regraft_conformance::model_of;

/// Tells the child what it is.
const CHILD: &str = "REGRAFT_TEST_LITTLE_MEMORY";

/// Kilobytes of addresses that the child has.
const LIMIT_KB: usize = 1 << 20;

const PROGRAM: &str = "program \"outer\" {
    dims s0 in 1..=100000 (opt 4)
    input %0 : f32[s0, 1] = \"x\"
    input %1 : f32[1, s0] = \"y\"
    %2 = binary %0, %1 {f = add} : f32[s0, s0]
    output %2 = \"z\"
}";

#[test]
fn memory_that_the_system_refuses_is_an_error() {
    if std::env::var_os(CHILD).is_some() {
        return in_little_memory();
    }
    let this = std::env::current_exe().expect("the test program");
    let script = format!("ulimit -v {LIMIT_KB} && exec \"$0\" \"$@\"");
    let mut child = Command::new("sh");
    child.args(["-c", &script]).arg(this).env(CHILD, "1");
    child.args(["--exact", "memory_that_the_system_refuses_is_an_error", "--nocapture"]);
    let output = child.output().expect("a shell");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

fn in_little_memory() {
    let model = model_of(PROGRAM, &[]);
    let run = |n: usize| {
        let values = vec![1f32; n];
        model.run(&[Tensor::from_slice(&[n, 1], &values), Tensor::from_slice(&[1, n], &values)])
    };
    for n in [20_000, 17_000] {
        // Neither 1.6 GB fit, nor 1.2 GB.
        let error = run(n).expect_err("it does not fit");
        let kind = error.kind();
        assert!(matches!(kind, RuntimeErrorKind::OutOfMemory(_) | RuntimeErrorKind::TooLarge { .. }), "{error}");
        // The result is computed where it leaves.
        assert!(error.to_string().contains(&(n * n * 4 / 1_000_000).to_string()), "{error}");
    }
    let small = run(100).expect("the model goes on");
    assert_eq!((small[0].shape(), small[0].to_f64_vec()[9_999]), (&[100, 100][..], 2.0));
}
