use proptest::prelude::*;

use super::*;

/// The content, and the calls as JSON.
fn parsed(answer: &str) -> (Option<String>, Vec<String>) {
    let message = parse(answer);
    let calls = message.tool_calls.iter().map(|call| serde_json::to_string(&call.function).unwrap()).collect();
    (message.text(), calls)
}

/// What deltas say in the end: the text, the thought, the calls' names, arguments and whether they are complete, and what is
/// broken.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    thought: String,
    calls: Vec<(String, String, bool)>,
    broken: Vec<(Option<usize>, String)>,
}

/// What the deltas of an answer say that comes in these pieces, and its message.
fn told<'a>(mut parser: AnswerParser, pieces: impl IntoIterator<Item = &'a str>) -> (Told, Message) {
    let mut told = Told::default();
    let mut deltas: Vec<Delta> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    for delta in deltas {
        match delta {
            Delta::Text(text) => told.text.push_str(&text),
            Delta::Reasoning(text) => told.thought.push_str(&text),
            Delta::Broken(BrokenCall { index, text, .. }) => {
                told.text.push_str(&text);
                told.broken.push((index, text));
            }
            Delta::ToolCall(ToolCallDelta { index, name, arguments, is_complete }) => {
                if let Some(name) = name {
                    assert_eq!(index, told.calls.len(), "indices are dense");
                    told.calls.push((name, String::new(), false));
                }
                let call = &mut told.calls[index];
                assert!(!call.2, "more of a complete call");
                call.1.push_str(&arguments);
                call.2 = is_complete;
            }
        }
    }
    (told, parser.into_message())
}

#[test]
fn calls_and_the_text_around_them_come_apart() {
    let f = r#"{"name":"f","arguments":{"a": 1}}"#;
    let g = r#"{"name":"g","arguments":{}}"#;
    let block = r#"<tool_call>{"name": "f", "arguments": {"a": 1}}"#;
    for (answer, text, calls) in [
        (format!("{block}\n</tool_call>"), None, vec![f]),
        (format!("{block}</tool_call><tool_call>{{\"name\":\"g\",\"arguments\":{{}}}}</tool_call>"), None, vec![f, g]),
        ("Let me see.\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>".into(), Some("Let me see."), vec![g]),
        (format!("One. {block} </tool_call> Two.\n{block}</tool_call>\n"), Some("One.\nTwo."), vec![f, f]),
        // Without the end, or cut within it.
        (block.into(), None, vec![f]),
        (format!("{block}\n</tool_"), None, vec![f]),
        (format!("{block}\n{block}"), None, vec![f, f]),
        (format!("{block} and so on"), Some("and so on"), vec![f]),
        // Several in one block, and braces too many.
        (format!("{block}\n{{'name': 'g', 'arguments': {{}}}}</tool_call>"), None, vec![f, g]),
        ("<tool_call>\n{{\"name\": \"g\", \"arguments\": {}}}\n</tool_call>Yes".into(), Some("Yes"), vec![g]),
        ("<tool_call>{\"parameters\": {\"a\": 1}, \"name\": \"f\"}</tool_call>".into(), None, vec![f]),
        ("<tool_call>{\"id\": \"1\", \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 1}}}</tool_call>".into(), None, vec![f]),
        // A thought comes before the calls.
        (format!("<think>\nhm\n</think>\n\n{block}"), Some("<think>\nhm\n</think>"), vec![f]),
    ] {
        let calls: Vec<String> = calls.into_iter().map(str::to_owned).collect();
        assert_eq!(parsed(&answer), (text.map(str::to_owned), calls), "{answer}");
    }
}

