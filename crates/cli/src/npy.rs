//! Tensors in `.npy` and `.npz` files, as `numpy.save` and `numpy.savez` write them.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use half::f16;
use npyz::{DType as NpyDType, NpyFile, Order, TypeChar, WriterBuilder};
use regraft::{AtomicFile, DType, Tensor};

use crate::failure::Failure;

/// Deflate spends at least a bit and a half on 258 bytes.
const DEFLATE_MAX_RATIO: u64 = 1032;

/// Reads the array at `path`.
pub(crate) fn read(path: &Path) -> Result<Tensor, Failure> {
    let failed = |e: io::Error| Failure::new(e.to_string()).about(path);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    array(BufReader::new(file), len).map_err(|failure| failure.about(path))
}

/// Reads the named arrays of an `.npz` file, as `numpy.savez` writes it.
pub(crate) fn read_npz(path: &Path) -> Result<Vec<(String, Tensor)>, Failure> {
    let failed = |why: String| Failure::new(why).about(path);
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| failed(format!("no valid .npz file: {e}")).help("save the arrays with numpy.savez"))?;
    let mut arrays = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| failed(e.to_string()))?;
        let name = entry.name().map_err(|e| failed(e.to_string()))?.into_owned();
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        // An entry is read no further than its header says, and that may say no more than deflate can unfold to.
        let size = entry.size().min(entry.compressed_size().saturating_mul(DEFLATE_MAX_RATIO));
        let tensor = array(entry.take(size), size).map_err(|failure| failure.about(&path.join(&name)))?;
        arrays.push((name, tensor));
    }
    Ok(arrays)
}

/// Reads an array from at most `len` bytes.
fn array(from: impl Read, len: u64) -> Result<Tensor, Failure> {
    let npy = NpyFile::new(from)
        .map_err(|e| Failure::new(format!("no valid .npy file: {e}")).help("save the array with numpy.save"))?;
    let dtype = dtype_of(&npy.dtype()).ok_or_else(|| {
        Failure::new(format!("arrays of dtype {} are not supported", npy.dtype().descr()))
            .help("convert it, such as with array.astype(\"float32\")")
    })?;
    let shape: Option<Vec<usize>> = npy.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
    // A header can claim any shape; what is allocated is bounded by what the file holds.
    let needed = shape.as_deref().and_then(|s| Tensor::byte_len(dtype, s).ok()).filter(|&n| n as u64 <= len);
    let (Some(shape), Some(_)) = (shape, needed) else {
        return Err(Failure::new(format!("the file is cut short: its header says {dtype}{:?}", npy.shape()))
            .help("save the array again, or copy the file again if it was transferred"));
    };
    elements(npy, dtype, &shape).map_err(|e| Failure::new(format!("could not read the array: {e}")))
}

fn dtype_of(dtype: &NpyDType) -> Option<DType> {
    let NpyDType::Plain(ty) = dtype else { return None };
    Some(match (ty.type_char(), ty.num_bytes()?) {
        (TypeChar::Float, 8) => DType::F64,
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        (TypeChar::Bool, 1) => DType::Bool,
        _ => return None,
    })
}

fn elements(npy: NpyFile<impl Read>, dtype: DType, shape: &[usize]) -> io::Result<Tensor> {
    match dtype {
        DType::F64 => Ok(Tensor::from_slice(shape, &row_major::<f64>(npy, shape)?)),
        DType::F32 => Ok(Tensor::from_slice(shape, &row_major::<f32>(npy, shape)?)),
        DType::F16 => Ok(Tensor::from_slice(shape, &row_major::<f16>(npy, shape)?)),
        DType::I64 => Ok(Tensor::from_slice(shape, &row_major::<i64>(npy, shape)?)),
        DType::I32 => Ok(Tensor::from_slice(shape, &row_major::<i32>(npy, shape)?)),
        DType::I16 => Ok(Tensor::from_slice(shape, &row_major::<i16>(npy, shape)?)),
        DType::I8 => Ok(Tensor::from_slice(shape, &row_major::<i8>(npy, shape)?)),
        DType::U8 => Ok(Tensor::from_slice(shape, &row_major::<u8>(npy, shape)?)),
        DType::U16 => Ok(Tensor::from_slice(shape, &row_major::<u16>(npy, shape)?)),
        DType::U32 => Ok(Tensor::from_slice(shape, &row_major::<u32>(npy, shape)?)),
        DType::U64 => Ok(Tensor::from_slice(shape, &row_major::<u64>(npy, shape)?)),
        DType::Bool => Ok(Tensor::from_bools(shape, &row_major::<bool>(npy, shape)?)),
        DType::BF16 => Err(io::Error::other("numpy has no bf16")),
    }
}

