//! YaRN for the requests that need it: the same bits as engines without it, or with it for all, alone and in company.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, SMALL, Shape, options, write_checkpoint};
use qwen::{Engine, EngineOptions, FinishReason, GenerateOptions, Precision};

/// A model that was trained for 128 positions.
fn checkpoint(name: &str) -> Folder {
    let folder = Folder::new(name);
    write_checkpoint(&folder.0, SMALL, |_, _| {});
    let path = folder.0.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("4096", "128")).unwrap();
    folder
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + 5) % 290).collect()
}

/// Sampled, so that a difference in the logits shows.
fn sampled(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions::new().temperature(1.5).seed(7).max_new_tokens(max_new_tokens).ignore_eos(true)
}

fn ids(engine: &Engine, prompt: &[u32], new: usize) -> Vec<u32> {
    engine.generate_ids(prompt, &sampled(new)).unwrap().collect::<qwen::Result<_>>().unwrap()
}

#[test]
fn short_requests_are_as_without_it_and_long_ones_as_with_the_factor_that_they_need() {
    let folder = checkpoint("auto-yarn");
    for precision in [Precision::Exact, Precision::Fast] {
        let load = |options: EngineOptions| options.precision(precision).load(&folder.0).unwrap();
        let auto = load(options().context(448).auto_yarn(3.5));
        let plain = load(options());
        let [double, triple, most] = [2.0, 3.0, 3.5].map(|factor| load(options().yarn(factor)));
        let cases = [(&plain, 100, 28), (&double, 100, 29), (&double, 200, 56), (&triple, 300, 84), (&most, 440, 8)];
        let expected = cases.map(|(engine, len, new)| ids(engine, &prompt(len), new));
        for ((_, len, new), expected) in cases.iter().zip(&expected) {
            assert_eq!(&ids(&auto, &prompt(*len), *new), expected, "{len} + {new} in {precision}");
        }
        // All at once, and behind what is cached of the first round.
        let streams = cases.map(|(_, len, new)| auto.generate_ids(prompt(len), &sampled(new)).unwrap());
        for (stream, expected) in streams.into_iter().zip(&expected) {
            assert_eq!(&stream.collect::<qwen::Result<Vec<u32>>>().unwrap(), expected);
        }
        assert!(auto.stats().cached_tokens > 0, "{:?}", auto.stats());
        assert_ne!(expected[0][..20], expected[1][..20], "the factor changes nothing");
    }
}

#[test]
fn it_is_planned_for_at_its_longest() {
    let folder = checkpoint("auto-yarn-plan");
    let plan = |options: EngineOptions| qwen::plan(&folder.0, &options).unwrap();
    let context = plan(options().context(448).auto_yarn(3.5)).total_bytes;
    assert_eq!(context, plan(options().context(448).yarn(3.5)).total_bytes);
    let refused = qwen::plan(&folder.0, &options().context(449).auto_yarn(3.5)).unwrap_err();
    assert!(refused.to_string().contains("must be 2 to 448"), "{refused}");
    assert!(qwen::plan(&folder.0, &options().auto_yarn(0.5)).unwrap_err().to_string().contains("factor"));
}

#[test]
fn a_context_of_131072_positions_is_used_to_its_end() {
    let folder = Folder::new("all-positions");
    let shape = Shape { hidden: 32, inner: 32, layers: 1, heads: 1, kv_heads: 1, vocab: 300, tied: true };
    write_checkpoint(&folder.0, shape, |_, _| {});
    // The file's context is 4,096.
    let engine = options().auto_yarn(32.0).context(131_072).load(&folder.0).unwrap();
    let asked = GenerateOptions::new().greedy().ignore_eos(true);
    let mut prompt = prompt(131_000);
    let mut stream = engine.generate_ids(prompt.as_slice(), &asked).unwrap();
    let answer: Vec<u32> = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
    assert_eq!((answer.len(), stream.finish_reason()), (72, Some(FinishReason::ContextFull)));
    // The next turn computes what is new, and says the same.
    prompt.extend(&answer[..40]);
    let mut stream = engine.generate_ids(prompt.as_slice(), &asked).unwrap();
    let again: Vec<u32> = stream.by_ref().collect::<qwen::Result<_>>().unwrap();
    assert_eq!(again, answer[40..]);
    // The whole store is in use, so that no block is left for a copy of the last one.
    assert_eq!(stream.stats().cached_tokens, 131_008);
}
