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
//#if ORDERED
// Columns of the matrix are stored in another order.
@group(0) @binding(ORDER_BINDING) var<storage, read> column_order: array<vec4<u32>>;

fn activation(token: u32, column: u32) -> f32 {
    let at = token * params.cols + column;
    return x[at / 4u][at % 4u];
}

fn activations(token: u32, chunk: u32) -> Eight {
    let a = column_order[2u * chunk];
    let b = column_order[2u * chunk + 1u];
    return Eight(
        vec4(activation(token, a.x), activation(token, a.y), activation(token, a.z), activation(token, a.w)),
        vec4(activation(token, b.x), activation(token, b.y), activation(token, b.z), activation(token, b.w)),
    );
}
//#else
fn activations(token: u32, chunk: u32) -> Eight {
    let at = 2u * (token * params.chunks + chunk);
    return Eight(x[at], x[at + 1u]);
}
//#endif
//#endif
