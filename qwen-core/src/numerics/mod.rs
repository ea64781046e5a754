//! Numbers, apart from any model: how they are stored ([`encoding`]), what kernels may round ([`precision`]), sizes
//! that cannot overflow ([`size`]), and the floating-point state of a thread ([`float_env`]).

pub mod encoding;
pub mod float_env;
pub mod precision;
pub mod size;

pub use encoding::Encoding;
pub use precision::Precision;
