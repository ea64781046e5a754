//! Ranks that MPI starts and connects: the bits of other ranks, and what happens when one fails.
//!
//! `QWEN_MPIRUN` has the commands that start processes, separated by `;`, each up to the number of processes, such
//! as `mpirun -n`. Without it most of these tests are skipped; `tools/check-mpi.sh` sets it.
#![cfg(all(feature = "cpu", feature = "mpi", unix))]

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Folder, demo, free_port, options};
use qwen::core::Error as ModelError;
use qwen::core::backend::collective::{Collective, ThreadGroup};
use qwen::core::ranks::{Transport, collective};
use qwen::{EngineOptions, GenerateOptions, Precision, Ranks};

/// Set in the processes of the ranks: the folder for their results, one file per rank.
const OUT: &str = "QWEN_TEST_MPI_OUT";

/// Set in the processes of the ranks: what they do.
const ACT: &str = "QWEN_TEST_MPI_ACT";

/// Around the sizes at which sums are computed in another way, and more than one piece.
const LENGTHS: [usize; 7] = [1, 3, 896, 5120, 20_000, 512 * 896, (1 << 18) + 5];

/// The size of hidden states of the 0.5B model.
const HIDDEN: usize = 896;

fn values(rank: usize, len: usize) -> Vec<f32> {
    let mut state = rank as u32 + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Of very different magnitudes, so that the order of additions matters.
        (state as i32 as f32) * [1e-9, 1.0, 1e9][(state >> 20) as usize % 3]
    };
    let mut values: Vec<f32> = (0..len).map(next).collect();
    values[0] = -0.0;
    values
}

/// The sums of all lengths, digested.
fn sums(rank: usize, group: &dyn Collective) -> qwen::core::Result<String> {
    let sum = |len: usize| {
        let mut values = values(rank, len);
        group.all_reduce(&mut values)?;
        Ok(format!("{len}: {}", digest(&values)))
    };
    Ok(LENGTHS.into_iter().map(sum).collect::<qwen::core::Result<Vec<_>>>()?.join("\n"))
}

/// FNV-1a over the bits.
fn digest(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    format!(
        "{:016x}",
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    )
}

fn rank_options() -> EngineOptions {
    options().threads(1).precision(Precision::Exact).context(512).batch(2)
}

/// What a model says: logits of a prompt, digested, and greedy answers at once.
fn model(ranks: Ranks) -> qwen::Result<String> {
    let options = rank_options().ranks(ranks.clone());
    if !ranks.is_leader() {
        options.run_worker(demo())?;
        return Ok("worked".into());
    }
    let engine = options.load(demo())?;
    let prompt = engine.tokenizer()?.encode("What is 3 + 4? Hello, who are you?", true)?;
    let rows = engine.logits(&prompt)?;
    let greedy = GenerateOptions::new().greedy().max_new_tokens(16).ignore_eos(true);
    let answers = [1, 2].map(|skip| engine.generate_ids(&prompt[skip..], &greedy));
    let answers: Vec<Vec<u32>> = answers.into_iter().map(|answer| answer?.collect()).collect::<qwen::Result<_>>()?;
    Ok(format!("{} {answers:?}", digest(&rows)))
}

fn meet(ranks: &Ranks) -> qwen::Result<Arc<Transport>> {
    Ok(Arc::new(ranks.rendezvous(&[("the test", "mpi".into())])?))
}

/// Not a test: the program that the processes of the ranks run.
#[test]
fn rank_program() {
    let (Ok(out), Ok(act)) = (std::env::var(OUT), std::env::var(ACT)) else { return };
    let ranks = match Ranks::mpi() {
        Ok(ranks) => ranks.heartbeat_timeout(Duration::from_secs(2)),
        Err(error) => {
            fs::write(format!("{out}/{}", std::process::id()), format!("error: {error}")).unwrap();
            return;
        }
    };
    let rank = ranks.rank();
    let said = run(&act, ranks).unwrap_or_else(|error| format!("error: {error}"));
    let part = format!("{out}/{rank}.part");
    fs::write(&part, said).unwrap();
    fs::rename(part, format!("{out}/{rank}")).unwrap();
    if act == "stops" {
        // As a program ends by an error. The others are to end too.
        std::process::exit(1);
    }
}

