//! Instruction sets by name: which ones this CPU has, and which to use.

use std::fmt;
use std::str::FromStr;

use qwen_core::Error;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C: Haswell, Zen and later.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: Skylake-X, Zen 4 and later.
    Avx512,
    /// [`Isa::Avx512`] and the dot product of bytes: Ice Lake, Zen 4 and later.
    Avx512Vnni,
    /// [`Isa::Avx512Vnni`] and the dot product of bf16: Cooper Lake, Sapphire Rapids, Zen 4 and later.
    Avx512Bf16,
    /// 64-bit Arm.
    Neon,
}

impl Isa {
    /// All of them, whether this CPU has them or not.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Neon];

    /// Those that this CPU has, slowest first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this CPU has.
    ///
    /// The bf16 dot product is not used if it is slower: Intel's cores (measured on Emerald Rapids) start one every
    /// other cycle, but two f32 multiply-adds per cycle, which are 1.8 times as fast in effect and round less. AMD's
    /// cores start one of either per cycle.
    pub fn best() -> Isa {
        let slow_dot = |isa: Isa| isa.has_bf16_dot() && !is_amd();
        Self::ALL.into_iter().rfind(|isa| isa.is_available() && !slow_dot(*isa)).unwrap_or(Isa::Scalar)
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2(),
                Isa::Avx512 => avx512(),
                Isa::Avx512Vnni => avx512() && is_x86_feature_detected!("avx512vnni"),
                Isa::Avx512Bf16 => Isa::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
                Isa::Neon => false,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar || (cfg!(target_arch = "aarch64") && self == Isa::Neon)
        }
    }

    /// Whether there is an instruction for dot products of bf16.
    pub fn has_bf16_dot(self) -> bool {
        self == Isa::Avx512Bf16
    }

    /// The most tokens of a register tile.
    pub(crate) fn tile_tokens(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => <super::avx2::Avx2 as super::Simd>::TOKENS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
                <super::avx512::Avx512<true, true> as super::Simd>::TOKENS
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => <super::neon::Neon as super::Simd>::TOKENS,
            _ => <super::Scalar as super::Simd>::TOKENS,
        }
    }

    /// The most tokens of a register tile of integer dot products.
    pub(crate) fn int8_tile_tokens(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => <super::avx2::Avx2 as super::Simd>::INT8_TOKENS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512Bf16 => <super::avx512::Avx512<true, true> as super::Simd>::INT8_TOKENS,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => <super::neon::Neon as super::Simd>::INT8_TOKENS,
            _ => <super::Scalar as super::Simd>::INT8_TOKENS,
        }
    }

    /// The name that `QWEN_CPU_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Neon => "neon",
        }
    }

    /// This instruction set if the CPU has it.
    pub(crate) fn checked(self) -> Result<Isa, Error> {
        if self.is_available() {
            return Ok(self);
        }
        let available: Vec<_> = Self::available().into_iter().map(Isa::name).collect();
        Err(Error::unsupported(
            format!("instruction set `{self}`"),
            format!("this CPU does not have it; it has {}", available.join(", ")),
        ))
    }
}

/// Whether AMD made this CPU.
fn is_amd() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        vendor.as_flattened() == b"AuthenticAMD"
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Isa, Error> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.into_iter().map(Isa::name).collect();
            Error::argument("isa", format!("`{name}` is not one of {}", names.join(", ")))
        })
    }
}
