//! Bias correction: b becomes b + e, with e: [N] the mean error that quantization leaves in the outputs.

use super::RewriteError;
use super::linear::{Copies, Precision, set_bias, without_factors};
use crate::graph::{Names, Patch, View};
use crate::recognise::{LinearId, Recognised};

/// The patches that add to the biases of Linears, given by their numbers in `found`. A Linear without a constant bias is
/// left alone: an Add of its own would cost run time.
///
/// # Errors
/// A bias that cannot be read, or does not fit its type any more.
pub fn correct_biases(
    view: &View,
    found: &Recognised,
    corrections: &[(LinearId, Vec<f32>)],
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = Vec::new();
    let mut copies = Copies::new();
    for (l, correction) in corrections {
        let linear = &found.linears[*l];
        let Some(mut bias) = linear.load_bias(view) else {
            continue;
        };
        bias.iter_mut().zip(correction).for_each(|(b, e)| *b += e);
        let mut patch = Patch::new(format!(
            "take the mean quantization error of `{}` off its bias",
            linear.name
        ));
        let names = (&mut *names, &mut copies);
        set_bias(Precision::OfFile, view, linear, bias, &mut patch, names)?;
        if let Some(node) = without_factors(view, linear, false, true) {
            patch.replace(linear.node, node);
        }
        patches.push(patch);
    }
    Ok(patches)
}