fn run(act: &str, ranks: Ranks) -> qwen::Result<String> {
    let rank = ranks.rank();
    match act {
        "place" => {
            let (number, local) = (ranks.world_size(), ranks.local_world_size());
            Ok(format!("{rank} of {number}, {} of {local} here", ranks.local_rank()))
        }
        "sums" => Ok(sums(rank, &*collective(&meet(&ranks)?))?),
        "heads" => model(ranks),
        "layers" => model(ranks.pipeline_parallel()),
        // MPI starts once in a process, but a model can be loaded many times.
        "twice" => Ok(format!("{}\n{}", model(ranks.clone())?, model(ranks.pipeline_parallel())?)),
        "differ" => model(if rank == 1 { ranks.pipeline_parallel() } else { ranks }),
        "late" if rank == 1 => Ok("elsewhere".into()),
        "late" => model(ranks.rendezvous_timeout(Duration::from_secs(1))),
        "lengths" => {
            let transport = meet(&ranks)?;
            let len = if rank == 1 { HIDDEN + 1 } else { HIDDEN };
            let outcome = collective(&transport).all_reduce(&mut values(rank, len));
            outcome.inspect_err(|error| transport.fail(error))?;
            Ok("a sum".into())
        }
        "fails" => {
            let transport = meet(&ranks)?;
            let group = collective(&transport);
            group.all_reduce(&mut [1.0])?;
            if rank == 1 {
                let error = ModelError::argument("the test", "rank 1 cannot go on");
                transport.fail(&error);
                return Err(error.into());
            }
            // The hook is for what waits on something else than the transport.
            let (woken, wakes) = std::sync::mpsc::channel();
            transport.on_peer_failure(move || woken.send(()).unwrap());
            let outcome = group.all_reduce(&mut [1.0]);
            wakes.recv_timeout(Duration::from_secs(10)).expect("the hook is called");
            // Rank 0 passes it on, as it does on its own once it has an engine.
            outcome.inspect_err(|error| transport.fail(error))?;
            Ok("a sum".into())
        }
        "dies" | "stops" => {
            let transport = meet(&ranks)?;
            let group = collective(&transport);
            group.all_reduce(&mut [1.0])?;
            if rank == 1 && act == "dies" {
                std::process::abort();
            }
            if rank == 1 {
                // It goes on later, since not every launcher ends a stopped process on another machine.
                let stop = format!("kill -STOP {0}; sleep 6; kill -CONT {0}", std::process::id());
                let mut stop =
                    Command::new("sh").args(["-c", &stop]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                // Until the others are gone, or say why they are.
                while group.all_reduce(&mut [1.0]).is_ok() {}
                stop.wait().unwrap();
            }
            loop {
                group.all_reduce(&mut [1.0])?;
            }
        }
        act => panic!("{act}"),
    }
}

/// The commands that start processes.
fn launchers() -> Vec<Vec<String>> {
    let Ok(said) = std::env::var("QWEN_MPIRUN") else {
        eprintln!("SKIPPED: no launcher (QWEN_MPIRUN), see tools/check-mpi.sh");
        return Vec::new();
    };
    said.split(';').map(|command| command.split_whitespace().map(Into::into).collect()).collect()
}

/// What processes did that a launcher started.
struct Ended {
    launcher: Output,
    folder: Folder,
}

impl Ended {
    /// What each rank said, once all have.
    fn said(&self, number: usize) -> Vec<String> {
        (0..number).map(|rank| self.one(rank).unwrap_or_else(|| panic!("rank {rank} said nothing: {self}"))).collect()
    }

    fn one(&self, rank: usize) -> Option<String> {
        fs::read_to_string(self.folder.0.join(rank.to_string())).ok()
    }

    /// Everything that was said, by whoever.
    fn all(&self) -> Vec<String> {
        let files = fs::read_dir(&self.folder.0).unwrap();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [out, err] = [&self.launcher.stdout, &self.launcher.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        write!(f, "{}\n{out}\n{err}", self.launcher.status)
    }
}

/// Start `number` processes of this program by a launcher.
fn start(launcher: &[String], number: usize, act: &str, variables: &[(&str, &str)]) -> Ended {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let folder = Folder::new(&format!("mpi-{}", STARTED.fetch_add(1, Ordering::SeqCst)));
    let (name, given) = launcher.split_first().expect("a command");
    let mut command = Command::new(name);
    // By `env`: each launcher has its own way of passing variables on.
    command.args(given).arg(number.to_string()).arg("env");
    command.arg(format!("{OUT}={}", folder.0.display())).arg(format!("{ACT}={act}"));
    command.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "rank_program", "--nocapture"]);
    Ended { launcher: command.output().expect("the launcher starts"), folder }
}

