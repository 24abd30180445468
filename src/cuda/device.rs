//! An open device: driver context, streams, kernels, library handles, memory.
//!
//! cudarc looks up the driver and its libraries at run time and panics where one, or a function of one, is missing; so
//! [`Device::try_new`] asks for all of them first. Handles are owned here and not through cudarc's safe types, whose
//! destructors panic after a device was lost.
//!
//! ```text
//!   compute stream    kernels, GEMM, frees, in program order: buffers need no events
//!   transfer stream   pinned copies of matrices to the device, while the compute stream works on the one before
//! ```
//!
//! Every byte of device memory is counted against [`Device::memory_limit`]. An allocation that fails leaves everything
//! as it was; a kernel that fails poisons the context, as CUDA has it, and [`Device::shared`] then opens a new one.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use cudarc::cublas::sys as cublas;
use cudarc::cusolver::sys as cusolver;
use cudarc::driver::{DriverError, result, sys};

use super::images::{ARCHITECTURES, IMAGES};
use crate::error::{DeviceFault, Error, Result};
use crate::parallel::lock;
use crate::tensor::DType;

/// The functions of the driver that are called. They, and those of both libraries, are looked up before the first call.
const DRIVER: &[&str] = &[
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuGetErrorName",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuEventDestroy_v2",
    "cuDeviceGetDefaultMemPool",
    "cuMemPoolSetAttribute",
    "cuMemPoolTrimTo",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];
const CUBLAS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasSetStream_v2",
    "cublasSetMathMode",
    "cublasGemmEx",
    "cublasSsyrk_v2",
    "cublasDsyrk_v2",
    "cublasStrsm_v2",
    "cublasDtrsm_v2",
    "cublasSaxpy_v2",
    "cublasDaxpy_v2",
    "cublasScopy_v2",
    "cublasDcopy_v2",
];
const CUSOLVER: &[&str] = &[
    "cusolverDnCreate",
    "cusolverDnDestroy",
    "cusolverDnSetStream",
    "cusolverDnSpotrf",
    "cusolverDnDpotrf",
    "cusolverDnSgeqrf",
    "cusolverDnDgeqrf",
    "cusolverDnSorgqr",
    "cusolverDnDorgqr",
    "cusolverDnSsyevd",
    "cusolverDnDsyevd",
    "cusolverDnSgesvdj",
    "cusolverDnDgesvdj",
];

/// Bytes of a pinned buffer: their copy takes long beside the start of a copy.
const PINNED_BYTES: usize = 8 << 20;

/// A kernel, with the sizes of its parameters in bytes.
#[derive(Clone)]
struct Function {
    handle: sys::CUfunction,
    parameters: Arc<[usize]>,
}

/// An open CUDA device. Share it in an [`Arc`]; all its methods take `&self`.
pub struct Device {
    ordinal: usize,
    name: String,
    capability: (i32, i32),
    total_memory: usize,
    multiprocessors: usize,
    raw: sys::CUdevice,
    context: sys::CUcontext,
    pool: sys::CUmemoryPool,
    compute: sys::CUstream,
    transfer: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
    /// The cuBLAS handle. One thread at a time has it, because its workspace serves one call.
    blas: Mutex<cublas::cublasHandle_t>,
    solver: Mutex<cusolver::cusolverDnHandle_t>,
    tf32: AtomicBool,
    limit: AtomicUsize,
    used: AtomicUsize,
    peak: AtomicUsize,
    /// Pinned buffers that are not in use.
    pinned: Mutex<Vec<*mut u8>>,
    broken: AtomicBool,
}

// SAFETY: contexts, streams, modules and functions of the driver may be used from any thread that has the context
// current, which `enter` sees to; the library handles and the pinned buffers are behind mutexes.
unsafe impl Send for Device {}
// SAFETY: as for `Send`, any thread may use the driver's handles once the context is current, and what is not
// thread-safe (library handles, pinned buffers, functions) is behind mutexes, so that `&Device` may be shared.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({}, {:?}, sm_{}{})", self.ordinal, self.name, self.capability.0, self.capability.1)
    }
}

static SHARED: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());

