//! Conversations: how the model's own answers enter the next prompt, and what remains if an answer is abandoned.
#![cfg(feature = "cpu")]

mod common;

use common::demo_engine;
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
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = [Tool::function("get_time", "Current local time of a city", parameters)];
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
