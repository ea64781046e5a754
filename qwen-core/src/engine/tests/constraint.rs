//! Constraints: every answer fits, and neither forced tokens, guesses, lateness nor company change one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::engine::sampling::{Constraint, ConstraintError, ConstraintState, TokenMask};

/// What may follow depends on the number of the place that the answer leads to.
#[derive(Debug, Clone)]
struct Maze {
    /// The tokens that may follow at each place.
    doors: Arc<[Vec<u32>]>,
    /// Whether it says what is forced, and cuts guesses.
    helps: bool,
    /// Every how many places the mask is late the first time; 0 for never.
    late: usize,
    /// The length of the answer at which it fails.
    fails_at: usize,
    asked: HashSet<Vec<u32>>,
}

impl Maze {
    fn new(doors: impl Into<Vec<Vec<u32>>>) -> Self {
        Maze { doors: doors.into().into(), helps: true, late: 0, fails_at: usize::MAX, asked: HashSet::new() }
    }

    fn next(&self, answer: &[u32]) -> &[u32] {
        let place = answer.iter().fold(0, |place: usize, id| (place * 3 + *id as usize) % self.doors.len());
        &self.doors[place]
    }

    fn fits(&self, answer: &[u32]) -> bool {
        (0..answer.len()).all(|end| self.next(&answer[..end]).contains(&answer[end]))
    }
}

impl Constraint for Maze {
    fn start(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }
}

impl ConstraintState for Maze {
    fn mask(&mut self, answer: &[u32]) -> Result<Arc<TokenMask>, ConstraintError> {
        if answer.len() >= self.fails_at {
            return Err(ConstraintError("it is too complex".into()));
        }
        Ok(Arc::new(TokenMask::of(self.next(answer))))
    }

    fn wait(&mut self, answer: &[u32], _: Instant) -> bool {
        let is_late = self.late > 0 && answer.len().is_multiple_of(self.late);
        !is_late || !self.asked.insert(answer.to_vec())
    }

    fn forced(&mut self, answer: &[u32], at_most: usize) -> Vec<u32> {
        let mut forced = answer.to_vec();
        while self.helps && forced.len() < answer.len() + at_most {
            let &[only] = self.next(&forced) else { break };
            forced.push(only);
        }
        forced.split_off(answer.len())
    }

    fn num_allowed(&mut self, answer: &[u32], guesses: &[u32]) -> usize {
        let mut tried = answer.to_vec();
        let fits = |id: &&u32| {
            let fits = !self.helps || self.next(&tried).contains(id);
            tried.push(**id);
            fits
        };
        guesses.iter().take_while(fits).count()
    }
}

fn constrained(mut request: Request, maze: &Maze) -> Request {
    if let Goal::Generate(params) = &mut request.goal {
        *params = std::mem::take(params).constraint(Arc::new(maze.clone()));
    }
    request
}

fn alone(request: &Request) -> (Found, usize) {
    let mut rig = rig();
    let id = rig.add(request.clone());
    let found = rig.run().remove(&id).unwrap();
    (found, rig.steps.try_iter().count())
}

#[test]
fn forced_tokens_are_computed_in_one_step() {
    let only: Vec<Vec<u32>> = (0..5).map(|place| vec![place + 1]).collect();
    let maze = Maze::new(only);
    let request = constrained(request(&[1], 20), &maze);
    let (found, steps) = alone(&request);
    assert!(maze.fits(&found.tokens), "{found:?}");
    assert_eq!(found.tokens.len(), 20);
    // Four rows of logits in a step.
    assert_eq!(steps, 5);
}

#[test]
fn a_constraint_that_fails_ends_its_own_request_alone() {
    let free = Maze::new(vec![(0..9).collect::<Vec<u32>>()]);
    let failing = Maze { fails_at: 3, ..free.clone() };
    let mut rig = rig();
    let fails = rig.add(constrained(endless(request(&[1], 10)), &failing));
    let other = rig.add(constrained(endless(request(&[1], 10)), &free));
    let found = rig.run();
    assert_eq!(found[&fails].tokens, [2, 3, 4]);
    assert_eq!(found[&fails].end.as_deref(), Some("the grammar: it is too complex"));
    assert_eq!((found[&other].tokens.len(), found[&other].end.as_deref()), (10, Some("Length")));
}

