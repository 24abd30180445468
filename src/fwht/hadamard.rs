//! Generates the Hadamard matrices whose order is not a power of two.
//!
//! With `χ` the quadratic character of the field of `q` elements (1 on squares, −1 on others, 0 at 0), `Q[i][j] =
//! χ(i − j)`, circulants `A` to `D` of four sequences of length `m`, and `R` the identity with its columns reversed:
//!
//! ```text
//!   Paley I,  q ≡ 3 (mod 4), order q + 1:      H = I + [ 0   1ᵀ ]
//!                                                      [ −1  Q  ]
//!   Paley II, q ≡ 1 (mod 4), order 2(q + 1):   C = [ 0  1ᵀ ]   0 -> [ 1 −1; −1 −1 ],  ±1 -> ± [ 1 1; 1 −1 ]
//!                                                  [ 1  Q  ]
//!   Goethals-Seidel, order 4m:                 H = [  A     B R   C R   D R  ]
//!                                                  [ −B R   A     DᵀR  −CᵀR  ]    A Aᵀ + B Bᵀ + C Cᵀ + D Dᵀ = 4m I
//!                                                  [ −C R  −DᵀR   A     BᵀR  ]
//!                                                  [ −D R   CᵀR  −BᵀR   A    ]
//! ```
//!
//! The first that applies is taken: `q` is a prime in Paley I, and a prime or the square `p²` of one in Paley II, whose
//! field is `F_p[√d]`. Neither gives 92, 116, 156, 172, 188, 236 and 428: they come from the sequences of [`TURYN`]
//! and [`FOUR`]. Every base is 4 times an odd number. Order 40 is 2·20, so its matrix is `H_20 ⊗ H_2` and the length is
//! `20·2^{k+1}`; the same holds for every other even multiple, which makes the `b` of a length unique.
//!
//! Sources: R. E. A. C. Paley, On orthogonal matrices, 1933; J. M. Goethals and J. J. Seidel, A skew Hadamard matrix of
//! order 36, 1970.

use std::sync::OnceLock;

use super::sums::Sums;
use crate::simd::Scalar;
use crate::tensor::DType;

/// The orders of the matrices that [`matrix`] makes, ascending. An order that is an even multiple of a smaller one is
/// left out.
pub(crate) const BASES: [usize; 36] = [
    1, 12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 92, 100, 108, 116, 124, 132, 140, 148, 156, 164, 172, 180, 188, 196,
    204, 212, 220, 228, 236, 244, 252, 284, 428, 684, 924,
];

/// The orders that are multiplied entry by entry. The order of the additions decides the last bits of a result, and
/// those of these lengths are frozen; all other bases take [`Sums`], which are faster.
const DENSE: [usize; 9] = [12, 20, 28, 36, 44, 52, 60, 108, 140];

/// Turyn-type sequences `X, Y, Z, W` of lengths `n, n, n, n − 1`, whose aperiodic autocorrelations satisfy `N_X + N_Y +
/// 2 N_Z + 2 N_W = 0`, for `m = 3n − 1`.
///
/// Digit `i` has element `i` of `X, Y, Z, W` in its bits from the highest to the lowest, 1 for −1; the last digit has
/// no `W`. The four sequences of length `m` are `(Z, W, X), (Z, W, −X), (Z, −W, Y), (Z, −W, −Y)`.
///
/// Sources: D. Best, D. Ž. Đoković, H. Kharaghani and H. Ramp, Turyn-type sequences, 2013; for 107, H. Kharaghani and
/// B. Tayfeh-Rezaie, A Hadamard matrix of order 428, 2005.
const TURYN: [(usize, &str); 5] = [
    (23, "06e5c4d1"),
    (29, "0001f4a961"),
    (47, "0000778e52de5561"),
    (59, "000038e2739c7a0b6951"),
    (107, "060989975b685d8fc80750b21c0212eceb26"),
];

/// Four sequences of length `m`: bit `i` is 1 where element `i` is −1.
///
/// Those of 43 are constant on the orbits of multiplication by ±6 (mod 43), so that they are symmetric, as Williamson's
/// are; those of 39 are constant on the orbits of multiplication by 16 (mod 39). A search among such sequences finds
/// them in seconds.
const FOUR: [(usize, [u64; 4]); 2] = [
    (39, [0x2d28516bae, 0x6f2ba266bc, 0x3f6334fdf4, 0x19a1c8f7c]),
    (43, [0x730a26450ce, 0x385b3fcda1c, 0x14d42f42b28, 0x207ac935e04]),
];

/// The field of `q = p` or `q = p²` elements. Element `i` stands for `i % p + (i / p)·√d`, where `d` is not a square.
struct Field {
    p: usize,
    q: usize,
    /// The least non-square of `F_p` if `q = p²`, else 0.
    d: usize,
}

