//! The bytes are the pickle of a sound archive of `torch.save` with two storages; by their number it is of a machine of the other
//! byte order.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pickle: &[u8]| {
    let storages = [[0u8, 1, 0x3f, 0x80].repeat(16), vec![1; 16]];
    let file = regraft_fuzz::zipped([
        ("x/data.pkl", pickle),
        ("x/byteorder", if pickle.len() % 4 == 3 { b"big" } else { b"little" }),
        ("x/data/0", &storages[0]),
        ("x/data/1", &storages[1]),
        ("x/version", b"3\n"),
    ]);
    regraft_fuzz::open("model.pt", &file);
});
