//! Weights that are given in memory of the device.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use regraft::{Buffer, Changed, Device as _, RemoteBytes, StateDict, Tensor};
use regraft_backend_mock::MockDevice;
use regraft_conformance::{Case, FULL, assert_close, assert_same_slots};

use super::{built_b, lent::Held, mock};

/// `weights` in memory of the device, and how many of them were copied to the host.
fn on_device(device: &MockDevice, weights: &StateDict) -> (StateDict, Vec<Held>, Arc<AtomicUsize>) {
    let (fetched, mut held) = (Arc::new(AtomicUsize::new(0)), Vec::new());
    let remote = weights.iter().map(|(name, tensor)| {
        let memory = Held::of(device, tensor);
        let (count, copy) = (fetched.clone(), tensor.clone());
        let fetch = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(copy.clone().into_owned())
        };
        // SAFETY: memory of the device, which was written to above and waited for, and is held for the test.
        let bytes = unsafe { RemoteBytes::new("mock".into(), memory.address(), tensor.byte_count(), Box::new(fetch)) };
        held.push(memory);
        (name.to_owned(), Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Buffer::Remote(bytes)).unwrap())
    });
    let remote = remote.collect();
    (remote, held, fetched)
}

#[test]
fn weights_of_the_device_are_read_where_they_are() {
    for name in ["tiny_bert", "tiny_resnet"] {
        let (case, device) = (Case::open(name), mock());
        let model = regraft::model(case.compile(), device.clone()).unwrap();
        let a = regraft_conformance::own_weights(&case.compile());
        let (b, held_b, fetched) = on_device(&device, &case.weights_b());
        let all = FULL.changed(Changed::All);
        let report = model.refit(&b, &all).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), report.fetched.len(), "{name}: no more than is said");
        assert!(report.fetched.len() < report.applied.len(), "{name}: {:?}", report.fetched);
        assert_close(name, &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
        assert_same_slots(name, &model, &built_b(&case));
        drop((b, held_b));

        // Compared there, too.
        let (again, held_again, fetched) = on_device(&device, &case.weights_b());
        let report = model.refit(&again, &FULL).unwrap();
        assert!(report.applied.is_empty(), "{name}: {:?}", report.applied);
        assert_eq!(fetched.load(Ordering::SeqCst), report.fetched.len(), "{name}");
        drop((again, held_again));
        let (a, held_a, _) = on_device(&device, &a);
        let report = model.refit(&a, &FULL).unwrap();
        assert!(!report.applied.is_empty(), "{name}");
        assert_same_slots(name, &model, &regraft::model(case.compile(), device.clone()).unwrap());
        drop((a, held_a, model));
        device.assert_clean();
    }
}

#[test]
fn weights_of_another_device_come_to_the_host() {
    let (case, device) = (Case::open("tiny_bert"), mock());
    let model = case.model(case.compile());
    let (b, held, fetched) = on_device(&device, &case.weights_b());
    if model.device().name() != device.name() {
        let report = model.refit(&b, &FULL).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), report.fetched.len());
        assert_close("B", &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
    }
    drop((b, held));
}
