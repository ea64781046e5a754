//! Conversations: how the model's own answers enter the next prompt, and what remains if an answer is abandoned.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, demo, demo_engine};
use qwen::{Chat, Engine, GenerateOptions, Message, Tool};
use serde_json::json;

fn chat(engine: &Engine) -> Chat {
    engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(64))
}

fn roles(chat: &Chat) -> Vec<String> {
    chat.messages().iter().map(|message| message.role.to_string()).collect()
}

#[test]
fn the_next_prompt_begins_with_the_ids_of_the_last_and_of_its_answer() {
    let engine = demo_engine();
    let tools = get_time();
    let call = engine.tokenizer().unwrap().token_to_id("<tool_call>").unwrap();
    // Sampled at a high temperature, the ids of a text rarely equal its encoding.
    let wild = GenerateOptions::new().temperature(3.0).seed(3).max_new_tokens(24).ignore_eos(true);
    for options in [GenerateOptions::new().greedy().max_new_tokens(64), wild] {
        let mut chat = engine.chat().tools(tools.clone()).options(options);
        let mut known: Vec<u32> = Vec::new();
        for question in ["Which time is it now in Cairo?", "And <|im_end|> now?", "Hello!"] {
            let mut reply = chat.send(question).unwrap();
            assert!(reply.prompt_ids().starts_with(&known), "{question}");
            reply.by_ref().try_for_each(|piece| piece.map(drop)).unwrap();
            known = [reply.prompt_ids(), reply.ids()].concat();
        }
        assert!(known.contains(&call), "a call, as a token");
    }
}

/// The tool that the demo model calls.
fn get_time() -> [Tool; 1] {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    [Tool::function("get_time", "Current local time of a city", parameters)]
}

