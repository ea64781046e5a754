//! Conversations with their K/V in files: the same bits as if they had never been saved, and everything that does not fit
//! refused by name.
#![cfg(feature = "cpu")]

mod common;

use std::path::Path;

use common::{Folder, demo, demo_engine, options};
use qwen::core::backend::reference::Reference;
use qwen::{
    Chat, ChatState, Encoding, Engine, EngineOptions, Error, ErrorKind, GenerateOptions, ModelError, Precision,
};

/// Sampled, so that a difference in the logits shows, and with the log-probabilities, whose bits are compared.
fn wild(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(2.0).seed(seed).max_new_tokens(24).ignore_eos(true).logprobs(2)
}

/// What an answer is: its prompt, its tokens, the bits of their log-probabilities, and how much was found.
#[derive(Debug, PartialEq)]
struct Turn {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    logprobs: Vec<u64>,
}

fn turn(chat: &mut Chat, question: &str) -> (Turn, usize) {
    let mut reply = chat.send(question).unwrap();
    reply.try_for_each(|piece| piece.map(drop)).unwrap();
    let logprobs = reply.logprobs().iter().flat_map(|token| token.top.iter().map(|top| top.logprob.to_bits()));
    let logprobs = logprobs.collect();
    let found = Turn { prompt: reply.prompt_ids().to_vec(), ids: reply.ids().to_vec(), logprobs };
    (found, reply.stats().cached_tokens)
}

/// A conversation of some hundred tokens.
fn conversation(engine: &Engine) -> Chat {
    let mut chat = engine.chat().system("You are terse. ".repeat(8)).options(wild(3));
    for question in ["Hello!", "What is <|im_end|> 3 + 4?", "And now?"] {
        turn(&mut chat, question);
    }
    chat
}

/// The tokens that a conversation has read and written, but for the last one, which nothing follows.
fn computed(chat: &Chat) -> usize {
    let state = serde_json::to_value(chat.state()).unwrap();
    state["encoded"]["ids"].as_array().unwrap().len() - 1
}

#[test]
fn a_restored_conversation_goes_on_with_the_same_bits_and_computes_only_what_is_new() {
    let folder = Folder::new("restored");
    let path = folder.0.join("one.chat");
    for load in [
        || options().batch(4),
        || options().batch(4).precision(Precision::Exact),
        || options().batch(4).kv_encoding(Encoding::Q8_0),
        || options().batch(4).manual(),
    ] as [fn() -> EngineOptions; 4]
    {
        let engine = load().load(demo()).unwrap();
        let mut chat = conversation(&engine);
        let saved = chat.save(&path).unwrap();
        assert_eq!(saved, computed(&chat));
        assert!(saved > 100);
        let other = load().load(demo()).unwrap();
        let mut restored = other.restore(&path).unwrap();
        assert_eq!(restored.state(), chat.state());
        let mut resumed = load().load(demo()).unwrap().resume(chat.state()).unwrap();
        for (index, question) in ["Why?", "And then?"].into_iter().enumerate() {
            let (never_saved, cached) = turn(&mut chat, question);
            assert!(!never_saved.logprobs.is_empty() && cached >= saved);
            let (there, found) = turn(&mut restored, question);
            assert_eq!((&there, found), (&never_saved, cached));
            // The same without any K/V: it is computed again.
            let (again, found) = turn(&mut resumed, question);
            assert_eq!((&again, found > 0), (&never_saved, index > 0));
        }
        // What goes on is saved again, and forks have all of it.
        assert!(restored.fork().save(&path).unwrap() > saved);
        let mut third = load().load(demo()).unwrap().restore(&path).unwrap();
        assert_eq!(turn(&mut third, "Bye!").0, turn(&mut chat, "Bye!").0);
    }
}

#[test]
fn what_is_there_is_found_and_not_written_again() {
    let folder = Folder::new("found");
    let path = folder.0.join("one.chat");
    let engine = demo_engine();
    let mut chat = conversation(&engine);
    let saved = chat.save(&path).unwrap();
    let before = engine.stats();
    assert!(before.cached_blocks >= saved / 32);
    let mut restored = engine.restore(&path).unwrap();
    assert_eq!(engine.stats().cached_blocks, before.cached_blocks);
    let (found, cached) = turn(&mut restored, "Why?");
    assert_eq!((found, cached), (turn(&mut chat, "Why?").0, saved));
    // Others of the same device share what they have in common with it.
    let other = demo_engine();
    let restored = other.restore(&path).unwrap();
    let stats = other.stats();
    assert_eq!((stats.used_blocks, stats.cached_blocks), (0, saved.div_ceil(32)));
    let mut neighbour = other.resume(restored.state()).unwrap();
    assert_eq!(turn(&mut neighbour, "Hi").1, saved);
}

