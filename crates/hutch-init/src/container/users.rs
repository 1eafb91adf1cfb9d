//! Who a session runs as: `<name|uid>[:<group|gid>]` looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the sandbox: their content may be anything, so lines that make no sense are skipped.

use std::io::Read as _;
use std::path::Path;

/// A database larger than this is not read.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// Most supplementary groups, as Linux's `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65_536;

/// Everything about a user that a process needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, sorted.
    pub(super) groups: Vec<u32>,
    pub(super) name: String,
    pub(super) home: String,
    pub(super) shell: String,
}

/// The two files' contents.
#[derive(Debug, Default)]
pub(super) struct Database {
    passwd: String,
    group: String,
}

impl Database {
    /// Reads `/etc/passwd` and `/etc/group` under `root`; a missing or unreadable one counts as empty.
    pub(super) fn read(root: &Path) -> Self {
        Self { passwd: text(&root.join("etc/passwd")), group: text(&root.join("etc/group")) }
    }

    /// Finds the user that `who` names. The error is one sentence.
    pub(super) fn find(&self, who: &str) -> Result<User, String> {
        let (user, group) = match who.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (who, None),
        };
        let mut found = self.user(user).ok_or_else(|| match user.parse::<u32>() {
            Ok(_) | Err(_) if user.is_empty() => "the user's name is empty".to_owned(),
            _ => format!("no user `{}` in the sandbox", user.escape_debug()),
        })?;
        match group {
            // Without a group: the user's own, and all that list it.
            None => found.groups = self.groups_of(&found.name),
            Some(group) => {
                found.gid = self
                    .group(group)
                    .ok_or_else(|| format!("no group `{}` in the sandbox", group.escape_debug()))?;
            }
        }
        if !found.groups.contains(&found.gid) {
            found.groups.push(found.gid);
            found.groups.sort_unstable();
        }
        Ok(found)
    }

    fn user(&self, wanted: &str) -> Option<User> {
        let number = number(wanted);
        let mut by_number = None;
        for line in self.passwd.lines() {
            let Some(user) = parse_user(line) else { continue };
            if user.name == wanted {
                return Some(user);
            }
            if by_number.is_none() && Some(user.uid) == number {
                by_number = Some(user);
            }
        }
        by_number.or_else(|| {
            // A number that is in no file is a user all the same, with nothing of its own.
            number.map(|uid| User {
                uid,
                gid: 0,
                groups: Vec::new(),
                name: uid.to_string(),
                home: "/".to_owned(),
                shell: "/bin/sh".to_owned(),
            })
        })
    }

    /// The number of a group by its name or number.
    pub(super) fn group(&self, wanted: &str) -> Option<u32> {
        self.group
            .lines()
            .filter_map(parse_group)
            .find(|(name, _, _)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .or_else(|| number(wanted))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let mut groups: Vec<u32> = self
            .group
            .lines()
            .filter_map(parse_group)
            .filter(|(_, _, members)| members.split(',').any(|member| member == user))
            .map(|(_, gid, _)| gid)
            .take(GROUPS_MAX - 1)
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// A user or group number; the highest means "unchanged" to the kernel and is none.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    if name.is_empty() {
        return None;
    }
    let or = |value: &str, default: &str| {
        if value.is_empty() { default.to_owned() } else { value.to_owned() }
    };
    Some(User {
        uid: number(uid)?,
        gid: number(gid)?,
        groups: Vec::new(),
        name: name.to_owned(),
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next()?))
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    // Not a regular file (a FIFO that a hostile root made) would block for ever.
    let regular = path.metadata().is_ok_and(|found| found.is_file() && found.len() <= FILE_MAX);
    if regular && let Ok(file) = std::fs::File::open(path) {
        // A file that cannot be read through counts as far as it could be.
        file.take(FILE_MAX).read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nagent:x:1000:1000::/home/agent:/bin/bash\n\
                     1001:x:7:7::/odd:\nbad:x:nope:1::/:/bin/sh\n"
                .to_owned(),
            group: "root:x:0:\nsudo:x:27:agent\ndocker:x:999:bob,agent\nagent:x:1000:\nbroken\n".to_owned(),
        }
    }

    #[test]
    fn a_name_brings_home_shell_and_all_groups() {
        let user = database().find("agent").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1000));
        assert_eq!(user.groups, [27, 999, 1000]);
        assert_eq!(user.home, "/home/agent");
        assert_eq!(user.shell, "/bin/bash");
    }

    #[test]
    fn a_named_group_replaces_all_groups() {
        let user = database().find("agent:docker").unwrap();
        assert_eq!((user.gid, user.groups), (999, vec![999]));
    }

    #[test]
    fn a_number_finds_its_user_and_a_name_that_looks_like_one_wins() {
        assert_eq!(database().find("1000").unwrap().name, "agent");
        assert_eq!(database().find("1001").unwrap().uid, 7);
    }

    #[test]
    fn an_unlisted_number_is_a_user_with_nothing() {
        let user = database().find("4242:4343").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4242, 4343, "/"));
    }

    #[test]
    fn unknown_and_impossible_names_are_refused() {
        for who in ["nobody-here", "", "agent:no-such", ":", "4294967295", "bad", "-1"] {
            assert!(database().find(who).is_err(), "{who:?}");
        }
    }

    proptest! {
        #[test]
        fn any_files_and_any_name_are_survived(passwd in ".*", group in ".*", who in ".*") {
            let _ignored = Database { passwd, group }.find(&who).is_ok();
        }
    }
}
