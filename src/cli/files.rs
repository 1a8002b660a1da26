//! Which files a command reads and which it writes, checked before any work: nothing that is read is written, nothing is
//! written twice, and what stands in the way of writing is said.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use onnx_osplus::calibrate::CalibSource;
use onnx_osplus::onnx::{self, output, save};
use onnx_osplus::prepare::Settings;

use super::shown;

/// What a command reads and writes.
#[derive(Default)]
pub(super) struct Files {
    read: Vec<File>,
    written: Vec<File>,
}

/// A file, and what it is to the user.
struct File {
    what: String,
    path: PathBuf,
    same: BTreeSet<Identity>,
}

/// What tells whether two names are those of one file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    /// The name of its folder, with no link and no `..` in it, and its own.
    Name(PathBuf, OsString),
    /// The same, all links followed.
    Real(PathBuf),
    /// Device and number: the same for all hard links.
    #[cfg(unix)]
    Number(u64, u64),
}

impl Files {
    /// A model, and the files beside it with its external data.
    pub(super) fn reads_model(&mut self, what: &str, path: &Path) {
        self.reads(what, path);
        // A model that cannot be read is refused when it is loaded, with the reason.
        let locations = onnx::external_locations(path).unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new(""));
        for location in locations {
            self.reads(
                &format!("the external data of {what}"),
                &folder.join(location),
            );
        }
    }

    /// Calibration data: files, and what is in folders and the folders inside of them.
    pub(super) fn reads_data(&mut self, sources: &[CalibSource], settings: &Settings) {
        for source in sources {
            self.reads_below(&source.path, 2);
        }
        // Whether they are needed is known when the data are read; that they are not overwritten, is right anyway.
        for file in settings.files() {
            self.reads("the configuration of the model", &file);
        }
    }

    /// A file of labels.
    pub(super) fn reads_labels(&mut self, path: &Path) {
        self.reads("--labels", path);
    }

    /// A file of statistics.
    pub(super) fn reads_statistics(&mut self, path: &Path) {
        self.reads("--stats", path);
    }

    fn reads_below(&mut self, path: &Path, depth: usize) {
        match std::fs::read_dir(path) {
            Ok(entries) if depth > 0 => {
                let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
                entries.for_each(|entry| self.reads_below(&entry, depth - 1));
            }
            Ok(_) => {}
            Err(_) => self.reads("calibration data", path),
        }
    }

    fn reads(&mut self, what: &str, path: &Path) {
        super::system::watch(path);
        self.read.push(File::new(what, path));
    }

    /// A file to be written, `force` if what is there may be replaced.
    ///
    /// # Errors
    /// It is a file that is read or written already, it exists, or it cannot be written.
    pub(super) fn writes(&mut self, what: &str, path: &Path, force: bool) -> Result<()> {
        let file = File::new(what, path);
        self.refuse_read(&file)?;
        if let Some(other) = self.written.iter().find(|other| file.is(other)) {
            bail!(
                "{what} is the same file as {} ({}); choose another {what}",
                other.what,
                shown::path(&other.path)
            );
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            bail!(
                "the folder {} of {} does not exist",
                shown::path(folder),
                shown::path(path)
            );
        }
        match output::check(path, force) {
            Err(save::SaveError::Exists { path }) => {
                bail!("{} exists; use --force to overwrite it", shown::path(&path))
            }
            result => result?,
        }
        has_bytes(path, 1)?;
        self.written.push(file);
        Ok(())
    }

    /// The file of external data beside OUT, which is written with it.
    pub(super) fn writes_data_of(&mut self, out: &Path, force: bool) -> Result<()> {
        let path = save::external_data_path(out);
        if path.to_str().is_none() && path.file_name().is_some_and(|name| name.to_str().is_none()) {
            return Err(save::SaveError::DataName { path }.into());
        }
        self.writes("OUT.data", &path, force)
    }

    /// Whether the disk that `path` is on has so many bytes left; less could not hold the result.
    ///
    /// # Errors
    /// It has not.
    pub(super) fn has_room(&self, path: &Path, least: impl Fn(u64) -> u64) -> Result<()> {
        let models = self.read.iter().filter(|file| file.what.ends_with("IN"));
        let bytes = models.map(|file| std::fs::metadata(&file.path).map_or(0, |meta| meta.len()));
        has_bytes(path, least(bytes.sum()))
    }

    /// Whether `path` is read.
    pub(super) fn is_read(&self, path: &Path) -> bool {
        let file = File::new("", path);
        self.read.iter().any(|read| file.is(read))
    }

    /// Also for what turns out to be written only later.
    fn refuse_read(&self, file: &File) -> Result<()> {
        match self.read.iter().find(|read| file.is(read)) {
            Some(read) => bail!(
                "{} is the same file as {} ({}); choose another {}",
                file.what,
                read.what,
                shown::path(&read.path),
                file.what
            ),
            None => Ok(()),
        }
    }
}

/// Whether the disk that `path` is on has so many bytes left.
fn has_bytes(path: &Path, least: u64) -> Result<()> {
    match super::system::free_bytes(path) {
        Some(0) => bail!("cannot write {}: its disk is full", shown::path(path)),
        Some(free) if free < least => bail!(
            "cannot write {}: its disk has {:.1} MB left, and the result needs {:.1} MB or more",
            shown::path(path),
            free as f64 / 1e6,
            least as f64 / 1e6
        ),
        _ => Ok(()),
    }
}

impl File {
    fn new(what: &str, path: &Path) -> Self {
        let mut same = BTreeSet::new();
        if let Some(name) = path.file_name() {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            same.extend(
                folder
                    .canonicalize()
                    .map(|f| Identity::Name(f, name.to_owned())),
            );
        }
        same.extend(path.canonicalize().map(Identity::Real));
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let meta = std::fs::metadata(path);
            same.extend(meta.map(|meta| Identity::Number(meta.dev(), meta.ino())));
        }
        File {
            what: what.to_owned(),
            path: path.to_owned(),
            same,
        }
    }

    fn is(&self, other: &File) -> bool {
        !self.same.is_disjoint(&other.same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_read_is_never_written_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("data/set")).unwrap();
        for name in ["in.onnx", "data/a.npy", "data/set/input_0.pb"] {
            fs::write(at(name), name).unwrap();
        }
        let mut files = Files::default();
        files.reads_model("IN", &at("in.onnx"));
        let path = at("data");
        files.reads_data(&[CalibSource { name: None, path }], &Settings::default());
        fs::hard_link(at("in.onnx"), at("hard.onnx")).unwrap();
        let mut names = vec![
            "in.onnx",
            "data/../in.onnx",
            "hard.onnx",
            "data/a.npy",
            "data/set/input_0.pb",
        ];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("data/a.npy"), at("soft.onnx")).unwrap();
            names.push("soft.onnx");
        }
        for name in names {
            let told = files
                .writes("OUT", &at(name), true)
                .unwrap_err()
                .to_string();
            assert!(told.starts_with("OUT is the same file as "), "{told}");
        }
        files.writes("OUT", &at("out.onnx"), false).unwrap();
        let told = files
            .writes("--report", &at("./out.onnx"), true)
            .unwrap_err()
            .to_string();
        assert!(
            told.starts_with("--report is the same file as OUT"),
            "{told}"
        );
        assert!(files.is_read(&at("hard.onnx")) && !files.is_read(&at("out.onnx")));
    }
}
