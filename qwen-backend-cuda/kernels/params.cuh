// The parameters of every kernel: one structure by value, the same bytes as its twin in src/params.rs; and the sizes of
// blocks and tiles that the launching side has to know, the same numbers as in src/geometry.rs. Tests compare both.
//
// Arrays are dense and row-major unless a stride is named. `encoding`: 0 f32, 1 bf16, 2 f16; of keys and values also 3,
// Q8_0. Pointers that do not apply
// are null. Sizes are below 2^31, but for numbers of slots, which are below 2^32 - 1. Indices that a kernel reads from
// memory (ids, rows, slots, blocks, lengths) may hold anything: each is bounded before it is used, as stated at the
// kernel. Nothing here includes a header of CUDA: the same text compiles for the GPU and for the CPU.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

// Elements that the rows of a matrix on the device are padded to, with zeros: 16 bytes of f16 or bf16.
#define WEIGHT_ALIGN 8

// ---- embed: out[t] = table[ids[t]] decoded; an id at or beyond `vocab` gives zeros.
// ---- {format}_embed: the same from a table in blocks, whose `stride` is in bytes.
// grid (rows, 1, 1), block 128.
struct Embed {
    const u32* ids;
    const void* table;  // [vocab, stride]
    float* out;         // [rows, cols]
    const u32* column_order;  // {format}_embed, [cols]: the column of out of each stored column; or null
    u32 rows, cols, stride, vocab, encoding;
    u32 group_units;  // {format}_embed: units of 32 columns of a group, for int4 and int8
};

// ---- Products: w x for `tokens` rows of x, and the epilogue that the sums pass through.
//
// Rows of the matrix are taken in pairs, the unit of an epilogue:
//   write, add: pair p is the rows 2p and 2p + 1; with an odd number of rows the last pair is half empty.
//   silu:       pair p is the rows p and p + rows / 2: gate and up. out[t][p] = silu(gate) * up, out is [tokens, rows/2].
//   heads:      queries and keys: the rows i and i + head_dim / 2 of a head, which rotate together. Values: 2p, 2p + 1.
// All but silu may be of a part of a larger matrix, whose first row is the row `first_row` of all, for heads a whole
// number of them: out is [tokens, out_rows], and bias is that of all.
// write: out = sum (+ bias, where it is not null). add: out += sum. heads: sum + bias, queries and keys rotated with
// cos_sin; queries to out, keys and values to their slots of the store (not to out); a token whose slot
// is at or beyond num_slots is not stored. The store is [num_key_value_heads][num_slots][head_dim], f32 or f16; values
// are clamped to +-65504 for f16, a NaN stays one.
struct Product {
    const float* x;         // [tokens, cols]
    const void* w;          // [rows, stride]
    float* out;
    const float* bias;      // [rows]
    const void* rounded;    // [tokens, stride]: x as `scale_and_round` wrote it; for skinny and matmul
    const float* scales;    // [tokens]: factors of the sums over activations in f16; null with bf16
    const float* cos_sin;   // [tokens, head_dim]: cosines, then sines
    const u32* slot_mapping;  // [tokens]
    void* keys;
    void* values;
    const u32* column_order;  // [cols]: the column of x of each stored column; null if they are in order. For blocks
    u32 tokens, rows, cols, stride;
    u32 num_attention_heads, num_key_value_heads, head_dim, num_slots;
    u32 key_encoding, value_encoding;
    u32 first_row, out_rows;
    u32 epilogue, group_units;  // for blocks, see below
};

// Matrices in blocks, {format}_...: w is the table of the format, if it has one, and then rows of `stride` bytes; int4
// and int8 have groups of `group_units` units of 32 columns. One kernel has all epilogues: `epilogue` is EPILOGUE_WRITE,
// ADD, SILU or HEADS, or, for gate and up stored in two ways and multiplied one after the other, GATE: out = silu(sum) *
// out, or UP: out = silu(out) * sum.
#define EPILOGUE_WRITE 0
#define EPILOGUE_ADD 1
#define EPILOGUE_SILU 2
#define EPILOGUE_HEADS 3
#define EPILOGUE_GATE 4
#define EPILOGUE_UP 5

// {format}_matvec_t{1,4}: T tokens at once, f32 arithmetic. Each output's sum has one order, whatever T is and wherever
// its token stands in the batch. grid (ceil(tokens / T), ceil(pairs / BLOCK_MATVEC_PAIRS), 1), block MATVEC_THREADS.
#define BLOCK_MATVEC_PAIRS 4

