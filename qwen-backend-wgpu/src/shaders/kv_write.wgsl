// Keys and values into the paged store: [head][slot][pair]. A key's pair is a rotary one, (i, i + half): what rotates
// together is stored together. A value's pair are neighbours.

//#if KEY_F16
alias KeyPair = u32;
//#else
alias KeyPair = vec2<f32>;
//#endif
//#if VALUE_F16
alias ValuePair = u32;
//#else
alias ValuePair = vec2<f32>;
//#endif

// What lies beyond the largest f16 is stored as that. A NaN stays one: `clamp` may lose it.
fn half2(pair: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(pair) & vec2(0x7fffffffu);
    let packed = pack2x16float(clamp(pair, vec2(-65504.0), vec2(65504.0)));
    return select(packed, 0x7e007e00u, bits.x > 0x7f800000u || bits.y > 0x7f800000u);
}

fn store_key(slot: u32, head: u32, i: u32, pair: vec2<f32>) {
    if slot < params.num_slots {
        let at = (head * params.num_slots + slot) * params.half + i;
        //#if KEY_F16
        keys[at] = half2(pair);
        //#else
        keys[at] = pair;
        //#endif
    }
}

fn store_value(slot: u32, head: u32, i: u32, pair: vec2<f32>) {
    if slot < params.num_slots {
        let at = (head * params.num_slots + slot) * params.half + i;
        //#if VALUE_F16
        values[at] = half2(pair);
        //#else
        values[at] = pair;
        //#endif
    }
}
