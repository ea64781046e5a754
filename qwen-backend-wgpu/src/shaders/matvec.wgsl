// Matrix times a few rows of activations: the product for decoding, bound by reading the matrix once.
//
// LANES threads share the columns of PAIRS pairs of rows and read them 16 bytes at a time; GROUPS such groups make a
// workgroup. Each output is summed in one order, whatever TOKENS is: a lane's columns in sequence, then a tree over
// lanes. With NORM the activations are normed first. With SIGNED they are signed bytes (`signed_rows.wgsl`), whose
// products with the codes of a format are summed as integers, 16 at a time.

//#include product

const WIDTH: u32 = LANES * GROUPS;
//#if NORM
//#include norm
//#endif
const SUMS: u32 = 2u * PAIRS * TOKENS;
// Eights of columns that a thread reads at a time.
//#if BLOCKS
const EIGHTS: u32 = 4u;
//#else
const EIGHTS: u32 = 1u;
//#endif

var<workgroup> partial: array<f32, SUMS * WIDTH>;

//#if SIGNED
fn fold(sum: f32, u: Unit, x: Signed) -> f32 {
    let first = dot4I8Packed(u.q.low.x, x.low.x) + dot4I8Packed(u.q.high.x, x.high.x)
        + dot4I8Packed(u.q.low.y, x.low.y) + dot4I8Packed(u.q.high.y, x.high.y);
    let second = dot4I8Packed(u.q.low.z, x.low.z) + dot4I8Packed(u.q.high.z, x.high.z)
        + dot4I8Packed(u.q.low.w, x.low.w) + dot4I8Packed(u.q.high.w, x.high.w);
    // Whole numbers below 2^24: exact.
    let dots = fma(vec2(u.offset), x.sums, vec2<f32>(vec2(first, second)));
    var s = u.scale.x * dots.x;
    s = fma(u.scale.y, dots.y, s);
    s = fma(-u.min.x, x.sums.x, s);
    s = fma(-u.min.y, x.sums.y, s);
    return fma(x.scale, s, sum);
}
//#else
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
//#endif

@compute @workgroup_size(LANES * GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local % LANES;
    let first_pair = (group.x * GROUPS + local / LANES) * PAIRS;
    let first_token = group.y * TOKENS;
    //#if NORM
    let scales = norm_scales(first_token, local);
    //#endif
    // Pairs and tokens beyond the last one read the last one; their sums are dropped below.
    var rows: array<vec2<u32>, PAIRS>;
    for (var p = 0u; p < PAIRS; p++) {
        rows[p] = local_rows(min(first_pair + p, params.pairs - 1u));
    }
    var sums: array<f32, SUMS>;
    //#if SIGNED
    for (var at = lane; at < params.chunks / 4u; at += LANES) {
        var x32: array<Signed, TOKENS>;
        for (var t = 0u; t < TOKENS; t++) {
            x32[t] = signed(min(first_token + t, params.tokens - 1u), at);
        }
        for (var p = 0u; p < PAIRS; p++) {
            let w0 = unit(rows[p].x, at);
            let w1 = unit(rows[p].y, at);
            for (var t = 0u; t < TOKENS; t++) {
                let s = 2u * (p * TOKENS + t);
                sums[s] = fold(sums[s], w0, x32[t]);
                sums[s + 1u] = fold(sums[s + 1u], w1, x32[t]);
            }
        }
    }
    //#else
    for (var at = lane; at < params.chunks / EIGHTS; at += LANES) {
        //#if BLOCKS
        var units: array<Unit, 2u * PAIRS>;
        for (var p = 0u; p < PAIRS; p++) {
            units[2u * p] = unit(rows[p].x, at);
            units[2u * p + 1u] = unit(rows[p].y, at);
        }
        //#endif
        for (var i = 0u; i < EIGHTS; i++) {
            let chunk = EIGHTS * at + i;
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
                //#if BLOCKS
                let w0 = eight_of(units[2u * p], i);
                let w1 = eight_of(units[2u * p + 1u], i);
                //#else
                let w0 = weights(rows[p].x, chunk);
                let w1 = weights(rows[p].y, chunk);
                //#endif
                for (var t = 0u; t < TOKENS; t++) {
                    let s = 2u * (p * TOKENS + t);
                    sums[s] = fold(sums[s], w0, x8[t]);
                    sums[s + 1u] = fold(sums[s + 1u], w1, x8[t]);
                }
            }
        }
    }
    //#endif
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
