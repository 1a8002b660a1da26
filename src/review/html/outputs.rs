//! What became of the outputs, and who multiplies.

use maud::{Markup, html};

use super::parts::{decibels, table};
use crate::review::Report;

/// How many elements of an integer output are the same.
fn share(agreeing: u64, elements: u64) -> String {
    format!(
        "{:.2} % the same",
        100.0 * agreeing as f64 / elements.max(1) as f64
    )
}

pub(super) fn outputs(report: &Report) -> Markup {
    if report.outputs.is_empty() && report.agreements.is_empty() {
        return Markup::default();
    }
    let head = html! {
        th { "output" } th.number { "SQNR" } th.number { "plain min-max" } th.number { "cosine" }
    };
    let rows = html! {
        @for (name, output) in &report.outputs {
            tr {
                td.name { (name) }
                td.number { (decibels(output.sqnr_db, "exact")) }
                td.number { (decibels(output.plain_sqnr_db, "–")) }
                td.number { (format_args!("{:.6}", output.cosine)) }
            }
        }
        @for (name, output) in &report.agreements {
            tr {
                td.name { (name) }
                td.number { (share(output.agreeing, output.elements)) }
                td.number { (output.plain_agreeing.map_or("–".to_owned(), |n| share(n, output.elements))) }
                td.number { "–" }
            }
        }
    };
    let cautions = report
        .outputs
        .iter()
        .map(|(name, o)| (name, o.filled, &o.caution));
    let cautions = cautions.chain(
        report
            .agreements
            .iter()
            .map(|(name, o)| (name, 0, &o.caution)),
    );
    html! {
        h2 { "Outputs" }
        p.muted {
            "Against the original, on " (report.verified_on) ". SQNR = 10 log₁₀(Σ r² / Σ (r − o)²)."
        }
        (table(&head, &rows))
        @for (name, output) in &report.outputs {
            @if let Some(db) = output.log_sqnr_db {
                p.muted {
                    code { (name) } ": probabilities are judged by their logarithms, which have " (decibels(Some(db), ""))
                    @if let Some(plain) = output.plain_log_sqnr_db { " (plain min-max " (decibels(Some(plain), "")) ")" }
                    "."
                }
            }
        }
        @for (name, filled, caution) in cautions {
            @if filled > 0 {
                p.muted { code { (name) } ": " (filled) " elements that the model fills in are in no figure." }
            }
            @if let Some(caution) = caution {
                p.gain.bad { code { (name) } ": " (caution) "." }
            }
        }
        @for lost in &report.below_plain {
            p.gain.bad {
                code { (lost.output) }
                " ends clearly below plain min-max quantization, although no better plan was found: "
                (decibels(Some(lost.sqnr_db), "")) (lost.of_what()) ", plain " (decibels(lost.plain_sqnr_db, "exact")) "."
            }
        }
    }
}

/// Who multiplies what stays in float.
pub(super) fn work(report: &Report) -> Markup {
    let Some(work) = &report.work else {
        return Markup::default();
    };
    let head =
        html! { th { "operators" } th.number { "nodes" } th.number { "of the multiplications" } };
    let rows = html! {
        @for kind in &work.float {
            tr {
                td.name { (kind.what) }
                td.number { (kind.nodes) }
                td.number { (format_args!("{:.1} %", 100.0 * kind.part)) }
            }
        }
    };
    let mb = |bytes: u64| bytes as f64 / 1e6;
    html! {
        h2 { "Work" }
        p.muted { (work.words()) ". " (work.speed()) "." }
        @if !work.float.is_empty() { (table(&head, &rows)) }
        @if work.embedding_bytes > 0 {
            p.muted {
                (format_args!("Embedding tables of {:.1} MB stay in float, of {:.1} MB that do.", mb(work.embedding_bytes), mb(work.float_bytes)))
            }
        }
    }
}
