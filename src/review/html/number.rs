//! Numbers as the page shows them.

/// A number with about three digits.
pub(super) fn number(x: f32) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.1e}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a.fract() == 0.0 => format!("{x:.0}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 1.0, -2.5, 31.26, 4000.4, 1e-5, 3e7].map(number);
        assert_eq!(
            shown,
            ["0", "1", "-2.500", "31.3", "4000", "1.0e-5", "3.0e7"]
        );
    }
}
