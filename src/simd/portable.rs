//! The portable instruction set: registers of one lane, so that there is nothing to exchange.

use half::f16;

use super::isa::Isa;
use super::lanes::{F32s, F64s, Lanes};

/// The token that every machine has.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

impl Lanes for Portable {
    type Simd = pulp::Scalar;
    const ISA: Isa = Isa::Portable;
    const ADDS_BESIDE_FMAS: bool = false;

    #[inline(always)]
    fn simd(self) -> pulp::Scalar {
        pulp::Scalar
    }
    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output {
        f.call()
    }
    #[inline(always)]
    fn xor_f32s<const D: usize>(self, a: F32s<Self>) -> F32s<Self> {
        a
    }
    #[inline(always)]
    fn xor_f64s<const D: usize>(self, a: F64s<Self>) -> F64s<Self> {
        a
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> f32 {
        // SAFETY: guaranteed by this function's contract: one f16 is readable, for the one lane.
        unsafe { *src }.to_f32()
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut f16, a: f32) {
        // SAFETY: guaranteed by this function's contract: one f16 is writable, for the one lane.
        unsafe { *dst = f16::from_f32(a) };
    }
}
