//! Buffers: their initial contents, and that writes and reads move exactly what they should.

use super::Inputs;
use crate::compare;
use crate::rig::Rig;
use qwen_core::backend::{self, Backend};
use qwen_core::error::Result;

const LENGTHS: [usize; 9] = [1, 2, 3, 15, 16, 17, 255, 1000, 70_001];

fn bits(values: &[u32]) -> Vec<f32> {
    values.iter().map(|value| f32::from_bits(*value)).collect()
}

/// New buffers hold zeros; an empty one can be allocated, written and read.
pub fn zero_at_first<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for len in LENGTHS {
        let buffer = rig.b.alloc(len)?;
        let mut values = vec![1.0; len];
        rig.b.read(&buffer, &mut values)?;
        rig.note(|| format!("alloc({len})"), compare::bits(&values, &vec![0.0; len], len));
        let buffer = rig.b.alloc_indices(len)?;
        let mut values = vec![1; len];
        rig.b.read_indices(&buffer, &mut values)?;
        rig.note(|| format!("alloc_indices({len})"), compare::bits(&bits(&values), &vec![0.0; len], len));
    }
    let mut empty = rig.b.alloc(0)?;
    rig.b.write(&mut empty, &[])?;
    rig.b.read(&empty, &mut [])?;
    let mut empty = rig.b.alloc_indices(0)?;
    rig.b.write_indices(&mut empty, &[])?;
    rig.b.read_indices(&empty, &mut [])?;
    rig.b.synchronize()
}

/// Writes change the beginning of a buffer and no more; reads return it, every bit of it.
pub fn write_and_read<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for len in LENGTHS {
        let mut expected = Inputs::Normal.rows(20, 0..1, len);
        for (value, special) in expected.iter_mut().zip([-0.0, f32::MAX, f32::INFINITY, f32::MIN_POSITIVE]) {
            *value = special;
        }
        let mut buffer = rig.b.alloc(len)?;
        rig.b.write(&mut buffer, &expected)?;
        let head: Vec<f32> = Inputs::Normal.rows(21, 0..1, len / 2);
        rig.b.write(&mut buffer, &head)?;
        expected[..len / 2].copy_from_slice(&head);
        for read in [len, len.div_ceil(2), len / 3] {
            let mut values = vec![0.5; read];
            rig.b.read(&buffer, &mut values)?;
            rig.note(|| format!("{read} of {len} values"), compare::bits(&values, &expected[..read], len));
        }
        let mut expected: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let mut buffer = rig.b.alloc_indices(len)?;
        rig.b.write_indices(&mut buffer, &expected)?;
        rig.b.write_indices(&mut buffer, &vec![u32::MAX; len / 2])?;
        expected[..len / 2].fill(u32::MAX);
        for read in [len, len.div_ceil(2), len / 3] {
            let mut values = vec![5; read];
            rig.b.read_indices(&buffer, &mut values)?;
            let outcome = compare::bits(&bits(&values), &bits(&expected[..read]), len);
            rig.note(|| format!("{read} of {len} indices"), outcome);
        }
    }
    Ok(())
}

/// A write does not affect an operation that was queued before it.
pub fn writes_wait_their_turn<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let len = 50_000;
    let (first, second) = (Inputs::Normal.rows(22, 0..1, len), Inputs::Normal.rows(23, 0..1, len));
    let (mut sum, mut y) = (rig.b.alloc(len)?, rig.b.alloc(len)?);
    rig.b.write(&mut y, &first)?;
    rig.b.add(backend::Add { x: &mut sum, y: &y, len })?;
    rig.b.write(&mut y, &second)?;
    rig.b.add(backend::Add { x: &mut sum, y: &y, len })?;
    rig.b.write(&mut y, &vec![f32::NAN; len])?;
    let mut got = vec![0.0; len];
    rig.b.read(&sum, &mut got)?;
    let expected: Vec<f32> = first.iter().zip(&second).map(|(a, b)| (0.0 + a) + b).collect();
    rig.note(|| "two sums with writes between them".into(), compare::bits(&got, &expected, len));
    Ok(())
}
