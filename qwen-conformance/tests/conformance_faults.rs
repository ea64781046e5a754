//! The suite finds faults: for each planted one, the right cases fail.

mod faulty;

use faulty::{Fault, Faulty};
use qwen_conformance::goldens::Goldens;
use qwen_conformance::{Outcome, Suite, cases};

/// Each fault and the cases that have to fail.
const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::FastBf16Sums, &["linear/bf16"]),
    (Fault::FastF16Activations, &["linear/outliers"]),
    (Fault::FastInt8, &["linear/bf16", "gate_up_silu/fused"]),
    (Fault::FastBf16Kv, &["attention/every_geometry", "attention/biased_keys"]),
    (Fault::ExactF16Kv, &["attention/every_geometry", "attention/first_position"]),
    (Fault::ExactBf16Inputs, &["linear/f32", "linear/bf16", "model/logits"]),
    (Fault::KvBlocksRoundDown, &["kv_encoding/rounding", "kv_encoding/every_geometry"]),
    (Fault::KvBlocksHideInfinities, &["kv_encoding/non_finite"]),
    (Fault::CopiesOneLayer, &["kv_encoding/copied_blocks"]),
    (Fault::MissingBias, &["linear/biases", "qkv_rope_store/every_geometry"]),
    (Fault::MissingLastColumn, &["linear/f32", "linear/f16", "linear/bf16"]),
    (Fault::MissingLastRow, &["linear/bf16"]),
    (Fault::WritesBehindTheOutput, &["linear/bf16"]),
    (Fault::TakesInWhatLiesBehind, &["linear/bf16"]),
    (Fault::BatchVariantLinear, &["linear/batch_invariance", "model/batch_invariance"]),
    (Fault::Nondeterministic, &["linear/bf16"]),
    (Fault::IgnoresStride, &["linear/cut_rectangles", "embed/rows", "gate_up_silu/fused"]),
    (Fault::NoEpsilon, &["rms_norm/shapes"]),
    (Fault::AdjacentRotaryPairs, &["rope/every_geometry", "qkv_rope_store/every_geometry"]),
    (Fault::RotatesValues, &["rope/every_geometry"]),
    (Fault::ContextOffByOne, &["attention/contexts", "attention/every_geometry"]),
    (Fault::SeesTheFuture, &["attention/contexts", "attention/ragged_batches"]),
    (Fault::KvHeadsInterleaved, &["attention/every_geometry", "qkv_rope_store/every_geometry"]),
    (Fault::ContiguousBlocks, &["attention/permuted_blocks", "model/permuted_blocks"]),
    (Fault::BatchVariantAttention, &["attention/batch_invariance"]),
    (Fault::TakesInUnusedPositions, &["attention/contexts", "attention/ragged_batches"]),
    (Fault::StoresPadding, &["kv/padding_is_not_stored", "attention/every_geometry"]),
    (Fault::StoresToLayer0, &["kv/slots_and_layers", "attention/every_geometry"]),
    (Fault::CopiesOneLayer, &["kv/copy_blocks", "attention/permuted_blocks", "model/forks"]),
    (Fault::WritesBlocksReversed, &["kv/through_the_host"]),
    (Fault::SiluOverflows, &["gate_up_silu/silu_and_mul"]),
    (Fault::GateAndUpSwapped, &["gate_up_silu/fused"]),
    (Fault::FusedNormMissing, &["qkv_rope_store/normed", "gate_up_silu/normed"]),
    (Fault::LinearAddReplaces, &["linear/add_to_residual"]),
    (Fault::ArgmaxLastOfEquals, &["argmax/ties"]),
    (Fault::ArgmaxIgnoresNan, &["argmax/non_finite"]),
    (Fault::ArgmaxOverAll, &["argmax/valid_columns", "argmax/non_finite", "model/greedy"]),
    (Fault::EmbedWraps, &["embed/ids_outside_of_the_table"]),
    (Fault::GatherOffByOne, &["gather_rows/rows", "model/adapters_in_a_batch"]),
    (Fault::AddRowsUnscaled, &["add_rows/rows", "model/adapters_in_a_batch"]),
    (Fault::ReducesNothing, &["add/all_reduce", "parts/ranks"]),
    (Fault::IgnoresInterrupts, &["steps/interrupt"]),
    (Fault::StepsRunOnce, &["steps/replay", "model/determinism"]),
    (Fault::NotZeroAtFirst, &["memory/zero_at_first"]),
];

