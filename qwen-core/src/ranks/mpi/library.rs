//! The machine's MPI library, opened at run time: a safe interface to the few functions that ranks need.
//!
//! Nothing of MPI is needed for building. Which family the library belongs to is read from its symbols and its version
//! text. Messages own their buffers: one that is given up while the library may still use its buffer leaks it
//! ([`Message`]). All calls go through `&mut Library`, one at a time, and there is one `Library` in a process.

use std::ffi::{c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::os::unix::{Library as Opened, RTLD_GLOBAL, RTLD_NOW};

use super::abi::{Bits, Calls, Constants, SERIALIZED, SUCCESS, Status, TEXT, Table};

/// What went wrong, in words.
pub(super) type Reason = String;

/// Whether this process has used the library: MPI starts once in a process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// An MPI library that is initialised, and a communicator of our own over all of its processes.
pub(super) struct Library {
    calls: Box<dyn Calls>,
    constants: Constants,
    comm: Bits,
    version: String,
    // Otherwise the program has initialised it, and ends it.
    is_ours: bool,
    // Keeps the functions loaded.
    _opened: ManuallyDrop<Opened>,
}

/// Where this process is among those that MPI started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ranks) struct Place {
    pub(in crate::ranks) rank: usize,
    pub(in crate::ranks) size: usize,
    /// Among the processes that share memory with this one.
    pub(in crate::ranks) local_rank: usize,
    pub(in crate::ranks) local_size: usize,
}

/// A message that is under way. Dropping it before it is complete leaks its buffer, which the library may still use.
#[derive(Debug)]
pub(super) struct Message {
    request: Bits,
    buffer: ManuallyDrop<Buffer>,
}

#[derive(Debug)]
enum Buffer {
    Sent(#[expect(dead_code, reason = "it is only kept, for the library to read")] Arc<Vec<u8>>),
    Received(Vec<u8>),
    Nothing,
}

/// How an attempt to open a library ended.
#[derive(Debug)]
pub(super) enum OpenError {
    /// There is no such library, or it is no MPI library.
    Absent(Reason),
    /// It is one, and cannot be used.
    Unusable(Reason),
}

impl Library {
    /// Open the library of this name, or without a name the one that the program is linked with, and initialise it,
    /// unless the program has.
    pub(super) fn start(name: Option<&str>) -> Result<Self, OpenError> {
        // Open MPI's own plugins look for its symbols among the global ones. The library stays loaded: it may have
        // threads and handlers of its own.
        // SAFETY: a library runs its initialisers, which is what the user asks for by the name of an MPI library.
        let opened = unsafe { Opened::open(name, RTLD_NOW | RTLD_GLOBAL) };
        let opened = ManuallyDrop::new(opened.map_err(|error| OpenError::Absent(words(&error)))?);
        // SAFETY: only whether the symbol is there matters.
        if unsafe { opened.get::<*const ()>(b"MPI_Init_thread\0") }.is_err() {
            return Err(OpenError::Absent(format!("{} is no MPI library", name.unwrap_or("the program"))));
        }
        let (calls, constants, version) = Self::functions(&opened).map_err(OpenError::Unusable)?;
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(OpenError::Unusable(
                "this process has used MPI before, and MPI starts once in a process".into(),
            ));
        }
        let mut library = Library { calls, constants, comm: 0, version, is_ours: false, _opened: opened };
        library.initialize().map_err(OpenError::Unusable)?;
        Ok(library)
    }

    /// The functions, constants and version of a library.
    fn functions(opened: &Opened) -> Result<(Box<dyn Calls>, Constants, String), Reason> {
        let no_mpi = |error: libloading::Error| format!("it lacks a function of MPI 3: {}", words(&error));
        if let Some(constants) = Constants::open_mpi(opened) {
            // SAFETY: handles are pointers in Open MPI, which exports the objects that they point to.
            let table = unsafe { Table::<*mut c_void>::load(opened) };
            let calls: Box<dyn Calls> = Box::new(table.map_err(no_mpi)?);
            let version = version(calls.as_ref());
            return Ok((calls, constants, version));
        }
        // SAFETY: the version text is asked for without any handle, so this is right for every family.
        let calls: Box<dyn Calls> = Box::new(unsafe { Table::<c_int>::load(opened) }.map_err(no_mpi)?);
        let version = version(calls.as_ref());
        // What shares MPICH's binary interface says so by one of these names.
        let known = ["MPICH", "Intel(R) MPI", "MVAPICH"];
        // The library of MPI 5's common interface has MPICH's text and other handles.
        // SAFETY: only whether the symbol is there matters.
        let is_common = unsafe { opened.get::<*const ()>(b"MPI_Abi_get_fortran_booleans\0") }.is_ok();
        match known.iter().any(|name| version.contains(name)) && !is_common {
            true => Ok((calls, Constants::MPICH, version)),
            false => Err(format!("it is neither Open MPI nor MPICH, and calls itself `{}`", version.trim())),
        }
    }

