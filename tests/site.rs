//! Which Linears and norms are found, what almost is one and why it is not, and who reads a site's value.

use crate::common;
use crate::common::graphs::{Builder, Size, info, model};
use onnx_osplus::graph::View;
use onnx_osplus::onnx::node::{int_attr, ints_attr, make_node};
use onnx_osplus::onnx::{DataType, Model, tensor};
use onnx_osplus::recognise::{Linear, LinearForm, Recognised, recognise};
use onnx_osplus::site::{Sink, Site, behind, find_sites, normed_stream};

/// A graph over x: [batch, tokens, 4] (or [tokens, 4]) whose constants are all 1.
fn graph(rank: usize, build: impl FnOnce(&mut Builder)) -> Model {
    let size = Size { c: 4, n: 2, rank };
    let mut one = || 1.0;
    let mut builder = Builder::new(size, &mut one);
    builder.input("x");
    build(&mut builder);
    builder.model()
}

fn found(model: &Model) -> (Recognised, Vec<Site>) {
    let view = View::new(model);
    let found = recognise(&view);
    let sites = find_sites(&view, &found, &Default::default(), false);
    (found, sites)
}

/// The only near miss: kind and reason.
fn miss(rank: usize, build: impl FnOnce(&mut Builder)) -> (&'static str, String) {
    let (found, _) = found(&graph(rank, build));
    assert_eq!(found.near_misses.len(), 1, "{found:#?}");
    let miss = found.near_misses.into_iter().next().unwrap();
    (miss.kind, miss.reason)
}

fn only_linear(rank: usize, build: impl FnOnce(&mut Builder)) -> (Model, Linear) {
    let model = graph(rank, build);
    let linear = found(&model).0.linears.raw.remove(0);
    (model, linear)
}

#[test]
fn near_misses_of_linears() {
    let linear = |reason: &str| ("Linear", reason.to_owned());
    let product = |shape: &'static [usize]| {
        move |b: &mut Builder| {
            b.weight("w", shape);
            b.node("MatMul", &["x", "w"], "y");
        }
    };
    assert_eq!(
        miss(3, product(&[2, 4, 2])),
        linear("its weight `w` has shape [2, 4, 2] and not rank 2")
    );
    assert_eq!(
        miss(3, product(&[4])),
        linear("its weight `w` has shape [4] and not rank 2")
    );
    assert_eq!(
        miss(3, product(&[4, 0])),
        linear("its weight `w` has no elements (shape [4, 0])")
    );
    assert_eq!(
        miss(3, product(&[3, 2])),
        linear("its input has 4 channels where its weight `w` takes 3")
    );
    let integers = miss(3, |b| {
        b.graph
            .initializer
            .push(tensor::from_i8("w", &[4, 2], &[1; 8]));
        b.node("MatMul", &["x", "w"], "y");
    });
    assert_eq!(
        integers,
        linear("its weight `w` is INT8 and not a float type")
    );
    let left = miss(2, |b| {
        b.weight("w", &[2, 4]);
        b.node("MatMul", &["w", "x"], "y");
    });
    assert_eq!(
        left,
        linear("the constant `w` is on the left of the product; a weight is expected on the right")
    );
    let overridable = miss(3, |b| {
        b.weight("w", &[4, 2]);
        b.graph
            .input
            .push(info("w", DataType::Float, &[Ok(4), Ok(2)]));
        b.node("MatMul", &["x", "w"], "y");
    });
    let reason = "its weight `w` is also a graph input, so a caller may replace it; remove it from the inputs";
    assert_eq!(overridable, linear(reason));
}

#[test]
fn a_product_of_two_computed_values_is_no_near_miss() {
    let model = graph(3, |b| {
        b.node("MatMul", &["x", "x"], "y");
    });
    assert_eq!(found(&model).0.near_misses, []);
}

