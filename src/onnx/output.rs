//! Files that appear whole or not at all: models, their data, reports.
//!
//! ```text
//! check the target ─ temporary file beside it ─ write ─ fsync ─ rename ─ fsync of the folder
//! ```
//!
//! A file that is replaced keeps its permissions. Only ordinary files are replaced, and links to them: never a folder, a
//! device or a pipe.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use tempfile::NamedTempFile;

use super::input::special;
use super::save::error::SaveError;

/// The temporary files that there are at this moment. Whoever holds the lock is giving files their names.
static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn temporary() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of every save that is under way, for a program that is about to end because of a signal.
///
/// A save that is giving its files their names is waited for, so that a model and its data end up together. After this no save
/// begins or ends in this process: it waits for the end of the program, which would else leave behind what another thread makes.
pub fn remove_temporary_files() {
    let mut paths = temporary();
    remove_all(&mut paths);
    std::mem::forget(paths);
}

/// [`remove_temporary_files`], unless that would have to wait: for a program that ends because it has no memory left.
pub fn try_remove_temporary_files() {
    match TEMPORARY.try_lock() {
        Ok(mut paths) => remove_all(&mut paths),
        Err(TryLockError::Poisoned(paths)) => remove_all(&mut paths.into_inner()),
        Err(TryLockError::WouldBlock) => {}
    }
}

fn remove_all(paths: &mut BTreeSet<PathBuf>) {
    for path in std::mem::take(paths) {
        // One that cannot be removed stays; there is nobody left to tell.
        let _ = fs::remove_file(path);
    }
}

/// Writes one file, whole or not at all.
///
/// # Errors
/// See [`SaveError`]; what was there before is still there then.
///
/// ```
/// use onnx_osplus::onnx::output;
/// use std::io::Write;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("report.json");
/// output::write(&path, false, |file| file.write_all(b"{}"))?;
/// // What exists is not replaced without being asked.
/// assert!(output::write(&path, false, |file| file.write_all(b"[]")).is_err());
/// # Ok(())
/// # }
/// ```
pub fn write(
    path: &Path,
    overwrite: bool,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), SaveError> {
    let target = Target::new(path.to_owned(), overwrite)?;
    let (file, _) = target.write(|file| fill(file).map(|()| 0))?;
    commit(&[(&target, &file)])
}

/// Whether a file could be written to `path` now: it is a file name, its folder can be written to, what is there is an
/// ordinary file and may be replaced. Nothing is left behind.
///
/// # Errors
/// What [`write()`] would fail with.
pub fn check(path: &Path, overwrite: bool) -> Result<(), SaveError> {
    Target::new(path.to_owned(), overwrite)?
        .temporary_file()
        .map(drop)
}

/// A file to be written through a temporary one.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    overwrite: bool,
}

/// A temporary file beside its target. It goes away when dropped.
#[derive(Debug)]
pub(super) struct Temporary(NamedTempFile);

impl Drop for Temporary {
    fn drop(&mut self) {
        temporary().remove(self.0.path());
    }
}

