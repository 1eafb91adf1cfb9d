//! The JSON documents of images, as Docker and OCI have them, as far as they are needed here.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::import::ImportError;
use crate::template::{TemplateConfig, is_digest};

/// Largest document: what registries take as a manifest (OCI distribution specification).
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;
/// More layers no builder makes.
const LAYERS_MAX: usize = 512;
/// Most entries of an index.
const INDEX_MAX: usize = 1024;

/// Says what a blob is and which one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

/// A manifest of either kind: which one shows in what it has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<SessionConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SessionConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// An entry of `manifest.json` of a Docker archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerManifest {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Vec<String>,
}

/// Reads a document; `what` names it in the error.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &[u8],
    what: &'static str,
) -> Result<T, ImportError> {
    serde_json::from_slice(text).map_err(|source| ImportError::Document { what, source })
}

/// This machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Manifest {
    pub(crate) fn read(text: &[u8]) -> Result<Self, ImportError> {
        let manifest: Self = parse(text, "manifest")?;
        if manifest.layers.len() > LAYERS_MAX || manifest.manifests.len() > INDEX_MAX {
            return Err(ImportError::TooLarge { what: "a list in its manifest" });
        }
        let all = manifest.manifests.iter().chain(&manifest.config).chain(&manifest.layers);
        for descriptor in all {
            check_digest(&descriptor.digest)?;
        }
        Ok(manifest)
    }

    /// The image for this machine out of an index.
    pub(crate) fn for_this_machine(&self) -> Result<&Descriptor, ImportError> {
        let wanted = architecture();
        let fits = |descriptor: &&Descriptor| {
            descriptor
                .platform
                .as_ref()
                .is_none_or(|of| of.os == "linux" && of.architecture == wanted)
        };
        self.manifests.iter().find(fits).ok_or_else(|| {
            let named = self.manifests.iter().filter_map(|of| of.platform.as_ref());
            let found: Vec<String> = named
                .filter(|of| of.os != "unknown")
                .map(|of| format!("{}/{}", of.os, of.architecture).escape_debug().to_string())
                .take(20)
                .collect();
            ImportError::Platform { wanted: format!("linux/{wanted}"), found: found.join(", ") }
        })
    }
}

impl ImageConfig {
    pub(crate) fn read(text: &[u8]) -> Result<Self, ImportError> {
        let config: Self = parse(text, "configuration")?;
        if config.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(ImportError::TooLarge { what: "the list of its layers" });
        }
        config.rootfs.diff_ids.iter().try_for_each(|digest| check_digest(digest))?;
        let wanted = architecture();
        let other = |is: &str, wanted: &str| !is.is_empty() && is != wanted;
        if other(&config.os, "linux") || other(&config.architecture, wanted) {
            return Err(ImportError::Platform {
                wanted: format!("linux/{wanted}"),
                found: format!("{}/{}", config.os, config.architecture).escape_debug().to_string(),
            });
        }
        Ok(config)
    }

    /// SHA-256 of each layer's archive without its compression, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    /// What a template of it says of its sessions.
    pub(crate) fn template_config(&self) -> TemplateConfig {
        let Some(config) = &self.config else {
            return TemplateConfig {
                architecture: Some(architecture().to_owned()),
                ..TemplateConfig::default()
            };
        };
        let variables = config.env.iter().flatten().filter_map(|pair| pair.split_once('='));
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        TemplateConfig {
            environment: variables
                .filter(|(name, value)| {
                    !name.is_empty() && !name.contains('\0') && !value.contains('\0')
                })
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            user: some(&config.user),
            working_directory: some(&config.working_dir),
            entrypoint: config.entrypoint.clone().unwrap_or_default(),
            command: config.cmd.clone().unwrap_or_default(),
            labels: config.labels.clone().unwrap_or_default(),
            architecture: Some(architecture().to_owned()),
        }
    }
}

/// A digest becomes a part of a path and of an address.
pub(crate) fn check_digest(digest: &str) -> Result<(), ImportError> {
    if is_digest(digest) {
        return Ok(());
    }
    Err(ImportError::NotADigest {
        digest: digest.chars().take(100).collect::<String>().escape_debug().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(platform: &str, digit: &str) -> String {
        let (os, architecture) = platform.split_once('/').unwrap();
        let digest = digit.repeat(64);
        format!(
            r#"{{"digest":"sha256:{digest}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
        )
    }

    fn index(platforms: &[&str]) -> Manifest {
        let all: Vec<String> =
            platforms.iter().enumerate().map(|(at, of)| descriptor(of, &at.to_string())).collect();
        Manifest::read(format!(r#"{{"manifests":[{}]}}"#, all.join(",")).as_bytes()).unwrap()
    }

    #[test]
    fn an_index_has_the_image_of_this_machine() {
        let own = format!("linux/{}", architecture());
        let all = index(&["unknown/unknown", "windows/amd64", "linux/s390x", &own]);
        assert_eq!(all.for_this_machine().unwrap().digest, format!("sha256:{}", "3".repeat(64)));
        let error = index(&["unknown/unknown", "linux/s390x"]).for_this_machine().unwrap_err();
        assert_eq!(error.to_string(), format!("the image is for linux/s390x and not for {own}"));
    }

    #[test]
    fn a_digest_that_is_a_path_is_refused() {
        for digest in ["sha256:../../etc/passwd", "sha256:", "md5:00", "../x", "sha512:00"] {
            let text = format!(r#"{{"config":{{"digest":"{digest}"}}}}"#);
            assert!(
                matches!(Manifest::read(text.as_bytes()), Err(ImportError::NotADigest { .. })),
                "{digest}"
            );
        }
    }

    #[test]
    fn what_an_image_says_of_its_sessions_is_kept() {
        let own = architecture();
        let text = format!(
            r#"{{"os":"linux","architecture":"{own}","rootfs":{{"type":"layers","diff_ids":[]}},
            "config":{{"User":"agent","Env":["PATH=/bin:/usr/bin","A=b=c","broken","=x"],"WorkingDir":"/w",
            "Entrypoint":["/init"],"Cmd":["a"],"Labels":{{"l":"v"}},"ExposedPorts":{{"80/tcp":{{}}}}}}}}"#
        );
        let config = ImageConfig::read(text.as_bytes()).unwrap().template_config();
        assert_eq!(config.user.as_deref(), Some("agent"));
        assert_eq!(config.environment["A"], "b=c");
        assert_eq!(config.environment.len(), 2);
        assert_eq!(
            (config.entrypoint, config.command),
            (vec!["/init".to_owned()], vec!["a".to_owned()])
        );
        let other = text.replace(own, "vax");
        assert!(ImageConfig::read(other.as_bytes()).unwrap_err().to_string().contains("linux/vax"));
        let null = r#"{"rootfs":{"diff_ids":[]},"config":{"Env":null,"User":"","Cmd":null}}"#;
        let config = ImageConfig::read(null.as_bytes()).unwrap().template_config();
        assert_eq!((config.user, config.command.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ignored = (Manifest::read(&bytes), ImageConfig::read(&bytes));
        }
    }
}
