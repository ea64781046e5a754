//! Ranks as processes, started with environment variables as by launchers.
#![cfg(feature = "cpu")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Folder, demo, free_port, options};
use qwen::{Engine, EngineOptions, GenerateOptions, Precision, Ranks};

const QUESTIONS: [&str; 3] = ["Hello!", "What is 3 + 4?", "Which animal says meow?"];

/// Set in the processes of the ranks: the file for their results.
const OUT: &str = "QWEN_TEST_RANK_OUT";

/// Set if an answer continues until the process is killed.
const ENDLESS: &str = "QWEN_TEST_RANK_ENDLESS";

/// Set if the engine has nothing to do until standard input ends.
const IDLE: &str = "QWEN_TEST_RANK_IDLE";

/// Set if each rank holds some of the layers.
const PIPELINE: &str = "QWEN_TEST_RANK_PIPELINE";

fn rank_options() -> EngineOptions {
    options().threads(1).precision(Precision::Exact).context(512)
}

fn answers(engine: &Engine) -> Vec<Vec<u32>> {
    let answer = |question: &&str| {
        let prompt = engine.tokenizer().unwrap().encode(question, true).unwrap();
        let options = GenerateOptions::new().greedy().max_new_tokens(24).ignore_eos(true);
        engine.generate_ids(prompt, &options).unwrap().collect::<qwen::Result<_>>().unwrap()
    };
    QUESTIONS.iter().map(answer).collect()
}

/// Not a test: the program that the processes of the ranks run.
#[test]
fn rank_program() {
    let Ok(out) = std::env::var(OUT) else { return };
    let write = |text: String| {
        // Renamed into place, so that it is never read half-written.
        fs::write(format!("{out}.part"), text).unwrap();
        fs::rename(format!("{out}.part"), &out).unwrap();
    };
    let run = || -> qwen::Result<String> {
        let ranks =
            Ranks::from_env()?.rendezvous_timeout(Duration::from_secs(60)).heartbeat_timeout(Duration::from_secs(5));
        let shared = if std::env::var(PIPELINE).is_ok() { ranks.clone().pipeline_parallel() } else { ranks.clone() };
        let options = rank_options().ranks(shared);
        if !ranks.is_leader() {
            options.run_worker(demo())?;
            return Ok("worked".into());
        }
        let engine = options.load(demo())?;
        if std::env::var(IDLE).is_ok() {
            write("idle".into());
            std::io::read_to_string(std::io::stdin()).unwrap();
        }
        if std::env::var(ENDLESS).is_err() {
            return Ok(format!("{:?}", answers(&engine)));
        }
        loop {
            // One full context after another.
            for token in engine.generate_ids([1, 2, 3], &GenerateOptions::new().greedy().ignore_eos(true))? {
                token?;
                write("running".into());
            }
        }
    };
    write(run().unwrap_or_else(|error| format!("error: {error}")));
}

struct Rank {
    child: Child,
    out: std::path::PathBuf,
}

