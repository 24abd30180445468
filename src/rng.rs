//! Random numbers as a pure function of `(seed, stream, index)`: the generator Philox4x32-10, and normals made of it.
//!
//! ```text
//!   key     = seed                      64 bits
//!   counter = index (low) | stream (high), 64 + 64 bits       ->  one block of four 32-bit words
//! ```
//! There is no state: any part of a random matrix is regenerated from its indices, in any order, by any thread, tile or
//! rank. Blocks are independent, so the vector version puts one block in each lane and writes the four words of block
//! `first + i` to place `i` of four planes.
//!
//! **Normals.** Box-Muller in f32 turns the words `(w0, w1)` and `(w2, w3)` of a block into four normals: the radius `r
//! = sqrt(-2 ln u)`, `u = (w + 1/2) 2^-32` in `(0, 1]`, times cosine and sine of an angle of 25 bits. `u >= 2^-33`
//! gives `|z| <= 6.77`; neither an infinity nor a NaN can occur. The logarithm is Cephes' `logf` polynomial, sine and
//! cosine are Cephes' on `[-pi/4, pi/4]`; the two leading bits of the word are the quadrant. Logarithm, sine and cosine
//! are within 1.5 ulp of f64, a normal within 4 ulp of `r` (tests/rng.rs). f64 arithmetic uses the same f32 normals.
//!
//! Only correctly rounded operations are used (add, multiply, fused multiply-add, square root), so every instruction
//! set gives the same bits; where there is no fused multiply-add, it is emulated and slow.
//!
//! Cost: ten rounds of two 32×32 -> 64 multiplications; about 160 vector operations for 16 blocks and 40 for their 64
//! normals. Ziggurat has branches that depend on the data, and the inverse CDF needs two polynomials for each normal,
//! where a sine and a cosine serve two. Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel random
//! numbers: as easy as 1, 2, 3, SC 2011.

use pulp::{Arch, Simd, WithSimd};

/// The high byte of a stream number, which tells what the numbers are used for. The low 56 bits are the caller's.
#[doc(hidden)]
pub mod stream {
    /// Entries of Gaussian sketches.
    pub const GAUSSIAN: u64 = 1 << 56;
    /// Input signs of the SRHT.
    pub const SRHT_SIGNS: u64 = 2 << 56;
    /// Output signs of the SRHT.
    pub const SRHT_OUTPUT_SIGNS: u64 = 3 << 56;
    /// The sampled rows of the SRHT.
    pub const SRHT_SAMPLE: u64 = 4 << 56;
    /// Positions of sparse sign sketches.
    pub const SPARSE_POSITIONS: u64 = 5 << 56;
    /// Signs of sparse sign sketches.
    pub const SPARSE_SIGNS: u64 = 6 << 56;
    /// Probes of error estimators.
    pub const PROBES: u64 = 7 << 56;
    /// Test data.
    pub const DATA: u64 = 8 << 56;
    /// Signs of rotations.
    pub const ROTATION: u64 = 9 << 56;
    /// The bound of a caller's stream numbers, which are below it.
    pub const LIMIT: u64 = 1 << 56;
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;

/// Computes Philox4x32-10: the block of four words of counter `ctr` under `key`, low words first.
#[doc(hidden)]
pub const fn philox4x32(key: [u32; 2], ctr: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], mut c) = (key, ctr);
    let mut round = 0;
    while round < ROUNDS {
        let p0 = M0 as u64 * c[0] as u64;
        let p1 = M1 as u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
        round += 1;
    }
    c
}

/// A stream of random blocks of four words, addressed by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

