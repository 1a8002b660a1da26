//! The closing summary: the report in a few lines, or with -v in many.

use std::collections::BTreeSet;

use onnx_osplus::review::{AttentionReport, Decision, Report, SiteReport, TableReport};

use super::shown::Lines;

/// The account of a run for people. `sizes` are the bytes of IN and OUT.
pub(super) fn summary(report: &Report, sizes: (u64, u64), verbose: bool) -> String {
    let mut text = Lines::default();
    // Writing to a String cannot fail.
    let _ = write_summary(&mut text, report, sizes, verbose);
    text.text()
}

fn write_summary(
    out: &mut Lines,
    report: &Report,
    sizes: (u64, u64),
    verbose: bool,
) -> std::fmt::Result {
    for (input, rule) in &report.filled_inputs {
        writeln!(out, "filled     input `{input}`: {rule}")?;
    }
    for note in &report.notes {
        writeln!(out, "note       {note}")?;
    }
    if let Some(from) = report.settings.opset_raised_from {
        writeln!(
            out,
            "opset      raised from {from} to {}",
            report.settings.opset
        )?;
    }
    inlined(out, report, verbose)?;
    cleaned(out, report, verbose)?;
    linears(out, report, verbose)?;
    sites(out, report, verbose)?;
    rotations(out, report)?;
    embeddings(out, report)?;
    attention(out, report, verbose)?;
    if verbose {
        for miss in &report.near_misses {
            writeln!(
                out,
                "  near miss  {} ({}): {}",
                miss.name, miss.kind, miss.reason
            )?;
        }
    } else if !report.near_misses.is_empty() {
        writeln!(
            out,
            "near miss  {} nodes almost matched; -v shows why not",
            report.near_misses.len()
        )?;
    }
    float_check(out, report)?;
    outputs(out, report)?;
    if let Some(metric) = &report.metric {
        super::labels::write_metric(out, metric, None)?;
    }
    below_plain(out, report)?;
    lint(out, report, verbose)?;
    work(out, report)?;
    let (before, after) = (sizes.0 as f64 / 1e6, sizes.1 as f64 / 1e6);
    writeln!(out, "size       {before:.1} MB -> {after:.1} MB")?;
    let seconds = report.seconds.get("total").copied().unwrap_or_default();
    match report.peak_memory_mb {
        Some(peak) => writeln!(out, "time       {seconds:.1} s, peak memory {peak:.0} MB"),
        None => writeln!(out, "time       {seconds:.1} s"),
    }
}

