//! What a `MutableModule` watches between calls: the shallow content of Python containers, and samples of memory.
//!
//! Nothing is interpreted here. The package says which containers and which memory, and finds out what a change means.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::PyTypeError,
    ffi,
    prelude::*,
    types::{PyDict, PyList},
};

/// Bytes of a sampled place: a cache line.
const LINE: usize = 64;
/// Memory of at most this many lines is read whole.
const WHOLE: usize = 8;
/// Lines that are read of larger memory.
const SAMPLED: usize = 6;
/// Words in front of what is compared of a tensor and a storage: a table of functions, and reference counts.
const NOT_COMPARED: usize = 2;
/// Words of a tensor that are compared, all of them inside of what PyTorch allocates for one.
const TENSOR_WORDS: usize = 19;
/// Words of a storage that are compared.
const STORAGE_WORDS: usize = 5;
/// Which word of a dict is the version that PEP 509 gives it, where there is one.
const VERSION_WORD: usize = 3;
/// Leading words of a tensor that are addresses of what it consists of, such as its counter of versions.
const PARTS: usize = 4;

/// Containers (dicts and lists) with what was in them, by identity, and memory with samples of what was in it.
///
/// What is looked at is spread over all memory, and a run of a model pushes it out of the caches: most of the time of a look
/// would be spent waiting for one line after the other, so they are asked for ahead.
#[pyclass(module = "regraft")]
#[derive(Default)]
pub(crate) struct Watch {
    containers: Vec<Container>,
    /// Whether dicts have versions, so that one whose version is the same need not be looked through.
    has_versions: bool,
    /// Of all containers, one after the other: keys and values of a dict in turn, or items of a list. Held, so that an
    /// address is never another object's.
    items: Vec<Py<PyAny>>,
    regions: Vec<Region>,
    places: Vec<Place>,
    tensors: Vec<Tensor>,
    /// Which word of a tensor is the address of its counter of versions; where that is not known, none is read.
    counter: Option<usize>,
    /// Tensors, by their places, that the last look found otherwise than they were.
    seen: Vec<(usize, Facts)>,
}

struct Container {
    object: Py<PyAny>,
    is_dict: bool,
    /// Of a dict, when it was last found to hold what it did.
    version: usize,
    /// How many of the items are its.
    len: usize,
}

/// A tensor of PyTorch and what was known of it.
struct Tensor {
    /// Held, so that there is something at `address`.
    object: Py<PyAny>,
    /// Among the tensors that were given.
    index: usize,
    address: usize,
    held: Facts,
}

/// What PyTorch holds of one tensor, word by word: what the words mean is not known here, only whether they change. Among them
/// are the address of the storage, sizes and strides (of at most five axes), offset and type; and of the storage the address
/// and the size of its memory. Reference counts, which come first, are left out.
#[derive(Clone, PartialEq)]
struct Facts {
    words: [u64; TENSOR_WORDS],
    storage: [u64; STORAGE_WORDS],
    /// How often it was written to, as PyTorch counts; 0 where it does not.
    version: u32,
}

/// Memory of one tensor.
struct Region {
    address: usize,
    /// Its places are from here to the next region's first.
    first_place: usize,
}

/// A part of a region and what it held.
struct Place {
    address: usize,
    len: usize,
    held: [u64; LINE / 8],
}

#[pymethods]
impl Watch {
    #[new]
    fn new() -> Watch {
        Watch::default()
    }

    /// Watches these dicts and lists, as they are now, and no others.
    fn watch_containers(&mut self, containers: &Bound<'_, PyList>) -> PyResult<()> {
        self.has_versions = dicts_have_versions(containers.py())?;
        (self.containers, self.items) = (Vec::with_capacity(containers.len()), Vec::new());
        for object in containers.iter() {
            self.containers.push(Container::new(&object, &mut self.items)?);
        }
        Ok(())
    }

    /// Whether nothing of what is watched differs from what it was. Where something does, or may, the others say what.
    fn is_unchanged(&mut self, py: Python<'_>) -> bool {
        let same_containers = self.changed_containers(py).is_empty();
        let (moved, written) = self.changed_tensors();
        let same_tensors = moved.is_empty() && written.is_empty() && self.seen.is_empty();
        same_containers && same_tensors && self.changed_samples(Vec::new()).is_empty()
    }