impl Rank {
    fn start(folder: &Path, variables: &[(&str, String)]) -> Self {
        let out = folder.join(format!("{}.txt", fs::read_dir(folder).unwrap().count()));
        fs::write(&out, "").unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rank_program"]).env(OUT, &out).stdin(Stdio::piped()).stdout(Stdio::null());
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        Rank { child: command.spawn().unwrap(), out }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    /// Wait until it has written `text`. It must still be running.
    fn says(&mut self, text: &str) {
        let started = Instant::now();
        while self.said() != text {
            let runs = self.child.try_wait().unwrap().is_none();
            assert!(runs && started.elapsed() < Duration::from_secs(100), "{:?}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The output of the process, once it has ended.
    fn ended(&mut self) -> String {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(100), "a rank hangs; it said {:?}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
        self.said()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The variables of torchrun.
fn torchrun(rank: usize, world_size: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", world_size.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", world_size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
    ]
}

/// The variables of Open MPI, with the port that the user adds.
fn open_mpi(rank: usize, world_size: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("OMPI_COMM_WORLD_RANK", rank.to_string()),
        ("OMPI_COMM_WORLD_SIZE", world_size.to_string()),
        ("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string()),
        ("MASTER_PORT", port.to_string()),
    ]
}

#[test]
fn processes_answer_as_one_does() {
    let folder = Folder::new("rank-processes");
    let expected = format!("{:?}", answers(&rank_options().load(demo()).unwrap()));
    type Launcher = fn(usize, usize, u16) -> Vec<(&'static str, String)>;
    let pipeline: Launcher =
        |rank, world_size, port| [torchrun(rank, world_size, port), vec![(PIPELINE, "1".into())]].concat();
    for (world_size, launcher) in [(2, torchrun as Launcher), (4, open_mpi), (3, pipeline)] {
        let port = free_port();
        // Rank 0 last: the others wait for it.
        let start = |rank| Rank::start(&folder.0, &launcher(rank, world_size, port));
        let mut ranks: Vec<Rank> = (0..world_size).rev().map(start).collect();
        let mut leader = ranks.pop().unwrap();
        assert_eq!(leader.ended(), expected, "{world_size} ranks");
        for rank in &mut ranks {
            assert_eq!(rank.ended(), "worked");
        }
    }
}

/// Ranks with these variables in addition.
fn started(folder: &Folder, world_size: usize, variables: &[&'static str]) -> Vec<Rank> {
    let port = free_port();
    let extra: Vec<_> = variables.iter().map(|name| (*name, "1".to_owned())).collect();
    let start = |rank| Rank::start(&folder.0, &[torchrun(rank, world_size, port), extra.clone()].concat());
    (0..world_size).map(start).collect()
}

/// Ranks in the middle of an endless answer.
fn busy(folder: &Folder, world_size: usize) -> Vec<Rank> {
    let mut ranks = started(folder, world_size, &[ENDLESS]);
    ranks[0].says("running");
    ranks
}

/// No request is running: the other ranks have to learn of the failure nevertheless.
#[test]
fn a_killed_worker_of_an_idle_engine_is_an_error_on_all_others() {
    for layout in [&[ENDLESS, IDLE][..], &[ENDLESS, IDLE, PIPELINE]] {
        let folder = Folder::new(&format!("rank-killed-idle-{}", layout.len()));
        let mut ranks = started(&folder, 4, layout);
        ranks[0].says("idle");
        ranks[2].child.kill().unwrap();
        for rank in [1, 3] {
            assert_eq!(ranks[rank].ended(), "error: rank 2 failed: its process has ended");
        }
        // Rank 1 has ended too by now, but it is not the cause.
        drop(ranks[0].child.stdin.take());
        assert_eq!(ranks[0].ended(), "error: rank 2 failed: its process has ended");
    }
}

#[test]
fn a_killed_worker_is_an_error_on_all_others() {
    let folder = Folder::new("rank-killed-worker");
    let mut ranks = busy(&folder, 4);
    ranks[2].child.kill().unwrap();
    for rank in [0, 1, 3] {
        assert_eq!(ranks[rank].ended(), "error: rank 2 failed: its process has ended");
    }
}

#[test]
fn a_killed_leader_is_an_error_on_the_workers() {
    let folder = Folder::new("rank-killed-leader");
    let mut ranks = busy(&folder, 2);
    ranks[0].child.kill().unwrap();
    assert_eq!(ranks[1].ended(), "error: rank 0 failed: its process has ended");
}

/// A stopped process keeps its connections: only the missing heartbeats show it.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_worker_is_an_error_on_the_leader() {
    let folder = Folder::new("rank-stopped");
    let mut ranks = busy(&folder, 2);
    let stopped = Command::new("kill").args(["-STOP", &ranks[1].child.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(ranks[0].ended(), "error: rank 1 failed: it has sent no heartbeat or complete message for 5 seconds");
}

/// The variable of the shared secret.
fn secret(value: &str) -> Vec<(&'static str, String)> {
    vec![("QWEN_RANKS_SECRET", value.into())]
}

#[test]
fn with_a_secret_a_wrong_number_of_ranks_is_an_error_on_both_sides() {
    let folder = Folder::new("rank-wrong-size");
    let port = free_port();
    let start =
        |(rank, size)| Rank::start(&folder.0, &[torchrun(rank, size, port), secret("0123456789abcdef")].concat());
    let mut ranks = [(0, 2), (1, 4)].map(start);
    for rank in &mut ranks {
        let said = rank.ended();
        assert_eq!(said, "error: the number of ranks is 4 on rank 1 and 2 on rank 0: start all ranks alike");
    }
}

#[test]
fn processes_that_do_not_belong_are_turned_away_and_the_others_answer() {
    let folder = Folder::new("rank-strangers");
    let port = free_port();
    let right = secret("0123456789abcdef");
    let mut leader = Rank::start(&folder.0, &[torchrun(0, 2, port), right.clone()].concat());
    for (other, reason) in [
        (secret("0123456789abcdeF"), "one value on rank 1 and another on rank 0"),
        (vec![], "not set on rank 1 and set on rank 0"),
    ] {
        let said = Rank::start(&folder.0, &[torchrun(1, 2, port), other].concat()).ended();
        assert_eq!(said, format!("error: the shared secret is {reason}: start all ranks alike"));
    }
    let mut worker = Rank::start(&folder.0, &[torchrun(1, 2, port), right].concat());
    assert_eq!(leader.ended(), format!("{:?}", answers(&rank_options().load(demo()).unwrap())));
    assert_eq!(worker.ended(), "worked");
}

#[test]
fn incomplete_variables_are_named() {
    let folder = Folder::new("rank-incomplete");
    let said = Rank::start(&folder.0, &[("RANK", "1".into())]).ended();
    assert_eq!(said, "error: RANK=1, WORLD_SIZE (not set): RANK is set and WORLD_SIZE is not: a launcher sets both");
}
