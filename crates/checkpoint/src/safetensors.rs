use regraft_tensor::{Buffer, DType, MappedFile};
use safetensors::{Dtype, SafeTensors};

use super::{FileProblem, view::View};
use regraft_weights::StateDict;

/// Reads the tensors and the metadata of a safetensors file into `dict`.
pub(super) fn read(file: &MappedFile, dict: &mut StateDict) -> Result<(), FileProblem> {
    let damaged = |e: safetensors::SafeTensorError| {
        FileProblem::new(format!("no valid safetensors file: {e}"), "copy it again, or save it again with safetensors")
    };
    let bytes = file.bytes();
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let parsed = SafeTensors::deserialize(bytes).map_err(damaged)?;
    for (name, view) in parsed.iter() {
        let Some(dtype) = dtype_of(view.dtype()) else {
            dict.skip(name, format!("a tensor of {:?}", view.dtype()));
            continue;
        };
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let outside = || FileProblem::tensor(name, "it does not lie inside the file");
        let buffer = Buffer::mapped(file, start..start + view.data().len()).ok_or_else(outside)?;
        let tensor =
            View::dense(dtype, view.shape().to_vec()).tensor(&buffer).map_err(|e| FileProblem::tensor(name, e))?;
        dict.insert(name, tensor);
    }
    let metadata = header.metadata().iter().flatten();
    dict.add_metadata(metadata.map(|(key, value)| (key.clone(), value.clone())));
    Ok(())
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        Dtype::U16 => DType::U16,
        Dtype::U32 => DType::U32,
        Dtype::U64 => DType::U64,
        _ => return None,
    })
}
