//! Normalizations written out in elementary operators, found from their square root:
//!
//! ```text
//! d = x − mean(x)                  (LayerNormalization; for RMSNormalization d = x)
//! v = mean(d²)                     Pow(d, 2) or Mul(d, d); or mean(x²) − mean(x)²
//! r = Sqrt(v + ε)                  or Sqrt(v) + ε, Max(v, ε), Clip, Pow(v + ε, ±0.5)
//! y = d / r · γ + β                d · Reciprocal(r), d · (1 / r); γ on d, on 1 / r, or on the quotient
//! y = x · (γ / r) + (β − mean(x) · (γ / r))        the form of a batch normalization, written by Keras
//! ```
//!
//! Factors and terms stand in either order; β may be missing; Identity, Dropout and Cast may stand anywhere in
//! between; x − mean(x) and mean(x) may be computed more than once. What is read outside of the norm between γ
//! and y makes it a near miss, because it would change with γ.

use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::op;

use super::moments::{
    buried_mean_of_squares, centred_of, exponent, mean_of, variance_of, without_epsilon,
};
use super::norm::{Norm, NormKind, NormParam, Outcome, param};
use super::transparent::{passage, see_through};

/// Matches a norm at its square root, a Sqrt or Pow. One of anything but a mean of squares is no candidate.
pub(super) fn match_at(view: &View, node: NodeId) -> Option<Outcome> {
    let inverse = match view.op(node) {
        op::Sqrt => false,
        op::Pow => match exponent(view, view.input(node, 1)?)? {
            0.5 => false,
            -0.5 => true,
            _ => return None,
        },
        _ => return None,
    };
    let (value, epsilon_inside) = without_epsilon(view, view.input(node, 0)?);
    let Some(variance) = variance_of(view, value) else {
        return buried_mean_of_squares(view, value, 0).map(|(kind, between)| {
            Err((
                kind,
                format!(
                    "its square root is expected over a mean of squares and ε, but `{between}` stands in between"
                ),
            ))
        });
    };
    let kind = variance.kind;
    if let Some(problem) = variance.problem {
        return Some(Err((kind, problem)));
    }
    let matcher = Matcher {
        view,
        root: node,
        kind,
        x: variance.x,
        centred: variance.centred,
    };
    Some(
        matcher
            .run(inverse, epsilon_inside)
            .map_err(|reason| (kind, reason)),
    )
}

/// A factor met on the way: γ and the number of its elements.
type Gamma = (NormParam, usize);

/// The parts of one norm, with the search for the rest of it.
struct Matcher<'a, 'm> {
    view: &'a View<'m>,
    root: NodeId,
    kind: NormKind,
    x: ValueId,
    centred: ValueId,
}

impl Matcher<'_, '_> {
    fn run(&self, inverse: bool, epsilon_inside: bool) -> Result<Norm, String> {
        let view = self.view;
        let mut root = view
            .output(self.root, 0)
            .ok_or("its square root has no output")?;
        if !epsilon_inside
            && let (readers, _) = readers(view, root)
            && let [(add, slot)] = readers[..]
            && matches!(view.op(add), op::Add | op::Max)
            && let Some(sum) = view.output(add, 0)
            && view
                .input(add, 1 - slot.min(1))
                .is_some_and(|e| view.scalar(e).is_some())
        {
            root = sum;
        }
        let (all, _) = readers(view, root);
        if all.is_empty() {
            return Err("its square root is not read".to_owned());
        }
        let mut divided = None;
        if inverse && let Some(found) = self.times_inverse(root, None)? {
            return self.finish(found);
        }
        for &(node, slot) in all.iter().filter(|_| !inverse) {
            match (view.op(node), slot) {
                (op::Reciprocal, 0) => {
                    if let Some(found) = self.inverse_output(node, None)? {
                        return self.finish(found);
                    }
                }
                (op::Div, 1) => {
                    let numerator = view.input(node, 0).ok_or("a Div has no numerator")?;
                    if view.scalar(numerator).is_some() {
                        if let Some(found) = self.inverse_output(node, None)? {
                            return self.finish(found);
                        }
                    } else if view.is_constant(numerator) {
                        let gamma = param(view, node, 0, numerator, "γ")?;
                        if let Some(found) = self.inverse_output(node, Some(gamma))? {
                            return self.finish(found);
                        }
                    } else if let Some(gamma) = self.maybe_scaled(numerator)? {
                        return self.finish(Scaled {
                            node,
                            gamma,
                            beta: None,
                        });
                    } else {
                        divided = Some(numerator);
                    }
                }
                _ => {}
            }
        }
        let averaged = view.name(self.centred);
        Err(match divided {
            Some(value) => format!(
                "its square root divides `{}`, and not `{averaged}` whose squares were averaged",
                view.name(value)
            ),
            None => format!(
                "its square root is expected to divide `{averaged}` whose squares were averaged, but is read by {}",
                self.names_of(&all)
            ),
        })
    }