impl Device {
    /// Opens device `ordinal`. It never panics: the [`DeviceFault`] says what is missing.
    ///
    /// # Errors
    /// [`Error::Device`] with one of the faults `NoKernels`, `NoDriver`, `NoLibrary`, `DriverTooOld`, `NoDevice`, or
    /// the fault that the driver's answer stands for.
    pub fn try_new(ordinal: usize) -> Result<Arc<Device>> {
        if IMAGES.is_empty() {
            return Err(Error::device(DeviceFault::NoKernels, "this build has no CUDA kernels (there was no nvcc)"));
        }
        check_libraries()?;
        let at_open = |what: &'static str| move |e: DriverError| driver_error(what, e);
        result::init().map_err(at_open("cuInit"))?;
        let count = result::device::get_count().map_err(at_open("counting devices"))?;
        if ordinal >= count as usize {
            let detail = format!("device {ordinal} of {count}");
            return Err(Error::device(DeviceFault::NoDevice, detail));
        }
        let raw = result::device::get(ordinal as c_int).map_err(at_open("opening the device"))?;
        let name = result::device::get_name(raw).map_err(at_open("the device's name"))?;
        // SAFETY: `raw` is the handle that the driver has just given for this device.
        let total_memory = unsafe { result::device::total_mem(raw) }.map_err(at_open("the device's memory"))?;
        // SAFETY: `raw` is the handle that the driver has just given for this device.
        let attribute =
            |a| unsafe { result::device::get_attribute(raw, a) }.map_err(at_open("the device's attributes"));
        let capability = (
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        if attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(Error::device(DeviceFault::DriverTooOld, "the driver has no stream-ordered allocator"));
        }
        // From here on `Device::drop` releases what was acquired.
        // SAFETY: `raw` is the handle that the driver has just given; `Device::drop` releases the context once.
        let context = unsafe { result::primary_ctx::retain(raw) }.map_err(at_open("creating a context"))?;
        let mut device = Device {
            ordinal,
            name,
            capability,
            total_memory,
            multiprocessors: multiprocessors.max(1) as usize,
            raw,
            context,
            pool: ptr::null_mut(),
            compute: ptr::null_mut(),
            transfer: ptr::null_mut(),
            modules: Vec::new(),
            functions: Mutex::default(),
            blas: Mutex::new(ptr::null_mut()),
            solver: Mutex::new(ptr::null_mut()),
            tf32: AtomicBool::new(false),
            limit: AtomicUsize::new(usize::MAX),
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            pinned: Mutex::default(),
            broken: AtomicBool::new(false),
        };
        device.enter()?;
        // Freed memory stays with the process until the device closes, or every wait would give it back to the system.
        // SAFETY: the pool is the device's own, as the driver gives it, and the threshold is 64 bits wide, as the
        // attribute asks.
        let kept = unsafe {
            device.pool = result::device::get_default_mem_pool(raw).map_err(at_open("the device's memory pool"))?;
            let mut threshold = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(device.pool, attribute, ptr::from_mut(&mut threshold).cast())
        };
        kept.map_err(at_open("the device's memory pool"))?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
        device.compute = stream().map_err(at_open("creating a stream"))?;
        device.transfer = stream().map_err(at_open("creating a stream"))?;
        for (source, image) in IMAGES {
            // SAFETY: `image` is a whole image as nvcc wrote it, which holds its own length, so that the driver reads
            // no further.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            let have = ARCHITECTURES.join(", ");
            let what = format!("loading {source}.cu, compiled for {have}, on a card of capability {capability:?}");
            let module = module.map_err(|e| driver_error(&what, e))?;
            device.modules.push(module);
        }
        let mut blas = ptr::null_mut();
        // SAFETY: `blas` is a valid place for the handle, and the context is current.
        let created = blas_status("cublasCreate", unsafe { cublas::cublasCreate_v2(&mut blas) });
        created.map_err(|e| device.blame_driver("cublasCreate", e))?;
        *lock(&device.blas) = blas;
        let (compute, mode) = (device.compute, cublas::cublasMath_t::CUBLAS_DEFAULT_MATH);
        // SAFETY: `h` is the handle that was created above; the compute stream belongs to the same context and is
        // destroyed after the handle.
        device.blas("cublasSetStream", |h| unsafe { cublas::cublasSetStream_v2(h, compute.cast()) })?;
        // SAFETY: `h` is the handle that was created above, and `mode` is a value of the enumeration.
        device.blas("cublasSetMathMode", |h| unsafe { cublas::cublasSetMathMode(h, mode) })?;
        let mut solver = ptr::null_mut();
        // SAFETY: `solver` is a valid place for the handle, and the context is current.
        let created = solver_status("cusolverDnCreate", unsafe { cusolver::cusolverDnCreate(&mut solver) });
        created.map_err(|e| device.blame_driver("cusolverDnCreate", e))?;
        *lock(&device.solver) = solver;
        // SAFETY: `h` is the handle that was created above; the compute stream belongs to the same context and is
        // destroyed after the handle.
        device.solver("cusolverDnSetStream", |h| unsafe { cusolver::cusolverDnSetStream(h, compute.cast()) })?;
        Ok(Arc::new(device))
    }

