// The values of four-bit codes in IQ4_NL and IQ4_XS, four signed bytes to a word.
const LEVEL_BYTES = array<u32, 4>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);

fn four_levels(u: u32) -> u32 {
    var q = 0u;
    for (var i = 0u; i < 4u; i++) {
        let code = (u >> (8u * i)) & 15u;
        let bytes = select(
            select(LEVEL_BYTES[0], LEVEL_BYTES[1], code >= 4u),
            select(LEVEL_BYTES[2], LEVEL_BYTES[3], code >= 12u),
            code >= 8u,
        );
        q |= ((bytes >> (8u * (code % 4u))) & 255u) << (8u * i);
    }
    return q;
}

fn levels(q: Codes) -> Codes {
    return Codes(
        vec4(four_levels(q.low.x), four_levels(q.low.y), four_levels(q.low.z), four_levels(q.low.w)),
        vec4(four_levels(q.high.x), four_levels(q.high.y), four_levels(q.high.z), four_levels(q.high.w)),
    );
}