fn suite(fault: Fault) -> Suite<Faulty> {
    Suite::new(move || Ok(Faulty::new(fault)))
}

#[test]
fn every_fault_is_found() {
    let mut missed = Vec::new();
    for (fault, names) in FAULTS {
        let cases = cases::<Faulty>();
        for name in *names {
            let case = cases.iter().find(|case| case.name == *name).unwrap_or_else(|| panic!("no case {name}"));
            match suite(*fault).outcome(case) {
                Outcome::Failed(_) => {}
                other => missed.push(format!("{fault:?} in {name}: {other:?}")),
            }
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}

/// Without a fault, the wrapper passes the same cases.
#[test]
fn without_a_fault_all_of_it_passes() {
    let cases = cases::<Faulty>();
    for name in FAULTS.iter().flat_map(|(_, names)| *names).collect::<std::collections::BTreeSet<_>>() {
        let case = cases.iter().find(|case| case.name == *name).unwrap_or_else(|| panic!("no case {name}"));
        let outcome = suite(Fault::None).outcome(case);
        assert!(matches!(outcome, Outcome::Passed { .. }), "{name}: {outcome:?}");
    }
}

/// Of the cases over whole models only one: the others compare bits.
fn all_pass(fault: Fault) {
    let mut failed = Vec::new();
    let whole_model = |name: &str| name.starts_with("model/") || name.starts_with("parts/");
    for case in cases::<Faulty>() {
        if whole_model(case.name) && case.name != "model/logits" {
            continue;
        }
        if let Outcome::Failed(failures) = suite(fault).outcome(&case) {
            failed.push(failures);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Rounding what `Precision::Fast` may round, and nothing else, is within all tolerances.
#[test]
fn what_fast_may_round_passes() {
    all_pass(Fault::Fast);
}

/// The tolerances of `Precision::Exact` leave room for f32 sums.
#[test]
fn plain_f32_passes() {
    all_pass(Fault::PlainF32);
}

#[test]
fn an_expected_failure_must_fail() {
    let cases = cases::<Faulty>();
    let case = cases.iter().find(|case| case.name == "argmax/ties").expect("the case exists");
    let expecting = |fault| suite(fault).expect_fail("argmax/ties", "takes the last of equals").outcome(case);
    assert!(
        matches!(expecting(Fault::ArgmaxLastOfEquals), Outcome::Skipped(reason) if reason.contains("last of equals"))
    );
    assert!(matches!(expecting(Fault::None), Outcome::Failed(reason) if reason.contains("should fail")));
}

#[test]
fn an_unsupported_device_is_skipped_and_an_unmakeable_one_fails() {
    let cases = cases::<Faulty>();
    let unsupported = Suite::<Faulty>::new(|| Err(qwen_core::Error::unsupported("AVX-512", "not on this CPU")));
    assert!(matches!(unsupported.outcome(&cases[0]), Outcome::Skipped(reason) if reason.contains("not on this CPU")));
    let broken = Suite::<Faulty>::new(|| Err(qwen_core::Error::EmptyPrompt));
    assert!(matches!(broken.outcome(&cases[0]), Outcome::Failed(_)));
}

/// The recorded results find faults too: allowed rounding is within the contract's limits, and faults are not.
#[test]
fn goldens_find_faults() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden");
    let goldens = Goldens::open(folder).expect("the golden case of the repository");
    let holds = |fault| {
        let result = goldens.run(&goldens.cases()[0], Faulty::new(fault), usize::MAX).expect("the case runs");
        (result.holds(), result)
    };
    for fault in [Fault::None, Fault::PlainF32, Fault::Fast] {
        let (holds, result) = holds(fault);
        assert!(holds, "{fault:?}: {result}");
    }
    for fault in [Fault::MissingBias, Fault::AdjacentRotaryPairs, Fault::ContextOffByOne, Fault::ExactF16Kv] {
        let (holds, result) = holds(fault);
        assert!(!holds, "{fault:?}: {result}");
    }
}