    fn inverse_output(&self, node: NodeId, gamma: Option<Gamma>) -> Result<Option<Scaled>, String> {
        match self.view.output(node, 0) {
            Some(inverse) => self.times_inverse(inverse, gamma),
            None => Ok(None),
        }
    }

    /// The product of 1 / r, or γ / r, with the centred value.
    fn times_inverse(
        &self,
        inverse: ValueId,
        gamma: Option<Gamma>,
    ) -> Result<Option<Scaled>, String> {
        let view = self.view;
        let (all, closed) = readers(view, inverse);
        let closed = closed || gamma.is_none();
        if let Some(gamma) = gamma
            && let &[(a, i), (b, j)] = &all[..]
            && closed
            && let Some(found) = self.batch_norm_form(gamma, (a, i), (b, j))
        {
            return Ok(Some(found));
        }
        for &(node, slot) in all.iter().filter(|(node, _)| view.op(*node) == op::Mul) {
            let Some(factor) = view.input(node, 1 - slot.min(1)) else {
                continue;
            };
            if view.is_constant(factor) && view.scalar(factor).is_none() {
                if gamma.is_some() {
                    return Err(format!(
                        "two constants, `{}` and another one, could be its γ",
                        view.name(factor)
                    ));
                }
                let gamma = param(view, node, 1 - slot.min(1), factor, "γ")?;
                if let Some(found) = self.inverse_output(node, Some(gamma))? {
                    return Ok(Some(found));
                }
                continue;
            }
            let Some(inner) = self.maybe_scaled(factor)? else {
                continue;
            };
            if gamma.is_some() && (all.len() > 1 || !closed) {
                return Err(format!(
                    "γ is in `{}`, which is read outside of the norm as well",
                    view.name(inverse)
                ));
            }
            if gamma.is_some() && inner.is_some() {
                return Err("two constants could be its γ".to_owned());
            }
            return Ok(Some(Scaled {
                node,
                gamma: gamma.or(inner),
                beta: None,
            }));
        }
        Ok(None)
    }

    /// x · i + (β − mean(x) · i) with i = γ / r, read by the two products alone.
    fn batch_norm_form(
        &self,
        gamma: Gamma,
        first: (NodeId, usize),
        second: (NodeId, usize),
    ) -> Option<Scaled> {
        let view = self.view;
        let factor = |(node, slot): (NodeId, usize)| {
            (view.op(node) == op::Mul)
                .then(|| view.input(node, 1 - slot.min(1)))
                .flatten()
                .map(|v| see_through(view, v))
        };
        let (a, b) = (factor(first)?, factor(second)?);
        let (product, mean_product, mean) = if a == self.x {
            (first.0, second.0, b)
        } else if b == self.x {
            (second.0, first.0, a)
        } else {
            return None;
        };
        // The sign may be on the mean: −mean(x) · i + β.
        let negated = view.producer_is(mean, op::Neg);
        let plain = negated.map_or(Some(mean), |neg| view.input(neg, 0))?;
        let mean = mean_of(view, plain)?;
        if mean.problem.is_some() || see_through(view, mean.of) != self.x {
            return None;
        }
        let output = |node| view.output(node, 0);
        let (mut term, mut slot) = sole_reader(view, output(mean_product)?)?;
        let (sum, sum_slot) = sole_reader(view, output(product)?)?;
        let mut sign_changed = negated.is_some();
        if view.op(term) == op::Neg && !sign_changed {
            sign_changed = true;
            (term, slot) = sole_reader(view, output(term)?)?;
        }
        if term == sum {
            // x · i − mean(x) · i, or its sum with the negated term: β follows, or there is none.
            let fits = match view.op(sum) {
                op::Sub => !sign_changed && sum_slot == 0,
                op::Add => sign_changed,
                _ => false,
            };
            return fits.then_some(Scaled {
                node: sum,
                gamma: Some(gamma),
                beta: None,
            });
        }
        let other = 1 - slot.min(1);
        let fits = match view.op(term) {
            op::Sub => !sign_changed && slot == 1,
            op::Add => sign_changed,
            _ => false,
        };
        let (beta, channels) = param(view, term, other, view.input(term, other)?, "β").ok()?;
        let (last, _) = sole_reader(view, output(term)?)?;
        (fits && channels == gamma.1 && last == sum && view.op(sum) == op::Add).then_some(Scaled {
            node: sum,
            gamma: Some(gamma),
            beta: Some(beta),
        })
    }

    /// `Some(γ)` if a value is the centred one, times a constant γ or not (`Some(None)`); `None` if it is not.
    fn maybe_scaled(&self, value: ValueId) -> Result<Option<Option<Gamma>>, String> {
        let view = self.view;
        let value = see_through(view, value);
        if self.is_centred(value) {
            return Ok(Some(None));
        }
        let Some(mul) = view.producer_is(value, op::Mul) else {
            return Ok(None);
        };
        for slot in [1, 0] {
            let (Some(constant), Some(d)) =
                (view.input(mul, slot), view.input(mul, 1 - slot.min(1)))
            else {
                continue;
            };
            if view.is_constant(constant) && self.is_centred(see_through(view, d)) {
                if view.scalar(constant).is_some() {
                    return Ok(Some(None));
                }
                if sole_reader(view, value).is_none() {
                    return Err(format!(
                        "γ is in `{}`, which is read outside of the norm as well",
                        view.name(value)
                    ));
                }
                return param(view, mul, slot, constant, "γ").map(|g| Some(Some(g)));
            }
        }
        Ok(None)
    }

