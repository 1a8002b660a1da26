//! A [`Report`] as one page of HTML: no script, no network, light and dark by the reader's setting.
//!
//! What a reviewer asks first comes first: how good is it, where is the error, what was changed and why is that safe,
//! what was left alone, how can it be made again.

mod plot;
mod sections;

use std::fmt::Write;

use super::Report;

/// The page. The same report gives the same page.
pub fn html(report: &Report) -> String {
    let title = match &report.files {
        Some(files) => format!("{} → {}", files.input, files.output),
        None => "onnx-osplus".to_owned(),
    };
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{0} – onnx-osplus</title>\n<style>\n{1}</style>\n</head>\n<body>\n\
         <h1>{0}</h1>\n<p class=\"muted\">Outlier Suppression+ by onnx-osplus {2}, target {3}, format {4}</p>\n",
        escape(&title),
        include_str!("report.css"),
        escape(&report.version),
        escape(&report.settings.target),
        escape(&report.settings.format),
    );
    for section in sections::ALL {
        section(&mut page, report);
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Text for the inside of an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A number with about three digits.
fn number(x: f32) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.1e}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a.fract() == 0.0 => format!("{x:.0}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{BelowPlain, Files, FloatCheck, OutputReport};

    #[test]
    fn text_is_never_markup() {
        let report = Report {
            notes: vec!["a <script>alert(\"1\")</script> & b".to_owned()],
            files: Some(Files {
                input: "<in>.onnx".to_owned(),
                ..Files::default()
            }),
            ..Report::default()
        };
        let page = html(&report);
        assert!(!page.contains("<script") && !page.contains("<in>"));
        assert!(page.contains("&lt;in&gt;.onnx"));
        assert!(page.contains("a &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; b"));
        assert!(!page.contains("http://") && !page.contains("https://"));
    }

    #[test]
    fn what_was_not_run_and_what_was_lost_is_said() {
        let mut report = Report::default();
        assert!(html(&report).contains("<dd>not run<small>nothing was changed</small>"));
        assert!(!html(&report).contains("ends clearly below"));
        report.float_check = Some(FloatCheck::default());
        report.outputs = [("y<1>".to_owned(), OutputReport::default())].into();
        report.below_plain = vec![BelowPlain {
            output: "y<1>".to_owned(),
            sqnr_db: 38.75,
            plain_sqnr_db: Some(42.64),
        }];
        let page = html(&report);
        assert!(!page.contains("not run"));
        assert!(page.contains("<code>y&lt;1&gt;</code> ends clearly below plain min-max"));
        assert!(page.contains("38.75 dB, plain 42.64 dB"));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 1.0, -2.5, 31.26, 4000.4, 1e-5, 3e7].map(number);
        assert_eq!(
            shown,
            ["0", "1", "-2.500", "31.3", "4000", "1.0e-5", "3.0e7"]
        );
    }
}