#[test]
fn without_kv_the_messages_are_kept() {
    let folder = Folder::new("without-kv");
    let path = folder.0.join("one.chat");
    let engine = demo_engine();
    let mut chat = conversation(&engine);
    // None was computed for what another engine said, and none can be found without a cache.
    let elsewhere = demo_engine().resume(chat.state()).unwrap();
    let no_cache = options().prefix_cache(false).load(demo()).unwrap();
    let uncached = no_cache.resume(chat.state()).unwrap();
    let empty = engine.chat();
    assert_eq!(empty.save(&path).unwrap(), 0);
    assert_eq!(engine.restore(&path).unwrap().messages(), []);
    for without in [elsewhere, uncached] {
        assert_eq!(without.save(&path).unwrap(), 0);
        for engine in [&engine, &no_cache] {
            assert_eq!(engine.restore(&path).unwrap().state(), chat.state());
        }
    }
    // K/V that nothing would find is refused, with the way out.
    assert!(chat.save(&path).unwrap() > 0);
    let error = no_cache.restore(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("without a prefix cache"), "{error}");
    let mut resumed = no_cache.resume(ChatState::load(&path).unwrap()).unwrap();
    assert_eq!(turn(&mut resumed, "Why?").0, turn(&mut chat, "Why?").0);
    // While an answer arrives, what was said before it is saved.
    let messages = chat.messages();
    let reply = chat.send("Hello?").unwrap();
    chat.save(&path).unwrap();
    drop(reply);
    assert_eq!(ChatState::load(&path).unwrap().messages()[..messages.len()], messages);
}

/// The demo checkpoint with a change of the bytes of one of its files.
fn changed(name: &str, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> Folder {
    let folder = Folder::new(name);
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.0.join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, before);
    std::fs::write(&path, bytes).unwrap();
    folder
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    *bytes = String::from_utf8(std::mem::take(bytes)).unwrap().replacen(from, to, 1).into_bytes();
}

