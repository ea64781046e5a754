//! The operations of the suite in the shapes of real models, for benches.

use super::op::{Cost, Op};
use super::ops::attention::Attention;
use super::ops::gate_up_silu::GateUpSilu;
use super::ops::linear::{Linear, Matrix};
use super::ops::rms_norm::RmsNorm;
use super::ops::rope::{Rope, heads};
use super::ops::{Form, Inputs};
use super::scenario::Scenario;
use qwen_core::Encoding;
use qwen_core::backend::{Backend, HeadLayout, WeightRole};
use qwen_core::error::Result;

/// Queues an operation that has been placed.
pub type Issue<B> = Box<dyn FnMut(&mut B) -> Result<()>>;

/// Places an operation's buffers and weights on a device.
type Place<B> = Box<dyn Fn(&mut B) -> Result<Issue<B>>>;

/// An operation to time.
pub struct Workload<B: Backend> {
    /// Its shapes.
    pub name: String,
    /// The bytes it has to move and the operations it has to compute.
    pub cost: Cost,
    place: Place<B>,
}

impl<B: Backend> std::fmt::Debug for Workload<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("name", &self.name).field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl<B: Backend> Workload<B> {
    /// The workload of `op`.
    pub fn of<O: Op + Clone + 'static>(name: impl Into<String>, op: O) -> Self {
        let cost = op.cost();
        let place = move |b: &mut B| {
            let (mut on, op) = (op.place(b)?, op.clone());
            let issue: Issue<B> = Box::new(move |b| op.issue(b, &mut on));
            Ok(issue)
        };
        Workload { name: name.into(), cost, place: Box::new(place) }
    }

    /// Allocate its buffers and weights on `b`. The returned closure queues it, as often as it is called.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn place(&self, b: &mut B) -> Result<Issue<B>> {
        (self.place)(b)
    }
}

struct Size {
    name: &'static str,
    hidden: usize,
    inner: usize,
    heads: HeadLayout,
}

/// The operations of the 0.5B and the 7B model for one token, for eight and for a chunk of a prompt.
pub fn workloads<B: Backend>(encoding: Encoding) -> Vec<Workload<B>> {
    let mut list = Vec::new();
    for Size { name, hidden, inner, heads } in [
        Size { name: "0.5B", hidden: 896, inner: 4864, heads: heads(14, 2, 64) },
        Size { name: "7B", hidden: 3584, inner: 18_944, heads: heads(28, 4, 128) },
    ] {
        for rows in [1, 8, 256] {
            let label = |op: &str| format!("{name} {op}, {rows} tokens, {encoding}");
            let (q, kv) = ((encoding, heads.q_size()), (encoding, heads.kv_size()));
            let qkv = Linear::of(Matrix::stacked(WeightRole::Qkv, &[q, kv, kv], hidden), rows);
            list.push(Workload::of(label("qkv_proj"), Linear { bias: Some(1.0), ..qkv }));
            let added = |cols| Linear { residual: Some(Form::Own), ..Linear::new(encoding, rows, cols, hidden) };
            list.push(Workload::of(label("o_proj"), added(heads.q_size())));
            list.push(Workload::of(label("down_proj"), added(inner)));
            let (hidden_size, intermediate_size, normed, form) = (hidden, inner, false, Form::Own);
            let mlp = GateUpSilu { encoding, hidden_size, intermediate_size, rows: 0..rows, normed, form, cut: false };
            list.push(Workload::of(label("gate_up_silu"), mlp));
            list.push(Workload::of(label("rms_norm"), RmsNorm::new(hidden, 0..rows)));
            list.push(Workload::of(label("rope"), Rope { heads, rows: 0..rows, inputs: Inputs::Normal }));
            for context in [512, 4096] {
                let sequences: Vec<(usize, usize)> =
                    if rows == 256 { vec![(context - 256, 256)] } else { vec![(context - 1, 1); rows] };
                let attention = Attention(Scenario::new(heads, &sequences));
                list.push(Workload::of(label(&format!("paged_attention over {context} positions")), attention));
            }
        }
    }
    list
}
