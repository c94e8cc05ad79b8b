//! Masking (RFC 6455 §5.3): each byte of a client's payload, with the bytes of a key in turn.

/// Masks bytes, or unmasks them: both are the same.
///
/// Eight bytes a step, which the compiler makes as wide as the machine's registers.
#[inline]
pub fn unmask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (eights, rest) = bytes.as_chunks_mut::<8>();
    for eight in eights {
        *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

/// The key for what follows so many bytes.
#[inline]
pub(super) fn key_after(mut key: [u8; 4], bytes: usize) -> [u8; 4] {
    key.rotate_left(bytes & 3);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn wide_steps_are_the_bytes_of_the_key_in_turn(
            bytes in prop::collection::vec(any::<u8>(), 0..200), key: [u8; 4], at in 0_usize..200,
        ) {
            let masked: Vec<u8> = bytes.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let mut whole = bytes.clone();
            unmask(&mut whole, key);
            prop_assert_eq!(&whole, &masked);
            let mut parted = bytes.clone();
            let (left, right) = parted.split_at_mut(at.min(bytes.len()));
            unmask(left, key);
            unmask(right, key_after(key, left.len()));
            prop_assert_eq!(&parted, &masked);
        }
    }
}