/// All elements, the last axis fastest.
fn row_major<T: npyz::Deserialize + Copy>(npy: NpyFile<impl Read>, shape: &[usize]) -> io::Result<Vec<T>> {
    let order = npy.order();
    let data: Vec<T> = npy.into_vec()?;
    if data.len() != shape.iter().product::<usize>() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if order == Order::C || shape.len() < 2 || data.is_empty() {
        return Ok(data);
    }
    let mut strides = vec![1; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let mut out = Vec::with_capacity(data.len());
    while out.len() < data.len() {
        out.push(data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Ok(out)
}

/// Writes `tensor` to `file`; bf16, which numpy does not have, as f32.
pub(crate) fn write(file: &mut AtomicFile, tensor: &Tensor) -> io::Result<()> {
    let (tensor, shape) = (tensor.aligned(), tensor.shape());
    match tensor.dtype() {
        DType::F64 => extend(file, shape, tensor.as_slice::<f64>()),
        DType::F32 => extend(file, shape, tensor.as_slice::<f32>()),
        DType::F16 => extend(file, shape, tensor.as_slice::<f16>()),
        DType::BF16 => extend(file, shape, tensor.cast(DType::F32).as_slice::<f32>()),
        DType::I64 => extend(file, shape, tensor.as_slice::<i64>()),
        DType::I32 => extend(file, shape, tensor.as_slice::<i32>()),
        DType::I16 => extend(file, shape, tensor.as_slice::<i16>()),
        DType::I8 => extend(file, shape, tensor.as_slice::<i8>()),
        DType::U8 => extend(file, shape, tensor.as_slice::<u8>()),
        DType::U16 => extend(file, shape, tensor.as_slice::<u16>()),
        DType::U32 => extend(file, shape, tensor.as_slice::<u32>()),
        DType::U64 => extend(file, shape, tensor.as_slice::<u64>()),
        DType::Bool => {
            let values: Vec<bool> = tensor.bytes().iter().map(|&b| b != 0).collect();
            extend(file, shape, Some(&values))
        }
    }
}

fn extend<T: npyz::AutoSerialize + Copy>(
    file: &mut AtomicFile,
    shape: &[usize],
    values: Option<&[T]>,
) -> io::Result<()> {
    let values = values.ok_or_else(|| io::Error::other("the elements have another type"))?;
    let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()
}

/// `tensor` as an input of dtype `expected`: numpy has no bf16, so arrays of f32 stand for it.
pub(crate) fn as_dtype(tensor: Tensor, expected: DType) -> Tensor {
    if expected == DType::BF16 && tensor.dtype() == DType::F32 { tensor.cast(DType::BF16) } else { tensor }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn round_trip(tensor: &Tensor) -> Tensor {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        AtomicFile::write(&path, |file| write(file, tensor)).unwrap();
        read(&path).unwrap()
    }

    #[test]
    fn every_dtype_survives() {
        for dtype in DType::ALL.into_iter().filter(|&d| d != DType::BF16) {
            for shape in [&[2, 3][..], &[6], &[0, 4], &[1, 2, 3]] {
                let n = shape.iter().product::<usize>();
                let values: Vec<f64> = (0..n).map(|i| (i % 2) as f64).collect();
                let tensor = Tensor::from_f64(dtype, shape, &values);
                assert!(round_trip(&tensor).bit_equal(&tensor), "{dtype}{shape:?}");
            }
        }
        let scalar = Tensor::from_slice(&[], &[1.5f32]);
        assert!(round_trip(&scalar).bit_equal(&scalar));
    }

    #[test]
    fn bf16_becomes_f32_and_comes_back() {
        let tensor = Tensor::from_slice(&[2], &[bf16::from_f32(1.5), bf16::from_f32(-2.0)]);
        let read = round_trip(&tensor);
        assert_eq!(read.dtype(), DType::F32);
        assert!(as_dtype(read, DType::BF16).bit_equal(&tensor));
    }

    #[test]
    fn fortran_order_and_other_byte_orders_are_read() {
        let npy = |descr: &str, order: &str, data: &[u8]| {
            let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': (2, 3), }}");
            header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
            header.push('\n');
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            bytes.extend(data);
            bytes
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        std::fs::write(&path, npy("|i1", "True", &[1, 4, 2, 5, 3, 6])).unwrap();
        assert!(read(&path).unwrap().bit_equal(&Tensor::from_slice(&[2, 3], &[1i8, 2, 3, 4, 5, 6])));
        std::fs::write(&path, npy(">i2", "False", &[0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6])).unwrap();
        assert!(read(&path).unwrap().bit_equal(&Tensor::from_slice(&[2, 3], &[1i16, 2, 3, 4, 5, 6])));
        std::fs::write(&path, npy("<f8", "False", &[0; 47])).unwrap();
        assert!(read(&path).is_err(), "cut short");
        std::fs::write(&path, npy("<c8", "False", &[0; 48])).unwrap();
        assert!(read(&path).is_err(), "complex");
        std::fs::write(&path, b"PK\x03\x04").unwrap();
        assert!(read(&path).is_err(), "a zip archive");
    }
}
