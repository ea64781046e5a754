//! Answers that have to be something: JSON of a schema, a regular expression, a grammar.
#![cfg(feature = "structure")]

mod common;

use common::{demo, options};
use qwen::schemars::{self, JsonSchema};
use qwen::{
    Engine, Error, ErrorKind, FinishReason, GenerateOptions, Grammar, Speculation, Tool, ToolChoice, Toolbox,
    Whitespace,
};
use serde::Deserialize;
use serde_json::{Value, json};

fn engine() -> Engine {
    options().load(demo()).unwrap()
}

fn answer(engine: &Engine, grammar: Grammar, options: GenerateOptions) -> (String, Option<FinishReason>) {
    let mut stream = engine.generate("What is 3 + 4?", &options.grammar(grammar)).unwrap();
    let text = stream.by_ref().collect::<qwen::Result<String>>().unwrap();
    (text, stream.finish_reason())
}

fn wild(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(2.0).top_k(0).top_p(1.0).repetition_penalty(1.0).seed(seed).max_new_tokens(200)
}

#[test]
fn an_answer_is_what_it_has_to_be() {
    let engine = engine();
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false
    });
    for seed in 0..20 {
        let (text, reason) = answer(&engine, Grammar::json_schema(person.clone()), wild(seed));
        assert_eq!(reason, Some(FinishReason::Stop), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 10, "{text}");
        assert!(value["age"].as_u64().unwrap() <= 130, "{text}");
        assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag == "a" || tag == "b"), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        let (text, _) = answer(&engine, Grammar::regex("(yes|no), [0-9]{2}/[a-c]+x"), wild(seed));
        let (yes, rest) = text.split_once(", ").unwrap();
        assert!(yes == "yes" || yes == "no");
        assert_eq!(rest.as_bytes()[2], b'/');
        let (text, _) = answer(&engine, Grammar::lark("start: \"(\" start \")\" | \"x\""), wild(seed));
        let depth = text.find('x').unwrap_or(text.len());
        assert!(text[..depth].chars().all(|c| c == '('), "{text}");
    }
}

