// compute_80
// machine code: HMMA LDSM LDGSTS
//
// matmul: a matrix times the tokens of prompts by tensor cores.
//
//     sum[token][row] = sum_k rounded[token][k] w[row][k]
//
// A block makes 128 tokens x 64 or 128 pairs of rows, which lie side by side in the tile so that a thread gets both
// sums of a pair. A warp takes 64 x 64 of the tile: 8 loads of fragments for 32 products. A wide tile occupies a
// multiprocessor and reads a quarter less from the L2 cache, which limits the speed, than two narrow ones; narrow tiles
// serve matrices that have too few wide ones to occupy all multiprocessors. Columns pass in stages of 32 through a ring
// of shared memory that asynchronous copies keep filled three stages ahead; fragments are loaded half a stage ahead of
// their products.
//
// In shared memory a row of a stage is 64 bytes, four chunks of 16, and two rows make a line of 128. Chunk c of row r
// is stored at (4 r + c ^ r / 2) % 8 of its line: eight rows read at one c, or four chunks written to two rows, touch
// all banks once.
#include "epilogue.cuh"
#include "mma.cuh"
#include "scales.cuh"

#define STAGE_COLUMNS 32
#define STAGES 4
#define ROW_BYTES (STAGE_COLUMNS * 2)
#define WARP_TILE 64
// Tiles of 16 tokens and of 8 rows that a warp has.
#define TOKEN_TILES (WARP_TILE / 16)
#define ROW_TILES (WARP_TILE / 8)
// Warps along the tokens; the others are along the rows.
#define TOKEN_WARPS (MATMUL_TOKENS / WARP_TILE)
// Tokens whose sums a warp hands over at once, and those of a pair that the epilogue takes at once.
#define HANDED_AT_ONCE 32
#define EMITTED_AT_ONCE 8

// The tile of a block of THREADS threads.
template <u32 THREADS>
struct Tile {
    static const u32 PAIRS = THREADS / 32 / TOKEN_WARPS * WARP_TILE / 2;
    // Of a stage: its tokens, then rows of the matrix.
    static const u32 TOKEN_BYTES = MATMUL_TOKENS * ROW_BYTES;
    static const u32 STAGE_BYTES = TOKEN_BYTES + 2 * PAIRS * ROW_BYTES;
    // Rows that the block's threads copy at once, four threads a row.
    static const u32 ROWS_AT_ONCE = THREADS / 4;
    static const u32 TOKEN_COPIES = MATMUL_TOKENS / ROWS_AT_ONCE;
    static const u32 ROW_COPIES = 2 * PAIRS / ROWS_AT_ONCE;
    // A warp's part of the ring, once that is free: a pair a lane.
    static const u32 HANDED = HANDED_AT_ONCE * 32;
    static_assert(STAGES * STAGE_BYTES >= THREADS / 32 * HANDED * sizeof(float2), "the ring holds what is handed over");
};

typedef Tile<MATMUL_THREADS> Narrow;
typedef Tile<MATMUL_WIDE_THREADS> Wide;
static_assert(Narrow::PAIRS == MATMUL_PAIRS && MATMUL_SHARED == STAGES * Narrow::STAGE_BYTES, "as params.cuh says");
static_assert(Wide::PAIRS == MATMUL_WIDE_PAIRS && MATMUL_WIDE_SHARED == STAGES * Wide::STAGE_BYTES,
              "as params.cuh says");

// Bytes from a stage's start to chunk `chunk` of row `row`.
DEVICE u32 place(u32 row, u32 chunk) {
    return row / 2 * 128 + (row % 2 * 4 + (chunk ^ row / 2 % 4)) * 16;
}

// What a thread copies of each stage: one chunk of some rows of both operands.
template <class Epilogue, class Tile>
struct Source {
    const u16* rounded;
    const u16* w;
    // In chunks of 16 bytes from the operand's start, so that 32 bits do.
    u32 token[Tile::TOKEN_COPIES], row[Tile::ROW_COPIES];
    // Tokens beyond the last are zeros.
    bool there[Tile::TOKEN_COPIES];
    u32 column;
    u32 to;