#[test]
fn linears_in_every_form() {
    let (model, linear) = only_linear(3, |b| b.linear("x", "y", 4, 2));
    assert_eq!(
        (linear.k, linear.n, linear.form),
        (4, 2, LinearForm::MatMul)
    );
    assert_eq!(linear.name, "/y.product/MatMul");
    assert_eq!(linear.bias.unwrap().slot, 1);
    let view = View::new(&model);
    assert_eq!(linear.output(&view), view.value("y"));

    let (model, linear) = only_linear(2, |b| {
        b.constant("w", &[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        b.constant("c", &[1, 2], &[1.0, 2.0]);
        let factors = [("alpha", 2.0), ("beta", 3.0)];
        let mut attributes = vec![int_attr("transB", 1)];
        attributes.extend(factors.map(|(n, x)| onnx_osplus::onnx::node::float_attr(n, x)));
        b.node_with("Gemm", &["x", "w", "c"], "y", attributes);
    });
    let view = View::new(&model);
    let w = linear.load_weight(&view).unwrap();
    assert_eq!(
        w,
        ndarray::array![[2.0, 10.0], [4.0, 12.0], [6.0, 14.0], [8.0, 16.0]]
    );
    assert_eq!(linear.load_bias(&view).unwrap(), ndarray::array![3.0, 6.0]);
}

#[test]
fn what_is_added_to_a_product_is_a_bias_only_if_it_is_one_number_per_column() {
    let bias = |shape: &'static [usize]| {
        let (_, linear) = only_linear(3, |b| {
            b.weight("w", &[4, 2]);
            b.weight("b", shape);
            b.node("MatMul", &["x", "w"], "product");
            b.node("Add", &["product", "b"], "y");
        });
        linear.bias.is_some()
    };
    assert!(bias(&[2]) && bias(&[1, 2]) && bias(&[1, 1, 2]));
    assert!(!bias(&[]) && !bias(&[1]) && !bias(&[3, 2]) && !bias(&[2, 1]));
    let (_, read_twice) = only_linear(3, |b| {
        b.linear("x", "y", 4, 2);
        b.node("Relu", &["y.product"], "z");
    });
    assert_eq!(read_twice.bias, None, "the product itself is read, too");
    let (_, gemm) = only_linear(2, |b| {
        b.weight("w", &[4, 2]);
        b.weight("c", &[3, 2]);
        b.node("Gemm", &["x", "w", "c"], "y");
    });
    assert!(gemm.bias.is_none() && gemm.odd_bias);
}

#[test]
fn near_misses_of_fused_norms() {
    let norm = |reason: &str| ("LayerNormalization", reason.to_owned());
    let fused = |axis: i64, shape: &'static [usize]| {
        move |b: &mut Builder| {
            b.weight("g", shape);
            b.node_with(
                "LayerNormalization",
                &["x", "g"],
                "n",
                vec![int_attr("axis", axis)],
            );
        }
    };
    assert_eq!(
        miss(3, fused(1, &[3, 4])),
        norm("it normalizes from axis 1 (of rank 3), not over the last axis alone")
    );
    assert_eq!(
        miss(3, fused(-1, &[3, 4])),
        norm("its γ `g` has shape [3, 4], not one element per channel of the last axis")
    );
    assert_eq!(
        miss(3, fused(-1, &[])),
        norm("its γ `g` has shape [], not one element per channel of the last axis")
    );
    let computed = miss(3, |b| {
        b.node("LayerNormalization", &["x", "x"], "n");
    });
    assert_eq!(computed, norm("its γ `x` is not a constant"));
    let unequal = miss(3, |b| {
        b.weight("g", &[4]);
        b.weight("b", &[1]);
        b.node("LayerNormalization", &["x", "g", "b"], "n");
    });
    assert_eq!(
        unequal,
        norm("its β `b` has shape [1], not one element per channel of the last axis")
    );
    // Mean and deviation are those of x: they do not change with γ and β.
    let mean_is_read = graph(3, |b| {
        b.weight("g", &[4]);
        let node = make_node(
            "LayerNormalization",
            "n",
            &["x", "g"],
            &["n", "mean"],
            vec![],
        );
        b.graph.node.push(node);
        b.node("Neg", &["mean"], "z");
    });
    assert_eq!(found(&mean_is_read).0.norms.len(), 1);
}

