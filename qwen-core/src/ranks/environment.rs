//! The variables that launchers set in the environment of the processes that they start, and the shared secret.
//!
//! Each launcher has its own names for the same numbers. The innermost launcher is used: if Slurm started torchrun, the
//! variables of both are set, and torchrun's number these processes.

use std::fs::File;
use std::io::Read;

use super::config::{DEFAULT_HOST, DEFAULT_PORT, MAX_RANKS, Ranks};
use super::secret::{MAX_BYTES, Secret};
use crate::error::{Error, Result};

/// The shared secret itself.
const SECRET: &str = "QWEN_RANKS_SECRET";

/// A file that holds it.
const SECRET_FILE: &str = "QWEN_RANKS_SECRET_FILE";

/// One launcher's names for the four numbers.
struct Family {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_world_size: &'static str,
    /// The launcher also numbers programs that run alone: its rank is used only if the number of ranks is set too.
    needs_size: bool,
}

/// In the order of preference.
const FAMILIES: [Family; 5] = [
    // torchrun, Ray Train, and variables set by hand.
    Family {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: "LOCAL_WORLD_SIZE",
        needs_size: false,
    },
    // Open MPI.
    Family {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        needs_size: false,
    },
    // MPICH and Intel MPI, which start processes through PMI.
    Family {
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world_size: "MPI_LOCALNRANKS",
        needs_size: false,
    },
    // Slurm's srun. A job's script also has SLURM_PROCID and SLURM_NTASKS; only srun sets the number of processes that it
    // has started.
    Family {
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_world_size: "LOCAL_WORLD_SIZE",
        needs_size: true,
    },
    // An indexed Job of Kubernetes. Its template sets WORLD_SIZE if the pods are ranks rather than independent workers.
    Family {
        rank: "JOB_COMPLETION_INDEX",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: "LOCAL_WORLD_SIZE",
        needs_size: true,
    },
];

impl Ranks {
    /// As [`Ranks::from_env`], with the variables that `lookup` returns. An empty variable counts as not set.
    ///
    /// The first of these launchers whose rank is set is used; the last two also number programs that run alone, so
    /// they are used only if the number of ranks is set too:
    /// | launcher | rank | number of ranks | on this machine |
    /// |---|---|---|---|
    /// | torchrun, Ray Train | `RANK` | `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` |
    /// | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK`, `OMPI_COMM_WORLD_LOCAL_SIZE` |
    /// | MPICH, Intel MPI | `PMI_RANK` | `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` |
    /// | Slurm | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID`, `LOCAL_WORLD_SIZE` |
    /// | Kubernetes, indexed Job | `JOB_COMPLETION_INDEX` | `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` |
    ///
    /// `MASTER_ADDR` and `MASTER_PORT` give the address of rank 0, by default `127.0.0.1:29500`. torchrun's agent may
    /// listen on `MASTER_PORT` itself (`TORCHELASTIC_USE_AGENT_STORE=True`); the ranks then use the next port.
    /// `QWEN_MASTER_PORT` sets the port in any case. If the launcher does not give the number of ranks on this machine,
    /// it is all of them behind a loopback address, an equal share of `SLURM_NNODES` machines, and otherwise one.
    ///
    /// `QWEN_RANKS_SECRET`, or the content of the file that `QWEN_RANKS_SECRET_FILE` names, is the secret of
    /// [`Ranks::secret`]. An empty one is an error, so that a missing value does not go unnoticed.
    ///
    /// # Errors
    /// [`Error::Launch`] naming the variables that are missing, malformed, or contradict each other.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variables = Variables { lookup };
        // Two families use WORLD_SIZE, so only the rank tells them apart.
        let started = |family: &&Family| {
            let is_set = |name| variables.text(name).is_some();
            is_set(family.rank) && (!family.needs_size || is_set(family.world_size))
        };
        let Some(family) = FAMILIES.iter().find(started) else { return variables.no_rank() };
        let rank = variables.needed(family.rank, family)?;
        let world_size = variables.needed(family.world_size, family)?;
        if rank >= world_size || world_size > MAX_RANKS {
            let reason = format!("ranks count from 0 and stay below their number, which is at most {MAX_RANKS}");
            return Err(variables.wrong(&[family.rank, family.world_size], reason));
        }
        if let Some(said) = variables.number("WORLD_SIZE")?.filter(|said| *said != world_size) {
            let reason = format!("{said} and {world_size} ranks contradict each other: unset WORLD_SIZE or correct it");
            return Err(variables.wrong(&["WORLD_SIZE", family.world_size], reason));
        }
        let (host, port) = (variables.text("MASTER_ADDR"), variables.port()?);
        let nodes = variables.number("SLURM_NNODES")?.filter(|nodes| *nodes > 0);
        if host.is_none() && nodes.is_some_and(|nodes| nodes > 1) {
            let reason = "the ranks are on several machines: set MASTER_ADDR to the one of rank 0".to_owned();
            return Err(variables.wrong(&["SLURM_NNODES", "MASTER_ADDR"], reason));
        }
        let host = host.unwrap_or_else(|| DEFAULT_HOST.into());
        // If rank 0 is reached over loopback, all ranks are on one machine.
        let together = matches!(host.as_str(), "127.0.0.1" | "::1" | "localhost");
        let local = match (together, nodes) {
            (true, _) => world_size,
            (false, Some(nodes)) => world_size.div_ceil(nodes),
            (false, None) => 1,
        };
        let (said_rank, said_size) = (variables.number(family.local_rank)?, variables.number(family.local_world_size)?);
        let local_rank = said_rank.unwrap_or(if together { rank } else { 0 });
        let local_world_size = said_size.unwrap_or(local);
        // Compare them only if both were given.
        let most = said_rank.and(said_size).unwrap_or(world_size);
        if local_world_size > world_size || local_world_size == 0 || local_rank >= most {
            let reason = "a machine has some of the ranks, counted from 0".to_owned();
            return Err(variables.wrong(&[family.local_rank, family.local_world_size, family.world_size], reason));
        }
        let secret = variables.secret()?;
        Ok(Ranks { rank, world_size, local_rank, local_world_size, host, port, secret, ..Ranks::alone() })
    }
}

