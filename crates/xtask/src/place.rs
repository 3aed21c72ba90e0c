//! Where the workspace is, which files it has, and what changed in it.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace and its target directory.
#[derive(Debug)]
pub struct Place {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Place {
    /// The workspace that this program was built from.
    pub fn find() -> Result<Self, String> {
        // Cargo sets the variable for `cargo run`; the constant is for a direct start of the binary.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package
            .ancestors()
            .nth(2)
            .filter(|root| root.join("crates/xtask/Cargo.toml").is_file())
            .ok_or_else(|| format!("{} is not crates/xtask of the workspace", package.display()))?
            .to_owned();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// Cargo, started in the workspace, with output made for a log.
    pub fn cargo(&self) -> Command {
        self.cargo_in(&self.root)
    }

    /// Cargo, started in another copy of the workspace.
    pub fn cargo_in(&self, folder: &Path) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(folder).env("CARGO_TERM_COLOR", "never").env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// A folder of ours in the target directory, made if need be.
    pub fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.target.join(name);
        fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        Ok(folder)
    }

    /// Packages with a library that is published: `crates/*` with a `src/lib.rs`.
    pub fn libraries(&self) -> Result<Vec<String>, String> {
        let crates = self.root.join("crates");
        let entries = fs::read_dir(&crates).map_err(|e| format!("cannot list {}: {e}", crates.display()))?;
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join("src/lib.rs").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name != "xtask")
            .map(|name| if name == "crossproc" { name } else { format!("crossproc-{name}") })
            .collect();
        names.sort();
        Ok(names)
    }

    /// Every source file, tracked or new, that git does not ignore; all but `target` where there is no git.
    pub fn files(&self) -> Result<BTreeSet<PathBuf>, String> {
        let listed = self.git(&["ls-files", "-co", "--exclude-standard", "-z"]);
        let mut files = BTreeSet::new();
        match listed {
            Some(text) => files.extend(paths(&text, '\0')),
            None => walk(&self.root, Path::new(""), &mut files)?,
        }
        // Git lists files that were deleted but not yet staged.
        files.retain(|file| self.root.join(file).is_file());
        Ok(files)
    }

    /// Files that differ from where this branch left `origin/main`, or from the commit before; with the name
    /// of what they were compared with. `None` if there is nothing to compare with.
    pub fn changed(&self) -> Option<(BTreeSet<PathBuf>, String)> {
        let head = self.git(&["rev-parse", "--verify", "--quiet", "HEAD"])?;
        let fork = self.git(&["merge-base", "HEAD", "origin/main"]).filter(|fork| *fork != head);
        let (base, name) = match fork {
            Some(fork) => (fork, "origin/main"),
            None => (self.git(&["rev-parse", "--verify", "--quiet", "HEAD~1"])?, "the commit before"),
        };
        let mut files: BTreeSet<PathBuf> =
            paths(&self.git(&["diff", "--name-only", "-z", base.trim()])?, '\0').collect();
        files.extend(paths(&self.git(&["ls-files", "-o", "--exclude-standard", "-z"])?, '\0'));
        Some((files, name.to_owned()))
    }

    /// The commit and whether the tree differs from it, for the head of a report.
    pub fn commit(&self) -> String {
        let Some(head) = self.git(&["rev-parse", "--short=10", "HEAD"]) else {
            return "no commit".to_owned();
        };
        let dirty = self.git(&["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
        format!("commit {}{}", head.trim(), if dirty { " with changes" } else { "" })
    }

    /// What git prints, if it succeeds.
    pub fn git(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("git").current_dir(&self.root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn paths(text: &str, separator: char) -> impl Iterator<Item = PathBuf> {
    text.split(separator).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn walk(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let entries =
        fs::read_dir(root.join(folder)).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let path = folder.join(entry.file_name());
        let name = entry.file_name();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != OsStr::new("target") && name != OsStr::new(".git") => {
                walk(root, &path, files)?;
            }
            Ok(kind) if kind.is_file() => {
                files.insert(path);
            }
            _ => {}
        }
    }
    Ok(())
}
