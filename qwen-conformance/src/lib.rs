//! The conformance suite: what a backend has to compute, as a library that tests and benches share.
//!
//! One macro gives a backend one `#[test]` for each case, here or outside of this workspace:
//!
//! ```
//! use qwen_core::backend::reference::Reference;
//! qwen_conformance::conformance_tests!(|| Ok(Reference::new()));
//! ```
//!
//! A backend with several precisions or instruction sets names each, with what is known about it:
//!
//! ```
//! # use qwen_core::{Error, Result};
//! # use qwen_core::backend::reference::Reference;
//! # fn with_avx512() -> Result<Reference> { Err(Error::unsupported("AVX-512", "this CPU has none")) }
//! use qwen_conformance::Suite;
//! qwen_conformance::conformance_tests! {
//!     scalar => || Ok(Reference::new()),
//!     // If the constructor returns `Error::Unsupported`, the suite is skipped and the reason is printed.
//!     avx512 => with_avx512,
//!     fast => Suite::new(|| Ok(Reference::new()))
//!         .fast_depends_on_the_batch()
//!         .expect_fail("steps/replay", "the driver of this device ..."),
//! }
//! ```
//!
//! # What a case does
//!
//! It runs an [`op::Op`] (an operation with its shapes, as data) on the backend and on
//! [`qwen_core::backend::reference`], on the same stored weights, and compares within a tolerance that [`tolerance`]
//! derives for the precision that the backend names in [`qwen_core::Backend::info`]. Each operation runs twice and has
//! to give the same bits. Outputs are initialised with NaN and guard words follow every buffer, to detect an operation
//! that skips a value, reads beyond an input, or writes beyond an output. Operations are issued outside of steps,
//! except in the cases about steps.
//!
//! Fused operations are compared in the backend's own form and in the composed form on the same backend.
//!
//! [`published`] has the shapes of the published models, for plans; [`workloads`] gives benches the same operations
//! in the shapes of real models, with the bytes and the floating-point operations that each needs.

mod compare;
pub mod goldens;
pub mod model;
pub mod op;
pub mod ops;
pub mod published;
mod random;
mod recording;
mod rig;
mod scenario;
mod suite;
pub mod tolerance;
mod workload;

pub use compare::rms_error;
pub use random::{Rng, random_blocks};
pub use recording::{BufferId, IndicesId, KvId, Recording, WeightId};
pub use rig::Rig;
pub use scenario::{Blocks, Keys, Scenario, Sequence};
pub use suite::{Case, Outcome, Suite, cases, run};
pub use workload::{Issue, Workload, workloads};

/// Give a backend one `#[test]` for each case of the suite. See [`mod@crate`].
#[macro_export]
macro_rules! conformance_tests {
    ($($name:ident => $suite:expr),+ $(,)?) => {
        $(
            mod $name {
                #[allow(unused_imports)]
                use super::*;
                $crate::__conformance_cases! { __conformance_test_modules ($suite) }
            }
        )+
    };
    ($suite:expr $(,)?) => { $crate::conformance_tests! { conformance => $suite } };
}

/// The tests of [`conformance_tests`].
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test_modules {
    (($suite:expr) $($group:ident { $($case:ident)* })*) => {
        $(
            mod $group {
                #[allow(unused_imports)]
                use super::*;
                $(
                    #[test]
                    fn $case() {
                        $crate::run($suite, concat!(stringify!($group), "/", stringify!($case)));
                    }
                )*
            }
        )*
    };
}

/// The list of [`cases`](crate::cases).
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_list {
    (($groups:ident) $($group:ident { $($case:ident)* })*) => {
        vec![$($(Case { name: concat!(stringify!($group), "/", stringify!($case)), run: $groups::$group::$case },)*)*]
    };
}

/// The list of all cases: modules and their functions.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($then:ident $args:tt) => {
        $crate::$then! {
            $args
            memory { zero_at_first write_and_read writes_wait_their_turn }
            extremes { allocations weights operands }
            embed { rows ids_outside_of_the_table }
            linear {
                f32 f16 bf16 stacked_parts cut_rectangles biases outliers add_to_residual batch_invariance
            }
            blocks {
                q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s
                int4_groups int8_groups mixed_parts column_orders cut_rectangles outliers non_finite add_to_residual
                batch_invariance
            }
            rms_norm { shapes batch_invariance }
            rope { every_geometry batch_invariance }
            kv { zero_at_first slots_and_layers order_of_slots padding_is_not_stored copy_blocks through_the_host }
            kv_encoding {
                refusals rounding stored_bytes every_geometry ragged_batches outliers mixed_encodings copied_blocks batch_invariance
                fused_store non_finite
            }
            attention {
                every_geometry contexts ragged_batches biased_keys permuted_blocks padding batch_invariance
                first_position
            }
            qkv_rope_store { every_geometry ragged_batches biased_keys normed batch_invariance }
            gate_up_silu { silu_and_mul fused normed batch_invariance }
            add { lengths all_reduce }
            gather_rows { rows }
            add_rows { rows }
            argmax { valid_columns ties non_finite }
            steps { replay steps_in_a_row interrupt failing_body written_indices }
            model {
                logits hidden adapters_in_a_batch batch_invariance kv_in_blocks permuted_blocks determinism forks greedy interrupt non_finite
            }
            parts { ranks stages non_finite_stage }
        }
    };
}
