//! Axes under operators that leave the elements in their order, or lay values over each other.

use super::{Axes, Axis, Factor};

/// Adjacent factors that are one part of an axis as one.
pub(super) fn merged(axis: &[Factor]) -> Axis {
    let mut all: Axis = Vec::with_capacity(axis.len());
    for &factor in axis {
        match (all.last_mut(), factor.origin) {
            (Some(last), Some((symbol, start, step))) => match last.origin {
                Some((s, from, wide)) if s == symbol && wide == step * factor.size => {
                    last.size *= factor.size;
                    last.origin = Some((s, from + start, step));
                }
                _ => all.push(factor),
            },
            (Some(last), None) if last.origin.is_none() => last.size *= factor.size,
            _ => all.push(factor),
        }
    }
    all
}

/// The axes of the same elements, in the same order, in another shape. `None` if the shape cuts a factor in parts that
/// do not divide it.
pub(super) fn reshaped(axes: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    if let Some(kept) = kept(axes, shape) {
        return Some(kept);
    }
    let mut factors: Vec<Factor> = axes
        .iter()
        .flatten()
        .filter(|f| f.size != 1)
        .copied()
        .collect();
    factors.reverse();
    let mut result = Vec::with_capacity(shape.len());
    for &size in shape {
        let (mut axis, mut left) = (Axis::new(), size);
        while left > 1 {
            let factor = factors.pop()?;
            if left % factor.size == 0 {
                left /= factor.size;
                axis.push(factor);
            } else if factor.size % left == 0 {
                let inner = factor.size / left;
                let part = |size, start: bool, times: usize| Factor {
                    size,
                    origin: factor
                        .origin
                        .map(|(s, from, step)| (s, if start { from } else { 0 }, step * times)),
                };
                axis.push(part(left, true, inner));
                factors.push(part(inner, false, 1));
                left = 1;
            } else {
                return None;
            }
        }
        if axis.is_empty() {
            axis.push(Factor::plain(size));
        }
        result.push(axis);
    }
    factors.is_empty().then_some(result)
}

/// The axes where the shape differs in axes of size 1 alone: then those keep what they are, too.
fn kept(axes: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    let sizes: Vec<usize> = axes.iter().map(|axis| size(axis)).collect();
    if sizes == shape {
        return Some(axes.to_vec());
    }
    let large = |sizes: &[usize]| {
        sizes
            .iter()
            .copied()
            .filter(|n| *n != 1)
            .collect::<Vec<_>>()
    };
    if large(&sizes) != large(shape) {
        return None;
    }
    let mut rest = axes.iter().filter(|axis| size(axis) != 1);
    // Axes of one element in front stay in front: a batch of one row.
    let mut ones = axes.iter().take_while(|axis| size(axis) == 1);
    let axis = |&n: &usize| match n {
        1 => ones
            .next()
            .cloned()
            .unwrap_or_else(|| vec![Factor::plain(1)]),
        _ => rest.next().cloned().unwrap_or_default(),
    };
    Some(shape.iter().map(axis).collect())
}

pub(super) fn size(axis: &[Factor]) -> usize {
    axis.iter().map(|f| f.size).product()
}

impl Axes {
    /// Two axes laid over each other, element by element; one of size 1 is repeated.
    pub(super) fn over(&mut self, a: &Axis, b: &Axis) -> Axis {
        let known = |axis: &Axis| axis.iter().any(|f| f.origin.is_some());
        match (size(a), size(b)) {
            (1, n) if n != 1 => return b.clone(),
            (n, 1) if n != 1 => return a.clone(),
            (n, m) if n != m => return a.clone(),
            _ => {}
        }
        let alike = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.size == b.size);
        if !alike {
            return if known(a) { a.clone() } else { b.clone() };
        }
        let factors = a.iter().zip(b).map(|(a, b)| {
            if let (Some((s, from, step)), Some((t, start, other))) = (a.origin, b.origin)
                && step == other
                && a.size > 1
            {
                // Element `from` of s is element `start` of t.
                self.join(s, t, start as i64 - from as i64);
            }
            match a.origin {
                Some(_) => *a,
                None => *b,
            }
        });
        factors.collect()
    }

    /// Values laid over each other, aligned at the last axis.
    pub(super) fn broadcast(&mut self, values: &[Vec<Axis>]) -> Vec<Axis> {
        let rank = values.iter().map(Vec::len).max().unwrap_or(0);
        let mut all: Vec<Axis> = vec![vec![Factor::plain(1)]; rank];
        for value in values {
            let skip = rank - value.len();
            for (i, axis) in value.iter().enumerate() {
                let both = self.over(&all[skip + i].clone(), axis);
                all[skip + i] = both;
            }
        }
        all
    }
}
