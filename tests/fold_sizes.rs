//! What fixed sizes tell is stored where it lets a runtime compute something once; nothing else changes.

use std::collections::BTreeMap;

use crate::recognise::text;
use onnx_osplus::graph::{self, Names, View};
use onnx_osplus::onnx::{Model, tensor};
use onnx_osplus::rewrite::fold_sizes;

/// The model with its sizes folded, and how many constants were stored.
fn folded(model: &Model) -> (Model, usize) {
    let view = View::new(model);
    let patches = fold_sizes(&view, &mut Names::new(model));
    let count = patches.len();
    let mut model = model.clone();
    graph::apply(&mut model, patches).unwrap();
    (model, count)
}

/// The operators of a model in order.
fn operators(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(|n| n.op_type()).collect()
}

/// The constants that folding stored.
fn constants(model: &Model) -> BTreeMap<&str, Vec<i64>> {
    let stored = model.graph().initializer.iter();
    let stored = stored.filter(|t| t.name().ends_with("_folded"));
    stored
        .map(|t| {
            let array = tensor::int_array(t).unwrap();
            (t.name(), array.into_iter().collect())
        })
        .collect()
}

/// What a text leaves of itself: its operators, and the constants that were stored.
fn becomes(text: &str, operators_left: &[&str], stored: &[(&str, &[i64])]) {
    let (model, count) = folded(&text::model(text));
    assert_eq!(operators(&model), operators_left);
    let stored: BTreeMap<&str, Vec<i64>> = stored.iter().map(|(n, v)| (*n, v.to_vec())).collect();
    assert_eq!(constants(&model), stored);
    assert_eq!(count, stored.len());
    // What is left has nothing more to fold.
    assert_eq!(folded(&model).1, 0);
}

fn stays(text: &str) {
    let model = text::model(text);
    let (same, count) = folded(&model);
    assert_eq!(count, 0);
    assert_eq!(same.proto, model.proto);
}

/// The size of an axis beside one that is open, and what is computed from it.
#[test]
fn a_table_that_is_stretched_to_the_size_of_the_input() {
    becomes(
        "in x[b, 3, 32, 16]
         const table[1, 8, 1, 1]
         ints two = [2]
         ints three = [-1]
         ints ends = [4]
         ints patch = [4]
         ints head = [1, 8]
         s = Shape(x)
         h = Gather{axis = 0}(s, two)
         w = Slice(s, three, ends)
         hp = Div(h, patch)
         wp = Div(w, patch)
         sizes = Concat{axis = 0}(head, hp, wp)
         t = Expand(table, sizes)
         r = Relu(t)
         y = Conv(x, r)
         out y",
        &["Expand", "Relu", "Conv"],
        &[("sizes_folded", &[1, 8, 8, 4])],
    );
}

/// A Reshape to sizes of which some are open tells the others, and they go on through operators on data.
#[test]
fn sizes_behind_a_reshape_that_is_known_in_part() {
    becomes(
        "in x[b, 4, n, 6]
         const table[1, 4]
         const row[6]
         ints zero = [0]
         ints two = [2]
         ints rest = [-1]
         ints one = [1]
         r = Relu(x)
         s = Shape(r)
         lead = Slice(s, zero, two)
         target = Concat{axis = 0}(lead, rest)
         flat = Reshape(r, target)
         back = Transpose{perm = [0, 2, 1]}(flat)
         t = Shape(back)
         c = Gather{axis = 0}(t, two)
         sizes = Concat{axis = 0}(one, c)
         wide = Expand(table, sizes)
         y = Add(back, wide)
         out y",
        &[
            "Relu",
            "Shape",
            "Slice",
            "Concat",
            "Reshape",
            "Transpose",
            "Expand",
            "Add",
        ],
        &[("sizes_folded", &[1, 4])],
    );
}

/// Floats are left to the runtime: the integer that they are computed from is stored.
#[test]
fn a_scale_by_the_number_of_channels() {
    becomes(
        "in x[b, s, 64]
         ints two = [2]
         shape = Shape(x)
         c = Gather{axis = 0}(shape, two)
         f = Cast{to = 1}(c)
         root = Sqrt(f)
         y = Div(x, root)
         out y",
        &["Cast", "Sqrt", "Div"],
        &[("c_folded", &[64])],
    );
}

/// A choice by sizes: the booleans are stored in their own type.
#[test]
fn booleans_that_sizes_tell() {
    let text = "in x[b, 3]
         const table[3]
         const other[3]
         ints one = [1]
         ints limits = [2, 3, 4]
         shape = Shape(x)
         n = Gather{axis = 0}(shape, one)
         smaller = Less(limits, n)
         chosen = Where(smaller, table, other)
         y = Add(x, chosen)
         out y";
    becomes(text, &["Where", "Add"], &[("smaller_folded", &[1, 0, 0])]);
}

