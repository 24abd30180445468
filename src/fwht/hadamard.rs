//! Generates the Hadamard matrices whose order is not a power of two.
//!
//! With `χ` the quadratic character of the field of `q` elements (1 on squares, −1 on others, 0 at 0) and
//! `Q[i][j] = χ(i − j)`:
//!
//! ```text
//!   Paley I,  q ≡ 3 (mod 4), order q + 1:      H = I + [ 0   1ᵀ ]
//!                                                      [ −1  Q  ]
//!   Paley II, q ≡ 1 (mod 4), order 2(q + 1):   C = [ 0  1ᵀ ]   0 -> [ 1 −1; −1 −1 ],  ±1 -> ± [ 1 1; 1 −1 ]
//!                                                  [ 1  Q  ]
//! ```
//!
//! Source: R. E. A. C. Paley, On orthogonal matrices, 1933. Every `q` but 25 is a prime; the field of 25 is `F_5[√2]`.
//! Order 40 is 2·20, so its matrix is `H_20 ⊗ H_2` and the length is `20·2^{k+1}`; the same holds for every other even
//! multiple, which makes the `b` of a length unique.

use std::sync::OnceLock;

use crate::simd::Scalar;
use crate::tensor::DType;

/// The orders of the matrices that [`matrix`] makes. An order that is an even multiple of a smaller one is left out.
pub(crate) const BASES: [usize; 10] = [1, 12, 20, 28, 36, 44, 52, 60, 108, 140];

/// The field of `q = p` or `q = p²` elements. Element `i` stands for `i % p + (i / p)·√d`, where `d` is not a square.
struct Field {
    p: usize,
    q: usize,
    /// A non-square of `F_p` if `q = p²`, else 0.
    d: usize,
}

impl Field {
    /// Makes the field of `q` elements, for `q` a prime or 25.
    fn new(q: usize) -> Self {
        match q {
            25 => Field { p: 5, q, d: 2 },
            _ => Field { p: q, q, d: 0 },
        }
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

/// Generates `H_b` row by row, for `b` in [`BASES`].
pub(crate) fn matrix(b: usize) -> Vec<i8> {
    debug_assert!(BASES.contains(&b));
    if b == 1 {
        return vec![1];
    }
    // 28 and 36 = 2(q + 1) with q = 13, 17; 52 with q = 25. The others are q + 1 with q prime.
    let second = matches!(b, 28 | 36 | 52);
    let q = if second { b / 2 - 1 } else { b - 1 };
    let field = Field::new(q);
    let chi = field.characters();
    let border = if second { 1 } else { -1 };
    let core = |i: usize, j: usize| match (i, j) {
        (0, 0) => 0,
        (0, _) => 1,
        (_, 0) => border,
        _ => chi[field.sub(i - 1, j - 1)],
    };
    let mut h = Vec::with_capacity(b * b);
    for i in 0..b {
        for j in 0..b {
            h.push(if second {
                let corner = i % 2 == 1 && j % 2 == 1;
                match core(i / 2, j / 2) {
                    0 => {
                        if i % 2 == 0 && j % 2 == 0 {
                            1
                        } else {
                            -1
                        }
                    }
                    c => {
                        if corner {
                            -c
                        } else {
                            c
                        }
                    }
                }
            } else {
                core(i, j) + (i == j) as i8
            });
        }
    }
    h
}

/// Returns `H_b` row by row as numbers of type `T`. It is generated at the first call for each `b`.
pub(crate) fn entries<T: Scalar>(b: usize) -> &'static [T] {
    static TABLES: [OnceLock<(Vec<f32>, Vec<f64>)>; BASES.len()] = [const { OnceLock::new() }; BASES.len()];
    let which = BASES.iter().position(|&c| c == b).expect("a base of an Order");
    let (single, double) = TABLES[which].get_or_init(|| {
        let h = matrix(b);
        (h.iter().map(|&x| x as f32).collect(), h.iter().map(|&x| x as f64).collect())
    });
    match T::DTYPE {
        DType::F64 => bytemuck::cast_slice(double),
        _ => bytemuck::cast_slice(single),
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
                for j in 0..b {
                    let dot: i32 = (0..b).map(|k| (h[i * b + k] * h[j * b + k]) as i32).sum();
                    assert_eq!(dot, if i == j { b as i32 } else { 0 }, "order {b}, rows {i} and {j}");
                }
            }
        }
    }
}
