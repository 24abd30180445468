//! The only place that names instruction sets.
//!
//! ```text
//!   Kernel (one generic body)  --dispatch(isa)-->  run::<S: Lanes, ..>      S: Portable | Avx2 | Avx512 | Neon
//! ```
//!
//! A kernel is written once, as an implementation of [`Kernel`], against two things: a token `S:` [`Lanes`] that
//! proves that the CPU has an instruction set, and an arithmetic type `T:` [`Scalar`] (f32 or f64) whose
//! [`Vector`] operations work on one register `T::V<S>`. [`dispatch`] picks the token. Everything that a kernel
//! calls must be `#[inline(always)]`, or it is compiled for the baseline instruction set.
//!
//! Arithmetic comes from `pulp`'s tokens. What pulp lacks is added here, a few lines per instruction set: exchange
//! of lanes at distance `D`, and loads and stores of f16 and bf16. Storage types are
//! [`Element`]s; [`convert`] changes whole slices.

pub mod convert;
mod lanes;
#[cfg(feature = "linalg")]
pub(crate) mod load;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub mod reduce;
#[cfg(feature = "linalg")]
pub(crate) mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::Cell;
use std::fmt;

pub use lanes::{F32s, F64s, Kernel, Lanes, Vector};
pub use portable::Portable;

use crate::tensor::Element;

/// What else an arithmetic type has: the operators; with the feature `linalg` also all that faer's algorithms ask for.
#[cfg(feature = "linalg")]
mod arithmetic {
    pub trait Arithmetic: faer::traits::RealField + faer::traits::num_traits::Float {}
    impl<T: faer::traits::RealField + faer::traits::num_traits::Float> Arithmetic for T {}
}
#[cfg(not(feature = "linalg"))]
mod arithmetic {
    use std::ops::{Add, AddAssign, Mul, Sub};

    pub trait Arithmetic:
        Sized + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign
    {
    }
    impl Arithmetic for f32 {}
    impl Arithmetic for f64 {}
}

/// Arithmetic types: `f32` and `f64`. Sealed through [`Element`].
pub trait Scalar: Element + Vector + arithmetic::Arithmetic {
    /// Unit roundoff times two: the spacing at 1.
    const EPSILON: f64;
    /// Largest finite value.
    const MAX: f64;
    /// Smallest positive normal value.
    const MIN_POSITIVE: f64;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    const MAX: f64 = f32::MAX as f64;
    const MIN_POSITIVE: f64 = f32::MIN_POSITIVE as f64;
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;
    const MAX: f64 = f64::MAX;
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
}

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// One lane; whatever the compiler makes of it for the baseline target.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 256 bits, 16 registers.
    Avx2,
    /// x86-64 with AVX-512 F, BW, CD, DQ, VL: 512 bits, 32 registers.
    Avx512,
    /// AArch64: 128 bits, 32 registers.
    Neon,
}

impl Isa {
    /// Those that this machine has, the best one last.
    pub fn available() -> Vec<Isa> {
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(x86::Avx2::try_new().map(|_| Isa::Avx2));
            found.extend(x86::Avx512::try_new().map(|_| Isa::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        found.extend(pulp::aarch64::Neon::try_new().map(|_| Isa::Neon));
        found
    }

    /// `"portable"`, `"avx2"`, `"avx512"` or `"neon"`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// The best one of this machine.
    fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if x86::Avx512::is_available() {
                return Isa::Avx512;
            }
            if x86::Avx2::is_available() {
                return Isa::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if pulp::aarch64::Neon::is_available() {
            return Isa::Neon;
        }
        Isa::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

thread_local! {
    /// What [`with_isa`] asked for on this thread.
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
    /// What the latest kernel of this thread was compiled for.
    static LATEST: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that kernels called from this thread use: the best one of the machine.
///
/// A parallel function reads it once, at its entry, and hands it to its tasks, so that all of them agree.
pub fn isa() -> Isa {
    FORCED.get().unwrap_or_else(Isa::best)
}

/// Runs `f` with [`isa`] fixed on this thread, for tests and benches. One that the machine lacks gives the portable
/// kernels.
#[doc(hidden)]
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(isa)));
    f()
}

/// The instruction set that the latest kernel on this thread was compiled for: proof of which path ran.
#[doc(hidden)]
pub fn latest_isa() -> Option<Isa> {
    LATEST.get()
}

/// Runs `kernel` compiled for `isa`, or for the portable one where the machine lacks it.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if isa == Isa::Avx512
            && let Some(s) = x86::Avx512::try_new()
        {
            return enter(s, kernel);
        }
        if isa == Isa::Avx2
            && let Some(s) = x86::Avx2::try_new()
        {
            return enter(s, kernel);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::Neon
        && let Some(s) = pulp::aarch64::Neon::try_new()
    {
        return enter(s, kernel);
    }
    enter(Portable, kernel)
}

#[inline]
fn enter<S: Lanes, K: Kernel>(s: S, kernel: K) -> K::Output {
    struct Entered<S, K>(S, K);
    impl<S: Lanes, K: Kernel> pulp::NullaryFnOnce for Entered<S, K> {
        type Output = K::Output;
        #[inline(always)]
        fn call(self) -> K::Output {
            self.1.run(self.0)
        }
    }
    LATEST.set(Some(S::ISA));
    s.vectorize(Entered(s, kernel))
}