    fn initialize(&mut self) -> Result<(), Reason> {
        let (mut initialized, mut finalized, mut provided) = (0, 0, 0);
        // SAFETY: these may be called at any time, and write one number.
        let codes = unsafe { [self.calls.initialized(&mut initialized), self.calls.finalized(&mut finalized)] };
        codes.into_iter().try_for_each(|code| self.check("MPI_Initialized", code))?;
        if finalized != 0 {
            return Err("the program has ended it already, and MPI starts once in a process".into());
        }
        if initialized == 0 {
            let none = std::ptr::null_mut();
            // SAFETY: MPI is not initialised, and null stands for the absent arguments of the program.
            let code = unsafe { self.calls.init_thread(none, none, SERIALIZED, &mut provided) };
            self.check("MPI_Init_thread", code)?;
            self.is_ours = true;
            // SAFETY: MPI is initialised, and both handles are constants of the library.
            let code = unsafe { self.calls.set_errhandler(self.constants.world, self.constants.errors_return) };
            self.check("MPI_Comm_set_errhandler", code)?;
        } else {
            // SAFETY: MPI is initialised.
            let code = unsafe { self.calls.query_thread(&mut provided) };
            self.check("MPI_Query_thread", code)?;
        }
        if provided < SERIALIZED {
            return Err(format!(
                "it provides thread level {provided}, and {SERIALIZED} (MPI_THREAD_SERIALIZED) is needed: an engine has \
                 a thread of its own"
            ));
        }
        // A communicator of our own keeps our messages apart from those of the program.
        let mut comm = 0;
        // SAFETY: MPI is initialised, and the handles are constants of the library or were made by it.
        let codes = unsafe { [self.calls.comm_dup(self.constants.world, &mut comm)] };
        codes.into_iter().try_for_each(|code| self.check("MPI_Comm_dup", code))?;
        // SAFETY: as above.
        let code = unsafe { self.calls.set_errhandler(comm, self.constants.errors_return) };
        self.check("MPI_Comm_set_errhandler", code)?;
        self.comm = comm;
        Ok(())
    }

    /// How the library calls itself: the first line, without what follows a comma.
    pub(super) fn version(&self) -> String {
        let first = self.version.lines().next().and_then(|line| line.split(',').next()).unwrap_or_default();
        first.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Where this process is. All processes call it.
    pub(super) fn place(&mut self) -> Result<Place, Reason> {
        let mut local = 0;
        let Constants { shared, info_null, .. } = self.constants;
        let (rank, size) = self.rank_and_size(self.comm)?;
        // SAFETY: our communicator and constants of the library.
        let code = unsafe { self.calls.comm_split_type(self.comm, shared, rank as c_int, info_null, &mut local) };
        self.check("MPI_Comm_split_type", code)?;
        let (local_rank, local_size) = self.rank_and_size(local)?;
        // SAFETY: the communicator that was just made.
        let code = unsafe { self.calls.comm_free(&mut local) };
        self.check("MPI_Comm_free", code)?;
        Ok(Place { rank, size, local_rank, local_size })
    }

    fn rank_and_size(&self, comm: Bits) -> Result<(usize, usize), Reason> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: a communicator of the library.
        let codes = unsafe { [self.calls.comm_rank(comm, &mut rank), self.calls.comm_size(comm, &mut size)] };
        codes.into_iter().try_for_each(|code| self.check("MPI_Comm_rank", code))?;
        let number = |found: c_int| usize::try_from(found).map_err(|_| format!("MPI_Comm_rank: it says {found}"));
        Ok((number(rank)?, number(size)?))
    }

    /// Begin to send bytes to a rank.
    pub(super) fn send(&mut self, to: usize, tag: u16, bytes: Arc<Vec<u8>>) -> Result<Message, Reason> {
        let (len, mut request) = (length(bytes.len())?, 0);
        let (byte, comm) = (self.constants.byte, self.comm);
        // SAFETY: the bytes are not changed, and the message keeps them until it is complete, or leaks them.
        let code = unsafe { self.calls.isend(bytes.as_ptr(), len, byte, to as c_int, tag.into(), comm, &mut request) };
        let message = Message { request, buffer: ManuallyDrop::new(Buffer::Sent(bytes)) };
        self.check("MPI_Isend", code).map(|()| message)
    }

