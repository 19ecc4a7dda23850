//! The examples in C and C++ are compiled with the header, linked to the library and run.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use regraft::{Compiler, ModelExt as _, Tensor};
use safetensors::tensor::{Dtype, TensorView};

/// The folder of the library that was built with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let folder = test.parent().expect("a folder").to_path_buf();
    let name = "libregraft_capi.so";
    let places = [folder.clone(), folder.join("..")];
    places.into_iter().find(|place| place.join(name).is_file()).unwrap_or_else(|| panic!("no {name} beside {test:?}"))
}

/// Compiles an example, runs it and gives what it printed.
fn run(compiler: &str, source: &str, options: &[&str], folder: &Path, arguments: &[&Path]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (program, library) = (folder.join("program"), library());
    let compiled = Command::new(compiler)
        .args(options)
        .args(["-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(root.join("include"))
        .arg(root.join("examples").join(source))
        .arg("-L")
        .arg(&library)
        .arg("-lregraft_capi")
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error} (Debian: apt-get install g++)"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let mut command = Command::new(&program);
    let done = command.args(arguments).env("LD_LIBRARY_PATH", &library).output().expect("it starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

/// An engine of a small network, its weights, and others.
fn files(folder: &Path) -> [PathBuf; 3] {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures/mlp_gelu.pt2");
    let model = Compiler::new().compile(&program).expect("a program").into_model().expect("a model");
    let engine = folder.join("model.rgf");
    model.save(&engine).expect("it is written");
    let weights = regraft::open_weights(&program).expect("weights");
    let [first, second] = [1.0, 2.0].map(|factor| {
        let path = folder.join(format!("times_{factor}.safetensors"));
        let scaled = weights.iter().map(|(name, tensor)| (name.to_owned(), times(tensor, factor)));
        write(&path, scaled.collect());
        path
    });
    [engine, first, second]
}

fn times(tensor: &Tensor, factor: f64) -> Tensor {
    let values: Vec<f64> = tensor.to_f64_vec().into_iter().map(|value| value * factor).collect();
    Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
}

fn write(path: &Path, tensors: HashMap<String, Tensor>) {
    let view = |tensor: &'static Tensor| {
        TensorView::new(Dtype::F32, tensor.shape().to_vec(), tensor.bytes()).expect("a tensor of f32")
    };
    let views = tensors.into_iter().map(|(name, tensor)| (name, view(Box::leak(Box::new(tensor)))));
    let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("tensors");
    fs::write(path, bytes).expect("it is written");
}

/// An adapter as PEFT writes it.
fn adapter(folder: &Path) -> PathBuf {
    let path = folder.join("style");
    fs::create_dir(&path).expect("a folder");
    fs::write(
        path.join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"]}"#,
    )
    .expect("it is written");
    let ones = |shape: &[usize]| Tensor::from_slice(shape, &vec![1f32; shape.iter().product()]);
    let name = |part| format!("base_model.model.0.lora_{part}.weight");
    let factors = HashMap::from([(name("A"), ones(&[2, 10])), (name("B"), ones(&[16, 2]))]);
    write(&path.join("adapter_model.safetensors"), factors);
    path
}

#[test]
fn the_example_in_c_refits_and_adapts() {
    let folder = tempfile::tempdir().expect("a folder");
    let [engine, _, second] = files(folder.path());
    let style = adapter(folder.path());
    let said = run("cc", "refit.c", &["-std=c11"], folder.path(), &[&engine, &second, &style]);
    let lines: Vec<&str> = said.lines().collect();
    let sum = |line: &str| line.split([' ', ':']).find(|word| word.contains('.')).expect("a number").to_owned();
    let [first, refitted, from_memory, adapted, without, refused] = lines[..] else { panic!("{said}") };
    assert!(first.contains(": input "), "{first}");
    assert_ne!(sum(first), sum(refitted));
    assert!(refitted.contains(" slots in "), "{refitted}");
    assert!(from_memory.ends_with(": 1 source"), "{from_memory}");
    assert_ne!(sum(refitted), sum(from_memory));
    assert_ne!(sum(refitted), sum(adapted));
    assert_eq!(sum(refitted), sum(without));
    assert!(refused.starts_with("refused 3: ") && refused.contains("missing.safetensors"), "{refused}");
}

#[test]
fn the_example_in_cpp_runs_while_weights_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let [engine, first, second] = files(folder.path());
    let said = run("c++", "serve.cpp", &["-std=c++17"], folder.path(), &[&engine, &first, &second]);
    assert_eq!(said, "20 refits while requests were answered, 0 of them from mixed weights\n");
}

/// The block in C of the guide, as the body of a function with the values that it uses.
#[test]
fn the_block_of_the_guide_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("../../docs/guides/c.md")).expect("the guide");
    let block = guide.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let source = format!(
        "#include <regraft.h>\n#include <stdio.h>\n\nint guide(RegraftTensor bias) {{\n\
         size_t shape[] = {{1, 3}};\nfloat values[3] = {{0}};\n{block}\nreturn 0;\n}}\n"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("guide.c");
    fs::write(&path, source).expect("it is written");
    let options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"];
    let done = Command::new("cc").args(options).arg(root.join("include")).arg(&path).output().expect("a C compiler");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
