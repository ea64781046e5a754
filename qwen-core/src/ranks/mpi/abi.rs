//! The functions of an MPI library as its binary interface has them, behind one interface for both families.
//!
//! A handle (of a communicator, a datatype, a request) is a pointer in Open MPI and a number in MPICH, so the same
//! function has two types. [`Table`] is generic over that type; [`Calls`] hides it, with handles as bits. Constants are
//! addresses of exported objects in Open MPI and fixed numbers in MPICH ([`Constants`]).

use std::ffi::{c_char, c_int, c_void};

use libloading::os::unix::Library;

/// A handle's bits.
pub(super) type Bits = usize;

/// Room for an `MPI_Status`, of 20 bytes in MPICH and 24 in Open MPI. Only the library reads it.
#[repr(C, align(16))]
pub(super) struct Status([u8; 128]);

impl Status {
    pub(super) fn new() -> Self {
        Status([0; 128])
    }
}

/// The values that `mpi.h` gives to names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants {
    /// `MPI_COMM_WORLD`.
    pub(super) world: Bits,
    /// `MPI_BYTE`.
    pub(super) byte: Bits,
    /// `MPI_INFO_NULL`.
    pub(super) info_null: Bits,
    /// `MPI_ERRORS_RETURN`.
    pub(super) errors_return: Bits,
    /// `MPI_COMM_TYPE_SHARED`.
    pub(super) shared: c_int,
}

/// `MPI_THREAD_SERIALIZED`, in both families: several threads call MPI, one at a time.
pub(super) const SERIALIZED: c_int = 2;

/// `MPI_SUCCESS`, in both families.
pub(super) const SUCCESS: c_int = 0;

/// More than `MPI_MAX_ERROR_STRING` and `MPI_MAX_LIBRARY_VERSION_STRING` of both families.
pub(super) const TEXT: usize = 16 << 10;

impl Constants {
    /// Those of MPICH and what shares its binary interface: Intel MPI, MVAPICH, Cray MPICH.
    pub(super) const MPICH: Constants = Constants {
        world: 0x4400_0000,
        byte: 0x4c00_010d,
        info_null: 0x1c00_0000,
        errors_return: 0x5400_0001,
        shared: 1,
    };

    /// Those of Open MPI: addresses in the library. `None` if it is not Open MPI.
    pub(super) fn open_mpi(library: &Library) -> Option<Constants> {
        // SAFETY: only the address of the symbol is taken, nothing is read or called.
        let address = |name: &[u8]| unsafe { library.get::<*mut c_void>(name) }.ok().map(|found| found.as_raw_ptr());
        Some(Constants {
            world: address(b"ompi_mpi_comm_world\0")?.expose_provenance(),
            byte: address(b"ompi_mpi_byte\0")?.expose_provenance(),
            info_null: address(b"ompi_mpi_info_null\0")?.expose_provenance(),
            errors_return: address(b"ompi_mpi_errors_return\0")?.expose_provenance(),
            shared: 0,
        })
    }
}

/// A handle of one family.
pub(super) trait Handle: Copy + 'static {
    fn of(bits: Bits) -> Self;
    fn bits(self) -> Bits;
}

/// MPICH's handles.
impl Handle for c_int {
    fn of(bits: Bits) -> Self {
        bits as u32 as c_int
    }

    fn bits(self) -> Bits {
        self as u32 as Bits
    }
}

/// Open MPI's handles.
impl Handle for *mut c_void {
    fn of(bits: Bits) -> Self {
        std::ptr::with_exposed_provenance_mut(bits)
    }

    fn bits(self) -> Bits {
        self.expose_provenance()
    }
}

/// A handle that a function writes or updates: the bits follow when this is dropped.
struct Slot<'a, H: Handle> {
    bits: &'a mut Bits,
    handle: H,
}

impl<'a, H: Handle> Slot<'a, H> {
    fn new(bits: &'a mut Bits) -> Self {
        Slot { handle: H::of(*bits), bits }
    }

    fn pointer(&mut self) -> *mut H {
        &raw mut self.handle
    }
}

impl<H: Handle> Drop for Slot<'_, H> {
    fn drop(&mut self) {
        *self.bits = self.handle.bits();
    }
}

