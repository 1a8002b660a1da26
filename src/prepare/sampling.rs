//! Which rows of a file are used.

use std::path::Path;

/// The numbers of `count` of `all` rows, evenly spread: `⌊i · all / count⌋`.
pub(super) fn spread(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    // 128 bits, so that no product overflows.
    (0..count).map(move |i| (i as u128 * all as u128 / count as u128) as usize)
}

/// What is said where not all rows are used and nobody asked for so few.
pub(super) fn sampled(path: &Path, count: usize, all: usize, what: &str) -> String {
    format!(
        "{count} of the {all} {what} of {} are used, evenly spread; a number of samples asks for more or fewer",
        path.display()
    )
}

/// The extension of `path` in lower case.
pub(super) fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_evenly() {
        let of = |all, count| spread(all, count).collect::<Vec<_>>();
        assert_eq!(of(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(of(3, 5), [0, 1, 2]);
        assert_eq!(of(7, 3), [0, 2, 4]);
        assert!(of(0, 3).is_empty());
    }
}