#[test]
fn arguments_keep_their_form_and_digits() {
    for arguments in [
        r#"{"n": 123456789012345678901234567890, "x":1.50 ,"s": "\u00e9 </tool_call> <tool_call>"}"#,
        r#""{\"a\": 1}""#,
        "null",
        "[1, 2]",
    ] {
        let answer = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
        let call = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
        assert_eq!(parsed(&answer), (None, vec![call]));
    }
    // A function without parameters.
    assert_eq!(parse(r#"<tool_call>{"name": "f"}</tool_call>"#).tool_calls[0].function.arguments.as_str(), "");
}

#[test]
fn what_is_no_whole_call_stays_text() {
    for answer in [
        "",
        "Hello.",
        "  Hello. \n",
        "<tool_call>",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {}\n",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\n</tool_call>",
        "<tool_call>\n{\"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": 1}\n</tool_call>",
        "<tool_call>\n{\"name\": \"\\ud800\"}\n</tool_call>",
        "<tool_call>f(1)</tool_call>",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>",
        "<think>\n<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>\n</think>\n\nNo call.",
        "</tool_call> <tool_call",
        "```json\n{\"name\": \"f\", \"arguments\": {}}\n```",
        "{\"name\": \"f\", \"arguments\": {}}",
    ] {
        assert_eq!(parsed(answer), (Some(answer.to_owned()), vec![]), "{answer}");
    }
    // And beside one that is whole, also one that begins within it.
    for damaged in ["<tool_call>\n{\"name\": f}\n</tool_call>", "<tool_call>{\"name\": \"f\", \"arguments\": {"] {
        let answer = format!("{damaged}\n<tool_call>\n{{\"name\": \"f\"}}\n</tool_call>");
        assert_eq!(parsed(&answer), (Some(damaged.to_owned()), vec![r#"{"name":"f","arguments":""}"#.to_owned()]));
    }
}

#[test]
fn broken_calls_are_told_with_their_text_and_their_reason() {
    let mut parser = AnswerParser::new();
    let deltas = parser.push("So: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": tru}}\n</tool_call>");
    let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": tru";
    let reason = "a value of its JSON is neither a number nor true, false or null";
    let started = ToolCallDelta { name: Some("f".into()), arguments: "{\"a\": ".into(), ..ToolCallDelta::default() };
    let broken = BrokenCall { index: Some(0), text: text.into(), reason };
    assert_eq!(
        deltas,
        [
            Delta::Text("So:".into()),
            Delta::ToolCall(started),
            Delta::Text(" ".into()),
            Delta::Broken(broken),
            Delta::Text("}}\n</tool_call>".into())
        ]
    );
}

#[test]
fn other_forms_are_calls_where_they_are_asked_for() {
    let call = r#"{"name": "f", "arguments": {"a": 1}}"#;
    let other = r#"{"name": "Ada", "age": 36}"#;
    let all = || AnswerParser::new().forms(CallForms::ALL);
    let f = vec![("f".to_owned(), "{\"a\": 1}".to_owned(), true)];
    for (answer, text) in [
        (call.to_owned(), ""),
        (format!("Sure:\n```json\n{call}\n```\nDone."), "Sure:\nDone."),
        (format!("<tools>\n{call}\n</tools>"), ""),
        (format!("<tool_call>{call}</tool_call>"), ""),
    ] {
        let (told, message) = told(all(), [answer.as_str()]);
        assert_eq!((told.text.as_str(), &told.calls), (text, &f), "{answer}");
        assert_eq!(message.tool_calls.len(), 1);
    }
    for answer in
        [other.to_owned(), format!("```json\n{other}\n```\n"), format!("<tools>{other}</tools>"), format!("So: {call}")]
    {
        let (told, message) = told(all(), [answer.as_str()]);
        assert_eq!(told, Told { text: answer.clone(), ..Told::default() });
        assert_eq!(message.text(), Some(answer));
    }
}

#[test]
fn thoughts_are_told_apart() {
    let call = "<tool_call>{\"name\": \"f\"}</tool_call>";
    let answer = format!("<think>\nIs it {call}?\n</think>\n\nYes.\n{call}");
    let (found, message) = told(AnswerParser::new(), [answer.as_str()]);
    assert_eq!((found.thought.as_str(), found.text.as_str()), (format!("Is it {call}?").as_str(), "Yes."));
    assert_eq!(found.calls.len(), 1);
    assert_eq!(message.text().unwrap(), format!("<think>\nIs it {call}?\n</think>\n\nYes."));
    // Where the template has begun the thought, and where calls within it count.
    let (found, _) = told(AnswerParser::new().in_thought(true), ["Hm.\n</think>\nYes. </think>"]);
    assert_eq!((found.thought.as_str(), found.text.as_str()), ("Hm.", "Yes. </think>"));
    let (found, _) = told(AnswerParser::new().calls_in_thought(true), [answer.as_str()]);
    assert_eq!((found.thought.as_str(), found.calls.len()), ("Is it\n?", 2));
    // No thought begins in the middle.
    let (found, _) = told(AnswerParser::new(), ["Write <think> first."]);
    assert_eq!(found.text, "Write <think> first.");
}

#[test]
fn a_long_answer_of_beginnings_takes_little_time() {
    for piece in [
        "<tool_call>",
        "<tool_call>{",
        "<tool_call>{\"",
        "<tool_call>{'",
        "<tool_call>{\"a\":\"",
        "<tool_call>{\"name\":[",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":",
        "</tool_call>",
        "```json{",
        "<tools>{\"a\":'",
    ] {
        let answer = piece.repeat(200_000);
        let mut parser = AnswerParser::new().forms(CallForms::ALL);
        parser.push(&answer);
        assert_eq!(parser.into_message().text().map(|text| text.len()), Some(answer.len()));
    }
}

/// What models write, and what comes near it.
fn answers() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<tool_call>"),
        Just("</tool_call>"),
        Just("\n"),
        Just(" "),
        Just("{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}"),
        Just("{\"arguments\": {\"b\": [1, 2.50]}, \"name\": \"g\"}"),
        Just("{{'name': 'h', 'arguments': {'c': True,}}}"),
        Just("{\"name\": \"f\", \"arguments\": \"{}\"}"),
        Just("{\"name\": \"f\", \"arguments\": {\"a\": "),
        Just("{"),
        Just("}"),
        Just("\""),
        Just("<think>"),
        Just("</think>"),
        Just("```json"),
        Just("```"),
        Just("<tools>"),
        Just("</tools>"),
        Just("<tool"),
        Just("Grüße"),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn however_an_answer_is_cut_it_says_the_same(
        answer in answers(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        all: bool,
        in_thought: bool,
        calls_in_thought: bool,
    ) {
        let parser = || {
            let forms = if all { CallForms::ALL } else { CallForms::BLOCKS };
            AnswerParser::new().forms(forms).in_thought(in_thought).calls_in_thought(calls_in_thought)
        };
        let expected = told(parser(), [answer.as_str()]);
        let chars: Vec<&str> = answer.split("").filter(|c| !c.is_empty()).collect();
        prop_assert_eq!(&told(parser(), chars), &expected);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len() + 1)).collect();
        cuts.retain(|cut| answer.is_char_boundary(*cut));
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
        prop_assert_eq!(&told(parser(), pieces), &expected);
        // Nothing is lost.
        let (said, message) = expected;
        if message.tool_calls.is_empty() {
            prop_assert_eq!(message.text().unwrap_or_default(), answer);
        }
        let complete = said.calls.iter().filter(|call| call.2);
        let calls: Vec<_> = message.tool_calls.iter().map(|call| &call.function).collect();
        prop_assert!(complete.map(|call| (&call.0, call.1.as_str())).eq(calls.iter().map(|f| (&f.name, f.arguments.as_str()))));
    }
}
