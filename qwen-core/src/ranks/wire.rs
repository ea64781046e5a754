//! Payloads of messages as bytes: numbers in groups of seven bits, lists and texts preceded by their lengths.
//!
//! Everything that is read is checked against this rank's own limits before it is used: the sender may be another
//! version, or not a rank at all.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::model::batch::{Batch, Damage, SequenceStep, WantLogits};
use crate::model::batch::{BlockId, CopyBlock};

/// The most characters of the name of a damaged place.
const MAX_PLACE: usize = 200;

/// More stages of RoPE than any model has.
const MAX_STAGE: usize = 1 << 10;

/// Writes a payload.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn list(&mut self, values: &[u32]) {
        self.number(values.len() as u64);
        values.iter().for_each(|value| self.number(u64::from(*value)));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(super) fn damage(&mut self, found: &[Damage]) {
        self.number(found.len() as u64);
        for Damage { seq, place } in found {
            self.number(*seq as u64);
            self.text(place);
        }
    }
}

/// Reads a payload. Its errors say what is wrong.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// What is wrong with a message.
pub(super) type Damaged = String;

impl Reader<'_> {
    pub(super) fn number(&mut self) -> Result<u64, Damaged> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else { return Err("it ends within a number".into()) };
            self.0 = rest;
            let part = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".into())
    }

    /// A number that is at most `max`.
    pub(super) fn at_most(&mut self, max: usize, what: &str) -> Result<usize, Damaged> {
        let found = self.number()?;
        match usize::try_from(found) {
            Ok(value) if value <= max => Ok(value),
            _ => Err(format!("{what} is {found}, at most {max}")),
        }
    }

    /// A list of at most `max_len` numbers up to `max`.
    fn list(&mut self, max_len: usize, max: usize, what: &str) -> Result<Vec<u32>, Damaged> {
        let len = self.at_most(max_len, &format!("the length of {what}"))?;
        // Each number takes at least one byte.
        if len > self.0.len() {
            return Err(format!("{what} ends after fewer than {len}"));
        }
        (0..len).map(|_| self.at_most(max.min(u32::MAX as usize), what).map(|value| value as u32)).collect()
    }

    /// A fixed number of bytes.
    pub(super) fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], Damaged> {
        let Some((bytes, rest)) = self.0.split_first_chunk() else { return Err(format!("it ends within {LEN} bytes")) };
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn text(&mut self) -> Result<String, Damaged> {
        let len = self.at_most(self.0.len(), "the length of a text")?;
        let Some((text, rest)) = self.0.split_at_checked(len) else { return Err("it ends within a text".into()) };
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| "a text is not UTF-8".into())
    }

    pub(super) fn end(self) -> Result<(), Damaged> {
        match self.0.len() {
            0 => Ok(()),
            rest => Err(format!("{rest} bytes too many")),
        }
    }
}

/// The damage that [`Writer::damage`] wrote, in a step of `num_seqs` sequences.
pub(super) fn damage_from_bytes(bytes: &[u8], num_seqs: usize) -> Result<Vec<Damage>, Damaged> {
    let mut reader = Reader(bytes);
    let len = reader.at_most(num_seqs, "the number of damaged sequences")?;
    let found = (0..len).map(|_| {
        let seq = reader.at_most(num_seqs.saturating_sub(1), "a damaged sequence")?;
        Ok(Damage { seq, place: printable(&reader.text()?, MAX_PLACE) })
    });
    let found = found.collect::<Result<_, Damaged>>()?;
    reader.end()?;
    Ok(found)
}

