//! State dicts of `torch.save`. `make_files.py` writes the files.

use regraft_tensor::{Buffer, DType};
use regraft_weights::StateDict;
use zip::CompressionMethod;

use crate::{beside, damage, entries, names, open, open_as, refused, tensor, zipped};

/// An archive of `torch.save` with another pickle.
fn with_pickle(name: &str, pickle: &[u8]) -> Vec<u8> {
    let mut entries = entries(&beside(name));
    for (_, bytes) in entries.iter_mut().filter(|(name, _)| name.ends_with("/data.pkl")) {
        *bytes = pickle.to_vec();
    }
    zipped(&entries, CompressionMethod::Stored)
}

fn pickle_of(name: &str) -> Vec<u8> {
    let is_pickle = |(name, _): &(String, Vec<u8>)| name.ends_with("/data.pkl");
    entries(&beside(name)).into_iter().find(is_pickle).expect("a pickle").1
}

/// Opens a pickle that was made by hand; its storages are those of `plain.pt`.
fn unpickle(body: impl AsRef<[u8]>) -> Result<StateDict, String> {
    let pickle = [b"\x80\x02", body.as_ref(), b"."].concat();
    open_as("x.pt", &with_pickle("plain.pt", &pickle))
}

#[test]
fn every_dtype_and_layout_is_read() {
    let dict = open(&beside("plain.pt")).expect("a state dict");
    let expected: [(&str, DType, &[usize], &[f64]); 17] = [
        ("alias", DType::F32, &[3, 4], &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]),
        ("bf16", DType::BF16, &[2], &[1.5, 256.0]),
        ("bool", DType::Bool, &[3], &[1., 0., 1.]),
        ("broadcast", DType::F32, &[2, 3], &[3.; 6]),
        ("column", DType::F32, &[3], &[2., 6., 10.]),
        ("empty", DType::F32, &[0, 5], &[]),
        ("f16", DType::F16, &[2], &[1.5, -0.25]),
        ("f32", DType::F32, &[3, 4], &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]),
        ("f64", DType::F64, &[2], &[0.1, -2.5]),
        ("i16", DType::I16, &[2], &[-300., 300.]),
        ("i32", DType::I32, &[2], &[-5., 6.]),
        ("i64", DType::I64, &[2], &[-1099511627776., 7.]),
        ("i8", DType::I8, &[2], &[-128., 127.]),
        ("row", DType::F32, &[4], &[4., 5., 6., 7.]),
        ("scalar", DType::I64, &[], &[42.]),
        ("transposed", DType::F32, &[4, 3], &[0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]),
        ("u8", DType::U8, &[2], &[0., 255.]),
    ];
    let found: Vec<_> = dict.iter().map(|(name, t)| (name, t.dtype(), t.shape(), t.to_f64_vec())).collect();
    let expected: Vec<_> = expected.iter().map(|(name, dtype, shape, v)| (*name, *dtype, *shape, v.to_vec())).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_stored_in_order_is_mapped_and_shared() {
    let dict = open(&beside("plain.pt")).expect("a state dict");
    for name in ["f32", "row", "f64", "scalar"] {
        assert!(matches!(tensor(&dict, name).buffer(), Buffer::Mapped(..)), "{name}");
    }
    assert!(tensor(&dict, "f32").buffer().same_memory(tensor(&dict, "alias").buffer()));
    assert!(matches!(tensor(&dict, "transposed").buffer(), Buffer::Owned(_)));
}

