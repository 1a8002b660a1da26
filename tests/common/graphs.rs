//! Small graphs in the forms that exporters leave, with constants from any source.

use onnx_osplus::onnx::node::{
    float_attr, graph_attr, int_attr, ints_attr, make_node, tensor_attr,
};
use onnx_osplus::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model, tensor};

/// Sizes of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Channels of the norms.
    pub c: usize,
    /// Output channels of the Linears.
    pub n: usize,
    /// The rank of x: 2 for [tokens, C], 3 for [batch, tokens, C].
    pub rank: usize,
}

/// A graph under construction.
pub struct Builder<'a> {
    pub size: Size,
    pub graph: GraphProto,
    /// The next element of a constant.
    next: &'a mut dyn FnMut() -> f32,
}

impl<'a> Builder<'a> {
    pub fn new(size: Size, next: &'a mut dyn FnMut() -> f32) -> Self {
        let graph = GraphProto {
            name: Some("main".to_owned()),
            ..GraphProto::default()
        };
        Builder { size, graph, next }
    }

    pub fn model(self) -> Model {
        model(17, 8, self.graph)
    }

    fn tokens(&self, channels: usize) -> Vec<Result<i64, &'static str>> {
        let mut dims = vec![Ok(channels as i64)];
        dims.insert(0, Err("tokens"));
        if self.size.rank == 3 {
            dims.insert(0, Err("batch"));
        }
        dims
    }

    pub fn input(&mut self, name: &str) {
        let info = info(name, DataType::Float, &self.tokens(self.size.c));
        self.graph.input.push(info);
    }

    pub fn output(&mut self, name: &str, channels: usize) {
        let info = info(name, DataType::Float, &self.tokens(channels));
        self.graph.output.push(info);
    }

    /// An initializer with elements from the source.
    pub fn weight(&mut self, name: &str, shape: &[usize]) {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| (self.next)()).collect();
        self.constant(name, shape, &data);
    }

    pub fn constant(&mut self, name: &str, shape: &[usize], data: &[f32]) {
        let tensor = tensor::from_f32(name, shape, data, DataType::Float);
        self.graph.initializer.push(tensor);
    }

    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.node_with(op, inputs, output, vec![])
    }

    /// A node that is named after its output.
    pub fn node_with(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> &mut NodeProto {
        let name = format!("/{output}/{op}");
        let node = make_node(op, &name, inputs, &[output], attributes);
        self.graph.node.push(node);
        self.graph.node.last_mut().unwrap()
    }

    /// LayerNormalization of `x` with constants `{y}.gamma` and `{y}.beta`.
    pub fn layer_norm(&mut self, x: &str, y: &str) {
        let (gamma, beta) = (format!("{y}.gamma"), format!("{y}.beta"));
        self.weight(&gamma, &[self.size.c]);
        self.weight(&beta, &[self.size.c]);
        self.fused_norm(&[x, &gamma, &beta], y);
    }

    pub fn fused_norm(&mut self, inputs: &[&str], y: &str) {
        let attributes = vec![int_attr("axis", -1), float_attr("epsilon", 1e-5)];
        self.node_with("LayerNormalization", inputs, y, attributes);
    }

    /// MatMul and Add with constants `{y}.weight`: [k, n] and `{y}.bias`: [n].
    pub fn linear(&mut self, x: &str, y: &str, k: usize, n: usize) {
        let (weight, bias, product) = (
            format!("{y}.weight"),
            format!("{y}.bias"),
            format!("{y}.product"),
        );
        self.weight(&weight, &[k, n]);
        self.weight(&bias, &[n]);
        self.node("MatMul", &[x, &weight], &product);
        self.node("Add", &[&product, &bias], y);
    }
}

/// A model around a graph.
pub fn model(opset: i64, ir_version: i64, graph: GraphProto) -> Model {
    let set = OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(opset),
    };
    let proto = ModelProto {
        ir_version: Some(ir_version),
        opset_import: vec![set],
        graph: Some(graph),
        ..ModelProto::default()
    };
    Model { proto }
}

