//! The names of the element types.

/// The element types that tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary16: 11 bits of precision.
    F16,
    /// bfloat16, the upper half of a binary32: 8 bits of precision.
    BF16,
    /// IEEE binary32: 24 bits of precision.
    F32,
    /// IEEE binary64: 53 bits of precision.
    F64,
}

impl DType {
    /// Returns the size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }

    /// Returns the name: `"f16"`, `"bf16"`, `"f32"` or `"f64"`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
