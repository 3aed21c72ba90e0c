//! The processes of this machine, as /proc shows them.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `R`unning, `S`leeping, s`T`opped, `Z`ombie and so on.
    pub state: char,
}

impl Process {
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// The program file, if we may look.
    pub fn program(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// True if `NAME=VALUE` stood in the environment that the process was started with.
    pub fn was_started_with(&self, variable: &str) -> bool {
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|entry| entry == variable.as_bytes()))
    }

    /// The command line, for people.
    pub fn command(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words: Vec<_> = bytes.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        words.join(" ").trim_end().to_owned()
    }

    pub fn kill(&self) {
        send(self.pid, Signal::KILL);
    }
}

/// All processes that we can see.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// `PID (NAME) STATE PARENT ...`, where the name may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    let state = rest.next()?.chars().next()?;
    let parent = rest.next()?.parse().ok()?;
    Some(Process { pid, parent, state })
}

/// Kills a process and everything that descends from it.
///
/// All are stopped first. A parent killed in the middle of a fork would leave a child whom nobody can find; a
/// stopped one starts nothing new and keeps its children.
pub fn kill_tree(root: i32) {
    let mut tree = vec![root];
    let mut all_stood = false;
    // Bounded: whoever can not be stopped within a second (a debugger holds it) is killed as found so far.
    for _ in 0..1000 {
        tree.iter().for_each(|pid| send(*pid, Signal::STOP));
        let all = all();
        let known = tree.len();
        let mut next = 0;
        while next < tree.len() {
            let children = all.iter().filter(|p| p.parent == tree[next] && !p.is_zombie()).map(|p| p.pid);
            let new: Vec<_> = children.filter(|pid| !tree.contains(pid)).collect();
            tree.extend(new);
            next += 1;
        }
        // /proc is not read in one moment: only what is seen after all of them stood is the whole tree.
        if all_stood && tree.len() == known {
            break;
        }
        let stands = |pid| all.iter().all(|p| p.pid != pid || matches!(p.state, 'T' | 't' | 'Z' | 'X'));
        all_stood = tree.iter().all(|pid| stands(*pid));
        sleep(Duration::from_millis(1));
    }
    tree.iter().for_each(|pid| send(*pid, Signal::KILL));
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself since we looked.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_is_parsed() {
        let process = parse_stat("12 (a) R (b)) Z 7 12 12 0").unwrap();
        assert_eq!(process, Process { pid: 12, parent: 7, state: 'Z' });
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn a_tree_is_killed_with_its_leaves() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & sleep 60; true"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let leaves = || all().into_iter().filter(|p| p.parent == pid && !p.is_zombie()).collect::<Vec<_>>();
        while leaves().len() < 2 {
            sleep(Duration::from_millis(1));
        }
        let before = leaves();
        kill_tree(pid);
        assert!(!child.wait().unwrap().success());
        // A signal is sent in a moment, but dying takes one too.
        while all().iter().any(|p| before.iter().any(|leaf| leaf.pid == p.pid) && !p.is_zombie()) {
            sleep(Duration::from_millis(1));
        }
    }
}
