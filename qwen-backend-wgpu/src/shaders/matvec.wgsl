// Matrix times a few rows of activations: the product for decoding, bound by reading the matrix once.
//
// LANES threads share the columns of PAIRS pairs of rows and read them 16 bytes at a time; GROUPS such groups make a
// workgroup. Each output is summed in one order, whatever TOKENS is: a lane's columns in sequence, then a tree over
// lanes. With NORM the activations are normed first.

//#include product

const WIDTH: u32 = LANES * GROUPS;
//#if NORM
//#include norm
//#endif
const SUMS: u32 = 2u * PAIRS * TOKENS;

var<workgroup> partial: array<f32, SUMS * WIDTH>;

fn fold(sum: f32, a: Eight, b: Eight) -> f32 {
    var s = fma(a.a.x, b.a.x, sum);
    s = fma(a.a.y, b.a.y, s);
    s = fma(a.a.z, b.a.z, s);
    s = fma(a.a.w, b.a.w, s);
    s = fma(a.b.x, b.b.x, s);
    s = fma(a.b.y, b.b.y, s);
    s = fma(a.b.z, b.b.z, s);
    return fma(a.b.w, b.b.w, s);
}

@compute @workgroup_size(LANES * GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local % LANES;
    let first_pair = (group.x * GROUPS + local / LANES) * PAIRS;
    let first_token = group.y * TOKENS;
    //#if NORM
    let scales = norm_scales(first_token, local);
    //#endif
    var sums: array<f32, SUMS>;
    for (var chunk = lane; chunk < params.chunks; chunk += LANES) {
        var x8: array<Eight, TOKENS>;
        for (var t = 0u; t < TOKENS; t++) {
            x8[t] = activations(min(first_token + t, params.tokens - 1u), chunk);
        }
        //#if NORM
        let weight = norm_weights(chunk);
        for (var t = 0u; t < TOKENS; t++) {
            x8[t] = Eight(x8[t].a * scales[t] * weight.a, x8[t].b * scales[t] * weight.b);
        }
        //#endif
        for (var p = 0u; p < PAIRS; p++) {
            // Pairs beyond the last one read the last one; their sums are dropped below.
            let rows = local_rows(min(first_pair + p, params.pairs - 1u));
            let w0 = weights(rows.x, chunk);
            let w1 = weights(rows.y, chunk);
            for (var t = 0u; t < TOKENS; t++) {
                let s = 2u * (p * TOKENS + t);
                sums[s] = fold(sums[s], w0, x8[t]);
                sums[s + 1u] = fold(sums[s + 1u], w1, x8[t]);
            }
        }
    }
    for (var s = 0u; s < SUMS; s++) {
        partial[s * WIDTH + local] = sums[s];
    }
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if lane < step {
            for (var s = 0u; s < SUMS; s++) {
                partial[s * WIDTH + local] += partial[s * WIDTH + local + step];
            }
        }
        workgroupBarrier();
    }
    let pair = first_pair + lane / TOKENS;
    let token = first_token + lane % TOKENS;
    if lane < PAIRS * TOKENS && pair < params.pairs && token < params.tokens {
        let s = 2u * lane * WIDTH + local - lane;
        emit(token, pair, vec2(partial[s], partial[s + WIDTH]));
    }
}
