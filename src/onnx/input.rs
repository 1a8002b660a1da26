//! Files that are read through memory maps, and whether they are still what they were.

use bytes::Bytes;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::digest::Digest;
use super::load::error::LoadError;

/// A file that was opened and mapped, read-only.
///
/// The map stays, and the file stays open, when the name is deleted or goes to another file.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// As it was asked for.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Bytes,
    file: Arc<File>,
    modified: Option<SystemTime>,
}

impl InputFile {
    /// Opens and maps an ordinary file.
    ///
    /// # Errors
    /// Whatever the system says. A folder, pipe, socket or device is refused before it is opened, because opening a pipe
    /// waits for a writer, and none of them can be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        if meta.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        if let Some(kind) = special(&meta) {
            let reason =
                format!("it is {kind}, not an ordinary file; save what it holds to a file");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            bytes: map(&file)?,
            file: Arc::new(file),
            modified: meta.modified().ok(),
        })
    }

    /// SHA-256 of the bytes that are mapped.
    ///
    /// # Errors
    /// [`LoadError::Changed`] if the file has become shorter: the bytes behind its end are gone.
    pub fn digest(&self) -> Result<String, LoadError> {
        self.check_metadata()?;
        let mut digest = Digest::default();
        digest.update(&self.bytes);
        Ok(digest.text())
    }

    /// Whether size and time of the last change are those of the moment when it was opened.
    fn check_metadata(&self) -> Result<(), LoadError> {
        let same = |meta: &Metadata| {
            meta.len() == self.bytes.len() as u64 && meta.modified().ok() == self.modified
        };
        match self.file.metadata() {
            Ok(meta) if same(&meta) => Ok(()),
            // A file system that no longer answers is no proof of a change; reading will tell.
            Err(_) => Ok(()),
            Ok(_) => Err(LoadError::Changed {
                path: self.path.clone(),
            }),
        }
    }
}

/// What kind of thing that is no ordinary file.
pub(super) fn special(meta: &Metadata) -> Option<&'static str> {
    if meta.is_file() {
        return None;
    }
    if meta.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = meta.file_type();
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
    }
    Some("a device")
}

/// Maps an open file.
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    // A map of nothing is an error on some systems.
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is only read. If another process cuts the file short while it is mapped, reading ends the program
    // (SIGBUS); if it is overwritten in place, other values are read. Both are documented at `load`; the program of this
    // crate catches the first, and finds the second by `SourceFiles::check_unchanged`.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

/// The files that a model was loaded from: the model's own, and those with its external data by their locations.
///
/// ```
/// use onnx_osplus::onnx;
///
/// let (model, source) = onnx::load_with_source("models/tiny/model.onnx")?;
/// assert!(source.digests().0.starts_with("sha256:"));
/// source.check_unchanged()?;
/// # Ok::<(), onnx::LoadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SourceFiles {
    model: (InputFile, String),
    data: Vec<(String, InputFile, String)>,
}

impl SourceFiles {
    pub(super) fn new(model: InputFile, data: Vec<(String, InputFile)>) -> Result<Self, LoadError> {
        let digest = model.digest()?;
        let data = data.into_iter().map(|(location, file)| {
            let digest = file.digest()?;
            Ok((location, file, digest))
        });
        Ok(Self {
            data: data.collect::<Result<_, LoadError>>()?,
            model: (model, digest),
        })
    }

    /// SHA-256 of the bytes that were read, as `sha256sum` prints them with `sha256:` in front: of the model's file, and
    /// of each file with external data after its location.
    pub fn digests(&self) -> (String, Vec<(String, String)>) {
        let data = self.data.iter();
        let data = data.map(|(location, _, digest)| (location.clone(), digest.clone()));
        (self.model.1.clone(), data.collect())
    }

    /// Bytes of all files.
    pub fn len(&self) -> u64 {
        let data = self.data.iter().map(|(_, file, _)| file.bytes.len());
        (self.model.0.bytes.len() + data.sum::<usize>()) as u64
    }

    /// Whether all files are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The paths of all files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let data = self.data.iter().map(|(_, file, _)| file);
        data.chain([&self.model.0]).map(|file| file.path.as_path())
    }

    /// Reads every file again and compares. That a name was deleted or given to another file is no change: what was
    /// mapped is still there.
    ///
    /// # Errors
    /// [`LoadError::Changed`] names the first file that is not what it was.
    pub fn check_unchanged(&self) -> Result<(), LoadError> {
        let model = (&self.model.0, &self.model.1);
        let data = self.data.iter().map(|(_, file, digest)| (file, digest));
        for (file, digest) in data.chain([model]) {
            if file.digest()? != *digest {
                return Err(LoadError::Changed {
                    path: file.path.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn source(path: &Path) -> SourceFiles {
        SourceFiles::new(InputFile::open(path).unwrap(), Vec::new()).unwrap()
    }

    #[test]
    fn a_file_that_is_deleted_or_replaced_is_what_it_was() {
        let (folder, path) = file(b"abc");
        let read = source(&path);
        let (before, other) = (read.digests(), folder.path().join("other"));
        std::fs::write(&other, b"another").unwrap();
        std::fs::rename(&other, &path).unwrap();
        read.check_unchanged().unwrap();
        std::fs::remove_file(&path).unwrap();
        read.check_unchanged().unwrap();
        assert_eq!(read.digests(), before);
    }

    #[test]
    fn a_file_that_is_changed_in_place_is_found_out() {
        let (_folder, path) = file(b"abc");
        let read = source(&path);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut open = File::options().write(true).open(&path).unwrap();
        open.seek(SeekFrom::Start(1)).unwrap();
        open.write_all(b"x").unwrap();
        // Even with the old time.
        open.set_modified(modified).unwrap();
        assert!(matches!(
            read.check_unchanged(),
            Err(LoadError::Changed { .. })
        ));
        // The bytes behind the end are not touched, which would end the program.
        open.set_len(0).unwrap();
        assert!(matches!(
            read.check_unchanged(),
            Err(LoadError::Changed { .. })
        ));
    }

    #[test]
    fn what_is_no_ordinary_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let told = InputFile::open(folder.path()).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::IsADirectory);
        #[cfg(unix)]
        {
            let told = InputFile::open(Path::new("/dev/null")).unwrap_err();
            assert!(told.to_string().contains("a device"), "{told}");
        }
    }
}
