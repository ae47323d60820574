//! The files that go into the guest, checked before anything is booted.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The largest file a guest is given.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Files as they were named, and the folder that relative names start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    pub(crate) directory: Option<PathBuf>,
    pub(crate) files: Vec<PathBuf>,
}

/// The paths of all files, or what is wrong with the first one that can't be used.
pub(crate) fn check(inputs: &Inputs) -> Result<Vec<PathBuf>, Error> {
    inputs
        .files
        .iter()
        .map(|name| {
            let path = match &inputs.directory {
                Some(directory) => directory.join(name),
                None => name.clone(),
            };
            check_one(&path).map_err(|why| Error::new(format!("{}: {why}", name.display())))?;
            Ok(path)
        })
        .collect()
}

fn check_one(path: &Path) -> Result<(), String> {
    let about = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => error.to_string(),
    })?;
    if about.is_dir() {
        return Err("is a folder, not a file".to_owned());
    }
    if !about.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if about.len() == 0 {
        return Err("is empty".to_owned());
    }
    if about.len() > LARGEST {
        return Err(format!("has {} bytes; the guest takes at most {LARGEST} (16 MiB)", about.len()));
    }
    File::open(path).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(directory: &Path, name: &str) -> String {
        let inputs = Inputs { directory: Some(directory.to_owned()), files: vec![name.into()] };
        check(&inputs).expect_err("this file must be refused").to_string()
    }

    #[test]
    fn each_unusable_file_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("empty"), b"").expect("a file");
        File::create(folder.path().join("large")).and_then(|file| file.set_len(LARGEST + 1)).expect("a file");
        assert_eq!(complaint(folder.path(), "absent"), "absent: no such file");
        assert_eq!(complaint(folder.path(), "empty"), "empty: is empty");
        assert_eq!(complaint(folder.path(), "."), ".: is a folder, not a file");
        assert_eq!(
            complaint(folder.path(), "large"),
            "large: has 16777217 bytes; the guest takes at most 16777216 (16 MiB)"
        );
        assert!(complaint(Path::new("/"), "dev/null").ends_with("is not a regular file"));
    }

    #[test]
    fn names_are_relative_to_the_folder_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sixteen");
        File::create(&path).and_then(|file| file.set_len(LARGEST)).expect("a file");
        let inputs = Inputs { directory: Some(folder.path().to_owned()), files: vec!["sixteen".into()] };
        assert_eq!(check(&inputs), Ok(vec![path]));
    }
}
