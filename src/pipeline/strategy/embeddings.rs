//! Embedding tables in few bits, if that was asked for and no output pays for it.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Plan;
use super::super::verdict::{mean_sqnr, worst_loss};
use crate::error::Error;
use crate::options::{Embeddings, Options};
use crate::review::EmbeddingsReport;
use crate::rewrite::{EmbeddingForm, EmbeddingTable, embedding_tables};

/// A loss of so many dB at an output is too much for a smaller file.
const TOO_MUCH_DB: f64 = 0.5;
/// Who asks for 4 bits has chosen size: what the weights of 4 bits leave is halved, at most.
const TOO_MUCH_AT_4_BITS_DB: f64 = 3.0;

/// What would be written, with its embedding tables in few bits where they were asked for, unless an output loses
/// [`TOO_MUCH_DB`] by that. A note says why tables stay in float.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn quantize_embeddings(
    mut written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let forms = forms(options);
    if options.embeddings == Embeddings::Float {
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
    if forms.is_empty() {
        let bits = options.embeddings.name();
        let runtimes = profile.runtimes;
        let why = match profile.int8_gather {
            true => format!("{runtimes} has no operator that gathers rows of {bits}"),
            false => format!("{runtimes} widens them in every form that it loads"),
        };
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
    let mut lost = String::new();
    for form in forms {
        let plan = Plan {
            embeddings: Some(form),
            ..written.plan.clone()
        };
        let mut with = measure(judge, plan)?;
        if let Some((output, loss)) = worst_loss(&with.outputs, &written.outputs)
            && loss >= too_much(form)
        {
            lost = format!(
                "in {} bits output `{output}` would lose {loss:.2} dB",
                form.bits()
            );
            continue;
        }
        with.account = written.account;
        let figures = [mean_sqnr(&written.outputs), mean_sqnr(&with.outputs)];
        with.account.embeddings = Some(EmbeddingsReport::new(&tables, form, figures));
        return Ok(with);
    }
    stay(&mut written, lost);
    Ok(written)
}

fn too_much(form: EmbeddingForm) -> f64 {
    match form.bits() {
        8 => TOO_MUCH_DB,
        _ => TOO_MUCH_AT_4_BITS_DB,
    }
}

/// The forms to try, the smallest first.
fn forms(options: &Options) -> Vec<EmbeddingForm> {
    let profile = options.profile();
    let blocks = |bits| {
        profile
            .gathers_blocks
            .then_some(EmbeddingForm::Blocks { bits })
    };
    match options.embeddings {
        Embeddings::Float => Vec::new(),
        Embeddings::Int8 => {
            let rows = profile.int8_gather.then_some(EmbeddingForm::Rows);
            rows.into_iter().chain(blocks(8)).collect()
        }
        Embeddings::Int4 => blocks(4).into_iter().collect(),
    }
}