    /// Returns device `ordinal`, opened once for the whole process, and again after it broke.
    ///
    /// # Errors
    /// Those of [`try_new`](Self::try_new).
    pub fn shared(ordinal: usize) -> Result<Arc<Device>> {
        let mut open = lock(&SHARED);
        open.retain(|d| !d.is_broken());
        if let Some(device) = open.iter().find(|d| d.ordinal == ordinal) {
            return Ok(device.clone());
        }
        let device = Device::try_new(ordinal)?;
        open.push(device.clone());
        Ok(device)
    }

    /// Forgets the shared devices. Each closes when its last user drops it.
    #[doc(hidden)]
    pub fn close_shared() {
        lock(&SHARED).clear();
    }

    /// Returns the number of the device.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Returns the name of the device, such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the compute capability, such as (9, 0).
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Returns the bytes of device memory.
    pub fn total_memory(&self) -> usize {
        self.total_memory
    }

    /// Returns the number of multiprocessors: at least as many blocks of threads run at the same time.
    pub(super) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Returns the bytes of device memory that this process may take.
    pub fn memory_limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets [`memory_limit`](Self::memory_limit): matrices that do not fit stay on the host and are streamed.
    pub fn set_memory_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes that this process may still take.
    pub(super) fn free_memory(&self) -> usize {
        self.memory_limit().min(self.total_memory()).saturating_sub(self.used_memory())
    }

    /// Returns the bytes that are allocated now.
    pub fn used_memory(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the most bytes that were allocated at a time since the device was opened or this was last called.
    #[doc(hidden)]
    pub fn take_peak_memory(&self) -> usize {
        self.peak.swap(self.used_memory(), Ordering::Relaxed)
    }

    /// Allows products of f32 panels in TF32 (10 bits of mantissa). It is off by default, because a singular value is
    /// then good to 1e-3 only.
    pub fn allow_tf32(&self, allow: bool) {
        self.tf32.store(allow, Ordering::Relaxed);
    }

    pub(super) fn tf32_allowed(&self) -> bool {
        self.tf32.load(Ordering::Relaxed)
    }

    /// Tells whether a kernel failed or the device went away. Nothing more can be done with this context then.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained by `try_new` and released by `drop`, so that it is valid while `self` lives.
        self.check("entering the context", unsafe { result::ctx::set_current(self.context) })
    }

    /// Turns an error of the driver into one of this crate, and remembers a fault that poisons the context.
    pub(super) fn check<T>(&self, what: &str, answer: std::result::Result<T, DriverError>) -> Result<T> {
        answer.map_err(|e| self.remember(driver_error(what, e)))
    }

    fn remember(&self, error: Error) -> Error {
        if let Error::Device { fault: DeviceFault::Launch | DeviceFault::Lost, .. } = error {
            self.broken.store(true, Ordering::Relaxed);
        }
        error
    }

    /// Calls cuBLAS with the handle, which is locked for the call.
    pub(super) fn blas(
        &self,
        what: &'static str,
        call: impl FnOnce(cublas::cublasHandle_t) -> cublas::cublasStatus_t,
    ) -> Result<()> {
        self.enter()?;
        let handle = lock(&self.blas);
        blas_status(what, call(*handle)).map_err(|e| self.blame_driver(what, e))
    }

