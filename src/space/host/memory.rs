//! The memory of the host: buffers of panels, and one scratch that all of them share.

use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faer::Par;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use rayon::prelude::*;

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
    /// An empty one.
    pub fn new() -> Self {
        Workspace { shared: Shared::new(true) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many zeros: the smallest free buffer that holds them, or a new one in place of the largest that does not.
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

/// So many zeros, in pages that are there: a page that is fresh takes 1 to 2 µs where one thread writes on it, half of
/// that where two do, each on its own part, and 8 where they meet it within a GEMM (G of 768 × 768 on fresh pages: 13
/// ms instead of 4.8). On pages that are there this takes nothing.
pub(crate) fn zeros(words: usize, par: Par) -> Vec<f64> {
    const PAGE: usize = 4096 / size_of::<f64>();
    const PART: usize = 32 * PAGE;
    // A zero that the compiler does not know of: the stores would go otherwise.
    let touch = |part: &mut [f64]| part.iter_mut().step_by(PAGE).for_each(|word| *word = black_box(0.0));
    let mut buffer = vec![0.0; words];
    match par {
        Par::Rayon(_) if words >= 2 * PART => buffer.par_chunks_mut(PART).for_each(touch),
        _ => touch(&mut buffer),
    }
    buffer
}

/// Elements of `T` that go back to where they came from.
pub(crate) struct Buffer<T> {
    /// As 64-bit words, so that one pool serves both types; at least as many as are needed.
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
    /// Gives back what is beyond `len` elements, unless it is kept.
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
    /// Without memory yet: it grows to the largest request, and goes when the last panel does.
    pub fn new(par: Par) -> Self {
        Host { par, shared: Shared::new(false) }
    }

    /// With the memory of `workspace`.
    pub fn within(workspace: &Workspace, par: Par) -> Self {
        Host { par, shared: workspace.shared.clone() }
    }

    /// The threads to use.
    pub fn par(&self) -> Par {
        self.par
    }

    /// `len` zeros.
    pub(crate) fn buffer<T: Scalar>(&self, len: usize) -> Buffer<T> {
        let words = self.shared.take((len * size_of::<T>()).div_ceil(size_of::<f64>()), self.par);
        Buffer { words, len, shared: self.shared.clone(), element: PhantomData }
    }

    /// Frees the scratch, unless it is kept for the next factorization.
    pub(crate) fn free_scratch(&self) {
        if !self.shared.keep {
            let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            *scratch = Scratch { buffer: MemBuffer::new(StackReq::EMPTY), bytes: 0 };
        }
    }

    /// Runs `f` on a stack of at least `req`. Calls do not nest.
    pub(crate) fn with_scratch<R>(&self, req: StackReq, f: impl FnOnce(&mut MemStack) -> R) -> R {
        let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
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
