//! `x += y`.

use qwen_core::Result;
use qwen_core::backend::Add;

use crate::executor::WgpuBackend;
use crate::shader::Shader;

/// Values per row of the grid, within the grid limits of every device.
const WIDTH: usize = 1 << 16;

pub(crate) fn add(b: &mut WgpuBackend, op: Add<'_, WgpuBackend>) -> Result<()> {
    let Add { x, y, len, .. } = op;
    let op = "add";
    b.need(op, "x", &x.0, &[len])?;
    b.need(op, "y", &y.0, &[len])?;
    let width = len.min(WIDTH);
    for piece in b.pieces(op, len, &[1])? {
        let bindings = [x.0.array.write(piece.clone()), y.0.array.read(piece.clone())];
        let size = (width, piece.len().div_ceil(width));
        b.queue_rows(op, &Shader::new(op), &bindings, &[piece.len(), width], size)?;
    }
    Ok(())
}
