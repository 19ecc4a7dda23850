//! Names: up to an empty line those of an engine's sources, then those of a file; a digit at the end of a line is a size, and a
//! source may have a second name behind a space. What is taken must be one tensor for each source that is needed, of its shape.

#![no_main]

use libfuzzer_sys::fuzz_target;
use regraft_ir::{Role, SourceKind};
use regraft_tensor::{DType, Tensor};
use regraft_weights::{Constants, MatchOptions, Rename, SourceInfo, StateDict, match_sources};

fuzz_target!(|bytes: &[u8]| {
    let Some((settings, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (engine, file) = text.split_once("\n\n").unwrap_or((text, ""));
    let size = |line: &str| line.bytes().last().filter(u8::is_ascii_digit).map_or(1, |digit| usize::from(digit - b'0'));
    let kinds = SourceKind::ALL;
    let info = |(i, line): (usize, &str)| SourceInfo {
        name: line.split(' ').next().unwrap_or_default().to_owned(),
        aliases: line.split(' ').skip(1).take(1).map(str::to_owned).collect(),
        kind: kinds[if settings & 8 == 0 { 0 } else { i % 4 }],
        dtype: DType::F32,
        shape: vec![size(line)],
        role: Role::default(),
    };
    let mut sources: Vec<SourceInfo> = engine.lines().take(64).enumerate().map(info).collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources.dedup_by(|a, b| a.name == b.name);
    let mut weights = StateDict::new();
    for line in file.lines().take(64) {
        weights.insert(line, Tensor::from_slice(&[size(line)], &vec![1f32; size(line)]));
    }
    let used: Vec<bool> = (0..sources.len()).map(|i| settings & 16 == 0 || i % 3 != 0).collect();
    let constants = match (settings & 4, engine.lines().next()) {
        (0, _) => Constants::Keep,
        (_, Some(first)) if settings & 64 != 0 => Constants::Change([first.to_owned()].into_iter().collect()),
        _ => Constants::ChangeAll,
    };
    let options = MatchOptions::new()
        .partial(settings & 1 != 0)
        .ignore_unknown(settings & 2 != 0)
        .constants(constants)
        .renames((settings & 32 != 0).then(|| Rename::new("a", "b.c")));
    let names = match_sources(&sources, &used, &weights, &options);
    assert!(!names.rule().to_string().is_empty());
    match names.check(&sources, None, &options) {
        Ok(matched) => {
            for (index, source) in sources.iter().enumerate() {
                let is_needed = used[index] && source.kind.in_state_dict() && !options.partial;
                assert!(matched.contains_key(&index) || !is_needed, "{}", source.name);
            }
            assert!(matched.iter().all(|(index, tensor)| tensor.shape() == sources[*index].shape));
        }
        Err(misfit) => assert!(!misfit.problems.is_empty() && !misfit.to_string().is_empty()),
    }
});
