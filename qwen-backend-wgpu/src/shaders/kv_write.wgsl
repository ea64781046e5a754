// Writes keys and values to the paged store: [head][slot][pair]. A pair of a key is a rotary pair, (i, i + half_dim); a
// pair of a value is two adjacent channels. Slots beyond the store, such as those of padding, are not written. Keys or
// values in Q8_0 are left to store_kv_q8.

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

//#include f16

fn store_key(slot: u32, head: u32, i: u32, pair: vec2<f32>) {
    if slot < params.num_slots {
        let at = (head * params.num_slots + slot) * params.half_dim + i;
        //#if KEY_F16
        keys[at] = f16_pair(pair);
        //#else
        //#if KEY_Q8
        //#else
        keys[at] = pair;
        //#endif
        //#endif
    }
}

fn store_value(slot: u32, head: u32, i: u32, pair: vec2<f32>) {
    if slot < params.num_slots {
        let at = (head * params.num_slots + slot) * params.half_dim + i;
        //#if VALUE_F16
        values[at] = f16_pair(pair);
        //#else
        //#if VALUE_Q8
        //#else
        values[at] = pair;
        //#endif
        //#endif
    }
}
