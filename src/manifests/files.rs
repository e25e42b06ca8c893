//! From paths to the manifest files that they stand for.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest manifest file, in bytes.
pub const MAX_FILE_SIZE: u64 = 256 * 1024 * 1024;

/// The name that standard input goes by.
pub const STDIN: &str = "<stdin>";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files to read, with the names that they go by; of a file that is reached twice, the first.
    pub(super) files: Vec<File>,
    /// Folders without a manifest in them.
    pub(super) empty: Vec<String>,
    /// Paths that cannot be read, and why.
    pub(super) errors: Vec<(String, String)>,
    seen: BTreeSet<PathBuf>,
    entered: BTreeSet<PathBuf>,
}

/// A file to read.
#[derive(Debug)]
pub(super) enum File {
    /// Standard input.
    Stdin,
    /// A file by its path.
    Path(PathBuf),
}

impl File {
    pub(super) fn name(&self) -> String {
        match self {
            File::Stdin => STDIN.to_owned(),
            File::Path(path) => path.display().to_string(),
        }
    }

    /// The text; a failure says what to do.
    pub(super) fn read(&self) -> Result<String, String> {
        let too_large = || {
            let limit = MAX_FILE_SIZE / 1024 / 1024;
            Err(format!("larger than {limit} MiB: split it into several files"))
        };
        // What says how large it is need not be read to know; a pipe does not say.
        if let File::Path(path) = self
            && fs::metadata(path).is_ok_and(|m| m.len() > MAX_FILE_SIZE)
        {
            return too_large();
        }
        let bytes = match self {
            File::Stdin => bytes(io::stdin().lock()),
            File::Path(path) => fs::File::open(path).and_then(bytes),
        };
        let bytes = bytes.map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() as u64 > MAX_FILE_SIZE {
            return too_large();
        }
        String::from_utf8(bytes).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            format!("not UTF-8 text in line {line}: save it as UTF-8")
        })
    }
}

/// Finds the files of paths: a file itself, a folder's manifests in all its depth, `-` for standard input.
pub(super) fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let mut stdin = false;
    for path in paths {
        if path.as_os_str() == "-" {
            if !stdin {
                found.files.push(File::Stdin);
            }
            stdin = true;
            continue;
        }
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                let before = found.files.len() + found.errors.len();
                found.folder(path);
                if found.files.len() + found.errors.len() == before {
                    found.empty.push(path.display().to_string());
                }
            }
            Ok(_) => found.file(path.clone()),
            Err(error) => found.error(path, &error),
        }
    }
    found
}

impl Found {
    fn folder(&mut self, path: &Path) {
        // A link to a folder above this one would lead here for ever.
        let Ok(real) = path.canonicalize() else {
            return;
        };
        if !self.entered.insert(real) {
            return;
        }
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.error(path, &error),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            // The mounted form of a ConfigMap keeps its files in hidden folders and links to them from outside.
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => self.folder(&path),
                Ok(meta) if meta.is_file() && is_manifest(&path) => self.file(path),
                Err(error) if is_manifest(&path) => self.error(&path, &error),
                _ => {}
            }
        }
    }

    fn file(&mut self, path: PathBuf) {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if self.seen.insert(real) {
            self.files.push(File::Path(path));
        }
    }

    fn error(&mut self, path: &Path, error: &io::Error) {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file or folder: check the path".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        self.errors.push((path.display().to_string(), message));
    }
}

/// By its extension, which the back-up and swap files of editors do not have.
fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn bytes(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