impl Philox {
    /// Returns the stream with number `stream` (see [`stream`]) of `seed`.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Philox { seed, stream }
    }

    /// Returns seed and stream, for the kernels of a device.
    #[cfg(feature = "cuda")]
    pub(crate) const fn key(&self) -> (u64, u64) {
        (self.seed, self.stream)
    }

    /// Returns the four words of block `index`.
    pub const fn block(&self, index: u64) -> [u32; 4] {
        philox4x32(
            [self.seed as u32, (self.seed >> 32) as u32],
            [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32],
        )
    }

    /// Returns the four standard normals of block `index`.
    pub fn normal_block(&self, index: u64) -> [f32; 4] {
        let w = self.block(index);
        let s = pulp::Scalar::new();
        let (z0, z1) = box_muller(s, w[0], w[1]);
        let (z2, z3) = box_muller(s, w[2], w[3]);
        [z0, z1, z2, z3]
    }

    /// Overwrites `planes[w][i]` with word `w` of block `first + i`.
    ///
    /// # Panics
    /// If the planes differ in length.
    #[doc(hidden)]
    pub fn planes(&self, first: u64, planes: [&mut [u32]; 4]) {
        Arch::new().dispatch(Fill::<false> { rng: *self, first, planes, scale: 1.0 });
    }

    /// Overwrites `planes[w][i]` with `scale` times normal `w` of block `first + i`. The product is rounded once.
    ///
    /// # Panics
    /// If the planes differ in length.
    #[doc(hidden)]
    pub fn normal_planes(&self, first: u64, scale: f32, planes: [&mut [f32]; 4]) {
        let planes = planes.map(bytemuck::cast_slice_mut);
        Arch::new().dispatch(Fill::<true> { rng: *self, first, planes, scale });
    }

    /// Overwrites `out[4i + w]` with normal `w` of block `first + i`.
    pub fn normals(&self, first: u64, out: &mut [f32]) {
        const BLOCKS: usize = 64;
        let mut planes = [[0f32; BLOCKS]; 4];
        for (chunk, first) in out.chunks_mut(4 * BLOCKS).zip((first..).step_by(BLOCKS)) {
            let blocks = chunk.len().div_ceil(4);
            let [a, b, c, d] = &mut planes;
            self.normal_planes(first, 1.0, [&mut a[..blocks], &mut b[..blocks], &mut c[..blocks], &mut d[..blocks]]);
            for (i, x) in chunk.iter_mut().enumerate() {
                *x = planes[i % 4][i / 4];
            }
        }
    }

    /// Returns random sign number `index`: bit `index % 128` of block `index / 128`. True stands for the sign −1.
    pub const fn sign(&self, index: u64) -> bool {
        let w = self.block(index / 128)[(index % 128 / 32) as usize];
        w >> (index % 32) & 1 != 0
    }

    /// Returns a uniform number in `0..bound` from block `index`. The relative error of each probability is at most
    /// `bound · 2^-64`.
    #[doc(hidden)]
    pub const fn below(&self, index: u64, bound: u64) -> u64 {
        let w = self.block(index);
        let x = (w[1] as u64) << 32 | w[0] as u64;
        ((x as u128 * bound as u128) >> 64) as u64
    }

    /// Draws a uniform subset of `l` members of `0..n`, ascending, by Floyd's algorithm: `l` draws, O(l) memory.
    ///
    /// # Panics
    /// If `l > n`.
    #[doc(hidden)]
    pub fn subset(&self, n: u64, l: usize) -> Vec<u64> {
        assert!(l as u64 <= n, "a subset of {l} out of {n}");
        let mut chosen = std::collections::BTreeSet::new();
        for t in 0..l as u64 {
            let top = n - l as u64 + t;
            let x = self.below(t, top + 1);
            if !chosen.insert(x) {
                chosen.insert(top);
            }
        }
        chosen.into_iter().collect()
    }

    /// Draws a subset of `l` members of `0..2^bits`, ascending, that is spread evenly over the low and the high digits.
    ///
    /// Binary digits are meant. For every `b`, the `b` lowest of the `low` lowest digits take each of their values
    /// equally often, to within one, and so do the `b` highest of the others. Each member alone is uniform. If there
    /// are more members than digits, no sum of digits (mod 2) is the same for all members.
    ///
    /// The members are points `0..l` of the two-dimensional Sobol' sequence under a nested uniform scramble (Owen
    /// 1995): the digits of `t` give the low digits, lowest first, and its digits times Pascal's triangle mod 2 the
    /// high ones, highest first. As any `2^bits` points of that sequence are a (0, bits, 2)-net, no member comes twice.
    ///
    /// Both halves are functions of the few digits of `t`, and a scramble of few nodes may make a sum of digits
    /// constant: for 30 members of 2^10 it does in one of three scrambles, where 30 independent draws would in one of
    /// 2^19. Such a scramble is drawn again.
    ///
    /// # Panics
    /// If `l > 2^bits`, `bits > 40` or `low > bits`.
    #[doc(hidden)]
    pub fn stratified_subset(&self, bits: u32, low: u32, l: usize) -> Vec<u64> {
        /// Scrambles that are drawn at most. At worst, for 15 members of 2^7, four of five are drawn again.
        const ATTEMPTS: u64 = 64;
        assert!(bits <= 40 && low <= bits && l as u64 <= 1 << bits, "a subset of {l} out of 2^{bits}, {low} low bits");
        let possible = l > bits as usize;
        let draws = (0..ATTEMPTS).map(|attempt| self.scrambled_points(bits, low, l, attempt));
        let mut chosen = None;
        for points in draws {
            let found = !possible || is_affine_basis(&points, bits);
            chosen = Some(points);
            if found {
                break;
            }
        }
        let mut chosen = chosen.expect("there is a first draw");
        chosen.sort_unstable();
        chosen
    }

    /// Draws the members of [`stratified_subset`](Self::stratified_subset) once, unsorted, with the scramble number
    /// `attempt`.
    fn scrambled_points(&self, bits: u32, low: u32, l: usize, attempt: u64) -> Vec<u64> {
        // Flips each digit by a random bit that depends on the digits before it.
        let scramble = |digits: u64, count: u32, tree: u64| {
            (0..count).fold(0, |x, b| {
                let node = tree | attempt << 48 | 1 << b | digits & ((1 << b) - 1);
                x | ((digits >> b & 1) ^ u64::from(self.sign(node))) << b
            })
        };
        // C(i, j) is odd exactly if the bits of j are among those of i.
        let pascal = |t: u64| {
            (0..u64::from(bits)).fold(0, |digits, j| {
                let row = (j..u64::from(bits)).filter(|i| i & j == j).fold(0u64, |row, i| row | 1 << i);
                digits | u64::from((t & row).count_ones() & 1) << j
            })
        };
        (0..l as u64)
            .map(|t| {
                let high = scramble(pascal(t), bits - low, 1 << 62);
                // Digit j of the high part is bit `bits − 1 − j`.
                let high = (0..bits - low).fold(0, |x, j| x | (high >> j & 1) << (bits - 1 - j));
                high | scramble(t, low, 0)
            })
            .collect()
    }
}

