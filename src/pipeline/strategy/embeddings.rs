//! Embedding tables in 8 bits, if that was asked for and no output pays for it.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Plan;
use super::super::verdict::{mean_sqnr, worst_loss};
use crate::error::Error;
use crate::options::Options;
use crate::review::EmbeddingsReport;
use crate::rewrite::{EmbeddingTable, embedding_tables};

/// A loss of so many dB at an output is too much for a smaller file.
const TOO_MUCH_DB: f64 = 0.5;

/// What would be written, with its embedding tables in 8 bits where they were asked for, unless an output loses
/// [`TOO_MUCH_DB`] by that. A note says why tables stay in float.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn quantize_embeddings(
    mut written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    if !options.int8_embeddings {
        return Ok(written);
    }
    let profile = options.profile();
    let tables = {
        let view = written.model.view();
        let found = embedding_tables(&view);
        let named = found
            .into_iter()
            .map(|t| (view.name(t.value).to_owned(), t));
        named.collect::<Vec<(String, EmbeddingTable)>>()
    };
    let stay = |written: &mut Measured, why: String| {
        written
            .plan
            .notes
            .push(format!("embedding tables stay in float: {why}"));
    };
    if !profile.int8_gather {
        let why = format!(
            "{} widens them in every form that it loads",
            profile.runtimes
        );
        stay(&mut written, why);
        return Ok(written);
    }
    if tables.is_empty() {
        stay(
            &mut written,
            "no large one was found before a Gather by computed indices".to_owned(),
        );
        return Ok(written);
    }
    let plan = Plan {
        embeddings: true,
        ..written.plan.clone()
    };
    let mut with = measure(judge, plan)?;
    if let Some((output, loss)) = worst_loss(&with.outputs, &written.outputs)
        && loss >= TOO_MUCH_DB
    {
        let why = format!("in 8 bits output `{output}` would lose {loss:.2} dB");
        stay(&mut written, why);
        return Ok(written);
    }
    with.account = written.account;
    with.account.embeddings = Some(EmbeddingsReport::new(
        &tables,
        [mean_sqnr(&written.outputs), mean_sqnr(&with.outputs)],
    ));
    Ok(with)
}