/// Declares [`Table`], how it is looked up, and the interface without the type of handles. Arguments are as in the MPI
/// standard; `H` stands for a handle, and a handle that the function writes or updates is a `&mut Bits`.
macro_rules! functions {
    ($($name:ident = $symbol:literal ($($given:ident: $kind:ident),*);)*) => {
        /// The functions of a library whose handles are `H`.
        pub(super) struct Table<H> {
            $($name: unsafe extern "C" fn($(functions!(@foreign $kind)),*) -> c_int,)*
        }

        impl<H: Handle> Table<H> {
            /// Look the functions up.
            ///
            /// # Safety
            /// The library is an MPI library whose handles are `H`.
            ///
            /// # Errors
            /// When one is not there.
            pub(super) unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: in such a library the functions of these names have these types, by the MPI standard.
                unsafe { Ok(Table { $($name: *library.get(concat!($symbol, "\0").as_bytes())?,)* }) }
            }
        }

        /// The functions with handles as bits. Each returns an MPI error code.
        ///
        /// # Safety
        /// As the MPI standard asks of the function's arguments: pointers are valid for what the function reads or
        /// writes, buffers of requests until the request is complete; and calls are made one at a time, between
        /// `MPI_Init_thread` and `MPI_Finalize` where the standard says so.
        #[expect(clippy::too_many_arguments, reason = "they are MPI's own")]
        pub(super) trait Calls: Send {
            $(unsafe fn $name(&self, $($given: functions!(@bits $kind)),*) -> c_int;)*
        }

        impl<H: Handle> Calls for Table<H> {
            $(unsafe fn $name(&self, $($given: functions!(@bits $kind)),*) -> c_int {
                // SAFETY: as the caller says; handles have the family's own type, and a slot lives until the call is over.
                unsafe { (self.$name)($(functions!(@pass $kind $given)),*) }
            })*
        }
    };
    (@foreign int) => { c_int };
    (@foreign ints) => { *mut c_int };
    (@foreign text) => { *mut c_char };
    (@foreign args) => { *mut c_void };
    (@foreign source) => { *const c_void };
    (@foreign target) => { *mut c_void };
    (@foreign status) => { *mut Status };
    (@foreign handle) => { H };
    (@foreign handles) => { *mut H };
    (@bits int) => { c_int };
    (@bits ints) => { &mut c_int };
    (@bits text) => { &mut [c_char; TEXT] };
    (@bits args) => { *mut c_void };
    (@bits source) => { *const u8 };
    (@bits target) => { *mut u8 };
    (@bits status) => { &mut Status };
    (@bits handle) => { Bits };
    (@bits handles) => { &mut Bits };
    (@pass text $given:ident) => { $given.as_mut_ptr() };
    (@pass source $given:ident) => { $given.cast() };
    (@pass target $given:ident) => { $given.cast() };
    (@pass handle $given:ident) => { H::of($given) };
    (@pass handles $given:ident) => { Slot::<H>::new($given).pointer() };
    (@pass $kind:ident $given:ident) => { $given };
}

functions! {
    library_version = "MPI_Get_library_version" (text: text, len: ints);
    initialized = "MPI_Initialized" (flag: ints);
    finalized = "MPI_Finalized" (flag: ints);
    init_thread = "MPI_Init_thread" (argc: args, argv: args, wanted: int, provided: ints);
    query_thread = "MPI_Query_thread" (provided: ints);
    finalize = "MPI_Finalize" ();
    error_string = "MPI_Error_string" (code: int, text: text, len: ints);
    set_errhandler = "MPI_Comm_set_errhandler" (comm: handle, handler: handle);
    comm_dup = "MPI_Comm_dup" (comm: handle, copy: handles);
    comm_split_type = "MPI_Comm_split_type" (comm: handle, kind: int, key: int, info: handle, part: handles);
    comm_free = "MPI_Comm_free" (comm: handles);
    comm_rank = "MPI_Comm_rank" (comm: handle, rank: ints);
    comm_size = "MPI_Comm_size" (comm: handle, size: ints);
    isend = "MPI_Isend" (buffer: source, len: int, kind: handle, to: int, tag: int, comm: handle, request: handles);
    irecv = "MPI_Irecv" (buffer: target, len: int, kind: handle, from: int, tag: int, comm: handle, request: handles);
    iprobe = "MPI_Iprobe" (from: int, tag: int, comm: handle, flag: ints, status: status);
    get_count = "MPI_Get_count" (status: status, kind: handle, count: ints);
    test = "MPI_Test" (request: handles, flag: ints, status: status);
    ibarrier = "MPI_Ibarrier" (comm: handle, request: handles);
}
