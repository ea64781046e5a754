// Keys and values of attention as they are stored: what a key adds to the scores of all rows, and a pair of channels of a
// value.

// The positions of a rotary pair's channels in a stored key.
//#if KEY_Q8
fn first_of_pair(i: u32) -> u32 {
    return i;
}

fn second_of_pair(i: u32) -> u32 {
    return HALF_DIM + i;
}
//#else
fn first_of_pair(i: u32) -> u32 {
    return 2u * i;
}

fn second_of_pair(i: u32) -> u32 {
    return 2u * i + 1u;
}
//#endif

//#if KEY_Q8
//#include kv_q8
//#else
//#if VALUE_Q8
//#include kv_q8
//#endif
//#endif

//#if KEY_Q8
// Products of codes are summed block by block, and each sum is multiplied by the scale.
fn scores_of(head: u32, slot: u32) -> array<vec4<f32>, QUADS> {
    let codes = codes_at(HEAD_DIM, params.num_slots, head, slot) / 4u;
    let scales = scales_at(HEAD_DIM, params.num_slots, head, slot);
    var dots: array<vec4<f32>, QUADS>;
    for (var block = 0u; block < HEAD_DIM / 32u; block++) {
        var sums: array<vec4<f32>, QUADS>;
        for (var i = 0u; i < 2u; i++) {
            let sixteen = keys[codes + 2u * block + i];
            for (var j = 0u; j < 4u; j++) {
                let key = vec4<f32>(unpack4xI8(sixteen[j]));
                let channel = 32u * block + 16u * i + 4u * j;
                for (var c = 0u; c < 4u; c++) {
                    sums = add_products(sums, channel + c, key[c]);
                }
            }
        }
        let at = scales + block / 2u;
        let scale = unpack2x16float(keys[at / 4u][at % 4u])[block % 2u];
        for (var q = 0u; q < QUADS; q++) {
            dots[q] = fma(vec4(scale), sums[q], dots[q]);
        }
    }
    return dots;
}
//#else
// Four rotary pairs of a key.
struct Four {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn key_pairs(head: u32, slot: u32, four: u32) -> Four {
    //#if KEY_F16
    let u = keys[((head * params.num_slots + slot) * HALF_DIM) / 4u + four];
    return Four(
        vec4(unpack2x16float(u.x), unpack2x16float(u.y)),
        vec4(unpack2x16float(u.z), unpack2x16float(u.w)),
    );
    //#else
    let at = ((head * params.num_slots + slot) * HALF_DIM) / 2u + 2u * four;
    return Four(keys[at], keys[at + 1u]);
    //#endif
}

fn scores_of(head: u32, slot: u32) -> array<vec4<f32>, QUADS> {
    var dots: array<vec4<f32>, QUADS>;
    for (var four = 0u; four < HALF_DIM / 4u; four++) {
        let k = key_pairs(head, slot, four);
        for (var i = 0u; i < 4u; i++) {
            dots = add_products(dots, 8u * four + i, k.a[i]);
        }
        for (var i = 0u; i < 4u; i++) {
            dots = add_products(dots, 8u * four + 4u + i, k.b[i]);
        }
    }
    return dots;
}
//#endif

//#if VALUE_Q8
fn value_pair(head: u32, slot: u32, pair: u32) -> vec2<f32> {
    let four = unpack4xI8(values[codes_at(HEAD_DIM, params.num_slots, head, slot) + pair / 2u]);
    let scales = unpack2x16float(values[scales_at(HEAD_DIM, params.num_slots, head, slot) + pair / 32u]);
    return scales[pair / 16u % 2u] * vec2<f32>(select(four.xy, four.zw, pair % 2u == 1u));
}
//#else
fn value_pair(head: u32, slot: u32, pair: u32) -> vec2<f32> {
    let at = (head * params.num_slots + slot) * HALF_DIM + pair;
    //#if VALUE_F16
    return unpack2x16float(values[at]);
    //#else
    return values[at];
    //#endif
}
//#endif
