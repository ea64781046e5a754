//! `silu(gate) * up` of rows that hold both.

use qwen_core::Result;
use qwen_core::backend::SiluAndMul;

use crate::executor::{WgpuBackend, words};
use crate::shader::Shader;

pub(crate) fn silu_and_mul(b: &mut WgpuBackend, op: SiluAndMul<'_, WgpuBackend>) -> Result<()> {
    let SiluAndMul { gate_up, out, intermediate_size: width, rows, .. } = op;
    let op = "silu_and_mul";
    b.need(op, "gate_up", &gate_up.0, &[2, rows, width])?;
    b.need(op, "out", &out.0, &[rows, width])?;
    for piece in b.pieces(op, rows, &[2 * width, width])? {
        let bindings = [gate_up.0.array.read(words(&piece, 2 * width)), out.0.array.write(words(&piece, width))];
        b.queue_rows(op, &Shader::new(op), &bindings, &[width], (width, piece.len()))?;
    }
    Ok(())
}
