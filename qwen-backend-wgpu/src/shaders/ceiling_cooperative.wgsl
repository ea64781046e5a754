// The arithmetic ceiling of cooperative matrices: each subgroup has four sums, to cover the latency of one, and reads
// no memory in the loop.

struct Params {
    rounds: u32,
    // Never set: it keeps the sums from being optimised away.
    keep: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

//#include cooperative

var<workgroup> tile: array<f16, SIZE * SIZE>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) local: u32) {
    // Unknown at compile time, so that nothing can be precomputed.
    for (var i = local; i < SIZE * SIZE; i += THREADS) {
        tile[i] = f16(source[i]);
    }
    workgroupBarrier();
    let x = coopLoadT<Left>(&tile[0], SIZE);
    let y = coopLoad<Right>(&tile[0], SIZE);
    var a = Sums();
    var b = Sums();
    var c = Sums();
    var d = Sums();
    for (var i = 0u; i < params.rounds; i++) {
        a = coopMultiplyAdd(x, y, a);
        b = coopMultiplyAdd(x, y, b);
        c = coopMultiplyAdd(x, y, c);
        d = coopMultiplyAdd(x, y, d);
    }
    // Otherwise nothing would depend on the sums.
    if params.keep == 1u {
        coopStoreT(a, &result[0], SIZE);
        coopStoreT(b, &result[SIZE * SIZE], SIZE);
        coopStoreT(c, &result[2u * SIZE * SIZE], SIZE);
        coopStoreT(d, &result[3u * SIZE * SIZE], SIZE);
    }
}