    /// Indices of containers that hold other objects than they did, or the same in another order.
    fn changed_containers(&mut self, py: Python<'_>) -> Vec<usize> {
        let has_versions = self.has_versions;
        self.containers.iter().for_each(|container| prefetch(container.version_address(), 1));
        self.tensors.iter().for_each(Tensor::prefetch);
        let (mut changed, mut items) = (Vec::new(), self.items.as_slice());
        let looked_through = self.containers.iter().filter(|container| !(has_versions && container.is_dict));
        looked_through.for_each(Container::prefetch_items);
        for (index, container) in self.containers.iter_mut().enumerate() {
            let (expected, rest) = items.split_at(container.len);
            items = rest;
            let version = container.version_now();
            if has_versions && container.is_dict && version == container.version {
                continue;
            }
            if container.holds(py, expected) {
                container.version = version;
            } else {
                changed.push(index);
            }
        }
        self.tensors.iter().for_each(|tensor| tensor.prefetch_counter(self.counter));
        self.places.iter().for_each(|place| prefetch(place.address, 1));
        changed
    }

    /// Finds out where tensors have the address of their counter of versions: tensors that share memory, of which `one` and
    /// `counted` also share the counter, and `other` has its own. Versions are read from then on if that is clear, and `version`
    /// is there; whether it is.
    fn find_versions(&mut self, one: usize, counted: usize, other: usize, version: u32) -> bool {
        let [one, counted, other] = [one, counted, other].map(words_at::<PARTS>);
        let mut places = (0..PARTS).filter(|&i| one[i] != 0 && one[i] == counted[i] && one[i] != other[i]);
        let place = places.next().filter(|_| places.next().is_none());
        self.counter = place.filter(|&place| version_at(one[place] as usize) == version);
        self.counter.is_some()
    }

    /// Watches how these tensors lie in memory and how often they were written to, as it is now, and no others: tensors with
    /// what PyTorch gives as `_cdata` of each and of its storage. Those of the indices that are returned cannot be watched so.
    fn watch_tensors(&mut self, tensors: Vec<(Py<PyAny>, usize, usize)>) -> Vec<usize> {
        self.tensors.clear();
        self.seen.clear();
        let mut unknown = Vec::new();
        for (index, (object, address, storage)) in tensors.into_iter().enumerate() {
            // The words of a tensor are what they are taken for if its storage is the first.
            let is_known = words_at::<1>(address) == [storage as u64];
            if is_known {
                self.tensors.push(Tensor { object, index, address, held: Facts::of(address, self.counter) });
            } else {
                unknown.push(index);
            }
        }
        unknown
    }

    /// Indices of tensors that may lie elsewhere in memory, or otherwise; and of those that were written to.
    fn changed_tensors(&mut self) -> (Vec<usize>, Vec<usize>) {
        self.seen.clear();
        let (mut moved, mut written) = (Vec::new(), Vec::new());
        for (place, tensor) in self.tensors.iter().enumerate() {
            let now = Facts::of(tensor.address, self.counter);
            if now == tensor.held {
                continue;
            }
            if (now.words, now.storage) != (tensor.held.words, tensor.held.storage) {
                moved.push(tensor.index);
            }
            if now.version != tensor.held.version {
                written.push(tensor.index);
            }
            self.seen.push((place, now));
        }
        (moved, written)
    }

    /// Takes tensors for unchanged as the last look at them found them.
    fn rebase_tensors(&mut self) {
        for (place, facts) in self.seen.drain(..) {
            self.tensors[place].held = facts;
        }
    }

    /// Watches the memory of `sizes[i]` bytes at `addresses[i]`, as it is now, and no other.
    fn watch_memory(&mut self, addresses: Vec<usize>, sizes: Vec<usize>) {
        (self.regions, self.places) = (Vec::with_capacity(addresses.len()), Vec::new());
        for (address, size) in addresses.into_iter().zip(sizes) {
            self.regions.push(Region { address, first_place: self.places.len() });
            self.places.extend(places_of(address, size));
        }
    }

    /// Indices of regions that are elsewhere now, or whose samples differ. Only memory whose address is the same is read: the
    /// caller vouches that it is as large as it was.
    fn changed_memory(&self, addresses: Vec<usize>) -> Vec<usize> {
        let regions = self.regions().zip(addresses).enumerate();
        let changed = regions.filter(|(_, ((region, places), address))| {
            region.address != *address || !places.iter().all(Place::is_as_it_was)
        });
        changed.map(|(index, _)| index).collect()
    }

    /// Indices of regions whose samples differ, but for those of `moved`, which are not read: the caller vouches that the others
    /// are where they were, and as large.
    fn changed_samples(&self, moved: Vec<usize>) -> Vec<usize> {
        let changed = self
            .regions()
            .enumerate()
            .filter(|(index, (_, places))| !moved.contains(index) && !places.iter().all(Place::is_as_it_was));
        changed.map(|(index, _)| index).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let containers = self.containers.iter().map(|container| &container.object);
        let tensors = self.tensors.iter().map(|tensor| &tensor.object);
        containers.chain(&self.items).chain(tensors).try_for_each(|object| visit.call(object))
    }

