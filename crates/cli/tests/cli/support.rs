//! The `regraft` command as a user calls it, in a folder of its own, on the conformance fixtures.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;

/// A tensor of a fixture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Array {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Array {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    pub(crate) fn floats(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F32 => self.data.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
            Dtype::F64 => self.data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            other => panic!("{other:?} is not a float of these tests"),
        }
    }

    /// The bytes of an `.npy` file.
    pub(crate) fn npy(&self) -> Vec<u8> {
        let descr = match self.dtype {
            Dtype::F32 => "<f4",
            Dtype::F64 => "<f8",
            Dtype::I64 => "<i8",
            Dtype::I32 => "<i4",
            Dtype::BOOL => "|b1",
            other => panic!("{other:?} is not used by these tests"),
        };
        let sizes: String = self.shape.iter().map(|d| format!("{d},")).collect();
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(&self.data);
        bytes
    }
}

/// Named tensors, as state dicts and fixtures are.
pub(crate) type Arrays = BTreeMap<String, Array>;

/// A conformance case.
pub(crate) struct Fixture {
    pub(crate) program: PathBuf,
    tensors: Arrays,
}

impl Fixture {
    pub(crate) fn new(name: &str) -> Fixture {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures");
        let bytes = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let array = |view: TensorView<'_>| Array {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        let tensors = parsed.iter().map(|(name, view)| (name.to_owned(), array(view))).collect();
        Fixture { program: folder.join(format!("{name}.pt2")), tensors }
    }

    /// The state dict B.
    pub(crate) fn b(&self) -> Arrays {
        let stripped = |(name, array): (&String, &Array)| Some((name.strip_prefix("b/")?.to_owned(), array.clone()));
        self.tensors.iter().filter_map(stripped).collect()
    }

    /// `input.0`, `input.1`, ... of a prefix such as `input` or `expected_b`.
    pub(crate) fn list(&self, prefix: &str) -> Vec<Array> {
        (0..).map_while(|i| self.tensors.get(&format!("{prefix}.{i}")).cloned()).collect()
    }
}

/// A folder in which the command is called.
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
    /// The user's cache, beside the folder.
    pub(crate) cache: TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        Sandbox { dir: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn weights(&self, name: &str, arrays: &Arrays) -> PathBuf {
        let views = arrays.iter().map(|(n, a)| (n, TensorView::new(a.dtype, a.shape.clone(), &a.data).unwrap()));
        self.write(name, &safetensors::serialize(views, None).unwrap())
    }

    /// Names of all files, hidden ones too: nothing half-written may be among them.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regraft"));
        command.current_dir(self.dir.path()).env("REGRAFT_CACHE_DIR", self.cache.path());
        command
    }

    pub(crate) fn call<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Calls a command that must succeed; gives its stdout.
    pub(crate) fn ok<A: AsRef<OsStr>>(&self, args: &[A]) -> String {
        let output = self.call(args);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}{}", text, String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Calls a command with `--json` that must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Calls a command that must fail with `code`; gives its stderr.
    pub(crate) fn fails<A: AsRef<OsStr>>(&self, args: &[A], code: i32) -> String {
        let output = self.call(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.starts_with("error: "), "{text}");
        text
    }

    /// Calls a command whose arguments are wrong; gives what the parser says.
    pub(crate) fn fails_usage(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Compiles to `name`.
    pub(crate) fn compile(&self, fixture: &Fixture, name: &str, mode: &str) -> String {
        self.ok(&[
            "compile".as_ref(),
            fixture.program.as_os_str(),
            "-o".as_ref(),
            name.as_ref(),
            "--mode".as_ref(),
            mode.as_ref(),
        ])
    }

    /// Runs an engine on arrays in the program's order.
    pub(crate) fn run(&self, engine: &str, inputs: &[Array]) -> Vec<Vec<u8>> {
        let scratch = tempfile::tempdir().unwrap();
        let mut args = vec!["run".into(), engine.into(), "--output-dir".into(), scratch.path().as_os_str().to_owned()];
        for (i, input) in inputs.iter().enumerate() {
            let file = scratch.path().join(format!("input_{i}.npy"));
            fs::write(&file, input.npy()).unwrap();
            args.extend(["--input".into(), file.into_os_string()]);
        }
        self.ok(&args);
        (0..).map_while(|i| fs::read(scratch.path().join(format!("output_{i}.npy"))).ok()).collect()
    }
}

/// Checks outputs, as `.npy` files, against PyTorch's.
pub(crate) fn assert_close(outputs: &[Vec<u8>], expected: &[Array]) {
    assert_eq!(outputs.len(), expected.len());
    for (file, expected) in outputs.iter().zip(expected) {
        let header = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
        let data = file[header..].to_vec();
        let found = Array { data, ..expected.clone() }.floats();
        let expected = expected.floats();
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let error = found.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(found.len() == expected.len() && error <= 1e-4 * largest, "error {error}, largest value {largest}");
    }
}
