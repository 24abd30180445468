//! The names of the instruction sets.

use std::fmt;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// No instruction set beyond the baseline of the target: registers of one lane.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 256 bits, 16 registers.
    Avx2,
    /// x86-64 with AVX-512 F, BW, CD, DQ, VL: 512 bits, 32 registers.
    Avx512,
    /// AArch64: 128 bits, 32 registers.
    Neon,
}

impl Isa {
    /// Returns the name: `"portable"`, `"avx2"`, `"avx512"` or `"neon"`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
