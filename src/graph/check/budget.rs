//! How much the calls of model-local functions would become, without opening any.
//!
//! ```text
//! size(F) = Σ over the nodes of F: 1, or size(G) for a call of G        depth(F) = 1 + max depth(G)
//! ```
//!
//! A few hundred bytes can call functions that call functions, twice each; opened, that is more than any memory.

use std::collections::BTreeMap;

use super::error::GraphError;
use crate::graph::functions::{Functions, Key, full_name, key_of};
use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::proto::{FunctionProto, NodeProto};

/// Calls inside of calls. Exporters make one level per module, some ten.
const MOST_DEEP: usize = 64;

/// Nodes of all bodies together.
const MOST_NODES: usize = 1_000_000;

/// What a function becomes.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    depth: usize,
}

/// A function that is being measured.
struct Frame<'m> {
    function: &'m FunctionProto,
    calls: Vec<&'m FunctionProto>,
    size: Size,
}

pub(super) fn check(model: &Model) -> Result<(), GraphError> {
    if model.proto.functions.is_empty() {
        return Ok(());
    }
    let functions = Functions::new(&model.proto.functions);
    let mut known: BTreeMap<Key, Size> = BTreeMap::new();
    let mut nodes = 0usize;
    for function in calls(&functions, &model.graph().node).1 {
        let size = measure(&functions, function, &mut known)?;
        nodes = nodes.saturating_add(size.nodes);
        if nodes > MOST_NODES {
            return Err(too_many(function));
        }
    }
    Ok(())
}

/// The size of a function. With a stack of its own: that of the program is what deep calls would use up.
fn measure<'m>(
    functions: &Functions<'m>,
    function: &'m FunctionProto,
    known: &mut BTreeMap<Key, Size>,
) -> Result<Size, GraphError> {
    let frame = |function: &'m FunctionProto| {
        let (nodes, calls) = calls(functions, &function.node);
        let size = Size { nodes, depth: 1 };
        Frame {
            function,
            calls,
            size,
        }
    };
    if let Some(size) = known.get(&key_of(function)) {
        return Ok(*size);
    }
    // One that calls itself is never opened: while it is measured, it counts as nothing.
    known.insert(key_of(function), Size::default());
    let mut stack = vec![frame(function)];
    while let Some(top) = stack.last_mut() {
        if let Some(called) = top.calls.pop() {
            match known.get(&key_of(called)) {
                Some(size) => top.size = top.size.with(*size),
                None => {
                    known.insert(key_of(called), Size::default());
                    top.calls.push(called);
                    stack.push(frame(called));
                }
            }
        } else {
            let (function, size) = (top.function, top.size);
            if size.nodes > MOST_NODES {
                return Err(too_many(function));
            }
            if size.depth > MOST_DEEP {
                return Err(GraphError::Functions {
                    function: full_name(function),
                    problem: format!("are more than {MOST_DEEP} inside of each other"),
                });
            }
            known.insert(key_of(function), size);
            stack.pop();
        }
    }
    Ok(known.get(&key_of(function)).copied().unwrap_or_default())
}

impl Size {
    fn with(self, inner: Size) -> Size {
        Size {
            nodes: self.nodes.saturating_add(inner.nodes),
            depth: self.depth.max(1 + inner.depth),
        }
    }
}

fn too_many(function: &FunctionProto) -> GraphError {
    GraphError::Functions {
        function: full_name(function),
        problem: format!("become more than {MOST_NODES} nodes when they are opened"),
    }
}

/// The number of nodes, those in subgraphs included, and the functions that they call, once per call.
fn calls<'m>(functions: &Functions<'m>, nodes: &'m [NodeProto]) -> (usize, Vec<&'m FunctionProto>) {
    let (mut count, mut called) = (nodes.len(), Vec::new());
    for node in nodes {
        called.extend(functions.of(node));
        for graph in subgraphs(node) {
            let (inner, more) = calls(functions, &graph.node);
            count += inner;
            called.extend(more);
        }
    }
    (count, called)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::node::make_node;
    use crate::onnx::proto::{GraphProto, ModelProto};

    /// f0 … f(n-1); each calls the next `times` times, the last is an Identity.
    fn chain(n: usize, times: usize) -> Model {
        let name = |i: usize| format!("f{i}");
        let call = |op: &str, output: &str| {
            let mut node = make_node(op, "", &["x"], &[output], vec![]);
            if op != "Identity" {
                node.domain = Some("d".into());
            }
            node
        };
        let function = |i: usize| FunctionProto {
            name: Some(name(i)),
            domain: Some("d".into()),
            node: match i + 1 < n {
                true => (0..times)
                    .map(|t| call(&name(i + 1), &format!("y{t}")))
                    .collect(),
                false => vec![call("Identity", "y0")],
            },
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![call("f0", "y")],
            ..Default::default()
        };
        Model {
            proto: ModelProto {
                graph: Some(graph),
                functions: (0..n).map(function).collect(),
                ..Default::default()
            },
        }
    }

    #[test]
    fn what_would_not_end_is_refused_by_name() {
        assert!(check(&chain(10, 2)).is_ok());
        assert!(check(&chain(MOST_DEEP, 1)).is_ok());
        let told = |n, times| check(&chain(n, times)).unwrap_err().to_string();
        assert!(
            told(MOST_DEEP + 1, 1).contains("d.f0"),
            "{}",
            told(MOST_DEEP + 1, 1)
        );
        assert!(told(100_000, 1).contains("inside of each other"));
        assert!(told(30, 2).contains("nodes"), "{}", told(30, 2));
    }

    #[test]
    fn a_function_that_calls_itself_is_measured_as_well() {
        let mut model = chain(3, 1);
        model.proto.functions[2].node[0].op_type = Some("f0".into());
        model.proto.functions[2].node[0].domain = Some("d".into());
        assert!(check(&model).is_ok());
    }
}
