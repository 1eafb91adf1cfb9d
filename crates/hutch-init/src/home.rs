//! Where a user of the sandbox lives, by the sandbox's own `/etc/passwd`.

use std::path::{Path, PathBuf};

use crate::root::Root;

/// A list of users that is longer than this is none.
const READ_MAX: u64 = 1 << 20;

/// A user's home directory and whose it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    /// User and group.
    pub(crate) owner: (u32, u32),
}

impl Home {
    /// Of a user, by name or number.
    pub(crate) fn of(root: &Root, user: &str) -> Option<Self> {
        let passwd = root.content(Path::new("/etc/passwd"), READ_MAX).ok().flatten()?;
        Self::find(&String::from_utf8_lossy(&passwd), user)
    }

    /// By name or number in the text of `/etc/passwd`.
    fn find(passwd: &str, user: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let home = fields.nth(1)?;
            (name == user || uid == user).then_some(())?;
            let owner = (uid.parse().ok()?, gid.parse().ok()?);
            Some(Self { path: PathBuf::from(home), owner })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nbad\nagent:x:1000:1001:,,,:/home/agent:/bin/sh\n";
        let agent = Home { path: PathBuf::from("/home/agent"), owner: (1000, 1001) };
        assert_eq!(Home::find(passwd, "agent"), Some(agent));
        assert_eq!(Home::find(passwd, "1000").unwrap().owner, (1000, 1001));
        assert_eq!(Home::find(passwd, "nobody"), None);
        assert_eq!(Home::find("", "root"), None);
    }
}
