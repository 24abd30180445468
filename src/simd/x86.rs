//! AVX2 and AVX-512: exchange of lanes, and loads and stores of half precision.

use core::arch::x86_64::{
    __m128i, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_prefetch, _mm256_cvtph_ps,
    _mm256_cvtps_ph,
};

use half::{bf16, f16};
use pulp::{cast, f32x8, f32x16, f64x4, f64x8};

use super::isa::Isa;
use super::lanes::Lanes;

/// The permutation that puts words 1, 3, 5, ... of a register into its lower half.
const UPPER: [u16; 32] = {
    let mut words = [0; 32];
    let mut i = 0;
    while i < 16 {
        words[i] = 2 * i as u16 + 1;
        i += 1;
    }
    words
};

/// The truth table of `!((a & b) | c)`, for `ternarylogic`.
const NOT_AND_OR: i32 = 0b0001_0101;

/// The table for `fixupimm` by which the result is the first operand, except where the second is a NaN: there it is
/// that NaN, made quiet.
const QUIET_NANS: i32 = 0x22;

/// Rounding to nearest, ties to even, without exceptions.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

pulp::simd_type! {
    /// The token of AVX2: pulp's V3 and F16C, which every machine with AVX2 has but V3 does not name.
    pub(super) struct Avx2 {
        pub sse: "sse",
        pub sse2: "sse2",
        pub fxsr: "fxsr",
        pub sse3: "sse3",
        pub ssse3: "ssse3",
        pub sse4_1: "sse4.1",
        pub sse4_2: "sse4.2",
        pub popcnt: "popcnt",
        pub avx: "avx",
        pub avx2: "avx2",
        pub bmi1: "bmi1",
        pub bmi2: "bmi2",
        pub fma: "fma",
        pub lzcnt: "lzcnt",
        pub f16c: "f16c",
    }
}

impl Lanes for Avx2 {
    type Simd = pulp::x86::V3;
    const ISA: Isa = Isa::Avx2;
    const ADDS_BESIDE_FMAS: bool = true;