/// What a reader who wants speed or a small file must know.
fn work(out: &mut Lines, report: &Report) -> std::fmt::Result {
    let Some(work) = &report.work else {
        return Ok(());
    };
    writeln!(out, "work       {}", work.words())?;
    if work.int8 > 0.0 {
        writeln!(out, "           {}", work.speed())?;
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    if megabytes(work.embedding_bytes) >= 0.05 {
        writeln!(
            out,
            "           embedding tables of {:.1} MB stay in float, of {:.1} MB that do",
            megabytes(work.embedding_bytes),
            megabytes(work.float_bytes)
        )?;
    }
    Ok(())
}

/// Not run is not the same as no difference.
fn float_check(out: &mut Lines, report: &Report) -> std::fmt::Result {
    let Some(check) = &report.float_check else {
        return writeln!(out, "float      check not needed, nothing was changed");
    };
    let (error, limit) = (check.max_relative_error, check.limit);
    writeln!(
        out,
        "float      migrated model within {error:.1e} of each output's range (limit {limit:.0e})"
    )?;
    if let Some(rounded) = &check.rounded {
        let (error, limit, dtype) = (rounded.max_relative_error, rounded.limit, &rounded.dtype);
        writeln!(
            out,
            "           its constants rounded to {dtype}: within {error:.1e} (limit {limit:.0e})"
        )?;
    }
    Ok(())
}

fn inlined(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    if report.inlined.is_empty() {
        return Ok(());
    }
    let functions: BTreeSet<&str> = report
        .inlined
        .iter()
        .map(|call| call.function.as_str())
        .collect();
    writeln!(
        out,
        "inlined    {} calls of {} model-local functions",
        report.inlined.len(),
        functions.len()
    )?;
    for call in report.inlined.iter().filter(|_| verbose) {
        writeln!(out, "  inlined  {} ({})", call.node, call.function)?;
    }
    Ok(())
}

fn cleaned(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    if !report.cleaned.is_empty() {
        writeln!(out, "cleaned    {} changes", report.cleaned.len())?;
    }
    for reason in report.cleaned.iter().filter(|_| verbose) {
        writeln!(out, "  cleaned  {reason}")?;
    }
    if !report.stored_sizes.is_empty() {
        let count = report.stored_sizes.len();
        writeln!(
            out,
            "sizes      {count} fixed ones stored, so that what follows from them is computed once"
        )?;
    }
    for reason in report.stored_sizes.iter().filter(|_| verbose) {
        writeln!(out, "  stored   {reason}")?;
    }
    Ok(())
}

fn lint(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    if report.lint.is_empty() {
        return Ok(());
    }
    let target = &report.settings.target;
    writeln!(
        out,
        "lint       {} findings for {target}",
        report.lint.len()
    )?;
    super::lint::lines(out, &report.lint, verbose)
}

fn linears(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    let quantized = report.linears.iter().filter(|l| l.reason.is_none()).count();
    let skipped = report.linears.len() - quantized;
    writeln!(
        out,
        "Linears    {} found, {quantized} quantized, {skipped} skipped",
        report.linears.len()
    )?;
    for linear in report
        .linears
        .iter()
        .filter(|l| verbose || l.reason.is_some())
    {
        let reason = linear
            .reason
            .as_deref()
            .map(|r| format!(": {r}"))
            .unwrap_or_default();
        writeln!(
            out,
            "  {:9}  {} [{} x {}]{reason}",
            linear.status, linear.name, linear.k, linear.n
        )?;
    }
    super::granularity::scales(out, report)
}

fn sites(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    let folded: Vec<&SiteReport> = report.sites.iter().filter(|s| s.sink.is_some()).collect();
    let alone = report.sites.len() - folded.len();
    writeln!(
        out,
        "sites      {} found, {} folded, {alone} left alone",
        report.sites.len(),
        folded.len()
    )?;
    let explicit = folded.iter().filter(|s| s.kind == "explicit").count();
    if explicit > 0 {
        writeln!(
            out,
            "           {explicit} of them by a Mul before the Linears, where no constant can be reached"
        )?;
    }
    if !folded.is_empty() {
        let mean = folded.iter().map(|s| s.validated_gain_db).sum::<f64>() / folded.len() as f64;
        writeln!(
            out,
            "           validated gain of the folded sites {mean:.1} dB on average"
        )?;
    }
    let widest = |s: &&SiteReport| s.range_before.1 - s.range_before.0;
    let mut shown: Vec<&SiteReport> = if verbose {
        report.sites.iter().collect()
    } else {
        folded
    };
    if !verbose {
        // The sites with the widest ranges tell most.
        shown.sort_by(|a, b| widest(b).total_cmp(&widest(a)));
        shown.truncate(5);
    }
    for site in shown {
        let ((a, b), (c, d)) = (site.range_before, site.range_after);
        let kind = if site.sink.is_some() {
            "folded"
        } else {
            "plain"
        };
        write!(out, "  {kind:6}  {}  range {a:.3}..{b:.3}", site.value)?;
        if site.sink.is_some() {
            write!(out, " -> {c:.3}..{d:.3}")?;
        }
        if let Some(rotation) = &site.rotation {
            let (a, b) = rotation.factors;
            match rotation.form.as_str() {
                "kronecker" => write!(out, ", rotated by {a} x {b}")?,
                form => write!(out, ", rotated in {a} {form} of {b}")?,
            }
        }
        write!(out, ", gain {:.1} dB", site.validated_gain_db)?;
        match site.reason.as_deref().filter(|_| verbose) {
            Some(reason) => writeln!(out, " ({reason})")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

/// What was bought for what.
fn rotations(out: &mut Lines, report: &Report) -> std::fmt::Result {
    let Some(all) = &report.rotations else {
        return Ok(());
    };
    writeln!(
        out,
        "rotations  before the Linears of {}: outputs {:.2} dB -> {:.2} dB for about {:.1} % of the run time",
        plural(all.sites, "site"),
        all.sqnr_before_db,
        all.sqnr_after_db,
        all.percent
    )
}

fn embeddings(out: &mut Lines, report: &Report) -> std::fmt::Result {
    let Some(all) = &report.embeddings else {
        return Ok(());
    };
    let bytes =
        |of: fn(&TableReport) -> usize| all.tables.iter().map(of).sum::<usize>() as f64 / 1e6;
    writeln!(
        out,
        "embeddings {} in {} bits{}: {:.1} MB -> {:.1} MB, outputs {:.2} dB -> {:.2} dB",
        plural(all.tables.len(), "table"),
        all.bits,
        all.block
            .map_or_else(String::new, |n| format!(" by blocks of {n}")),
        bytes(|t| t.bytes_before),
        bytes(|t| t.bytes_after),
        all.sqnr_before_db,
        all.sqnr_after_db
    )
}

/// What is said beside the figure of an output: what is not in it, and why it is no verdict.
pub(super) fn beside(elements: u64, filled: u64, caution: Option<&str>) -> String {
    let filled = match filled {
        0 => String::new(),
        n => format!(
            "; without {n} of {} elements that the model fills in",
            elements + n
        ),
    };
    let caution = caution.map_or(String::new(), |c| format!("; {c}"));
    filled + &caution
}

fn plural(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

fn attention(out: &mut Lines, report: &Report, verbose: bool) -> std::fmt::Result {
    let all = &report.attention;
    if all.is_empty() {
        return Ok(());
    }
    let quantized = all.iter().filter(|a| a.status == "int8").count();
    write!(out, "attention  {} found, {quantized} in int8", all.len())?;
    if let Some(cost) = &report.attention_cost {
        let (float, int8) = (cost.float_sqnr_db, cost.int8_sqnr_db);
        write!(out, ": outputs {float:.2} dB -> {int8:.2} dB")?;
    }
    writeln!(out)?;
    let dropped = |a: &&AttentionReport| a.nan_guard.as_deref() == Some("dropped");
    let dropped = all.iter().filter(dropped).count();
    if dropped > 0 {
        writeln!(
            out,
            "           {dropped} guards against rows without keys left out: no calibration row needs them"
        )?;
    }
    let mut reasons: Vec<&str> = Vec::new();
    for attention in all {
        if verbose {
            write!(out, "  {:6}  {}", attention.status, attention.softmax)?;
            let operands = [
                ("Q", attention.query),
                ("K", attention.key),
                ("V", attention.value),
            ];
            for (name, range) in operands {
                if let Some((low, high)) = range {
                    write!(out, "  {name} {low:.3}..{high:.3}")?;
                }
            }
        }
        match attention.reason.as_deref() {
            Some(reason) if verbose => write!(out, " ({reason})")?,
            Some(reason) if !reasons.contains(&reason) => reasons.push(reason),
            _ => {}
        }
        if verbose {
            writeln!(out)?;
        }
    }
    for reason in reasons.iter().take(3) {
        writeln!(out, "           float: {reason}")?;
    }
    Ok(())
}

fn outputs(out: &mut Lines, report: &Report) -> std::fmt::Result {
    match report.decision {
        Decision::Migrated | Decision::PlainAskedFor => {}
        Decision::NothingToMigrate => {
            writeln!(
                out,
                "decision   no site gained by migration; nothing was folded"
            )?;
        }
        Decision::PartlyMigrated => {
            let sites = plural(report.dropped_sites, "site");
            writeln!(
                out,
                "decision   {sites} lowered the outputs on held-out data and went back to min-max"
            )?;
        }
        Decision::PlainWasBetter => {
            writeln!(
                out,
                "decision   plain min-max was better than migration, so it was written"
            )?;
        }
        // Of a newer library than this program was written for.
        other => writeln!(out, "decision   {other:?}")?,
    }
    if let Some(kept) = &report.kept_float {
        writeln!(
            out,
            "in float   {} Linears with {:.1} % of the multiplications: {:.2} dB -> {:.2} dB on held-out data",
            kept.linears.len(),
            100.0 * kept.work,
            kept.sqnr_before_db,
            kept.sqnr_after_db
        )?;
        if kept.linears.is_empty() {
            writeln!(out, "           leaving Linears in float bought nothing")?;
        }
    }
    if report.outputs.is_empty() && report.agreements.is_empty() {
        return writeln!(out, "outputs    none could be compared");
    }
    writeln!(out, "outputs    on {}", report.verified_on)?;
    for (name, output) in &report.outputs {
        if output.elements == 0 && output.caution.is_some() {
            let behind = output.caution.as_deref().unwrap_or_default();
            writeln!(out, "  {name}  {behind}")?;
            continue;
        }
        let sqnr = output
            .sqnr_db
            .map_or("exact".to_owned(), |db| format!("SQNR {db:.2} dB"));
        let per_token =
            |db: Option<f64>| db.map_or(String::new(), |db| format!(", per token {db:.2}"));
        let own = per_token(output.token_sqnr_db);
        write!(out, "  {name}  {sqnr}{own}, cosine {:.6}", output.cosine)?;
        if let Some(plain) = output.plain_sqnr_db {
            let own = per_token(output.plain_token_sqnr_db);
            write!(out, " (plain min-max {plain:.2} dB{own})")?;
        }
        if let Some(db) = output.log_sqnr_db {
            write!(out, "; logarithms, by which it is judged, {db:.2} dB")?;
            if let Some(plain) = output.plain_log_sqnr_db {
                write!(out, " (plain min-max {plain:.2} dB)")?;
            }
        }
        let behind = beside(output.elements, output.filled, output.caution.as_deref());
        writeln!(out, "{behind}")?;
    }
    for (name, output) in &report.agreements {
        let part = |n: u64| 100.0 * n as f64 / output.elements.max(1) as f64;
        write!(
            out,
            "  {name}  {:.2} % of {} elements are the same",
            part(output.agreeing),
            output.elements
        )?;
        if let Some(plain) = output.plain_agreeing {
            write!(out, " (plain min-max {:.2} %)", part(plain))?;
        }
        writeln!(
            out,
            "{}",
            beside(output.elements, 0, output.caution.as_deref())
        )?;
    }
    Ok(())
}

/// What a reader must not miss.
fn below_plain(out: &mut Lines, report: &Report) -> std::fmt::Result {
    for lost in &report.below_plain {
        let plain = lost
            .plain_sqnr_db
            .map_or("exact".to_owned(), |db| format!("{db:.2} dB"));
        writeln!(
            out,
            "warning    output {} ends clearly below plain min-max quantization, although no better plan was found: \
             {:.2} dB{}, plain {plain}",
            lost.output,
            lost.sqnr_db,
            lost.of_what()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_osplus::review::{BelowPlain, FloatCheck, RotationsReport};

    fn text(report: &Report) -> String {
        summary(report, (0, 0), false)
    }

    #[test]
    fn a_check_that_was_not_run_is_not_a_difference_of_zero() {
        let mut report = Report::default();
        assert!(text(&report).contains("float      check not needed, nothing was changed\n"));
        report.float_check = Some(FloatCheck::default());
        assert!(text(&report).contains("migrated model within 0.0e0 of each output's range"));
    }

    #[test]
    fn rotations_are_one_line() {
        let mut report = Report::default();
        assert!(!text(&report).contains("rotations"));
        let mut bought = RotationsReport::default();
        (bought.sites, bought.percent) = (7, 12.34);
        (bought.sqnr_before_db, bought.sqnr_after_db) = (24.5, 27.75);
        report.rotations = Some(bought);
        let line = "rotations  before the Linears of 7 sites: outputs 24.50 dB -> 27.75 dB for about 12.3 % of the run time";
        assert_eq!(text(&report).lines().filter(|l| *l == line).count(), 1);
    }

    #[test]
    fn every_output_below_plain_is_a_warning() {
        let mut report = Report::default();
        assert!(!text(&report).contains("warning"));
        for (name, plain) in [("y1", Some(42.636)), ("y2", None)] {
            let mut lost = BelowPlain::default();
            lost.output = name.to_owned();
            (lost.sqnr_db, lost.plain_sqnr_db) = (38.75, plain);
            report.below_plain.push(lost);
        }
        let text = text(&report);
        let warnings: Vec<&str> = text.lines().filter(|l| l.starts_with("warning")).collect();
        assert_eq!(warnings.len(), 2, "{text}");
        assert!(
            warnings[0].contains("output y1 ") && warnings[0].contains("38.75 dB, plain 42.64 dB")
        );
        assert!(warnings[1].contains("output y2 ") && warnings[1].ends_with("plain exact"));
    }
}