/// Returns whether the differences of the points span all vectors of `bits` digits, mod 2.
fn is_affine_basis(points: &[u64], bits: u32) -> bool {
    // Row b begins with digit b, if there is one.
    let mut basis = [0u64; 64];
    let mut rank = 0;
    for point in &points[1..] {
        let mut rest = point ^ points[0];
        while rest != 0 {
            let digit = rest.ilog2() as usize;
            if basis[digit] == 0 {
                basis[digit] = rest;
                rank += 1;
                break;
            }
            rest ^= basis[digit];
        }
        if rank == bits {
            return true;
        }
    }
    rank == bits
}

/// Fills four planes with words or, if `NORMAL`, with the bits of normals times `scale`, as a kernel.
struct Fill<'a, const NORMAL: bool> {
    rng: Philox,
    first: u64,
    planes: [&'a mut [u32]; 4],
    scale: f32,
}

impl<const NORMAL: bool> WithSimd for Fill<'_, NORMAL> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Fill { rng, first, planes: [p0, p1, p2, p3], scale } = self;
        let len = p0.len();
        assert!(p1.len() == len && p2.len() == len && p3.len() == len);
        let (v0, t0) = S::as_mut_simd_u32s(p0);
        let (v1, t1) = S::as_mut_simd_u32s(p1);
        let (v2, t2) = S::as_mut_simd_u32s(p2);
        let (v3, t3) = S::as_mut_simd_u32s(p3);
        let body = v0.len() * S::U32_LANES;
        let mut index = first;
        for (((o0, o1), o2), o3) in v0.iter_mut().zip(v1).zip(v2).zip(v3) {
            [*o0, *o1, *o2, *o3] = finish::<S, NORMAL>(simd, blocks(simd, rng, index), scale);
            index = index.wrapping_add(S::U32_LANES as u64);
        }
        let scalar = pulp::Scalar::new();
        for (i, (((o0, o1), o2), o3)) in t0.iter_mut().zip(t1).zip(t2).zip(t3).enumerate() {
            let w = rng.block(first.wrapping_add((body + i) as u64));
            [*o0, *o1, *o2, *o3] = finish::<_, NORMAL>(scalar, w, scale);
        }
    }
}