/// Several readers share one constant; what reads data keeps reading what was there.
#[test]
fn one_constant_for_all_that_is_computed_once() {
    becomes(
        "in x[b, 3]
         const table[1, 1]
         ints one = [1]
         shape = Shape(x)
         n = Gather{axis = 0}(shape, one)
         sizes = Concat{axis = 0}(one, n)
         t = Expand(table, sizes)
         u = Tile(table, sizes)
         v = Expand(x, sizes)
         tu = Mul(t, u)
         y = Mul(v, tu)
         out y",
        &[
            "Shape", "Gather", "Concat", "Expand", "Tile", "Expand", "Mul", "Mul",
        ],
        &[("sizes_folded", &[1, 3])],
    );
}

#[test]
fn open_sizes_stay_open() {
    for input in ["x[b, 3]", "x[?, 3]", "x[0, 3]", "x[-1, 3]"] {
        stays(&format!(
            "in {input}
             const table[1, 3]
             ints zero = [0]
             ints three = [3]
             s = Shape(x)
             n = Gather{{axis = 0}}(s, zero)
             sizes = Concat{{axis = 0}}(n, three)
             t = Expand(table, sizes)
             y = Add(x, t)
             out y"
        ));
    }
}

/// What data tells, what is random, and what costs nothing.
#[test]
fn what_is_left_alone() {
    // Which size it is depends on data.
    stays(
        "in x[b, 3]
         in where[1]
         const table[1, 1]
         s = Shape(x)
         at = Cast{to = 7}(where)
         n = Gather{axis = 0}(s, at)
         t = Expand(table, n)
         y = Add(x, t)
         out y",
    );
    // Other numbers in every run.
    stays(
        "in x[b, 3]
         ints one = [1]
         s = Shape(x)
         n = Gather{axis = 0}(s, one)
         f = Cast{to = 7}(n)
         noise = RandomUniformLike{dtype = 1}(f)
         y = Add(x, noise)
         out y",
    );
    // Sizes that say how data is laid out.
    stays(
        "in x[b, 4, 6]
         ints zero = [0]
         ints one = [1]
         ints rest = [-1]
         s = Shape(x)
         n = Gather{axis = 0}(s, one)
         sizes = Concat{axis = 0}(rest, n)
         y = Reshape(x, sizes)
         out y",
    );
    // Another layout of a table is no work by itself.
    stays(
        "in x[b, 6]
         const table[6, 1]
         ints one = [1]
         s = Shape(x)
         n = Gather{axis = 0}(s, one)
         sizes = Concat{axis = 0}(one, n)
         t = Reshape(table, sizes)
         y = Add(x, t)
         out y",
    );
    // No input is in it: runtimes fold it themselves.
    stays(
        "in x[b, 3]
         const table[1, 3]
         ints sizes = [2, 3]
         t = Expand(table, sizes)
         y = MatMul(x, t)
         out y",
    );
    // A size that is an output.
    stays(
        "in x[b, 3]
         ints one = [1]
         s = Shape(x)
         n = Gather{axis = 0}(s, one)
         y = Relu(x)
         out y
         out n",
    );
}

/// An initializer that is an input too is a default, which a caller may replace.
#[test]
fn a_default_is_no_constant() {
    let mut model = text::model(
        "in x[b, 3]
         const table[1, 1]
         ints at = [1]
         s = Shape(x)
         n = Gather{axis = 0}(s, at)
         t = Expand(table, n)
         y = Add(x, t)
         out y",
    );
    assert_eq!(folded(&model).1, 1);
    let mut default = model.graph().input[0].clone();
    default.name = Some("at".to_owned());
    model.graph_mut().input.push(default);
    assert_eq!(folded(&model).1, 0);
}

/// Lengths of a value that the file states for others than its inputs may be those of the example it was exported with.
#[test]
fn stated_sizes_inside_are_not_trusted() {
    let mut model = text::model(
        "in x[b, n]
         const table[1, 1]
         ints at = [1]
         r = Relu(x)
         s = Shape(r)
         size = Gather{axis = 0}(s, at)
         t = Expand(table, size)
         y = Add(x, t)
         out y",
    );
    let mut stated = text::model("in r[2, 3]").graph().input[0].clone();
    stated.name = Some("r".to_owned());
    model.graph_mut().value_info.push(stated);
    assert_eq!(folded(&model).1, 0);
}