#[test]
fn kv_of_another_model_is_refused_by_name_and_its_messages_go_on() {
    let folder = Folder::new("other-models");
    let path = folder.0.join("one.chat");
    let chat = conversation(&demo_engine());
    assert!(chat.save(&path).unwrap() > 0);
    // The last byte is that of a norm or of a matrix.
    let weights = changed("other-weights", "model.safetensors", |bytes| *bytes.last_mut().unwrap() ^= 1);
    let eps = changed("other-eps", "config.json", |json| replace(json, "1e-06", "1e-05"));
    let theta = changed("other-theta", "config.json", |json| replace(json, "10000.0", "20000.0"));
    let vocabulary = changed("other-vocabulary", "tokenizer.json", |json| {
        // The ids of two tokens change places.
        let text = String::from_utf8(json.clone()).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let vocab = value["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        vocab.extend([("a".into(), b), ("b".into(), a)]);
        *json = value.to_string().into_bytes();
    });
    let demo = demo();
    let others: [(EngineOptions, &Path, &str); 8] = [
        (options(), &weights.0, "the digest of the weights is "),
        (options(), &eps.0, "`rms_norm_eps` is 0.000001 where the conversation was saved and 0.00001 here"),
        (options(), &theta.0, "`rope_theta` is 10000 where the conversation was saved and 20000 here"),
        (options(), &vocabulary.0, "the digest of the vocabulary is "),
        (options().yarn(4.0), &demo, "`rope_scaling` is "),
        (options().precision(Precision::Exact), &demo, "`precision` is Fast where"),
        (options().quantize(Encoding::Q8_0), &demo, "`quantize` is off where the conversation was saved and Q8_0 here"),
        (options().kv_encoding(Encoding::Q8_0), &demo, "the encoding of K/V is "),
    ];
    for (options, model, word) in others {
        let engine = options.load(model).unwrap();
        let error = engine.restore(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(word), "{text}");
        assert!(text.ends_with("(ChatState::load, Engine::resume)"), "{text}");
        assert_eq!(error.kind(), ErrorKind::InvalidSnapshot);
        assert!(matches!(error, Error::Model(ModelError::SnapshotMismatch { .. })));
        assert_eq!(engine.stats().cached_blocks, 0);
        let mut resumed = engine.resume(ChatState::load(&path).unwrap()).unwrap();
        assert_eq!(resumed.messages(), chat.messages());
        assert_eq!(turn(&mut resumed, "Why?").1, 0);
    }
}

#[test]
fn damage_is_found_and_the_messages_before_it_are_not_lost() {
    let folder = Folder::new("damaged");
    let (path, bad) = (folder.0.join("one.chat"), folder.0.join("bad.chat"));
    let engine = demo_engine();
    let chat = conversation(&engine);
    chat.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let other = demo_engine();
    let refused = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).unwrap();
        let error = other.restore(&bad).unwrap_err();
        assert!(matches!(&error, Error::Model(ModelError::DamagedSnapshot { .. })), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidSnapshot);
        error.to_string()
    };
    let stride = (good.len() / 150).max(1);
    for at in (0..good.len()).step_by(stride).chain(0..40).chain(good.len() - 20..good.len()) {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped);
        refused(&good[..at]);
    }
    assert!(refused(&[&good[..], &[0]].concat()).ends_with("there is more behind its end"));
    assert!(refused(b"").ends_with("it is truncated"));
    assert!(refused(chat.messages()[0].text().unwrap().as_bytes()).contains("it is no saved conversation"));
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 1;
    assert!(refused(&flipped).contains("a block is damaged: its checksum is "));
    assert_eq!(ChatState::load(&bad).unwrap().messages(), chat.messages());
    let missing = other.restore(folder.0.join("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    // What is left of all that changes no answer.
    let (mut restored, mut chat) = (other.restore(&path).unwrap(), chat);
    assert_eq!(turn(&mut restored, "Why?"), turn(&mut chat, "Why?"));
}

#[test]
fn a_small_store_takes_the_beginning_and_a_busy_one_nothing() {
    let folder = Folder::new("small");
    let path = folder.0.join("one.chat");
    let engine = demo_engine();
    let mut chat = conversation(&engine);
    let saved = chat.save(&path).unwrap();
    let expected = turn(&mut chat, "Why?").0;
    // Where there are two blocks less than the conversation has, it is too long for an answer, but not for its K/V.
    let small = options().context(saved - 64).load(demo()).unwrap();
    let mut cut = small.restore(&path).unwrap();
    let blocks = small.stats().num_blocks;
    assert_eq!((small.stats().cached_blocks, small.stats().free_blocks), (blocks, 0));
    assert!(blocks < saved / 32);
    assert_eq!(cut.send("Why?").unwrap_err().kind(), ErrorKind::PromptTooLong);
    cut.truncate(1).unwrap();
    assert!(turn(&mut cut, "Why?").1 >= 32);
    // Others need all of the memory: none of it is taken from them, and they end as if nothing had been tried.
    let busy = options().context(288).manual().load(demo()).unwrap();
    let long = GenerateOptions::new().greedy().max_new_tokens(256).ignore_eos(true);
    let stream = busy.generate_ids((0..30).collect::<Vec<u32>>(), &long).unwrap();
    while {
        assert!(busy.step().unwrap());
        busy.stats().used_blocks < busy.stats().num_blocks
    } {}
    let error = busy.restore(&path).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::OutOfBlocks { .. })), "{error}");
    assert!(error.to_string().contains("go on with the messages"), "{error}");
    let ids: Vec<u32> = stream.collect::<qwen::Result<_>>().unwrap();
    let alone = engine.generate_ids((0..30).collect::<Vec<u32>>(), &long).unwrap();
    assert_eq!(ids, alone.collect::<qwen::Result<Vec<u32>>>().unwrap());
    // With room for a part of it, the rest is computed again.
    let half = options().context(1024).batch(1).manual().load(demo()).unwrap();
    let _running: Vec<_> =
        (0..3u32).map(|seed| half.generate_ids((seed..seed + 250).collect::<Vec<u32>>(), &long).unwrap()).collect();
    while {
        assert!(half.step().unwrap());
        half.stats().free_blocks * 32 >= saved
    } {}
    let mut part = half.restore(&path).unwrap();
    let (found, cached) = turn(&mut part, "Why?");
    assert!(cached < saved, "{cached} of {saved}");
    assert_eq!(found, expected);
}

