//! Slots made on the device next to those that the CPU makes of the same sources: the same bits.

use std::sync::Arc;

use regraft_backend::{
    Comparison, Device, Given, KeptSource, Memory, MemoryKind, Pace, PackJob, Packer, QueueClass, Region, RegionMut,
    adapter::{Factors, Overlay, Update},
};
use regraft_backend_cpu::CpuDevice;
use regraft_backend_cuda::{CudaDevice, CudaOptions, library::Lookup};
use regraft_ir::{Graph, text};
use regraft_tensor::{DType, Tensor};
use regraft_weights::{FormatId, Recipe, RefitMap, SlotLayout, SourceInfo};

use crate::{Gpu, common::Random};

/// Recipes as engines have them; `T` is the program's dtype.
const RECIPES: &[(&str, &str)] = &[
    ("as it is", "source %0 : T[37, 19] = \"a\" (parameter)\n output %0 = \"w\""),
    (
        "transposed",
        "source %0 : T[130, 70] = \"a\" (parameter)
         %1 = permute %0 {perm = [1, 0]} : T[70, 130]
         output %1 = \"w\"",
    ),
    (
        "joined",
        "source %0 : T[20, 9] = \"a\" (parameter)
         source %1 : T[3, 9] = \"b\" (parameter)
         %2 = concat %0, %1 {axis = 0} : T[23, 9]
         output %2 = \"w\"",
    ),
    (
        "joined and transposed",
        "source %0 : T[64, 40] = \"a\" (parameter)
         source %1 : T[8, 40] = \"b\" (parameter)
         %2 = concat %0, %1 {axis = 0} : T[72, 40]
         %3 = permute %2 {perm = [1, 0]} : T[40, 72]
         output %3 = \"w\"",
    ),
    (
        "a part",
        "source %0 : T[48, 33] = \"a\" (parameter)
         %1 = slice %0 {axis = 0, start = 16, end = 32, step = 1} : T[16, 33]
         output %1 = \"w\"",
    ),
    (
        "channels last",
        "source %0 : T[24, 64, 3, 3] = \"a\" (parameter)
         %1 = permute %0 {perm = [0, 2, 3, 1]} : T[24, 3, 3, 64]
         output %1 = \"w\"",
    ),
    (
        "channels last, folded",
        "source %0 : T[24, 5, 3, 3] = \"a\" (parameter)
         source %1 : f32[24] = \"s\" (parameter)
         %2 = cast %0 {dtype = f32} : f32[24, 5, 3, 3]
         %3 = unary %1 {f = exp} : f32[24]
         %4 = reshape %3 {shape = [24, 1, 1, 1]} : f32[24, 1, 1, 1]
         %5 = binary %2, %4 {f = mul} : f32[24, 5, 3, 3]
         %6 = permute %5 {perm = [0, 2, 3, 1]} : f32[24, 3, 3, 5]
         %7 = cast %6 {dtype = T} : T[24, 3, 3, 5]
         output %7 = \"w\"",
    ),
    (
        "computed",
        "source %0 : T[33] = \"a\" (parameter)
         %1 = unary %0 {f = neg} : T[33]
         output %1 = \"w\"",
    ),
];

struct Program {
    map: RefitMap,
    layouts: Vec<SlotLayout>,
}

fn program(dtype: DType) -> Program {
    let mut map = RefitMap::default();
    let mut layouts = Vec::new();
    for (name, body) in RECIPES {
        let body = body.replace('T', dtype.name());
        // A cast to the same type changes nothing.
        let body = if dtype == DType::F32 { without_casts(&body) } else { body };
        let graph: Graph = text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program");
        let first = map.sources.len() as u32;
        for source in &graph.sources {
            let mut info = SourceInfo::new(source, graph.ty(source.value));
            info.name = format!("{name}: {}", info.name);
            map.sources.push(info);
        }
        let sources: Vec<u32> = (first..map.sources.len() as u32).collect();
        let ty = graph.ty(graph.outputs[0].value);
        let shape = ty.sizes().expect("known sizes");
        let bytes = shape.iter().product::<usize>() * ty.dtype.size();
        layouts.push(SlotLayout { shape, format: FormatId::PLAIN, bytes });
        let (slot, uses) = ((*name).to_owned(), sources.clone());
        map.recipes.push(Recipe { slot, graph, sources, uses, format: FormatId::PLAIN, layout_ops: 0 });
    }
    Program { map, layouts }
}

fn without_casts(body: &str) -> String {
    let body = body.replace("%2 = cast %0 {dtype = f32} : f32[24, 5, 3, 3]\n", "");
    let body = body.replace("binary %2, %4", "binary %0, %4");
    let last = "%7 = cast %6 {dtype = f32} : f32[24, 3, 3, 5]\n";
    if body.contains(last) { body.replace(last, "").replace("output %7", "output %6") } else { body }
}

pub(crate) fn check(gpu: &mut Gpu) {
    let device =
        match CudaDevice::open(0, &CudaOptions { lookup: Lookup::from_environment(), ..CudaOptions::default() }) {
            Ok(device) => device,
            Err(error) => return gpu.outcome("slots", Err(error.to_string())),
        };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for given in [DType::F32, DType::F16, DType::BF16] {
            for rank in [0, 4] {
                let outcome = slots(&device, dtype, given, rank);
                gpu.outcome(&format!("slots of {dtype} from {given}, rank {rank}"), outcome);
            }
        }
    }
}