#[test]
fn the_state_of_a_module_is_read_alone_or_in_a_checkpoint() {
    let state = open(&beside("module.pth")).expect("a state dict");
    assert_eq!(tensor(&state, "0.weight").to_f64_vec(), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(tensor(&state, "0.bias").to_f64_vec(), [-1., 1.]);
    assert_eq!(tensor(&state, "1.num_batches_tracked").dtype(), DType::I64);
    assert_eq!(state.len(), 7);

    let checkpoint = open(&beside("checkpoint.pt")).expect("a checkpoint");
    assert_eq!(names(&checkpoint), names(&state));
    assert!(checkpoint.iter().zip(state.iter()).all(|((_, a), (_, b))| a.bit_equal(b)));

    let parameters = open(&beside("parameters.pt")).expect("parameters");
    assert_eq!(names(&parameters), ["0.bias", "0.weight", "1.bias", "1.weight"]);
    assert!(tensor(&parameters, "0.weight").bit_equal(tensor(&state, "0.weight")));

    assert_eq!(tensor(&open(&beside("protocol4.pt")).expect("a dict"), "a").to_f64_vec(), [1., 2.]);
    assert!(open(&beside("nothing.pt")).expect("an empty dict").is_empty());
}

#[test]
fn what_is_no_state_dict_is_refused_by_name() {
    for (file, expected) in [
        ("float8.pt", "no tensors by name that can be read: `w8` is a tensor of float8_e4m3fn"),
        ("quantized.pt", "`wq` is a tensor of qint8"),
        ("not_a_dict.pt", "expected a dict of tensors by name, found a list"),
        ("whole_module.pt", "found an object of `torch.nn.modules.activation.ReLU`"),
    ] {
        refused(open(&beside(file)), expected);
    }
    let error = regraft_checkpoint::open(&beside("two_states.pt")).expect_err("two").to_string();
    assert!(error.ends_with("it holds several sets of weights: `model`, `state_dict`"), "{error}");
}

#[test]
fn what_is_beside_tensors_is_skipped_and_said() {
    let dict = open(&beside("number_inside.pt")).expect("a dict");
    assert_eq!(names(&dict), ["a"]);
    assert_eq!(dict.skipped().iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>(), [("b", "an int")]);

    let dict =
        unpickle([&one_tensor(12, b"K\x04", b"K\x02\x85", b"K\x03\x85")[..], b"X\x01\0\0\0bcos\nsystem\n)Rs"].concat());
    let dict = dict.expect("a dict");
    assert_eq!((names(&dict), dict.skipped()["b"].as_str()), (vec!["a"], "an object of `os.system`"));
}

#[test]
fn old_files_are_read() {
    let dict = open(&beside("legacy.bin")).expect("a state dict");
    assert_eq!(tensor(&dict, "a").to_f64_vec(), [1.]);
    for name in ["tar.pt", "big_endian.pt"] {
        let dict = open(&beside(name)).expect(name);
        assert_eq!((tensor(&dict, "a").shape(), tensor(&dict, "a").to_f64_vec()), (&[2, 2][..], vec![1., 2., 3., 4.]));
        assert_eq!(tensor(&dict, "b").to_f64_vec(), [-7., 1_099_511_627_776.]);
        assert_eq!((tensor(&dict, "h").dtype(), tensor(&dict, "h").to_f64_vec()), (DType::F16, vec![1.5]));
    }
}

#[test]
fn nothing_is_executed() {
    refused(open(&beside("evil.pt")), "`a` is an object of `posix.system`");
    assert!(!std::path::Path::new("regraft_was_here").exists());
    for (call, name) in [
        (&b"cbuiltins\neval\n(X\x01\0\0\0atR"[..], "builtins.eval"),
        (b"ctorch\nload\n(X\x01\0\0\0atR", "torch.load"),
        (b"\x8c\x02os\x8c\x06system\x93)\x81", "os.system"),
        (b"(ios\nsystem\n", "os.system"),
        (b"(cos\nsystem\no", "os.system"),
    ] {
        refused(unpickle(call), &format!("found an object of `{name}`"));
    }
    refused(unpickle(b"\x8c\x02os\x8c\x06system\x93"), "found `os.system`");
    refused(unpickle(b"\x82\x01"), "the opcode EXT (0x82)");
}

#[test]
fn broken_pickles_are_refused_with_their_place() {
    for (body, expected) in [
        (&b""[..], "byte 2: expected a value on the stack, found none"),
        (b"N", "found None"),
        (b"}}", "expected one value, found more"),
        (b"}.}", "expected one value and the end of the file"),
        (b"}t", "expected a mark, found none"),
        (b"((u", "expected a value on the stack, found none"),
        (b"]N(u", "expected a dict to set items of, found None"),
        (b"}(Nu", "a key of a dict has no value"),
        (b"}h\x07", "nothing was memoized as 7"),
        (b"X\xff\xff\xff\xff", "expected 4294967295 more bytes"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "more bytes, found"),
        (b"}K\x01K\x02s", "it has an int as a key"),
        (b"}X\x01\0\0\0aX\x01\0\0\0\xffs", "is not UTF-8"),
        (b"}X\x01\0\0\0a}s", "`a` is a dict"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "called with arguments that are not known"),
        (b"NQ", "expected a storage, found another persistent id"),
    ] {
        refused(unpickle(body), expected);
    }
    let version = with_pickle("plain.pt", b"\x80\x06}.");
    refused(open_as("x.pt", &version), "expected a pickle of protocol 1 to 5, found protocol 6");
}

/// The persistent id of the storage `0` of `plain.pt` up to its number of elements.
const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu";

/// A dict with one tensor over the storage `0` of `plain.pt`, twelve floats.
fn one_tensor(numel: u8, offset: &[u8], sizes: &[u8], strides: &[u8]) -> Vec<u8> {
    let storage =
        [b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK", &[numel][..], b"tQ"].concat();
    let call = [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], offset, sizes, strides, b"\x89}tR"].concat();
    [b"}X\x01\0\0\0a", &call[..], b"s"].concat()
}

#[test]
fn tensors_stay_inside_of_their_storages() {
    const HUGE: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let good = unpickle(one_tensor(12, b"K\x04", b"K\x02\x85", b"K\x03\x85")).expect("a view");
    assert_eq!(tensor(&good, "a").to_f64_vec(), [4., 7.]);

    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    for (tensor, expected) in [
        (one_tensor(12, b"K\x0b", b"K\x02\x85", b"K\x01\x85"), "at element 11 needs 8 bytes from there"),
        (one_tensor(12, b"K\x04", b"K\x02\x85", b"K\x08\x85"), "leaves its storage of 12 elements"),
        (one_tensor(12, b"K\0", b"K\x02\x85", &pair(b"K\x01", b"K\x01")), "1 sizes and 2 strides"),
        (one_tensor(11, b"K\0", b"K\x02\x85", b"K\x01\x85"), "its storage has 48 bytes, expected 11 elements"),
        (one_tensor(12, b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"), "not a natural number"),
        (one_tensor(12, HUGE, b"K\x02\x85", b"K\x01\x85"), "at element 9223372036854775807"),
        (one_tensor(12, b"K\0", b"K\x02\x85", &[HUGE, b"\x85"].concat()), "a view of shape [2]"),
        (one_tensor(12, b"K\0", &pair(HUGE, HUGE), &pair(b"K\0", b"K\0")), "too large for memory"),
        (one_tensor(12, b"K\0", &[HUGE, b"\x85"].concat(), b"K\0\x85"), "too large for memory"),
        (one_tensor(12, b"K\0", b"J\xff\xff\xff\x7f\x85", b"K\0\x85"), "unfold to 8589934588 bytes"),
        // Less takes seconds to fill, of a few bytes.
        (one_tensor(12, b"K\0", b"J\0\0\0\x08\x85", b"K\0\x85"), "unfold to 536870912 bytes"),
    ] {
        refused(unpickle(tensor), expected);
    }
}

#[test]
fn memory_is_in_proportion_to_the_pickle() {
    // The function and its arguments are memoized, with 64 sizes, and called a thousand times.
    let sizes = [&b"("[..], &b"K\x01".repeat(64), b"tq\x01"].concat();
    let args = [b"(", STORAGE, b"K\x0ctQK\0", &sizes, b"h\x01\x89}tq\x03"].concat();
    let calls = b"h\x02h\x03R".repeat(1000);
    let bomb = [b"](ctorch._utils\n_rebuild_tensor_v2\nq\x02", &args[..], &calls, b"e"].concat();
    refused(unpickle(bomb), "its tensors have more axes in all than its");
    // Nesting is not recursion.
    refused(unpickle([&b"]".repeat(100_000)[..], &b"a".repeat(99_999)].concat()), "found a list");
    refused(unpickle(b")\x85".repeat(100_000)), "expected one value");
}

#[test]
fn archives_that_are_none_of_torch_save_are_refused() {
    let archive = |names: &[&str], method| {
        let entries: Vec<_> = names.iter().map(|name| ((*name).to_owned(), b"\x80\x02}.".repeat(100))).collect();
        open_as("x.pt", &zipped(&entries, method))
    };
    let stored = |names: &[&str]| archive(names, CompressionMethod::Stored);
    refused(stored(&["a/data.pkl", "a/constants.pkl"]), "a TorchScript program");
    refused(stored(&["a/b.txt"]), "none of torch.save: data.pkl is missing");
    refused(stored(&["a/data.pkl", "b/data.pkl"]), "expected one folder with data.pkl, found `a` and `b`");
    refused(archive(&["a/data.pkl"], CompressionMethod::Deflated), "it is compressed, which torch.save never does");

    let mut plain = entries(&beside("plain.pt"));
    refused(open_as("x.pt", &zipped(&plain, CompressionMethod::Deflated)), "it is compressed");
    plain.retain(|(name, _)| !name.ends_with("/data/0"));
    refused(open_as("x.pt", &zipped(&plain, CompressionMethod::Stored)), "data/0: it is missing");
    for (_, bytes) in plain.iter_mut().filter(|(name, _)| name.ends_with("/byteorder")) {
        *bytes = b"middle".to_vec();
    }
    refused(open_as("x.pt", &zipped(&plain, CompressionMethod::Stored)), "expected `little` or `big`, found `middle`");
}

#[test]
fn damaged_archives_are_refused_or_read() {
    let file = std::fs::read(beside("protocol4.pt")).expect("a file");
    damage(&file, |bytes| open_as("x.pt", bytes));
}

#[test]
fn damaged_pickles_are_refused_or_read() {
    for name in ["checkpoint.pt", "protocol4.pt"] {
        damage(&pickle_of(name), |pickle| open_as("x.pt", &with_pickle(name, pickle)));
    }
}

#[test]
fn damaged_old_files_are_refused_or_read() {
    let file = std::fs::read(beside("legacy.bin")).expect("a file");
    damage(&file, |bytes| open_as("x.pt", bytes));
    let tar = std::fs::read(beside("tar.pt")).expect("a file");
    // Most of a tar file is padding.
    for at in (0..tar.len()).filter(|at| tar[*at] != 0) {
        let mut bytes = tar.clone();
        bytes[at] ^= 0x81;
        drop(open_as("x.pt", &bytes));
        drop(open_as("x.pt", &tar[..at]));
    }
}
