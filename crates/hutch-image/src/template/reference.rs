//! Names of images as Docker has them: `ubuntu`, `registry.test:5000/team/image:v1`, `image@sha256:…`.

use std::fmt;

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where its images are that have no owner.
const DEFAULT_OWNER: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest name and longest tag (OCI distribution specification).
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A name of an image, complete.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Something that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no name of an image: {why}")]
pub struct ReferenceError {
    /// What was given.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// Parses a name by Docker's rules.
    pub fn parse(name: &str) -> Result<Self, ReferenceError> {
        let refuse = |why| Err(ReferenceError { name: name.escape_debug().to_string(), why });
        if name.len() > NAME_MAX + TAG_MAX + 80 {
            return refuse("it is too long");
        }
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (name, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return refuse("its digest is not `sha256:` and 64 hexadecimal digits");
        }
        // A colon before a slash is that of a registry's port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return refuse("a tag is letters, digits, `_`, `.` and `-`, at most 128");
        }
        let (registry, path) = match path.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':']) || first == "localhost" || has_upper(first) =>
            {
                (first, rest)
            }
            _ => (DEFAULT_REGISTRY, path),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_registry(registry) {
            return refuse("its registry is no host name");
        }
        if path.is_empty() || path.len() > NAME_MAX || !path.split('/').all(is_component) {
            return refuse(
                "a name is lower-case letters, digits, and single `.`, `_`, `-` between them",
            );
        }
        let repository = match (registry, path.contains('/')) {
            (DEFAULT_REGISTRY, false) => format!("{DEFAULT_OWNER}/{path}"),
            _ => path.to_owned(),
        };
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        let digest = digest.map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host of the registry, perhaps with a port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the image in it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What the registry is asked for: the digest where there is one.
    pub fn tag_or_digest(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// `sha256:…` that the name insists on.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// With registry and owner whatever they are, as archives keep names.
    pub fn full(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        tag.chain(self.digest.iter().map(|digest| format!("@{digest}"))).collect()
    }
}

/// As people write it: without what can be left out.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.registry != DEFAULT_REGISTRY {
            write!(f, "{}/", self.registry)?;
        }
        let owner = format!("{DEFAULT_OWNER}/");
        let short = self.repository.strip_prefix(&owner).filter(|rest| !rest.contains('/'));
        let short = short.filter(|_| self.registry == DEFAULT_REGISTRY);
        write!(f, "{}{}", short.unwrap_or(&self.repository), self.suffix())
    }
}

/// `sha256:` and its digits.
pub(crate) fn is_digest(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(digit))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().enumerate().all(|(at, byte)| word(byte) || at > 0 && b".-".contains(&byte))
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.parse::<u16>().is_ok()
}

fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let Some((&first, &last)) = component.as_bytes().first().zip(component.as_bytes().last())
    else {
        return false;
    };
    let mut separators = component.split(|c: char| c.is_ascii() && word(c as u8));
    word(first)
        && word(last)
        && separators.all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_completed_and_shown_short() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (name, full, short) in [
            ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
            ("my-template:v1", "docker.io/library/my-template:v1", "my-template:v1"),
            (
                "docker/sandbox-templates:claude-code",
                "docker.io/docker/sandbox-templates:claude-code",
                "docker/sandbox-templates:claude-code",
            ),
            ("docker.io/library/a:b", "docker.io/library/a:b", "a:b"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a:latest"),
            ("registry.test/a/b/c:1.0", "registry.test/a/b/c:1.0", "registry.test/a/b/c:1.0"),
        ] {
            let reference = Reference::parse(name).unwrap();
            assert_eq!((reference.full().as_str(), reference.to_string().as_str()), (full, short));
        }
        let pinned = Reference::parse(&format!("a/b@{digest}")).unwrap();
        assert_eq!(pinned.tag_or_digest(), digest);
        assert_eq!(pinned.to_string(), format!("a/b@{digest}"));
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for name in [
            "",
            ":",
            "a:",
            ":a",
            "A",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:b:c",
            "-a",
            "a-",
            "a..b",
            "a:-b",
            "a@sha256:00",
            "a@md5:00",
            "host:x/a",
            "host:99999/a",
            "../a",
            "a/../b",
            "é",
            "a\n",
        ] {
            assert!(Reference::parse(name).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_shown_is_the_same_name(name in "[a-z0-9./:@_-]{0,40}") {
            if let Ok(reference) = Reference::parse(&name) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.full()).unwrap(), &reference);
            }
        }
    }
}
