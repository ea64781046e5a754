//! One file per operation: it checks the operands, chooses kernels and queues them, in pieces if the device cannot bind
//! an array as a whole. The arithmetic is in the WGSL of `shaders/`.

pub(crate) mod add;
pub(crate) mod add_rows;
pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod copy_blocks;
pub(crate) mod embed;
mod f16_rows;
pub(crate) mod gather_rows;
pub(crate) mod host;
pub(crate) mod kv_blocks;
pub(crate) mod linear;
pub(crate) mod product;
pub(crate) mod rms_norm;
pub(crate) mod rope;
mod rounded;
mod signed_rows;
pub(crate) mod silu_and_mul;
pub(crate) mod store_kv;
