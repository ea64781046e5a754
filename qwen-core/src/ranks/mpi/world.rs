//! The processes that MPI started, as this process sees them: which library it is, where this process is, and how MPI
//! ends.
//!
//! `MPI_Finalize` waits for all processes, and a process that ends without it makes its launcher end the others. So the
//! last handle of a [`World`] waits for the others first: without limit if the model was shut down, since they may still
//! be busy with something else, and otherwise only for a moment. If they do not come, MPI is left as it is, and the
//! launcher ends all processes.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::super::failure::lock;
use super::library::{Library, OpenError, Place, Reason};
use super::pause::Pause;
use crate::error::{Error, Result};

/// Names the library to open.
const LIBRARY: &str = "QWEN_MPI_LIBRARY";

/// How long to wait for the others at the end if the model was not shut down.
const GOODBYE: Duration = Duration::from_secs(2);

/// Sessions before tags are used again. Tags stay far below 32767, which all libraries allow.
const SESSIONS: u16 = 4096;

/// Tags that a session uses.
pub(super) const TAGS: u16 = 3;

/// Variables that launchers of MPI programs set: Open MPI, PMIx, MPICH and Intel MPI, Cray's PALS, Flux.
const LAUNCHED: [&str; 6] =
    ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD", "PALS_RANKID", "FLUX_TASK_RANK"];

#[cfg(not(target_os = "macos"))]
const OPEN_MPI: &[&str] = &["libmpi.so.40"];
#[cfg(target_os = "macos")]
const OPEN_MPI: &[&str] = &["libmpi.40.dylib", "/opt/homebrew/lib/libmpi.40.dylib"];
// Debian has a name of its own for MPICH's.
#[cfg(not(target_os = "macos"))]
const MPICH: &[&str] = &["libmpi.so.12", "libmpich.so.12"];
#[cfg(target_os = "macos")]
const MPICH: &[&str] = &["libmpi.12.dylib", "/opt/homebrew/lib/libmpi.12.dylib"];
#[cfg(not(target_os = "macos"))]
const EITHER: &[&str] = &["libmpi.so"];
#[cfg(target_os = "macos")]
const EITHER: &[&str] = &["libmpi.dylib", "/opt/homebrew/lib/libmpi.dylib"];

/// MPI as it runs in this process. Handles of it are [`Arc`]s.
#[derive(Debug)]
pub(in crate::ranks) struct World {
    // `None` once it has ended.
    library: Mutex<Option<Library>>,
    version: String,
    place: Place,
    sessions: AtomicU16,
    is_orderly: AtomicBool,
}

impl World {
    /// The processes that the launcher started with this one; `None` without a launcher.
    pub(in crate::ranks) fn get(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Arc<World>>> {
        static CURRENT: Mutex<Weak<World>> = Mutex::new(Weak::new());
        let mut current = lock(&CURRENT);
        if let Some(world) = current.upgrade() {
            return Ok(Some(world));
        }
        if !LAUNCHED.iter().any(|name| lookup(name).is_some()) {
            return Ok(None);
        }
        let library = open(&lookup)?;
        let world = Arc::new(Self::start(library).map_err(unusable)?);
        world.check_launcher(&lookup)?;
        *current = Arc::downgrade(&world);
        Ok(Some(world))
    }

    fn start(mut library: Library) -> std::result::Result<World, Reason> {
        let place = library.place()?;
        let version = library.version();
        let (sessions, is_orderly) = (AtomicU16::new(0), AtomicBool::new(false));
        Ok(World { library: Mutex::new(Some(library)), version, place, sessions, is_orderly })
    }

    /// Processes that are started by the launcher of another MPI do not find each other: each is alone.
    fn check_launcher(&self, lookup: &impl Fn(&str) -> Option<String>) -> Result<()> {
        for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
            let Some(said) = lookup(name).and_then(|value| value.trim().parse::<usize>().ok()) else { continue };
            if said != self.place.size {
                let (version, found) = (&self.version, self.place.size);
                let reason = format!(
                    "the launcher has started that many processes, and the library ({version}) finds {found}: use the \
                     launcher of that library, or set {LIBRARY} to the launcher's own"
                );
                return Err(Error::Launch { variables: format!("{name}={said}"), reason });
            }
        }
        Ok(())
    }

