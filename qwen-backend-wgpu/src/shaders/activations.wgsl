// Rows of activations, eight values at a time.

//#if RAGGED
// The width is not a multiple of eight: values after the end of a row count as zero.
fn activation(token: u32, column: u32) -> f32 {
    let value = x[min(token * params.cols + column, arrayLength(&x) - 1u)];
    return select(0.0, value, column < params.cols);
}

fn activations(token: u32, chunk: u32) -> Eight {
    let c = 8u * chunk;
    return Eight(
        vec4(activation(token, c), activation(token, c + 1u), activation(token, c + 2u), activation(token, c + 3u)),
        vec4(activation(token, c + 4u), activation(token, c + 5u), activation(token, c + 6u), activation(token, c + 7u)),
    );
}
//#else
fn activations(token: u32, chunk: u32) -> Eight {
    let at = 2u * (token * params.chunks + chunk);
    return Eight(x[at], x[at + 1u]);
}
//#endif
