//! What rekeys have put in place of IKE SAs that are gone: whoever names one that a discarded fork touched does not know of the rekeys after that.

use model::IkeSpi;
use std::collections::{HashMap, VecDeque};

/// IKE SAs that are remembered: those of the last minutes where there are very many.
const MOST: usize = 1 << 16;
/// Rekeys over which one is followed.
const STEPS: usize = 1024;

/// Successors of IKE SAs that are gone, the last ones only.
#[derive(Default)]
pub(crate) struct Lineage {
    successors: HashMap<IkeSpi, IkeSpi>,
    order: VecDeque<IkeSpi>,
}

impl Lineage {
    /// `old` is gone, and `new` has taken its place.
    pub fn note(&mut self, old: IkeSpi, new: IkeSpi) {
        if self.successors.insert(old, new).is_none() {
            self.order.push_back(old);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.successors.remove(&oldest);
        }
    }

    /// The last of what took the place of `spi`. `here`: the successor of one that is still known.
    pub fn latest(&self, spi: IkeSpi, here: impl Fn(IkeSpi) -> Option<IkeSpi>) -> IkeSpi {
        let next = |spi: &IkeSpi| here(*spi).or_else(|| self.successors.get(spi).copied());
        let all = std::iter::successors(Some(spi), next);
        all.take(STEPS).last().unwrap_or(spi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ike_sa_is_followed_over_those_that_are_gone_and_those_that_are_here() {
        let mut lineage = Lineage::default();
        let spi = |n: u64| IkeSpi(n);
        lineage.note(spi(1), spi(2));
        lineage.note(spi(3), spi(4));
        let here = |of: IkeSpi| (of == spi(2)).then_some(spi(3));
        assert_eq!(lineage.latest(spi(1), here), spi(4));
        assert_eq!(lineage.latest(spi(3), here), spi(4));
        assert_eq!(lineage.latest(spi(4), here), spi(4));
        assert_eq!(lineage.latest(spi(9), here), spi(9));
    }

    #[test]
    fn it_is_bounded_and_no_circle_holds_it() {
        let mut lineage = Lineage::default();
        for n in 0..MOST as u64 + 10 {
            lineage.note(IkeSpi(n), IkeSpi(n + 1));
        }
        assert_eq!((lineage.successors.len(), lineage.order.len()), (MOST, MOST));
        assert_eq!(lineage.latest(IkeSpi(3), |_| None), IkeSpi(3), "too long ago");
        let circle = |spi: IkeSpi| Some(IkeSpi(spi.0 ^ 1));
        let _ = lineage.latest(IkeSpi(8), circle);
    }
}
