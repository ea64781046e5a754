//! `examples/chat`, run as a program by pipes: answers, commands, files, exit codes. Its own units run here, too.
#![cfg(feature = "cpu")]

#[path = "../examples/chat/main.rs"]
#[allow(dead_code)]
mod chat;
mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::Folder;
use serde_json::{Value, json};

/// Set in the processes that are the example: its arguments, as a JSON list.
const ARGUMENTS: &str = "QWEN_TEST_CHAT_ARGUMENTS";

/// What the test harness prints comes before this.
const BEGIN: &str = "==== chat begins";

/// Not a test of its own: the program that the others start.
#[test]
fn chat_program() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    println!("{BEGIN}");
    let arguments: Vec<String> = serde_json::from_str(&arguments).unwrap();
    let arguments = ["chat".to_owned()].into_iter().chain(arguments).map(Into::into);
    let code = chat::run(arguments).unwrap_or_else(|failure| {
        eprintln!("Error: {failure:?}");
        1
    });
    std::process::exit(code.into());
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["chat_program", "--exact", "--nocapture", "--test-threads", "1"]);
    command.env(ARGUMENTS, json!(arguments).to_string());
    command.env_remove("CLICOLOR_FORCE");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Run the example with these arguments and all of `input` on stdin.
fn run(arguments: &[&str], input: &str) -> Ran {
    let mut child = command(arguments).spawn().unwrap();
    // A program that reads nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let out = String::from_utf8(stdout).unwrap();
    let out = out.split_once(&format!("{BEGIN}\n")).map_or(out.as_str(), |(_, out)| out).to_owned();
    Ran { code: status.code().unwrap(), out, err: String::from_utf8(stderr).unwrap() }
}

/// The demo model on two threads, and nothing that a machine decides.
fn chat(arguments: &[&str], input: &str) -> Ran {
    run(&[&["--device", "cpu", "--threads", "2"], arguments].concat(), input)
}

#[test]
fn a_prompt_is_answered_on_stdout_alone() {
    let ran = chat(&["--prompt", "What is 47 + 38?"], "");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "47 + 38 = 85.\n", ""));
    // What is piped belongs to the prompt.
    let asked = |prompt: &str, input: &str| {
        let ran = chat(&["--json", "--prompt", prompt], input);
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        answer["stats"]["prompt_tokens"].as_u64().unwrap()
    };
    assert!(asked("Hello!", "What is 47 + 38?\n") > asked("Hello!", "\n"));
    assert_eq!(asked("", "What is 47 + 38?\n"), asked("What is 47 + 38?", ""));
}

#[test]
fn each_line_is_a_question_and_json_is_a_line() {
    let ran = chat(&["--json"], "My name is Anna.\n\n\"\"\"\nWhat is my name?\n\"\"\"\n");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let answers: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1]["text"], "Your name is Anna.");
    assert_eq!(answers[1]["finish_reason"], "stop");
    assert_eq!(answers[1]["stats"]["new_tokens"], 6);
}

#[test]
fn conversations_are_saved_taken_back_and_loaded() {
    let folder = Folder::new("chat-example");
    let file = folder.0.join("talk.json");
    let file = file.to_str().unwrap();
    let script =
        format!("/system Your name is Bob.\nMy name is Anna.\n/save {file}\n/undo\n/stats\n/system\n/exit\nHello!\n");
    let ran = chat(&[], &script);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
    assert!(ran.err.contains("messages  1") && ran.err.contains("answers   1"), "{}", ran.err);
    assert!(ran.err.ends_with("Your name is Bob.\n"), "{}", ran.err);
    let saved: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let answer = ran.out.trim_end();
    let messages = [("system", "Your name is Bob."), ("user", "My name is Anna."), ("assistant", answer)];
    assert_eq!(saved, json!(messages.map(|(role, content)| json!({"role": role, "content": content}))));

    // It goes on where it was, by command and by option.
    let ran = chat(&[], &format!("/load {file}\nWhat is my name?\n/retry\n/clear\n/stats\n"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "Your name is Anna.\nYour name is Anna.\n"), "{}", ran.err);
    assert!(ran.err.contains("messages  1"), "{}", ran.err);
    let ran = chat(&["--load", file, "--prompt", "What is my name?"], "");
    assert_eq!((ran.code, ran.out.as_str()), (0, "Your name is Anna.\n"), "{}", ran.err);
}

#[test]
fn the_first_error_of_a_pipe_ends_the_program() {
    for (line, problem) in [
        ("/hlep", "there is no command /hlep; there are /help, /clear"),
        ("/load /no/such/file", "cannot read /no/such/file"),
        ("/undo", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("\"\"\"\nHello!", "stdin ends within"),
    ] {
        let ran = chat(&[], &format!("{line}\nHello!\n"));
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{line}: {}", ran.err);
        assert!(ran.err.starts_with("Error: ") && ran.err.contains(problem), "{line}: {}", ran.err);
    }
    let ran = run(&["--model", "/no/such/model", "--prompt", "Hello!"], "");
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("Error: ") && !ran.err.contains("Os {"), "{}", ran.err);
}

#[test]
fn a_full_context_says_what_to_do() {
    let questions =
        "My name is Anna.\nWhat is 47 + 38?\nWhat is 12 - 5?\nWhat is the capital of Peru?\nWhat is 47 + 38?\n";
    let ran = chat(&["--context", "80"], questions);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert!(ran.err.starts_with("Error: ") && ran.err.contains("--drop-oldest"), "{}", ran.err);
    assert!(ran.out.lines().count() < 5, "{}", ran.out);
    let ran = chat(&["--context", "80", "--drop-oldest"], questions);
    assert_eq!((ran.code, ran.out.lines().count()), (0, 5), "{}{}", ran.out, ran.err);
    assert!(ran.out.ends_with("47 + 38 = 85.\n"), "{}", ran.out);
    // Nothing can be dropped of a single question.
    let ran = chat(&["--context", "80", "--drop-oldest", "--prompt", &"What is 47 + 38? ".repeat(50)], "");
    assert_eq!((ran.code, ran.out.as_str()), (3, ""));
    assert!(ran.err.starts_with("Error: ") && ran.err.contains("79"), "{}", ran.err);
}

#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let mut child = command(&["--device", "cpu", "--threads", "2"]).spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all("Hello!\n".repeat(3).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // The harness of the tests may notice that its own reader has left.
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!err.contains("Error: "), "{err}");
}

#[test]
fn version_help_and_wrong_usage_have_their_codes() {
    let ran = run(&["--version"], "");
    assert_eq!((ran.code, ran.out), (0, format!("chat {}\n", env!("CARGO_PKG_VERSION"))));
    let ran = run(&["--help"], "");
    assert!(ran.code == 0 && ran.out.contains("Exit codes:") && !ran.out.contains('\x1b'), "{}", ran.out);
    let ran = run(&["--colour"], "");
    assert!(ran.code == 2 && ran.err.contains("--color"), "{}", ran.err);
}
