//! What the device is for: each test breaks the contract in one way, and the device tells.
#![allow(unsafe_code)]

use std::sync::Arc;

use regraft_backend::{Device, Kernel, Launch, Memory, MemoryKind, Queue, QueueClass, Region, RegionMut, RunErrorKind};
use regraft_backend_cpu::CpuDevice;
use regraft_backend_mock::{Failing, MockDevice, Violation};

fn device() -> MockDevice {
    MockDevice::new(Arc::new(CpuDevice::new(Some(1))))
}

fn queue(device: &MockDevice) -> Arc<dyn Queue> {
    device.queue(QueueClass::Run).expect("threads")
}

fn memory(device: &MockDevice, bytes: usize) -> Box<dyn Memory> {
    device.alloc(bytes, MemoryKind::Slot).expect("memory")
}

#[test]
fn work_runs_later_and_in_order() {
    let device = device();
    let (queue, mut a, mut b) = (queue(&device), memory(&device, 4), memory(&device, 4));
    device.pause();
    queue.write(&[1, 2, 3, 4], RegionMut::of(&mut *a));
    queue.copy(Region::of(&*a), RegionMut::of(&mut *b));
    let fence = queue.fence();
    assert!(!fence.is_done());
    device.resume();
    fence.wait().unwrap();
    let mut bytes = [0; 4];
    queue.read(Region::of(&*b), &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    device.assert_clean();
}

#[test]
#[should_panic(expected = "memory of a device is not addressed from the host")]
fn the_host_does_not_reach_its_memory() {
    let device = device();
    let memory = memory(&device, 4);
    Region::of(&*memory).host_bytes();
}

#[test]
fn a_read_before_the_fence_is_told() {
    let device = device();
    let (first, second, mut slot) = (queue(&device), queue(&device), memory(&device, 4));
    first.write(&[1; 4], RegionMut::of(&mut *slot));
    let fence = first.fence();
    let mut bytes = [0; 4];
    second.read(Region::of(&*slot), &mut bytes).unwrap();
    let told = device.take_violations();
    assert!(matches!(told[..], [Violation::BeforeFence { writes: false, other_writes: true, .. }]), "{told:?}");
    assert!(told[0].to_string().contains("wait for a fence"), "{}", told[0]);
    // Once the fence was seen it is right.
    fence.wait().unwrap();
    second.read(Region::of(&*slot), &mut bytes).unwrap();
    assert_eq!(bytes, [1; 4]);
    device.assert_clean();
}

#[test]
fn memory_that_is_recycled_in_flight_is_told() {
    let device = device();
    let (run, stage) = (queue(&device), queue(&device));
    let (mut slot, mut arena) = (memory(&device, 64), memory(&device, 64));
    run.copy(Region::of(&*slot), RegionMut::of(&mut *arena));
    // The next refit writes its slot there.
    stage.write(&[7; 64], RegionMut::of(&mut *slot));
    let told = device.take_violations();
    assert!(matches!(told[..], [Violation::BeforeFence { writes: true, other_writes: false, .. }]), "{told:?}");
    stage.fence().wait().unwrap();
    drop(arena);
    let told = device.take_violations();
    assert!(matches!(told[..], [Violation::FreedInFlight { bytes: 64, .. }]), "{told:?}");
    run.fence().wait().unwrap();
    drop(slot);
    device.assert_clean();
}

#[test]
fn memory_that_was_freed_or_is_the_hosts_is_told() {
    let device = device();
    let (queue, slot) = (queue(&device), memory(&device, 64));
    // A region that outlives its memory, as an address kept by a recording would.
    // SAFETY: nothing is read through the region on the host: the device knows that the address is stale.
    let region: Region<'static> = unsafe { std::mem::transmute(Region::of(&*slot)) };
    drop(slot);
    let mut bytes = [0; 64];
    queue.read(region, &mut bytes).unwrap_err();
    assert!(matches!(device.take_violations()[..], [Violation::Freed { bytes: 64, .. }]));
    queue.read(Region::of_host(&[0; 64]), &mut bytes).unwrap_err();
    assert!(matches!(device.take_violations()[..], [Violation::NotOfDevice { bytes: 64, .. }]));
}

/// Writes beyond one of its regions.
struct Overrun {
    scratch: bool,
}

impl Kernel for Overrun {
    fn scratch(&self) -> usize {
        16
    }

    fn launch(&self, _: &dyn Queue, launch: Launch<'_, '_>) {
        launch.outputs[0].host_bytes().fill(1);
        let region = if self.scratch { &launch.scratch } else { &launch.outputs[0] };
        let end = (region.address() + region.len() as u64) as *mut u8;
        // SAFETY: behind the region are guard bytes of the same allocation.
        unsafe { end.write(1) };
    }
}

#[test]
fn a_kernel_that_writes_beyond_its_region_is_told() {
    let device = device();
    for scratch in [false, true] {
        let (queue, mut arena) = (queue(&device), memory(&device, 64));
        let kernel = device.kernel(Box::new(Overrun { scratch }));
        let [out, rest] = [0..16, 16..32].map(|range| (range.start, range.end));
        {
            let whole = RegionMut::of(&mut *arena);
            let address = whole.address();
            let out = whole.part(out.0..out.1);
            assert_eq!(out.address(), address);
            let mut other = memory(&device, rest.1 - rest.0);
            let scratch = RegionMut::of(&mut *other);
            kernel.launch(&*queue, Launch { node: 3, inputs: &[], outputs: &mut [out], scratch });
            queue.fence().wait().unwrap();
        }
        let told = device.take_violations();
        let [Violation::Outside { what, bytes: 16 }] = &told[..] else { panic!("{told:?}") };
        assert!(what.contains("node 3") && what.contains("scratch") == scratch, "{what}");
    }
}

#[test]
fn allocations_fail_when_they_are_told_to() {
    let device = device();
    device.fail_allocations(Failing::Once, 1);
    let first = memory(&device, 4);
    let error = device.alloc(100, MemoryKind::Slot).expect_err("it fails");
    assert_eq!((error.bytes, error.free), (100, None));
    let second = memory(&device, 4);
    device.set_byte_limit(Some(20));
    let error = device.alloc(100, MemoryKind::Slot).expect_err("there is not as much");
    assert_eq!(error.free, Some(12));
    drop((first, second));
    assert_eq!(device.bytes_in_use(), 0);
    device.fail_allocations(Failing::FromThenOn, 0);
    assert!(device.alloc(1, MemoryKind::Arena).is_err() && device.alloc(1, MemoryKind::Arena).is_err());
    device.heal();
    memory(&device, 20);
}

#[test]
fn an_error_is_told_once_by_the_next_fence_and_work_behind_it_is_not_done() {
    let device = device();
    let (queue, mut slot) = (queue(&device), memory(&device, 4));
    queue.write(&[1; 4], RegionMut::of(&mut *slot));
    queue.report(regraft_backend::RunError {
        node: Some(5),
        kind: RunErrorKind::Device { device: "x".into(), why: "y".into() },
    });
    queue.write(&[2; 4], RegionMut::of(&mut *slot));
    assert_eq!(queue.fence().wait().unwrap_err().node, Some(5));
    let mut bytes = [0; 4];
    queue.read(Region::of(&*slot), &mut bytes).unwrap();
    assert_eq!(bytes, [1; 4]);
}
