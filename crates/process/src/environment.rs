//! An environment as bytes, for the fork server: it must give its copies that of the process that asks.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The environment of this process with `changes` (`None` removes): `NAME=value`, each with a 0 at its end.
pub(crate) fn with(changes: Vec<(OsString, Option<OsString>)>) -> Vec<u8> {
    let mut environment: BTreeMap<_, _> = std::env::vars_os().collect();
    for (name, value) in changes {
        match value {
            Some(value) => environment.insert(name, value),
            None => environment.remove(&name),
        };
    }
    let mut bytes = Vec::new();
    for (name, value) in environment {
        for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            bytes.extend(part);
        }
    }
    bytes
}

/// Whether a process can have the variable, with the value or without one.
pub(crate) fn can_hold(name: &OsStr, value: Option<&OsStr>) -> bool {
    let name = name.as_bytes();
    let holds = |byte: u8| name.contains(&byte);
    !name.is_empty() && !holds(b'=') && !holds(0) && !value.is_some_and(|value| value.as_bytes().contains(&0))
}

/// What has to be changed in this process to have the environment that `bytes` are (see [`with`]).
pub(crate) fn changes_to(bytes: &[u8]) -> Vec<(OsString, Option<OsString>)> {
    let mut own: BTreeMap<_, _> = std::env::vars_os().collect();
    let mut changes = Vec::new();
    for entry in bytes.split(|&byte| byte == 0).filter(|entry| !entry.is_empty()) {
        // A name may begin with `=`, as std sees it.
        let Some(end) = entry.iter().skip(1).position(|&byte| byte == b'=').map(|at| at + 1) else {
            continue;
        };
        let (name, value) = (OsStr::from_bytes(&entry[..end]), OsStr::from_bytes(&entry[end + 1..]));
        if own.remove(name).as_deref() != Some(value) {
            changes.push((name.to_owned(), Some(value.to_owned())));
        }
    }
    changes.extend(own.into_keys().map(|name| (name, None)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn the_changes_are_those_that_were_made() {
        assert_eq!(changes_to(&with(Vec::new())), []);
        let set = (OsString::from("CROSSPROC_SOME"), Some(OsString::from("a=b\n")));
        let odd = (OsString::from_vec(vec![b'X', 0xff]), Some(OsString::from_vec(vec![0xfe])));
        let gone = (OsString::from("PATH"), None);
        let mut changes = vec![set, odd, gone];
        let mut found = changes_to(&with(changes.clone()));
        changes.sort();
        found.sort();
        assert_eq!(found, changes);
    }
}