fn slots(device: &CudaDevice, dtype: DType, given: DType, rank: usize) -> Result<String, String> {
    let host = CpuDevice::new(Some(4));
    let Program { map, layouts } = program(dtype);
    let ours = device.packer(&map, &layouts).map_err(|e| e.to_string())?;
    let theirs = host.packer(&map, &layouts).map_err(|e| e.to_string())?;
    let mut r = Random(7 + rank as u64);
    let sources: Vec<Tensor> =
        map.sources.iter().map(|s| r.floats(if s.dtype == dtype { given } else { s.dtype }, &s.shape)).collect();
    let overlay = |info: &SourceInfo, r: &mut Random| {
        let (rows, cols) = (info.shape[0], info.shape[1..].iter().product());
        let factors = Factors { up: r.floats(DType::F32, &[rows, rank]), down: r.floats(DType::F32, &[rank, cols]) };
        let update = Update::LowRank { factors, scale: 0.5, magnitude: None };
        Overlay::new(info.dtype, &info.shape, &[(&update, 0.7)])
    };
    let overlays: Vec<Option<Overlay>> =
        map.sources.iter().map(|s| (rank > 0 && s.shape.len() > 1).then(|| overlay(s, &mut r))).collect();
    // Twice: the second time sources that adapters are merged into are on the device already.
    for round in 0..2 {
        let wants = packed(&theirs, &host, &map, &layouts, &sources, &overlays)?;
        let founds = packed(&ours, device, &map, &layouts, &sources, &overlays)?;
        for ((want, found), recipe) in wants.iter().zip(&founds).zip(&map.recipes) {
            if want != found {
                let at = want.iter().zip(found).position(|(a, b)| a != b);
                return Err(format!("`{}` differs at byte {at:?} of {} (round {round})", recipe.slot, want.len()));
            }
        }
    }
    if rank == 0 && given == dtype { kept(&ours, device, &map, &layouts, &sources) } else { Ok(String::new()) }
}

fn packed(
    packer: &Arc<dyn Packer>,
    device: &dyn Device,
    map: &RefitMap,
    layouts: &[SlotLayout],
    sources: &[Tensor],
    overlays: &[Option<Overlay>],
) -> Result<Vec<Vec<u8>>, String> {
    let alloc = |layout: &SlotLayout| device.alloc(layout.bytes, MemoryKind::Slot).map_err(|e| e.to_string());
    let mut memory = layouts.iter().map(alloc).collect::<Result<Vec<_>, _>>()?;
    let jobs = map.recipes.iter().enumerate().zip(&mut memory).map(|((slot, recipe), memory)| {
        let given = |&s: &u32| Given { tensor: &sources[s as usize], overlay: overlays[s as usize].as_ref() };
        let given = recipe.sources.iter().map(given).collect();
        PackJob { slot, given, out: RegionMut::of(&mut **memory) }
    });
    packer.pack(jobs.collect(), Pace::Fast, &()).map_err(|e| e.to_string())?;
    let queue = device.queue(QueueClass::Stage).map_err(|e| e.to_string())?;
    let read = |memory: &dyn Memory| {
        let mut bytes = vec![0; memory.len()];
        queue.read(Region::of(memory), &mut bytes).map(|()| bytes).map_err(|e| format!("{e:?}"))
    };
    memory.iter().map(|memory| read(&**memory)).collect()
}

/// Sources are read back from slots that keep them, and found to differ where one bit does.
fn kept(
    packer: &Arc<dyn Packer>,
    device: &dyn Device,
    map: &RefitMap,
    layouts: &[SlotLayout],
    sources: &[Tensor],
) -> Result<String, String> {
    let mut count = 0;
    for (slot, recipe) in map.recipes.iter().enumerate() {
        let mut memory = device.alloc(layouts[slot].bytes, MemoryKind::Slot).map_err(|e| e.to_string())?;
        let given = recipe.sources.iter().map(|&s| Given { tensor: &sources[s as usize], overlay: None }).collect();
        let job = PackJob { slot, given, out: RegionMut::of(&mut *memory) };
        packer.pack(vec![job], Pace::Background, &()).map_err(|e| e.to_string())?;
        for (source, &index) in recipe.sources.iter().enumerate().filter(|(source, _)| packer.keeps(slot, *source)) {
            let (tensor, memory) = (&sources[index as usize], Region::of(&*memory));
            let kept = KeptSource { slot, source, memory };
            let back = packer.read_back(&[kept]).map_err(|e| e.to_string())?;
            if !back[0].bit_equal(tensor) {
                return Err(format!("`{}` gives back another source", recipe.slot));
            }
            let mut values = tensor.to_f64_vec();
            if let Some(last) = values.last_mut() {
                *last += 1.0;
            }
            let other = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values);
            let pairs =
                [Comparison::Kept(kept, tensor), Comparison::Kept(kept, &other), Comparison::Tensors(tensor, &other)];
            let differ = packer.differ(&pairs).map_err(|e| e.to_string())?;
            if differ != [false, true, true] {
                return Err(format!("`{}` compares as {differ:?}", recipe.slot));
            }
            count += 1;
        }
    }
    Ok(format!("{count} sources kept"))
}