/// The demo checkpoint with a change of its template.
fn with_template(name: &str, change: impl FnOnce(String) -> String) -> (Folder, Engine) {
    let folder = Folder::new(name);
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.0.join("tokenizer_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let template = config["chat_template"].as_str().unwrap().to_owned();
    let changed = change(template.clone());
    assert_ne!(changed, template);
    config["chat_template"] = changed.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let engine = common::options().load(&folder.0).unwrap();
    (folder, engine)
}

#[test]
fn what_the_model_calls_comes_apart_from_what_it_says() {
    let question = "Which time is it now in Cairo?";
    // One template writes a call as the model does, one with other white space, one not at all.
    let spaced = |template: String| template.replace(r#"", "arguments": "#, r#"",  "arguments":  "#);
    let without = |template: String| template.replace("<tool_call>\\n{\"name\": \"'", "{'");
    let (_a, other) = with_template("spaced-calls", spaced);
    let (_b, none) = with_template("no-calls", without);
    for (engine, parses) in [(demo_engine(), true), (other, true), (none, false)] {
        let mut chat = chat(&engine).tools(get_time());
        let mut reply = chat.send(question).unwrap();
        assert_eq!(reply.tool_calls(), []);
        let text: String = reply.by_ref().map(Result::unwrap).collect();
        assert!(text.starts_with("<tool_call>") && text.contains(r#""get_time""#), "{text}");
        let known = [reply.prompt_ids(), reply.ids()].concat();
        let calls = reply.tool_calls().to_vec();
        let message = reply.message().unwrap();
        assert_eq!(chat.messages()[1], message);
        if !parses {
            assert_eq!((calls, message.text()), (vec![], Some(text)));
            continue;
        }
        assert_eq!((message.content, &message.tool_calls), (None, &calls));
        assert_eq!(calls[0].function.arguments.to_json().unwrap(), json!({"city": "Cairo"}));
        // The next prompt begins with what the model read and wrote, in whatever form the template writes calls.
        chat.push(Message::tool("12:00")).unwrap();
        let reply = chat.reply().unwrap();
        assert!(reply.prompt_ids().starts_with(&known));
        assert!(!reply.text().unwrap().is_empty());
        assert_eq!(roles(&chat), ["user", "assistant", "tool", "assistant"]);
        // A conversation that was saved has the calls.
        let saved = serde_json::to_string(&chat.messages()).unwrap();
        let mut loaded = self::chat(&engine).tools(get_time());
        loaded.set_messages(serde_json::from_str(&saved).unwrap()).unwrap();
        assert_eq!(loaded.messages(), chat.messages());
        assert!(!loaded.send("Hello!").unwrap().text().unwrap().is_empty());
    }
    // Without tools a call is a text like any other.
    let engine = demo_engine();
    let mut chat = chat(&engine);
    let message = chat.send(question).unwrap().message().unwrap();
    assert!(message.tool_calls.is_empty() && message.content.is_some());
}

#[test]
fn templates_that_change_what_is_said_are_named() {
    let (_folder, engine) = with_template("escapes", |template| {
        template.replace("'\\n' + message.content + '<|im_end|>", "'\\n' + (message.content | e) + '<|im_end|>")
    });
    let warnings: Vec<String> = engine.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("chat template `default` changes what users write: `\"q"), "{warnings:?}");
    assert!(warnings[1].contains("cannot be told from its own"), "{warnings:?}");
    assert_eq!(engine.warnings()[0].path(), _folder.0);
    assert_eq!(demo_engine().warnings(), []);
}

#[test]
fn an_answer_that_nobody_wants_leaves_nothing() {
    let engine = demo_engine();
    let mut chat = chat(&engine);
    drop(chat.send("Hello!").unwrap());
    assert!(chat.messages().is_empty());
    let reply = chat.send("Hello!").unwrap();
    reply.canceller().cancel();
    let text = reply.text().unwrap();
    assert_eq!(chat.messages().len(), if text.is_empty() { 0 } else { 2 });
    // A pushed message stays, so that the program can ask again.
    chat.clear();
    chat.push(Message::user("Hello!")).unwrap();
    drop(chat.reply().unwrap());
    assert_eq!(roles(&chat), ["user"]);
    assert!(!chat.reply().unwrap().text().unwrap().is_empty());
    assert_eq!(roles(&chat), ["user", "assistant"]);
}

#[test]
fn an_answer_as_far_as_it_came_joins() {
    let engine = demo_engine();
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(64).ignore_eos(true));
    let mut reply = chat.send("Hello!").unwrap();
    let first = reply.next().unwrap().unwrap();
    drop(reply);
    assert_eq!(chat.messages()[1].text().unwrap(), first);
    // The conversation continues.
    assert!(!chat.send("Hello!").unwrap().text().unwrap().is_empty());
    assert_eq!(roles(&chat), ["user", "assistant", "user", "assistant"]);
}

#[test]
fn an_answer_does_not_join_what_was_cleared() {
    let engine = demo_engine();
    let mut chat = chat(&engine).system("Be brief.");
    let mut reply = chat.send("Hello!").unwrap();
    assert!(reply.next().is_some());
    assert!(chat.pop().is_err() && chat.set_messages(Vec::new()).is_err());
    chat.clear();
    let next = chat.send("What is 3 + 4?").unwrap();
    drop(reply);
    let text = next.text().unwrap();
    assert_eq!(roles(&chat), ["system", "user", "assistant"]);
    assert_eq!(chat.messages()[2].text().unwrap(), text);
}

#[test]
fn what_was_said_can_be_taken_back_and_replaced() {
    let engine = demo_engine();
    let mut chat = chat(&engine);
    assert_eq!(chat.pop().unwrap(), None);
    let seven = chat.send("What is 3 + 4?").unwrap().text().unwrap();
    assert_eq!(chat.pop().unwrap().unwrap().text().unwrap(), seven);
    assert_eq!(chat.reply().unwrap().text().unwrap(), seven);
    let saved = serde_json::to_string(&chat.messages()).unwrap();
    let mut other = self::chat(&engine);
    other.set_messages(serde_json::from_str(&saved).unwrap()).unwrap();
    let question = "And 2 + 2?";
    assert_eq!(
        other.send(question).unwrap().text().unwrap(),
        chat.send(question).unwrap().text().unwrap(),
        "a saved conversation goes on as the first"
    );
    // Options for one answer do not apply to the next.
    let short = GenerateOptions::new().greedy().max_new_tokens(1);
    let reply = chat.send_with("Hello!", &short).unwrap();
    assert!(!reply.text().unwrap().is_empty());
    assert!(chat.send("Hello!").unwrap().ids().is_empty());
}