    __device__ __forceinline__ explicit Source(const Product& p) {
        const u32 chunk = threadIdx.x % 4, first = threadIdx.x / 4;
        rounded = static_cast<const u16*>(p.rounded);
        w = static_cast<const u16*>(p.w);
        column = 8 * chunk;
        to = place(first, chunk);
#pragma unroll
        for (u32 i = 0; i < Tile::TOKEN_COPIES; i++) {
            const u32 t = blockIdx.x * MATMUL_TOKENS + first + i * Tile::ROWS_AT_ONCE;
            there[i] = t < p.tokens;
            token[i] = smaller(t, p.tokens - 1) * (p.stride / 8);
        }
#pragma unroll
        for (u32 i = 0; i < Tile::ROW_COPIES; i++) {
            const u32 local = first + i * Tile::ROWS_AT_ONCE;
            const PairRows pair = matrix_rows<Epilogue>(p, blockIdx.y * Tile::PAIRS + local / 2);
            row[i] = (local % 2 == 0 ? pair.first : pair.second) * (p.stride / 8);
        }
    }

    // Start the copies of the next stage to `stage`, zeros beyond the last column. Rows ROWS_AT_ONCE apart are whole
    // lines apart, at the same place of their line.
    __device__ __forceinline__ void copy(SharedAddress stage, u32 stride) {
        const bool inside = column < stride;
        const u32 from = inside ? column : 0;
#pragma unroll
        for (u32 i = 0; i < Tile::TOKEN_COPIES; i++) {
            const u32 at = to + i * Tile::ROWS_AT_ONCE * ROW_BYTES;
            copy_async(stage + at, rounded + size_t(token[i]) * 8 + from, inside && there[i]);
        }
#pragma unroll
        for (u32 i = 0; i < Tile::ROW_COPIES; i++) {
            const u32 at = Tile::TOKEN_BYTES + to + i * Tile::ROWS_AT_ONCE * ROW_BYTES;
            copy_async(stage + at, w + size_t(row[i]) * 8 + from, inside);
        }
        column += STAGE_COLUMNS;
    }
};

// The operands of 16 columns: of each tile of 16 tokens, and of each two tiles of 8 rows.
struct Fragments {
    u32 tokens[TOKEN_TILES][4];
    u32 rows[ROW_TILES / 2][4];
};

// Where a lane reads its warp's fragments in a stage: of the first and the second 16 columns.
struct Reader {
    u32 tokens[2], rows[2];

    __device__ __forceinline__ Reader() {
        const u32 l = lane();
        const u32 first_token = warp() % TOKEN_WARPS * WARP_TILE, first_row = warp() / TOKEN_WARPS * WARP_TILE;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            // Tiles of a load: tokens 0.. and 8.. of the first 8 columns, then of the others; rows 0.. of the first 8
            // columns and of the others, then rows 8.. of both.
            tokens[half] = place(first_token + l % 16, 2 * half + l / 16);
            rows[half] = MATMUL_TOKENS * ROW_BYTES + place(first_row + l / 16 * 8 + l % 8, 2 * half + l / 8 % 2);
        }
    }

    __device__ __forceinline__ void load(Fragments& to, SharedAddress stage, u32 half) const {
#pragma unroll
        for (u32 i = 0; i < TOKEN_TILES; i++) {
            load_tiles(to.tokens[i], stage + (tokens[half] + i * 16 * ROW_BYTES));
        }
#pragma unroll
        for (u32 i = 0; i < ROW_TILES / 2; i++) {
            load_tiles(to.rows[i], stage + (rows[half] + i * 16 * ROW_BYTES));
        }
    }
};

template <class Half>
DEVICE void multiply(float (&c)[TOKEN_TILES][ROW_TILES][4], const Fragments& of) {
#pragma unroll
    for (u32 i = 0; i < TOKEN_TILES; i++) {
#pragma unroll
        for (u32 j = 0; j < ROW_TILES; j++) {
            const u32(&rows)[4] = of.rows[j / 2];
            mma(Half(), c[i][j], of.tokens[i], rows[j % 2 * 2], rows[j % 2 * 2 + 1]);
        }
    }
}

// An epilogue for several pairs at once: what they add to is read for all of them before the first is written.
template <class Epilogue>
struct Emitter {
    DEVICE float2 before(const Product&, u32, u32) {
        return float2{0.0f, 0.0f};
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float2, float first, float second) {
        Epilogue::emit(p, token, pair, first, second);
    }
};

template <>
struct Emitter<epilogue::add> {
    DEVICE float2 before(const Product& p, u32 token, u32 pair) {
        const float* const out = outputs(p, token) + 2 * pair;
        return float2{out[0], 2 * pair + 1 < p.rows ? out[1] : 0.0f};
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float2 before, float first, float second) {
        float* const out = outputs(p, token) + 2 * pair;
        out[0] = before.x + first;
        if (2 * pair + 1 < p.rows) {
            out[1] = before.y + second;
        }
    }
};

