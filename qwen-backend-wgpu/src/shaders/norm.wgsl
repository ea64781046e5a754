// The norm of a product's input rows, computed by each of its workgroups instead of a separate kernel.
//
// Squares are summed in the same order as in rms_norm: strands of every 256th value, then a tree over strands. So the
// bits do not depend on which kernel computes the norm.

const STRANDS: u32 = 256u;

//#if RAGGED
@group(0) @binding(NORM_BINDING) var<storage, read> norm_weight: array<f32>;
//#else
@group(0) @binding(NORM_BINDING) var<storage, read> norm_weight: array<vec4<f32>>;
//#endif

var<workgroup> squares: array<f32, STRANDS * TOKENS>;

// Four values of four consecutive strands.
fn strands(token: u32, four: u32) -> vec4<f32> {
    //#if RAGGED
    let c = 4u * four;
    return vec4(activation(token, c), activation(token, c + 1u), activation(token, c + 2u), activation(token, c + 3u));
    //#else
    return x[token * 2u * params.chunks + four];
    //#endif
}

// Called by all threads: the factors of the rows from `first` on.
fn norm_scales(first: u32, local: u32) -> array<f32, TOKENS> {
    for (var t = 0u; t < TOKENS; t++) {
        let token = min(first + t, params.tokens - 1u);
        for (var strand = 4u * local; strand < STRANDS; strand += 4u * WIDTH) {
            var sum = vec4(0.0);
            for (var four = strand / 4u; four < 2u * params.chunks; four += STRANDS / 4u) {
                let value = strands(token, four);
                sum = fma(value, value, sum);
            }
            for (var i = 0u; i < 4u; i++) {
                squares[t * STRANDS + strand + i] = sum[i];
            }
        }
    }
    workgroupBarrier();
    for (var step = STRANDS / 2u; step > 0u; step /= 2u) {
        for (var i = local; i < TOKENS * step; i += WIDTH) {
            let at = i / step * STRANDS + i % step;
            squares[at] += squares[at + step];
        }
        workgroupBarrier();
    }
    var scales: array<f32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
        scales[t] = 1.0 / sqrt(squares[t * STRANDS] / f32(params.cols) + params.eps);
    }
    return scales;
}

fn norm_weights(chunk: u32) -> Eight {
    //#if RAGGED
    let c = 8u * chunk;
    var eight = Eight(vec4(0.0), vec4(0.0));
    for (var i = 0u; i < 4u; i++) {
        eight.a[i] = norm_weight[min(c + i, params.cols - 1u)];
        eight.b[i] = norm_weight[min(c + 4u + i, params.cols - 1u)];
    }
    return eight;
    //#else
    return Eight(norm_weight[2u * chunk], norm_weight[2u * chunk + 1u]);
    //#endif
}
