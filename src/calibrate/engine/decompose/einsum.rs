//! Einsum without dots: the engine broadcasts what they stand for only where every term has them.

use std::collections::BTreeSet;

use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{attr_s, string_attr};
use crate::onnx::proto::NodeProto;

const DOTS: &str = "...";

/// `...d,dn->...n` becomes `abd,dn->abn` where x has three axes. Operands whose dots stand for fewer axes get the last of
/// them, which is how they are broadcast. A size of 1 beside a larger one is left to the engine.
pub(super) fn without_dots(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let given = attr_s(node, "equation").unwrap_or("").replace(' ', "");
    if !given.contains(DOTS) {
        return Ok(Outcome::Kept);
    }
    let shapes = node.input.iter().map(|name| b.scope.shape(name));
    let shapes: Option<Vec<Vec<usize>>> = shapes.collect();
    let Some(equation) = shapes.and_then(|shapes| written_out(&given, &shapes)) else {
        return Ok(Outcome::Kept);
    };
    let mut plain = node.clone();
    plain.attribute = vec![string_attr("equation", &equation)];
    b.push(plain);
    Ok(Outcome::Replaced)
}

/// The equation with a letter for each axis that dots stand for; `None` if it is malformed or one of them is broadcast.
fn written_out(equation: &str, shapes: &[Vec<usize>]) -> Option<String> {
    let (terms, result) = equation.split_once("->")?;
    let used: BTreeSet<char> = equation.chars().collect();
    let mut free = ('a'..='z').chain('A'..='Z').filter(|l| !used.contains(l));
    let terms: Vec<&str> = terms.split(',').collect();
    let hidden = |term: &str, shape: &Vec<usize>| match term.contains(DOTS) {
        true => shape.len().checked_sub(term.len() - DOTS.len()),
        false => Some(0),
    };
    let counts: Option<Vec<usize>> = terms
        .iter()
        .zip(shapes)
        .map(|(t, s)| hidden(t, s))
        .collect();
    let counts = counts.filter(|counts| counts.len() == terms.len())?;
    let most = counts.iter().copied().max()?;
    let letters: String = free.by_ref().take(most).collect();
    let mut sizes: Vec<Option<usize>> = vec![None; most];
    let mut written = Vec::new();
    for ((term, shape), count) in terms.iter().zip(shapes).zip(counts) {
        let first = term.find(DOTS).unwrap_or(0);
        for (at, size) in sizes[most - count..].iter_mut().enumerate() {
            let found = shape[first + at];
            if size.is_some_and(|size| size != found) {
                return None;
            }
            *size = Some(found);
        }
        written.push(term.replace(DOTS, letters.get(most - count..)?));
    }
    let result = result.replace(DOTS, &letters);
    Some(format!("{}->{result}", written.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_become_the_axes_they_stand_for() {
        let of = |equation, shapes: &[&[usize]]| {
            let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
            written_out(equation, &shapes)
        };
        let equal = |written: Option<String>, expected: &str| {
            assert_eq!(written.as_deref(), Some(expected));
        };
        equal(of("nd,...d->...n", &[&[4, 3], &[2, 5, 3]]), "nd,abd->abn");
        equal(
            of("...d,...n->...dn", &[&[2, 5, 3], &[5, 4]]),
            "abd,bn->abdn",
        );
        equal(of("...d,d->...", &[&[3], &[3]]), "d,d->");
        assert_eq!(of("...d,...n->...dn", &[&[2, 3], &[1, 4]]), None);
        assert_eq!(of("...bd,d->...b", &[&[3], &[3]]), None);
    }
}
