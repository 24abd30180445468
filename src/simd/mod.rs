//! Instruction sets: the only place that names them.
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
//! of lanes at distance `D`, and loads and stores of f16 and bf16. Storage types are [`Element`]s; [`convert`] changes
//! whole slices.

#[doc(hidden)]
pub mod convert;
mod isa;
mod lanes;
#[cfg(feature = "linalg")]
pub(crate) mod load;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[doc(hidden)]
pub mod reduce;
#[cfg(feature = "linalg")]
pub(crate) mod tile;
#[cfg(feature = "linalg")]
pub(crate) mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::Cell;

pub use isa::Isa;
#[doc(hidden)]
pub use lanes::{F32s, F64s, Kernel, Lanes, Vector};
#[doc(hidden)]
pub use portable::Portable;

use crate::tensor::Element;

/// The operators of an arithmetic type and, with the feature `linalg`, all that faer's algorithms need of it.
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

/// The arithmetic types `f32` and `f64`. The trait is sealed through [`Element`].
pub trait Scalar: Element + Vector + arithmetic::Arithmetic {
    /// The distance from 1 to the next larger value: twice the unit roundoff.
    const EPSILON: f64;
    /// The largest finite value.
    const MAX: f64;
    /// The smallest positive normal value.
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

impl Isa {
    /// Returns the instruction sets that this machine has, the best one last.
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

    /// Returns the best instruction set that this machine has.
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

thread_local! {
    /// The instruction set that [`with_isa`] fixed on this thread.
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
    /// The instruction set that the latest kernel of this thread was compiled for.
    static LATEST: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// Returns the instruction set that kernels called from this thread use: the best one of the machine.
///
/// A parallel function reads it once, at its entry, and hands it to its tasks, so that all of them agree.
pub fn isa() -> Isa {
    FORCED.get().unwrap_or_else(Isa::best)
}

/// Runs `f` with [`isa`] fixed on this thread, for tests and benches. If the machine lacks the instruction set, the
/// portable kernels run.
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

/// Returns the instruction set that the latest kernel on this thread was compiled for, as proof of which path ran.
#[doc(hidden)]
pub fn latest_isa() -> Option<Isa> {
    LATEST.get()
}

/// Runs `kernel` compiled for `isa`, or the portable kernel if the machine lacks `isa`.
#[inline]
#[doc(hidden)]
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

/// Runs `kernel` compiled for the instruction set of `s`, and notes that it did.
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
