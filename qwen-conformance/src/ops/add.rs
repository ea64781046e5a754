//! `add` and `all_reduce`.

use super::Inputs;
use crate::compare;
use crate::op::{Allowed, Cost, Guarded, Op, Output};
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::Precision;
use qwen_core::backend::collective::ThreadGroup;
use qwen_core::backend::composed;
use qwen_core::backend::{self, Backend};
use qwen_core::error::{Error, Result};

/// `add`: one buffer onto another.
#[derive(Debug, Clone)]
pub struct Add {
    /// Values.
    pub len: usize,
}

/// The buffers of an [`Add`].
#[derive(Debug)]
pub struct OnDevice<B: Backend> {
    x: Guarded<B>,
    y: Guarded<B>,
}

impl Op for Add {
    type On<B: Backend> = OnDevice<B>;

    fn cost(&self) -> Cost {
        Cost { bytes: 12 * self.len as u64, flops: self.len as u64 }
    }

    fn allowed(&self, _precision: Precision, _output: &str) -> Allowed {
        // The residual stream is f32, and there is one right f32 sum of two values.
        Allowed::Bits
    }

    fn place<B: Backend>(&self, b: &mut B) -> Result<OnDevice<B>> {
        Ok(OnDevice {
            x: Guarded::new(b, &Inputs::Outliers.rows(6, 0..1, self.len))?,
            y: Guarded::new(b, &Inputs::Normal.rows(7, 0..1, self.len))?,
        })
    }

    fn issue<B: Backend>(&self, b: &mut B, on: &mut OnDevice<B>) -> Result<()> {
        b.add(backend::Add { x: &mut on.x.buffer, y: &on.y.buffer, len: self.len })
    }

    fn outputs<'a, B: Backend>(&self, on: &'a OnDevice<B>) -> Vec<Output<'a, B>> {
        vec![Output::rows("x", &on.x, 1, self.len)]
    }
}

/// Ragged lengths.
pub fn lengths<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for len in [0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 255, 257, 896, 4099, 70_001] {
        rig.check(&Add { len })?;
    }
    Ok(())
}

/// `all_reduce` over ranks in threads: the same bits on each rank, near the sum.
pub fn all_reduce<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for ranks in [1, 2, 3] {
        for len in [1, 17, 1000] {
            for own in [true, false] {
                reduce(rig, ranks, len, own)?;
            }
        }
    }
    Ok(())
}

fn reduce<B: Backend>(rig: &mut Rig<'_, B>, ranks: usize, len: usize, own: bool) -> Result<()> {
    let inputs = Inputs::Normal.rows(8, 0..ranks, len);
    let sum: Vec<f32> =
        (0..len).map(|i| (0..ranks).map(|rank| f64::from(inputs[rank * len + i])).sum::<f64>() as f32).collect();
    let backends = (0..ranks).map(|_| rig.another()).collect::<Result<Vec<_>>>()?;
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = ThreadGroup::new(ranks)
            .into_iter()
            .zip(backends)
            .zip(inputs.chunks_exact(len))
            .map(|((group, mut b), input)| {
                scope.spawn(move || {
                    let mut x = Guarded::new(&mut b, input)?;
                    match own {
                        true => b.all_reduce(backend::AllReduce { x: &mut x.buffer, len, group: &group })?,
                        false => {
                            composed::all_reduce(&mut b, backend::AllReduce { x: &mut x.buffer, len, group: &group })?
                        }
                    }
                    x.read(&mut b)
                })
            })
            .collect();
        let stopped = || Error::EngineStopped { reason: "a rank of the case panicked".into() };
        threads.into_iter().map(|thread| thread.join().map_err(|_| stopped())?).collect::<Result<Vec<_>>>()
    })?;
    let what = |rank: usize| format!("all_reduce of {len} values, rank {rank} of {ranks}, own form: {own}");
    for (rank, (values, overrun)) in results.iter().enumerate() {
        rig.note(|| what(rank), overrun.map_or(Ok(()), |index| Err(format!("wrote to index {index}"))));
        rig.note(|| what(rank), compare::rms(values, &sum, len, ranks as f64 * tolerance::U, 1.0));
        rig.note(|| format!("{} against rank 0", what(rank)), compare::bits(values, &results[0].0, len));
    }
    Ok(())
}