// {format}_dot_t{1,4}: the same for tokens rounded to bytes: rounded is what `round_to_bytes` wrote.
// grid (ceil(tokens / T), ceil(pairs / BLOCK_DOT_PAIRS), 1), block MATVEC_THREADS.
#define BLOCK_DOT_PAIRS 8

// {format}_mma_n{2,8}: up to 8 N tokens by tensor cores (8.0 on); rounded is what `scale_and_round_bf16` wrote, with
// `cols` as its stride. With fewer pairs a block, reading the tokens for each block would take longer than reading the
// matrix. grid (ceil(pairs / BLOCK_SKINNY_PAIRS), 1, 1), block SKINNY_THREADS.
#define BLOCK_SKINNY_PAIRS 16

// {format}_mma_tile: prompts, likewise. grid (ceil(tokens / BLOCK_MMA_TOKENS), ceil(pairs / BLOCK_MMA_PAIRS), 1).
// Dynamic shared memory: BLOCK_MMA_SHARED.
#define BLOCK_MMA_THREADS 256
#define BLOCK_MMA_TOKENS 64
#define BLOCK_MMA_PAIRS 128
#define BLOCK_MMA_SHARED 65536

// matvec_{f32,bf16,f16}_t{1,2,4,8}_{write,add,silu,heads}: T tokens at once, f32 arithmetic. Each output's sum has one
// order, whatever T is and wherever its token stands in the batch.
// grid (ceil(pairs / MATVEC_PAIRS), ceil(tokens / T), 1), with t4 and t8 MATVEC_PAIRS_WIDE in its place.
#define MATVEC_THREADS 128
#define MATVEC_PAIRS 4
#define MATVEC_PAIRS_WIDE 8

// tile_{f32,bf16,f16}_{write,add,silu,heads}: prompts in f32 arithmetic, in tiles of registers.
// grid (ceil(pairs / TILE_PAIRS), ceil(tokens / TILE_TOKENS), 1).
#define TILE_THREADS 256
#define TILE_PAIRS 32
#define TILE_TOKENS 64

// scale_and_round_{bf16,f16}: x rounded to 16 bits for tensor cores. f16: each row is first divided by the power of two
// that brings its largest magnitude to [1, 2) (1 for a row of zeros), which is written to scales. Columns up to
// `stride` are filled with zeros. Infinities and NaNs are kept. grid (tokens, 1, 1).
#define SCALE_AND_ROUND_THREADS 256
struct ScaleAndRound {
    const float* x;  // [tokens, cols]
    void* rounded;   // [tokens, stride]
    float* scales;   // [tokens]
    const u32* column_order;  // [cols]: bf16 only, the column of x of each rounded one; null if they are in order
    u32 tokens, cols, stride, unused;
};

// round_to_bytes: x rounded to signed bytes for matrices in blocks, 32 columns at a time: a row is `cols` codes, then for
// each 32 of them an f32 scale, the largest magnitude divided by 127, padded to 16 bytes. A block with a value that is not
// finite has a scale of NaN. `cols` is a multiple of 32. grid (tokens, 1, 1).
#define ROUND_TO_BYTES_THREADS 256
struct RoundToBytes {
    const float* x;           // [tokens, cols]
    void* bytes;
    const u32* column_order;  // [cols]: the column of x of each rounded one; null if they are in order
    u32 tokens, cols;
};

// skinny_{bf16,f16}_n{1,2,4,8}_{write,add,silu,heads}: up to 8 N tokens by tensor cores (compute capability 8.0 on),
// the matrix read once and straight into registers, its columns divided among the warps of a block, whose sums are
// added in order. Reads w and rounded. grid (ceil(pairs / P), 1, 1). More tokens need more pairs a block: else reading
// the tokens for each block would take longer than reading the matrix. P is SKINNY_PAIRS with n1 and n2;
// SKINNY_PAIRS_WIDE with n4 and n8 for add and heads, whose matrices have few rows; SKINNY_PAIRS_MANY_ROWS_N for write
// and silu.
#define SKINNY_THREADS 256
#define SKINNY_PAIRS 8
#define SKINNY_PAIRS_WIDE 16
#define SKINNY_PAIRS_MANY_ROWS_4 32
#define SKINNY_PAIRS_MANY_ROWS_8 24

