//! What a machine does of each kind of work per second: what the planner weighs methods by.

/// What the machine does of each kind of work, in f32; products, sketches and copies in f64 are taken at half of it.
/// The defaults are a fit to the times of the bench `svd` on two Zen 5 cores (14 shapes × 3 spectra, f32 and f64, every
/// method): off by 8 % in the median, 17 % at nine of ten. Another machine shifts all of them by much the same factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// GEMM, flops per second.
    pub gemm: f64,
    /// Reading and packing the matrix for it, elements of `A` per second: what decides a product with few columns.
    pub pack: f64,
    /// Elements that stay in a cache from one product to the next.
    pub cache: f64,
    /// Elements of a larger matrix that are read per second: all that counts where panels are narrow.
    pub memory: f64,
    /// SYRK, flops per second (`m n²` for the Gram matrix of `m × n`).
    pub syrk: f64,
    /// SYRK of an f32 panel in f64.
    pub wide: f64,
    /// The part of an orthonormalization with explicit Q that grows with the panel, flops per second of the nominal
    /// `4 m l²`.
    pub orthonormalize: f64,
    /// What it does on `l × l` matrices, by one thread, seconds per `l³`.
    pub cholesky: f64,
    /// Dense SVD of an `l × l` triangle in f64, seconds per `l³`.
    pub svd: f64,
    /// Dense symmetric eigenvectors, seconds per `n³`.
    pub eigen: f64,
    /// And seconds per `n²`: what weighs up to a thousand.
    pub tridiagonal: f64,
    /// A sketch from an operator in memory, elements of `A` per second.
    pub sketch: f64,
    /// The check of the input, elements per second.
    pub scan: f64,
    /// Elements per second that are copied into fresh memory.
    pub copy: f64,
    /// Seconds that an orthonormalization or a product takes besides: threads that wake, buffers.
    pub call: f64,
    /// Reading a matrix that is not in memory, bytes per second: a file in the page cache, or a good disk.
    pub read: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            gemm: 444e9,
            pack: 50e9,
            cache: 8e6,
            memory: 6e9,
            syrk: 394e9,
            wide: 309e9,
            orthonormalize: 393e9,
            cholesky: 2.24e-11,
            svd: 5.35e-10,
            eigen: 2.71e-11,
            tridiagonal: 7.85e-8,
            sketch: 3e9,
            scan: 3.35e9,
            copy: 0.95e9,
            call: 2.26e-5,
            read: 2e9,
        }
    }
}

impl Rates {
    /// Of an H100 and its host, once the matrix is on the card: tall panels are the card's, `l × l` matrices and the
    /// way home the host's, and what counts most is how often one waits for the other.
    pub fn cuda() -> Self {
        Rates {
            gemm: 45e12,
            pack: 1e15,
            cache: 8e6,
            memory: 7e11,
            syrk: 25e12,
            wide: 3e12,
            orthonormalize: 9e12,
            cholesky: 4.5e-11,
            svd: 1e-9,
            eigen: 2e-11,
            tridiagonal: 3.1e-8,
            sketch: 4e11,
            scan: 6e11,
            copy: 1.3e9,
            call: 1.2e-4,
            read: 2e9,
        }
    }
}
