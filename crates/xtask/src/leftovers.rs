//! What a run left behind: names in /dev/shm, temporary files, living processes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::place::Place;
use crate::procs::{self, Process};

/// Set for everything that a run starts, so that its processes can be told from all others.
const MARK: &str = "CROSSPROC_TEST_RUN";

/// How long a process that is about to end may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of the machine before a run.
#[derive(Debug)]
pub struct Before {
    names: BTreeSet<PathBuf>,
    mark: String,
}

impl Before {
    pub fn look() -> Self {
        let mark = format!("{}-{:?}", std::process::id(), std::time::SystemTime::now());
        let mark: String = mark.chars().filter(|c| c.is_ascii_digit() || *c == '-').collect();
        Self { names: names(), mark }
    }

    /// Name and value of the variable that everything started by the run has to inherit.
    pub fn mark(&self) -> (&'static str, &str) {
        (MARK, &self.mark)
    }

    /// One line for each thing that is there now and was not before. Processes among them are killed.
    pub fn left(&self, place: &Place) -> Vec<String> {
        let started = Instant::now();
        let processes = loop {
            let processes = self.processes(place);
            if processes.is_empty() || started.elapsed() > PATIENCE {
                break processes;
            }
            sleep(Duration::from_millis(50));
        };
        let mut lines: Vec<String> =
            names().difference(&self.names).map(|path| format!("file {}", path.display())).collect();
        for process in processes {
            lines.push(format!("process {}: {}", process.pid, process.command()));
            process.kill();
        }
        lines
    }

    fn processes(&self, place: &Place) -> Vec<Process> {
        let variable = format!("{MARK}={}", self.mark);
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        procs::all()
            .into_iter()
            .filter(|p| p.pid != me && !p.is_zombie())
            // A process that dropped its environment shows as an orphan that runs one of our binaries.
            .filter(|p| {
                p.was_started_with(&variable)
                    || (p.parent == 1 && p.program().is_some_and(|file| file.starts_with(&place.target)))
            })
            .collect()
    }
}

/// Files of ours below /dev/shm (an empty folder per user may stay) and in the temporary folder.
fn names() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in entries(Path::new("/dev/shm")).filter(|path| is_ours(path, "crossproc")) {
        files_below(path, &mut found);
    }
    found.extend(entries(&env::temp_dir()).filter(|path| is_ours(path, "crossproc-")));
    found
}

fn is_ours(path: &Path, prefix: &str) -> bool {
    // A name of ours may be hidden by a leading dot while it is made.
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.trim_start_matches('.').starts_with(prefix))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn files_below(path: PathBuf, found: &mut BTreeSet<PathBuf>) {
    if path.is_dir() && !path.is_symlink() {
        entries(&path).for_each(|entry| files_below(entry, found));
    } else {
        found.insert(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn place() -> Place {
        Place { root: PathBuf::new(), target: PathBuf::from("/nowhere") }
    }

    #[test]
    fn a_process_and_a_file_that_stay_are_named() {
        let before = Before::look();
        let (name, value) = before.mark();
        let file = env::temp_dir().join(format!("crossproc-leftover-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        let mut child = Command::new("sleep").arg("1000").env(name, value).spawn().unwrap();
        let left = before.left(&place());
        fs::remove_file(&file).unwrap();
        assert!(left.contains(&format!("file {}", file.display())), "{left:?}");
        assert!(left.contains(&format!("process {}: sleep 1000", child.id())), "{left:?}");
        assert!(!child.wait().unwrap().success(), "it was killed");
    }
}
