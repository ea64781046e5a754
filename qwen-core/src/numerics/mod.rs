//! Numbers, apart from any model: how they are stored ([`encoding`]), what kernels may round ([`precision`]), sizes that
//! cannot wrap ([`size`]) and as people read them ([`HumanBytes`]), and the floating-point state of a thread
//! ([`float_env`]).

pub mod encoding;
pub mod float_env;
pub(crate) mod human_bytes;
pub mod precision;
pub mod size;

pub use encoding::Encoding;
pub use human_bytes::HumanBytes;
pub use precision::Precision;
