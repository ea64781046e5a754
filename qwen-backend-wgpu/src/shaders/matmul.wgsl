// Matrix times many rows of activations: the product for prompts, bound by arithmetic.
//
// A workgroup of 256 threads computes a tile of 64 tokens by 64 matrix rows, each thread 4 by 4 of it in registers. DEPTH
// decoded columns at a time are in workgroup memory, and each value read from there serves four products.

//#include product

const TILE: u32 = 64u;
// Columns of a tile in workgroup memory: of blocks, those that a format's fragment decodes at once.
//#if BLOCKS
const DEPTH: u32 = 32u;
//#else
const DEPTH: u32 = 16u;
//#endif

// [column][row] and [column][token]
var<workgroup> w_tile: array<f32, DEPTH * TILE>;
var<workgroup> x_tile: array<f32, DEPTH * TILE>;

fn put_weights(line: u32, eighth: u32, eight: Eight) {
    for (var i = 0u; i < 4u; i++) {
        w_tile[(8u * eighth + i) * TILE + line] = eight.a[i];
        w_tile[(8u * eighth + 4u + i) * TILE + line] = eight.b[i];
    }
}

fn put_activations(line: u32, eighth: u32, eight: Eight) {
    for (var i = 0u; i < 4u; i++) {
        x_tile[(8u * eighth + i) * TILE + line] = eight.a[i];
        x_tile[(8u * eighth + 4u + i) * TILE + line] = eight.b[i];
    }
}

// Row `line` of the tile.
fn tile_row(first_row: u32, line: u32) -> u32 {
    let rows = local_rows(min((first_row + line) / 2u, params.pairs - 1u));
    return select(rows.x, rows.y, line % 2u == 1u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    // This thread's four matrix rows and four tokens of the tile.
    let row = 4u * (local % 16u);
    let token = 4u * (local / 16u);
    var sums: array<vec4<f32>, 4>;
    for (var chunk = 0u; chunk < params.chunks; chunk += DEPTH / 8u) {
        //#if BLOCKS
        // A quarter of the threads decode the matrix, the others load activations.
        if local < TILE {
            let decoded = unit(tile_row(first_row, local), chunk / 4u);
            for (var i = 0u; i < 4u; i++) {
                put_weights(local, i, eight_of(decoded, i));
            }
        } else {
            for (var i = local - TILE; i < 4u * TILE; i += 256u - TILE) {
                let line = i % TILE;
                let token = min(first_token + line, params.tokens - 1u);
                put_activations(line, i / TILE, activations(token, chunk + i / TILE));
            }
        }
        //#else
        // Half of the threads load the matrix, half the activations, eight values each.
        let line = local % TILE;
        let eighth = (local / TILE) % 2u;
        let at = chunk + eighth;
        var eight = Eight(vec4(0.0), vec4(0.0));
        if local < 128u {
            if at < params.chunks {
                eight = weights(tile_row(first_row, line), at);
            }
            put_weights(line, eighth, eight);
        } else {
            if at < params.chunks {
                eight = activations(min(first_token + line, params.tokens - 1u), at);
            }
            put_activations(line, eighth, eight);
        }
        //#endif
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let r = k * TILE + row;
            let t = k * TILE + token;
            let w4 = vec4(w_tile[r], w_tile[r + 1u], w_tile[r + 2u], w_tile[r + 3u]);
            sums[0] = fma(w4, vec4(x_tile[t]), sums[0]);
            sums[1] = fma(w4, vec4(x_tile[t + 1u]), sums[1]);
            sums[2] = fma(w4, vec4(x_tile[t + 2u]), sums[2]);
            sums[3] = fma(w4, vec4(x_tile[t + 3u]), sums[3]);
        }
        workgroupBarrier();
    }
    let pair = (first_row + row) / 2u;
    for (var t = 0u; t < 4u; t++) {
        if first_token + token + t < params.tokens {
            if pair < params.pairs {
                emit(first_token + token + t, pair, sums[t].xy);
            }
            if pair + 1u < params.pairs {
                emit(first_token + token + t, pair + 1u, sums[t].zw);
            }
        }
    }
}