// matmul_{bf16,f16}_{write,add,silu,heads}, matmul_wide_...: prompts by tensor cores (8.0 on), asynchronous copies in a
// pipeline. Reads w and rounded. grid (ceil(tokens / MATMUL_TOKENS), ceil(pairs / MATMUL_PAIRS), 1): the tokens of one
// strip of the matrix run side by side, so that it is read from memory once. Dynamic shared memory: MATMUL_SHARED. The
// wide ones take MATMUL_WIDE_PAIRS and MATMUL_WIDE_SHARED in place of these.
#define MATMUL_TOKENS 128
#define MATMUL_THREADS 128
#define MATMUL_PAIRS 64
#define MATMUL_SHARED 65536
#define MATMUL_WIDE_THREADS 256
#define MATMUL_WIDE_PAIRS 128
#define MATMUL_WIDE_SHARED 98304

// ---- rms_norm: out = x / sqrt(mean(x^2) + eps) * weight. grid (rows, 1, 1).
// ---- rms_norm_to_bytes: the same, rounded to bytes as `round_to_bytes` does; hidden_size is a multiple of 32, up to
// NORM_KEPT.
#define NORM_THREADS 256
#define NORM_KEPT 8192
struct RmsNorm {
    const float* x;       // [rows, hidden_size]
    const float* weight;  // [hidden_size]
    float* out;           // rms_norm, [rows, hidden_size]
    void* bytes;          // rms_norm_to_bytes
    u32 hidden_size, rows;
    float eps;
    u32 unused;
};

// ---- Keys or values in Q8_0: an array of [num_key_value_heads][num_slots][head_dim] signed bytes, then an f16 scale for
// each 32 of them; head_dim is a multiple of 32. Products store none: store_kv does.

// ---- rope: rotate the query and key heads of qkv in place. grid (rows, 1, 1), block 128.
// ---- store_kv: the key and value heads of qkv to their slots. grid (rows, 1, 1), block 128.
struct Heads {
    float* qkv;               // [rows, (num_attention_heads + 2 num_key_value_heads) * head_dim]
    const float* cos_sin;     // rope
    const u32* slot_mapping;  // store_kv
    void* keys;
    void* values;
    u32 rows, num_attention_heads, num_key_value_heads, head_dim, num_slots;
    u32 key_encoding, value_encoding, unused;
};

// ---- Attention: causal, over the paged store. Token i of the n that sequence s has in this step sees the positions 0
// ..= context_lens[s] - n + i. A position p of s lies in slot block_tables[s][p / block_size] * block_size + p %
// block_size. Rows at or beyond cu_seqlens_q[num_seqs] are padding: what is written for them, if anything, is not read.
// Bounds: cu_seqlens_q counts up to num_tokens, a context up to max_blocks_per_seq * block_size (below 2^31), a block
// up to the last ones of the store, which has 16 slots at least; values beyond are clamped, and the results without
// meaning.
struct Attention {
    const float* qkv;         // [num_tokens, (num_attention_heads + 2 num_key_value_heads) * head_dim]
    const void* keys;
    const void* values;
    const u32* cu_seqlens_q;  // [num_seqs + 1]
    const u32* context_lens;  // [num_seqs]
    const u32* block_tables;  // [num_seqs, max_blocks_per_seq]
    float* out;               // [num_tokens, num_attention_heads * head_dim]
    float* partials;          // [num_tokens][num_attention_heads][max_partitions][head_dim + 2], see below; or null
    u32 num_tokens, num_seqs, num_attention_heads, num_key_value_heads, head_dim;
    u32 block_size, max_blocks_per_seq, num_slots, max_partitions;
    u32 by_token;             // attention: whether all rows of a block are of one token
    u32 key_encoding, value_encoding, unused;
    float scale;              // 1 / sqrt(head_dim)
};

