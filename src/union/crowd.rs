//! When the memory of dropped nodes goes back to the system: whenever half of them have gone.

use std::sync::atomic::{AtomicUsize, Ordering};

/// So many drops go by between two counts of what is left.
const STEP: usize = 1 << 10;

/// How many nodes come and go.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    gone: AtomicUsize,
    /// The most that were counted since memory was last given back.
    most: AtomicUsize,
}

impl Crowd {
    /// Notes that `many` were dropped; `left` counts the others. Whether so many have gone that it is
    /// worth a search for free memory.
    pub(super) fn leave(&self, many: usize, left: impl FnOnce() -> usize) -> bool {
        let before = self.gone.fetch_add(many, Ordering::Relaxed);
        if before / STEP == (before + many) / STEP {
            return false;
        }
        let left = left();
        let most = self.most.fetch_max(left, Ordering::Relaxed).max(left);
        let is_worth_it = most >= STEP && left <= most / 2;
        // Of several threads one is told.
        is_worth_it
            && self
                .most
                .compare_exchange(most, left, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_whenever_half_have_gone() {
        let crowd = Crowd::default();
        let mut left = 100_000;
        let mut given_back = Vec::new();
        while left > 0 {
            left -= 10;
            if crowd.leave(10, || left) {
                given_back.push(left);
            }
        }
        assert!(given_back.len() > 5, "{given_back:?}");
        assert!(given_back.windows(2).all(|pair| pair[1] <= pair[0] / 2));
        assert!(given_back.last().is_some_and(|last| *last < STEP));
    }

    #[test]
    fn who_stays_much_the_same_gives_nothing_back() {
        let crowd = Crowd::default();
        let given_back = (0..100_000).filter(|turn| crowd.leave(1, || 5000 + turn % 100));
        assert_eq!(given_back.count(), 0);
    }
}