#[test]
fn salts_are_not_in_the_file_and_keep_tenants_apart() {
    let folder = Folder::new("salts");
    let path = folder.0.join("one.chat");
    let engine = demo_engine();
    let salted = wild(3).cache_salt("the secret of a tenant");
    let mut chat = engine.chat().system("You are terse. ".repeat(8)).options(salted);
    turn(&mut chat, "Hello!");
    let saved = chat.save(&path).unwrap();
    assert!(saved > 0);
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(6).any(|bytes| bytes == b"secret"));
    let other = demo_engine();
    let error = other.restore(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("restore_with_salt"), "{error}");
    let mut restored = other.restore_with_salt(&path, "the secret of a tenant").unwrap();
    let mut stranger = other.resume(ChatState::load(&path).unwrap()).unwrap();
    let (expected, _) = turn(&mut chat, "Why?");
    assert_eq!(turn(&mut stranger, "Why?"), (expected, 0));
    assert_eq!(turn(&mut restored, "Why?").1, saved);
    let own = restored.state().options().clone();
    assert_eq!(own.cache_salt, "the secret of a tenant");
}

#[test]
fn kv_of_another_device_is_used_by_its_conversation_alone() {
    let folder = Folder::new("devices");
    let path = folder.0.join("one.chat");
    let load = || options().precision(Precision::Exact).kv_encoding(Encoding::F32).context(512).batch(2);
    let reference = load().load_with_backend(Reference::new(), demo()).unwrap();
    let greedy = || GenerateOptions::new().greedy().max_new_tokens(8).logprobs(1);
    let mut chat = reference.chat().system("You are terse. ".repeat(8)).options(greedy());
    turn(&mut chat, "Hello!");
    let saved = chat.save(&path).unwrap();
    let engine = load().load(demo()).unwrap();
    let mut restored = engine.restore(&path).unwrap();
    let mut neighbour = engine.resume(restored.state()).unwrap();
    // Nobody else gets bits that this device does not compute.
    assert_eq!(turn(&mut neighbour, "Why?").1, 0);
    let (there, cached) = turn(&mut restored, "Why?");
    assert_eq!((cached, &there.ids), (saved, &turn(&mut chat, "Why?").0.ids));
    // What both devices have computed belongs to neither, here or where it began.
    assert!(restored.fork().save(&path).unwrap() > saved);
    for engine in [&engine, &reference] {
        let mut again = engine.restore(&path).unwrap();
        let mut neighbour = engine.chat().system("You are terse. ".repeat(8)).options(greedy());
        let before = turn(&mut neighbour, "Hello!").1;
        assert!(turn(&mut again, "Bye!").1 > saved && before < saved + 64);
    }
}

#[test]
fn files_are_private_and_replaced_as_a_whole() {
    let folder = Folder::new("files");
    let path = folder.0.join("one.chat");
    let chat = conversation(&demo_engine());
    chat.save(&path).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    chat.save(&path).unwrap();
    let names: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one.chat"]);
    let error = chat.save(folder.0.join("no/such/folder/one.chat")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(chat.save(folder.0.join("..")).is_err());
}

#[test]
fn a_conversation_is_saved_and_restored_while_others_run() {
    let folder = Folder::new("company");
    let path = folder.0.join("one.chat");
    let engine = demo_engine();
    let mut chat = conversation(&engine);
    let long = GenerateOptions::new().greedy().max_new_tokens(200).ignore_eos(true);
    let streams: Vec<_> = (0..3u32).map(|seed| engine.generate_ids(vec![seed + 5; 40], &long).unwrap()).collect();
    chat.save(&path).unwrap();
    let mut restored = engine.restore(&path).unwrap();
    assert_eq!(turn(&mut restored, "Why?").0, turn(&mut chat, "Why?").0);
    let together: Vec<Vec<u32>> =
        streams.into_iter().map(|stream| stream.collect::<qwen::Result<_>>().unwrap()).collect();
    let lone = demo_engine();
    for (seed, found) in (0..3u32).zip(together) {
        let stream = lone.generate_ids(vec![seed + 5; 40], &long).unwrap();
        assert_eq!(found, stream.collect::<qwen::Result<Vec<u32>>>().unwrap());
    }
}