#[test]
fn what_leaves_no_token_is_an_error() {
    let maze = Maze::new(vec![vec![2, 3]]);
    let cases = [
        SamplingParams { banned_token_ids: vec![2, 3], ..SamplingParams::default() },
        SamplingParams { allowed_token_ids: vec![4], ..SamplingParams::default() },
        SamplingParams { forced_token_ids: vec![2, 4], ..SamplingParams::default() },
    ];
    for sampling in cases {
        let (found, _) = alone(&constrained(sampled(&[1], 10, sampling), &maze));
        assert!(found.end.as_ref().unwrap().contains("no token is left: the grammar"), "{found:?}");
    }
    // A stop token is all that may follow, and too early.
    let stops = SamplingParams { min_new_tokens: 3, ..SamplingParams::default() };
    let (found, _) = alone(&constrained(sampled(&[1], 10, stops), &Maze::new(vec![vec![0]])));
    assert!(found.end.as_ref().unwrap().contains("no token is left"), "{found:?}");
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let mut asked = constrained(request(&[1], 2), &Maze::new(vec![vec![5]]));
    if let Goal::Generate(params) = &mut asked.goal {
        params.logprobs = Some(1);
    }
    let (found, _) = alone(&asked);
    let first = &found.logprobs[0];
    // The model wanted 2.
    assert_eq!((first.id, first.top[0].id), (5, 2));
    assert!(first.logprob < first.top[0].logprob);
}

fn mazes() -> impl Strategy<Value = Maze> {
    let doors = prop::collection::btree_set(0u32..9, 1..5).prop_map(|ids| ids.into_iter().collect::<Vec<_>>());
    prop::collection::vec(prop_oneof![doors, (1u32..8).prop_map(|id| vec![id])], 1..7).prop_map(Maze::new)
}

proptest! {
    /// Plain decoding without help, and everything that may be between: the same tokens.
    #[test]
    fn the_tokens_are_those_of_plain_decoding(
        maze in mazes(),
        stem in prop::collection::vec(0u32..8, 1..6),
        repeats in 1usize..3,
        new in 1usize..30,
        temperature in prop_oneof![Just(0.0f32), 0.5f32..2.0],
        repetition_penalty in prop_oneof![Just(1.0f32), 1.0f32..1.6],
        seed in any::<u64>(),
        late in 0usize..4,
        reads_slots in any::<bool>(),
        draft_reads_slots in any::<bool>(),
    ) {
        let prompt = stem.repeat(repeats);
        let sampling = SamplingParams { temperature, repetition_penalty, seed, ..SamplingParams::default() };
        let asked = sampled(&prompt, new, sampling);
        let rig_with = |limits| Rig::new(limits, |runner| runner.reads_slots = reads_slots);
        let run = |mut rig: Rig, asked: Request| {
            let id = rig.add(asked);
            rig.add(speculating(endless(request(&[3, 1, 3, 1], 12)), Speculation::PromptLookup));
            rig.run().remove(&id).unwrap()
        };
        let plain = run(rig_with(limits()), constrained(asked.clone(), &Maze { helps: false, ..maze.clone() }));
        let answer = [plain.tokens.as_slice(), plain.stop.as_slice()].concat();
        // What attends to the bad token is damaged.
        prop_assert!(maze.fits(&answer), "{:?}", plain);
        let maze = Maze { late, ..maze };
        for speculation in [Speculation::Off, Speculation::PromptLookup] {
            let asked = speculating(constrained(asked.clone(), &maze), speculation);
            prop_assert_eq!(&plain, &run(rig_with(limits()), asked.clone()));
            prop_assert_eq!(&plain, &run(rig_with(Limits { num_blocks: 16, max_num_logits: 2, ..limits() }), asked));
        }
        let (draft, _) = ScriptedRunner::new(limits(), |runner| runner.reads_slots = draft_reads_slots);
        let asked = speculating(constrained(asked, &maze), Speculation::Draft);
        prop_assert_eq!(&plain, &run(rig_with(limits()).with_draft(draft), asked));
    }
}