    /// Calls cuSOLVER with the handle, which is locked for the call.
    pub(super) fn solver(
        &self,
        what: &'static str,
        call: impl FnOnce(cusolver::cusolverDnHandle_t) -> cusolver::cusolverStatus_t,
    ) -> Result<()> {
        self.enter()?;
        let handle = lock(&self.solver);
        solver_status(what, call(*handle)).map_err(|e| self.blame_driver(what, e))
    }

    /// Finds the cause of an error of a library: that of the driver, if a kernel or the device failed.
    fn blame_driver(&self, what: &str, error: Error) -> Error {
        match self.synchronize() {
            Err(Error::Device { fault, detail }) if fault != DeviceFault::Other => {
                Error::device(fault, format_args!("{what}: {detail}"))
            }
            _ => self.remember(error),
        }
    }

    /// Waits for the compute stream. Failures of kernels surface here.
    ///
    /// # Errors
    /// [`Error::Device`] with the fault of a kernel that failed, or of the device.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is destroyed by `drop` only, so that it is valid while `self` lives.
        self.check("waiting for the device", unsafe { result::stream::synchronize(self.compute) })
    }

    /// Measures how many milliseconds the compute stream takes for what `work` enqueues, by the device's own clock.
    ///
    /// # Errors
    /// The error of `work`, and [`Error::Device`].
    #[doc(hidden)]
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let (start, end) = (Event::timed(self)?, Event::timed(self)?);
        start.record(self.compute)?;
        work()?;
        end.record(self.compute)?;
        end.wait()?;
        // SAFETY: both events are alive, were created with timing and recorded, and the later one has been waited for.
        self.check("reading the clock", unsafe { result::event::elapsed(start.raw, end.raw) })
    }

    /// Starts a kernel on the compute stream.
    pub(super) fn launch(&self, kernel: &str, shape: Launch, arguments: &mut Arguments) -> Result<()> {
        if shape.grid.0 == 0 || shape.grid.1 == 0 {
            return Ok(());
        }
        self.enter()?;
        let function = self.function(kernel)?;
        debug_assert_eq!(*function.parameters, arguments.sizes[..arguments.count], "parameters of {kernel}");
        let grid =
            |n: usize| c_uint::try_from(n).map_err(|_| Error::TooLarge { shape: vec![shape.grid.0, shape.grid.1] });
        let (grid, (x, y)) = ((grid(shape.grid.0)?, grid(shape.grid.1)?, 1), shape.block);
        let mut pointers = arguments.pointers();
        // SAFETY: `arguments` has as many parameters of as many bytes as the kernel takes, as the debug assertion above
        // and tests/cuda.rs check for each kernel, and `pointers` points to them through the call. The callers in this
        // module pass buffers as long as the comment of the kernel asks for.
        let done = unsafe {
            result::launch_kernel(function.handle, grid, (x, y, 1), shape.shared as c_uint, self.compute, &mut pointers)
        };
        self.check(kernel, done)
    }

    /// Returns a kernel by its name, and loads the image that holds it at its first use.
    fn function(&self, kernel: &str) -> Result<Function> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let name =
            CString::new(kernel).map_err(|_| Error::device(DeviceFault::NoKernels, "a kernel's name with a NUL"))?;
        let mut found = None;
        for &module in &self.modules {
            // SAFETY: `module` was loaded in this context and is unloaded by `drop` only.
            match unsafe { result::module::get_function(module, name.clone()) } {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                answer => {
                    found = Some(self.check(kernel, answer)?);
                    break;
                }
            }
        }
        let Some(handle) = found else {
            return Err(Error::device(DeviceFault::NoKernels, format_args!("this build has no kernel {kernel}")));
        };
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: `handle` is a function of a module that is loaded, and both places for the answers live through
            // the call.
            match unsafe { sys::cuFuncGetParamInfo(handle, parameters.len(), &mut offset, &mut size) }.result() {
                // The first index without a parameter ends the list.
                Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE)) => break,
                answer => self.check(kernel, answer)?,
            }
            parameters.push(size);
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: `handle` is a function of a module that is loaded. 96 KiB is what the largest SRHT takes, and every
        // card from sm_80 on has it.
        let set = unsafe { result::function::set_function_attribute(handle, attribute, 96 << 10) };
        self.check(kernel, set)?;
        let function = Function { handle, parameters: parameters.into() };
        functions.insert(kernel.to_owned(), function.clone());
        Ok(function)
    }

    /// Allocates device memory for `len` elements, contents unspecified.
    pub(super) fn alloc<E: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<E>> {
        self.enter()?;
        let bytes = len.checked_mul(size_of::<E>()).ok_or_else(|| Error::TooLarge { shape: vec![len] })?.max(1);
        let limit = self.memory_limit();
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let release = |e| {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            e
        };
        if used > limit {
            let detail = format!("{bytes} bytes more would pass the limit of {limit} (in use: {})", used - bytes);
            return Err(release(Error::device(DeviceFault::OutOfMemory, detail)));
        }
        // SAFETY: the stream belongs to this context, which is current, and lives as long as `self`.
        let at = unsafe { result::malloc_async(self.compute, bytes) };
        let at = self.check(&format!("allocating {bytes} bytes"), at).map_err(release)?;
        self.peak.fetch_max(used, Ordering::Relaxed);
        Ok(Buffer { at, len, bytes, device: self.clone(), element: PhantomData })
    }

    /// Allocates device memory of zeros.
    pub(super) fn zeros<E: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<E>> {
        let buffer = self.alloc(len)?;
        // SAFETY: the buffer has `bytes` bytes from `at` on; zero bytes are a value of every `E: Pod`.
        let done = unsafe { result::memset_d8_async(buffer.at, 0, buffer.bytes, self.compute) };
        self.check("clearing a buffer", done)?;
        Ok(buffer)
    }

    /// Copies `data` to new device memory. It returns when `data` has been read.
    pub(super) fn upload<E: Pod>(self: &Arc<Self>, data: &[E]) -> Result<Buffer<E>> {
        let buffer = self.alloc(data.len())?;
        // SAFETY: the buffer is as long as the data; the copy from pageable memory stages them before it returns.
        let done = unsafe { result::memcpy_htod_async(buffer.at, data, self.compute) };
        self.check("copying to the device", done)?;
        Ok(buffer)
    }

    /// Writes `data` to a buffer, from element `offset` on. Pinned data must stay unchanged until the compute stream
    /// has passed the copy.
    pub(super) fn write<E: Pod>(&self, buffer: &Buffer<E>, offset: usize, data: &[E]) -> Result<()> {
        debug_assert!(offset + data.len() <= buffer.len);
        self.enter()?;
        // SAFETY: the callers name elements within the buffer, which the debug assertion checks. Pageable data are
        // staged before the call returns; callers with pinned data wait before they change them.
        let done = unsafe { result::memcpy_htod_async(buffer.address(offset), data, self.compute) };
        self.check("copying to the device", done)
    }

    /// Enqueues a copy from pinned memory on the transfer stream. The caller must leave `data` unchanged until the copy
    /// has ended.
    pub(super) fn transfer<E: Pod>(&self, to: u64, data: &[E]) -> Result<()> {
        self.enter()?;
        // SAFETY: the callers pass an address within a live buffer that has room for the data, and keep both until the
        // event that they record behind the copy.
        let done = unsafe { result::memcpy_htod_async(to, data, self.transfer) };
        self.check("copying to the device", done)
    }

    /// Copies the whole of a buffer into `to`, from its element `offset` on, where there must be room for it.
    pub(super) fn copy<E: Pod>(&self, from: &Buffer<E>, to: &Buffer<E>, offset: usize) -> Result<()> {
        debug_assert!(offset + from.len <= to.len);
        self.enter()?;
        // SAFETY: `from` has `len` elements. The callers pass another buffer with room for them from `offset` on, which
        // the debug assertion checks.
        let done =
            unsafe { result::memcpy_dtod_async(to.address(offset), from.at, from.len * size_of::<E>(), self.compute) };
        self.check("copying on the device", done)
    }

    /// Copies elements of a buffer from `offset` on to the host, after all that was enqueued before.
    pub(super) fn download<E: Pod>(&self, buffer: &Buffer<E>, offset: usize, dst: &mut [E]) -> Result<()> {
        debug_assert!(offset + dst.len() <= buffer.len);
        self.enter()?;
        // SAFETY: the callers name elements within the buffer, which the debug assertion checks, and `synchronize`
        // waits for the copy before the borrow of `dst` ends.
        let done = unsafe { result::memcpy_dtoh_async(dst, buffer.address(offset), self.compute) };
        self.check("copying to the host", done)?;
        self.synchronize()
    }

    /// Returns a pinned buffer of `PINNED_BYTES`.
    pub(super) fn pinned(self: &Arc<Self>) -> Result<Pinned> {
        self.enter()?;
        let kept = lock(&self.pinned).pop();
        let at = match kept {
            Some(at) => at,
            // SAFETY: the context is current. The memory goes back to the stock when `Pinned` is dropped, and `drop`
            // frees it once.
            None => self.check("pinning host memory", unsafe { result::malloc_host(PINNED_BYTES, 0) })?.cast(),
        };
        Ok(Pinned { at, device: self.clone() })
    }

    pub(super) fn compute_stream(&self) -> sys::CUstream {
        self.compute
    }

    pub(super) fn transfer_stream(&self) -> sys::CUstream {
        self.transfer
    }

    /// Makes what is enqueued on `later` from now on wait for what is enqueued on `earlier` up to now.
    pub(super) fn order(&self, earlier: sys::CUstream, later: sys::CUstream) -> Result<()> {
        let event = Event::new(self)?;
        event.record(earlier)?;
        event.holds(later)
    }
}