/// A value of a type and shape; an axis is a length or a symbol.
pub fn info(name: &str, dtype: DataType, dims: &[Result<i64, &str>]) -> ValueInfoProto {
    let dim = |dim: &Result<i64, &str>| Dimension {
        value: Some(match dim {
            Ok(length) => dimension::Value::DimValue(*length),
            Err(symbol) => dimension::Value::DimParam((*symbol).to_owned()),
        }),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype as i32),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// A graph form: a name, and what builds it around the input `x`.
pub struct Form {
    pub name: &'static str,
    pub build: fn(&mut Builder),
    /// Gemm takes rank 2 only.
    pub ranks: &'static [usize],
    /// Sites whose norm takes the affine.
    pub sinks: usize,
}

const BOTH: &[usize] = &[2, 3];

/// Every form, each with a Linear behind a norm.
pub const FORMS: &[Form] = &[
    form("post_ln", post_ln, BOTH, 1),
    form("post_ln_of_rows", post_ln_of_rows, BOTH, 1),
    form("pre_ln", pre_ln, BOTH, 1),
    form("decomposed_ln", decomposed_ln, BOTH, 1),
    form("llama_rms", llama_rms, BOTH, 1),
    form("no_beta", no_beta, BOTH, 1),
    form("shared_gamma", shared_gamma, BOTH, 2),
    form("shared_weight", shared_weight, BOTH, 2),
    form("no_bias", no_bias, BOTH, 1),
    form("gemm", gemm, &[2], 1),
    form("gemm_bias_forms", gemm_bias_forms, &[2], 1),
    form("gemm_computed_bias", gemm_computed_bias, &[2], 1),
    form("bias_of_rank_3", bias_of_rank_3, BOTH, 1),
    form("dropout_and_cast", dropout_and_cast, BOTH, 1),
    form("dropout_and_residual", dropout_and_residual, BOTH, 1),
    form("transposed_weight", transposed_weight, BOTH, 1),
    form("graph_output", graph_output, BOTH, 0),
    form("captured", captured, BOTH, 1),
];

const fn form(
    name: &'static str,
    build: fn(&mut Builder),
    ranks: &'static [usize],
    sinks: usize,
) -> Form {
    Form {
        name,
        build,
        ranks,
        sinks,
    }
}

/// The form of that name.
pub fn form_named(name: &str) -> &'static Form {
    FORMS.iter().find(|form| form.name == name).unwrap()
}

impl Form {
    pub fn model(&self, size: Size, next: &mut dyn FnMut() -> f32) -> Model {
        let mut builder = Builder::new(size, next);
        builder.input("x");
        (self.build)(&mut builder);
        builder.model()
    }
}

/// A feed-forward block behind its norm: the residual reads the normalized value.
fn post_ln(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.linear("norm", "up", c, n);
    b.node("Relu", &["up"], "act");
    b.linear("act", "down", n, c);
    b.node("Add", &["down", "norm"], "y");
    b.output("y", c);
}

/// The block works on rows: its Linear and its residual read the norm through one Reshape (OPT).
fn post_ln_of_rows(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    let rows = tensor::from_i64("rows.shape", &[2], &[-1, c as i64]);
    b.graph.initializer.push(rows);
    b.node("Reshape", &["norm", "rows.shape"], "rows");
    b.linear("rows", "up", c, n);
    b.node("Relu", &["up"], "act");
    b.linear("act", "down", n, c);
    b.node("Add", &["down", "rows"], "sum");
    b.node("Shape", &["norm"], "norm.shape");
    b.node("Reshape", &["sum", "norm.shape"], "y");
    b.output("y", c);
}

/// Query and key; the residual reads x.
fn pre_ln(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.linear("norm", "query", c, n);
    b.linear("norm", "key", c, n);
    b.node("Add", &["query", "key"], "y");
    b.output("y", n);
}

