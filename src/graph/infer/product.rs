//! Products: matrices, einsums, convolutions, and the pools that share their arithmetic of windows.

use std::collections::BTreeMap;

use super::call::Call;
use super::elementwise::broadcast;
use super::fact::{Dim, Dims};
use crate::onnx::node::{attr_ints, attr_s};

/// shape(y) = [.., m, n] of a: [.., m, k], b: [.., k, n]; the axes before are broadcast
pub(super) fn matmul(call: &Call) -> Option<Dims> {
    of_matrices(call.dims(0)?, call.dims(1)?)
}

/// The same, where b is the fourth input.
pub(super) fn quantized_matmul(call: &Call) -> Option<Dims> {
    of_matrices(call.dims(0)?, call.dims(3)?)
}

/// The same of factors whose matrix is stored transposed (`transA`, `transB`), or with its rows before the axes of the batch
/// (`transBatchA`, `transBatchB`): [m, …, k], or [k, …, m] with both.
pub(super) fn fused_matmul(call: &Call) -> Option<Dims> {
    let factor = |slot: usize, transposed: &str, rows_first: &str| {
        let mut dims = call.dims(slot)?.to_vec();
        let rank = dims.len();
        if rank >= 2 && call.flag(rows_first, false) {
            dims[..rank - 1].rotate_left(1);
        }
        if rank >= 2 && call.flag(transposed, false) {
            dims.swap(rank - 2, rank - 1);
        }
        Some(dims)
    };
    let a = factor(0, "transA", "transBatchA")?;
    of_matrices(&a, &factor(1, "transB", "transBatchB")?)
}

fn of_matrices(a: &[Dim], b: &[Dim]) -> Option<Dims> {
    match (a, b) {
        (_, []) | ([], _) => None,
        ([_], [_]) => Some(vec![]),
        ([_], [rows @ .., _, n]) => Some([rows, &[*n]].concat()),
        ([rows @ .., _], [_]) => Some(rows.to_vec()),
        ([left @ .., m, _], [right @ .., _, n]) => {
            let mut dims = broadcast(left, right)?;
            dims.extend([*m, *n]);
            Some(dims)
        }
    }
}

/// shape(y) = [m, n] of a: [m, k] or, with `transA`, [k, m], and b: [k, n] or, with `transB`, [n, k]
pub(super) fn gemm(call: &Call) -> Option<Dims> {
    let side = |slot: usize, transposed: &str, keep: usize| {
        let flip = usize::from(call.flag(transposed, false));
        *call.dims(slot)?.get(keep ^ flip)?
    };
    Some(vec![side(0, "transA", 0), side(1, "transB", 1)])
}

/// The size of each letter behind `->`; what the dots of the terms stand for is broadcast
pub(super) fn einsum(call: &Call) -> Option<Dims> {
    let inputs: Vec<Option<&[Dim]>> = (0..call.count()).map(|slot| call.dims(slot)).collect();
    einsum_of(attr_s(call.node, "equation")?, &inputs)
}

fn einsum_of(equation: &str, inputs: &[Option<&[Dim]>]) -> Option<Dims> {
    const DOTS: &str = "...";
    let equation = equation.replace(' ', "");
    let (terms, output) = equation.split_once("->")?;
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    let mut dots = Some(Vec::new());
    if terms.split(',').count() != inputs.len() {
        return None;
    }
    for (term, dims) in terms.split(',').zip(inputs) {
        let letters = term.replace(DOTS, "");
        let Some(dims) = dims else {
            letters
                .chars()
                .for_each(|l| _ = sizes.entry(l).or_default());
            dots = dots.filter(|_| !term.contains(DOTS));
            continue;
        };
        let hidden = dims.len().checked_sub(letters.len())?;
        let start = term.find(DOTS).unwrap_or(letters.len());
        if hidden > 0 && !term.contains(DOTS) {
            return None;
        }
        let (before, rest) = dims.split_at(start);
        let (under, after) = rest.split_at(hidden);
        dots = match dots {
            Some(dots) => Some(broadcast(&dots, under)?),
            None => None,
        };
        for (letter, &size) in letters.chars().zip(before.iter().chain(after)) {
            let known = sizes.entry(letter).or_insert(size);
            if known.zip(size).is_some_and(|(a, b)| a != b) {
                return None;
            }
            *known = known.or(size);
        }
    }
    let of = |letters: &str| {
        let sizes = letters.chars().map(|l| sizes.get(&l).copied());
        sizes.collect::<Option<Dims>>()
    };
    match output.split_once(DOTS) {
        Some((before, after)) => Some([of(before)?, dots?, of(after)?].concat()),
        None => of(output),
    }
}

/// shape(y) = [n, filters, (s + pads − dilation (k − 1) − 1) / stride + 1, …] of x: [n, c, s, …], w: [filters, c / g, k, …]
pub(super) fn conv(call: &Call) -> Option<Dims> {
    let (x, w) = (call.dims(0), call.dims(1));
    let rank = x.or(w)?.len();
    let spatial = rank.checked_sub(2)?;
    if w.is_some_and(|w| w.len() != rank) {
        return None;
    }
    let kernel: Dims = (0..spatial).map(|at| w?[at + 2]).collect();
    let mut dims = vec![x.and_then(|x| x[0]), w.and_then(|w| w[0])];
    dims.extend(windows(call, x, &kernel)?);
    Some(dims)
}

