//! Which engine runs the model.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use onnx_osplus::calibrate::{Engine, TractEngine};

/// The flags of the engine.
#[derive(Clone, Debug, Args)]
pub(crate) struct EngineArguments {
    /// What runs the model: the engine that is built in, or the library of ONNX Runtime, which has every operator, contrib ones
    /// included [example: --engine onnxruntime]
    #[arg(long, value_enum, default_value_t = EngineName::Tract)]
    engine: EngineName,

    /// The library for --engine onnxruntime, 1.17 or newer [default: ORT_DYLIB_PATH, or that of the Python package]
    /// [example: --ort-library /opt/onnxruntime/lib/libonnxruntime.so]
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,

    /// Where ONNX Runtime computes [example: --ort-provider cuda]
    #[arg(long, value_enum, default_value_t = ProviderName::Cpu)]
    ort_provider: ProviderName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineName {
    Tract,
    Onnxruntime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProviderName {
    Cpu,
    Cuda,
}

impl EngineArguments {
    /// The engine that was asked for.
    pub(super) fn engine(&self) -> Result<Box<dyn Engine>> {
        if self.engine == EngineName::Tract {
            if self.ort_library.is_some() || self.ort_provider != ProviderName::Cpu {
                return Err(super::usage::Usage::error(
                    "--ort-library and --ort-provider are for --engine onnxruntime",
                ));
            }
            return Ok(Box::new(TractEngine));
        }
        self.onnxruntime()
    }

    /// The name of the engine, for what depends on it.
    pub(super) fn name(&self) -> &'static str {
        match self.engine {
            EngineName::Tract => "tract",
            EngineName::Onnxruntime => "onnxruntime",
        }
    }

    #[cfg(feature = "onnxruntime")]
    fn onnxruntime(&self) -> Result<Box<dyn Engine>> {
        use onnx_osplus::calibrate::{OnnxRuntimeEngine, Provider};
        let Some(library) = self.ort_library.clone().or_else(installed) else {
            bail!(
                "no library of ONNX Runtime was found; give it with --ort-library, or install the Python package (pip install \
                 onnxruntime) in the environment that is active"
            );
        };
        let provider = match self.ort_provider {
            ProviderName::Cpu => Provider::Cpu,
            ProviderName::Cuda => Provider::Cuda,
        };
        let engine = OnnxRuntimeEngine::load(&library, provider);
        Ok(Box::new(engine.map_err(onnx_osplus::Error::from)?))
    }

    #[cfg(not(feature = "onnxruntime"))]
    fn onnxruntime(&self) -> Result<Box<dyn Engine>> {
        bail!("this program was built without the feature `onnxruntime`")
    }
}

/// The library that a variable names, or that of the Python package in the active environment, the user's own or the system's.
#[cfg(feature = "onnxruntime")]
fn installed() -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the program, and these are its user's settings"
    )]
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(path) = variable("ORT_DYLIB_PATH").filter(|path| path.is_file()) {
        return Some(path);
    }
    let mut roots: Vec<PathBuf> = Vec::new();
    roots.extend(variable("VIRTUAL_ENV").map(|p| p.join("lib")));
    roots.extend(variable("CONDA_PREFIX").map(|p| p.join("lib")));
    roots.extend(variable("HOME").map(|p| p.join(".local/lib")));
    roots.extend(["/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    roots.iter().find_map(|root| below(root))
}

#[cfg(feature = "onnxruntime")]
fn below(root: &std::path::Path) -> Option<PathBuf> {
    let entries = |folder: &std::path::Path| -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder).into_iter().flatten();
        let mut found: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.sort();
        found
    };
    let name = |path: &std::path::Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let pythons = entries(root)
        .into_iter()
        .filter(|path| name(path).starts_with("python3"));
    let packages =
        pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|p| python.join(p)));
    let mut libraries = packages.flat_map(|p| entries(&p.join("onnxruntime/capi")));
    libraries.find(|path| name(path).starts_with("libonnxruntime."))
}