/// Start them by each launcher in turn.
fn start_all(number: usize, act: &str) -> Vec<Ended> {
    launchers().iter().map(|launcher| start(launcher, number, act, &[])).collect()
}

#[test]
fn sums_have_the_bits_of_those_of_threads() {
    for number in [2, 3, 4] {
        let threads: Vec<_> = ThreadGroup::new(number)
            .into_iter()
            .enumerate()
            .map(|(rank, group)| thread::spawn(move || sums(rank, &group).unwrap()))
            .collect();
        let expected: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for ended in start_all(number, "sums") {
            assert!(ended.launcher.status.success(), "{ended}");
            assert_eq!(ended.said(number), expected);
        }
    }
}

/// What ranks say that are threads, connected by TCP.
fn over_tcp(number: usize, share: fn(Ranks) -> Ranks) -> String {
    let port = free_port();
    let rank = move |rank| share(Ranks::new(rank, number).unwrap().at("127.0.0.1", port));
    let workers: Vec<_> = (1..number).map(|number| thread::spawn(move || model(rank(number)))).collect();
    let said = model(rank(0)).unwrap();
    for worker in workers {
        assert_eq!(worker.join().unwrap().unwrap(), "worked");
    }
    said
}

#[test]
fn ranks_have_the_bits_of_those_over_tcp() {
    for number in [2, 4] {
        let expected = over_tcp(number, |ranks| ranks);
        for ended in start_all(number, "heads") {
            assert!(ended.launcher.status.success(), "{ended}");
            let said = ended.said(number);
            assert_eq!(said[0], expected);
            assert!(said[1..].iter().all(|said| said == "worked"), "{said:?}");
        }
    }
}

#[test]
fn ranks_with_some_of_the_layers_have_the_bits_of_one_process() {
    let expected = model(Ranks::alone()).unwrap();
    for number in [1, 2, 4] {
        for ended in start_all(number, "layers") {
            assert!(ended.launcher.status.success(), "{ended}");
            assert_eq!(ended.said(number)[0], expected);
        }
    }
}

#[test]
fn a_model_can_be_loaded_again() {
    let expected = [over_tcp(2, |ranks| ranks), over_tcp(2, Ranks::pipeline_parallel)].join("\n");
    for ended in start_all(2, "twice") {
        assert!(ended.launcher.status.success(), "{ended}");
        assert_eq!(ended.said(2), [expected.as_str(), "worked\nworked"]);
    }
}

#[test]
fn processes_know_their_place() {
    for ended in start_all(4, "place") {
        let mut said = ended.said(4);
        said.sort();
        for (rank, said) in said.iter().enumerate() {
            assert!(said.starts_with(&format!("{rank} of 4, ")), "{said}");
        }
        // On one machine all are together; `tools/check-mpi.sh` also has two, with two processes each.
        let here = if said[0].ends_with("of 2 here") { 2 } else { 4 };
        let mut places: Vec<String> = (0..4).map(|rank| format!("{} of {here} here", rank % here)).collect();
        let mut found: Vec<String> = said.iter().map(|said| said[8..].to_owned()).collect();
        places.sort();
        found.sort();
        assert_eq!(found, places);
    }
}

