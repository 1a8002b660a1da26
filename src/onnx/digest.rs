//! SHA-256 of what went into a model, as `sha256sum` prints it.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// A SHA-256 in the making.
#[derive(Clone, Debug, Default)]
pub struct Digest(Sha256);

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// `sha256:` and 64 hexadecimal digits.
    pub fn text(self) -> String {
        format!("sha256:{}", hex(&self.0.finalize()))
    }
}

/// The SHA-1 of a file's content in 40 hexadecimal digits: ONNX's `checksum` of external data.
pub(super) fn sha1(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::digest(bytes))
}

/// What a `checksum` entry says, if it is a SHA-1; other programs may write something else there.
pub(super) fn sha1_of_entry(value: &str) -> Option<String> {
    let is_one = value.len() == 40 && value.bytes().all(|b| b.is_ascii_hexdigit());
    is_one.then(|| value.to_ascii_lowercase())
}

/// A SHA-1 in the making.
#[derive(Default)]
pub(super) struct Checksum(sha1::Sha1);

impl Checksum {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn text(self) -> String {
        hex(&self.0.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The digest of a file.
///
/// # Errors
/// Whatever stops the file from being read.
pub fn digest_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    let mut digest = Digest::default();
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.text()),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4's own example.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_file(&path).unwrap(), abc);
        assert!(digest_file(folder.path()).is_err());
    }
}