/// shape(y) = [n, c, (s + pads − dilation (k − 1) − 1) / stride + 1, …] of x: [n, c, s, …], with `kernel_shape`
pub(super) fn pool(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let kernel = attr_ints(call.node, "kernel_shape");
    let size = |at: usize| usize::try_from(*kernel?.get(at)?).ok();
    let kernel: Dims = (0..x.len().checked_sub(2)?).map(size).collect();
    let mut dims = x[..2].to_vec();
    dims.extend(windows(call, Some(x), &kernel)?);
    Some(dims)
}

/// shape(y) = [n, c, 1, …]
pub(super) fn global_pool(call: &Call) -> Option<Dims> {
    let mut dims = call.dims(0)?.to_vec();
    dims.get_mut(2..)?.fill(Some(1));
    Some(dims)
}

/// shape(y) = [n, ?, …]: how large the rest is depends on too many attributes
pub(super) fn conv_transpose(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let mut dims = vec![None; x.len()];
    *dims.first_mut()? = x[0];
    Some(dims)
}

/// How often the window fits along each spatial axis; not known where padding is automatic or rounded up.
/// `None` if it does not fit once.
fn windows(call: &Call, x: Option<&[Dim]>, kernel: &[Dim]) -> Option<Dims> {
    let automatic = attr_s(call.node, "auto_pad").unwrap_or("NOTSET");
    if !matches!(automatic, "NOTSET" | "VALID" | "") || call.flag("ceil_mode", false) {
        return Some(vec![None; kernel.len()]);
    }
    let attribute = |name: &str, at: usize, default: i64| {
        let given = attr_ints(call.node, name).and_then(|list| list.get(at));
        usize::try_from(given.copied().unwrap_or(default)).ok()
    };
    let mut dims = Vec::new();
    for (at, &k) in kernel.iter().enumerate() {
        let (Some(size), Some(k)) = (x.and_then(|x| x[at + 2]), k) else {
            dims.push(None);
            continue;
        };
        let padded = size.checked_add(attribute("pads", at, 0)?)?;
        let padded = padded.checked_add(attribute("pads", at + kernel.len(), 0)?)?;
        let reach = attribute("dilations", at, 1)?.checked_mul(k.checked_sub(1)?)?;
        let room = padded.checked_sub(reach.checked_add(1)?)?;
        dims.push(Some(room / attribute("strides", at, 1)?.max(1) + 1));
    }
    Some(dims)
}

#[cfg(test)]
mod tests {
    use super::super::fact::known;
    use super::*;

    fn einsum(equation: &str, shapes: &[&[usize]]) -> Option<Dims> {
        let dims: Vec<Dims> = shapes.iter().map(|s| known(s)).collect();
        let dims: Vec<Option<&[Dim]>> = dims.iter().map(|d| Some(d.as_slice())).collect();
        einsum_of(equation, &dims)
    }

    #[test]
    fn einsum_with_and_without_dots() {
        let same = [&[2, 3, 4, 5][..], &[2, 3, 5, 6]];
        let fewer = [&[2, 3, 4, 5][..], &[3, 5, 6]];
        let one = [&[2, 3, 4, 5][..], &[5, 6]];
        for (equation, shapes, expected) in [
            ("...ij, ...jk -> ...ik", &same, &[2, 3, 4, 6][..]),
            ("...ij,...jk->...ik", &fewer, &[2, 3, 4, 6]),
            ("...ij,jk->...ik", &one, &[2, 3, 4, 6]),
            ("i...j,jk->i...k", &one, &[2, 3, 4, 6]),
            ("...ij,...jk->ik...", &same, &[4, 6, 2, 3]),
            ("...ij,...jk->...ik", &[&[1, 4, 5], &[2, 5, 6]], &[2, 4, 6]),
            ("ij,jk->ki", &[&[2, 3], &[3, 4]], &[4, 2]),
        ] {
            assert_eq!(
                einsum(equation, shapes),
                Some(known(expected)),
                "{equation}"
            );
        }
        assert_eq!(einsum("...ii->...i", &[&[2, 3, 3]]), Some(known(&[2, 3])));
        // No output, sizes that differ, wrong ranks, an input too many.
        assert_eq!(einsum("...ij,...jk", &same), None);
        assert_eq!(einsum("ij,jk->ik", &[&[2, 3], &[2, 4]]), None);
        assert_eq!(einsum("...ij,jk->...ik", &[&[4, 5], &[2, 5, 6]]), None);
        assert_eq!(einsum("...ij,...jk->...ik", &[&[4], &[5, 6]]), None);
        assert_eq!(einsum("ij->ji", &[&[4, 5], &[5, 6]]), None);
    }

    #[test]
    fn einsum_of_inputs_that_are_partly_known() {
        let a: &[Dim] = &[Some(2), None];
        assert_eq!(
            einsum_of("ij,jk->ik", &[Some(a), None]),
            Some(vec![Some(2), None])
        );
        assert_eq!(
            einsum_of("ij,jk->jk", &[Some(a), Some(&[Some(3), None])]),
            Some(vec![Some(3), None])
        );
        assert_eq!(einsum_of("...j,j->...", &[None, Some(a)]), None);
    }
}