/// The decomposition of RMSNormalization up to the normalized value, with the mean over `axes`.
fn rms(b: &mut Builder, axes: &[i64]) {
    b.constant("two", &[], &[2.0]);
    b.constant("epsilon", &[], &[1e-6]);
    b.node("Pow", &["x", "two"], "squared");
    let mut squared = b.graph.input[0].clone();
    squared.name = Some("squared".to_owned());
    b.graph.value_info.push(squared);
    b.node_with(
        "ReduceMean",
        &["squared"],
        "mean",
        vec![ints_attr("axes", axes)],
    );
    b.node("Add", &["mean", "epsilon"], "sum");
    b.node("Sqrt", &["sum"], "root");
    b.node("Div", &["x", "root"], "normalized");
}

#[test]
fn near_misses_of_decomposed_norms() {
    let norm = |reason: &str| ("RMSNormalization", reason.to_owned());
    let gamma = |b: &mut Builder, shape: &[usize]| {
        b.weight("g", shape);
        b.node("Mul", &["normalized", "g"], "n");
    };
    let axis = miss(3, |b| {
        rms(b, &[1]);
        gamma(b, &[4]);
    });
    assert_eq!(
        axis,
        norm("its mean is over axes [1] of rank 3, not over the last axis alone")
    );
    let two_axes = miss(3, |b| {
        rms(b, &[-2, -1]);
        gamma(b, &[4]);
    });
    assert_eq!(
        two_axes,
        norm("its mean is over axes [-2, -1] of rank 3, not over the last axis alone")
    );
    let no_gamma = miss(3, |b| rms(b, &[-1]));
    let expected = "a Mul with a constant γ is expected as the only reader of";
    assert_eq!(
        no_gamma,
        norm(&format!(
            "{expected} `normalized`, which is read by nothing"
        ))
    );
    let read_before = miss(3, |b| {
        rms(b, &[-1]);
        gamma(b, &[4]);
        b.node("Neg", &["normalized"], "z");
    });
    let mul = "Mul `/n/Mul` and 1 more";
    assert_eq!(
        read_before,
        norm(&format!("{expected} `normalized`, which is read by {mul}"))
    );
    let scalar_gamma = miss(3, |b| {
        rms(b, &[-1]);
        gamma(b, &[]);
    });
    assert_eq!(
        scalar_gamma,
        norm(&format!("{expected} `n`, which is read by nothing"))
    );
    let model = graph(3, |b| {
        b.node("Sqrt", &["x"], "y");
    });
    assert_eq!(found(&model).0.near_misses, [], "any other square root");
}

/// The sink's reason, if the only site has none.
fn no_sink(rank: usize, build: impl FnOnce(&mut Builder)) -> String {
    let (_, sites) = found(&graph(rank, build));
    match &sites[0].sink {
        Sink::None(reason) => reason.clone(),
        sink => panic!("{sink:?}"),
    }
}

#[test]
fn linears_without_a_norm_say_why() {
    assert_eq!(
        no_sink(3, |b| b.linear("x", "y", 4, 2)),
        "it is a graph input"
    );
    let computed = no_sink(3, |b| {
        b.node("Relu", &["x"], "r");
        b.linear("r", "y", 4, 2);
    });
    assert_eq!(computed, "it is computed by Relu, not by a normalization");
    let output = no_sink(3, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "y", 4, 2);
        b.output("norm", 4);
    });
    assert_eq!(output, "`norm` is a graph output, which must stay as it is");
    let transposed = no_sink(2, |b| {
        b.layer_norm("x", "norm");
        b.weight("w", &[3, 2]);
        b.node_with("Gemm", &["norm", "w"], "y", vec![int_attr("transA", 1)]);
    });
    assert_eq!(
        transposed,
        "its channels are not on the last axis (Gemm with transA)"
    );
    let broadcast = no_sink(2, |b| {
        b.size.c = 1;
        b.layer_norm("x", "norm");
        b.weight("w", &[4, 2]);
        b.node("Gemm", &["norm", "w"], "y");
    });
    assert_eq!(
        broadcast,
        "`/norm/LayerNormalization` is not folded: its γ `norm.gamma` has shape [1], not one element per channel of the last axis"
    );
}

