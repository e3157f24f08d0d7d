//! Random bytes of the system: for ids, keys and tokens. Must not go on without them.

use std::io;

use dispatch_core::hex;
use rustix::rand::{GetRandomFlags, getrandom};

/// # Errors
/// What the system says when it has none.
pub fn bytes<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// So many random bytes in hexadecimal.
///
/// # Errors
/// As [`bytes`].
pub fn hex<const BYTES: usize>() -> io::Result<String> {
    Ok(hex::hex(&bytes::<BYTES>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_asked_for_and_never_twice_the_same() {
        assert_eq!(hex::<16>().unwrap().len(), 32);
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
    }
}
