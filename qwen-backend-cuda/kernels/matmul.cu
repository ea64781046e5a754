// compute_80
// machine code: HMMA LDSM LDGSTS
//
// matmul: a matrix times the tokens of prompts by tensor cores.
//
//     sum[token][row] = sum_k halves[token][k] w[row][k]
//
// A block makes 128 tokens x 128 rows of the matrix (64 pairs, whose rows lie side by side in the tile so that a thread
// gets both sums of a pair). Four warps take 64 x 64 of it each: large enough that tensor cores, not shared memory, set
// the pace (8 loads of fragments for 32 products). Columns come in stages of 32 through a ring of shared memory that
// asynchronous copies keep filled three stages ahead; fragments are loaded half a stage ahead of their products.
//
// In shared memory a row of a stage is 64 bytes, four chunks of 16, and two rows make a line of 128. Chunk c of row r
// is at place (4 r + c ^ r / 2) % 8 of its line: eight rows read at one c, or four chunks written to two rows, touch
// all banks once.
#include "epilogue.cuh"
#include "mma.cuh"
#include "scales.cuh"

#define STAGE_COLUMNS 32
#define STAGES 4
// Bytes of one operand's stage, which has as many rows for tokens as for the matrix.
#define STAGE_BYTES (MATMUL_TOKENS * STAGE_COLUMNS * 2)
#define WARP_TILE 64
// Tiles of 16 tokens and of 8 rows that a warp has.
#define TOKEN_TILES (WARP_TILE / 16)
#define ROW_TILES (WARP_TILE / 8)
// Rows that the block's threads copy at once, four threads a row.
#define ROWS_AT_ONCE (MATMUL_THREADS / 4)
#define COPIES (MATMUL_TOKENS / ROWS_AT_ONCE)
// Tokens of a pair that the epilogue takes at once.
#define EMITTED_AT_ONCE 8

static_assert(MATMUL_TOKENS == 2 * MATMUL_PAIRS, "one stage's rows serve both operands");
static_assert(MATMUL_SHARED == 2 * STAGES * STAGE_BYTES, "the ring fills the shared memory");

// Bytes from a stage's start to chunk `chunk` of row `row`.
DEVICE u32 place(u32 row, u32 chunk) {
    return row / 2 * 128 + (row % 2 * 4 + (chunk ^ row / 2 % 4)) * 16;
}

// What a thread copies of each stage: one chunk of COPIES rows of both operands.
template <class Epilogue>
struct Source {
    const u16* halves;
    const u16* w;
    // In chunks of 16 bytes from the operand's start, so that 32 bits do.
    u32 token[COPIES], row[COPIES];
    // Tokens beyond the last are zeros.
    bool there[COPIES];
    u32 column;
    u32 to;

    __device__ __forceinline__ explicit Source(const Product& p) {
        const u32 chunk = threadIdx.x % 4, first = threadIdx.x / 4;
        halves = static_cast<const u16*>(p.halves);
        w = static_cast<const u16*>(p.w);
        column = 8 * chunk;
        to = place(first, chunk);
#pragma unroll
        for (u32 i = 0; i < COPIES; i++) {
            const u32 local = first + i * ROWS_AT_ONCE;
            const u32 t = blockIdx.x * MATMUL_TOKENS + local;
            there[i] = t < p.tokens;
            token[i] = smaller(t, p.tokens - 1) * (p.stride / 8);
            const PairRows pair = matrix_rows<Epilogue>(p, blockIdx.y * MATMUL_PAIRS + local / 2);
            row[i] = (local % 2 == 0 ? pair.first : pair.second) * (p.stride / 8);
        }
    }

    // Start the copies of the next stage to `stage`, zeros beyond the last column.
    __device__ __forceinline__ void copy(SharedAddress stage, u32 stride) {
        const bool inside = column < stride;
        const u32 from = inside ? column : 0;
#pragma unroll
        for (u32 i = 0; i < COPIES; i++) {
            // Rows ROWS_AT_ONCE apart are as many half lines apart, at the same place of their line.
            const u32 at = to + i * ROWS_AT_ONCE * 64;
            copy_async(stage + at, halves + size_t(token[i]) * 8 + from, inside && there[i]);
            copy_async(stage + STAGE_BYTES + at, w + size_t(row[i]) * 8 + from, inside);
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
        const u32 l = lane(), first_token = warp() % 2 * WARP_TILE, first_row = warp() / 2 * WARP_TILE;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            // Tiles of a load: tokens 0.. and 8.. of the first 8 columns, then of the others; rows 0.. of the first 8
            // columns and of the others, then rows 8.. of both.
            tokens[half] = place(first_token + l % 16, 2 * half + l / 16);
            rows[half] = STAGE_BYTES + place(first_row + l / 16 * 8 + l % 8, 2 * half + l / 8 % 2);
        }
    }