    #[inline(always)]
    fn simd(self) -> pulp::x86::V3 {
        // SAFETY: this token proves its features, and these include those of V3.
        unsafe { pulp::x86::V3::new_unchecked() }
    }
    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output {
        Avx2::vectorize(self, f)
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: the instruction is a hint: it reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn xor_f32s<const D: usize>(self, a: f32x8) -> f32x8 {
        let a = cast!(a);
        cast!(match D {
            1 => self.avx._mm256_permute_ps::<0b10_11_00_01>(a),
            2 => self.avx._mm256_permute_ps::<0b01_00_11_10>(a),
            _ => self.avx._mm256_permute2f128_ps::<1>(a, a),
        })
    }
    #[inline(always)]
    fn xor_f64s<const D: usize>(self, a: f64x4) -> f64x4 {
        let a = cast!(a);
        cast!(match D {
            1 => self.avx._mm256_permute_pd::<0b0101>(a),
            _ => self.avx._mm256_permute2f128_pd::<1>(a, a),
        })
    }
    #[inline(always)]
    fn flip_f32s(self, a: f32x8, bits: u32) -> f32x8 {
        // Shifts bit i of the word to the sign of lane i.
        const TO_SIGN: [u32; 8] = [31, 30, 29, 28, 27, 26, 25, 24];
        let words = self.avx2._mm256_sllv_epi32(self.avx._mm256_set1_epi32(bits as i32), cast!(TO_SIGN));
        let signs = self.avx._mm256_and_ps(cast!(words), self.avx._mm256_set1_ps(-0.0));
        cast!(self.avx._mm256_xor_ps(cast!(a), signs))
    }
    #[inline(always)]
    fn flip_f64s(self, a: f64x4, bits: u32) -> f64x4 {
        const TO_SIGN: [u64; 4] = [63, 62, 61, 60];
        let words = self.avx2._mm256_sllv_epi64(self.avx._mm256_set1_epi64x(bits.into()), cast!(TO_SIGN));
        let signs = self.avx._mm256_and_pd(cast!(words), self.avx._mm256_set1_pd(-0.0));
        cast!(self.avx._mm256_xor_pd(cast!(a), signs))
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> f32x8 {
        // SAFETY: 8 f16, one for each lane, are readable by this function's contract, and the token proves F16C.
        unsafe { cast!(_mm256_cvtph_ps(src.cast::<__m128i>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut f16, a: f32x8) {
        // SAFETY: 8 f16, one for each lane, are writable by this function's contract, and the token proves F16C.
        unsafe { dst.cast::<__m128i>().write_unaligned(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(cast!(a))) }
    }
}

/// The token of AVX-512 F, BW, CD, DQ and VL: pulp's V4.
pub(super) use pulp::x86::V4 as Avx512;

impl Lanes for Avx512 {
    type Simd = Avx512;
    const ISA: Isa = Isa::Avx512;
    const ADDS_BESIDE_FMAS: bool = true;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self
    }
    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output {
        Avx512::vectorize(self, f)
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: the instruction is a hint: it reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn xor_f32s<const D: usize>(self, a: f32x16) -> f32x16 {
        let a = cast!(a);
        cast!(match D {
            1 => self.avx512f._mm512_permute_ps::<0b10_11_00_01>(a),
            2 => self.avx512f._mm512_permute_ps::<0b01_00_11_10>(a),
            4 => self.avx512f._mm512_shuffle_f32x4::<0b10_11_00_01>(a, a),
            _ => self.avx512f._mm512_shuffle_f32x4::<0b01_00_11_10>(a, a),
        })
    }
    #[inline(always)]
    fn xor_f64s<const D: usize>(self, a: f64x8) -> f64x8 {
        let a = cast!(a);
        cast!(match D {
            1 => self.avx512f._mm512_permute_pd::<0b01010101>(a),
            2 => self.avx512f._mm512_shuffle_f64x2::<0b10_11_00_01>(a, a),
            _ => self.avx512f._mm512_shuffle_f64x2::<0b01_00_11_10>(a, a),
        })
    }
    #[inline(always)]
    fn flip_f32s(self, a: f32x16, bits: u32) -> f32x16 {
        let (a, signs) = (cast!(a), self.avx512f._mm512_set1_ps(-0.0));
        cast!(self.avx512dq._mm512_mask_xor_ps(a, bits as u16, a, signs))
    }
    #[inline(always)]
    fn flip_f64s(self, a: f64x8, bits: u32) -> f64x8 {
        let (a, signs) = (cast!(a), self.avx512f._mm512_set1_pd(-0.0));
        cast!(self.avx512dq._mm512_mask_xor_pd(a, bits as u8, a, signs))
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> f32x16 {
        // SAFETY: 16 f16, one for each lane, are readable by this function's contract.
        cast!(self.avx512f._mm512_cvtph_ps(unsafe { src.cast::<__m256i>().read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut f16, a: f32x16) {
        // SAFETY: 16 f16, one for each lane, are writable by this function's contract.
        unsafe { dst.cast::<__m256i>().write_unaligned(self.avx512f._mm512_cvtps_ph::<NEAREST>(cast!(a))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const bf16) -> f32x16 {
        // SAFETY: 16 bf16, one for each lane, are readable by this function's contract.
        let x = unsafe { src.cast::<__m256i>().read_unaligned() };
        let f = self.avx512f;
        cast!(f._mm512_slli_epi32::<16>(f._mm512_cvtepu16_epi32(x)))
    }
    /// Gives the bits of `f32_to_bf16`. The instruction of AVX512-BF16 would not: it takes subnormals for zero.
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut bf16, a: f32x16) {
        let (f, splat) = (self.avx512f, |x| self.avx512f._mm512_set1_epi32(x));
        let u = cast!(a);
        // u + 0x7fff + bit, where bit, the last one that is kept, sends ties to even; as u − !(0x7ffe + bit), which
        // needs no mask.
        let bit = f._mm512_srli_epi32::<16>(u);
        let less = f._mm512_ternarylogic_epi32::<NOT_AND_OR>(bit, splat(1), splat(0x7ffe));
        let rounded = f._mm512_castsi512_ps(f._mm512_sub_epi32(u, less));
        let x = f._mm512_castps_si512(f._mm512_fixupimm_ps::<0>(rounded, cast!(a), splat(QUIET_NANS)));
        // The result has the upper halves side by side.
        let x = f._mm512_castsi512_si256(self.avx512bw._mm512_permutexvar_epi16(cast!(UPPER), x));
        // SAFETY: 16 bf16, one for each lane, are writable by this function's contract.
        unsafe { dst.cast::<__m256i>().write_unaligned(x) }
    }
}
