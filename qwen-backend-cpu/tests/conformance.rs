//! The conformance suite on every instruction set that this CPU has, in both precisions.

use qwen_backend_cpu::{CpuBackend, CpuOptions, Isa};
use qwen_core::{Precision, Result};

fn backend(isa: Isa, precision: Precision) -> Result<CpuBackend> {
    CpuBackend::new(CpuOptions::new().isa(isa).precision(precision).threads(2))
}

qwen_conformance::conformance_tests! {
    scalar_exact => || backend(Isa::Scalar, Precision::Exact),
    scalar_fast => || backend(Isa::Scalar, Precision::Fast),
    avx2_exact => || backend(Isa::Avx2, Precision::Exact),
    avx2_fast => || backend(Isa::Avx2, Precision::Fast),
    avx512_exact => || backend(Isa::Avx512, Precision::Exact),
    avx512_fast => || backend(Isa::Avx512, Precision::Fast),
    avx512_vnni_exact => || backend(Isa::Avx512Vnni, Precision::Exact),
    avx512_vnni_fast => || backend(Isa::Avx512Vnni, Precision::Fast),
    avx512_bf16_exact => || backend(Isa::Avx512Bf16, Precision::Exact),
    avx512_bf16_fast => || backend(Isa::Avx512Bf16, Precision::Fast),
    neon_exact => || backend(Isa::Neon, Precision::Exact),
    neon_fast => || backend(Isa::Neon, Precision::Fast),
}