#[test]
fn guesses_do_not_change_the_answer() {
    let engine = engine();
    let schema = json!({"type": "object", "properties": {"a quite long name": {"type": "string", "maxLength": 20}, "another": {"type": "number"}},
        "required": ["a quite long name", "another"], "additionalProperties": false});
    for seed in 0..10 {
        let [plain, guessed] = [Speculation::Off, Speculation::PromptLookup].map(|speculation| {
            answer(&engine, Grammar::json_schema(schema.clone()), wild(seed).speculation(speculation))
        });
        assert_eq!(plain, guessed);
    }
    assert!(engine.stats().accepted_tokens > 0);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let engine = engine();
    for (grammar, says) in [
        (Grammar::json_schema(json!({"oneOf": [{"minimum": 1}, {"type": "number"}]})), "oneOf"),
        (Grammar::json_schema(json!({"$ref": "https://example.com/schema.json"})), "$ref"),
        (Grammar::json_schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (Grammar::json_schema(json!({"type": "string", "format": "unheard of"})), "format"),
        (Grammar::json_schema(json!(3)), "an object or a boolean"),
        (Grammar::json_schema(json!(false)), "nothing"),
        (Grammar::json_schema(json!({"x-guidance": {"lenient": true}})), "x-guidance"),
        (Grammar::regex("("), ""),
        (Grammar::regex("(?=a)b"), ""),
        (Grammar::lark("start: missing"), "missing"),
        (Grammar::lark(""), ""),
        (Grammar::regex(&"x".repeat(2 << 20)), "bytes"),
    ] {
        let error = engine.generate("Hi", &GenerateOptions::new().grammar(grammar.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Grammar, "{grammar:?}: {error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_grammar_is_data() {
    for (grammar, json) in [
        (Grammar::json_schema(json!({"type": "object"})), json!({"json_schema": {"type": "object"}})),
        (Grammar::regex("a|b"), json!({"regex": "a|b"})),
        (
            Grammar::json_schema(true).whitespace(Whitespace::Pattern(" ".into())).max_length(3).max_items(4),
            json!({"json_schema": true, "whitespace": {"pattern": " "}, "max_length": 3, "max_items": 4}),
        ),
        (
            Grammar::tool_calls(&[tool("f")]).parallel_calls(false),
            json!({"tool_calls": [tool("f")], "parallel_calls": false}),
        ),
    ] {
        assert_eq!(serde_json::to_value(&grammar).unwrap(), json);
        assert_eq!(serde_json::from_value::<Grammar>(json).unwrap(), grammar);
    }
    for wrong in [json!({}), json!({"regex": "a", "lark": "b"}), json!({"regexp": "a"})] {
        assert!(serde_json::from_value::<Grammar>(wrong).is_err());
    }
    let options: GenerateOptions = serde_json::from_value(json!({"grammar": {"lark": "start: \"x\""}})).unwrap();
    assert_eq!(options.grammar, Some(Grammar::lark("start: \"x\"")));
}

#[test]
fn white_space_is_bounded() {
    let engine = engine();
    let array =
        || Grammar::json_schema(json!({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3}));
    for seed in 0..20 {
        let (compact, _) = answer(&engine, array().whitespace(Whitespace::Compact), wild(seed));
        assert!(compact == "[null,null]" || compact == "[null,null,null]", "{compact}");
        let (text, _) = answer(&engine, array(), wild(seed));
        assert!(text.split(|c: char| !c.is_ascii_whitespace()).all(|space| space.len() <= 25), "{text:?}");
        let (text, _) = answer(&engine, array().whitespace(Whitespace::Pattern("-{2}".into())), wild(seed));
        assert!(text.replace("--", "").chars().all(|c| "[]null,".contains(c)), "{text:?}");
    }
}

#[test]
fn bounds_hold_where_the_schema_has_none() {
    let engine = engine();
    let schema = json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
    for seed in 0..20 {
        let (text, reason) =
            answer(&engine, Grammar::json_schema(schema.clone()).max_length(2).max_items(2), wild(seed));
        assert_eq!(reason, Some(FinishReason::Stop));
        let values: Vec<String> = serde_json::from_str(&text).unwrap();
        assert!((1..=2).contains(&values.len()) && values.iter().all(|value| value.chars().count() <= 2), "{text}");
    }
}

#[test]
fn what_runs_out_of_tokens_says_so() {
    let engine = engine();
    let options = GenerateOptions::new().greedy().max_new_tokens(3);
    let (text, reason) = answer(&engine, Grammar::regex("[a-z]{40}"), options);
    assert_eq!(reason, Some(FinishReason::Length));
    assert!(text.len() < 40 && text.chars().all(|c| c.is_ascii_lowercase()));
}

#[test]
fn other_parameters_act_on_what_the_grammar_leaves() {
    let engine = engine();
    let words = || Grammar::regex("alpha|beta|gamma");
    let ids = |text: &str| engine.tokenizer().unwrap().encode(text, false).unwrap();
    // Of what is left, a bias decides.
    for word in ["alpha", "beta", "gamma"] {
        let options = GenerateOptions::new().greedy().logit_bias([(ids(word)[0], 100.0)]);
        let first = &answer(&engine, words(), options).0[..1];
        assert_eq!(first, &word[..1]);
    }
    // A bias for what does not fit changes nothing.
    let end = engine.stop_token_ids()[0];
    let biased = GenerateOptions::new().greedy().logit_bias([(end, 100.0), (ids("Hello")[0], 100.0)]);
    assert_eq!(answer(&engine, words(), biased).0, answer(&engine, words(), GenerateOptions::new().greedy()).0);
    // A stop string ends the answer as ever.
    let stopped = answer(&engine, Grammar::regex("xyzxyz"), GenerateOptions::new().greedy().stop(["zx"]));
    assert_eq!(stopped, ("xy".into(), Some(FinishReason::StopString)));
    // Nothing is left: an error, and the engine goes on.
    let too_long = GenerateOptions::new().greedy().min_new_tokens(50).grammar(Grammar::regex("x"));
    let error = engine.generate("Hi", &too_long).unwrap().text().unwrap_err();
    assert!(error.to_string().contains("no token is left: the grammar"), "{error}");
    assert_eq!(answer(&engine, Grammar::regex("x"), GenerateOptions::new()).0, "x");
    // Without a stop token it could not end.
    let endless = GenerateOptions::new().ignore_eos(true).grammar(Grammar::regex("x"));
    assert_eq!(engine.generate("Hi", &endless).unwrap_err().kind(), ErrorKind::InvalidArgument);
    // What the model thinks is told as it is.
    let options = GenerateOptions::new().greedy().logprobs(1).grammar(Grammar::regex("[0-9]zzzz"));
    let mut stream = engine.generate("What is 3 + 4?", &options).unwrap();
    stream.by_ref().collect::<qwen::Result<String>>().unwrap();
    assert!(stream.logprobs().iter().any(|logprobs| logprobs.rank > 1));
}

#[test]
fn answers_side_by_side_are_those_alone() {
    let engine = options().batch(4).load(demo()).unwrap();
    let manual = options().manual().load(demo()).unwrap();
    let grammars = [
        Grammar::json_schema(json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}},
            "required": ["a"], "additionalProperties": false})),
        Grammar::regex("[a-z]{1,9}( [a-z]{1,9}){3}"),
        Grammar::json_object().max_length(5).max_items(2),
    ];
    let alone: Vec<_> = (0..6).map(|at| answer(&manual, grammars[at % 3].clone(), wild(at as u64))).collect();
    let streams: Vec<_> = (0..6)
        .map(|at| engine.generate("What is 3 + 4?", &wild(at as u64).grammar(grammars[at % 3].clone())).unwrap())
        .collect();
    for (stream, (text, _)) in streams.into_iter().zip(alone) {
        assert_eq!(stream.text().unwrap(), text);
    }
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
enum Mood {
    Happy,
    Sad,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Shape {
    Circle { radius: f64 },
    Square { side: u8 },
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
struct Report {
    title: Option<String>,
    counts: [u8; 2],
    mood: Mood,
    shape: Shape,
    size: u32,
    nested: Vec<Report>,
}

#[test]
fn an_answer_is_a_value_of_a_type() {
    let engine = engine();
    let mut values = 0;
    for seed in 0..40 {
        match engine.generate_as::<Report>("Hi", &wild(seed).max_new_tokens(150)) {
            Ok(_) => values += 1,
            Err(Error::Unfinished { text, reason, kind }) => {
                assert_eq!(kind, ErrorKind::Unfinished);
                // Only for its length, and its text begins as it must.
                assert!(reason.contains("length") && text.starts_with('{'), "{reason}: {text}");
                assert!(!reason.contains(&text));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(values > 0);
    let mut moods = Vec::new();
    for seed in 0..20 {
        moods.push(engine.generate_as::<Mood>("Hi", &wild(seed)).unwrap());
    }
    assert!(moods.contains(&Mood::Happy) && moods.contains(&Mood::Sad));
}

fn tool(name: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Cairo"]}}, "required": ["city"],
        "additionalProperties": false});
    Tool::function(name, "Something about a city", parameters)
}

#[test]
fn a_required_call_is_made_whatever_is_asked() {
    let engine = options().batch(2).load(demo()).unwrap();
    let tools = [tool("get_time"), tool("get_weather")];
    for seed in 0..10 {
        let chat = || engine.chat().tools(tools.clone()).options(wild(seed).max_new_tokens(120));
        let message = chat().tool_choice(ToolChoice::Required).send("Hello!").unwrap().message().unwrap();
        assert!(!message.tool_calls.is_empty(), "{message:?}");
        assert_eq!(message.text().unwrap_or_default(), "");
        for call in &message.tool_calls {
            assert!(["get_time", "get_weather"].contains(&call.function.name.as_str()));
            let city = &call.function.arguments.to_json().unwrap()["city"];
            assert!(city == "Oslo" || city == "Cairo");
        }
        let mut one = chat().tool_choice(ToolChoice::function("get_weather")).parallel_calls(false);
        let message = one.send("Hello!").unwrap().message().unwrap();
        assert_eq!(message.tool_calls.len(), 1);
        assert_eq!(message.tool_calls[0].function.name, "get_weather");
        // What was called is told in the model's own ids.
        one.push(qwen::Message::tool("18 degrees")).unwrap();
        assert!(one.reply().unwrap().message().is_ok());
    }
}

#[test]
fn text_may_be_beside_calls_that_keep_to_their_schemas() {
    let engine = options().load(demo()).unwrap();
    let tools = [tool("get_time"), tool("get_weather")];
    let grammar = Grammar::tool_calls(&tools).parallel_calls(false).or_text(true);
    let chat = |options: GenerateOptions| {
        let mut chat = engine.chat().tools(tools.clone()).options(options);
        chat.send("Hello!").unwrap().message().unwrap()
    };
    // Where nothing begins a call, nothing changes.
    let greedy = GenerateOptions::new().greedy().max_new_tokens(40);
    let plain = chat(greedy.clone());
    assert!(plain.tool_calls.is_empty() && !plain.text().unwrap_or_default().is_empty());
    assert_eq!(chat(greedy.grammar(grammar.clone())), plain);
    let &[begins] = &engine.tokenizer().unwrap().encode("<tool_call>", true).unwrap()[..] else { panic!() };
    for seed in 0..10 {
        let options = wild(seed).max_new_tokens(150).logit_bias([(begins, 100.0)]).grammar(grammar.clone());
        let message = chat(options);
        // One call at once, since its beginning is wanted more than anything else; then text that begins none.
        assert_eq!(message.tool_calls.len(), 1, "{message:?}");
        let city = &message.tool_calls[0].function.arguments.to_json().unwrap()["city"];
        assert!(city == "Oslo" || city == "Cairo");
        assert!(!message.text().unwrap_or_default().contains("<tool_call>"), "{message:?}");
    }
}

#[test]
fn a_choice_is_checked() {
    let engine = engine();
    let refused = |mut chat: qwen::Chat| chat.send("Hello!").unwrap_err().to_string();
    let chat = || engine.chat().tools([tool("get_time")]);
    assert!(refused(chat().tool_choice(ToolChoice::function("other"))).contains("there is no tool `other`"));
    assert!(refused(engine.chat().tool_choice(ToolChoice::Required)).contains("there are no tools"));
    let both = chat().tool_choice(ToolChoice::Required).options(GenerateOptions::new().grammar(Grammar::regex("x")));
    assert!(refused(both).contains("leave one of them out"));
    // Nothing of it joined the conversation, and it can be saved.
    let mut chat = chat().tool_choice(ToolChoice::None).parallel_calls(false);
    let saved = serde_json::to_string(&chat.state()).unwrap();
    assert_eq!(
        serde_json::to_string(&engine.resume(serde_json::from_str(&saved).unwrap()).unwrap().state()).unwrap(),
        saved
    );
    // Without a choice the model is not told of the tools.
    let prompt = chat.send("Hello!").unwrap().prompt_ids().to_vec();
    assert_eq!(prompt, engine.chat().send("Hello!").unwrap().prompt_ids());
}

#[test]
fn a_loop_requires_a_call_once() {
    let engine = engine();
    let parameters = tool("x").parameters().unwrap().clone();
    let tools = Toolbox::new().json_function("get_time", "The time", parameters, |_| Ok(json!({"time": "12:00"})));
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(60));
    chat = chat.tool_choice(ToolChoice::Required).parallel_calls(false);
    let answer = chat.send_with_tools("Which time is it now in Cairo?", &tools).unwrap();
    assert!(answer.tool_calls.is_empty());
    assert_eq!(chat.messages().len(), 4);
}
