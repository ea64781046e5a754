// Decoded rows of the embedding table, as far as they are in this slab. A thread writes eight values.

struct Params {
    // Tokens before this piece of the batch.
    first_token: u32,
    cols: u32,
    chunks: u32,
    first_row: u32,
    // Rows of this slab, and of the whole table.
    slab_rows: u32,
    rows: u32,
    // Words of a row, if it consists of blocks.
    row_words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
//#if ORDERED
// The input feature of each column.
@group(0) @binding(4) var<storage, read> column_order: array<u32>;

fn feature(column: u32) -> u32 {
    return column_order[column];
}
//#else
fn feature(column: u32) -> u32 {
    return column;
}
//#endif

//#include weights

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let chunk = at.x;
    let token = at.y;
    if chunk >= params.chunks {
        return;
    }
    let id = ids[params.first_token + token];
    let row = id - params.first_row;
    var eight = Eight(vec4(0.0), vec4(0.0));
    if row < params.slab_rows {
        eight = weights(row, chunk);
    } else if id < params.rows || params.first_row > 0u {
        // A row of another slab. The first slab writes zeros for ids that no slab has.
        return;
    }
    for (var i = 0u; i < 8u && 8u * chunk + i < params.cols; i++) {
        out[token * params.cols + feature(8u * chunk + i)] = select(eight.b[i % 4u], eight.a[i % 4u], i < 4u);
    }
}
