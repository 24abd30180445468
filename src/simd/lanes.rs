//! What a kernel sees of the hardware: tokens, registers, and the operations on them.

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;

use super::isa::Isa;
use crate::tensor::{DType, Element};

/// One register of f32.
pub type F32s<S> = <<S as Lanes>::Simd as Simd>::f32s;
/// One register of f64.
pub type F64s<S> = <<S as Lanes>::Simd as Simd>::f64s;

/// A function that is compiled once per instruction set; see [`dispatch`](super::dispatch).
pub trait Kernel {
    /// The type of the result.
    type Output;
    /// Runs the kernel, compiled for the instruction set of `s`. Mark it, and all that it calls, `#[inline(always)]`.
    fn run<S: Lanes>(self, s: S) -> Self::Output;
}

/// A token that proves that the CPU has an instruction set, with the operations that pulp's token lacks.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// pulp's token for the arithmetic of this instruction set.
    type Simd: Simd;
    /// The name of the instruction set.
    const ISA: Isa;
    /// Whether additions and multiply-adds may run in different units, so that a mix of both is faster than either.
    /// They do on AMD since Zen; on other CPUs a multiply-add costs what an addition costs, so that the mix does no
    /// harm.
    const ADDS_BESIDE_FMAS: bool;

    /// Returns pulp's token.
    fn simd(self) -> Self::Simd;
    /// Compiles `f` with this instruction set and calls it.
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output;
    /// Prefetches the cache line at `at`, which is to be read and written soon and need not be a valid address.
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }
    /// Exchanges lanes at distance `D`: lane `i` of the result is lane `i ^ D` of `a`. `D` is a power of two below the
    /// number of lanes.
    fn xor_f32s<const D: usize>(self, a: F32s<Self>) -> F32s<Self>;
    /// Exchanges lanes at distance `D`: lane `i` of the result is lane `i ^ D` of `a`. `D` is a power of two below the
    /// number of lanes.
    fn xor_f64s<const D: usize>(self, a: F64s<Self>) -> F64s<Self>;

    /// Changes the sign of lane `i` where bit `i` of `bits` is set. Bits beyond the lanes do not count.
    #[inline(always)]
    fn flip_f32s(self, mut a: F32s<Self>, bits: u32) -> F32s<Self> {
        let lanes: &mut [u32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut a));
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane ^= (bits >> i) << 31;
        }
        a
    }
    /// Changes the sign of lane `i` where bit `i` of `bits` is set. Bits beyond the lanes do not count.
    #[inline(always)]
    fn flip_f64s(self, mut a: F64s<Self>, bits: u32) -> F64s<Self> {
        let lanes: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut a));
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane ^= u64::from(bits >> i) << 63;
        }
        a
    }

    /// Loads and widens as many f16 as a register has f32 lanes.
    ///
    /// # Safety
    /// As many f16 as a register has f32 lanes are readable at `src`.
    unsafe fn load_f16(self, src: *const f16) -> F32s<Self>;
    /// Rounds each lane to f16, to nearest with ties to even, and stores them.
    ///
    /// # Safety
    /// As many initialized f16 as a register has f32 lanes are writable at `dst`.
    unsafe fn store_f16(self, dst: *mut f16, a: F32s<Self>);
    /// Loads and widens as many bf16 as a register has f32 lanes.
    ///
    /// # Safety
    /// As many bf16 as a register has f32 lanes are readable at `src`.
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const bf16) -> F32s<Self> {
        let mut a: F32s<Self> = bytemuck::Zeroable::zeroed();
        let wide: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut a));
        for (i, wide) in wide.iter_mut().enumerate() {
            // SAFETY: `i` is below the number of lanes, and so many are readable by this function's contract.
            *wide = bf16_to_f32(unsafe { *src.add(i) });
        }
        a
    }
    /// Rounds each lane to bf16, to nearest with ties to even, and stores them.
    ///
    /// # Safety
    /// As many bf16 as a register has f32 lanes are writable at `dst`.
    #[inline(always)]
    unsafe fn store_bf16(self, dst: *mut bf16, a: F32s<Self>) {
        let wide: &[f32] = bytemuck::cast_slice(std::slice::from_ref(&a));
        for (i, &wide) in wide.iter().enumerate() {
            // SAFETY: `i` is below the number of lanes, and so many are writable by this function's contract.
            unsafe { *dst.add(i) = f32_to_bf16(wide) };
        }
    }
}

/// Widens bf16 by a shift. It is free of branches, so that loops over it become vector code.
#[inline(always)]
pub(super) fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

/// Rounds to bf16, to nearest with ties to even. A NaN keeps its upper half and becomes quiet.
///
/// It adds half of the last place that is kept, less one if that place is even, and is free of branches, so that loops
/// over it become vector code.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> bf16 {
    let u = x.to_bits();
    let rounded = u.wrapping_add(0x7fff + ((u >> 16) & 1)) >> 16;
    let nan = (u >> 16) | 0x40;
    bf16::from_bits(if u & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded } as u16)
}

