//! Einsum with an ellipsis, spelled out for the engine.

use std::collections::BTreeMap;

use super::build::Build;
use super::known::Known;
use super::{EngineError, Outcome};
use crate::onnx::node::{attr_s, string_attr};
use crate::onnx::proto::NodeProto;

const DOTS: &str = "...";

/// `Einsum("...ij,...jk->...ik")` with letters in place of the dots, which the engine takes for one axis.
pub(super) fn einsum(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let shapes: Option<Vec<&[usize]>> = node.input.iter().map(|x| b.scope.shape(x)).collect();
    let equation = attr_s(node, "equation").zip(shapes);
    let spelled = equation.and_then(|(equation, shapes)| spelled_out(equation, &shapes));
    let Some(spelled) = spelled else {
        return Ok(Outcome::Kept);
    };
    let mut plain = node.clone();
    plain.attribute = vec![string_attr("equation", &spelled)];
    b.push(plain);
    Ok(Outcome::Replaced)
}

/// The shape of what an Einsum gives.
pub(super) fn einsum_shape(known: Known<'_>) -> Option<Vec<usize>> {
    let inputs = 0..known.node.input.len();
    let shapes: Vec<&[usize]> = inputs
        .map(|slot| known.shape(slot))
        .collect::<Option<_>>()?;
    let equation = attr_s(known.node, "equation")?.replace(' ', "");
    let equation = spelled_out(&equation, &shapes).unwrap_or(equation);
    let (terms, output) = equation.split_once("->")?;
    let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
    for (term, shape) in terms.split(',').zip(&shapes) {
        if term.len() != shape.len() {
            return None;
        }
        for (letter, &size) in term.chars().zip(*shape) {
            if *sizes.entry(letter).or_insert(size) != size {
                return None;
            }
        }
    }
    let size = |letter| sizes.get(&letter).copied();
    output.chars().map(size).collect()
}

/// The equation without dots. `None` if there are none, if the output is not stated, or if an axis of one element under
/// the dots stands for more: letters do not stretch.
fn spelled_out(equation: &str, shapes: &[&[usize]]) -> Option<String> {
    let equation = equation.replace(' ', "");
    let (inputs, output) = equation
        .split_once("->")
        .filter(|_| equation.contains(DOTS))?;
    let terms: Vec<&str> = inputs.split(',').collect();
    if terms.len() != shapes.len() {
        return None;
    }
    // What the dots of a term stand for.
    let mut hidden: Vec<&[usize]> = Vec::new();
    for (term, shape) in terms.iter().zip(shapes) {
        let (before, after) = term.split_once(DOTS).unwrap_or((term, ""));
        let end = shape.len().checked_sub(after.len())?;
        let sizes = shape.get(before.len()..end)?;
        if !term.contains(DOTS) && !sizes.is_empty() {
            return None;
        }
        hidden.push(sizes);
    }
    let longest = hidden.iter().max_by_key(|sizes| sizes.len())?;
    if !hidden.iter().all(|sizes| longest.ends_with(sizes)) {
        return None;
    }
    let letters = ('A'..='Z').chain('a'..='z');
    let free: String = letters
        .filter(|c| !equation.contains(*c))
        .take(longest.len())
        .collect();
    if free.len() < longest.len() {
        return None;
    }
    let spelled: Vec<String> = terms
        .iter()
        .zip(&hidden)
        .map(|(term, sizes)| term.replace(DOTS, &free[free.len() - sizes.len()..]))
        .collect();
    let output = output.replace(DOTS, &free);
    Some(format!("{}->{output}", spelled.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_become_letters() {
        let spelled = |equation: &str, shapes: &[&[usize]]| spelled_out(equation, shapes);
        let same = [&[2, 3, 4, 5][..], &[2, 3, 5, 6]];
        let cases = [
            ("...ij, ...jk -> ...ik", &same, "ABij,ABjk->ABik"),
            ("...Aj,...jk->...Ak", &same, "BCAj,BCjk->BCAk"),
            (
                "...ij,...jk->...ik",
                &[&[2, 3, 4, 5][..], &[3, 5, 6]],
                "ABij,Bjk->ABik",
            ),
            (
                "...ij,jk->...ik",
                &[&[2, 3, 4, 5][..], &[5, 6]],
                "ABij,jk->ABik",
            ),
            (
                "i...j,jk->i...k",
                &[&[2, 3, 4, 5][..], &[5, 6]],
                "iABj,jk->iABk",
            ),
        ];
        for (equation, shapes, expected) in cases {
            assert_eq!(spelled(equation, shapes).as_deref(), Some(expected));
        }
        assert_eq!(spelled("...ii->...i", &[&[2, 3, 3]]).unwrap(), "Aii->Ai");
        // Nothing to do, no output, stretched axes, wrong ranks.
        assert_eq!(spelled("ij,jk->ik", &[&[2, 3], &[3, 4]]), None);
        assert_eq!(spelled("...ij,...jk", &same), None);
        assert_eq!(
            spelled("...ij,...jk->...ik", &[&[1, 4, 5], &[2, 5, 6]]),
            None
        );
        assert_eq!(spelled("...ij,jk->...ik", &[&[4, 5], &[2, 5, 6]]), None);
        assert_eq!(spelled("...ij,...jk->...ik", &[&[4], &[5, 6]]), None);
    }
}
