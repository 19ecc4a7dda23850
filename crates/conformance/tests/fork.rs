//! A process that has built and run models forks: the child, in which none of its threads are, runs and refits them too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use regraft::{Digest, Engine, KeepSources, Mode, Model, ModelExt as _, Tensor};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, FULL, assert_same, assert_same_slots, backend, own_weights};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `work` in a child of this process. Panics when it panics there, or does not end.
fn in_child(what: &str, work: impl FnOnce()) {
    // SAFETY: the child has the calling thread alone, which holds no lock of the allocator (the system's `fork` sees to that),
    // and leaves by `_exit`, so that nothing of the test harness runs twice.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{what}: no child");
    if child == 0 {
        let done = catch_unwind(AssertUnwindSafe(work)).is_ok();
        // SAFETY: ends the process.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let start = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `child` is a child of ours that was not waited for, and `status` is there to be written.
        match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
            0 if start.elapsed() < LIMIT => thread::sleep(Duration::from_millis(5)),
            0 => {
                // SAFETY: as above; it is still running.
                unsafe { libc::kill(child, libc::SIGKILL) };
                panic!("{what}: the child hangs");
            }
            _ => break,
        }
    }
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{what}: status {status:#x}");
}

/// Large enough for digests and copies to use several threads.
fn large() -> Tensor {
    Tensor::from_slice(&[1 << 20], &vec![0.5f32; 1 << 20])
}

// One test: a fork takes the locks along that other tests of the process hold.
#[test]
fn a_forked_child_runs_refits_loads_and_compiles() {
    let (case, folder) = (Case::open("tiny_bert"), tempfile::tempdir().unwrap());
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let a = own_weights(&case.compile());
    let model = case.model(case.compile());
    let of_a = model.run(&inputs).unwrap();
    model.refit(&b, &FULL).unwrap();
    let of_b = model.run(&inputs).unwrap();
    let path = folder.path().join("engine.rgf");
    model.save_as(&path, Mode::Refittable, KeepSources::Embedded).unwrap();
    let digest = Digest::of(&large());
    let opened = || regraft::model(Engine::open(&path).unwrap(), backend(Isa::detect())).unwrap();
    let loaded = opened();

    let works = |model: &Model| {
        assert_same("B", &model.run(&inputs).unwrap(), &of_b);
        model.refit(&a, &FULL).unwrap();
        assert_same("A", &model.run(&inputs).unwrap(), &of_a);
        model.refit_exclusive(&b, &FULL).unwrap();
        assert_same("B again", &model.run(&inputs).unwrap(), &of_b);
    };
    in_child("a model of the parent", || works(&model));
    in_child("a model whose file may not have been checked by then", || {
        loaded.check_file().unwrap();
        works(&loaded);
    });
    in_child("a model that a child is the first to run", || works(&opened()));
    in_child("digests, files and programs", || {
        assert_eq!(Digest::of(&large()), digest);
        let twice = folder.path().join("again.rgf");
        model.save_as(&twice, Mode::Refittable, KeepSources::Prepacked).unwrap();
        assert!(!regraft::open_weights(case.program().with_extension("safetensors")).unwrap().is_empty());
        assert_same_slots("compiled", &case.model(case.compile_with(&b, Isa::detect())), &model);
        fs::remove_file(twice).unwrap();
    });
    in_child("a child of a child", || {
        works(&model);
        in_child("its child", || works(&model));
        works(&model);
    });
    let fork = model.fork();
    in_child("what a child drops", move || {
        works(&fork);
        drop((fork, loaded));
    });
    works(&model);
}
