//! What a run left behind: names in /dev/shm, temporary files, living processes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use crate::place::Place;
use crate::procs::{self, Process};

/// Set for everything that a run starts, so that its processes can be told from all others.
const MARK: &str = "CROSSPROC_TEST_RUN";

/// What names of temporary folders of runs begin with; the process id follows.
const FOLDER: &str = "crossproc-xtask-";

/// How long a process that is about to end may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of the machine before a run, and a temporary folder for the run alone, so that what others do at
/// the same time is not taken for ours.
#[derive(Debug)]
pub struct Before {
    names: BTreeSet<PathBuf>,
    mark: String,
    folder: PathBuf,
}

impl Before {
    pub fn look() -> Result<Self, String> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mark = format!("{}-{time}", std::process::id());
        remove_folders_of_the_dead();
        let folder = env::temp_dir().join(format!("{FOLDER}{mark}"));
        fs::create_dir(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        Ok(Self { names: shared_names(), mark, folder })
    }

    /// What everything started by the run has to inherit.
    pub fn equip(&self, command: &mut Command) {
        command.env(MARK, &self.mark).env("TMPDIR", &self.folder);
    }

    /// One line for each thing that is there now and was not before. Processes among them are killed.
    pub fn left(&self, place: &Place) -> Vec<String> {
        let started = Instant::now();
        let (processes, files) = loop {
            let (processes, files) = (self.processes(place), self.files());
            if (processes.is_empty() && files.is_empty()) || started.elapsed() > PATIENCE {
                break (processes, files);
            }
            sleep(Duration::from_millis(50));
        };
        let mut lines: Vec<String> = files.iter().map(|path| format!("file {}", path.display())).collect();
        for process in processes {
            lines.push(format!("process {}: {}", process.pid, process.command()));
            process.kill();
        }
        lines
    }

    fn files(&self) -> Vec<PathBuf> {
        // Compilers and linkers have files of their own in the temporary folder.
        let temporary = entries(&self.folder).filter(|path| is_ours(path));
        shared_names().difference(&self.names).cloned().chain(temporary).collect()
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

impl Drop for Before {
    fn drop(&mut self) {
        // What stays in it has been reported.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A run that was interrupted could not remove its folder.
fn remove_folders_of_the_dead() {
    for path in entries(&env::temp_dir()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.strip_prefix(FOLDER).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !pid.is_empty() && !Path::new("/proc").join(pid).exists()) {
            // If it is somebody else's it stays.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Files of ours below /dev/shm. An empty folder per user may stay.
fn shared_names() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in entries(Path::new("/dev/shm")).filter(|path| is_ours(path)) {
        files_below(path, &mut found);
    }
    found
}

fn is_ours(path: &Path) -> bool {
    // A name of ours may be hidden by a leading dot while it is made.
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.trim_start_matches('.').starts_with("crossproc"))
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

    fn place() -> Place {
        Place { root: PathBuf::new(), target: PathBuf::from("/nowhere") }
    }

    #[test]
    fn a_process_and_a_file_that_stay_are_named() {
        let before = Before::look().unwrap();
        let mut command = Command::new("sh");
        before.equip(command.args(["-c", "echo > $TMPDIR/crossproc-x; echo > $TMPDIR/other; exec sleep 60"]));
        let mut child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !procs::all().iter().any(|p| p.pid == pid && p.command() == "sleep 60") {
            sleep(Duration::from_millis(1));
        }
        let left = before.left(&place());
        let file = before.folder.join("crossproc-x");
        assert!(left.contains(&format!("file {}", file.display())), "{left:?}");
        assert!(left.contains(&format!("process {pid}: sleep 60")), "{left:?}");
        assert!(!left.iter().any(|line| line.contains("other")), "{left:?}");
        drop(before);
        assert!(!file.exists());
        assert!(!child.wait().unwrap().success(), "it was killed");
    }
}
