//! Chance that can be had again.

/// Numbers that follow from a seed, which isn't zero (xorshift).
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Any seed does, and two that are near each other give numbers that aren't.
    pub(crate) fn new(seed: u64) -> Self {
        let mixed = (seed ^ (seed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = Self(mixed | 1);
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        (self.next() >> 11) as usize % sides
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.roll(of.len())])
    }
}

/// `length` bytes that only this tag has.
pub(crate) fn bytes(tag: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(tag);
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        data.extend_from_slice(&dice.next().to_le_bytes());
    }
    data.truncate(length);
    data
}
