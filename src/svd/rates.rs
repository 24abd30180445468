//! The rates of a machine, by which the planner weighs methods: how much of each kind of work it does per second.

/// The rates of a machine for each kind of work, in f32; products, sketches and copies in f64 are taken at half of
/// them. The defaults are a fit to the times of the bench `svd` (`benches/NOTES.md`). Another machine shifts all of
/// them by much the same factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The rate of GEMM, in flops per second.
    pub gemm: f64,
    /// The rate of reading and packing the matrix for GEMM, in elements of `A` per second. It decides a product with
    /// few columns.
    pub pack: f64,
    /// The number of elements that stay in a cache from one product to the next.
    pub cache: f64,
    /// The rate of reading a larger matrix, in elements per second. It alone counts where panels are narrow.
    pub memory: f64,
    /// The rate of SYRK, in flops per second (`m n²` for the Gram matrix of `m × n`).
    pub syrk: f64,
    /// The rate of SYRK of an f32 panel in f64, in flops per second.
    pub wide: f64,
    /// The rate of the part of an orthonormalization with explicit Q that grows with the panel, in flops per second of
    /// the nominal `4 m l²`.
    pub orthonormalize: f64,
    /// The time of the part of an orthonormalization that is done on `l × l` matrices by one thread, in seconds per
    /// `l³`.
    pub cholesky: f64,
    /// The time of a dense SVD of an `l × l` triangle in f64, in seconds per `l³`.
    pub svd: f64,
    /// The time of dense symmetric eigenvectors, in seconds per `n³`.
    pub eigen: f64,
    /// The part of that time that grows with `n²`, in seconds per `n²`. It dominates up to an n of about a thousand.
    pub tridiagonal: f64,
    /// The rate of a sketch from an operator in memory, in elements of `A` per second.
    pub sketch: f64,
    /// The rate of the check of the input, in elements per second.
    pub scan: f64,
    /// The rate of copying into fresh memory, in elements per second.
    pub copy: f64,
    /// The seconds that an orthonormalization or a product takes besides: threads that wake, buffers.
    pub call: f64,
    /// The rate of reading a matrix that is not in memory, in bytes per second: a file in the page cache, or a good
    /// disk.
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
    /// Returns the rates of an H100 and its host, once the matrix is on the card. Tall panels are the card's, and
    /// `l × l` matrices and the way home the host's; what counts most is how often one waits for the other.
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