    /// The centred value itself, or a second copy of it (some exporters compute it twice).
    fn is_centred(&self, value: ValueId) -> bool {
        let view = self.view;
        if self.kind == NormKind::Rms {
            return value == self.centred;
        }
        let copy = view
            .producer_is(value, op::Sub)
            .and_then(|sub| centred_of(view, sub));
        copy.is_some_and(|(x, problem)| x == self.x && problem.is_none())
    }

    /// γ and β from n on.
    fn finish(&self, scaled: Scaled) -> Result<Norm, String> {
        let view = self.view;
        let (gamma, channels, mut last) = match scaled.gamma {
            Some((gamma, channels)) => (gamma, channels, scaled.node),
            None => {
                let (mul, slot) = self.find_gamma(scaled.node)?;
                let value = view.input(mul, slot).ok_or("a Mul has one input")?;
                let (gamma, channels) = param(view, mul, slot, value, "γ")?;
                (gamma, channels, mul)
            }
        };
        let mut beta = scaled.beta;
        if beta.is_none()
            && let Some(value) = view.output(last, 0)
            && let Some((add, slot)) = sole_reader(view, value)
            && view.op(add) == op::Add
            && let Some(constant) = view.input(add, 1 - slot.min(1))
            && let Ok((found, c)) = param(view, add, 1 - slot.min(1), constant, "β")
            && c == channels
        {
            beta = Some(found);
            last = add;
        }
        Ok(Norm {
            kind: self.kind,
            node: self.root,
            name: view.node_name(last).to_owned(),
            fused: false,
            input: Some(self.x),
            output: view.output(last, 0).ok_or("its result has no name")?,
            last,
            gamma,
            beta,
            beta_slot: None,
            channels,
        })
    }

    /// The Mul with γ after `node`, which computes n, and the slot of its constant.
    fn find_gamma(&self, node: NodeId) -> Result<(NodeId, usize), String> {
        let view = self.view;
        let mut value = view.output(node, 0).ok_or("n has no name")?;
        loop {
            let (all, closed) = readers(view, value);
            let [(mul, slot)] = all[..] else {
                return Err(format!(
                    "a Mul with a constant γ is expected as the only reader of `{}`, which is read by {}",
                    view.name(value),
                    self.names_of(&all)
                ));
            };
            let other = 1 - slot.min(1);
            let factor = view.input(mul, other);
            if view.op(mul) != op::Mul || !closed {
                return Err(format!(
                    "it has no γ that could take a scale: `{}` is read by {} and not by a Mul with a constant",
                    view.name(value),
                    self.names_of(&all)
                ));
            }
            match factor {
                Some(factor) if view.scalar(factor).is_some() => {
                    // One number for all channels: γ is still to come.
                    value = view.output(mul, 0).ok_or("n has no name")?;
                }
                Some(_) => return Ok((mul, other)),
                None => return Err("a Mul has one input".to_owned()),
            }
        }
    }

    fn names_of(&self, readers: &[(NodeId, usize)]) -> String {
        let op = |node| self.view.node(node).op_type.as_deref().unwrap_or("?");
        let name =
            |&(node, _): &(NodeId, usize)| format!("{} `{}`", op(node), self.view.node_name(node));
        match readers {
            [] => "nothing".to_owned(),
            [one] => name(one),
            [first, rest @ ..] => format!("{} and {} more", name(first), rest.len()),
        }
    }
}

/// n, with γ and β in it or not, written by `node`.
struct Scaled {
    node: NodeId,
    gamma: Option<Gamma>,
    beta: Option<NormParam>,
}

/// The nodes that read a value, seen through transparent ones, and whether nobody else does (no graph output, no
/// subgraph).
fn readers(view: &View, value: ValueId) -> (Vec<(NodeId, usize)>, bool) {
    let mut all = Vec::new();
    let mut closed = true;
    for reader in view.uses(value) {
        let Use::Node { node, input } = *reader else {
            closed = false;
            continue;
        };
        match (passage(view, node), view.output(node, 0)) {
            (Some(_), Some(next)) if input == 0 => {
                let (behind, behind_closed) = readers(view, next);
                all.extend(behind);
                closed &= behind_closed;
            }
            _ => all.push((node, input)),
        }
    }
    (all, closed)
}

/// The only reader of a value, seen through transparent nodes.
fn sole_reader(view: &View, value: ValueId) -> Option<(NodeId, usize)> {
    match readers(view, value) {
        (all, true) if all.len() == 1 => Some(all[0]),
        _ => None,
    }
}
