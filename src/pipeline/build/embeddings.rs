//! The embedding tables of a plan that has them in few bits.

use super::super::plan::Plan;
use crate::error::Error;
use crate::graph::Names;
use crate::graph::branches::FlatModel;
use crate::rewrite::{self, RewriteError};

/// The model with its embedding tables in few bits, if the plan says so.
///
/// # Errors
/// What the rewriter refuses.
pub(super) fn quantize(mut model: FlatModel, plan: &Plan) -> Result<FlatModel, Error> {
    let Some(form) = plan.embeddings else {
        return Ok(model);
    };
    let view = model.view();
    let tables = rewrite::embedding_tables(&view);
    let mut names = Names::new(model.as_model());
    let patches = rewrite::quantize_embeddings(&view, &tables, form, &mut names)?;
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}
