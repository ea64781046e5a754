//! The norm of each row, with the addition to the residual stream before it or without.

use qwen_core::Result;

use super::{Numbers, WgpuBackend, words};
use crate::record::{Grid, Work};
use crate::shader::Shader;

impl WgpuBackend {
    /// `x += y` where there is a `y`, then `out = rms_norm(x)`.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the operation")]
    pub(super) fn norm(
        &mut self,
        op: &str,
        x: &Numbers,
        y: Option<&Numbers>,
        weight: &Numbers,
        eps: f32,
        out: &Numbers,
        hidden_size: usize,
        rows: usize,
    ) -> Result<()> {
        let len = rows * hidden_size;
        self.need(op, "x", x, len)?;
        self.need(op, "weight", weight, hidden_size)?;
        self.need(op, "out", out, len)?;
        if let Some(y) = y {
            self.need(op, "y", y, len)?;
        }
        let shader = Shader::new("rms_norm").flag_if(y.is_some(), "ADD");
        let params = [hidden_size as u32, eps.to_bits()];
        for piece in self.pieces(op, rows, &[hidden_size])? {
            let at = words(&piece, hidden_size);
            let x = if y.is_some() { x.array.write(at.clone()) } else { x.array.read(at.clone()) };
            let mut bindings = vec![x, weight.array.read(0..hidden_size), out.array.write(at.clone())];
            bindings.extend(y.map(|y| y.array.read(at)));
            self.queue(op, &shader, &bindings, &params, Grid::Fixed([piece.len() as u32, 1, 1]), Work::default())?;
        }
        Ok(())
    }
}
