//! Identity, Dropout and Cast at every place of a block change nothing of what is recognised.

use onnx_osplus::graph::View;
use onnx_osplus::onnx::node::{int_attr, make_node};
use onnx_osplus::onnx::{DataType, Model};

use super::form::{check_fold, found, run};
use super::norm::with_norm;
use super::text::model;

/// Every model that comes of one transparent node at one node input that reads a computed value or the graph input.
fn with_one_more(model: &Model) -> Vec<(String, Model)> {
    let mut all = Vec::new();
    for (n, node) in model.graph().node.iter().enumerate() {
        for (slot, input) in node.input.iter().enumerate() {
            let float_constant = |t: &onnx_osplus::onnx::proto::TensorProto| {
                t.name.as_ref() == Some(input) && t.data_type != Some(DataType::Int64 as i32)
            };
            let computed = !model
                .graph()
                .initializer
                .iter()
                .any(|t| t.name.as_ref() == Some(input));
            if !computed && !model.graph().initializer.iter().any(float_constant) {
                continue;
            }
            for op in ["Identity", "Dropout", "Cast"] {
                let attributes = match op {
                    "Cast" => vec![int_attr("to", DataType::Float as i64)],
                    _ => vec![],
                };
                // A Dropout of a constant is no constant expression.
                if op == "Dropout" && !computed {
                    continue;
                }
                let mut changed = model.clone();
                let graph = changed.graph_mut();
                graph.node[n].input[slot] = "passed_on".to_owned();
                let passage = make_node(op, "passage", &[input], &["passed_on"], attributes);
                graph.node.insert(n, passage);
                let reader = node.name.as_deref().unwrap();
                all.push((format!("{op} before input {slot} of {reader}"), changed));
            }
        }
    }
    all
}

fn check_everywhere(lines: &str, places: usize) {
    let plain = model(&with_norm(lines));
    let expected = found(&plain);
    let reference = run(&plain);
    let changed = with_one_more(&plain);
    assert_eq!(changed.len(), places);
    for (place, changed) in changed {
        let view = View::new(&changed);
        let found = found(&changed);
        assert_eq!(found.near_misses, vec![], "{place}");
        assert_eq!(found.norms.len(), 1, "{place}");
        assert_eq!(found.linears.len(), 1, "{place}");
        let (norm, plain) = (&found.norms.raw[0], &expected.norms.raw[0]);
        assert_eq!(norm.kind, plain.kind, "{place}");
        assert_eq!(view.name(norm.output), "y", "{place}");
        assert_eq!(norm.beta.is_some(), plain.beta.is_some(), "{place}");
        assert_eq!(check_fold(&changed, &place), 1, "{place}");
        for (name, array) in run(&changed) {
            assert_eq!(array, reference[&name], "{place}: {name}");
        }
    }
}

#[test]
fn in_a_layer_normalization() {
    check_everywhere(
        "m = ReduceMean{axes = [-1]}(x)
         d = Sub(x, m)
         q = Pow(d, two)
         v = ReduceMean{axes = [-1]}(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         n = Div(d, s)
         ng = Mul(n, g)
         y = Add(ng, b)",
        52,
    );
}

#[test]
fn in_a_root_mean_square_normalization() {
    check_everywhere(
        "q = Mul(x, x)
         v = ReduceMean{axes = [-1]}(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         i = Reciprocal(s)
         n = Mul(x, i)
         y = Mul(g, n)",
        42,
    );
}

#[test]
fn in_the_batch_norm_form() {
    check_everywhere(
        "m = ReduceMean{axes = [-1]}(x)
         d = Sub(x, m)
         q = Mul(d, d)
         v = ReduceMean{axes = [-1]}(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         i = Reciprocal(s)
         ig = Mul(i, g)
         a = Mul(x, ig)
         t = Mul(m, ig)
         bt = Sub(b, t)
         y = Add(a, bt)",
        68,
    );
}

/// A float16 stretch between norm and Linear: the Linear is float16 then, and still behind the norm.
#[test]
fn cast_between_norm_and_linear() {
    let model = model(
        "in x[2, s, 8]
         const g[8]
         const b[8]
         half w[8, 4]
         y = LayerNormalization(x, g, b)
         h = Cast{to = 10}(y)
         z16 = MatMul(h, w)
         z = Cast{to = 1}(z16)
         out z",
    );
    let found = found(&model);
    assert_eq!(found.linears.raw[0].dtype, DataType::Float16);
    let view = View::new(&model);
    let sites = onnx_osplus::site::find_sites(&view, &found, &Default::default(), false);
    assert!(sites[0].has_sink());
}