impl Drop for Device {
    /// Releases everything in the reverse order. Errors come from a context that is gone, and nothing is left to do
    /// about them.
    fn drop(&mut self) {
        // SAFETY: all handles were created by this device, none is null where it is passed, and each is released once,
        // after the streams came to rest; nobody else can use them, since this is the last owner.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            for stream in [self.compute, self.transfer].into_iter().filter(|s| !s.is_null()) {
                let _ = result::stream::synchronize(stream);
            }
            let (blas, solver) = (*lock(&self.blas), *lock(&self.solver));
            if !solver.is_null() {
                let _ = cusolver::cusolverDnDestroy(solver);
            }
            if !blas.is_null() {
                let _ = cublas::cublasDestroy_v2(blas);
            }
            for at in lock(&self.pinned).drain(..) {
                let _ = result::free_host(at.cast());
            }
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
            for stream in [self.compute, self.transfer].into_iter().filter(|s| !s.is_null()) {
                let _ = result::stream::destroy(stream);
            }
            if !self.pool.is_null() {
                let _ = result::mem_pool::trim_to(self.pool, 0);
            }
            let _ = result::primary_ctx::release(self.raw);
        }
    }
}

/// Checks that the driver and both libraries are there, and have all functions that are called.
fn check_libraries() -> Result<()> {
    // SAFETY: loading a library runs its constructors. The libraries are NVIDIA's, or what the owner of the machine put
    // in their place.
    let present = unsafe { [sys::is_culib_present(), cublas::is_culib_present(), cusolver::is_culib_present()] };
    if !present[0] {
        return Err(Error::device(DeviceFault::NoDriver, "no CUDA driver (libcuda) on this machine"));
    }
    for (present, name) in [(present[1], "libcublas"), (present[2], "libcusolver")] {
        if !present {
            return Err(Error::device(DeviceFault::NoLibrary, format_args!("{name} is not on this machine")));
        }
    }
    // SAFETY: all three were found above, so that loading does not panic; symbols are looked up as untyped addresses
    // and not called.
    let missing = unsafe {
        let (driver, blas, solver) = (sys::culib(), cublas::culib(), cusolver::culib());
        let driver = DRIVER.iter().find(|name| driver.get::<*mut c_void>(name.as_bytes()).is_err());
        let blas = CUBLAS.iter().find(|name| blas.get::<*mut c_void>(name.as_bytes()).is_err());
        let solver = CUSOLVER.iter().find(|name| solver.get::<*mut c_void>(name.as_bytes()).is_err());
        driver.map(|name| (DeviceFault::DriverTooOld, "the driver", name)).or(blas
            .map(|name| (DeviceFault::NoLibrary, "libcublas", name))
            .or(solver.map(|name| (DeviceFault::NoLibrary, "libcusolver", name))))
    };
    match missing {
        Some((fault, who, name)) => Err(Error::device(fault, format_args!("{who} has no {name}"))),
        None => Ok(()),
    }
}