impl Target {
    pub(super) fn new(path: PathBuf, overwrite: bool) -> Result<Self, SaveError> {
        if path.file_name().is_none() || path.is_dir() {
            return Err(SaveError::NotAFile { path });
        }
        // Of the link itself, which renaming would replace, also where it leads nowhere.
        match path.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, overwrite });
            }
            Err(source) => return Err(SaveError::Write { path, source }),
        }
        if let Some(kind) = path.metadata().ok().as_ref().and_then(special) {
            return Err(SaveError::Special { path, kind });
        }
        match overwrite {
            false => Err(SaveError::Exists { path }),
            true => Ok(Self { path, overwrite }),
        }
    }

    fn error(&self, source: io::Error) -> SaveError {
        SaveError::Write {
            path: self.path.clone(),
            source,
        }
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn temporary_file(&self) -> Result<Temporary, SaveError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onnx-osplus-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private unless told otherwise; the system takes the umask off this.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        // Held while the file is made, so that none is made between a signal and the end.
        let mut known = temporary();
        let file = builder
            .tempfile_in(self.folder())
            .map_err(|error| self.error(error))?;
        known.insert(file.path().to_owned());
        Ok(Temporary(file))
    }

    /// Fills a temporary file in the target's folder, and has the system bring it to the disk.
    pub(super) fn write(
        &self,
        fill: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<(Temporary, u64), SaveError> {
        let mut file = self.temporary_file()?;
        let done = || {
            let bytes = fill(file.0.as_file_mut())?;
            self.keep_permissions(file.0.as_file())?;
            file.0.as_file().sync_all()?;
            Ok(bytes)
        };
        let bytes = done().map_err(|error| self.error(error))?;
        Ok((file, bytes))
    }

    /// Those of the file that is replaced, if there is one.
    fn keep_permissions(&self, file: &File) -> io::Result<()> {
        let Ok(old) = fs::metadata(&self.path) else {
            return Ok(());
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, fchown};
            // Only root may give files away; a file of one's own stays one's own.
            let _ = fchown(file, Some(old.uid()), Some(old.gid()));
        }
        file.set_permissions(old.permissions())
    }

    /// Gives the temporary file its name.
    fn rename(&self, file: &Temporary) -> Result<(), SaveError> {
        let done = match self.overwrite {
            true => fs::rename(file.0.path(), &self.path),
            false => self.rename_to_new(file.0.path()),
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(SaveError::Exists {
                path: self.path.clone(),
            }),
            result => result.map_err(|error| self.error(error)),
        }
    }

    /// As `rename`, but somebody may have made the file in the meantime. A link is made or not, never over another file.
    fn rename_to_new(&self, from: &Path) -> io::Result<()> {
        match fs::hard_link(from, &self.path) {
            Ok(()) => fs::remove_file(from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // A file system without hard links.
            Err(_) if self.path.symlink_metadata().is_err() => fs::rename(from, &self.path),
            Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    /// Has the system bring the names in the folder to the disk.
    fn sync_folder(&self) -> Result<(), SaveError> {
        #[cfg(unix)]
        {
            let synced = File::open(self.folder()).and_then(|folder| folder.sync_all());
            match synced {
                // Some file systems cannot, and some folders may be written and not read.
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::InvalidInput
                            | io::ErrorKind::Unsupported
                            | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    return Err(self.error(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves the file that is there out of the way. `None` if there is none.
    fn move_aside(&self) -> Result<Option<Aside<'_>>, SaveError> {
        if self.path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let name = tempfile::Builder::new()
            .prefix(".onnx-osplus-")
            .suffix(".old")
            .tempfile_in(self.folder())
            .map_err(|error| self.error(error))?
            .into_temp_path();
        fs::rename(&self.path, &name).map_err(|error| self.error(error))?;
        // It is the user's file now, which must not go with a guard.
        let path = name.keep().map_err(|error| self.error(error.error))?;
        Ok(Some(Aside { target: self, path }))
    }
}

/// A file that was moved out of the way of a new one.
struct Aside<'a> {
    target: &'a Target,
    path: PathBuf,
}

/// Gives temporary files their names, in this order; all of them or, after an error, none.
///
/// The last file is the one that refers to the others: a model after its data. Where it is replaced together with them,
/// the old ones are moved out of the way first, the last one before the others. So at no moment does a name of the last
/// file lead to something that refers to the wrong others, even if the power fails.
pub(super) fn commit(files: &[(&Target, &Temporary)]) -> Result<(), SaveError> {
    let lock = temporary();
    let mut aside = Vec::new();
    let mut named = Vec::new();
    let done = place(files, &mut aside, &mut named);
    if done.is_err() {
        // What matters is the error that led here; the old files are put back.
        for target in named.into_iter().rev() {
            let _ = fs::remove_file(&target.path);
        }
        for old in aside.into_iter().rev() {
            let _ = fs::rename(&old.path, &old.target.path);
        }
        drop(lock);
        return done;
    }
    for old in aside {
        let _ = fs::remove_file(&old.path);
    }
    drop(lock);
    Ok(())
}

fn place<'a>(
    files: &[(&'a Target, &Temporary)],
    aside: &mut Vec<Aside<'a>>,
    named: &mut Vec<&'a Target>,
) -> Result<(), SaveError> {
    let is_there = |target: &Target| target.path.symlink_metadata().is_ok();
    let (_, others) = files.split_last().unzip();
    let others: &[(&Target, &Temporary)] = others.unwrap_or_default();
    if others.iter().any(|(target, _)| is_there(target)) {
        for (target, _) in files.iter().rev() {
            aside.extend(target.move_aside()?);
        }
    }
    for (target, file) in files {
        // What replaces a file in one step cannot be taken back, and is a whole file.
        let is_new = !is_there(target);
        target.rename(file)?;
        if is_new {
            named.push(target);
        }
        target.sync_folder()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
