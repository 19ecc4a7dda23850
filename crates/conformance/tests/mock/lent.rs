//! Runs over memory that another library lends.

#![allow(clippy::unwrap_used, reason = "a test")]

use regraft::{DType, ForeignQueue, Input, Lent, Model, Tensor};
use regraft_backend::{Device, Memory, MemoryKind, QueueClass, Region, RegionMut};
use regraft_backend_mock::{MockDevice, Order};
use regraft_conformance::{Case, FULL, assert_same};

use super::mock;

const QUEUE: u64 = 7;

/// Memory of the device that is a test's, and what is in it.
pub(super) struct Held {
    memory: Box<dyn Memory>,
    len: usize,
}

impl Held {
    fn new(device: &MockDevice, len: usize) -> Held {
        Held { memory: device.alloc(len, MemoryKind::Arena).unwrap(), len }
    }

    pub(super) fn of(device: &MockDevice, tensor: &Tensor) -> Held {
        let mut held = Held::new(device, tensor.bytes().len());
        let queue = device.queue(QueueClass::Run).unwrap();
        queue.write(tensor.bytes(), RegionMut::of(&mut *held.memory).part(0..held.len));
        queue.fence().wait().unwrap();
        held
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    fn lend(&self) -> Lent {
        // SAFETY: memory of the device, which nobody else uses until the test has seen the run end.
        unsafe { Lent::new(self.memory.address(), self.len) }
    }

    fn read(&self, device: &MockDevice, dtype: DType, shape: &[usize]) -> Tensor {
        let mut bytes = regraft::AlignedVec::zeroed(self.len);
        let queue = device.queue(QueueClass::Run).unwrap();
        queue.read(Region::of(&*self.memory).part(0..self.len), bytes.bytes_mut()).unwrap();
        Tensor::new(dtype, shape.to_vec(), bytes.into()).unwrap()
    }
}

fn queue() -> ForeignQueue {
    // SAFETY: the mock device looks at the number only.
    unsafe { ForeignQueue::new(QUEUE) }
}

fn lend(held: &[Held], inputs: &[Tensor]) -> Vec<Input> {
    let lent = held.iter().zip(inputs);
    lent.map(|(held, t)| Input::Lent { dtype: t.dtype(), shape: t.shape().to_vec(), memory: held.lend() }).collect()
}

/// One run over lent memory; where its outputs are.
fn run(device: &MockDevice, model: &Model, inputs: &[Input]) -> Vec<(Held, DType, Vec<usize>)> {
    let types = model.output_types(inputs).unwrap();
    let sized = |(dtype, shape): (DType, Vec<usize>)| {
        (Held::new(device, Tensor::byte_len(dtype, &shape).unwrap()), dtype, shape)
    };
    let outputs: Vec<_> = types.into_iter().map(sized).collect();
    let mut lent: Vec<Lent> = outputs.iter().map(|(held, ..)| held.lend()).collect();
    model.run_lent(inputs, &mut lent, queue()).unwrap();
    outputs
}

fn read(device: &MockDevice, outputs: &[(Held, DType, Vec<usize>)]) -> Vec<Tensor> {
    outputs.iter().map(|(held, dtype, shape)| held.read(device, *dtype, shape)).collect()
}

#[test]
fn a_run_over_lent_memory_gives_what_one_of_the_host_gives() {
    for name in ["tiny_bert", "tiny_resnet", "mutated_buffer"] {
        let (case, device) = (Case::open(name), mock());
        let model = regraft::model(case.compile(), device.clone()).unwrap();
        let inputs = case.tensors("input");
        let want = model.run(&inputs).unwrap();
        let held: Vec<Held> = inputs.iter().map(|input| Held::of(&device, input)).collect();
        let mut given = lend(&held, &inputs);
        for _ in 0..2 {
            device.take_orders();
            let outputs = run(&device, &model, &given);
            assert_eq!(device.take_orders(), [Order::WaitsFor(QUEUE), Order::Releases(QUEUE)], "{name}");
            assert_same(name, &read(&device, &outputs), &want);
            // The second time with one from the host.
            given[0] = Input::Host(inputs[0].clone());
        }
        drop((model, held));
        device.assert_clean();
    }
}

#[test]
fn a_run_that_nobody_waits_for_holds_what_it_needs() {
    let (case, device) = (Case::open("tiny_resnet"), mock());
    device.refuse_nothing();
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let held: Vec<Held> = inputs.iter().map(|input| Held::of(&device, input)).collect();
    let staged = model.stage(&b, &FULL).unwrap();
    device.pause();
    // Returns though no work can begin.
    let first = run(&device, &model, &lend(&held, &inputs));
    staged.publish().unwrap();
    let second = run(&device, &model, &lend(&held, &inputs));
    device.resume();
    let after = model.run(&inputs).unwrap();
    // Uses memory of slots again where that is free.
    model.refit(&case.weights_b(), &FULL).unwrap();
    drop(model);
    assert_same("begun before", &read(&device, &first), &before);
    assert_same("begun after", &read(&device, &second), &after);
    drop((first, second, held));
    assert_eq!(device.bytes_in_use(), 0);
    device.assert_clean();
}

#[test]
fn an_exclusive_refit_waits_for_runs_that_nobody_waited_for() {
    let (case, device) = (Case::open("tiny_resnet"), mock());
    device.refuse_nothing();
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let held: Vec<Held> = inputs.iter().map(|input| Held::of(&device, input)).collect();
    let outputs = run(&device, &model, &lend(&held, &inputs));
    let start = std::time::Instant::now();
    model.refit_exclusive(&case.weights_b(), &FULL).unwrap();
    assert!(start.elapsed().as_secs() < 5, "it need not wait for anybody's patience");
    drop(model);
    assert_same("begun before", &read(&device, &outputs), &before);
    drop((outputs, held));
    device.assert_clean();
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    let (case, device) = (Case::open("tiny_resnet"), mock());
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let inputs = case.tensors("input");
    let held: Vec<Held> = inputs.iter().map(|input| Held::of(&device, input)).collect();
    let small = Held::new(&device, 4);
    let error = model.run_lent(&lend(&held, &inputs), &mut [small.lend()], queue()).expect_err("too small");
    assert!(error.to_string().contains("bytes, found 4"), "{error}");
    let on_host = case.model(case.compile());
    if on_host.device().reads_host() {
        let error = on_host.run_lent(&lend(&held, &inputs), &mut [small.lend()], queue()).expect_err("the host");
        assert!(error.to_string().contains("no memory that could be lent"), "{error}");
    }
}