/// Loads a register `V` of `T` from elements of any type, lane by lane.
///
/// # Safety
/// As many elements as `V` has lanes are readable at `src`.
#[inline(always)]
unsafe fn load_each<V: Pod, T: Element, E: Element>(src: *const E) -> V {
    let mut a = V::zeroed();
    let lanes: &mut [T] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut a));
    for (i, lane) in lanes.iter_mut().enumerate() {
        // SAFETY: `i` is below the number of lanes, and so many are readable by this function's contract.
        *lane = T::from_f64(unsafe { *src.add(i) }.to_f64());
    }
    a
}

/// Stores a register `V` of `T` as elements of any type, lane by lane.
///
/// # Safety
/// As many elements as `V` has lanes are writable at `dst`.
#[inline(always)]
unsafe fn store_each<V: Pod, T: Element, E: Element>(dst: *mut E, a: V) {
    let lanes: &[T] = bytemuck::cast_slice(std::slice::from_ref(&a));
    for (i, lane) in lanes.iter().enumerate() {
        // SAFETY: `i` is below the number of lanes, and so many are writable by this function's contract.
        unsafe { *dst.add(i) = E::from_f64(lane.to_f64()) };
    }
}

/// Operations on one register of an arithmetic type, on any instruction set.
pub trait Vector: Pod {
    /// The type of one register.
    type V<S: Lanes>: Pod + Send + Sync;
    /// The numbers 1 and −1.
    const SIGNS: [Self; 2];

    /// The number of lanes of one register.
    fn lanes<S: Lanes>() -> usize;
    /// Returns `x` in every lane.
    fn vsplat<S: Lanes>(s: S, x: Self) -> Self::V<S>;
    /// Returns `a + b`, lane by lane.
    fn vadd<S: Lanes>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// Returns `a − b`, lane by lane.
    fn vsub<S: Lanes>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// Returns `a · b`, lane by lane.
    fn vmul<S: Lanes>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// Returns `a · b + c`, lane by lane, rounded once where the instruction set has a fused multiply-add, else twice.
    fn vfma<S: Lanes>(s: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    /// Exchanges lanes at distance `D`: lane `i` of the result is lane `i ^ D` of `a`. `D` is a power of two below the
    /// number of lanes.
    fn vxor<const D: usize, S: Lanes>(s: S, a: Self::V<S>) -> Self::V<S>;
    /// Changes the sign of lane `i` where bit `i` of `bits` is set. Bits beyond the lanes do not count.
    fn vflip<S: Lanes>(s: S, a: Self::V<S>, bits: u32) -> Self::V<S>;
    /// Returns the signs of the butterfly at lane distance `D`: −1 in the second lane of each pair, 1 in the first.
    #[inline(always)]
    fn vsigns<const D: usize, S: Lanes>(s: S) -> Self::V<S> {
        let mut signs = Self::vsplat(s, Self::SIGNS[0]);
        let lanes: &mut [Self] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut signs));
        for (i, sign) in lanes.iter_mut().enumerate() {
            if i & D != 0 {
                *sign = Self::SIGNS[1];
            }
        }
        signs
    }

    /// Loads one register from elements of type `E`, widened, or rounded to nearest with ties to even.
    ///
    /// # Safety
    /// `lanes::<S>()` elements are readable at `src`, at any alignment that `E` has.
    unsafe fn vload<S: Lanes, E: Element>(s: S, src: *const E) -> Self::V<S>;
    /// Stores one register as elements of type `E`, widened, or rounded to nearest with ties to even.
    ///
    /// # Safety
    /// `lanes::<S>()` elements are writable at `dst`.
    unsafe fn vstore<S: Lanes, E: Element>(s: S, dst: *mut E, a: Self::V<S>);

    /// Does the butterfly between lanes at distance `D`: `a_i + a_{i+D}` and `a_i − a_{i+D}` take the place of each
    /// pair. It is a shuffle and a multiply-add by ±1, whose product is exact, so that it rounds once, as a sum does.
    #[inline(always)]
    fn vbutterfly<const D: usize, S: Lanes>(s: S, a: Self::V<S>) -> Self::V<S> {
        Self::vfma(s, a, Self::vsigns::<D, S>(s), Self::vxor::<D, S>(s, a))
    }
}

impl Vector for f32 {
    type V<S: Lanes> = F32s<S>;
    const SIGNS: [f32; 2] = [1.0, -1.0];

