//! What the VM tests need before the first of them runs. See `docs/testing.md`.

/// Makes it.
pub(crate) fn prepare() -> anyhow::Result<()> {
    crate::build::build()
}
