//! Conversations as an application's objects: changed, answered again, forked, saved and resumed.
#![cfg(feature = "cpu")]

mod common;

use common::{Folder, demo, demo_engine, options};
use qwen::{Chat, ChatState, Engine, ErrorKind, GenerateOptions, Message, Reply, Tool};
use serde_json::{Value, json};

/// Sampled at a high temperature, the ids of an answer are rarely the encoding of its text.
fn wild(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(3.0).seed(seed).max_new_tokens(24).ignore_eos(true)
}

fn finish(reply: &mut Reply) -> Vec<u32> {
    reply.try_for_each(|piece| piece.map(drop)).unwrap();
    [reply.prompt_ids(), reply.ids()].concat()
}

/// A conversation of some turns, and what the model had read and written after each of them.
fn conversation(engine: &Engine) -> (Chat, Vec<Vec<u32>>) {
    let mut chat = engine.chat().system("You are terse.").options(wild(3));
    let questions = ["Hello!", "What is <|im_end|> 3 + 4?", "And now?"];
    let known = questions.map(|question| finish(&mut chat.send(question).unwrap()));
    (chat, known.into())
}

/// The ids of the prompt for `question`.
fn prompt(chat: &mut Chat, question: &str) -> Vec<u32> {
    let reply = chat.send(question).unwrap();
    reply.prompt_ids().to_vec()
}

fn texts(chat: &Chat) -> Vec<String> {
    chat.messages().iter().map(|message| message.text().unwrap()).collect()
}

#[test]
fn what_was_not_changed_keeps_its_ids() {
    let engine = demo_engine();
    let (chat, known) = conversation(&engine);
    let encoded = |chat: &Chat| {
        let mut again = engine.chat();
        again.set_messages(chat.messages()).unwrap();
        prompt(&mut again, "Hi")
    };
    // Messages: system, then a question and an answer three times.
    for (len, before) in
        [(7, Some(&known[2])), (6, Some(&known[1])), (5, Some(&known[1])), (3, Some(&known[0])), (1, None)]
    {
        let mut cut = chat.fork();
        cut.truncate(len).unwrap();
        assert_eq!(texts(&cut), texts(&chat)[..len]);
        let found = prompt(&mut cut, "Hi");
        match before {
            Some(before) => assert!(found.starts_with(before), "{len} messages"),
            None => assert_eq!(found, encoded(&cut)),
        }
        // Encoding the texts gives other ids: those of the model were kept.
        assert_eq!(before.is_some(), found != encoded(&cut), "{len} messages");
        // The same by replacing the messages.
        let mut replaced = chat.fork();
        replaced.set_messages(chat.messages()[..len].to_vec()).unwrap();
        assert_eq!(prompt(&mut replaced, "Hi"), found);
        let mut popped = chat.fork();
        while popped.messages().len() > len {
            popped.pop().unwrap().unwrap();
        }
        assert_eq!(prompt(&mut popped, "Hi"), found);
    }
    // A message that changes takes the ids from there on with it, and leaves those before.
    let mut edited = chat.fork();
    let old = edited.edit(5, Message::user("And then?")).unwrap();
    assert_eq!((old, edited.messages().len()), (Message::user("And now?"), 7));
    assert!(prompt(&mut edited, "Hi").starts_with(&known[1]));
    edited.edit(0, Message::system("You are kind.")).unwrap();
    assert_eq!(prompt(&mut edited, "Hi"), encoded(&edited));
    // What there is not is refused, and nothing else changes.
    let error = edited.edit(7, Message::user("?")).unwrap_err();
    assert_eq!(error.to_string(), "`index`: 7 of 7 messages");
    edited.truncate(100).unwrap();
    assert_eq!(edited.messages().len(), 7);
}

#[test]
fn forks_go_their_own_ways_from_the_same_ids() {
    let engine = demo_engine();
    let (mut chat, known) = conversation(&engine);
    let before = chat.messages();
    let mut fork = chat.fork();
    let (mut one, mut other) = (chat.send("Hello?").unwrap(), fork.send("Hello?").unwrap());
    // Both begin with all that was read and written, and side by side they say the same.
    let (one_ids, other_ids) = (finish(&mut one), finish(&mut other));
    assert!(one_ids.starts_with(&known[2]));
    assert_eq!(one_ids, other_ids);
    fork.clear();
    assert_eq!(chat.messages()[..7], before);
    assert_eq!((chat.messages().len(), fork.messages().len()), (9, 1));
    // A fork while an answer arrives does not wait for it, and does not get it.
    let arriving = chat.send("And?").unwrap();
    let mut fork = chat.fork();
    assert!(!fork.reply().unwrap().text().unwrap().is_empty());
    drop(arriving);
    assert_eq!((chat.messages().len(), fork.messages().len()), (9, 11));
}