    #[inline(always)]
    fn lanes<S: Lanes>() -> usize {
        S::Simd::F32_LANES
    }
    #[inline(always)]
    fn vsplat<S: Lanes>(s: S, x: f32) -> F32s<S> {
        s.simd().splat_f32s(x)
    }
    #[inline(always)]
    fn vadd<S: Lanes>(s: S, a: F32s<S>, b: F32s<S>) -> F32s<S> {
        s.simd().add_f32s(a, b)
    }
    #[inline(always)]
    fn vsub<S: Lanes>(s: S, a: F32s<S>, b: F32s<S>) -> F32s<S> {
        s.simd().sub_f32s(a, b)
    }
    #[inline(always)]
    fn vmul<S: Lanes>(s: S, a: F32s<S>, b: F32s<S>) -> F32s<S> {
        s.simd().mul_f32s(a, b)
    }
    #[inline(always)]
    fn vfma<S: Lanes>(s: S, a: F32s<S>, b: F32s<S>, c: F32s<S>) -> F32s<S> {
        s.simd().mul_add_e_f32s(a, b, c)
    }
    #[inline(always)]
    fn vxor<const D: usize, S: Lanes>(s: S, a: F32s<S>) -> F32s<S> {
        s.xor_f32s::<D>(a)
    }
    #[inline(always)]
    fn vflip<S: Lanes>(s: S, a: F32s<S>, bits: u32) -> F32s<S> {
        s.flip_f32s(a, bits)
    }
    #[inline(always)]
    unsafe fn vload<S: Lanes, E: Element>(s: S, src: *const E) -> F32s<S> {
        // SAFETY: guaranteed by this function's contract: one register of `E` is readable. An arm is taken only if `E`
        // is the type that it casts to, and alignment does not matter to it.
        unsafe {
            match E::DTYPE {
                DType::F32 => src.cast::<F32s<S>>().read_unaligned(),
                DType::F16 => s.load_f16(src.cast()),
                DType::BF16 => s.load_bf16(src.cast()),
                _ => load_each::<F32s<S>, f32, E>(src),
            }
        }
    }
    #[inline(always)]
    unsafe fn vstore<S: Lanes, E: Element>(s: S, dst: *mut E, a: F32s<S>) {
        // SAFETY: guaranteed by this function's contract: one register of `E` is writable. An arm is taken only if `E`
        // is the type that it casts to, and alignment does not matter to it.
        unsafe {
            match E::DTYPE {
                DType::F32 => dst.cast::<F32s<S>>().write_unaligned(a),
                DType::F16 => s.store_f16(dst.cast(), a),
                DType::BF16 => s.store_bf16(dst.cast(), a),
                _ => store_each::<F32s<S>, f32, E>(dst, a),
            }
        }
    }
}

impl Vector for f64 {
    type V<S: Lanes> = F64s<S>;
    const SIGNS: [f64; 2] = [1.0, -1.0];

    #[inline(always)]
    fn lanes<S: Lanes>() -> usize {
        S::Simd::F64_LANES
    }
    #[inline(always)]
    fn vsplat<S: Lanes>(s: S, x: f64) -> F64s<S> {
        s.simd().splat_f64s(x)
    }
    #[inline(always)]
    fn vadd<S: Lanes>(s: S, a: F64s<S>, b: F64s<S>) -> F64s<S> {
        s.simd().add_f64s(a, b)
    }
    #[inline(always)]
    fn vsub<S: Lanes>(s: S, a: F64s<S>, b: F64s<S>) -> F64s<S> {
        s.simd().sub_f64s(a, b)
    }
    #[inline(always)]
    fn vmul<S: Lanes>(s: S, a: F64s<S>, b: F64s<S>) -> F64s<S> {
        s.simd().mul_f64s(a, b)
    }
    #[inline(always)]
    fn vfma<S: Lanes>(s: S, a: F64s<S>, b: F64s<S>, c: F64s<S>) -> F64s<S> {
        s.simd().mul_add_e_f64s(a, b, c)
    }
    #[inline(always)]
    fn vxor<const D: usize, S: Lanes>(s: S, a: F64s<S>) -> F64s<S> {
        s.xor_f64s::<D>(a)
    }
    #[inline(always)]
    fn vflip<S: Lanes>(s: S, a: F64s<S>, bits: u32) -> F64s<S> {
        s.flip_f64s(a, bits)
    }
    #[inline(always)]
    unsafe fn vload<S: Lanes, E: Element>(_s: S, src: *const E) -> F64s<S> {
        // SAFETY: guaranteed by this function's contract: one register of `E` is readable. An arm is taken only if `E`
        // is the type that it casts to, and alignment does not matter to it.
        unsafe {
            match E::DTYPE {
                DType::F64 => src.cast::<F64s<S>>().read_unaligned(),
                _ => load_each::<F64s<S>, f64, E>(src),
            }
        }
    }
    #[inline(always)]
    unsafe fn vstore<S: Lanes, E: Element>(_s: S, dst: *mut E, a: F64s<S>) {
        // SAFETY: guaranteed by this function's contract: one register of `E` is writable. An arm is taken only if `E`
        // is the type that it casts to, and alignment does not matter to it.
        unsafe {
            match E::DTYPE {
                DType::F64 => dst.cast::<F64s<S>>().write_unaligned(a),
                _ => store_each::<F64s<S>, f64, E>(dst, a),
            }
        }
    }
}
