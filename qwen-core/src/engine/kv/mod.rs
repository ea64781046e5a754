//! Who owns which K/V block, and what it holds: integers only, no device and no tensor.
//!
//! K/V is stored in blocks of a fixed number of positions. A sequence is a list of blocks; blocks are
//! reference-counted, so that sequences can share them, and a shared block is copied before a write. Blocks are found by
//! their tokens, and stay when nobody uses them, until memory is wanted. The memory itself belongs to the backend.

mod block_pool;
mod block_table;
mod chain;
mod prefix_cache;
mod shared_blocks;

pub use block_pool::BlockPool;
pub use block_table::BlockTable;
pub use prefix_cache::Prefix;
pub use shared_blocks::SharedBlocks;
