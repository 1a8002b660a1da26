//! Wrong usage that the parser of the command line does not see.

/// Options that say nothing together, found after the parser of the command line.
#[derive(Debug)]
pub(super) struct Usage(String);

impl Usage {
    pub(super) fn error(text: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Usage(text.into()))
    }
}

impl std::error::Error for Usage {}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