/// Turns the answer of the driver into an error, with its name and number.
fn driver_error(what: &str, error: DriverError) -> Error {
    use sys::CUresult as R;
    let fault = match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => DeviceFault::OutOfMemory,
        R::CUDA_ERROR_NO_DEVICE | R::CUDA_ERROR_INVALID_DEVICE => DeviceFault::NoDevice,
        R::CUDA_ERROR_STUB_LIBRARY => DeviceFault::NoDriver,
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | R::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => DeviceFault::DriverTooOld,
        R::CUDA_ERROR_NO_BINARY_FOR_GPU | R::CUDA_ERROR_INVALID_IMAGE | R::CUDA_ERROR_INVALID_PTX => {
            DeviceFault::NoKernels
        }
        R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_ASSERT
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_INVALID_PC
        | R::CUDA_ERROR_LAUNCH_FAILED => DeviceFault::Launch,
        R::CUDA_ERROR_DEINITIALIZED
        | R::CUDA_ERROR_DEVICE_UNAVAILABLE
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | R::CUDA_ERROR_INVALID_CONTEXT
        | R::CUDA_ERROR_SYSTEM_NOT_READY
        | R::CUDA_ERROR_UNKNOWN => DeviceFault::Lost,
        _ => DeviceFault::Other,
    };
    // The name comes from the driver, which is present, because it has just answered.
    let name = error.error_name().ok().and_then(|name| name.to_str().ok()).unwrap_or("unknown error");
    Error::device(fault, format_args!("{what}: {name} ({})", error.0 as u32))
}