struct Variables<L> {
    lookup: L,
}

impl<L: Fn(&str) -> Option<String>> Variables<L> {
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.wrong(&[name], "must be a whole number".into())),
        }
    }

    fn needed(&self, name: &str, family: &Family) -> Result<usize> {
        self.number(name)?.ok_or_else(|| {
            let reason = format!("{} is set and {name} is not: a launcher sets both", family.rank);
            self.wrong(&[family.rank, name], reason)
        })
    }

    /// No rank is set: this process runs alone, unless other variables say that there are several.
    fn no_rank(&self) -> Result<Ranks> {
        match self.number("WORLD_SIZE")? {
            None | Some(1) => Ok(Ranks::alone()),
            Some(_) => {
                let known: Vec<&str> = FAMILIES.iter().map(|family| family.rank).collect();
                let reason =
                    format!("there are several ranks, and none of {} gives the number of this one", known.join(", "));
                Err(self.wrong(&["WORLD_SIZE"], reason))
            }
        }
    }

    fn port(&self) -> Result<u16> {
        let parse = |name: &str| -> Result<Option<u16>> {
            let Some(number) = self.number(name)? else { return Ok(None) };
            let port = u16::try_from(number).ok().filter(|port| *port > 0);
            port.map(Some).ok_or_else(|| self.wrong(&[name], "must be a port, 1 to 65535".into()))
        };
        if let Some(port) = parse("QWEN_MASTER_PORT")? {
            return Ok(port);
        }
        let taken = self.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        match parse("MASTER_PORT")? {
            Some(port) if taken => port.checked_add(1).ok_or_else(|| {
                let reason = "torchrun listens there, and there is no next port: set QWEN_MASTER_PORT".to_owned();
                self.wrong(&["MASTER_PORT"], reason)
            }),
            port => Ok(port.unwrap_or(DEFAULT_PORT)),
        }
    }

    /// The shared secret. Variables that are set but unusable are errors: otherwise nothing would be authenticated.
    fn secret(&self) -> Result<Option<Secret>> {
        let (text, file) = ((self.lookup)(SECRET), (self.lookup)(SECRET_FILE));
        let wrong = |name: &str, reason: String| self.wrong(&[name], reason);
        let (name, bytes) = match (text, file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(self.wrong(&[SECRET, SECRET_FILE], "both are set: unset one of them".into()));
            }
            // The replacement character for bytes that are not UTF-8 would make different secrets equal.
            (Some(text), _) if text.contains(char::REPLACEMENT_CHARACTER) => {
                return Err(wrong(SECRET, "must be UTF-8: put other bytes into a file".into()));
            }
            (Some(text), _) => (SECRET, text.into_bytes()),
            (_, Some(path)) => {
                let mut bytes = Vec::new();
                // Read more than a secret may have, so that a longer file is refused rather than truncated.
                let read = File::open(&path).and_then(|file| file.take(2 * MAX_BYTES as u64).read_to_end(&mut bytes));
                read.map_err(|error| wrong(SECRET_FILE, format!("cannot be read: {error}")))?;
                (SECRET_FILE, bytes)
            }
        };
        Secret::new(&bytes).map(Some).map_err(|reason| wrong(name, reason))
    }

    fn wrong(&self, names: &[&str], reason: String) -> Error {
        let shown = |name: &&str| match self.text(name) {
            Some(_) if *name == SECRET => format!("{name} (set)"),
            Some(value) => format!("{name}={value}"),
            None => format!("{name} (not set)"),
        };
        let variables = names.iter().map(shown).collect::<Vec<_>>().join(", ");
        Error::Launch { variables, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Ranks> {
        Ranks::from_variables(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    /// The names that an error blames.
    fn blamed(variables: &[(&str, &str)]) -> String {
        match read(variables) {
            Err(Error::Launch { variables, .. }) => variables,
            other => panic!("{other:?} instead of an error about variables"),
        }
    }

    #[test]
    fn each_launcher_is_understood() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node-0"),
            ("MASTER_PORT", "1234"),
        ];
        let ranks = read(&torchrun).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()), (3, 4, 1, 2));
        assert_eq!(ranks.address(), "node-0:1234");
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("MASTER_ADDR", "node-0"),
        ];
        let ranks = read(&mpi).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()), (2, 4, 0, 2));
        assert_eq!(ranks.address(), "node-0:29500");
        let ranks = read(&[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1")]).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()), (1, 2, 1, 2));
        let slurm = [
            ("SLURM_PROCID", "7"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_NNODES", "2"),
            ("MASTER_ADDR", "node-0"),
        ];
        let ranks = read(&slurm).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()), (7, 8, 3, 4));
        let kubernetes = [("JOB_COMPLETION_INDEX", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "job-0.service")];
        let ranks = read(&kubernetes).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()), (1, 2, 0, 1));
    }

    #[test]
    fn without_a_launcher_a_process_runs_alone() {
        assert_eq!(read(&[]).unwrap(), Ranks::alone());
        assert_eq!(read(&[("WORLD_SIZE", "1"), ("MASTER_PORT", "")]).unwrap(), Ranks::alone());
    }

    #[test]
    fn a_rank_that_programs_alone_have_too_needs_the_number_of_ranks() {
        // The script of a Slurm job; only what srun starts is a rank.
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_NNODES", "2"), ("SLURM_LOCALID", "0")];
        assert_eq!(read(&script).unwrap(), Ranks::alone());
        // A pod of a Job whose pods are independent workers.
        assert_eq!(read(&[("JOB_COMPLETION_INDEX", "3")]).unwrap(), Ranks::alone());
        let pod = read(&[("JOB_COMPLETION_INDEX", "3"), ("WORLD_SIZE", "4")]).unwrap();
        assert_eq!((pod.rank(), pod.world_size()), (3, 4));
    }

    #[test]
    fn the_innermost_launcher_counts() {
        let torchrun_in_slurm =
            [("RANK", "5"), ("WORLD_SIZE", "8"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(read(&torchrun_in_slurm).unwrap().rank(), 5);
        let mpirun_in_slurm = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(read(&mpirun_in_slurm).unwrap().rank(), 1);
    }

    #[test]
    fn the_port_of_an_agent_is_left_to_it() {
        let variables = |extra: &[(&str, &str)]| {
            let base: [(&str, &str); 3] = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "29400")];
            read(&[base.as_slice(), extra].concat()).map(|ranks| ranks.address())
        };
        let agent = ("TORCHELASTIC_USE_AGENT_STORE", "True");
        assert_eq!(variables(&[("TORCHELASTIC_USE_AGENT_STORE", "False")]).unwrap(), "127.0.0.1:29400");
        assert_eq!(variables(&[agent]).unwrap(), "127.0.0.1:29401");
        assert_eq!(variables(&[agent, ("QWEN_MASTER_PORT", "5000")]).unwrap(), "127.0.0.1:5000");
    }

    #[test]
    fn missing_and_contradictory_variables_are_named() {
        assert_eq!(blamed(&[("RANK", "0")]), "RANK=0, WORLD_SIZE (not set)");
        assert_eq!(blamed(&[("WORLD_SIZE", "2")]), "WORLD_SIZE=2");
        assert_eq!(blamed(&[("RANK", "two"), ("WORLD_SIZE", "2")]), "RANK=two");
        assert_eq!(blamed(&[("RANK", "2"), ("WORLD_SIZE", "2")]), "RANK=2, WORLD_SIZE=2");
        assert_eq!(blamed(&[("PMI_RANK", "0")]), "PMI_RANK=0, PMI_SIZE (not set)");
        let contradictory = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("WORLD_SIZE", "2")];
        assert_eq!(blamed(&contradictory), "WORLD_SIZE=2, SLURM_STEP_NUM_TASKS=4");
        let far = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_NNODES", "2")];
        assert_eq!(blamed(&far), "SLURM_NNODES=2, MASTER_ADDR (not set)");
        let port = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")];
        assert_eq!(blamed(&port), "MASTER_PORT=70000");
        let local = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "4")];
        assert_eq!(blamed(&local), "LOCAL_RANK (not set), LOCAL_WORLD_SIZE=4, WORLD_SIZE=2");
        let beyond = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "2")];
        assert_eq!(blamed(&beyond), "LOCAL_RANK=3, LOCAL_WORLD_SIZE=2, WORLD_SIZE=4");
        assert_eq!(blamed(&[("RANK", "0"), ("WORLD_SIZE", "4096")]), "RANK=0, WORLD_SIZE=4096");
    }

    fn with_secret(extra: &[(&str, &str)]) -> Result<Ranks> {
        read(&[&[("RANK", "0"), ("WORLD_SIZE", "2")], extra].concat())
    }

    #[test]
    fn the_secret_is_read_from_a_variable_or_a_file_and_never_shown() {
        let secret = "0123456789abcdef";
        let expected = Ranks::new(0, 2).unwrap().secret(secret).unwrap();
        let path = std::env::temp_dir().join(format!("qwen-test-secret-{}", std::process::id()));
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        let by_file = with_secret(&[(SECRET_FILE, path.to_str().unwrap())]);
        std::fs::write(&path, [b'x'; 3 * MAX_BYTES]).unwrap();
        let too_long = with_secret(&[(SECRET_FILE, path.to_str().unwrap())]);
        std::fs::remove_file(&path).unwrap();
        let by_variable = with_secret(&[(SECRET, secret)]).unwrap();
        assert_eq!(by_variable.secret, expected.secret);
        assert_eq!(by_file.unwrap().secret, expected.secret);
        assert!(too_long.unwrap_err().to_string().contains("16 to 4096 bytes"));
        assert_eq!(with_secret(&[]).unwrap().secret, None);
        assert!(!format!("{by_variable:?}").contains(secret));
    }

    #[test]
    fn a_secret_that_is_set_and_useless_is_an_error() {
        let text = |extra: &[(&str, &str)]| with_secret(extra).unwrap_err().to_string();
        assert!(
            text(&[(SECRET, "short secret")]).starts_with("QWEN_RANKS_SECRET (set): a secret has 16 to 4096 bytes")
        );
        assert!(text(&[(SECRET, "")]).contains("this one has 0"));
        assert!(text(&[(SECRET, "0123456789abcde\u{fffd}")]).contains("must be UTF-8"));
        assert!(
            text(&[(SECRET_FILE, "/does/not/exist")])
                .contains("QWEN_RANKS_SECRET_FILE=/does/not/exist: cannot be read")
        );
        assert!(text(&[(SECRET_FILE, "")]).contains("cannot be read"));
        assert!(text(&[(SECRET, "0123456789abcdef"), (SECRET_FILE, "x")]).contains("both are set"));
    }
}
