//! What can be wrong with a graph.

use thiserror::Error;

/// What is wrong with a graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphError {
    /// A value is read before, or without, being defined.
    #[error("{reader} reads `{value}`, which nothing before it defines")]
    Undefined {
        /// The node, or the list of graph outputs.
        reader: String,
        /// The missing value.
        value: String,
    },
    /// A value is defined twice.
    #[error("`{value}` is defined twice")]
    Redefined {
        /// The value.
        value: String,
    },
    /// A node that no version of its operator allows.
    #[error("node `{node}` ({op}) {problem}")]
    Node {
        /// Its name, or that of its first output.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong with it, as the rest of the sentence.
        problem: String,
    },
    /// Functions whose bodies, put in the place of their calls, would be more than any model has.
    #[error("the calls of function `{function}` {problem}")]
    Functions {
        /// `domain.name` of the function that goes over the limit.
        function: String,
        /// How, as the rest of the sentence.
        problem: String,
    },
}