fn blas_status(what: &'static str, status: cublas::cublasStatus_t) -> Result<()> {
    use cublas::cublasStatus_t as S;
    let fault = match status {
        S::CUBLAS_STATUS_SUCCESS => return Ok(()),
        S::CUBLAS_STATUS_ALLOC_FAILED => DeviceFault::OutOfMemory,
        S::CUBLAS_STATUS_EXECUTION_FAILED => DeviceFault::Launch,
        _ => DeviceFault::Other,
    };
    Err(Error::device(fault, format_args!("{what}: {status:?}")))
}

fn solver_status(what: &'static str, status: cusolver::cusolverStatus_t) -> Result<()> {
    use cusolver::cusolverStatus_t as S;
    let fault = match status {
        S::CUSOLVER_STATUS_SUCCESS => return Ok(()),
        S::CUSOLVER_STATUS_ALLOC_FAILED => DeviceFault::OutOfMemory,
        S::CUSOLVER_STATUS_EXECUTION_FAILED => DeviceFault::Launch,
        _ => DeviceFault::Other,
    };
    Err(Error::device(fault, format_args!("{what}: {status:?}")))
}

/// The shape of a launch: blocks, threads of a block, and shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) grid: (usize, usize),
    pub(super) block: (u32, u32),
    /// Bytes of dynamic shared memory.
    pub(super) shared: usize,
}

impl Launch {
    /// Makes a launch of one thread for each of `len` elements, 256 to a block.
    pub(super) fn elements(len: usize) -> Self {
        Launch { grid: (len.div_ceil(256), 1), block: (256, 1), shared: 0 }
    }
}

/// Returns the bytes of the type that a kernel computes in for elements of `dtype`: `Arithmetic` of kernels/dtype.cuh.
pub(super) fn arithmetic_bytes(dtype: DType) -> usize {
    if dtype == DType::F64 { 8 } else { 4 }
}

/// The most blocks in the second dimension of a grid.
pub(super) const GRID_Y: usize = 65535;

/// The parameters of a kernel, at most 8 bytes each.
#[derive(Default)]
pub(super) struct Arguments {
    words: [u64; 12],
    sizes: [usize; 12],
    count: usize,
}

