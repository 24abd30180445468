//! The memory of the host: buffers of panels, and one scratch that all of them share.

use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};

use crate::parallel::{self, lock};
use crate::simd::Scalar;

/// Memory that is kept from one factorization to the next: panels, tiles of converted elements, scratch of QR and
/// products.
///
/// A second call of the same shape and options takes all of these from here
/// ([`TruncatedSvd::factor_with`](crate::TruncatedSvd::factor_with)). What is held never shrinks; drop the workspace to
/// free it.
#[derive(Debug)]
pub struct Workspace {
    shared: Arc<Shared>,
}

impl Workspace {
    /// Makes an empty workspace.
    pub fn new() -> Self {
        Workspace { shared: Shared::new(true) }
    }

    /// Returns the bytes that are held.
    pub fn bytes(&self) -> usize {
        let scratch = lock(&self.shared.scratch);
        scratch.bytes + self.shared.free().iter().map(|b| size_of_val(b.as_slice())).sum::<usize>()
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace::new()
    }
}

/// Host memory, and the threads that compute on it: the reference of all spaces.
///
/// A clone shares the memory.
#[derive(Debug, Clone)]
pub struct Host {
    par: Par,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whether buffers are kept for the next call or freed at once.
    keep: bool,
    free: Mutex<Vec<Vec<f64>>>,
    scratch: Mutex<Scratch>,
}

struct Scratch {
    buffer: MemBuffer,
    bytes: usize,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({} bytes)", self.bytes)
    }
}

impl Shared {
    fn new(keep: bool) -> Arc<Self> {
        let scratch = Mutex::new(Scratch { buffer: MemBuffer::new(StackReq::EMPTY), bytes: 0 });
        Arc::new(Shared { keep, free: Mutex::default(), scratch })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f64>>> {
        lock(&self.free)
    }

    /// Returns a buffer of `words` zeros: the smallest free buffer that holds them, or a new one in place of the
    /// largest that does not.
    fn take(&self, words: usize, par: Par) -> Vec<f64> {
        let mut free = self.free();
        let best = (0..free.len()).filter(|&i| free[i].len() >= words).min_by_key(|&i| free[i].len());
        if let Some(i) = best {
            let mut buffer = free.swap_remove(i);
            drop(free);
            buffer[..words].fill(0.0);
            return buffer;
        }
        let largest = (0..free.len()).max_by_key(|&i| free[i].len());
        largest.map(|i| free.swap_remove(i));
        drop(free);
        zeros(words, par)
    }
}

/// Allocates `words` zeros whose pages are present. The first write to a fresh page is slow, and slowest where several
/// threads meet it within a GEMM, so that each thread touches its own part here (`benches/NOTES.md`).
pub(crate) fn zeros(words: usize, par: Par) -> Vec<f64> {
    const PAGE: usize = 4096 / size_of::<f64>();
    const PART: usize = 32 * PAGE;
    // The compiler must not know that this is zero, or it would drop the stores.
    let touch = |part: &mut [f64]| part.iter_mut().step_by(PAGE).for_each(|word| *word = black_box(0.0));
    let mut buffer = vec![0.0; words];
    match par {
        Par::Rayon(_) if words >= 2 * PART => parallel::for_each_of(par, buffer.chunks_mut(PART).collect(), touch),
        _ => touch(&mut buffer),
    }
    buffer
}

/// Elements of `T` in a buffer that goes back to its pool when dropped.
pub(crate) struct Buffer<T> {
    /// The memory as 64-bit words, so that one pool serves both types. There are at least as many as are needed.
    words: Vec<f64>,
    len: usize,
    shared: Arc<Shared>,
    element: PhantomData<T>,
}

impl<T: Scalar> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl<T: Scalar> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl<T> Buffer<T> {
    /// Gives back the memory beyond `len` elements, unless memory is kept.
    pub(super) fn shrink(&mut self, len: usize) {
        self.len = len;
        if !self.shared.keep {
            self.words.truncate((len * size_of::<T>()).div_ceil(size_of::<f64>()));
            self.words.shrink_to_fit();
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.shared.keep && !self.words.is_empty() {
            self.shared.free().push(std::mem::take(&mut self.words));
        }
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} elements)", self.len)
    }
}

impl Host {
    /// Makes a host without memory yet. It grows to the largest request, and is freed when the last panel is dropped.
    pub fn new(par: Par) -> Self {
        Host { par, shared: Shared::new(false) }
    }

    /// Makes a host that uses the memory of `workspace`.
    #[doc(hidden)]
    pub fn within(workspace: &Workspace, par: Par) -> Self {
        Host { par, shared: workspace.shared.clone() }
    }

    /// Returns the threads to use.
    pub fn par(&self) -> Par {
        self.par
    }

    /// Returns a buffer of `len` zeros.
    pub(crate) fn buffer<T: Scalar>(&self, len: usize) -> Buffer<T> {
        let words = self.shared.take((len * size_of::<T>()).div_ceil(size_of::<f64>()), self.par);
        Buffer { words, len, shared: self.shared.clone(), element: PhantomData }
    }

    /// Frees the scratch, unless it is kept for the next factorization.
    pub(crate) fn free_scratch(&self) {
        if !self.shared.keep {
            let mut scratch = lock(&self.shared.scratch);
            *scratch = Scratch { buffer: MemBuffer::new(StackReq::EMPTY), bytes: 0 };
        }
    }

    /// Runs `f` on a stack of at least `req`. Calls must not nest.
    pub(crate) fn with_scratch<R>(&self, req: StackReq, f: impl FnOnce(&mut MemStack) -> R) -> R {
        let mut scratch = lock(&self.shared.scratch);
        let bytes = req.unaligned_bytes_required();
        if scratch.bytes < bytes {
            // The old buffer goes first, so that the peak is the larger of the two and not their sum.
            scratch.buffer = MemBuffer::new(StackReq::EMPTY);
            scratch.buffer = MemBuffer::new(req);
            scratch.bytes = bytes;
        }
        f(MemStack::new(&mut scratch.buffer))
    }
}