impl Field {
    /// Makes the field of `q` elements, for `q` an odd prime or the square of one.
    fn new(q: usize) -> Option<Self> {
        let p = q.isqrt();
        if is_prime(q) {
            return Some(Field { p: q, q, d: 0 });
        }
        let square = |d: usize| (1..p).any(|a| a * a % p == d);
        let d = (2..p).find(|&d| !square(d))?;
        (p * p == q && is_prime(p)).then_some(Field { p, q, d })
    }

    /// Returns element `a − b`.
    fn sub(&self, a: usize, b: usize) -> usize {
        let p = self.p;
        (a % p + p - b % p) % p + (a / p + p - b / p) % p * p
    }

    /// Returns element `a²`.
    fn square(&self, a: usize) -> usize {
        let (p, re, im) = (self.p, a % self.p, a / self.p);
        (re * re + self.d * im * im) % p + 2 * re * im % p * p
    }

    /// Returns the quadratic character of every element.
    fn characters(&self) -> Vec<i8> {
        let mut chi = vec![-1; self.q];
        for a in 1..self.q {
            chi[self.square(a)] = 1;
        }
        chi[0] = 0;
        chi
    }
}

/// Returns whether `n`, at least 2, is a prime.
fn is_prime(n: usize) -> bool {
    (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

/// Generates `H_b` row by row, for `b` in [`BASES`].
fn matrix(b: usize) -> Vec<i8> {
    debug_assert!(BASES.contains(&b));
    if b == 1 {
        return vec![1];
    }
    let mut h = Vec::with_capacity(b * b);
    let mut fill = |entry: &dyn Fn(usize, usize) -> i8| {
        (0..b).for_each(|i| h.extend((0..b).map(|j| entry(i, j))));
    };
    if is_prime(b - 1)
        && let Some(core) = bordered(b - 1, -1)
    {
        fill(&|i, j| core(i, j) + (i == j) as i8);
    } else if let Some(core) = bordered(b / 2 - 1, 1) {
        fill(&|i, j| match (core(i / 2, j / 2), i % 2, j % 2) {
            (0, 0, 0) => 1,
            (0, _, _) => -1,
            (c, 1, 1) => -c,
            (c, _, _) => c,
        });
    } else {
        let (m, four) = (b / 4, sequences(b / 4));
        fill(&|i, j| goethals_seidel(m, &four, i, j));
    }
    h
}

/// Returns `[0 1ᵀ; border Q]` as a function of row and column, or `None` if there is no [`Field`] of `q` elements.
fn bordered(q: usize, border: i8) -> Option<impl Fn(usize, usize) -> i8> {
    let field = Field::new(q)?;
    let chi = field.characters();
    Some(move |i: usize, j: usize| match (i, j) {
        (0, 0) => 0,
        (0, _) => 1,
        (_, 0) => border,
        _ => chi[field.sub(i - 1, j - 1)],
    })
}

/// Returns the four sequences of length `m`, for `m` in [`TURYN`] or [`FOUR`].
fn sequences(m: usize) -> [Vec<i8>; 4] {
    let sign = |minus: bool| if minus { -1 } else { 1 };
    if let Some((_, masks)) = FOUR.iter().find(|four| four.0 == m) {
        return masks.map(|mask| (0..m).map(|i| sign(mask >> i & 1 == 1)).collect());
    }
    let (_, digits) = TURYN.iter().find(|turyn| turyn.0 == m).expect("every base has a construction");
    let n = digits.len();
    // The last digit lacks its lowest bit.
    let digit = |(i, c): (usize, char)| c.to_digit(16).unwrap_or(0) << u32::from(i + 1 == n);
    let digits: Vec<u32> = digits.chars().enumerate().map(digit).collect();
    let one = |which: u32, negate: bool| {
        let elements = digits[..n - (which == 3) as usize].iter();
        elements.map(move |digit| sign((digit >> (3 - which) & 1 == 1) != negate))
    };
    let four = |x: u32, minus_w: bool, minus_x: bool| {
        one(2, false).chain(one(3, minus_w)).chain(one(x, minus_x)).collect::<Vec<i8>>()
    };
    [four(0, false, false), four(0, false, true), four(1, true, false), four(1, true, true)]
}

/// Returns entry `(i, j)` of the Goethals-Seidel array of four sequences of length `m`.
fn goethals_seidel(m: usize, four: &[Vec<i8>; 4], i: usize, j: usize) -> i8 {
    const SIGNS: [[i8; 4]; 4] = [[1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1], [-1, 1, -1, 1]];
    let (row, column, i, j) = (i / m, j / m, i % m, j % m);
    // A circulant has element `j − i`, its product with R element `m − 1 − j − i`, and `XᵀR` element `i + j + 1`.
    let at = match (row, column) {
        _ if row == column => j + m - i,
        (0, _) | (_, 0) => 2 * m - 1 - j - i,
        _ => i + j + 1,
    };
    SIGNS[row][column] * four[row ^ column][at % m]
}

/// A Hadamard matrix in the form in which it is multiplied.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entries<T: 'static> {
    /// All entries, row by row.
    Dense(&'static [T]),
    /// The codes of sums of four.
    Sums(&'static Sums),
}

/// A matrix and the form of [`Entries`] that it has.
struct Table {
    signs: Vec<i8>,
    dense: (Vec<f32>, Vec<f64>),
    /// The codes of `H_b` and of its transpose.
    sums: Option<[Sums; 2]>,
}

/// Returns the table of `H_b`. It is generated at the first call for each `b`.
fn table(b: usize) -> &'static Table {
    static TABLES: [OnceLock<Table>; BASES.len()] = [const { OnceLock::new() }; BASES.len()];
    let which = BASES.binary_search(&b).expect("a base of an Order");
    TABLES[which].get_or_init(|| {
        let signs = matrix(b);
        let mut table = Table { dense: (Vec::new(), Vec::new()), sums: None, signs };
        if is_dense(b) {
            let h = &table.signs;
            table.dense = (h.iter().map(|&x| x as f32).collect(), h.iter().map(|&x| x as f64).collect());
        } else if b > 1 {
            let minus = |i: usize, j: usize| table.signs[i * b + j] < 0;
            table.sums = Some([Sums::new(b, minus), Sums::new(b, |i, j| minus(j, i))]);
        }
        table
    })
}

/// Returns whether `H_b` is multiplied entry by entry.
pub(super) fn is_dense(b: usize) -> bool {
    DENSE.contains(&b)
}

/// Returns the entries of `H_b` row by row.
pub(super) fn signs(b: usize) -> &'static [i8] {
    &table(b).signs
}

/// Returns `H_b`, `b > 1`, as it is multiplied in arithmetic of type `T`. Codes are those of `H_bᵀ` if that is
/// `transposed`; all entries are not.
pub(super) fn entries<T: Scalar>(b: usize, transposed: bool) -> Entries<T> {
    let table = table(b);
    match (&table.sums, T::DTYPE) {
        (Some(sums), _) => Entries::Sums(&sums[usize::from(transposed)]),
        (None, DType::F64) => Entries::Dense(bytemuck::cast_slice(&table.dense.1)),
        (None, _) => Entries::Dense(bytemuck::cast_slice(&table.dense.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_orthogonal() {
        for b in BASES {
            let h = matrix(b);
            assert!(h.iter().all(|x| x.abs() == 1), "order {b}");
            for i in 0..b {
                for j in 0..=i {
                    let rows = h[i * b..][..b].iter().zip(&h[j * b..][..b]);
                    let dot: i32 = rows.map(|(x, y)| i32::from(x * y)).sum();
                    assert_eq!(dot, if i == j { b as i32 } else { 0 }, "order {b}, rows {i} and {j}");
                }
            }
        }
    }

    /// Rotations are stored by their seed, so that no entry of a matrix may ever change.
    #[test]
    fn matrices_are_frozen() {
        let hash = |b: usize| {
            let step = |h: u64, &x: &i8| (h ^ u64::from(x as u8)).wrapping_mul(0x100_0000_01b3);
            matrix(b).iter().fold(0xcbf2_9ce4_8422_2325, step)
        };
        let got = BASES.map(hash);
        assert_eq!(got, FROZEN, "{got:#018x?}");
    }

    /// FNV-1a of the entries, row by row, of every matrix of [`BASES`].
    const FROZEN: [u64; 36] = [
        0xaf63_bc4c_8601_b62c,
        0xd8ea_49f4_0c29_3c85,
        0x93f4_e462_0d04_4e15,
        0x1aa6_f89e_e8c7_dd85,
        0x2528_3917_8859_b1c5,
        0x3bc9_7e99_4dc3_b515,
        0xc5d1_6acc_b4ef_4c45,
        0xfafd_e0fd_2c79_efc5,
        0x4113_e119_90b9_2aa5,
        0x188c_67a1_5524_6105,
        0x3d17_9cc1_d459_72c5,
        0x8b1a_1179_2f80_ecc5,
        0xe40c_2cdf_92ef_a1c5,
        0x4184_7f96_ccb6_bab5,
        0x833d_2d29_47f1_f33d,
        0xa715_9901_3318_9485,
        0x7205_348c_e51c_4f85,
        0x7b6a_403b_7244_51d5,
        0x1830_e070_56df_3545,
        0x150b_56e0_53cf_7ae5,
        0x432d_a5a4_1aa4_dc25,
        0xab9b_12f1_57a7_8fd5,
        0xf3a5_cc09_5963_6a65,
        0x253d_e468_4397_2545,
        0x0621_f96b_2e52_02c5,
        0x468a_93fc_ff7b_d705,
        0x95e2_f1ef_2c07_0935,
        0x5c93_aa12_e21f_8f85,
        0xbc47_a3d7_88b3_01f5,
        0x4eac_1523_f904_dcf5,
        0xeff0_556f_fced_de45,
        0xf51c_c11e_5282_9c35,
        0xe06e_2366_e54a_4aa5,
        0x1fd5_598f_6818_3eb5,
        0x4f56_e83a_69bb_2b05,
        0x1417_e8a4_e62d_9b85,
    ];
}
