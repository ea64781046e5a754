//! Sizes that are products of shapes, options and counts: computed here, so that none of them overflows.
//!
//! Allocations go through [`values`] or [`checked`], which refuse; plans go through [`bytes`], which saturates, so that
//! a size beyond all memory never looks small. Both hold on 32-bit machines too.

use crate::error::{Error, Result};

/// The product of `factors`; `None` if it overflows a usize.
///
/// ```
/// use qwen_core::numerics::size;
/// assert_eq!(size::product(&[3, 5]), Some(15));
/// assert_eq!(size::product(&[3, usize::MAX]), None);
/// ```
pub fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor))
}

/// The product of `factors`, if that many elements of `element_bytes` each can be addressed.
///
/// # Errors
/// [`Error::InvalidArgument`] for `name`, with the factors, when the elements would take more than `isize::MAX` bytes.
///
/// ```
/// use qwen_core::numerics::size;
/// assert_eq!(size::checked("num_blocks", 4, &[3, 5])?, 15);
/// let error = size::checked("num_blocks", 4, &[1 << 20, usize::MAX]).unwrap_err().to_string();
/// assert!(error.starts_with("`num_blocks`: 1048576 x "), "{error}");
/// # Ok::<(), qwen_core::Error>(())
/// ```
pub fn checked(name: &'static str, element_bytes: usize, factors: &[usize]) -> Result<usize> {
    let addressable = |len: &usize| len.checked_mul(element_bytes).is_some_and(|bytes| bytes <= isize::MAX as usize);
    product(factors).filter(addressable).ok_or_else(|| {
        let factors: Vec<String> = factors.iter().map(usize::to_string).collect();
        let reason =
            format!("{} elements of {element_bytes} bytes exceed what memory can address", factors.join(" x "));
        Error::argument(name, reason)
    })
}

/// The number of f32 or u32 values of a buffer with these dimensions.
///
/// # Errors
/// As [`checked`].
pub fn values(name: &'static str, dimensions: &[usize]) -> Result<usize> {
    checked(name, size_of::<f32>(), dimensions)
}

/// That many zeros, of f32 or u32.
///
/// # Errors
/// As [`checked`], and when there is not enough memory.
pub fn zeros<T: Copy + Default>(name: &'static str, dimensions: &[usize]) -> Result<Vec<T>> {
    let len = checked(name, size_of::<T>(), dimensions)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).map_err(|e| Error::argument(name, format!("{len} elements: {e}")))?;
    zeros.resize(len, T::default());
    Ok(zeros)
}

/// Bytes of `element_bytes` for each element of these dimensions; `u64::MAX` if that overflows.
///
/// ```
/// use qwen_core::numerics::size;
/// assert_eq!(size::bytes(2, &[3, 5]), 30);
/// assert_eq!(size::bytes(2, &[usize::MAX, 1 << 20]), u64::MAX);
/// assert_eq!(size::bytes(2, &[usize::MAX, usize::MAX, 0]), 0);
/// ```
pub fn bytes(element_bytes: usize, dimensions: &[usize]) -> u64 {
    if dimensions.contains(&0) {
        return 0;
    }
    dimensions.iter().fold(element_bytes as u64, |bytes, dimension| bytes.saturating_mul(*dimension as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTREMES: [usize; 6] = [0, 1, 1 << 20, usize::MAX >> 11, usize::MAX >> 3, usize::MAX];

    #[test]
    fn a_product_is_exact_or_refused() {
        for a in EXTREMES {
            for b in EXTREMES {
                let exact = a as u128 * b as u128;
                match values("len", &[a, b]) {
                    Ok(len) => {
                        assert!(len as u128 == exact && exact.saturating_mul(4) <= isize::MAX as u128, "{a} x {b}")
                    }
                    // A product of 0 that overflows before its zero factor is refused as well: no buffer has such
                    // dimensions.
                    Err(_) => assert!(exact.saturating_mul(4) > isize::MAX as u128, "{a} x {b}"),
                }
                assert_eq!(u128::from(bytes(4, &[a, b])), exact.saturating_mul(4).min(u64::MAX.into()), "{a} x {b}");
            }
        }
    }
}