    __device__ __forceinline__ void load(Fragments& to, SharedAddress stage, u32 half) const {
#pragma unroll
        for (u32 i = 0; i < TOKEN_TILES; i++) {
            load_tiles(to.tokens[i], stage + (tokens[half] + i * 16 * 64));
        }
#pragma unroll
        for (u32 i = 0; i < ROW_TILES / 2; i++) {
            load_tiles(to.rows[i], stage + (rows[half] + i * 16 * 64));
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
        const float* const out = p.out + size_t(token) * p.rows + 2 * pair;
        return float2{out[0], 2 * pair + 1 < p.rows ? out[1] : 0.0f};
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float2 before, float first, float second) {
        float* const out = p.out + size_t(token) * p.rows + 2 * pair;
        out[0] = before.x + first;
        if (2 * pair + 1 < p.rows) {
            out[1] = before.y + second;
        }
    }
};

// Hand a warp's sums to the epilogue, through `tile`, where a token's 32 pairs lie side by side: a lane then has a
// pair, and lanes that are neighbours write neighbours.
template <class Half, class Epilogue>
DEVICE void emit_tile(const Product& p, const float (&c)[TOKEN_TILES][ROW_TILES][4], float2* tile) {
    const u32 g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (u32 i = 0; i < 2 * TOKEN_TILES; i++) {
#pragma unroll
        for (u32 j = 0; j < ROW_TILES; j++) {
            // Turned round by token, so that the rows of a half warp are in different banks.
            const u32 pair = (4 * j + t) ^ g % 4 * 4;
            tile[(8 * i + g) * 32 + pair] = float2{c[i / 2][j][i % 2 * 2], c[i / 2][j][i % 2 * 2 + 1]};
        }
    }
    barrier();
    const u32 pair = blockIdx.y * MATMUL_PAIRS + warp() / 2 * 32 + lane();
    const u32 first_token = blockIdx.x * MATMUL_TOKENS + warp() % 2 * WARP_TILE;
    if (pair >= Epilogue::pairs(p) || first_token >= p.tokens) {
        return;
    }
    const u32 tokens = smaller(p.tokens - first_token, WARP_TILE);
    for (u32 from = 0; from < tokens; from += EMITTED_AT_ONCE) {
        float2 before[EMITTED_AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < EMITTED_AT_ONCE; i++) {
            if (from + i < tokens) {
                before[i] = Emitter<Epilogue>::before(p, first_token + from + i, pair);
            }
        }
#pragma unroll
        for (u32 i = 0; i < EMITTED_AT_ONCE; i++) {
            if (from + i < tokens) {
                const u32 token = first_token + from + i;
                const float2 sums = tile[(from + i) * 32 + (lane() ^ i % 4 * 4)];
                const float scale = scale_of(Half(), p, token);
                Emitter<Epilogue>::emit(p, token, pair, before[i], sums.x * scale, sums.y * scale);
            }
        }
    }
}

template <class Half, class Epilogue>
DEVICE void matmul(const Product& p) {
    DYNAMIC_SHARED(unsigned char, ring);
    const SharedAddress first = shared_address(ring);
    const u32 stages = div_up(p.stride, STAGE_COLUMNS);

    // Copies that are not there make empty groups, so that groups can be counted on.
    Source<Epilogue> source(p);
#pragma unroll
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < stages) {
            source.copy(first + i * 2 * STAGE_BYTES, p.stride);
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
        const SharedAddress stage = first + i % STAGES * 2 * STAGE_BYTES;
        reader.load(late, stage, 1);
        // The stage before this one has been read by all: before the last barrier.
        if (i + STAGES - 1 < stages) {
            source.copy(first + (i + STAGES - 1) % STAGES * 2 * STAGE_BYTES, p.stride);
        }
        commit_copies();
        multiply<Half>(c, early);
        await_copies<STAGES - 2>();
        barrier();
        if (i + 1 < stages) {
            reader.load(early, first + (i + 1) % STAGES * 2 * STAGE_BYTES, 0);
        }
        multiply<Half>(c, late);
    }

    // Since the last barrier nobody reads or copies to the ring: it is free, as much of it as the warps' tiles need.
    emit_tile<Half, Epilogue>(p, c, reinterpret_cast<float2*>(ring) + warp() * WARP_TILE * WARP_TILE / 2);
}

#define MATMUL(half, Half, op)                                         \
    KERNEL(matmul_##half##_##op, Product, MATMUL_THREADS, 2) {         \
        matmul<Half, epilogue::op>(p);                                 \
    }
#define EVERY_EPILOGUE(half, Half) \
    MATMUL(half, Half, write)      \
    MATMUL(half, Half, add)        \
    MATMUL(half, Half, silu)       \
    MATMUL(half, Half, heads)
EVERY_EPILOGUE(bf16, Bf16)
EVERY_EPILOGUE(f16, F16)