    fn __clear__(&mut self) {
        (self.containers, self.items, self.tensors) = Default::default();
    }
}

impl Watch {
    /// Regions, each with its places.
    fn regions(&self) -> impl Iterator<Item = (&Region, &[Place])> {
        let ends = self.regions.iter().skip(1).map(|region| region.first_place).chain([self.places.len()]);
        self.regions.iter().zip(ends).map(|(region, end)| (region, &self.places[region.first_place..end]))
    }
}

impl Tensor {
    /// Asks for what is read of it.
    fn prefetch(&self) {
        prefetch(self.address, 3);
        prefetch(self.held.words[0] as usize, 1);
    }

    fn prefetch_counter(&self, counter: Option<usize>) {
        if let Some(place) = counter {
            prefetch(self.held.words[place] as usize, 1);
        }
    }
}

impl Facts {
    fn of(tensor: usize, counter: Option<usize>) -> Facts {
        let words: [u64; TENSOR_WORDS] = words_at(tensor);
        // A tensor has one storage, and keeps it and the counter as long as it has their addresses.
        let storage = if words[0] == 0 { [0; STORAGE_WORDS] } else { words_at(words[0] as usize) };
        let counter = counter.map(|place| words[place] as usize).filter(|&address| address != 0);
        Facts { words, storage, version: counter.map_or(0, version_at) }
    }
}

/// The version in a counter of PyTorch.
fn version_at(counter: usize) -> u32 {
    let [version] = words_at(counter);
    // The lower half, as all that has 64-bit addresses here is little-endian.
    version as u32
}

/// Words of a tensor or a storage of PyTorch.
fn words_at<const COUNT: usize>(address: usize) -> [u64; COUNT] {
    let mut words = [0; COUNT];
    for (i, word) in words.iter_mut().enumerate() {
        // SAFETY: inside of an object that the caller keeps alive, which is larger, and aligned.
        *word = unsafe { ptr::read_volatile((address as *const u64).add(NOT_COMPARED + i)) };
    }
    words
}

impl Container {
    fn new(object: &Bound<'_, PyAny>, items: &mut Vec<Py<PyAny>>) -> PyResult<Container> {
        let is_dict = object.is_instance_of::<PyDict>();
        if !is_dict && !object.is_instance_of::<PyList>() {
            return Err(PyTypeError::new_err(format!("expected a dict or a list, found {}", object.get_type())));
        }
        let before = items.len();
        // SAFETY: items are borrowed from a live container, and owned before anything else can run.
        visit(object, is_dict, |item| items.push(unsafe { Bound::from_borrowed_ptr(object.py(), item) }.unbind()));
        let mut made = Container { object: object.clone().unbind(), is_dict, version: 0, len: items.len() - before };
        made.version = made.version_now();
        Ok(made)
    }

    /// Where the version of a dict is; of a list the address of its items.
    fn version_address(&self) -> usize {
        self.object.as_ptr() as usize + VERSION_WORD * size_of::<usize>()
    }

    /// The version of a dict, where dicts have one; says nothing of a list.
    fn version_now(&self) -> usize {
        // SAFETY: inside of a live object, aligned: dicts have at least six words, and lists four.
        unsafe { ptr::read_volatile(self.version_address() as *const usize) }
    }

    fn holds(&self, py: Python<'_>, expected: &[Py<PyAny>]) -> bool {
        let object = self.object.bind(py);
        // SAFETY: the object was found to be of its type when it was taken in, and types of containers do not change.
        let size = unsafe {
            match self.is_dict {
                true => 2 * ffi::PyDict_Size(object.as_ptr()),
                false => ffi::PyList_Size(object.as_ptr()),
            }
        };
        if usize::try_from(size) != Ok(expected.len()) {
            return false;
        }
        let (mut expected, mut same) = (expected.iter(), true);
        visit(object, self.is_dict, |item| same &= expected.next().is_some_and(|held| held.as_ptr() == item));
        same
    }

    /// Asks for the tables behind the object.
    fn prefetch_items(&self) {
        if self.len == 0 {
            return;
        }
        let (words, lines) = (self.len * size_of::<usize>(), |bytes: usize| 1 + bytes.div_ceil(LINE));
        if self.is_dict {
            let [.., table, values] = words_of::<6>(&self.object);
            match values {
                // A head, a table of indices, and entries of keys and values, some of them with a hash.
                0 => prefetch(table, lines(2 * words)),
                // Values alone, beside keys that many dicts share, with their order in front of them or behind.
                _ => prefetch(values.wrapping_sub(LINE), 1 + lines(words / 2)),
            }
        } else {
            let [.., items] = words_of::<4>(&self.object);
            prefetch(items, lines(words));
        }
    }
}

