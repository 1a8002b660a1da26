//! A diff as a page: the changed part of each block drawn before and after, and what changed in words below it.
//!
//! No script, no network; static SVG. Names are text, whatever is in them.

mod graph;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::onnx::{Model, shown};

use super::Diff;
use super::group::sections;
use super::markdown::{lines, sign_of};
use super::matching::Matching;
use super::scope::Scope;
use super::style::{Style, shorten};
use super::summary::size;
use super::text::{counted, inside};
use graph::{Drawing, Shape, Side, State, drawing, states};

/// Width and height of a node, and of the gaps.
const NODE: (f64, f64) = (176.0, 38.0);
const GAP: (f64, f64) = (16.0, 26.0);
/// Characters of a name that fit into a node.
const FITS: usize = 24;
/// Longest name in a line.
const NAME: usize = 120;

impl Diff {
    /// The page for the two models that this is the diff of; `names` is what the reader calls them.
    ///
    /// Drawn are the nodes of the main graph; what changed inside of subgraphs and functions is told in words, as
    /// everything else is. The same models give the same page.
    ///
    /// ```
    /// use onnx_osplus::onnx::{self, LoadError};
    /// use onnx_osplus::review::diff::diff;
    ///
    /// let before = onnx::load("models/tiny/model.onnx")?;
    /// let mut after = before.clone();
    /// after.graph_mut().node[0].op_type = Some("<script>".to_owned());
    /// let page = diff(&before, &after).html((&before, &after), ["A", "B"]);
    /// assert!(page.contains("<svg") && !page.contains("<script"));
    /// # Ok::<(), LoadError>(())
    /// ```
    pub fn html(&self, (a, b): (&Model, &Model), names: [&str; 2]) -> String {
        let m = Matching::new(
            Scope::new(a.graph(), None),
            Scope::new(b.graph(), None),
            None,
        );
        let (in_a, in_b) = states(&m);
        let of_a = self.blocks.of_nodes(&m.a, "");
        let of_b = self.blocks.of_nodes(&m.b, "");
        let before = Side {
            scope: &m.a,
            states: &in_a,
            blocks: &of_a,
        };
        let after = Side {
            scope: &m.b,
            states: &in_b,
            blocks: &of_b,
        };
        let (sections, hidden) = sections(self, false);
        let title = format!("{} → {}", shown(names[0]), shown(names[1]));
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
                    link rel="icon" href="data:,";
                    title { (title) " – onnx-osplus diff" }
                    style { (PreEscaped(include_str!("page.css"))) }
                }
                body {
                    h1 { (title) }
                    p { (shown(&self.summary())) }
                    @if !self.is_empty() {
                        p.muted {
                            (self.nodes.0) " → " (self.nodes.1) " nodes, weights " (size(self.bytes.0)) " → " (size(self.bytes.1)) ". "
                            span.key.alone { "only here" } " " span.key.changed { "changed" } " " span.key.same { "neighbour" }
                        }
                    }
                    @for section in &sections {
                        h2 {
                            @if section.title.is_empty() { "model" } @else { (shown(&section.title)) }
                            @if section.layers.len() > 1 {
                                small { " × " (section.layers.len()) " (drawn: " (shown(&section.block)) ")" }
                            }
                        }
                        (pair(&drawing(before, &section.block), &drawing(after, &section.block), &section.block))
                        details {
                            summary { (section.changes().count()) " changes in words" }
                            pre {
                                @for row in &section.rows {
                                    @for line in lines(row, section, Style::default(), NAME) {
                                        span class=(sign_of(&line)) { (line) } "\n"
                                    }
                                }
                            }
                        }
                    }
                    @if !hidden.is_empty() {
                        p.muted { "Not shown: " (counted(&hidden).join(", ")) "." }
                    }
                }
            }
        };
        page.into_string()
    }
}

/// Before and after beside each other; nothing where no node differs.
fn pair(before: &Drawing, after: &Drawing, block: &str) -> Markup {
    html! {
        @if !before.shapes.is_empty() || !after.shapes.is_empty() {
            div.pair {
                figure { figcaption { "before" (more(before)) } (svg(before, block)) }
                figure { figcaption { "after" (more(after)) } (svg(after, block)) }
            }
        }
    }
}

fn more(drawing: &Drawing) -> String {
    match drawing.left {
        0 => String::new(),
        left => format!(", without {left} more nodes that changed"),
    }
}

fn svg(drawing: &Drawing, block: &str) -> Markup {
    let places = || drawing.shapes.iter().map(|s| s.place);
    let first = places().fold(f64::INFINITY, f64::min);
    let last = places().fold(f64::NEG_INFINITY, f64::max);
    let layers = drawing
        .shapes
        .iter()
        .map(|s| s.layer + 1)
        .max()
        .unwrap_or(0);
    let step = (NODE.0 + GAP.0, NODE.1 + GAP.1);
    let width = (last - first).max(0.0) * step.0 + NODE.0 + 2.0 * GAP.0;
    let height = layers as f64 * step.1 + GAP.1;
    let corner = |shape: &Shape| {
        let x = GAP.0 + (shape.place - first) * step.0;
        (x, GAP.1 + shape.layer as f64 * step.1)
    };
    html! {
        @if drawing.shapes.is_empty() {
            p.muted { "nothing that differs" }
        } @else {
            div.scroll {
                svg xmlns="http://www.w3.org/2000/svg" width=(number(width)) height=(number(height))
                    viewBox=(format!("0 0 {} {}", number(width), number(height))) role="img" {
                    @for (from, to, value) in &drawing.edges {
                        path.edge d=(edge(corner(&drawing.shapes[*from]), corner(&drawing.shapes[*to]))) { title { (value) } }
                    }
                    @for shape in &drawing.shapes { (node(shape, block, corner(shape))) }
                }
            }
        }
    }
}

fn node(shape: &Shape, block: &str, (x, y): (f64, f64)) -> Markup {
    let class = match shape.state {
        State::Same => "same",
        State::Changed => "changed",
        State::Alone => "alone",
    };
    html! {
        g class=(class) {
            title { (shape.op) " " (shape.name) }
            rect x=(number(x)) y=(number(y)) width=(number(NODE.0)) height=(number(NODE.1)) rx="5" {}
            text.op x=(number(x + 8.0)) y=(number(y + 15.0)) { (shorten(&shape.op, FITS)) }
            text x=(number(x + 8.0)) y=(number(y + 30.0)) { (shorten(inside(&shape.name, block), FITS)) }
        }
    }
}

/// From the bottom of one node to the top of another.
fn edge((x, y): (f64, f64), (u, v): (f64, f64)) -> String {
    let (x, y, u) = (x + NODE.0 / 2.0, y + NODE.1, u + NODE.0 / 2.0);
    let bend = ((v - y) / 2.0).max(GAP.1 / 2.0);
    let [x, y, u, v, below, above] = [x, y, u, v, y + bend, v - bend].map(number);
    format!("M{x} {y}C{x} {below} {u} {above} {u} {v}")
}

/// A coordinate; a tenth of a pixel is seen by nobody.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}