/// LayerNormalization as PyTorch's exporter writes it below opset 17.
fn decomposed_ln(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.weight("gamma", &[c]);
    b.weight("beta", &[c]);
    b.constant("two", &[], &[2.0]);
    b.constant("epsilon", &[], &[1e-5]);
    let axes = || vec![ints_attr("axes", &[-1])];
    b.node_with("ReduceMean", &["x"], "mean", axes());
    b.node("Sub", &["x", "mean"], "centred");
    b.node("Pow", &["centred", "two"], "squared");
    b.node_with("ReduceMean", &["squared"], "variance", axes());
    b.node("Add", &["variance", "epsilon"], "variance_epsilon");
    b.node("Sqrt", &["variance_epsilon"], "deviation");
    b.node("Div", &["centred", "deviation"], "normalized");
    b.node("Mul", &["normalized", "gamma"], "scaled");
    b.node("Add", &["scaled", "beta"], "norm");
    b.linear("norm", "y", c, n);
    b.output("y", n);
}

/// RMSNormalization of LLaMA: computed in float32 between two Casts, γ on the left, no biases.
fn llama_rms(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.weight("gamma", &[c]);
    b.constant("two", &[], &[2.0]);
    b.constant("epsilon", &[], &[1e-6]);
    b.constant("one", &[], &[1.0]);
    let to_float = || vec![int_attr("to", 1)];
    b.node_with("Cast", &["x"], "x32", to_float());
    b.node("Pow", &["x32", "two"], "squared");
    let axes = vec![ints_attr("axes", &[-1])];
    b.node_with("ReduceMean", &["squared"], "mean", axes);
    b.node("Add", &["mean", "epsilon"], "mean_epsilon");
    b.node("Sqrt", &["mean_epsilon"], "root");
    b.node("Div", &["one", "root"], "inverse");
    b.node("Mul", &["x32", "inverse"], "normalized32");
    b.node_with("Cast", &["normalized32"], "normalized", to_float());
    b.node("Mul", &["gamma", "normalized"], "norm");
    b.weight("query.weight", &[c, n]);
    b.weight("key.weight", &[c, n]);
    b.node("MatMul", &["norm", "query.weight"], "query");
    b.node("MatMul", &["norm", "key.weight"], "key");
    b.node("Add", &["query", "key"], "y");
    b.output("y", n);
}

/// A fused norm without β.
fn no_beta(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.weight("gamma", &[c]);
    b.fused_norm(&["x", "gamma"], "norm");
    b.linear("norm", "y", c, n);
    b.output("y", n);
}

/// Two norms with the same γ and β.
fn shared_gamma(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.weight("gamma", &[c]);
    b.weight("beta", &[c]);
    b.fused_norm(&["x", "gamma", "beta"], "norm1");
    b.linear("norm1", "first", c, n);
    b.node("Neg", &["x"], "negated");
    b.fused_norm(&["negated", "gamma", "beta"], "norm2");
    b.linear("norm2", "second", c, n);
    b.node("Add", &["first", "second"], "y");
    b.output("y", n);
}

/// Two norms whose Linears share a weight and a bias.
fn shared_weight(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm1");
    b.layer_norm("x", "norm2");
    b.weight("weight", &[c, n]);
    b.weight("bias", &[n]);
    for (norm, y) in [("norm1", "first"), ("norm2", "second")] {
        let product = format!("{y}.product");
        b.node("MatMul", &[norm, "weight"], &product);
        b.node("Add", &[&product, "bias"], y);
    }
    b.node("Add", &["first", "second"], "y");
    b.output("y", n);
}

/// A Linear without a bias.
fn no_bias(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight", &[c, n]);
    b.node("MatMul", &["norm", "weight"], "y");
    b.output("y", n);
}

/// Gemm with every attribute.
fn gemm(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight", &[n, c]);
    b.weight("bias", &[n]);
    let attributes = vec![
        float_attr("alpha", 0.5),
        float_attr("beta", 2.0),
        int_attr("transB", 1),
    ];
    b.node_with("Gemm", &["norm", "weight", "bias"], "y", attributes);
    b.output("y", n);
}

