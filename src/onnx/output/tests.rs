use super::*;
use std::io::Write;

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_is_left_behind_when_writing_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, b"old").unwrap();
    let target = Target::new(path.clone(), true).unwrap();
    let failed = target.write(|out| {
        out.write_all(b"half")?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    });
    let error = failed.map(drop).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write {}: ", path.display())),
        "{error}"
    );
    assert_eq!(files(folder.path()), ["m.onnx"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn a_file_made_in_the_meantime_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let target = Target::new(path.clone(), false).unwrap();
    let (file, _) = target
        .write(|out| out.write_all(b"new").map(|()| 3))
        .unwrap();
    fs::write(&path, b"other").unwrap();
    assert!(matches!(
        target.rename(&file),
        Err(SaveError::Exists { .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), b"other");
    drop(file);
    assert_eq!(files(folder.path()), ["m.onnx"]);
}

/// Writes `content` beside `target`.
fn written(target: &Target, content: &str) -> Temporary {
    let fill = |out: &mut File| out.write_all(content.as_bytes()).map(|()| 0);
    target.write(fill).unwrap().0
}

/// A model's file and its data: which of the two were there before, and whether the second rename fails.
#[test]
fn a_pair_is_replaced_whole_or_not_at_all() {
    for (data_was, model_was, fails) in (0..8).map(|i| (i & 1 > 0, i & 2 > 0, i & 4 > 0)) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, was) in [("data", data_was), ("model", model_was)] {
            if was {
                fs::write(at(name), "old").unwrap();
            }
        }
        let before = files(folder.path());
        let (data, model) = (
            Target::new(at("data"), true).unwrap(),
            Target::new(at("model"), true).unwrap(),
        );
        let (new_data, new_model) = (written(&data, "new"), written(&model, "new"));
        if fails {
            fs::remove_file(new_model.0.path()).unwrap();
        }
        let done = commit(&[(&data, &new_data), (&model, &new_model)]);
        drop((new_data, new_model));
        assert_eq!(done.is_err(), fails);
        let expected = if fails {
            before
        } else {
            vec!["data".into(), "model".into()]
        };
        assert_eq!(files(folder.path()), expected);
        for name in expected {
            let content = fs::read_to_string(at(&name)).unwrap();
            assert_eq!(content, if fails { "old" } else { "new" }, "{name}");
        }
    }
}

#[cfg(unix)]
#[test]
fn permissions_stay_and_only_files_are_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, "old").unwrap();
    for mode in [0o600, 0o644, 0o664, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        write(&path, true, |file| file.write_all(b"new")).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            mode
        );
    }
    let told = write(Path::new("/dev/null"), true, |_| Ok(())).unwrap_err();
    assert!(matches!(told, SaveError::Special { .. }), "{told}");
    assert!(matches!(
        write(folder.path(), true, |_| Ok(())),
        Err(SaveError::NotAFile { .. })
    ));
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    assert!(matches!(check(&link, true), Err(SaveError::Special { .. })));
    let long = folder.path().join("n".repeat(300));
    assert!(matches!(check(&long, false), Err(SaveError::Write { .. })));
}

#[test]
fn temporary_files_go_when_the_program_must() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target::new(folder.path().join("m.onnx"), false).unwrap();
    let file = written(&target, "new");
    assert_eq!(files(folder.path()).len(), 1);
    // Not the function itself, which would take the files of tests beside this one.
    let mut mine = BTreeSet::from([file.0.path().to_owned()]);
    remove_all(&mut mine);
    assert!(files(folder.path()).is_empty() && mine.is_empty());
    assert!(temporary().contains(file.0.path()));
}
