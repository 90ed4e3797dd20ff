//! Varints and the cursor that reads them: the smallest parts of the format.
//!
//! Nothing here knows what the numbers mean.

/// Bytes that cannot be what they should be. The caller drops the block and counts it as damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends `value` as LEB128: seven bits a byte, low ones first, the top bit set on all but the last.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    if value < 0x80 {
        out.push(value as u8);
        return;
    }
    let mut bytes = [0_u8; 10];
    let mut n = 0;
    while value >= 0x80 {
        bytes[n] = value as u8 | 0x80;
        value >>= 7;
        n += 1;
    }
    bytes[n] = value as u8;
    out.extend_from_slice(&bytes[..=n]);
}

/// Signed to unsigned, so that small numbers of either sign become small: 0, -1, 1, -2, 2, ...
#[inline]
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// The step from `from` to `to`, modulo 2^64, so that any two values have one.
#[inline]
pub(crate) fn delta(from: u64, to: u64) -> u64 {
    zigzag(to.wrapping_sub(from) as i64)
}

/// Takes the step back: `undelta(from, delta(from, to)) == to`.
#[inline]
pub(crate) fn undelta(from: u64, step: u64) -> u64 {
    from.wrapping_add(unzigzag(step) as u64)
}

/// Reads from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline]
    pub(crate) fn u32_le(&mut self) -> Result<u32, Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*first))
    }

    #[inline]
    pub(crate) fn u64_le(&mut self) -> Result<u64, Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*first))
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (first, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(first)
    }

    /// A varint.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        match self.0 {
            [first, rest @ ..] if *first < 0x80 => {
                self.0 = rest;
                Ok(u64::from(*first))
            }
            [first, second, rest @ ..] if *second < 0x80 => {
                self.0 = rest;
                Ok(u64::from(*first & 0x7f) | u64::from(*second) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            // The tenth byte has room for one bit only.
            if i == 9 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A varint that must fit 32 bits.
    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    /// A varint that counts things or bytes, at most `max` of them.
    pub(crate) fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        match usize::try_from(self.varint()?) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(Malformed),
        }
    }

    /// A varint length and as many bytes.
    pub(crate) fn prefixed(&mut self) -> Result<Cursor<'a>, Malformed> {
        let n = self.count(self.0.len())?;
        self.take(n).map(Cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_value_comes_back(value: u64, shift in 0_u32..64, from: u64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put(&mut out, value);
            put(&mut out, 7);
            let mut cursor = Cursor(&out);
            prop_assert_eq!(cursor.varint(), Ok(value));
            prop_assert_eq!(cursor.varint(), Ok(7));
            prop_assert!(cursor.is_empty());
            prop_assert_eq!(undelta(from, delta(from, value)), value);
        }
    }

    #[test]
    fn the_largest_steps_come_back() {
        for (from, to) in [
            (0, u64::MAX),
            (u64::MAX, 0),
            (1 << 63, 0),
            (0, 1 << 63),
            (1, 1 << 62),
        ] {
            assert_eq!(undelta(from, delta(from, to)), to);
        }
        assert_eq!(zigzag(i64::MIN), u64::MAX);
        assert_eq!(unzigzag(u64::MAX), i64::MIN);
    }

    #[test]
    fn overlong_and_cut_varints_are_malformed() {
        assert_eq!(Cursor(&[0x80; 4]).varint(), Err(Malformed));
        assert_eq!(Cursor(&[0xff; 11]).varint(), Err(Malformed));
        let mut too_big = [0xff; 10];
        too_big[9] = 2;
        assert_eq!(Cursor(&too_big).varint(), Err(Malformed));
        assert_eq!(Cursor(&[]).varint(), Err(Malformed));
    }
}
