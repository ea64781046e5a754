//! The emulated mma, ldmatrix and its transposed form against the PTX ISA: emulator/mma_layouts.cpp puts each value
//! where the document specifies it. Without this, a mistake shared by kernels and emulator would go unnoticed.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use libloading::Library;

/// The kernel's parameters, as declared in mma_layouts.cpp.
#[repr(C)]
struct Layouts {
    a: *const u16,
    b: *const u16,
    c: *mut f32,
    transposed: *mut f32,
}

/// Bits of a 16-bit format.
type Round = fn(f32) -> u16;

type Emulate = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *const c_void,
    c_int,
    *mut c_char,
    c_ulong,
) -> c_int;

/// The product of 16 x 16 and 16 x 8 with plain fragments, and with fragments from tile loads.
fn product(emulate: Emulate, kernel: &CStr, a: &[u16; 256], b: &[u16; 128], reverse: bool) -> [[f32; 128]; 2] {
    let mut out = [[f32::NAN; 128]; 2];
    let [c, transposed] = &mut out;
    let params = Layouts { a: a.as_ptr(), b: b.as_ptr(), c: c.as_mut_ptr(), transposed: transposed.as_mut_ptr() };
    let mut error = [0 as c_char; 512];
    // SAFETY: the arrays are as long as the kernel expects; the message is truncated to the buffer.
    let failed = unsafe {
        let (grid, block) = ([1, 1, 1], [32, 1, 1]);
        let params = (&raw const params).cast();
        let (message, room) = (error.as_mut_ptr(), error.len() as c_ulong);
        emulate(kernel.as_ptr(), grid.as_ptr(), block.as_ptr(), 0, params, c_int::from(reverse), message, room)
    };
    // SAFETY: the message ends with a zero.
    assert_eq!(failed, 0, "{:?}", unsafe { CStr::from_ptr(error.as_ptr()) });
    out
}

#[test]
fn twins_have_the_layouts_of_the_ptx_isa() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mma-layouts-{}.so", std::process::id()));
    let built = Command::new("sh").arg(folder.join("build.sh")).arg(&path).arg(folder.join("mma_layouts.cpp")).output();
    match built {
        Err(error) => return eprintln!("skipped: no shell: {error}"),
        Ok(built) if matches!(built.status.code(), Some(126 | 127)) => return eprintln!("skipped: no g++"),
        Ok(built) => assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr)),
    }
    // SAFETY: the library does nothing when it is loaded, and its function has this type.
    let (library, emulate) = unsafe {
        let library = Library::new(&path).unwrap();
        let emulate: Emulate = *library.get(b"emulate").unwrap();
        (library, emulate)
    };
    // Small irregular numbers: exact in each format, and so are their sums.
    let value = |i: usize, j: usize| ((i * i * 5 + i * j * 3 + j * j * 7 + j) % 17) as f32 - 8.0;
    let a = std::array::from_fn(|at| value(at / 16, at % 16));
    let b = std::array::from_fn(|at| value(at / 8 + 20, at % 8 + 3));
    let expected: [f32; 128] = std::array::from_fn(|at| (0..16).map(|k| a[at / 8 * 16 + k] * b[k * 8 + at % 8]).sum());
    let halves: [(&CStr, Round); 2] = [
        (c"mma_layouts_bf16", |value| bf16::from_f32(value).to_bits()),
        (c"mma_layouts_f16", |value| f16::from_f32(value).to_bits()),
    ];
    for (kernel, half) in halves {
        for reverse in [false, true] {
            let found = product(emulate, kernel, &a.map(half), &b.map(half), reverse);
            assert_eq!(found, [expected; 2], "{kernel:?}, reverse: {reverse}");
        }
    }
    drop(library);
    let _ = std::fs::remove_file(path);
}
