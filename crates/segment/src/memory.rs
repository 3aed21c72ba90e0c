//! How much memory may be asked for without waking the out-of-memory killer.
//!
//! An estimate: what is there now may be gone a moment later. It is made to catch lengths that can not be
//! meant.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// What is smaller is not looked into: the look takes longer than making it, and any program's next
/// allocation could as well be the one too many.
const SMALL: u64 = 16 << 20;

/// The files in which a control group says what it may have and what it has.
struct Files {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat`: pages of files, which can be dropped. Pages of segments can not, they count as
    /// used.
    droppable: [&'static str; 2],
    /// Limit and usage of swap, where it is counted apart.
    swap: Option<[&'static str; 2]>,
}

const VERSION_1: Files = Files {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    droppable: ["total_inactive_file ", "total_active_file "],
    swap: None,
};

const VERSION_2: Files = Files {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    droppable: ["inactive_file ", "active_file "],
    swap: Some(["memory.swap.max", "memory.swap.current"]),
};

/// Refuses what the machine, or a control group that we are in, can not give.
pub(crate) fn require(len: u64) -> Result<(), Error> {
    if len <= SMALL {
        return Ok(());
    }
    let too_much = |left: u64, whose: &str| {
        let sentence =
            format!("{len} bytes of memory are more than the {left} that {whose} has left; ask for less");
        Err(Error::new(ErrorKind::NoMemory, sentence))
    };
    let figure =
        |name| field(Path::new("/proc/meminfo"), name).map(|kilobytes| kilobytes.saturating_mul(1024));
    let swap = figure("SwapFree:").unwrap_or(0);
    if let Some(available) = figure("MemAvailable:") {
        let left = available.saturating_add(swap);
        if left < len {
            return too_much(left, "the machine (MemAvailable + SwapFree)");
        }
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match groups.lines().filter_map(|line| room_of_line(line, swap)).min() {
        Some((left, group)) if left < len => {
            too_much(left, &format!("the control group {}", group.display()))
        }
        _ => Ok(()),
    }
}

/// The least that the group in a line of /proc/self/cgroup and its ancestors have left, and which of them it
/// is.
fn room_of_line(line: &str, swap: u64) -> Option<(u64, PathBuf)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    let files = match controllers {
        "" => &VERSION_2,
        _ if controllers.split(',').any(|controller| controller == "memory") => &VERSION_1,
        _ => return None,
    };
    // In a container the path may not be there, but its root is: that of the container.
    let (root, group) = (Path::new(files.root), Path::new(files.root).join(path));
    let groups = group.ancestors().take_while(|dir| dir.starts_with(root));
    groups.filter_map(|dir| Some((room_of(dir, files, swap)?, dir.to_path_buf()))).min()
}

/// What one group has left; `None` if it has no limit.
fn room_of(group: &Path, files: &Files, swap: u64) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max", or a number that no machine has: no limit.
    let limit = number(files.limit).filter(|&limit| limit < 1 << 60)?;
    let stat = group.join("memory.stat");
    let droppable = files.droppable.iter().filter_map(|name| field(&stat, name)).sum();
    let used = number(files.usage)?.saturating_sub(droppable);
    let own_swap = files.swap.and_then(|[max, current]| Some(number(max)?.saturating_sub(number(current)?)));
    Some(limit.saturating_sub(used).saturating_add(own_swap.unwrap_or(swap).min(swap)))
}

/// The number after `name` at the start of a line.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_has_left() {
        let group = std::env::temp_dir().join(format!("crossproc-memory-{}", std::process::id()));
        std::fs::create_dir_all(&group).expect("a directory for the test");
        let write = |name: &str, text: &str| std::fs::write(group.join(name), text).expect("written");
        assert_eq!(room_of(&group, &VERSION_2, 0), None, "no such controller");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(room_of(&group, &VERSION_2, 50), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(room_of(&group, &VERSION_2, 50), Some(350));
        write("memory.stat", "anon 5\ninactive_file 100\nactive_file 30\nshmem 9\n");
        assert_eq!(room_of(&group, &VERSION_2, 50), Some(480), "pages of files can be dropped");
        write("memory.swap.max", "40\n");
        write("memory.swap.current", "10\n");
        assert_eq!(room_of(&group, &VERSION_2, 50), Some(460), "the group may use 30 more of the swap");
        write("memory.max", "500\n");
        assert_eq!(room_of(&group, &VERSION_2, 0), Some(0), "over its limit");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "1\n");
        assert_eq!(room_of(&group, &VERSION_1, 0), None, "no limit");
        write("memory.limit_in_bytes", "4096\n");
        assert_eq!(room_of(&group, &VERSION_1, 0), Some(4095));
        std::fs::remove_dir_all(group).expect("removed");
    }

    #[test]
    fn more_than_the_machine_has_is_refused_with_figures() {
        require(1 << 20).expect("a little is never refused");
        let error = require(1 << 55).expect_err("no machine has that");
        assert_eq!(error.kind(), ErrorKind::NoMemory);
        assert!(
            error.to_string().starts_with("36028797018963968 bytes of memory are more than the "),
            "{error}"
        );
    }
}