#[test]
fn a_walk_ends_before_the_stack_does() {
    const LENGTH: usize = 20_000;
    let model = graph(3, |b| {
        b.linear("x", "v0", 4, 4);
        for i in 0..LENGTH {
            b.node("Relu", &[&format!("v{i}")], &format!("v{}", i + 1));
        }
        b.linear(&format!("v{LENGTH}"), "y", 4, 2);
    });
    let shapes = (0..=LENGTH).map(|i| (format!("v{i}"), vec![2, 3, 4]));
    let view = View::new(&model);
    let sites = find_sites(&view, &recognise(&view), &shapes.collect(), false);
    let Sink::None(reason) = &sites[1].sink else {
        panic!("{:?}", sites[1].sink)
    };
    assert_eq!(
        reason,
        "more than 200 operators lie between it and `v19800`"
    );
}

#[test]
fn readers_are_split_into_linears_and_the_rest() {
    let split = |build: fn(&mut Builder)| {
        let (_, sites) = found(&graph(3, |b| {
            b.layer_norm("x", "norm");
            build(b);
        }));
        let site = &sites[0];
        assert!(site.has_sink());
        (site.linears.len(), site.absorb.len(), site.restore)
    };
    assert_eq!(split(|b| b.linear("norm", "y", 4, 2)), (1, 1, false));
    let residual = |b: &mut Builder| {
        b.linear("norm", "y", 4, 4);
        b.node("Add", &["y", "norm"], "z");
    };
    assert_eq!(split(residual), (1, 1, true));
    let behind_one_dropout = |b: &mut Builder| {
        b.node("Dropout", &["norm"], "d");
        b.linear("d", "y", 4, 2);
        b.linear("d", "z", 4, 2);
    };
    assert_eq!(
        split(behind_one_dropout),
        (2, 1, false),
        "Dropout carries x'"
    );
    let dropout_is_read = |b: &mut Builder| {
        b.node("Dropout", &["norm"], "d");
        b.linear("d", "y", 4, 4);
        b.node("Add", &["y", "d"], "z");
    };
    assert_eq!(
        split(dropout_is_read),
        (1, 1, true),
        "its Linear reads x' itself"
    );
    let as_weight = |b: &mut Builder| {
        b.linear("norm", "y", 4, 2);
        b.node("MatMul", &["norm", "norm"], "z");
    };
    assert_eq!(split(as_weight), (1, 1, true), "attention's own product");
}

#[test]
fn a_cast_that_others_read_keeps_its_linear_to_itself() {
    let (found, sites) = found(&graph(3, |b| {
        b.layer_norm("x", "norm");
        b.node_with("Cast", &["norm"], "cast", vec![int_attr("to", 1)]);
        b.linear("cast", "y", 4, 4);
        b.node("Add", &["y", "cast"], "z");
        b.linear("norm", "w", 4, 2);
    }));
    assert_eq!(found.linears.len(), 2);
    assert_eq!(sites.len(), 2);
    assert!(!sites[0].has_sink(), "the one behind the Cast");
    assert!(sites[1].has_sink() && sites[1].restore);
}