// Hand a warp's sums to the epilogue, through its part `tile` of shared memory, where a token's 32 pairs lie side by
// side: a lane then has a pair, and lanes that are neighbours write neighbours.
template <class Half, class Epilogue, class Tile>
DEVICE void emit_tile(const Product& p, const float (&c)[TOKEN_TILES][ROW_TILES][4], float2* tile) {
    const u32 g = lane() / 4, t = lane() % 4;
    const u32 pair = blockIdx.y * Tile::PAIRS + warp() / TOKEN_WARPS * 32 + lane();
    const u32 first_token = blockIdx.x * MATMUL_TOKENS + warp() % TOKEN_WARPS * WARP_TILE;
#pragma unroll
    for (u32 handed = 0; handed < WARP_TILE; handed += HANDED_AT_ONCE) {
        if (handed > 0) {
            warp_barrier();
        }
#pragma unroll
        for (u32 i = 0; i < HANDED_AT_ONCE / 8; i++) {
            const u32 of = handed / 8 + i;
#pragma unroll
            for (u32 j = 0; j < ROW_TILES; j++) {
                // Turned round by token, so that the rows of a half warp are in different banks.
                tile[(8 * i + g) * 32 + ((4 * j + t) ^ g % 4 * 4)] =
                    float2{c[of / 2][j][of % 2 * 2], c[of / 2][j][of % 2 * 2 + 1]};
            }
        }
        warp_barrier();
        const u32 first = first_token + handed;
        const u32 tokens = pair < Epilogue::pairs(p) && first < p.tokens ? smaller(p.tokens - first, HANDED_AT_ONCE) : 0;
        for (u32 from = 0; from < tokens; from += EMITTED_AT_ONCE) {
            float2 before[EMITTED_AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < EMITTED_AT_ONCE; i++) {
                if (from + i < tokens) {
                    before[i] = Emitter<Epilogue>::before(p, first + from + i, pair);
                }
            }
#pragma unroll
            for (u32 i = 0; i < EMITTED_AT_ONCE; i++) {
                if (from + i < tokens) {
                    const u32 token = first + from + i;
                    const float2 sums = tile[(from + i) * 32 + (lane() ^ i % 4 * 4)];
                    const float scale = scale_of(Half(), p, token);
                    Emitter<Epilogue>::emit(p, token, pair, before[i], sums.x * scale, sums.y * scale);
                }
            }
        }
    }
}

template <class Half, class Epilogue, class Tile>
DEVICE void matmul(const Product& p) {
    DYNAMIC_SHARED(unsigned char, ring);
    const SharedAddress first = shared_address(ring);
    const u32 stages = div_up(p.stride, STAGE_COLUMNS);

    // Copies that are not there make empty groups, so that groups can be counted on.
    Source<Epilogue, Tile> source(p);
#pragma unroll
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < stages) {
            source.copy(first + i * Tile::STAGE_BYTES, p.stride);
        }
        commit_copies();
    }
    const Reader reader;
    Fragments early, late;
    float c[TOKEN_TILES][ROW_TILES][4] = {};
    await_copies<STAGES - 2>();
    barrier();
    reader.load(early, first, 0);
    for (u32 i = 0; i < stages; i++) {
        const SharedAddress stage = first + i % STAGES * Tile::STAGE_BYTES;
        reader.load(late, stage, 1);
        // The stage before this one has been read by all: before the last barrier.
        if (i + STAGES - 1 < stages) {
            source.copy(first + (i + STAGES - 1) % STAGES * Tile::STAGE_BYTES, p.stride);
        }
        commit_copies();
        multiply<Half>(c, early);
        await_copies<STAGES - 2>();
        barrier();
        if (i + 1 < stages) {
            reader.load(early, first + (i + 1) % STAGES * Tile::STAGE_BYTES, 0);
        }
        multiply<Half>(c, late);
    }

    // Since the last barrier no thread reads the ring or copies to it: it is free.
    emit_tile<Half, Epilogue, Tile>(p, c, reinterpret_cast<float2*>(ring) + warp() * Tile::HANDED);
}

#define MATMUL(half, Half, op)                                              \
    KERNEL(matmul_##half##_##op, Product, MATMUL_THREADS, 2) {              \
        matmul<Half, epilogue::op, Narrow>(p);                              \
    }                                                                       \
    KERNEL(matmul_wide_##half##_##op, Product, MATMUL_WIDE_THREADS, 1) {    \
        matmul<Half, epilogue::op, Wide>(p);                                \
    }
#define EVERY_EPILOGUE(half, Half) \
    MATMUL(half, Half, write)      \
    MATMUL(half, Half, add)        \
    MATMUL(half, Half, silu)       \
    MATMUL(half, Half, heads)
EVERY_EPILOGUE(bf16, Bf16)
EVERY_EPILOGUE(f16, F16)