// attention_k{f32,f16}_vf16_d{32,64,128,256} and attention_kf32_vf32_d...: for head_dim up to D (a multiple of 8), f32
// arithmetic. attention_any_d{64,128,256}: keys and values as their encodings say, Q8_0 among them. A block has ATTENTION_ROWS query rows (a token's query head) that share a K/V head: grid (num_tokens *
// ceil(heads_per_kv / ATTENTION_ROWS), num_key_value_heads, z) with by_token, else (ceil(num_tokens * heads_per_kv /
// ATTENTION_ROWS), num_key_value_heads, 1). Partitions of ATTENTION_PARTITION positions are reduced one by one and
// merged in order of position, by the block itself (partials null, z = 1) or by attention_merge (with partials and
// by_token, block z takes the partitions z, z + gridDim.z, ...). The bits are the same either way. A partial is
// head_dim weighted sums of values, the largest score, and the total weight.
#define ATTENTION_THREADS 128
#define ATTENTION_ROWS 8
#define ATTENTION_PARTITION 128
// The most blocks that share a row's partitions.
#define ATTENTION_SPLITS 256

// attention_merge: grid (num_attention_heads, num_tokens, 1).
#define MERGE_THREADS 256

// attention_tile_k{f32,f16}_d{64,128}: prompts by tensor cores (8.0 on), values in f16, or in Q8_0 and rounded to f16.
// Those of f32 take keys in Q8_0 too, which become f32. Queries are split into two f16
// parts so that scores keep f32's accuracy as far as the stored keys have it; f32 keys likewise. A block has
// ATTENTION_TILE tokens of one sequence and one query head; blocks along x number the tiles of all sequences in order,
// ceil(tokens of the sequence / ATTENTION_TILE) each, and blocks beyond the last tile return at once.
// grid (ceil(num_tokens / ATTENTION_TILE) + num_seqs, num_attention_heads, 1). Dynamic shared memory: two tiles of keys
// and values, 2 * ATTENTION_TILE * D * (bytes of a key + 2); ATTENTION_TILE_SHARED is the largest size.
#define ATTENTION_TILE 64
#define ATTENTION_TILE_THREADS 128
#define ATTENTION_TILE_SHARED 98304

// ---- silu_and_mul: out = silu(gate) * up, rows of gate_up are [gate | up]. grid (ceil(width / 256), rows, 1), block
// 256.
// ---- add: out += x over rows * width values (width 1: rows values). grid (ceil(rows * width / 256), 1, 1), block 256.
// ---- gather_rows: out[i] = x[indices[i]], zeros for an index at or beyond x_rows. grid (rows, 1, 1), block 256.
struct Rows {
    const float* x;
    const u32* indices;
    float* out;
    u32 rows, width, x_rows, unused;  // x_rows: gather_rows
};

// ---- add_rows: out[indices[i]] += scale * x[i], nothing for an index at or beyond out_rows. grid (rows, 1, 1), block
// 256.
struct AddRows {
    const float* x;      // [rows, width]
    const u32* indices;  // [rows], each at most once
    float* out;          // [out_rows, width]
    u32 rows, width, out_rows;
    float scale;
};

// ---- argmax: the index of the largest of each row's first `valid` values, the lowest among equals; 0xffffffff for a
// row with a NaN or an infinity among them. grid (rows, 1, 1).
#define ARGMAX_THREADS 1024
struct Argmax {
    const float* x;  // [rows, width]
    u32* out;        // [rows]
    u32 rows, width, valid, unused;
};

// ---- copy_blocks: within a plane [heads][blocks][block_bytes] of an array, which begins at the byte `first`, copy block
// pairs[2i] over pairs[2i + 1], all heads; a pair with a block at or beyond num_blocks is skipped. block_bytes is a
// multiple of 16. No block is the target of two pairs; a source is never a target. grid (pairs, heads, 1), block 128.
struct CopyBlocks {
    void* array;
    const u32* pairs;
    u64 first;
    u32 num_pairs, num_blocks, block_bytes, unused;
};

// ---- The GPU's own limits, measured. ceiling_read: each thread sums 16-byte words of `from`, `bytes` in all, and
// writes one u32 to out[thread]. ceiling_copy: `bytes` of `from` to `out`. ceiling_fma_f32, ceiling_mma_bf16 (8.0 on):
// `rounds` rounds in registers, one f32 a thread to `out`: CEILING_FMA_FLOPS operations a thread and round,
// CEILING_MMA_FLOPS a warp and round. Grid any, block CEILING_THREADS.
#define CEILING_THREADS 256
#define CEILING_FMA_FLOPS 64
#define CEILING_MMA_FLOPS 65536
struct Ceiling {
    const void* from;
    void* out;
    u64 bytes;
    u32 rounds, unused;
};