#[test]
fn a_shift_needs_a_beta_and_biases_that_take_it() {
    let shift = |rank: usize, build: fn(&mut Builder)| {
        let (_, sites) = found(&graph(rank, build));
        assert!(sites[0].has_sink());
        sites[0].allow_shift
    };
    assert!(shift(3, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "y", 4, 2);
    }));
    assert!(shift(3, |b| {
        b.weight("g", &[4]);
        b.fused_norm(&["x", "g"], "norm");
        b.linear("norm", "y", 4, 2);
    }));
    assert!(!shift(3, |b| {
        rms(b, &[-1]);
        b.weight("g", &[4]);
        b.node("Mul", &["normalized", "g"], "norm");
        b.linear("norm", "y", 4, 2);
    }));
    assert!(!shift(2, |b| {
        b.layer_norm("x", "norm");
        b.weight("w", &[4, 2]);
        b.weight("c", &[3, 2]);
        b.node("Gemm", &["norm", "w", "c"], "y");
    }));
}

#[test]
fn every_linear_is_in_exactly_one_site() {
    let form = |f: &common::graphs::Form, rank| f.model(Size { c: 4, n: 2, rank }, &mut || 1.0);
    for f in common::graphs::FORMS {
        let (found, sites) = found(&form(f, f.ranks[0]));
        let linears = sites.iter().flat_map(|s| &s.linears);
        let mut all: Vec<usize> = linears.map(|l| l.index()).collect();
        all.sort_unstable();
        assert_eq!(
            all,
            (0..found.linears.len()).collect::<Vec<_>>(),
            "{}",
            f.name
        );
        assert!(sites.is_sorted_by_key(|s| s.linears[0]), "{}", f.name);
    }
    let empty = model(17, 8, Default::default());
    assert!(found(&empty).1.is_empty());
}

/// x W + b to a residual, which is normed behind: whatever changes nothing, or every token alike, may lie between.
#[test]
fn what_a_norm_reads_is_the_stream() {
    let residual = |between: fn(&mut Builder)| {
        move |b: &mut Builder| {
            b.linear("x", "y", 4, 4);
            between(b);
            b.node("Add", &["x", "z"], "r");
            b.layer_norm("r", "n");
            b.linear("n", "out", 4, 2);
        }
    };
    let writer = |build: &dyn Fn(&mut Builder)| {
        let model = graph(3, build);
        let view = View::new(&model);
        let found = recognise(&view);
        let ids: Vec<_> = found.linears.indices().collect();
        let name = |v| view.name(v).to_owned();
        let streams = ids
            .iter()
            .map(|&l| normed_stream(&view, &found, &[l]).map(name));
        let behind = behind(&view, &found, &ids[..1]);
        (
            streams.collect::<Vec<_>>(),
            behind.into_iter().collect::<Vec<_>>() == ids[1..],
        )
    };
    let same: [fn(&mut Builder); 3] = [
        |b| _ = b.node("Identity", &["y"], "z"),
        |b| {
            b.constant("layer_scale", &[4], &[0.1, 0.2, 0.3, 0.4]);
            b.node("Mul", &["y", "layer_scale"], "z");
        },
        |b| {
            b.node("Dropout", &["y"], "d");
            b.node("Add", &["d", "x"], "z");
        },
    ];
    for between in same {
        let found = writer(&residual(between));
        assert_eq!(found, (vec![Some("r".to_owned()), None], true));
    }
    // An activation, a gate and a softmax make something else of it.
    let other: [fn(&mut Builder); 3] = [
        |b| _ = b.node("Relu", &["y"], "z"),
        |b| _ = b.node("Mul", &["y", "x"], "z"),
        |b| _ = b.node("Softmax", &["y"], "z"),
    ];
    for between in other {
        let found = writer(&residual(between));
        assert_eq!(found, (vec![None, None], true));
    }
}

#[test]
fn a_stream_that_nothing_norms_is_none() {
    let model = graph(3, |b| {
        b.linear("x", "y", 4, 4);
        b.node("Add", &["x", "y"], "r");
        b.node("Relu", &["r"], "out");
    });
    let view = View::new(&model);
    let found = recognise(&view);
    let only: Vec<_> = found.linears.indices().collect();
    assert_eq!(normed_stream(&view, &found, &only), None);
    assert!(behind(&view, &found, &only).is_empty());
    assert_eq!(normed_stream(&view, &found, &[]), None);
}
