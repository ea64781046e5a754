//! Sizes in the checked arithmetic of [`qwen_core::numerics::size`]: every product of sizes in this crate is computed
//! here, so that an overflow is an error, also on 32-bit machines, and never a small array. Also the memory that an
//! array takes.

use qwen_core::numerics::size;
use qwen_core::{Error, Result};

/// Arrays consist of whole words of this many bytes, the widest access of a kernel.
const ARRAY_ALIGN: usize = 16;

/// Drivers allocate memory in pages; arrays of up to half a page share one.
const PAGE: u64 = 2 << 20;

/// The product of `factors`: at most `isize::MAX`, which is more than any machine can address.
///
/// # Errors
/// [`Error::Unsupported`] with `what` and the factors.
pub(crate) fn product(what: &str, factors: &[usize]) -> Result<usize> {
    if factors.contains(&0) {
        return Ok(0);
    }
    let product = size::checked("size", 1, factors).ok();
    product.filter(|product| *product <= isize::MAX as usize - ARRAY_ALIGN).ok_or_else(|| {
        let factors: Vec<String> = factors.iter().map(ToString::to_string).collect();
        Error::unsupported(what, format!("its size, {}, exceeds what a machine can address", factors.join(" x ")))
    })
}

/// `size` as a kernel parameter: below 2^31, so that no index overflows while it is incremented.
pub(crate) fn kernel_size(size: usize) -> Option<u32> {
    i32::try_from(size).ok().map(i32::unsigned_abs)
}

/// Bytes of an array that holds `bytes`, which come from [`product`]: whole words of 16 bytes, and at least one.
pub(crate) fn array_bytes(bytes: usize) -> usize {
    bytes.max(ARRAY_ALIGN).next_multiple_of(ARRAY_ALIGN)
}

/// Bytes of device memory that an array of `bytes` takes; `bytes` comes from [`product`].
pub(crate) fn taken_bytes(bytes: usize) -> u64 {
    match array_bytes(bytes) as u64 {
        small if small <= PAGE / 2 => small,
        large => large.next_multiple_of(PAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_without_a_number_are_refused_with_their_factors() {
        assert_eq!(product("x", &[3, 4, 5]).unwrap(), 60);
        assert_eq!(product("x", &[]).unwrap(), 1);
        assert_eq!(product("x", &[usize::MAX, usize::MAX, 0]).unwrap(), 0);
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            let error = product("a store", &[huge, 4096]).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("a store") && text.contains(&format!("{huge} x 4096")), "{text}");
        }
        assert!(product("x", &[isize::MAX as usize]).is_err());
    }

    #[test]
    fn the_largest_products_have_arrays_and_pages() {
        let largest = isize::MAX as usize - ARRAY_ALIGN;
        assert_eq!(product("x", &[largest]).unwrap(), largest);
        assert!(array_bytes(largest) >= largest && taken_bytes(largest) >= largest as u64);
        assert_eq!((array_bytes(0), array_bytes(17), taken_bytes(17)), (16, 32, 32));
        assert_eq!((taken_bytes(1 << 20), taken_bytes((1 << 20) + 1)), (1 << 20, 2 << 20));
    }

    #[test]
    fn kernels_count_below_half_of_their_range() {
        assert_eq!(kernel_size(0), Some(0));
        assert_eq!(kernel_size(i32::MAX as usize), Some(i32::MAX as u32));
        assert_eq!(kernel_size(1 << 31), None);
        assert_eq!(kernel_size(usize::MAX), None);
    }
}