#[test]
fn an_answer_can_be_asked_for_again() {
    let engine = demo_engine();
    let mut chat = engine.chat().options(GenerateOptions::new().temperature(3.0).max_new_tokens(24).ignore_eos(true));
    let mut first = chat.send("Hello!").unwrap();
    finish(&mut first);
    let mut second = chat.regenerate().unwrap();
    let ids = finish(&mut second);
    // The same prompt, another answer, in the place of the first.
    assert_eq!(second.prompt_ids(), first.prompt_ids());
    assert_ne!(second.ids(), first.ids());
    assert_eq!(chat.messages().len(), 2);
    assert!(prompt(&mut chat, "Hi").starts_with(&ids));
    let mut third = chat.regenerate().unwrap();
    finish(&mut third);
    assert!(third.ids() != first.ids() && third.ids() != second.ids());
    // With a seed of the program's own the answer is its own.
    let seeded = wild(9);
    let mut fourth = chat.regenerate_with(&seeded).unwrap();
    let ids = finish(&mut fourth);
    assert_eq!(ids, finish(&mut chat.regenerate_with(&seeded).unwrap()));
    // One that nobody waited for leaves the one before, with its ids.
    let messages = chat.messages();
    drop(chat.regenerate().unwrap());
    assert_eq!(chat.messages(), messages);
    assert!(prompt(&mut chat, "Hi").starts_with(&ids));
    let refused = chat.regenerate_with(&GenerateOptions::new().temperature(-1.0)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert_eq!(chat.messages(), messages);
    // There has to be an answer.
    chat.push(Message::user("Hi")).unwrap();
    let error = chat.regenerate().unwrap_err().to_string();
    assert_eq!(error, "`regenerate`: the last message is no answer");
    assert_eq!(chat.messages().len(), 3);
}

#[test]
fn nothing_changes_below_an_answer_that_arrives() {
    let engine = demo_engine();
    let mut chat = engine.chat().options(wild(1));
    let reply = chat.send("Hello!").unwrap();
    assert!(chat.truncate(0).is_err() && chat.edit(0, Message::user("Bye!")).is_err() && chat.regenerate().is_err());
    let text = reply.text().unwrap();
    assert_eq!(texts(&chat), ["Hello!", text.as_str()]);
}

fn get_time() -> [Tool; 1] {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    [Tool::function("get_time", "Current local time of a city", parameters)]
}

#[test]
fn a_saved_conversation_goes_on_with_the_very_same_ids_elsewhere() {
    let engine = demo_engine();
    let (chat, known) = conversation(&engine);
    // One with a call, which the model wrote in its own form.
    let mut called = engine.chat().tools(get_time()).options(GenerateOptions::new().greedy().stop(["###"]));
    finish(&mut called.send("Which time is it now in Cairo?").unwrap());
    called.push(Message::tool("12:00")).unwrap();
    let read = finish(&mut called.reply().unwrap());
    assert!(!called.messages()[1].tool_calls.is_empty());
    let other = demo_engine();
    for (mut chat, known) in [(chat, &known[2]), (called, &read)] {
        let saved = serde_json::to_string(&chat.state()).unwrap();
        let state: ChatState = serde_json::from_str(&saved).unwrap();
        assert_eq!(state, chat.state());
        assert_eq!(state.messages(), chat.messages());
        let mut resumed = other.resume(state).unwrap();
        assert_eq!(resumed.state(), chat.state());
        let (mut here, mut there) = (chat.send("Hello?").unwrap(), resumed.send("Hello?").unwrap());
        let ids = finish(&mut here);
        assert!(ids.starts_with(known));
        // With the same options the answer is the same, too.
        assert_eq!(finish(&mut there), ids);
        // What was saved can be changed as what was not.
        let answer = resumed.pop().unwrap().unwrap();
        assert_eq!(answer, chat.messages().pop().unwrap());
        assert!(finish(&mut resumed.reply().unwrap()).starts_with(known));
    }
    // An empty conversation, and one without ids, as a program may have written it.
    let empty = serde_json::to_value(engine.chat().state()).unwrap();
    assert_eq!(empty, json!({"version": 1, "messages": [], "options": empty["options"], "trust_contents": false}));
    let hello = [Message::user("Hello!")];
    let short = json!({"version": 1, "messages": hello, "options": {"temperature": 0.0}}).to_string();
    let mut resumed = engine.resume(serde_json::from_str(&short).unwrap()).unwrap();
    assert!(!resumed.reply().unwrap().text().unwrap().is_empty());
}

/// The demo checkpoint with a change of one of its files.
fn changed(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> (Folder, Engine) {
    let folder = Folder::new(name);
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.0.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let before = json.clone();
    change(&mut json);
    assert_ne!(json, before);
    std::fs::write(&path, json.to_string()).unwrap();
    let engine = options().load(&folder.0).unwrap();
    (folder, engine)
}

#[test]
fn another_tokenizer_or_template_reads_the_texts_again() {
    let engine = demo_engine();
    let (chat, known) = conversation(&engine);
    let encoded = |engine: &Engine| {
        let mut again = engine.chat();
        again.set_messages(chat.messages()).unwrap();
        prompt(&mut again, "Hi")
    };
    let (_a, vocabulary) = changed("other-vocabulary", "tokenizer.json", |json| {
        // Two tokens change places.
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        vocab.extend([("a".into(), b), ("b".into(), a)]);
    });
    let (_b, template) = changed("other-template", "tokenizer_config.json", |json| {
        let template = json["chat_template"].as_str().unwrap().to_owned();
        json["chat_template"] = format!("{{{{- 'Chat:\\n' }}}}{template}").into();
    });
    for other in [vocabulary, template] {
        let mut resumed = other.resume(chat.state()).unwrap();
        assert_eq!(resumed.messages(), chat.messages());
        let found = prompt(&mut resumed, "Hi");
        assert!(!found.starts_with(&known[2]));
        assert_eq!(found, encoded(&other));
        assert!(!resumed.send("Hi").unwrap().text().unwrap().is_empty());
    }
}

#[test]
fn damaged_and_future_states_are_refused_by_name() {
    let engine = demo_engine();
    let (chat, _) = conversation(&engine);
    let good = serde_json::to_value(chat.state()).unwrap();
    let parse = |json: &Value| serde_json::from_str::<ChatState>(&json.to_string());
    assert!(engine.resume(parse(&good).unwrap()).is_ok());
    let future = json!({"version": 2, "tree": {"messages": []}});
    let error = parse(&future).unwrap_err().to_string();
    assert!(error.contains("a conversation of version 2: this version of qwen-rs reads version 1"), "{error}");
    for (json, word) in [
        (json!({"messages": []}), "`version`"),
        (json!({"version": 1}), "`messages`"),
        (json!({"version": 1, "messages": [], "colour": 3}), "`colour`"),
        (json!({"version": -1, "messages": []}), "-1"),
        (json!([1, 2]), "sequence"),
    ] {
        let error = parse(&json).unwrap_err().to_string();
        assert!(error.contains(word), "{json}: {error}");
    }
    let ids = good["encoded"]["ids"].as_array().unwrap().len();
    let bytes = good["encoded"]["text"].as_str().unwrap().len();
    let changes: [(&str, Value, &str); 9] = [
        ("/encoded/ids/3", json!(u32::MAX), "id 4294967295 at position 3"),
        ("/encoded/ids/3", json!(engine.config().vocab_size), "at position 3 is beyond the vocabulary"),
        ("/encoded/ids", json!([]), "`borders`"),
        ("/encoded/text", json!("é"), "`borders`"),
        ("/encoded/borders", json!([]), "`borders`"),
        ("/encoded/borders/0/text", json!(usize::MAX), "`borders`"),
        ("/encoded/borders/0/messages", json!(8), "`borders`"),
        ("/encoded/borders/5", json!({"messages": 7, "is_answer": true, "text": bytes, "ids": ids + 1}), "`borders`"),
        ("/messages", json!([]), "`borders`"),
    ];
    for (path, value, word) in changes {
        let mut json = good.clone();
        *json.pointer_mut(path).unwrap_or_else(|| panic!("{path} of {good}")) = value;
        let error = engine.resume(parse(&json).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}");
        let text = error.to_string();
        assert!(text.starts_with("`state`: ") && text.contains(word), "{path}: {text}");
    }
    let mut json = good.clone();
    json["written"] = json!({"7": "Hi"});
    let error = engine.resume(parse(&json).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "`state`: `written` has message 7 of 7");
}

#[test]
fn no_change_of_a_byte_makes_a_state_panic() {
    let engine = demo_engine();
    let mut chat = engine.chat().options(wild(2).max_new_tokens(4));
    finish(&mut chat.send("Hé").unwrap());
    let saved = serde_json::to_string(&chat.state()).unwrap().into_bytes();
    let mut read = 0;
    for at in 0..saved.len() {
        for byte in *b"0}\"9" {
            let mut json = saved.clone();
            json[at] = byte;
            let Ok(state) = serde_json::from_slice::<ChatState>(&json) else { continue };
            if let Ok(mut resumed) = engine.resume(state) {
                // Whatever it says now, it is a conversation.
                read += usize::from(resumed.pop().is_ok() && resumed.send("Hi").is_ok());
            }
        }
    }
    assert!(read > 10, "{read}");
}