#[test]
fn ranks_that_were_started_differently_all_say_so() {
    for ended in start_all(4, "differ") {
        let expected = "error: what ranks share is layers on rank 1 and heads on rank 0: start all ranks alike";
        assert_eq!(ended.said(4), [expected; 4]);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    for ended in start_all(2, "late") {
        let said = ended.one(0).unwrap_or_else(|| panic!("{ended}"));
        let expected = "error: rank 0 at MPI: within 1 seconds rank 1 of 2 did not begin to load a model";
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn lengths_that_differ_are_an_error_on_both_sides() {
    for ended in start_all(2, "lengths") {
        for said in ended.said(2) {
            assert!(said.starts_with("error: rank "), "{said}");
        }
    }
}

#[test]
fn a_rank_that_fails_is_an_error_on_all_others() {
    for ended in start_all(3, "fails") {
        let said = ended.said(3);
        assert_eq!(said[1], "error: `the test`: rank 1 cannot go on");
        for rank in [0, 2] {
            assert_eq!(said[rank], "error: rank 1 failed: `the test`: rank 1 cannot go on");
        }
    }
}

/// The launcher ends all processes when one dies.
#[test]
fn a_rank_that_dies_ends_all() {
    for launcher in launchers() {
        let started = Instant::now();
        let ended = start(&launcher, 3, "dies", &[]);
        assert!(!ended.launcher.status.success(), "{ended}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

/// A stopped process keeps its connections, and the launcher sees nothing: only the missing heartbeats show it.
#[test]
fn a_rank_that_stops_is_an_error_on_the_others() {
    for ended in start_all(2, "stops") {
        assert!(!ended.launcher.status.success(), "{ended}");
        let said = ended.one(0).unwrap_or_else(|| panic!("{ended}"));
        assert_eq!(said, "error: rank 1 failed: it has sent no heartbeat or message for 2 seconds");
    }
}

/// What a process says that no launcher has started, although the variables of one are set.
fn alone(variables: &[(&str, &str)]) -> String {
    let env: Vec<String> = ["sh", "-c", "shift; exec \"$@\"", "sh"].map(Into::into).to_vec();
    start(&env, 1, "place", variables).all().concat()
}

#[test]
fn a_library_that_is_not_there_is_named_with_the_way_out() {
    let launched = ("PMI_RANK", "0");
    let said = alone(&[launched, ("QWEN_MPI_LIBRARY", "libno-such-mpi.so")]);
    assert!(said.starts_with("error: MPI is not supported: "), "{said}");
    assert!(said.contains("libno-such-mpi.so") && said.contains("correct QWEN_MPI_LIBRARY"), "{said}");
    #[cfg(target_os = "linux")]
    {
        let said = alone(&[launched, ("QWEN_MPI_LIBRARY", "libc.so.6")]);
        assert!(said.contains("libc.so.6 is no MPI library"), "{said}");
    }
}

#[test]
fn without_a_launcher_a_process_is_alone() {
    assert_eq!(alone(&[("QWEN_MPI_LIBRARY", "libno-such-mpi.so")]), "0 of 1, 0 of 1 here");
}

#[test]
fn a_library_of_another_mpi_than_the_launcher_is_an_error() {
    let all = launchers();
    for launcher in &all {
        for library in ["libmpi.so.40", "libmpich.so.12", "libmpi.so.12"] {
            let ended = start(launcher, 2, "place", &[("QWEN_MPI_LIBRARY", library)]);
            let said = ended.all();
            // It is either the launcher's own, or not installed, or another one.
            let own = said.len() == 2 && said.iter().all(|said| said.contains(" of 2, "));
            let absent = said.iter().all(|said| said.contains("is not supported: "));
            let other =
                said.iter().all(|said| said.contains("the launcher has started that many processes, and the library"));
            assert!(own || absent || other, "{library}: {said:?} {ended}");
        }
    }
}