/// Asks for some lines of memory. Any address will do: it is a hint, and no access.
fn prefetch(address: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line * LINE) as *const i8) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, lines);
}

/// Whether dicts have a version, which every change of one replaces by a number that no dict had before: those of CPython up to
/// 3.12 do (PEP 509). It is tried, too.
fn dicts_have_versions(py: Python<'_>) -> PyResult<bool> {
    if py.version_info() >= (3, 13) {
        return Ok(false);
    }
    let dict = PyDict::new(py);
    let watched = Container::new(dict.as_any(), &mut Vec::new())?;
    let mut seen = vec![watched.version];
    for change in 0..5 {
        match change {
            0 => dict.set_item("a", 1)?,
            1 => dict.set_item("a", 2)?,
            2 => dict.set_item("b", 2)?,
            3 => dict.del_item("a")?,
            _ => dict.clear(),
        }
        let version = watched.version_now();
        if seen.contains(&version) || version != watched.version_now() {
            return Ok(false);
        }
        seen.push(version);
    }
    Ok(true)
}

/// The first words of an object, which may be addresses: for hints only. Dicts have at least six, and lists four.
fn words_of<const COUNT: usize>(object: &Py<PyAny>) -> [usize; COUNT] {
    let (mut words, object) = ([0; COUNT], object.as_ptr() as *const usize);
    for (i, word) in words.iter_mut().enumerate() {
        // SAFETY: inside of a live object, aligned.
        *word = unsafe { ptr::read_volatile(object.add(i)) };
    }
    words
}

/// Shows the items of a dict or a list, which must not change meanwhile.
fn visit(object: &Bound<'_, PyAny>, is_dict: bool, mut see: impl FnMut(*mut ffi::PyObject)) {
    let object = object.as_ptr();
    if is_dict {
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a dict, which nothing changes meanwhile: the interpreter's lock is held and `see` runs none of its code.
        while unsafe { ffi::PyDict_Next(object, &raw mut position, &raw mut key, &raw mut value) } != 0 {
            see(key);
            see(value);
        }
    } else {
        // SAFETY: a list, as above.
        (0..unsafe { ffi::PyList_Size(object) }).for_each(|i| see(unsafe { ffi::PyList_GetItem(object, i) }));
    }
}

/// The places of a region: all of it where it is small; else its ends, and lines spread over it, each at a place of its part
/// that does not follow the length of rows.
fn places_of(address: usize, size: usize) -> Vec<Place> {
    let (first, last) = (address.next_multiple_of(LINE), (address + size) / LINE * LINE);
    if size < 2 * LINE || first >= last {
        let parts = (address..address + size).step_by(LINE);
        return parts.map(|at| Place::new(at, LINE.min(address + size - at))).collect();
    }
    let lines = (last - first) / LINE;
    let line = |index: usize| Place::new(first + index * LINE, LINE);
    let mut places = vec![Place::new(address, first - address), Place::new(last, address + size - last)];
    if lines <= WHOLE {
        places.extend((0..lines).map(line));
    } else {
        places.extend([line(0), line(lines - 1)]);
        let inner = SAMPLED - 2;
        places.extend((0..inner).map(|i| {
            let (from, to) = (1 + i * (lines - 2) / inner, 1 + (i + 1) * (lines - 2) / inner);
            // The golden ratio of 2^64: parts of it are spread evenly.
            let spread = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            line(from + ((spread as usize * (to - from)) >> 32))
        }));
    }
    places.retain(|place| place.len > 0);
    places
}

impl Place {
    fn new(address: usize, len: usize) -> Place {
        Place { address, len, held: read(address, len) }
    }

    fn is_as_it_was(&self) -> bool {
        self.held == read(self.address, self.len)
    }
}

/// Reads at most a line. Memory that is written to meanwhile gives one of its states or a mix of them: a mix differs
/// from what was held, or is found different by the next reading.
fn read(address: usize, len: usize) -> [u64; LINE / 8] {
    let mut held = [0; LINE / 8];
    if len == LINE && address.is_multiple_of(8) {
        for (i, word) in held.iter_mut().enumerate() {
            // SAFETY: inside of memory that the caller of `Watch` vouches for, and aligned.
            *word = unsafe { ptr::read_volatile((address as *const u64).add(i)) };
        }
    } else {
        for i in 0..len {
            // SAFETY: as above.
            held[i / 8] |= u64::from(unsafe { ptr::read_volatile((address as *const u8).add(i)) }) << (i % 8 * 8);
        }
    }
    held
}