/// Gemm without a bias, and with a single number for one.
fn gemm_bias_forms(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight1", &[c, n]);
    b.weight("weight2", &[c, n]);
    b.weight("number", &[]);
    b.node("Gemm", &["norm", "weight1"], "first");
    b.node("Gemm", &["norm", "weight2", "number"], "second");
    b.node("Add", &["first", "second"], "y");
    b.output("y", n);
}

/// The bias of a Gemm with every attribute is computed: it can take no shift.
fn gemm_computed_bias(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight1", &[c, n]);
    b.weight("weight2", &[c, n]);
    b.node("Gemm", &["norm", "weight1"], "first");
    let attributes = vec![float_attr("alpha", 0.5), float_attr("beta", 2.0)];
    b.node_with("Gemm", &["norm", "weight2", "first"], "y", attributes);
    b.output("y", n);
}

/// A bias with more axes than it needs. If x has two, y has three.
fn bias_of_rank_3(b: &mut Builder) {
    let Size { c, n, rank } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight", &[c, n]);
    b.weight("bias", &[1, 1, n]);
    b.node("MatMul", &["norm", "weight"], "product");
    b.node("Add", &["product", "bias"], "y");
    b.size.rank = 3;
    b.output("y", n);
    b.size.rank = rank;
}

/// Dropout and Cast between the norm and its Linear.
fn dropout_and_cast(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.node("Dropout", &["norm"], "dropped");
    b.node_with("Cast", &["dropped"], "cast", vec![int_attr("to", 1)]);
    b.linear("cast", "y", c, n);
    b.output("y", n);
}

/// The residual reads what Dropout hands on.
fn dropout_and_residual(b: &mut Builder) {
    let Size { c, .. } = b.size;
    b.layer_norm("x", "norm");
    b.node("Dropout", &["norm"], "dropped");
    b.linear("dropped", "out", c, c);
    b.node("Add", &["out", "dropped"], "y");
    b.output("y", c);
}

/// The weight is stored as [N, C] behind a Transpose, as PyTorch stores it, and the bias is on the left.
fn transposed_weight(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.weight("weight", &[n, c]);
    b.weight("bias", &[n]);
    b.node_with(
        "Transpose",
        &["weight"],
        "weight_t",
        vec![ints_attr("perm", &[1, 0])],
    );
    b.node("MatMul", &["norm", "weight_t"], "product");
    b.node("Add", &["bias", "product"], "y");
    b.output("y", n);
}

/// The normalized value is itself an output of the graph.
fn graph_output(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.linear("norm", "y", c, n);
    b.output("norm", c);
    b.output("y", n);
}

/// Both branches of an If read the normalized value.
fn captured(b: &mut Builder) {
    let Size { c, n, .. } = b.size;
    b.layer_norm("x", "norm");
    b.linear("norm", "out", c, n);
    let dims = b.tokens(c);
    read_by_branches(b, "norm", &dims);
    b.output("chosen", c);
    b.output("out", n);
}

/// An If whose branches capture `value`, of these `dims`; its output is `chosen`.
pub fn read_by_branches(b: &mut Builder, value: &str, dims: &[Result<i64, &'static str>]) {
    let branch = |name: &str, op: &str| {
        let output = format!("{name}_out");
        GraphProto {
            name: Some(name.to_owned()),
            node: vec![make_node(op, "", &[value], &[&output], vec![])],
            output: vec![ValueInfoProto {
                name: Some(output),
                ..info("", DataType::Float, dims)
            }],
            ..GraphProto::default()
        }
    };
    let branches = vec![
        graph_attr("then_branch", branch("then", "Relu")),
        graph_attr("else_branch", branch("else", "Neg")),
    ];
    let mut condition = tensor::from_u8("condition", &[], &[1]);
    condition.data_type = Some(DataType::Bool as i32);
    let condition = vec![tensor_attr("value", condition)];
    b.node_with("Constant", &[], "condition", condition);
    b.node_with("If", &["condition"], "chosen", branches);
}
