// Matrix times many rows of activations by cooperative matrices: f16 times f16, summed in f32.
//
// A workgroup of four subgroups computes a square tile, each subgroup a quarter of two by two cooperative matrices.
// DEPTH columns at a time are in workgroup memory as f16. Activations were scaled by f16_rows.wgsl; bf16 weights are
// scaled here, by one power of two for the whole matrix. The sums go through workgroup memory to the epilogue.

//#include product

//#include cooperative

const TILE: u32 = 4u * SIZE;
const DEPTH: u32 = 32u;
// The stride of a tile's lines: not a power of two, so that lines do not map to the same banks.
const STRIDE: u32 = DEPTH + 8u;

// [token][column] and [row][column]
var<workgroup> x_tile: array<f16, TILE * STRIDE>;
var<workgroup> w_tile: array<f16, TILE * STRIDE>;
// [subgroup][token][row]
var<workgroup> sums: array<f32, SUBGROUPS * SIZE * SIZE>;

fn put_activations(at: u32, u: vec4<u32>) {
    for (var i = 0u; i < 4u; i++) {
        let pair = vec2<f16>(unpack2x16float(u[i]));
        x_tile[at + 2u * i] = pair.x;
        x_tile[at + 2u * i + 1u] = pair.y;
    }
}

fn put_weights(at: u32, eight: Eight, scale: f32) {
    let a = vec4<f16>(eight.a * scale);
    let b = vec4<f16>(eight.b * scale);
    for (var i = 0u; i < 4u; i++) {
        w_tile[at + i] = a[i];
        w_tile[at + 4u + i] = b[i];
    }
}

// Row `line` of a tile.
fn tile_row(tile: u32, line: u32) -> u32 {
    let rows = local_rows(min((tile * TILE + line) / 2u, params.pairs - 1u));
    return select(rows.x, rows.y, line % 2u == 1u);
}

// Called by all threads: the epilogue for the cooperative matrix (i, j) of each subgroup, whose sums were just stored.
fn emit_sums(group: vec3<u32>, local: u32, i: u32, j: u32) {
    workgroupBarrier();
    let weight_scale = bitcast<f32>(params.weight_exponent << 23u);
    for (var at = 2u * local; at < SUBGROUPS * SIZE * SIZE; at += 2u * THREADS) {
        let subgroup = at / (SIZE * SIZE);
        let token = group.y * TILE + (2u * (subgroup / 2u) + i) * SIZE + at / SIZE % SIZE;
        let pair = (group.x * TILE + (2u * (subgroup % 2u) + j) * SIZE + at % SIZE) / 2u;
        if token < params.tokens && pair < params.pairs {
            let scale = scales[params.first_token + token];
            emit(token, pair, vec2(sums[at], sums[at + 1u]) * weight_scale * scale);
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let inverse = bitcast<f32>((254u - params.weight_exponent) << 23u);
    // The start of this subgroup's quarter of the tile.
    let x_first = 2u * (subgroup / 2u) * SIZE * STRIDE;
    let w_first = 2u * (subgroup % 2u) * SIZE * STRIDE;
    var c00 = Sums();
    var c01 = Sums();
    var c10 = Sums();
    var c11 = Sums();
    for (var chunk = 0u; chunk < params.chunks; chunk += DEPTH / 8u) {
        for (var i = local; i < TILE * DEPTH / 8u; i += THREADS) {
            let line = i / (DEPTH / 8u);
            let at = chunk + i % (DEPTH / 8u);
            let put = line * STRIDE + 8u * (i % (DEPTH / 8u));
            var packed = vec4(0u);
            if at < params.chunks {
                packed = x[min(group.y * TILE + line, params.tokens - 1u) * params.chunks + at];
            }
            put_activations(put, packed);
            //#if BLOCKS
            //#else
            var eight = Eight(vec4(0.0), vec4(0.0));
            if at < params.chunks {
                eight = weights(tile_row(group.x, line), at);
            }
            put_weights(put, eight, inverse);
            //#endif
        }
        //#if BLOCKS
        // DEPTH is what a format's fragment decodes at once.
        for (var line = local; line < TILE; line += THREADS) {
            let decoded = unit(tile_row(group.x, line), chunk / 4u);
            for (var i = 0u; i < 4u; i++) {
                put_weights(line * STRIDE + 8u * i, eight_of(decoded, i), inverse);
            }
        }
        //#endif
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += SIZE) {
            // Tokens are stored row by row. So are weight rows, of which the product needs the transpose.
            let a0 = coopLoadT<Left>(&x_tile[x_first + k], STRIDE);
            let a1 = coopLoadT<Left>(&x_tile[x_first + SIZE * STRIDE + k], STRIDE);
            let b0 = coopLoad<Right>(&w_tile[w_first + k], STRIDE);
            let b1 = coopLoad<Right>(&w_tile[w_first + SIZE * STRIDE + k], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
        workgroupBarrier();
    }
    let mine = subgroup * SIZE * SIZE;
    coopStoreT(c00, &sums[mine], SIZE);
    emit_sums(group, local, 0u, 0u);
    coopStoreT(c01, &sums[mine], SIZE);
    emit_sums(group, local, 0u, 1u);
    coopStoreT(c10, &sums[mine], SIZE);
    emit_sums(group, local, 1u, 0u);
    coopStoreT(c11, &sums[mine], SIZE);
    emit_sums(group, local, 1u, 1u);
}
