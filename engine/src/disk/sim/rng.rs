//! Chance from a seed.

/// A small generator (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA
/// 2014: SplitMix64). The same seed gives the same numbers for ever.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.bits() % bound }
    }

    /// True in `share` of 10,000 cases.
    pub fn chance(&mut self, share: u32) -> bool {
        self.below(10_000) < u64::from(share)
    }
}
