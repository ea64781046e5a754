//! Pooled hidden states, alongside running answers.

use super::*;

/// The mean of the ids and of the positions from `first` on.
fn mean(prompt: &[u32], first: usize) -> Vec<f32> {
    let count = (prompt.len() - first) as f64;
    let ids: f64 = prompt[first..].iter().map(|id| f64::from(*id)).sum();
    let positions: f64 = (first..prompt.len()).map(|position| position as f64).sum();
    vec![(ids / count) as f32, (positions / count) as f32]
}

#[test]
fn texts_of_any_length_are_pooled_beside_answers() {
    for answers in 0..3 {
        let mut rig = rig();
        let answers: Vec<_> = (0..answers).map(|n| rig.add(endless(request(&[n, n + 1], 15)))).collect();
        let texts: Vec<Vec<u32>> =
            [1, 2, 7, 8, 9, 33, 64].map(|len| (0..len).map(|i| i * 3 % 7).collect::<Vec<_>>()).to_vec();
        let added: Vec<_> = texts
            .iter()
            .map(|text| [Pooling::Last, Pooling::Mean].map(|pooling| rig.add(Request::embed(text.clone(), pooling))))
            .collect();
        let found = rig.run();
        for (text, [last, whole]) in texts.iter().zip(added) {
            assert_eq!(found[&last].embeddings, [mean(text, text.len() - 1)]);
            assert_eq!(found[&whole].embeddings, [mean(text, 0)]);
            assert_eq!(found[&whole].end.as_deref(), Some("Length"));
        }
        assert!(answers.iter().all(|answer| found[answer].tokens.len() == 15));
    }
}

#[test]
fn hidden_states_take_no_rows_of_logits() {
    let mut rig = rig();
    let id = rig.add(Request::embed([1; 24], Pooling::Mean));
    assert_eq!(rig.run()[&id].embeddings, [mean(&[1; 24], 0)]);
    // A step has four rows of logits at most, but eight tokens.
    assert_eq!(rig.steps.try_iter().collect::<Vec<_>>(), [[8], [8], [8]]);
}

#[test]
fn damage_ends_its_own_text_only() {
    for pooling in [Pooling::Last, Pooling::Mean] {
        let mut rig = rig();
        let good = rig.add(Request::embed([1, 2, 3], pooling));
        let bad = rig.add(Request::embed([1, BAD, 3], pooling));
        let found = rig.run();
        let end = found[&bad].end.as_ref().unwrap();
        assert!(end.contains("non-finite") && end.contains("layer 3"), "{end}");
        assert!(found[&bad].embeddings.is_empty());
        assert_eq!(found[&good].embeddings.len(), 1);
    }
}

#[test]
fn a_runner_without_hidden_states_is_a_failure_of_the_device() {
    for spoil in [|output: &mut StepOutput| output.hidden.clear(), |output: &mut StepOutput| output.hidden.truncate(3)]
    {
        let mut rig = Rig::new(limits(), |runner| runner.spoil = spoil);
        let id = rig.add(Request::embed([1, 2], Pooling::Mean));
        let end = rig.run().remove(&id).unwrap().end.unwrap();
        assert!(end.contains("2 rows of hidden states are wanted"), "{end}");
    }
}

#[test]
fn names_are_parsed_and_shown() {
    for pooling in [Pooling::Last, Pooling::Mean] {
        assert_eq!(pooling.to_string().parse::<Pooling>().unwrap(), pooling);
    }
    assert!("cls".parse::<Pooling>().unwrap_err().to_string().contains("not \"cls\""));
}