    /// Begin to receive bytes from a rank, at most as many as `bytes` has, which they replace.
    pub(super) fn receive(&mut self, from: usize, tag: u16, mut bytes: Vec<u8>) -> Result<Message, Reason> {
        let (len, mut request) = (length(bytes.len())?, 0);
        let (byte, comm) = (self.constants.byte, self.comm);
        let target = bytes.as_mut_ptr();
        // SAFETY: there is room for `len` bytes, which the message keeps untouched until it is complete, or leaks.
        let code = unsafe { self.calls.irecv(target, len, byte, from as c_int, tag.into(), comm, &mut request) };
        let message = Message { request, buffer: ManuallyDrop::new(Buffer::Received(bytes)) };
        self.check("MPI_Irecv", code).map(|()| message)
    }

    /// The length of the next message of a rank, if it has arrived.
    pub(super) fn probe(&mut self, from: usize, tag: u16) -> Result<Option<usize>, Reason> {
        let (mut flag, mut status) = (0, Status::new());
        // SAFETY: it writes the flag, and the status if there is a message.
        let code = unsafe { self.calls.iprobe(from as c_int, tag.into(), self.comm, &mut flag, &mut status) };
        self.check("MPI_Iprobe", code)?;
        if flag == 0 { Ok(None) } else { self.count(&mut status).map(Some) }
    }

    fn count(&self, status: &mut Status) -> Result<usize, Reason> {
        let mut count = 0;
        // SAFETY: the status of a message of bytes.
        let code = unsafe { self.calls.get_count(status, self.constants.byte, &mut count) };
        self.check("MPI_Get_count", code)?;
        usize::try_from(count).map_err(|_| format!("MPI_Get_count: a message of {count} bytes"))
    }

    /// The bytes of a message once it is complete: those received, and none for one that was sent.
    pub(super) fn test(&mut self, message: &mut Message) -> Result<Option<Vec<u8>>, Reason> {
        let (mut flag, mut status) = (0, Status::new());
        // SAFETY: the request of a message that is not complete: completing it takes its buffer.
        let code = unsafe { self.calls.test(&mut message.request, &mut flag, &mut status) };
        self.check("MPI_Test", code)?;
        if flag == 0 {
            return Ok(None);
        }
        match std::mem::replace(&mut *message.buffer, Buffer::Nothing) {
            Buffer::Received(mut bytes) => {
                bytes.truncate(self.count(&mut status)?);
                Ok(Some(bytes))
            }
            Buffer::Sent(_) | Buffer::Nothing => Ok(Some(Vec::new())),
        }
    }

    /// Begin a barrier: it is complete when all processes have begun it.
    pub(super) fn barrier(&mut self) -> Result<Message, Reason> {
        let mut request = 0;
        // SAFETY: our communicator.
        let code = unsafe { self.calls.ibarrier(self.comm, &mut request) };
        self.check("MPI_Ibarrier", code)?;
        Ok(Message { request, buffer: ManuallyDrop::new(Buffer::Nothing) })
    }

    /// End MPI, unless the program does.
    pub(super) fn finalize(mut self) {
        // SAFETY: MPI is initialised; no message is complete later than this, and no call follows.
        let _ = unsafe { self.calls.comm_free(&mut self.comm) };
        if self.is_ours {
            // SAFETY: as above.
            let _ = unsafe { self.calls.finalize() };
        }
    }

    /// Turn an error code into the library's words.
    fn check(&self, op: &str, code: c_int) -> Result<(), Reason> {
        if code == SUCCESS {
            return Ok(());
        }
        let words = text(|text, len| {
            // SAFETY: it writes a text that is shorter than `TEXT`.
            unsafe { self.calls.error_string(code, text, len) }
        });
        Err(format!("{op}: {}", words.unwrap_or_else(|| format!("error {code}"))))
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("version", &self.version())
            .field("is_ours", &self.is_ours)
            .finish_non_exhaustive()
    }
}

/// What the system said.
fn words(error: &libloading::Error) -> Reason {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn version(calls: &dyn Calls) -> String {
    // SAFETY: it may be called at any time, and writes a text that is shorter than `TEXT`.
    text(|text, len| unsafe { calls.library_version(text, len) }).unwrap_or_default()
}

/// The text that a function writes.
fn text(write: impl FnOnce(&mut [c_char; TEXT], &mut c_int) -> c_int) -> Option<String> {
    let (mut text, mut len) = (Box::new([0; TEXT]), 0);
    if write(&mut text, &mut len) != SUCCESS {
        return None;
    }
    let bytes: Vec<u8> = text.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A length as MPI counts.
fn length(len: usize) -> Result<c_int, Reason> {
    c_int::try_from(len).map_err(|_| format!("{len} bytes are too many for one message"))
}
