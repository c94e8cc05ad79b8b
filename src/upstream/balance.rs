//! Which backend takes a request: the less busy of two that are drawn at random.
//!
//! Two choices come close to the least busy of all, without every shard running to the same one at the same time
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").

/// What the choice knows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Requests that this shard has under way on it.
    pub(super) in_flight: u32,
    /// It is neither ejected nor tried already for this request.
    pub(super) is_usable: bool,
}

/// The backend to take, as its place among `candidates`; `None` when none is usable.
pub(super) fn choose(rng: &mut fastrand::Rng, count: usize, candidate: impl Fn(usize) -> Candidate) -> Option<usize> {
    if count == 1 {
        return candidate(0).is_usable.then_some(0);
    }
    let usable = (0..count).filter(|place| candidate(*place).is_usable).count();
    let nth = |n: usize| (0..count).filter(|place| candidate(*place).is_usable).nth(n);
    match usable {
        0 => None,
        1 => nth(0),
        _ => {
            let first = rng.usize(..usable);
            let second = (first + rng.usize(1..usable)) % usable;
            let (first, second) = (nth(first)?, nth(second)?);
            let (a, b) = (candidate(first).in_flight, candidate(second).in_flight);
            Some(if b < a { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, in_flight: &[u32], unusable: &[usize]) -> Option<usize> {
        let candidate = |place: usize| Candidate { in_flight: in_flight[place], is_usable: !unusable.contains(&place) };
        choose(&mut fastrand::Rng::with_seed(seed), in_flight.len(), candidate)
    }

    #[test]
    fn of_two_the_less_busy_is_taken() {
        for seed in 0..100 {
            assert_eq!(draw(seed, &[5, 4], &[]), Some(1));
        }
    }

    #[test]
    fn the_unusable_are_never_taken() {
        for seed in 0..100 {
            assert_eq!(draw(seed, &[0, 9, 0], &[0, 2]), Some(1));
            assert_eq!(draw(seed, &[0, 0], &[0, 1]), None);
            assert_eq!(draw(seed, &[0], &[0]), None);
        }
    }

    #[test]
    fn equals_share_evenly() {
        let mut taken = [0; 4];
        for seed in 0..4000 {
            taken[draw(seed, &[1; 4], &[]).expect("all are usable")] += 1;
        }
        assert!(taken.iter().all(|count| (800..1200).contains(count)), "{taken:?}");
    }

    #[test]
    fn the_busiest_is_never_taken() {
        for seed in 0..1000 {
            assert_ne!(draw(seed, &[1, 2, 3, 9], &[]), Some(3));
        }
    }
}
