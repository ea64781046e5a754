//! The sizes of blocks and tiles that kernels are compiled with: the `#define`s of kernels/params.cuh. A test compares
//! them.

macro_rules! geometry {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub(crate) const $name: usize = $value;)*

        /// All sizes, by their names in kernels/params.cuh.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, usize)] = &[$((stringify!($name), $value)),*];
    };
}

geometry! {
    /// The rows of a matrix are padded to a multiple of this many elements.
    WEIGHT_ALIGN = 8;
    MATVEC_THREADS = 128;
    MATVEC_PAIRS = 4;
    /// Replaces `MATVEC_PAIRS` for 4 and 8 tokens at once.
    MATVEC_PAIRS_WIDE = 8;
    BLOCK_MATVEC_PAIRS = 4;
    BLOCK_DOT_PAIRS = 8;
    BLOCK_SKINNY_PAIRS = 16;
    BLOCK_MMA_THREADS = 256;
    BLOCK_MMA_TOKENS = 64;
    BLOCK_MMA_PAIRS = 128;
    /// Bytes of dynamic shared memory.
    BLOCK_MMA_SHARED = 65536;
    ROUND_TO_BYTES_THREADS = 256;
    TILE_THREADS = 256;
    TILE_PAIRS = 32;
    TILE_TOKENS = 64;
    SCALE_AND_ROUND_THREADS = 256;
    SKINNY_THREADS = 256;
    SKINNY_PAIRS = 8;
    /// Replaces `SKINNY_PAIRS` for more than 16 tokens at once.
    SKINNY_PAIRS_WIDE = 16;
    /// Replaces `SKINNY_PAIRS_WIDE` for matrices with many rows, with up to 32 and up to 64 tokens.
    SKINNY_PAIRS_MANY_ROWS_4 = 32;
    SKINNY_PAIRS_MANY_ROWS_8 = 24;
    MATMUL_TOKENS = 128;
    MATMUL_THREADS = 128;
    MATMUL_PAIRS = 64;
    /// Bytes of dynamic shared memory.
    MATMUL_SHARED = 65536;
    MATMUL_WIDE_THREADS = 256;
    MATMUL_WIDE_PAIRS = 128;
    MATMUL_WIDE_SHARED = 98304;
    EPILOGUE_WRITE = 0;
    EPILOGUE_ADD = 1;
    EPILOGUE_SILU = 2;
    EPILOGUE_HEADS = 3;
    EPILOGUE_GATE = 4;
    EPILOGUE_UP = 5;
    NORM_THREADS = 256;
    /// The longest row of a norm that rounds to bytes.
    NORM_KEPT = 8192;
    ATTENTION_THREADS = 128;
    /// Query rows of a block.
    ATTENTION_ROWS = 8;
    /// Positions of a partition.
    ATTENTION_PARTITION = 128;
    /// The most blocks that share a row's partitions.
    ATTENTION_SPLITS = 256;
    MERGE_THREADS = 256;
    ATTENTION_TILE = 64;
    ATTENTION_TILE_THREADS = 128;
    /// Bytes of dynamic shared memory, at most.
    ATTENTION_TILE_SHARED = 98304;
    ARGMAX_THREADS = 1024;
    CEILING_THREADS = 256;
    /// Operations of a thread per round.
    CEILING_FMA_FLOPS = 64;
    /// Operations of a warp per round.
    CEILING_MMA_FLOPS = 65536;
}

/// Threads of the kernels that copy: embed, rope, store_kv, copy_blocks.
pub(crate) const COPY_THREADS: usize = 128;
/// Threads of the kernels with one value per thread: silu_and_mul, add; and of gather_rows.
pub(crate) const ELEMENT_THREADS: usize = 256;

/// Columns that kernels take of blocks at a time.
pub(crate) const UNIT: usize = 32;
