//! Kernels of our own on a device: compiled once, loaded once, launched with addresses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    driver::{Args, Context, Function, Launch, Module, Span, Stream},
    error::CudaError,
    kernels::{Param, Spec},
    nvrtc::{Compiler, CubinCache, Source},
};

/// The kernels of a device.
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    compiler: Compiler,
    cache: CubinCache,
    arch: String,
    modules: Mutex<HashMap<Source, Module>>,
}

/// What a node of a plan works on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory<'a> {
    /// Operands.
    pub inputs: &'a [Option<Span>],
    /// Results.
    pub outputs: &'a [Span],
    /// Scratch memory.
    pub scratch: Option<Span>,
    /// Where an index out of range is reported, and the node to be named then.
    pub report: Option<(Span, usize)>,
}

/// One launch but for its addresses.
#[derive(Clone, Debug)]
pub struct Step {
    function: Function,
    launch: Launch,
    params: Arc<[Param]>,
}

impl Kernels {
    /// The kernels of `context`, compiled by `compiler` and kept in `cache`.
    pub fn new(context: &Context, compiler: Compiler, cache: CubinCache) -> Kernels {
        let arch = context.info().arch();
        let inner = Inner { context: context.clone(), compiler, cache, arch, modules: Mutex::default() };
        Kernels { inner: Arc::new(inner) }
    }

    /// The compiler.
    pub fn compiler(&self) -> &Compiler {
        &self.inner.compiler
    }

    /// The module of a source.
    ///
    /// # Errors
    /// When it does not compile or load.
    pub fn module(&self, source: &Source) -> Result<Module, CudaError> {
        let inner = &self.inner;
        let known = |inner: &Inner| inner.modules.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned();
        if let Some(module) = known(inner) {
            return Ok(module);
        }
        // Compiled without the lock, so that several threads compile several sources.
        let cubin = inner.cache.cubin(&inner.compiler, source, &inner.arch)?;
        let module = Module::load(&inner.context, &cubin)?;
        let mut modules = inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(modules.entry(source.clone()).or_insert(module).clone())
    }

    /// Compiles sources on several threads ahead of their use.
    ///
    /// # Errors
    /// The first that does not compile.
    pub fn warm(&self, sources: &[Source]) -> Result<(), CudaError> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16).min(sources.len().max(1));
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<(), CudaError> {
            while let Some(source) = sources.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                self.module(source)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            all.into_iter().try_for_each(|t| t.join().unwrap_or(Err(CudaError::Forked)))
        })
    }

    /// A launch, ready to be given addresses.
    ///
    /// # Errors
    /// When the kernel does not compile or load.
    pub fn step(&self, spec: &Spec) -> Result<Step, CudaError> {
        let function = self.module(&spec.source)?.function(spec.entry, spec.launch.shared as usize)?;
        Ok(Step { function, launch: spec.launch, params: spec.params.clone().into() })
    }
}

impl Step {
    /// Puts the launch into the stream.
    ///
    /// # Errors
    /// When memory that it needs is missing, or it does not fit the device.
    pub fn launch(&self, stream: &Stream, memory: &Memory<'_>) -> Result<(), CudaError> {
        let mut args = Args::new();
        for param in self.params.iter() {
            let (span, offset) = match param {
                Param::In(i, offset) => (memory.inputs.get(*i).copied().flatten(), *offset),
                Param::Out(i, offset) => (memory.outputs.get(*i).copied(), *offset),
                Param::Scratch(offset) => (memory.scratch, *offset),
                Param::Report => {
                    let (address, node) = memory.report.map_or((0, 0), |(span, node)| (span.address(), node));
                    args.raw(&[address.to_ne_bytes(), (node as u64).to_ne_bytes()].concat());
                    continue;
                }
                Param::Null => {
                    args.null();
                    continue;
                }
                Param::Bytes(bytes) => {
                    args.raw(bytes);
                    continue;
                }
            };
            let span = span.ok_or(CudaError::Region { found: 0, needed: offset.max(1) })?;
            args.region(span.part(offset, span.len().saturating_sub(offset))?);
        }
        self.function.launch(stream, self.launch, &mut args)
    }
}
