//! One quota among the nodes that ask for it.

/// The part of the quota that is given without being asked for, so that the first operations of an idle node are served.
const IDLE_PART: u64 = 10;

/// Divides `total` among nodes that want `wanted`: each gets an equal part of a tenth, the rest goes by demand, the smallest
/// first, and what nobody wants is divided equally. The sum is at most `total`.
pub fn split(total: u64, wanted: &[u64]) -> Vec<u64> {
    let count = wanted.len() as u64;
    if count == 0 {
        return Vec::new();
    }
    let base = total / IDLE_PART / count;
    let mut given = vec![base; wanted.len()];
    let mut left = total - base * count;
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|at| (wanted[*at], *at));
    for (done, at) in order.iter().enumerate() {
        let fair = left / (count - done as u64);
        let more = wanted[*at].saturating_sub(given[*at]).min(fair);
        given[*at] += more;
        left -= more;
    }
    let even = left / count;
    for share in &mut given {
        *share += even;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_asks_gets_and_who_does_not_keeps_a_part() {
        assert_eq!(split(1000, &[0]), [1000]);
        assert_eq!(split(1000, &[0, 0]), [500, 500]);
        let given = split(1000, &[5000, 0]);
        assert!(given[0] >= 900 && given[1] >= 50, "{given:?}");
        let given = split(1000, &[5000, 5000]);
        assert_eq!(given, [500, 500]);
        let given = split(900, &[100, 9000, 9000]);
        assert!(given[0] >= 100 && given[1] == given[2] && given[1] >= 395, "{given:?}");
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice_and_nobody_starves(total in 0u64..1_000_000, wanted in prop::collection::vec(0u64..2_000_000, 1..20)) {
            let given = split(total, &wanted);
            prop_assert!(given.iter().sum::<u64>() <= total);
            // What is left over is less than one for each node.
            prop_assert!(given.iter().sum::<u64>() + (wanted.len() as u64) > total);
            let least = total / IDLE_PART / wanted.len() as u64;
            prop_assert!(given.iter().all(|share| *share >= least));
        }
    }
}
