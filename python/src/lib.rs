//! The Python package: a thin layer over the library.

use pyo3::prelude::*;

/// The version of the package.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// What the Python files of the package import.
#[pymodule]
fn _onnx_osplus(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(version, module)?)
}