    pub(in crate::ranks) fn place(&self) -> Place {
        self.place
    }

    /// The first tag of a new session. All processes begin their sessions in the same order.
    pub(super) fn next_tags(&self) -> u16 {
        self.sessions.fetch_add(1, Ordering::SeqCst) % SESSIONS * TAGS
    }

    /// The model was shut down: the processes meet at the end.
    pub(super) fn set_orderly(&self) {
        self.is_orderly.store(true, Ordering::SeqCst);
    }

    /// Call the library.
    pub(super) fn call<T>(
        &self,
        call: impl FnOnce(&mut Library) -> std::result::Result<T, Reason>,
    ) -> std::result::Result<T, Reason> {
        let mut library: MutexGuard<'_, Option<Library>> = lock(&self.library);
        library.as_mut().map_or_else(|| Err("MPI has ended".into()), call)
    }

    /// Wait until all processes are here. False if some are not in time.
    fn meet(&self) -> std::result::Result<bool, Reason> {
        let mut barrier = self.call(Library::barrier)?;
        let (started, mut pause) = (Instant::now(), Pause::for_the_next());
        while self.call(|library| library.test(&mut barrier))?.is_none() {
            if !self.is_orderly.load(Ordering::SeqCst) && started.elapsed() > GOODBYE {
                return Ok(false);
            }
            pause.wait();
        }
        Ok(true)
    }

    /// Whether all processes end MPI now. A barrier is also complete for one that comes after another has given up
    /// waiting; a second barrier is not.
    fn ends_together(&self) -> std::result::Result<bool, Reason> {
        Ok(self.meet()? && self.meet()?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.ends_together().unwrap_or(false)
            && let Some(library) = lock(&self.library).take()
        {
            library.finalize();
        }
    }
}

fn unusable(reason: Reason) -> Error {
    Error::unsupported("the MPI library of this machine", reason)
}

/// Open the library that is meant: the named one, the program's own, or the first that is installed.
fn open(lookup: &impl Fn(&str) -> Option<String>) -> Result<Library> {
    let named = lookup(LIBRARY).filter(|name| !name.is_empty());
    let names = match &named {
        Some(name) => vec![Some(name.clone())],
        None => {
            let by_open_mpi = lookup("OMPI_COMM_WORLD_SIZE").or_else(|| lookup("PMIX_RANK")).is_some();
            let families = if by_open_mpi { [OPEN_MPI, MPICH, EITHER] } else { [MPICH, OPEN_MPI, EITHER] };
            let names = families.concat().into_iter().map(|name| Some(name.to_owned()));
            // A program that is linked with MPI has chosen.
            std::iter::once(None).chain(names).collect()
        }
    };
    let mut reasons = Vec::new();
    for name in &names {
        match Library::start(name.as_deref()) {
            Ok(library) => return Ok(library),
            Err(OpenError::Absent(reason)) if name.is_some() => reasons.push(reason),
            Err(OpenError::Absent(_)) => {}
            Err(OpenError::Unusable(reason)) => return Err(unusable(reason)),
        }
    }
    let advice = match named {
        Some(_) => format!("correct {LIBRARY}, or unset it to look for an installed one"),
        None => format!(
            "install Open MPI (Debian: openmpi-bin, Fedora: openmpi, Homebrew: open-mpi) or MPICH (mpich), the one whose \
             mpirun starts the ranks, or set {LIBRARY} to the library's path"
        ),
    };
    Err(Error::unsupported("MPI", format!("{}: {advice}", reasons.join("; "))))
}
