//! The names of the element types.

/// Runs `$body` with `$e` as the Rust type that `$dtype` names, once per element type.
macro_rules! with_dtype {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F16 => {
                type $e = half::f16;
                $body
            }
            $crate::dtype::DType::BF16 => {
                type $e = half::bf16;
                $body
            }
            $crate::dtype::DType::F32 => {
                type $e = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $e = f64;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

/// The element types that tensors are stored in.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