/// A text from another process, to show in an error: at most `max` characters, without control characters.
pub(super) fn printable(text: &str, max: usize) -> String {
    let shown = |c: char| match c {
        // Characters that change the writing direction can make a message read differently.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let cut = text.chars().nth(max).map(|_| '\u{2026}');
    text.chars().take(max).map(shown).chain(cut).collect()
}

/// A step for ranks without an output head, so without the rows whose logits are asked for.
pub(super) fn step_to_bytes(batch: &Batch, limits: &Limits) -> Result<Vec<u8>> {
    let mut writer = Writer(Vec::with_capacity(16 + 4 * (batch.num_tokens() + batch.block_tables.len())));
    writer.number(batch.num_seqs() as u64);
    let (mut tokens, mut blocks) = (batch.input_ids.as_slice(), batch.block_tables.as_slice());
    let mut take = |range: &[u32], list: &mut &[u32]| {
        let len = if let [start, end] = range { end.checked_sub(*start)? as usize } else { return None };
        let (taken, rest) = list.split_at_checked(len)?;
        writer.list(taken);
        *list = rest;
        Some(len)
    };
    let mut computed = Vec::with_capacity(batch.num_seqs());
    for ((end, tokens_of), blocks_of) in
        batch.context_lens.iter().zip(batch.cu_seqlens_q.windows(2)).zip(batch.cu_blocks.windows(2))
    {
        let len = take(tokens_of, &mut tokens).zip(take(blocks_of, &mut blocks)).map(|(len, _)| len as u32);
        computed.push(len.and_then(|len| end.checked_sub(len)).ok_or_else(inconsistent)?);
    }
    if !tokens.is_empty() || !blocks.is_empty() || computed.len() != batch.num_seqs() {
        return Err(inconsistent());
    }
    writer.list(&computed);
    writer.list(&batch.rope_stages);
    // Refuse what the other ranks would refuse or read differently, before any of them has begun.
    let read = step_from_bytes(&writer.0, limits).map_err(|reason| Error::argument("batch", reason))?;
    match (read.positions == batch.positions) && (read.slot_mapping == batch.slot_mapping) {
        true => Ok(writer.0),
        false => Err(inconsistent()),
    }
}

fn inconsistent() -> Error {
    Error::argument("batch", "its lists do not fit each other: build it with `Batch::push`")
}

/// The step that [`step_to_bytes`] wrote.
pub(super) fn step_from_bytes(bytes: &[u8], limits: &Limits) -> Result<Batch, Damaged> {
    let mut reader = Reader(bytes);
    let num_seqs = reader.at_most(limits.max_num_seqs, "the number of sequences")?;
    let mut sequences = Vec::with_capacity(num_seqs.min(bytes.len()));
    let mut room = limits.max_num_batched_tokens;
    for _ in 0..num_seqs {
        let input_ids = reader.list(room, limits.vocab_size.saturating_sub(1), "input_ids")?;
        room -= input_ids.len();
        let blocks = reader.list(limits.num_blocks, limits.num_blocks.saturating_sub(1), "block_table")?;
        sequences.push((input_ids, blocks.into_iter().map(BlockId).collect::<Vec<_>>()));
    }
    let computed = reader.list(num_seqs, limits.max_model_len, "num_computed_tokens")?;
    let rope_stages = reader.list(num_seqs, MAX_STAGE, "rope_stage")?;
    reader.end()?;
    if computed.len() != num_seqs || rope_stages.len() != num_seqs {
        let (positions, stages) = (computed.len(), rope_stages.len());
        return Err(format!("{positions} positions and {stages} stages of RoPE for {num_seqs} sequences"));
    }
    let mut batch = Batch::new(limits.block_size);
    for (((input_ids, block_table), computed), rope_stage) in sequences.iter().zip(computed).zip(rope_stages) {
        let num_computed_tokens = computed as usize;
        let step = SequenceStep {
            input_ids,
            num_computed_tokens,
            block_table,
            logits: WantLogits::None,
            rope_stage,
            adapter: None,
        };
        batch.push(step).map_err(|error| error.to_string())?;
    }
    batch.check(limits).map_err(|error| error.to_string())?;
    Ok(batch)
}

/// Block copies as pairs.
pub(super) fn copies_to_bytes(copies: &[CopyBlock]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.list(&copies.iter().flat_map(|copy| [copy.from.0, copy.to.0]).collect::<Vec<_>>());
    writer.0
}

/// The copies that [`copies_to_bytes`] wrote, all between blocks that exist.
pub(super) fn copies_from_bytes(bytes: &[u8], limits: &Limits) -> Result<Vec<CopyBlock>, Damaged> {
    let mut reader = Reader(bytes);
    let blocks = reader.list(bytes.len(), limits.num_blocks.saturating_sub(1), "a block")?;
    reader.end()?;
    let (pairs, rest) = blocks.as_chunks::<2>();
    match rest.is_empty() {
        true => Ok(pairs.iter().map(|[from, to]| CopyBlock { from: BlockId(*from), to: BlockId(*to) }).collect()),
        false => Err("a copy without its target".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits {
            max_model_len: 100,
            max_num_batched_tokens: 64,
            max_num_seqs: 4,
            max_num_logits: 64,
            block_size: 16,
            num_blocks: 9,
            vocab_size: 1000,
            num_token_ids: 1000,
        }
    }

    /// Everything that a rank without an output head reads of a batch.
    fn read(batch: &Batch) -> [&[u32]; 8] {
        let Batch { input_ids, positions, cu_seqlens_q, context_lens, slot_mapping, block_tables, cu_blocks, .. } =
            batch;
        let stages = &batch.rope_stages;
        [input_ids, positions, cu_seqlens_q, context_lens, slot_mapping, block_tables, cu_blocks, stages]
    }

    fn batches() -> impl Strategy<Value = Batch> {
        let sequence = (1usize..=16, 0usize..=80, any::<u64>(), 0usize..3);
        proptest::collection::vec(sequence, 0..=4).prop_map(|sequences| {
            let mut batch = Batch::new(16);
            for (len, num_computed_tokens, seed, spare) in sequences {
                let ids: Vec<u32> = (0..len as u64).map(|i| (seed.wrapping_add(i * 7919) % 1000) as u32).collect();
                let blocks = ((num_computed_tokens + len).div_ceil(16) + spare) as u64;
                let block_table: Vec<_> = (0..blocks).map(|i| BlockId((seed.wrapping_add(i) % 9) as u32)).collect();
                let logits = if seed & 1 == 0 { WantLogits::Last } else { WantLogits::None };
                let (block_table, rope_stage) = (&block_table, (seed % 5) as u32);
                let step = SequenceStep {
                    input_ids: &ids,
                    num_computed_tokens,
                    block_table,
                    logits,
                    rope_stage,
                    adapter: None,
                };
                batch.push(step).unwrap();
            }
            batch
        })
    }

    proptest! {
        #[test]
        fn steps_come_back(batch in batches()) {
            let bytes = step_to_bytes(&batch, &limits()).unwrap();
            let found = step_from_bytes(&bytes, &limits()).unwrap();
            prop_assert_eq!(read(&found), read(&batch));
            prop_assert!(found.logits_indices.is_empty());
        }

        #[test]
        fn reports_of_damage_come_back_and_random_ones_stay_within_the_step(
            seqs in proptest::collection::vec((0usize..4, ".{0,20}"), 0..=4),
            random in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let found: Vec<Damage> = seqs.into_iter().map(|(seq, place)| Damage { seq, place }).collect();
            let mut writer = Writer::default();
            writer.damage(&found);
            let shown = |Damage { seq, place }| Damage { seq, place: printable(&place, MAX_PLACE) };
            prop_assert_eq!(damage_from_bytes(&writer.0, 4).unwrap(), found.into_iter().map(shown).collect::<Vec<_>>());
            if let Ok(found) = damage_from_bytes(&random, 4) {
                prop_assert!(found.len() <= 4 && found.iter().all(|damage| damage.seq < 4));
            }
        }

        #[test]
        fn a_damaged_step_is_refused_or_within_the_limits(
            batch in batches(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = step_to_bytes(&batch, &limits()).unwrap();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(batch) = step_from_bytes(&bytes, &limits()) {
                prop_assert!(batch.check(&limits()).is_ok());
                prop_assert!(batch.slot_mapping.iter().all(|slot| *slot < 9 * 16));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = step_from_bytes(&bytes, &limits());
            let _ = copies_from_bytes(&bytes, &limits());
            let _ = Reader(&bytes).text();
            let _ = damage_from_bytes(&bytes, 9);
        }

        #[test]
        fn numbers_and_texts_come_back(value in any::<u64>(), text in ".*") {
            let mut writer = Writer::default();
            writer.number(value);
            writer.text(&text);
            let mut reader = Reader(&writer.0);
            prop_assert_eq!(reader.number().unwrap(), value);
            prop_assert_eq!(reader.text().unwrap(), text);
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn copies_come_back(pairs in proptest::collection::vec((0u32..9, 0u32..9), 0..20)) {
            let copies: Vec<_> =
                pairs.iter().map(|(from, to)| CopyBlock { from: BlockId(*from), to: BlockId(*to) }).collect();
            prop_assert_eq!(copies_from_bytes(&copies_to_bytes(&copies), &limits()).unwrap(), copies);
        }
    }

    #[test]
    fn what_the_limits_do_not_hold_is_refused_before_it_is_sent() {
        let mut batch = Batch::new(16);
        let step = SequenceStep {
            input_ids: &[1, 1000],
            num_computed_tokens: 0,
            block_table: &[BlockId(0)],
            logits: WantLogits::Last,
            rope_stage: 0,
            adapter: None,
        };
        batch.push(step).unwrap();
        assert!(step_to_bytes(&batch, &limits()).unwrap_err().to_string().contains("input_ids is 1000"));
        batch.input_ids[1] = 2;
        assert!(step_to_bytes(&batch, &limits()).is_ok());
        batch.cu_seqlens_q[1] = 7;
        assert!(step_to_bytes(&batch, &limits()).unwrap_err().to_string().contains("do not fit each other"));
        batch.cu_seqlens_q[1] = 2;
        batch.positions[1] = 5;
        assert!(step_to_bytes(&batch, &limits()).unwrap_err().to_string().contains("do not fit each other"));
        batch.block_tables[0] = 9;
        assert!(step_to_bytes(&batch, &limits()).unwrap_err().to_string().contains("block_table is 9"));
    }

    #[test]
    fn a_number_beyond_64_bits_is_refused() {
        assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).number(), Ok(u64::MAX));
        assert!(Reader(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).number().is_err());
        assert!(Reader(&[0x80]).number().is_err());
    }
}
