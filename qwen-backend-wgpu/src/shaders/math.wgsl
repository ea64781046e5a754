// Functions whose accuracy WGSL leaves to the driver, written out so that every device computes the same.

// e^x for x <= 0 within 2 ulp, 0 below -87, NaN for a NaN: 2^n times a polynomial on |r| <= ln(2) / 2.
fn exp_negative(x: f32) -> f32 {
    let n = round(x * 1.44269504);
    // ln(2) in two parts, the first short enough that its product with n is exact.
    let r = fma(n, -1.42860677e-6, fma(n, -0.693145752, x));
    var p = fma(r, 1.98412698e-4, 1.38888889e-3);
    p = fma(p, r, 8.33333333e-3);
    p = fma(p, r, 4.16666667e-2);
    p = fma(p, r, 1.66666667e-1);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    let scale = bitcast<f32>(u32(i32(max(n, -126.0)) + 127) << 23u);
    // Below -87 and not NaN, tested by the bits: a driver that assumes no NaN may compare one either way.
    let bits = bitcast<u32>(x);
    return select(p * scale, 0.0, bits > 0xc2ae0000u && bits <= 0xff800000u);
}

// x / (1 + e^-x), computed from e^-|x|, so that nothing overflows.
fn silu(x: f32) -> f32 {
    let e = exp_negative(-abs(x));
    return x * select(e, 1.0, x >= 0.0) / (1.0 + e);
}
