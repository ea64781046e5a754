//! Rotary tables against exact ones, and the shape of YaRN.

mod common;

use qwen_core::checkpoint::config::Yarn;
use qwen_core::{Config, Rope, RopeScaling};
use safetensors::SafeTensors;
use serde_json::Value;

fn config(head_dim: usize, rope: &str) -> Config {
    let json = format!(
        r#"{{"model_type": "qwen2", "hidden_size": {head_dim}, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768, {rope}}}"#
    );
    Config::from_json("config.json", &json).expect("a valid config")
}

const DEFAULT: &str = r#""rope_theta": 1000000"#;
const YARN4: &str = r#""rope_theta": 1000000,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}"#;

fn f64s(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// Distance from `exact` in f32 units in the last place.
fn ulps(found: f32, exact: f64) -> f64 {
    let rounded = (exact as f32).abs();
    let ulp = f64::from(rounded.next_up()) - f64::from(rounded);
    (f64::from(found) - exact).abs() / ulp
}

#[test]
fn every_golden_table_is_met_to_half_a_unit_in_the_last_place() {
    let Some(golden) = common::golden() else { return };
    let file = std::fs::read(golden.join("rope.safetensors")).expect("rope.safetensors");
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    for (table, head_dim, rope) in [
        ("default-hd64", 64, DEFAULT),
        ("default-hd128", 128, DEFAULT),
        ("yarn4-hd64", 64, YARN4),
        ("yarn4-hd128", 128, YARN4),
    ] {
        let golden = |name: &str| f64s(tensors.tensor(&format!("{table}.{name}")).expect(name).data());
        let rope = Rope::new(&config(head_dim, rope));
        assert!((rope.attention_factor() - golden("attention_factor")[0]).abs() < 1e-15);
        for (found, exact) in rope.inv_freq().iter().zip(golden("inv_freq_exact")) {
            assert!((found - exact).abs() <= 1e-15 * exact, "{table}: inverse frequency {found:e}, exact {exact:e}");
        }

        let positions = tensors.tensor(&format!("{table}.positions")).expect("positions");
        let positions = positions.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as usize);
        let (cos, sin) = (golden("cos_exact"), golden("sin_exact"));
        let half = head_dim / 2;
        let mut row = vec![0.0; head_dim];
        let (mut worst, mut worst_ulps, mut last) = (0.0f64, 0.0f64, 0);
        for (at, position) in positions.enumerate() {
            rope.cos_sin(position, &mut row);
            let exact = cos[at * half..][..half].iter().chain(&sin[at * half..][..half]);
            for (&found, &exact) in row.iter().zip(exact) {
                worst = worst.max((f64::from(found) - exact).abs());
                worst_ulps = worst_ulps.max(ulps(found, exact));
            }
            last = position;
        }
        eprintln!("{table}: to position {last}, largest error {worst:.2e}, {worst_ulps:.4} ulp");
        assert_eq!(last, 131_071);
        assert!(worst_ulps <= 0.51, "{table}: {worst_ulps} units in the last place");
    }
}

#[test]
fn the_definitions_in_fifty_digits_are_met() {
    let fixture: Value = serde_json::from_str(include_str!("data/rope.json")).expect("JSON");
    for table in fixture["tables"].as_array().expect("tables") {
        let head_dim = table["head_dim"].as_u64().expect("head_dim") as usize;
        let rope = Rope::new(&config(head_dim, if table["yarn_factor"].is_null() { DEFAULT } else { YARN4 }));
        let mut out = vec![0.0; head_dim];
        for row in table["rows"].as_array().expect("rows") {
            let [position, plane] = [0, 1].map(|i| row[i].as_u64().expect("an integer") as usize);
            let [cos, sin] = [2, 3].map(|i| row[i].as_f64().expect("a number"));
            rope.cos_sin(position, &mut out);
            // Half a unit in the last place of f32 between 1 and 2, which YaRN's factor reaches.
            for (found, exact) in [(out[plane], cos), (out[head_dim / 2 + plane], sin)] {
                assert!((f64::from(found) - exact).abs() < 6e-8, "{head_dim}: {row}: {found}");
            }
        }
    }
}

#[test]
fn positions_far_apart_turn_like_near_ones() {
    // Rotations by a and by b compose to one by a + b, at any distance: f32 angles would miss this by 1e-2.
    let rope = Rope::new(&config(128, DEFAULT));
    let [mut a, mut b, mut sum] = [[0.0; 128]; 3];
    rope.cos_sin(131_000, &mut a);
    rope.cos_sin(71, &mut b);
    rope.cos_sin(131_071, &mut sum);
    for i in 0..64 {
        assert!((a[i] * b[i] - a[64 + i] * b[64 + i] - sum[i]).abs() < 3e-7);
        assert!((a[64 + i] * b[i] + a[i] * b[64 + i] - sum[64 + i]).abs() < 3e-7);
    }
}

#[test]
fn yarn_keeps_fast_planes_and_divides_slow_ones() {
    let plain = Rope::new(&config(128, DEFAULT));
    let yarn = Rope::new(&config(128, YARN4));
    let ratio = |i: usize| plain.inv_freq()[i] / yarn.inv_freq()[i];
    // 32768 positions are 32 turns of plane 23.6 and one turn of plane 39.6
    assert!((0..=23).all(|i| ratio(i) == 1.0));
    assert!((24..40).all(|i| ratio(i) > 1.0 && ratio(i) < 4.0));
    assert!((40..64).all(|i| (ratio(i) - 4.0).abs() < 1e-12));
    assert_eq!(yarn.attention_factor(), 0.1 * 4f64.ln() + 1.0);
}

#[test]
fn the_optional_keys_of_yarn_have_their_say() {
    let with = |change: &dyn Fn(&mut Yarn)| {
        let mut yarn = Yarn::new(4.0, 32768);
        change(&mut yarn);
        Rope::new(&config(128, DEFAULT).with_rope_scaling(RopeScaling::Yarn(yarn)).expect("valid"))
    };
    assert_eq!(with(&|yarn| yarn.attention_factor = Some(1.25)).attention_factor(), 1.25);
    let both = with(&|yarn| (yarn.mscale, yarn.mscale_all_dim) = (Some(0.707), Some(0.5))).attention_factor();
    assert!((both - (0.0707 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0)).abs() < 1e-15);
    let one = with(&|yarn| yarn.mscale = Some(0.707));
    assert_eq!(one.attention_factor(), Yarn::new(4.0, 1).attention_factor(), "alone `mscale` says nothing");
    // A ramp that is not rounded outwards begins later and ends earlier.
    let (rounded, sharp) = (with(&|_| ()), with(&|yarn| yarn.truncate = false));
    assert!(sharp.inv_freq()[24] > rounded.inv_freq()[24]);
    assert!(sharp.inv_freq()[39] < rounded.inv_freq()[39]);
    let narrow = with(&|yarn| (yarn.beta_fast, yarn.beta_slow, yarn.truncate) = (8.0, 8.0, false));
    assert!(narrow.inv_freq().iter().all(|freq| freq.is_finite() && *freq > 0.0), "no division by a ramp of width 0");
    // A factor of 1 changes nothing.
    let (none, plain) = (with(&|yarn| yarn.factor = 1.0), Rope::new(&config(128, DEFAULT)));
    assert_eq!(none.attention_factor(), 1.0);
    assert!(none.inv_freq().iter().zip(plain.inv_freq()).all(|(one, other)| (one - other).abs() <= 1e-15 * other));
}