/// Returns the words of blocks `first..first + lanes`, one block in each lane.
#[inline(always)]
fn blocks<S: Simd>(simd: S, rng: Philox, first: u64) -> [S::u32s; 4] {
    const IOTA: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const { assert!(S::U32_LANES <= 16) };
    let (iota, _) = S::as_simd_u32s(&IOTA[..S::U32_LANES]);
    let low = simd.splat_u32s(first as u32);
    let mut c0 = simd.add_u32s(low, iota[0]);
    let carried = simd.less_than_u32s(c0, low);
    let high = (first >> 32) as u32;
    let mut c1 = simd.select_u32s(carried, simd.splat_u32s(high.wrapping_add(1)), simd.splat_u32s(high));
    let mut c2 = simd.splat_u32s(rng.stream as u32);
    let mut c3 = simd.splat_u32s((rng.stream >> 32) as u32);
    let (mut k0, mut k1) = (rng.seed as u32, (rng.seed >> 32) as u32);
    let (m0, m1) = (simd.splat_u32s(M0), simd.splat_u32s(M1));
    for _ in 0..ROUNDS {
        let (l0, h0) = simd.widening_mul_u32s(c0, m0);
        let (l1, h1) = simd.widening_mul_u32s(c2, m1);
        c0 = simd.xor_u32s(simd.xor_u32s(h1, c1), simd.splat_u32s(k0));
        c2 = simd.xor_u32s(simd.xor_u32s(h0, c3), simd.splat_u32s(k1));
        (c1, c3) = (l1, l0);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// Returns the words `w` as they are or, if `NORMAL`, the bits of their normals times `scale`.
#[inline(always)]
fn finish<S: Simd, const NORMAL: bool>(simd: S, w: [S::u32s; 4], scale: f32) -> [S::u32s; 4] {
    if !NORMAL {
        return w;
    }
    let (z0, z1) = box_muller(simd, w[0], w[1]);
    let (z2, z3) = box_muller(simd, w[2], w[3]);
    let scale = simd.splat_f32s(scale);
    [z0, z1, z2, z3].map(
        #[inline(always)]
        |z| simd.transmute_u32s_f32s(simd.mul_f32s(z, scale)),
    )
}

/// The bits of the float 2^23. An integer below 2^23, or-ed into them, makes the float `2^23 + integer`.
const MAGIC: u32 = 0x4b00_0000;
const TWO_23: f32 = 8_388_608.0;

/// Returns two independent standard normals from two words, in every lane.
#[inline(always)]
fn box_muller<S: Simd>(simd: S, w0: S::u32s, w1: S::u32s) -> (S::f32s, S::f32s) {
    let r = simd.sqrt_f32s(simd.abs_f32s(simd.mul_f32s(simd.splat_f32s(-2.0), ln_uniform(simd, w0))));
    let (sin, cos) = sin_cos_turn(simd, w1);
    (simd.mul_f32s(r, cos), simd.mul_f32s(r, sin))
}

/// Shifts every lane to the right by a constant, which folds to an immediate.
#[inline(always)]
fn shr<S: Simd>(simd: S, x: S::u32s, by: u32) -> S::u32s {
    simd.wrapping_dyn_shr_u32s(x, simd.splat_u32s(by))
}

/// Evaluates `poly[0] x^d + … + poly[d]` with fused multiply-adds.
#[inline(always)]
fn horner<S: Simd, const D: usize>(simd: S, x: S::f32s, poly: [f32; D]) -> S::f32s {
    let mut p = simd.splat_f32s(poly[0]);
    for &c in &poly[1..] {
        p = simd.mul_add_f32s(p, x, simd.splat_f32s(c));
    }
    p
}

/// Returns `ln((w + 1/2) 2^-32)` in every lane.
#[inline(always)]
fn ln_uniform<S: Simd>(simd: S, w: S::u32s) -> S::f32s {
    let f = |x: f32| simd.splat_f32s(x);
    let u = |x: u32| simd.splat_u32s(x);
    let to_f32 = |x| simd.sub_f32s(simd.transmute_f32s_u32s(simd.or_u32s(x, u(MAGIC))), f(TWO_23));
    // w + 1/2 to f32 with one rounding: both halves are exact.
    let high = to_f32(shr(simd, w, 16));
    let low = simd.add_f32s(to_f32(simd.and_u32s(w, u(0xffff))), f(0.5));
    let x = simd.mul_add_f32s(high, f(65536.0), low);
    // x = 2^e · m, m in [sqrt(1/2), sqrt(2)): subtract the bits of sqrt(1/2); 2 keeps the exponent non-negative.
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let t = simd.add_u32s(simd.transmute_u32s_f32s(x), u((2u32 << 23).wrapping_sub(SQRT_HALF)));
    let e = simd.sub_f32s(to_f32(shr(simd, t, 23)), f(34.0)); // exponent of x · 2^-32
    let m = simd.transmute_f32s_u32s(simd.add_u32s(simd.and_u32s(t, u(0x7f_ffff)), u(SQRT_HALF)));
    let y = simd.sub_f32s(m, f(1.0));
    let yy = simd.mul_f32s(y, y);
    let p = horner(
        simd,
        y,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_7e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    // ln 2 = 0.693359375 (exact products with e) - 2.12194440e-4
    let tail = simd.mul_f32s(e, f(-2.121_944_4e-4));
    let tail = simd.mul_add_f32s(simd.mul_f32s(y, yy), p, tail);
    let tail = simd.mul_add_f32s(yy, f(-0.5), tail);
    simd.mul_add_f32s(e, f(0.693_359_4), simd.add_f32s(y, tail))
}

/// Returns sine and cosine of the angle `w / 2^32` of a turn. The angle is rounded to 25 bits, to the middle of an
/// interval.
#[inline(always)]
fn sin_cos_turn<S: Simd>(simd: S, w: S::u32s) -> (S::f32s, S::f32s) {
    let f = |x: f32| simd.splat_f32s(x);
    let u = |x: u32| simd.splat_u32s(x);
    // quadrant q, and the rest centred: x in [-pi/4, pi/4]
    let t = simd.add_u32s(w, u(1 << 29));
    let q = shr(simd, t, 30);
    let rest = shr(simd, simd.and_u32s(t, u((1 << 30) - 1)), 7);
    let rest = simd.sub_f32s(simd.transmute_f32s_u32s(simd.or_u32s(rest, u(MAGIC))), f(TWO_23 + TWO_23 / 2.0));
    const STEP: f32 = std::f32::consts::FRAC_PI_2 / TWO_23;
    let x = simd.mul_add_f32s(rest, f(STEP), f(STEP / 2.0));
    let xx = simd.mul_f32s(x, x);
    let s = horner(simd, xx, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
    let s = simd.mul_add_f32s(simd.mul_f32s(s, xx), x, x);
    let c = horner(simd, xx, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let c = simd.mul_add_f32s(simd.mul_f32s(c, xx), xx, simd.mul_add_f32s(xx, f(-0.5), f(1.0)));
    // Odd quadrants exchange the two; signs come from the bits of q.
    let (s, c) = (simd.transmute_u32s_f32s(s), simd.transmute_u32s_f32s(c));
    let odd = simd.sub_u32s(u(0), simd.and_u32s(q, u(1)));
    let swap = simd.and_u32s(simd.xor_u32s(s, c), odd);
    let sign = |x, q| simd.xor_u32s(x, simd.wrapping_dyn_shl_u32s(simd.and_u32s(q, u(2)), u(30)));
    let sin = sign(simd.xor_u32s(s, swap), q);
    let cos = sign(simd.xor_u32s(c, swap), simd.add_u32s(q, u(1)));
    (simd.transmute_f32s_u32s(sin), simd.transmute_f32s_u32s(cos))
}
