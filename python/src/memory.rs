//! The allocator of this module: while a large matrix is factored, large blocks have pages of their own.
//!
//! glibc takes the blocks of each thread from an arena of its own, and once a block of some size was freed, it keeps
//! freed blocks of that size (up to 32 MiB). The peak of a factorization would depend on what other calls and threads
//! have freed: up to three times the promise where PyTorch has run. Pages of their own go back to the system at once.
//! They cost time whenever they are new, so that small matrices and transforms go without them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The elements of a matrix from which on its factorization keeps to its pages.
const ELEMENTS: usize = 1 << 24;

/// How many such factorizations run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// While it lives, large blocks have pages of their own.
pub(crate) struct OwnPages(());

impl OwnPages {
    /// Begins, for a matrix of so many elements, if it is large.
    pub(crate) fn of(elements: usize) -> Option<Self> {
        (elements >= ELEMENTS).then(|| {
            RUNNING.fetch_add(1, Ordering::Relaxed);
            OwnPages(())
        })
    }
}

impl Drop for OwnPages {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(target_os = "linux")]
mod blocks {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::ptr;
    use std::sync::atomic::Ordering;

    /// The bytes from which on a block is large.
    const LARGE: usize = 1 << 20;
    /// The largest alignment of a large block; the least size of a page.
    const ALIGNED: usize = 4096;
    /// What stands in front of a large block: whether it is mapped.
    const MAPPED: usize = 1;
    const FROM_SYSTEM: usize = 0;

    /// Returns the bytes in front of a block of this layout, and the layout of both: `None` for blocks that are the
    /// system allocator's alone.
    fn framed(layout: Layout) -> Option<(usize, Layout)> {
        if layout.size() < LARGE || layout.align() > ALIGNED {
            return None;
        }
        let front = layout.align().max(16);
        Layout::from_size_align(layout.size().checked_add(front)?, front).ok().map(|all| (front, all))
    }

    /// Maps pages of zeros; null if there are none.
    fn map(size: usize) -> *mut u8 {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of no file, at an address that the system chooses, touches no memory in use.
        let pages = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
        if pages == libc::MAP_FAILED { ptr::null_mut() } else { pages.cast() }
    }

    /// Writes the kind of a block in front of it, and returns its address; null stays null.
    ///
    /// # Safety
    /// `base` is null, or has at least `front` bytes, a multiple of 16, and is aligned to 16.
    unsafe fn frame(base: *mut u8, front: usize, kind: usize) -> *mut u8 {
        if base.is_null() {
            return base;
        }
        // SAFETY: the last 16 of the `front` bytes are inside of what `base` has, and aligned.
        unsafe {
            let block = base.add(front);
            block.sub(16).cast::<usize>().write(kind);
            block
        }
    }

    /// Returns the kind of a block.
    ///
    /// # Safety
    /// [`frame`] gave the block, and it is live.
    unsafe fn kind(block: *mut u8) -> usize {
        // SAFETY: `frame` has written these bytes, and nobody else knows them.
        unsafe { block.sub(16).cast::<usize>().read() }
    }

    struct Blocks;

    impl Blocks {
        /// Allocates, with zeros if `zeroed`.
        ///
        /// # Safety
        /// The size of the layout is not zero.
        unsafe fn make(&self, layout: Layout, zeroed: bool) -> *mut u8 {
            // SAFETY: the caller's contract is that of `System`; what stands in front makes a layout larger.
            let system = |layout| unsafe { if zeroed { System.alloc_zeroed(layout) } else { System.alloc(layout) } };
            let Some((front, all)) = framed(layout) else { return system(layout) };
            let mapped = super::RUNNING.load(Ordering::Relaxed) > 0;
            let base = if mapped { map(all.size()) } else { system(all) };
            // SAFETY: the base has the size and the alignment of `all`: pages, too, are aligned to `ALIGNED`.
            unsafe { frame(base, front, if mapped { MAPPED } else { FROM_SYSTEM }) }
        }
    }

    // SAFETY: `framed` depends on the layout alone, and what stands in front of a block says how it was made, so that
    // each block is freed the way it was made. Blocks lie within memory that the system allocator or `mmap` gave to
    // nobody else, aligned as their layout says.
    unsafe impl GlobalAlloc for Blocks {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's contract.
            unsafe { self.make(layout, false) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's contract.
            unsafe { self.make(layout, true) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the block is of this layout, and the caller gives it up; it goes back as a whole, front
            // included, to where it came from.
            unsafe {
                match framed(layout) {
                    None => System.dealloc(block, layout),
                    Some((front, all)) if kind(block) == MAPPED => {
                        libc::munmap(block.sub(front).cast(), all.size());
                    }
                    Some((front, all)) => System.dealloc(block.sub(front), all),
                }
            }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: the caller promises that `size`, rounded up to the alignment, does not exceed `isize::MAX`.
            let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
            match (framed(layout), framed(new)) {
                // SAFETY: the block is the system allocator's alone, before and after.
                (None, None) => unsafe { System.realloc(block, layout, size) },
                // SAFETY: the block is of this layout; the whole of it, front included, is moved by those who made it,
                // and the front, which is the same for one alignment, comes along.
                (Some((front, old)), Some((_, all))) => unsafe {
                    let (base, kind) = (block.sub(front), kind(block));
                    let moved: *mut u8 = if kind == MAPPED {
                        let moved = libc::mremap(base.cast(), old.size(), all.size(), libc::MREMAP_MAYMOVE);
                        if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() }
                    } else {
                        System.realloc(base, old, all.size())
                    };
                    frame(moved, front, kind)
                },
                _ => {
                    // SAFETY: `new` is a valid layout of a size that is not zero, as the caller promises.
                    let moved = unsafe { self.alloc(new) };
                    if !moved.is_null() {
                        // SAFETY: both blocks are live, distinct and hold at least the smaller of the two sizes; the
                        // old one is of `layout`, and is not used from here on.
                        unsafe {
                            ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                            self.dealloc(block, layout);
                        }
                    }
                    moved
                }
            }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Blocks = Blocks;
}
