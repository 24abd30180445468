//! NEON: exchange of lanes, and f16 through `half`, which uses the CPU's conversion where it has one.

use half::f16;
use half::slice::HalfFloatSliceExt;
use pulp::aarch64::Neon;
use pulp::{cast, f32x4, f64x2};

use super::isa::Isa;
use super::lanes::Lanes;

impl Lanes for Neon {
    type Simd = Neon;
    const ISA: Isa = Isa::Neon;
    const ADDS_BESIDE_FMAS: bool = false;

    #[inline(always)]
    fn simd(self) -> Neon {
        self
    }
    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output {
        Neon::vectorize(self, f)
    }
    #[inline(always)]
    fn xor_f32s<const D: usize>(self, a: f32x4) -> f32x4 {
        let a = cast!(a);
        cast!(match D {
            1 => self.neon.vrev64q_f32(a),
            _ => self.neon.vextq_f32::<2>(a, a),
        })
    }
    #[inline(always)]
    fn xor_f64s<const D: usize>(self, a: f64x2) -> f64x2 {
        let a = cast!(a);
        cast!(self.neon.vextq_f64::<1>(a, a))
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> f32x4 {
        let mut wide = [0f32; 4];
        // SAFETY: guaranteed by this function's contract: 4 f16 are readable, one for each lane of f32.
        unsafe { std::slice::from_raw_parts(src, 4) }.convert_to_f32_slice(&mut wide);
        cast!(wide)
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut f16, a: f32x4) {
        let wide: [f32; 4] = cast!(a);
        // SAFETY: guaranteed by this function's contract: 4 f16 are writable and initialized, one for each lane of f32,
        // and the slice lives for this statement alone.
        unsafe { std::slice::from_raw_parts_mut(dst, 4) }.convert_from_f32_slice(&wide);
    }
}