impl Arguments {
    pub(super) fn scalar<S: Pod>(mut self, value: S) -> Self {
        let bytes = bytemuck::bytes_of(&value);
        bytemuck::cast_slice_mut::<u64, u8>(&mut self.words)[8 * self.count..][..bytes.len()].copy_from_slice(bytes);
        self.sizes[self.count] = bytes.len();
        self.count += 1;
        self
    }

    /// Adds a number of elements or a stride, which is `i64` in the kernels.
    pub(super) fn size(self, value: usize) -> Self {
        self.scalar(value as i64)
    }

    pub(super) fn pointer(self, at: sys::CUdeviceptr) -> Self {
        self.scalar(at)
    }

    fn pointers(&mut self) -> Vec<*mut c_void> {
        self.words[..self.count].iter_mut().map(|w| ptr::from_mut(w).cast()).collect()
    }
}

/// Device memory of `len` elements. It is freed on the compute stream, after all that uses it.
#[derive(Debug)]
pub(super) struct Buffer<E> {
    at: sys::CUdeviceptr,
    len: usize,
    bytes: usize,
    device: Arc<Device>,
    element: PhantomData<E>,
}

impl<E: Pod> Buffer<E> {
    /// Returns the address of element `offset`.
    pub(super) fn address(&self, offset: usize) -> sys::CUdeviceptr {
        debug_assert!(offset <= self.len);
        self.at + (offset * size_of::<E>()) as u64
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Turns the buffer into one of bytes, with the same memory.
    pub(super) fn into_bytes(self) -> Buffer<u8> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is wrapped in `ManuallyDrop` and not used again, so that the device moves out of it exactly
        // once.
        let device = unsafe { ptr::read(&this.device) };
        Buffer { at: this.at, len: this.bytes, bytes: this.bytes, device, element: PhantomData }
    }
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        self.device.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.device.enter().is_ok() {
            // SAFETY: `at` was allocated on this stream by `alloc` and is freed here only, behind all that was enqueued
            // with it. An error here is that of an earlier kernel.
            let _ = unsafe { result::free_async(self.at, self.device.compute) };
        }
    }
}

/// Pinned host memory, which goes back to the device's stock when dropped.
pub(super) struct Pinned {
    at: *mut u8,
    device: Arc<Device>,
}

// SAFETY: the memory belongs to the page-locked heap and to no thread; this value is its only owner, and the device
// behind the `Arc` is `Send` and `Sync`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Returns how many elements fit.
    pub(super) const fn capacity<E>() -> usize {
        PINNED_BYTES / size_of::<E>()
    }

    pub(super) fn as_slice_mut<E: Pod>(&mut self, len: usize) -> &mut [E] {
        assert!(len <= Self::capacity::<E>());
        // SAFETY: `at` is page-aligned memory of `PINNED_BYTES` that this value owns, and the assertion keeps the slice
        // within it; any bytes are an `E: Pod`. The callers wait for copies from or to it before they borrow it again.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        lock(&self.device.pinned).push(self.at);
    }
}

/// An event: a point in a stream.
pub(super) struct Event<'d> {
    raw: sys::CUevent,
    device: &'d Device,
}

impl<'d> Event<'d> {
    pub(super) fn new(device: &'d Device) -> Result<Self> {
        Event::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn timed(device: &'d Device) -> Result<Self> {
        Event::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(device: &'d Device, flags: sys::CUevent_flags) -> Result<Self> {
        device.enter()?;
        let raw = device.check("creating an event", result::event::create(flags))?;
        Ok(Event { raw, device })
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: the event lives as long as `self`; callers pass one of the two streams of its device, hence of one
        // context.
        self.device.check("recording an event", unsafe { result::event::record(self.raw, stream) })
    }

    /// Makes what is enqueued on `stream` from now on wait for the event as it was recorded last.
    pub(super) fn holds(&self, stream: sys::CUstream) -> Result<()> {
        let how = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live through the call; the driver keeps a destroyed event as long as a stream waits
        // for it.
        let done = unsafe { result::stream::wait_event(stream, self.raw, how) };
        self.device.check("ordering streams", done)
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives as long as `self`; one that was never recorded counts as over.
        self.device.check("waiting for an event", unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: the event was created by `with`, and only this value destroys it, once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}
